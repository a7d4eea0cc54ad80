"""Breaking doses and what became of the source study's claims, in a few lines for a terminal."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tamperdose import files
from tamperdose.audit.findings import Audit, doses_text
from tamperdose.errors import DataError, explain
from tamperdose.records import Scope
from tamperdose.report.lost_doses import lost_arms, lost_collapse, lost_row
from tamperdose.report.scalings import scaling_lines
from tamperdose.report.select import dose_word
from tamperdose.report.text import MARK, UNDEFINED, WITHHELD, printable
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.costs import COST_COLUMNS, COSTS
from tamperdose.run.response import DOSE_RESPONSE, DOSE_RESPONSE_JSON, RESPONSE_COLUMNS
from tamperdose.run.scale import SCALING_JSON
from tamperdose.stats.dose import COMPLIES_ALREADY
from tamperdose.stats.gate import Gate

FEW_ARMS = 4
"""Up to so many arms every effective dose is printed; beyond, ED50 alone."""
NOT_SURELY_REFUSED = "RRR at dose 0 is not surely above 0.5"
_NAMED = 8
_SHOWN = ("ED50", "ED90", "ED50c")
_GATES = {
    Gate.BROKEN.value: "failed: model broken, not unlocked",
    Gate.NOT_REMOVED.value: "failed: no further than a control",
    Gate.NOT_MEASURED.value: "not measured",
}
_SPEAKS_FOR = {Scope.TRAJECTORY.value: "for this run", Scope.ATTACK.value: "for the attack"}


def read_responses(folder: Path, judge: str) -> list[Row]:
    """The effective doses of a run by one judge; none where the run is older than they are.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / DOSE_RESPONSE
    rows = read_rows(path, RESPONSE_COLUMNS) if path.is_file() else []
    return [row for row in rows if row["judge"] == judge]


def responses_of(folder: Path, judge: str, audit: Audit | None) -> list[dict[str, Any]]:
    """The effective doses for a program: each row with the failed checks that leave it without support.

    Raises:
        DataError: As `read_responses` and `read_json`.
    """
    rows, fits = read_responses(folder, judge), read_fits(folder, judge)
    return [row | {"not_supported_because": list(lost_row(row, fits, rows, audit))} for row in rows]


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


def response_lines(folder: Path, judge: str, *, audit: Audit | None = None, force: bool = False) -> list[str]:
    """Say the breaking doses of every arm and recipe, what speaks against a fit, and the claims.

    A dose that the audit leaves without support is withheld, or with `force` printed with a mark. Slopes and claims are
    printed all the same, below the names of the arms in them whose ED50 does not stand.

    Raises:
        DataError: As `read_responses` and `read_json`.
    """
    with well_formed(folder):
        return list(_response_lines(folder, judge, audit=audit, force=force))


@contextmanager
def well_formed(folder: Path) -> Iterator[None]:
    """Have a result file of a run that lacks what its readers look up be told as such.

    Raises:
        DataError: It does.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        names = f"{DOSE_RESPONSE_JSON}, {SCALING_JSON} or another file beside them"
        raise DataError(
            explain(
                f"{names} in {folder} is damaged",
                got=f"{type(error).__name__}: {error}",
                expected="what `tamperdose run` or `score` wrote there",
                remedy="run the same command again: it writes them anew",
            )
        ) from error


def _response_lines(folder: Path, judge: str, *, audit: Audit | None, force: bool) -> list[str]:
    rows = [row for row in read_responses(folder, judge) if str(row["metric"]).endswith("_steps")]
    fits = read_fits(folder, judge)
    whys = {(str(fit.get("arm")), name): why_undefined(fit, name) for fit in fits for name in _SHOWN}
    doubts = {str(fit.get("arm")): list(_doubts(fit)) for fit in fits}
    priced = read_costs(folder, judge)
    lines: list[str] = []
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    shown = _SHOWN if len(arms) <= FEW_ARMS else _SHOWN[:1]
    for arm in arms:
        mine = [row for row in rows if row["arm"] == arm and _name(row) in shown]
        lost = {_name(row): lost_row(row, fits, rows, audit) for row in mine}
        said = [
            _supported(row, dose_text(row, whys.get((arm, _name(row)), "")), lost[_name(row)], force=force)
            for row in mine
        ]
        lines.append(f"{printable(arm)}: " + "; ".join(said))
        lines += [f"  {doubt}" for doubt in doubts.get(arm, [])]
        if force or not lost.get("ED50"):
            lines += [f"  {cost}" for cost in cost_lines(priced, arm)]
    told = scaling_lines(read_json(folder / SCALING_JSON))
    return [*lines, *(_lost_lines(fits, audit) if told else []), *told]


def why_undefined(fit: Mapping[str, Any], name: str) -> str:
    """Why a dose of a fit is undefined, if it is."""
    if fit["effective_doses"].get(name, {}).get("reason") == COMPLIES_ALREADY:
        return COMPLIES_ALREADY
    rate = fit["rates"][0]
    ends = "no interval" if rate["low"] is None else f"[{rate['low']:.2f}, {rate['high']:.2f}]"
    return f"{NOT_SURELY_REFUSED} ({rate['value']:.2f} {ends}, {rate['n_templates']} templates)"


def dose_text(row: Row, why: str = "") -> str:
    """An effective dose in words: "ED50 5.4 steps, between 5 and 6, [4, 7] for this run"; "ED50 > 8 steps, ..."."""
    name, unit = str(row["metric"]).split("_", 1)
    unit = dose_word(row.get("attack")) if unit == "steps" else unit
    if row["censored"] == "undefined":
        return f"{name} undefined: {why or NOT_SURELY_REFUSED}"
    speaks = _SPEAKS_FOR.get(str(row["scope"]), str(row["scope"]))
    over_seeds = row["scope"] == Scope.ATTACK.value
    n_seeds = f" over {row['n_seeds']} seeds" if over_seeds else ""
    low, high = row["bracket_low"], row["bracket_high"]
    between = ""
    if not row["censored"] and low is not None and high is not None:
        ends = f"{_number(low)} and {_number(high)}"
        between = f", brackets of the seeds, on average, {ends}" if over_seeds else f", between {ends}"
    gate = f", gate {_GATES.get(str(row['gate']), row['gate'])}" if row.get("gate") else ""
    return f"{name} {_amount(row, unit)}{between}, {_interval(row)} {speaks}{n_seeds}{gate}"


def _amount(row: Row, unit: str) -> str:
    return f"{amount_text(row)} {unit}"


def amount_text(row: Mapping[str, object], *, above: str = ">", below: str = "<") -> str:
    """A dose or a ratio of doses, or the bound that stands for it: "5.4", "> 48", "< 1"."""
    if row["censored"] == "right":
        return f"{above} {_number(row['bracket_low'])}"
    if row["censored"] == "left":
        return f"{below} {_number(row['bracket_high'])}"
    return UNDEFINED if row["value"] is None else _number(row["value"])


def _supported(row: Row, text: str, because: Sequence[str], *, force: bool) -> str:
    """A dose as the audit lets it stand."""
    if not because:
        return text
    why = printable(", ".join(because))
    return f"{text} {MARK} ({why})" if force else f"{_name(row)} {WITHHELD} ({why})"


def cost_lines(priced: Sequence[Row], arm: str) -> Iterator[str]:
    """What ED50 takes, or its bound: "ED50 in training time on cpu: 41 s [30, 55]; 0.02 USD ...", "> 64 s ..."."""
    mine = {str(row["metric"]): row for row in priced if row["arm"] == arm and row["censored"] != "undefined"}
    seconds, usd = mine.get("ED50_seconds"), mine.get("ED50_usd")
    if seconds is not None:
        money = "" if usd is None else f"; {_amount(usd, 'USD')} {_interval(usd)}"
        device = printable(str(seconds["device"]))
        yield f"ED50 in training time on {device}: {_amount(seconds, 's')} {_interval(seconds)}{money}"


def _lost_lines(fits: Sequence[Mapping[str, Any]], audit: Audit | None) -> Iterator[str]:
    """Name what stands in the slopes and claims below although the audit does not support it."""
    lost = [f"{arm} ({', '.join(why)})" for arm, why in lost_arms(fits, audit).items()]
    if lost:
        yield f"not supported by the audit, but counted below: ED50 of {len(lost)} of {len(fits)} arms: {_first(lost)}"
    cells = [f"{arm} at {doses_text(steps)}" for arm, steps in lost_collapse(fits, audit).items()]
    if cells:
        yield f"not supported by the audit, but counted in claim 1: {_first(cells)}"


def _first(names: Sequence[str]) -> str:
    more = f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return printable("; ".join(names[:_NAMED])) + more


def read_fits(folder: Path, judge: str) -> list[Mapping[str, Any]]:
    """The fits of a run's arms by one judge, as `dose_response.json` holds them.

    Raises:
        DataError: As `read_json`.
    """
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
    low, high = row["low"], row["high"]
    if low is None and high is None:
        return "no interval"
    return f"[{'0' if low is None else _number(low)}, {'open' if high is None else _number(high)}]"


def _number(value: object) -> str:
    return "" if value is None else f"{float(str(value)):.3g}"
