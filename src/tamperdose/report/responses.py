"""Breaking doses and what became of the source study's claims, in a few lines for a terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamperdose import files
from tamperdose.errors import DataError, explain
from tamperdose.records import Scope
from tamperdose.report.text import printable
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.costs import COST_COLUMNS, COSTS
from tamperdose.run.response import DOSE_RESPONSE, DOSE_RESPONSE_JSON, RESPONSE_COLUMNS
from tamperdose.run.scale import SCALING_JSON

FEW_ARMS = 4
"""Up to so many arms every effective dose is printed; beyond, ED50 alone."""
_SHOWN = ("ED50", "ED90", "ED50c")
_SPEAKS_FOR = {Scope.TRAJECTORY.value: "for this run", Scope.ATTACK.value: "for the attack"}


def read_responses(folder: Path, judge: str) -> list[Row]:
    """The effective doses of a run by one judge; none where the run is older than they are.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / DOSE_RESPONSE
    rows = read_rows(path, RESPONSE_COLUMNS) if path.is_file() else []
    return [row for row in rows if row["judge"] == judge]


def read_costs(folder: Path, judge: str) -> list[Row]:
    """The effective doses of a run by one judge in device time and money; none where nothing was timed.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / COSTS
    rows = read_rows(path, COST_COLUMNS) if path.is_file() else []
    return [row for row in rows if row["judge"] == judge]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote; empty where there is none.

    Raises:
        DataError: It is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(files.read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(explain(f"{path} is not JSON", got=str(error), expected="one JSON object")) from error
    if not isinstance(found, dict):
        raise DataError(explain(f"{path} is not a JSON object", got=type(found).__name__))
    return found


def response_lines(folder: Path, judge: str) -> list[str]:
    """Say the breaking doses of every arm and recipe, what speaks against a fit, and the claims.

    Raises:
        DataError: As `read_responses` and `read_json`.
    """
    rows = [row for row in read_responses(folder, judge) if str(row["metric"]).endswith("_steps")]
    doubts = {str(fit.get("arm")): list(_doubts(fit)) for fit in _fits(folder, judge)}
    priced = read_costs(folder, judge)
    lines: list[str] = []
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    shown = _SHOWN if len(arms) <= FEW_ARMS else _SHOWN[:1]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm]
        lines.append(f"{printable(arm)}: " + "; ".join(dose_text(row) for row in mine if _name(row) in shown))
        lines += [f"  {doubt}" for doubt in doubts.get(arm, [])]
        lines += [f"  {cost}" for cost in _cost_lines(priced, arm)]
    return [*lines, *scaling_lines(read_json(folder / SCALING_JSON))]


def dose_text(row: Row) -> str:
    """An effective dose in words: "ED50 5.4 steps, between 5 and 6 [4, 7] for this run"."""
    name, unit = str(row["metric"]).split("_", 1)
    speaks = _SPEAKS_FOR.get(str(row["scope"]), str(row["scope"]))
    n_seeds = f" over {row['n_seeds']} seeds" if row["scope"] == Scope.ATTACK.value else ""
    low, high, censored = row["bracket_low"], row["bracket_high"], row["censored"]
    if censored == "undefined":
        return f"{name} undefined: nothing to lose"
    if censored == "right":
        return f"{name} > {_number(low)} {unit}{n_seeds}"
    if censored == "left":
        return f"{name} < {_number(high)} {unit}{n_seeds}"
    between = f", between {_number(low)} and {_number(high)}" if low is not None and high is not None else ""
    return f"{name} {_number(row['value'])} {unit}{between}, {_interval(row)} {speaks}{n_seeds}"


def _cost_lines(priced: Sequence[Row], arm: str) -> Iterator[str]:
    """What ED50 takes where the curve comes down to it: "ED50 in training time on cpu: 41 s [30, 55]; 0.02 USD ..."."""
    mine = {str(row["metric"]): row for row in priced if row["arm"] == arm and row["value"] is not None}
    seconds, usd = mine.get("ED50_seconds"), mine.get("ED50_usd")
    if seconds is not None:
        money = "" if usd is None else f"; {_number(usd['value'])} USD {_interval(usd)}"
        device = printable(str(seconds["device"]))
        yield f"ED50 in training time on {device}: {_number(seconds['value'])} s {_interval(seconds)}{money}"


def scaling_lines(told: Mapping[str, Any]) -> list[str]:
    """The scaling of ED50 with size, the claims, and the worst attacker, a line each."""
    lines: list[str] = []
    for recipe in told.get("recipes", []):
        for unit, found in recipe["scaling"].items():
            lines.append(f"ED50 in {unit} by size: {_slope_text(found['meta'])}")
        lines += [f"claim {claim['number']}: {claim['answer']}: {claim['reason']}" for claim in recipe["claims"]]
    for entry in told.get("worst_case", []):
        lines += [_worst_text(entry, entry["doses"][-1])] if entry["doses"] else []
    return [printable(line) for line in lines]


def _slope_text(fit: Mapping[str, Any]) -> str:
    slope = fit["slope"]
    if slope["value"] is None:
        return fit["reason"] or "no slope"
    ends = "" if slope["low"] is None else f" [{slope['low']:.2f}, {slope['high']:.2f}]"
    cautions = f" ({'; '.join(fit['cautions'])})" if fit["cautions"] else ""
    null = f"; {slope['null']:g} if size does not matter"
    return f"slope {slope['value']:.2f}{ends} decades per decade over {fit['n_sizes']} sizes{null}{cautions}"


def _worst_text(entry: Mapping[str, Any], dose: Mapping[str, Any]) -> str:
    found = dose["estimate"]
    if found["value"] is None:
        return f"{entry['model']}: worst of {len(entry['candidates'])} attacks: {dose['reason']}"
    ends = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return (
        f"{entry['model']}: worst of {len(entry['candidates'])} attacks at {dose['steps']} steps, chosen and reported "
        f"on different prompts: RRR {found['value']:.3f}{ends}; on the same ones {dose['naive']['value']:.3f}"
    )


def _fits(folder: Path, judge: str) -> list[Mapping[str, Any]]:
    return [fit for fit in read_json(folder / DOSE_RESPONSE_JSON).get("fits", []) if fit.get("judge") == judge]


def _doubts(fit: Mapping[str, Any]) -> Iterator[str]:
    for rise in fit["diagnostics"]["rises"]:
        if rise["beyond_noise"]:
            yield (
                f"the curve is not monotone: it rises by {rise['by']:.2f} from {_number(rise['start'])} to "
                f"{_number(rise['end'])} steps"
            )


def _name(row: Row) -> str:
    return str(row["metric"]).split("_", 1)[0]


def _interval(row: Row) -> str:
    if row["low"] is None:
        return "no interval"
    return f"[{_number(row['low'])}, {'open' if row['high'] is None else _number(row['high'])}]"


def _number(value: object) -> str:
    return "" if value is None else f"{float(str(value)):.3g}"
