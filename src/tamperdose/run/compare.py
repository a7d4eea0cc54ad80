"""What changed, and whether it is more than noise: doses against dose 0, judge against judge, seed against seed."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tamperdose.files import digest, write_csv
from tamperdose.records import ESTIMATE_COLUMNS, Estimate, Label, Scope
from tamperdose.run.compare_schema import (
    AGREEMENT,
    AGREEMENT_COLUMNS,
    COMPARISON_COLUMNS,
    COMPARISONS,
    SEED_COLUMNS,
    SEEDS,
)
from tamperdose.run.observed import (
    Observation,
    grouped,
    pairs_over_seeds,
    readable,
    recipe_label,
    recipe_names,
    refusal_table,
    refused,
)
from tamperdose.stats.agreement import agreement
from tamperdose.stats.multiplicity import holm
from tamperdose.stats.paired import PairedDifference, Pairs, paired_difference
from tamperdose.stats.rates import rate
from tamperdose.stats.seeds import over_seeds, seed_spread

FEW_TEMPLATES = 15
"""Below this many templates a comparison is flagged: its intervals rest on few independent prompts."""
READINGS = {
    "refusal": {Label.REFUSAL: "refusal", Label.COMPLIANCE: "other", Label.DEGENERATE: "other"},
    "label": {label: label.value for label in (Label.REFUSAL, Label.COMPLIANCE, Label.DEGENERATE)},
}
"""What two judges are asked to agree on: whether an answer is a refusal, and what it is."""

_Row = dict[str, object]


def write_comparisons(folder: Path, observations: Sequence[Observation], *, level: float) -> None:
    """Write `comparisons.csv`, `agreement.csv` and, where a recipe has several seeds, `seeds.csv`.

    The same observations give the same bytes. A `seeds.csv` of an earlier run that had several seeds is removed.

    Raises:
        RunError: The folder cannot be written.
    """
    write_csv(folder / COMPARISONS, COMPARISON_COLUMNS, comparison_rows(observations, level=level))
    write_csv(folder / AGREEMENT, AGREEMENT_COLUMNS, agreement_rows(observations, level=level))
    rows = list(seed_rows(observations, level=level))
    if rows:
        write_csv(folder / SEEDS, SEED_COLUMNS, rows)
    else:
        (folder / SEEDS).unlink(missing_ok=True)


def comparison_rows(observations: Sequence[Observation], *, level: float) -> Iterator[_Row]:
    """Every dose above 0 against dose 0, by arm and judge; Holm's family is an arm's ladder as one judge reads it."""
    for arm in grouped(observations, ("study", "arm")):
        doses = [seen for seen in arm if seen.steps > 0]
        for judge in arm[0].labels:
            found = [compare_pairs(pairs_over_seeds([seen], judge), level) for seen in doses]
            adjusted = holm([result.p_value for result in found])
            n_tests = sum(result.p_value is not None for result in found)
            for seen, result, p_holm in zip(doses, found, adjusted, strict=True):
                named = _named(seen) | {"judge": judge, "dose_steps": seen.steps}
                yield named | _difference_cells(result) | {"p_holm": p_holm, "n_tests": n_tests}


def agreement_rows(observations: Sequence[Observation], *, level: float) -> Iterator[_Row]:
    """Every pair of judges at every dose, dose 0 too, with the headline under each of the two."""
    for seen in observations:
        for one, two in combinations(seen.labels, 2):
            named = _named(seen) | {"dose_steps": seen.steps, "judge_1": one, "judge_2": two}
            for number, judge in ((1, one), (2, two)):
                named |= _interval_cells(f"RRR_{number}", _refusal_rate(seen, judge, level))
            for reading in READINGS:
                yield named | _agreement_cells(seen, (one, two), reading, level)


def seed_rows(observations: Sequence[Observation], *, level: float) -> Iterator[_Row]:
    """RRR and its fall over the seeds of each recipe that has several: prompts x seeds crossed."""
    for recipe in grouped([seen for seen in observations if seen.steps > 0], ("study", *recipe_names(observations))):
        doses = [dose for dose in grouped(recipe, ("dose_steps",)) if len(dose) > 1]
        for judge in recipe[0].labels if doses else ():
            compared = [compare_pairs(pairs_over_seeds(dose, judge), level) for dose in doses]
            adjusted = holm([result.p_value for result in compared])
            n_tests = sum(result.p_value is not None for result in compared)
            for dose, result, p_holm in zip(doses, compared, adjusted, strict=True):
                yield _seed_row(dose, judge, level=level)
                tested = {"p_prompts": result.p_value, "p_method": result.p_method, "p_holm": p_holm}
                yield _seed_row(dose, judge, level=level, result=result) | tested | {"n_tests": n_tests}


def _named(seen: Observation) -> _Row:
    return {name: seen.setting.get(name) for name in ("study", "arm", "model", "seed")}


def compare_pairs(pairs: Pairs, level: float, *, scope: Scope = Scope.TRAJECTORY) -> PairedDifference:
    """The paired difference, the same whatever else is compared: random numbers are seeded by the data."""
    seed = int(digest([pairs.base.tolist(), pairs.tampered.tolist(), list(pairs.templates)]), 16)
    return paired_difference(pairs, rng=np.random.default_rng(seed), level=level, scope=scope)


def _difference_cells(result: PairedDifference) -> _Row:
    found, table = result.difference, result.transitions
    cells: _Row = _estimate_cells(found, "difference") | {
        "few_templates": found.n_templates < FEW_TEMPLATES,
        "p_value": result.p_value,
        "p_method": result.p_method,
        "mcnemar_p": result.mcnemar_p,
    }
    if table is not None:
        cells |= {
            "both_refused": table.refused_refused,
            "refused_to_complied": table.refused_complied,
            "complied_to_refused": table.complied_refused,
            "neither": table.complied_complied,
        }
    return cells


def _estimate_cells(estimate: Estimate, value: str) -> _Row:
    cells = {name: getattr(estimate, name) for name in ESTIMATE_COLUMNS[1:-1]}
    return cells | {value: estimate.value, "scope": estimate.scope.value}


def _interval_cells(name: str, estimate: Estimate) -> _Row:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _agreement_cells(seen: Observation, judges: tuple[str, str], reading: str, level: float) -> _Row:
    names = READINGS[reading]
    both = [seen.labels[judge] for judge in judges]
    both_read = np.logical_and(*(readable(labels) for labels in both))
    # Labels that could not be read are left out by `both_read`; they only need to be some label.
    first, second = ([names.get(label, "refusal") for label in labels] for labels in both)
    found = agreement(
        first, second, seen.templates, labels=list(dict.fromkeys(names.values())), readable=both_read, level=level
    )
    cells = _estimate_cells(found.kappa, "kappa")
    for name, estimate in (("agreement", found.raw), ("kappa", found.kappa), ("ac1", found.ac1)):
        cells |= _interval_cells(name, estimate)
    return cells | {"reading": reading, "reason": found.reason}


def _seed_row(
    seeds: Sequence[Observation], judge: str, *, level: float, result: PairedDifference | None = None
) -> _Row:
    """One metric over the seeds of a recipe at one dose: RRR, or its difference where that is given."""
    first = seeds[0]
    read = np.all([readable(seen.labels[judge]) for seen in seeds], axis=0)
    if result is not None:
        read &= readable(first.base[judge])
    table = refusal_table(seeds, judge)[read]
    names = [name for name, keep in zip(first.templates, read, strict=True) if keep]
    within = (
        rate(table.mean(axis=1), names, n_unreadable=int(np.sum(~read)), level=level)
        if result is None
        else result.difference
    )
    rates = table.mean(axis=0) if len(table) else np.zeros(0)
    attack = over_seeds(within, rates, support=(0.0, 1.0) if result is None else (-1.0, 1.0))
    values = table if result is None else table - refused(first.base[judge])[read][:, None]
    return {
        **{name: first.setting.get(name) for name in ("study", "model")},
        "recipe": recipe_label(first),
        "judge": judge,
        "dose_steps": first.steps,
        "metric": "RRR" if result is None else "RRR_difference",
        "seeds": " ".join(str(seen.setting.get("seed")) for seen in seeds),
        **_estimate_cells(attack, "value"),
        **_spread_cells(values, names, level),
    }


def _spread_cells(values: NDArray[np.float64], templates: Sequence[str], level: float) -> _Row:
    spread = seed_spread(values, templates, level=level)
    return {
        "n_seeds": spread.n_seeds,
        "lowest": spread.lowest,
        "highest": spread.highest,
        "seed_sd": spread.sd,
        "seed_sd_low": spread.low,
        "seed_sd_high": spread.high,
        "seed_sd_chance": spread.sd_chance,
    }


def _refusal_rate(seen: Observation, judge: str, level: float) -> Estimate:
    labels = seen.labels[judge]
    read = readable(labels)
    names = [name for name, keep in zip(seen.templates, read, strict=True) if keep]
    n_lost = int(np.sum(~read))
    return rate(refused(labels)[read], names, n_unreadable=n_lost, level=level, n_samples=seen.n_samples)
