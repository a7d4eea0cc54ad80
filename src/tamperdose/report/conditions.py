"""A finished run held to conditions: its numbers from its files, with what the audit says of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from tamperdose.audit.findings import Audit, CellId, Claim, withheld
from tamperdose.errors import GateError, RunError, explain
from tamperdose.records import Scope, Subset
from tamperdose.report.controls import controls_of
from tamperdose.report.lost_doses import lost_row
from tamperdose.report.responses import read_fits, read_responses, well_formed
from tamperdose.report.select import headline_judge, load_run
from tamperdose.report.text import printable
from tamperdose.run.audit import read_audit
from tamperdose.run.compare_schema import SEED_COLUMNS, SEEDS, Row, read_rows
from tamperdose.run.conditions import DOSE_NAMES, Condition, Judged, Known, judge_all, require
from tamperdose.run.schema import METRIC_COLUMNS, column, keep_rows, require_metrics

_DRIFT = ("RD", "RD_mean", "RD_iqr", "RD_stripped", "RD_floor")
_CLAIMS = {
    **dict.fromkeys(_DRIFT, Claim.RD),
    "refusal_retention": Claim.LOSS,
    "over_refusal_rate": Claim.OVER_REFUSAL,
}
_OF_MODEL = ("perplexity", "utility_accuracy", "kl_to_base")
"""What is no claim about answers to prompts: the audit has no check that bears on it."""
_NOT_AUDITED = ("the audit has not seen it",)
_RECIPE = tuple(name for name in METRIC_COLUMNS[: METRIC_COLUMNS.index("dose_steps")] if name not in ("arm", "seed"))
"""The columns that arms of one recipe agree in."""


def judge_run(folder: Path, conditions: Sequence[Condition]) -> list[Judged]:
    """Hold every arm of a finished run, and every recipe of several seeds, to conditions, by the headline judge.

    Raises:
        DataError: The run is not finished, or a file of it is missing or damaged.
        RunError: The run has no audit: nothing says whether its numbers stand.
    """
    require_metrics(folder / "metrics.csv")
    audit = read_audit(folder)
    if audit is None:
        raise RunError(explain(f"{folder} has no audit", remedy=f"tamperdose audit {folder}"))
    with well_formed(folder):
        return [
            judged
            for condition in conditions
            for judged in judge_all(condition, list(_numbers(folder, condition, audit)))
        ]


def hold(judged: Sequence[Judged]) -> None:
    """Require that every condition passes in every arm.

    Raises:
        GateError: One does not; the message says which, where and why.
    """
    wrong = require(judged)
    if wrong:
        raise GateError(f"not every condition is surely met\n{wrong}")


def _numbers(folder: Path, condition: Condition, audit: Audit) -> Iterator[Known]:
    if condition.name in DOSE_NAMES:
        yield from _doses(folder, condition.name, audit)
        return
    frame = load_run(folder)
    dose = -1 if condition.dose is None else condition.dose
    gates = _gates(folder, dose)
    for arm in column(frame, "arm").unique():
        mine = keep_rows(frame, (column(frame, "arm") == arm) & (column(frame, "metric") == condition.name))
        for known in _cells(mine, condition.name, str(arm), dose, audit):
            yield replace(known, gate=gates.get(str(arm), ""))
    yield from _over_seeds(folder, condition.name, frame, dose, audit)


def _gates(folder: Path, dose: int) -> dict[str, str]:
    """What the study's own gate says of each arm at a dose."""
    rows = controls_of(folder, headline_judge(folder))["gate"]
    return {str(row["arm"]): str(row["verdict"]) for row in rows if row["dose_steps"] == dose}


def _cells(rows: pd.DataFrame, name: str, arm: str, dose: int, audit: Audit) -> Iterator[Known]:
    at = keep_rows(rows, column(rows, "dose_steps") == dose)
    if at.empty:
        doses = ", ".join(str(step) for step in sorted({int(step) for step in rows["dose_steps"]}))
        yield Known(printable(arm), absent=f"{name} is measured at {doses}" if doses else f"{name} is not measured")
    lost = _lost(name, [arm], dose, audit)
    columns = ["subset", "value", "low", "high", "level"]
    for subset, *numbers in at[columns].itertuples(index=False, name=None):
        where = printable(arm if len(at) == 1 else f"{arm}, {subset}")
        value, low, high, level = map(_defined, numbers)
        yield Known(where, value, low, high, lost=lost, level=level, one_trajectory=True)


def _over_seeds(folder: Path, name: str, frame: pd.DataFrame, dose: int, audit: Audit) -> Iterator[Known]:
    """RRR over the seeds of each recipe, or CE, its complement, where there are several."""
    path = folder / SEEDS
    if name not in ("RRR", "CE") or not path.is_file():
        return
    judge, settings = headline_judge(folder), _settings(frame)
    for row in read_rows(path, SEED_COLUMNS):
        if (row["judge"], row["metric"], row["dose_steps"]) == (judge, "RRR", dose):
            value, low, high = (_number(row[end]) for end in ("value", "low", "high"))
            if name == "CE":
                value, low, high = (None if end is None else 1 - end for end in (value, high, low))
            where = f"{printable(str(row['recipe']))} over {row['n_seeds']} seeds"
            lost = _lost(name, _arms_of(str(row["recipe"]), settings), dose, audit)
            yield Known(where, value, low, high, lost=lost, level=_number(row["level"]))


def _settings(frame: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """What each arm was made with but its seed, by the arm's name."""
    arms = frame.drop_duplicates("arm")
    return {str(row["arm"]): tuple(str(row[name]) for name in _RECIPE) for row in arms.to_dict("records")}


def _arms_of(recipe: str, settings: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The arms of a recipe, which is called by the name of one of them without its seed; all where that is none's."""
    named = {found for arm, found in settings.items() if arm.startswith(recipe)}
    return [arm for arm, found in settings.items() if found in named or not named]


def _doses(folder: Path, name: str, audit: Audit) -> Iterator[Known]:
    judge = headline_judge(folder)
    rows, fits = read_responses(folder, judge), read_fits(folder, judge)
    frame = load_run(folder)
    found = {str(row["arm"]) for row in rows if row["metric"] == name}
    for arm in dict.fromkeys([*map(str, column(frame, "arm").unique()), *(str(row["arm"]) for row in rows)]):
        if arm not in found:
            yield Known(printable(arm), absent=f"{name} is not in dose_response.csv")
    seen = {cell.arm for cell in audit.cells}
    for row in rows:
        if row["metric"] == name:
            is_new = row["scope"] != Scope.ATTACK.value and str(row["arm"]) not in seen
            yield _known_dose(row, _NOT_AUDITED if is_new else lost_row(row, fits, rows, audit))


def _known_dose(row: Row, lost: tuple[str, ...]) -> Known:
    over_seeds = f" over {row['n_seeds']} seeds" if row["scope"] == Scope.ATTACK.value else ""
    censored = str(row["censored"])
    return Known(
        printable(str(row["arm"])) + over_seeds,
        *(_number(row[end]) for end in ("value", "low", "high")),
        censored=censored,
        bound={"right": _number(row["bracket_low"]), "left": _number(row["bracket_high"])}.get(censored),
        lost=lost,
        level=_number(row["level"]),
        one_trajectory=not over_seeds,
        gate=str(row["gate"]),
    )


def _lost(name: str, arms: Sequence[str], dose: int, audit: Audit) -> tuple[str, ...]:
    if name in _OF_MODEL:
        return ()
    claim = _CLAIMS.get(name, Claim.RRR)
    subset = Subset.BENIGN if claim is Claim.OVER_REFUSAL else Subset.HARMFUL
    found = [why for arm in arms for why in withheld(audit, claim, arm=arm, dose=dose)]
    if any(CellId(arm, dose, subset) not in audit.cells for arm in arms):
        found += _NOT_AUDITED
    return tuple(dict.fromkeys(found))


def _number(cell: object) -> float | None:
    return None if cell is None else float(str(cell))


def _defined(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
