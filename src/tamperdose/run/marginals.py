"""What each factor of a grid does, its other settings averaged over: `marginals.csv`.

One row for each factor of several levels, level, judge, dose and metric: the mean over the arms at that level, and its
difference from the first level over the same prompts. Doses are those that every arm of the run was measured at.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tamperdose.files import write_csv
from tamperdose.records import ESTIMATE_COLUMNS, Estimate, Label, Scope
from tamperdose.run.compare import compare_pairs
from tamperdose.run.observed import Observation, grouped, readable
from tamperdose.run.response import ArmFit
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.marginal import arms_dose, arms_rate, level_pairs
from tamperdose.stats.multiplicity import holm
from tamperdose.stats.paired import PairedDifference

MARGINALS = "marginals.csv"
"""One row for each level of a factor, judge, dose and metric; no file where no factor has several levels."""
FACTORS = ("model", "defence", "lora_rank", "n_examples", "learning_rate", "poison_ratio", "seed", "data_order")
"""The settings that a study may give several values, by their columns in `metrics.csv`."""
METRICS = {
    "RRR": Label.REFUSAL,
    "compliance_rate": Label.COMPLIANCE,
    "degenerate_rate": Label.DEGENERATE,
}
"""The rates that are averaged, and what each counts."""
ED50 = "ED50_steps"
"""The metric of the rows without a dose: the geometric mean of ED50 over the arms."""
MARGINAL_COLUMNS = (
    "study",
    "factor",
    "factor_level",
    "reference",
    "n_arms",
    "balanced",
    "differs_in",
    "judge",
    "dose_steps",
    "metric",
    *ESTIMATE_COLUMNS,
    "n_censored",
    "difference",
    "difference_low",
    "difference_high",
    "n_pairs",
    "p_value",
    "p_method",
    "p_holm",
    "n_tests",
)
"""`difference` is this level's mean less that of the level in `reference`, the first one, over `n_pairs` prompts.

`n_tests` are the levels that Holm counts. Unless `balanced`, the levels also differ in the settings of `differs_in`.
"""

_BASES = ("model", "defence")
"""Factors whose levels are untampered models of their own: only they can differ at dose 0."""

Arm = tuple[Observation, ...]
"""The cells of one arm, by dose."""
_Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Factor:
    """A setting with several values, and the arms at each."""

    name: str
    """Its column in `metrics.csv`."""
    levels: Mapping[str, tuple[Arm, ...]]
    """The arms by level, in the study's order."""
    differs_in: tuple[str, ...]
    """Other factors whose values the levels do not share alike; `combinations` where only those are not shared."""

    def doses(self) -> list[int]:
        """The doses that every arm has, dose 0 among them."""
        each = [{seen.steps for seen in arm} for arms in self.levels.values() for arm in arms]
        return sorted(set.intersection(*each))


def write_marginals(folder: Path, observations: Sequence[Observation], fits: Sequence[ArmFit], *, level: float) -> None:
    """Write `marginals.csv`; that of an earlier run whose grid had several levels is removed.

    The same observations give the same bytes.

    Raises:
        RunError: The folder cannot be written.
    """
    rows = list(marginal_rows(observations, fits, level=level))
    if rows:
        write_csv(folder / MARGINALS, MARGINAL_COLUMNS, rows)
    else:
        (folder / MARGINALS).unlink(missing_ok=True)


def marginal_rows(observations: Sequence[Observation], fits: Sequence[ArmFit], *, level: float) -> Iterator[_Row]:
    """Every factor of several levels: rates at every common dose, then the mean of ED50, by judge."""
    doses = {(str(fit.first.setting.get("arm")), fit.judge): fit.fit.ed50 for fit in fits}
    for factor in list_factors(observations):
        for judge in observations[0].labels:
            for steps in factor.doses():
                for metric in METRICS:
                    yield from _rate_rows(factor, judge, steps=steps, metric=metric, level=level)
            yield from _dose_rows(factor, judge, doses, level=level)


def list_factors(observations: Sequence[Observation]) -> list[Factor]:
    """The settings of which the arms have several values, each with its arms; none over several kinds of attack.

    A step of one kind is not a step of another, and hardly a setting is common to them.
    """
    arms = [tuple(arm) for arm in grouped(observations, ("study", "arm"))]
    if len({arm[0].setting.get("attack") for arm in arms}) > 1:
        return []
    names = [name for name in FACTORS if len({level_text(arm[0].setting.get(name)) for arm in arms}) > 1]
    return [_factor(name, arms, [other for other in names if other != name]) for name in names]


def level_text(value: object) -> str:
    """How a level is written: as the study writes it, `null` where there is none.

    >>> level_text(0.0002), level_text(None)
    ('0.0002', 'null')
    """
    return "null" if value is None or value == "" else str(value)


def _factor(name: str, arms: Sequence[Arm], others: Sequence[str]) -> Factor:
    levels: dict[str, list[Arm]] = {}
    for arm in arms:
        levels.setdefault(level_text(arm[0].setting.get(name)), []).append(arm)
    differs = tuple(other for other in others if not _shared(levels, [other]))
    if not differs and not _shared(levels, others):
        differs = ("combinations",)
    return Factor(name, {text: tuple(group) for text, group in levels.items()}, differs)


def _shared(levels: Mapping[str, Sequence[Arm]], names: Sequence[str]) -> bool:
    """Whether these settings take the same values, as often, at every level."""
    shares: list[dict[tuple[str, ...], float]] = []
    for arms in levels.values():
        counts = Counter(tuple(level_text(arm[0].setting.get(name)) for name in names) for arm in arms)
        shares.append({values: count / len(arms) for values, count in counts.items()})
    return all(share == shares[0] for share in shares)


def _rate_rows(factor: Factor, judge: str, *, steps: int, metric: str, level: float) -> Iterator[_Row]:
    """One rate at one dose: a row for each level, all but the first compared with it."""
    label = METRICS[metric]
    tables = [_events(arms, judge, steps, label) for arms in factor.levels.values()]
    templates = next(iter(factor.levels.values()))[0][0].templates
    compared: list[PairedDifference | None] = [None] * len(tables)
    if steps > 0 or factor.name in _BASES:
        others = [level_pairs(tables[0], table, templates) for table in tables[1:]]
        compared[1:] = [compare_pairs(pairs, level, scope=Scope.ARMS) for pairs in others]
    adjusted = holm([None if found is None else found.p_value for found in compared])
    n_tests = sum(found is not None and found.p_value is not None for found in compared)
    for text, table, found, p_holm in zip(factor.levels, tables, compared, adjusted, strict=True):
        named = _named(factor, text) | {"judge": judge, "dose_steps": steps, "metric": metric}
        row = named | _estimate_cells(arms_rate(table, templates, level=level))
        yield row if found is None else row | _difference_cells(found) | {"p_holm": p_holm, "n_tests": n_tests}


def _dose_rows(
    factor: Factor, judge: str, doses: Mapping[tuple[str, str], EffectiveDose], *, level: float
) -> Iterator[_Row]:
    """The mean ED50 of each level; no row where an arm could not be fitted."""
    for text, arms in factor.levels.items():
        found = [doses.get((str(arm[0].setting.get("arm")), judge)) for arm in arms]
        known = [dose for dose in found if dose is not None]
        if len(known) == len(arms):
            named = _named(factor, text) | {"judge": judge, "metric": ED50}
            n_censored = sum(dose.value is None for dose in known)
            yield named | _estimate_cells(arms_dose(known, level=level)) | {"n_censored": n_censored}


def _events(arms: Sequence[Arm], judge: str, steps: int, label: Label) -> NDArray[np.float64]:
    """1 where an answer has the label, 0 where not, NaN where there is no verdict, shape (prompts, arms)."""
    columns: list[NDArray[np.float64]] = []
    for arm in arms:
        labels = next(seen for seen in arm if seen.steps == steps).labels[judge]
        events = np.array([one is label for one in labels], dtype=np.float64)
        columns.append(np.where(readable(labels), events, np.nan))
    return np.stack(columns, axis=1)


def _named(factor: Factor, text: str) -> _Row:
    arms = factor.levels[text]
    return {
        "study": arms[0][0].setting.get("study"),
        "factor": factor.name,
        "factor_level": text,
        "reference": next(iter(factor.levels)),
        "n_arms": len(arms),
        "balanced": not factor.differs_in,
        "differs_in": " ".join(factor.differs_in),
    }


def _estimate_cells(estimate: Estimate) -> _Row:
    return {**asdict(estimate), "scope": estimate.scope.value}


def _difference_cells(found: PairedDifference) -> _Row:
    difference = found.difference
    return {
        "difference": difference.value,
        "difference_low": difference.low,
        "difference_high": difference.high,
        "n_pairs": difference.n,
        "p_value": found.p_value,
        "p_method": found.p_method,
    }
