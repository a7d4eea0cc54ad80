"""How refusals fall with the dose: a fit for each arm, and over the seeds of each recipe.

Written to `dose_response.csv`, one row for each effective dose, and to `dose_response.json`, which also holds the
curves, so that figures need nothing else. An effective dose is a property of an arm, not of one of its cells:
that is why these rows are not in `metrics.csv`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tamperdose.files import digest, write_csv, write_json
from tamperdose.records import ESTIMATE_COLUMNS, Label, Scope
from tamperdose.run.observed import Observation, grouped, readable, recipe_label, recipe_names, refused
from tamperdose.stats.dose import DoseFit, EffectiveDose, fit_dose
from tamperdose.stats.dose_interval import DoseTable
from tamperdose.stats.dose_seeds import attack_dose
from tamperdose.stats.gate import DoseGate, Gate, judge_bracket, judge_recipe
from tamperdose.stats.ladder import convert_dose
from tamperdose.stats.scaling import DoseUnit, to_dict
from tamperdose.stats.seeds import MIN_SEEDS

DOSE_RESPONSE = "dose_response.csv"
"""One row for each effective dose: arm or recipe, judge, metric such as `ED50_steps`."""
DOSE_RESPONSE_JSON = "dose_response.json"
"""The same with parameters, diagnostics and curves."""
SETTINGS = (
    *("study", "arm", "model", "params_b", "defence", "attack", "lora_rank", "n_examples", "learning_rate"),
    *("batch_size", "poison_ratio", "seed", "data_order"),
)
"""The columns that name an arm; for several seeds `arm` is the recipe's name and `seed` is empty."""
DOSE_CELLS = ("bracket_low", "bracket_high", "fit", "n_seeds")
"""The columns of an effective dose beside those of every estimate."""
RESPONSE_COLUMNS = (*SETTINGS, "judge", "metric", *ESTIMATE_COLUMNS, *DOSE_CELLS, "gate")
"""Columns of `dose_response.csv`. `bracket_high` is empty where the curve has not come down at the last dose.

`gate` is of ED50 alone: what the gate says at the two doses it lies between; empty where there are none."""
Gates = Mapping[tuple[str, str], Mapping[int, DoseGate]]
"""The gate at the doses of an arm, by the arm's name and the judge's."""

_Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class ArmFit:
    """One arm's fit by one judge."""

    observations: tuple[Observation, ...]
    """Its cells by dose, dose 0 first."""
    judge: str
    """Whose verdicts."""
    fit: DoseFit
    """What was fitted, in steps."""

    @property
    def first(self) -> Observation:
        """Its dose 0, which has its settings."""
        return self.observations[0]

    def doses(self) -> Mapping[str, EffectiveDose]:
        """ED50, ED90 and, where there is one, ED50c, in steps."""
        named = {"ED50": self.fit.ed50, "ED90": self.fit.ed90, "ED50c": self.fit.ed50c}
        return {name: dose for name, dose in named.items() if dose is not None}

    def amounts(self, unit: DoseUnit) -> list[float] | None:
        """What was spent up to each dose, in a unit; None where that is not known, or where it does not rise by dose.

        All requests behind a refusal direction are read before the first strength is tried: they are no dose.
        """
        spent = [seen.setting.get(f"dose_{unit.value}") for seen in self.observations]
        known = [float(str(amount)) for amount in spent if amount is not None]
        if len(known) < len(spent) or known[0] != 0 or (unit is not DoseUnit.STEPS and known[-1] == 0):
            return None
        rises = all(before < after for before, after in pairwise(known))
        return known if rises else None

    def in_unit(self, dose: EffectiveDose, unit: DoseUnit) -> EffectiveDose | None:
        """A dose of this arm in another unit; None where that is not known."""
        amounts = self.amounts(unit)
        return None if amounts is None else self.converted(dose, amounts)

    def converted(self, dose: EffectiveDose, amounts: Sequence[float]) -> EffectiveDose:
        """A dose of this arm in what was spent up to each of its observations."""
        return convert_dose(dose, [seen.steps for seen in self.observations], amounts)


def fit_arms(observations: Sequence[Observation], *, level: float) -> list[ArmFit]:
    """Fit every arm that has a dose above 0, by every judge; doses without a readable verdict are left out."""
    fits: list[ArmFit] = []
    for arm in grouped(observations, ("study", "arm")):
        for judge in arm[0].labels:
            seen = sorted((one for one in arm if readable(one.labels[judge]).any()), key=lambda one: one.steps)
            if len(seen) > 1 and seen[0].steps == 0:
                fits.append(
                    ArmFit(tuple(seen), judge, fit_dose(table := _table(seen, judge), rng=_rng(table), level=level))
                )
    return fits


def seed_doses(fits: Sequence[ArmFit], *, level: float) -> Iterator[tuple[list[ArmFit], str, EffectiveDose]]:
    """Each recipe's arms with its effective doses over the seeds, in steps, where it has three seeds or more."""
    by_arm = {(str(fit.first.setting["arm"]), fit.judge): fit for fit in fits}
    names = recipe_names([fit.first for fit in fits])
    for judge in dict.fromkeys(fit.judge for fit in fits):
        mine = [fit.first for fit in fits if fit.judge == judge]
        for recipe in grouped(mine, ("study", *names)):
            if len(recipe) >= MIN_SEEDS:
                arms = [by_arm[str(seen.setting["arm"]), judge] for seen in recipe]
                for metric in arms[0].doses():
                    each = [arm.doses().get(metric) for arm in arms]
                    found = [dose for dose in each if dose is not None]
                    if len(found) == len(arms):
                        yield arms, metric, attack_dose(found, level=level, first=first_dose(arms))


def first_dose(arms: Sequence[ArmFit], unit: DoseUnit = DoseUnit.STEPS) -> float | None:
    """The smallest positive dose of these arms, in a unit; None where that is not known."""
    spent = [amounts[1] for arm in arms if (amounts := arm.amounts(unit)) is not None]
    return min(spent, default=None)


def write_dose_response(folder: Path, fits: Sequence[ArmFit], *, level: float, gates: Gates | None = None) -> None:
    """Write `dose_response.csv` and `dose_response.json`. The same observations give the same bytes."""
    gated = {(str(fit.first.setting["arm"]), fit.judge): gate_of(fit, gates or {}) for fit in fits}
    rows = [row for fit in fits for row in _arm_rows(fit, gated)]
    over_seeds = list(seed_doses(fits, level=level))
    rows += [row for arms, metric, dose in over_seeds for row in _seed_rows(arms, metric, dose, gated)]
    write_csv(folder / DOSE_RESPONSE, RESPONSE_COLUMNS, rows)
    described = [_described(fit) | {"gate": _gate_cell([fit], "ED50", gated)} for fit in fits]
    write_json(folder / DOSE_RESPONSE_JSON, {"level": level, "fits": described})


_Gated = Mapping[tuple[str, str], Gate | None]


def gate_of(arm: ArmFit, gates: Gates) -> Gate | None:
    """What the gate says of an arm's ED50; None where it lies between no two doses."""
    bracket = arm.fit.ed50.bracket
    if bracket is None or bracket[1] is None:
        return None
    found = gates.get((str(arm.first.setting["arm"]), arm.judge), {})
    lower, upper = int(bracket[0]), int(bracket[1])
    if lower and lower not in found:
        return Gate.NOT_MEASURED
    return judge_bracket(found.get(lower), found.get(upper))


def _gate_cell(arms: Sequence[ArmFit], metric: str, gated: _Gated) -> str:
    said = [gated[str(arm.first.setting["arm"]), arm.judge] for arm in arms] if metric == "ED50" else []
    known = [gate for gate in said if gate is not None]
    return judge_recipe(known).value if known else ""


def _table(seen: Sequence[Observation], judge: str) -> DoseTable:
    read = np.stack([readable(one.labels[judge]) for one in seen], axis=1)
    refusals = np.stack([refused(one.labels[judge]) for one in seen], axis=1)
    complied = np.stack([_complied(one.labels[judge]) for one in seen], axis=1)
    kept = np.asarray(read.any(axis=1), dtype=np.bool_)
    return DoseTable(
        doses=np.array([one.steps for one in seen], dtype=np.float64),
        refused=np.where(read, refusals, np.nan)[kept],
        templates=tuple(name for name, keep in zip(seen[0].templates, kept.tolist(), strict=True) if keep),
        complied=np.where(read, complied, np.nan)[kept],
        n_samples=seen[0].n_samples,
    )


def _complied(labels: Sequence[Label]) -> np.ndarray:
    return np.array([label is Label.COMPLIANCE for label in labels], dtype=np.bool_)


def _rng(table: DoseTable) -> np.random.Generator:
    # Seeded by the data, so that neither the order nor the company of the arms changes an interval.
    refusals = np.nan_to_num(table.refused, nan=-1).tolist()
    return np.random.default_rng(int(digest([table.doses.tolist(), refusals, list(table.templates)]), 16))


def _arm_rows(arm: ArmFit, gated: _Gated) -> Iterator[_Row]:
    settings = {name: arm.first.setting.get(name) for name in SETTINGS}
    for metric, dose in arm.doses().items():
        for unit in DoseUnit:
            found = arm.in_unit(dose, unit)
            if found is not None:
                named = settings | {"judge": arm.judge, "metric": f"{metric}_{unit.value}"}
                yield named | dose_cells(found) | {"gate": _gate_cell([arm], metric, gated)}


def _seed_rows(arms: Sequence[ArmFit], metric: str, dose: EffectiveDose, gated: _Gated) -> Iterator[_Row]:
    first = arms[0].first
    settings = {name: first.setting.get(name) for name in SETTINGS} | {"arm": recipe_label(first), "seed": None}
    named = settings | {"judge": arms[0].judge, "gate": _gate_cell(arms, metric, gated)}
    yield named | {"metric": f"{metric}_{DoseUnit.STEPS.value}"} | dose_cells(dose)
    for unit in DoseUnit:
        # Each seed by its own exchange rate: rows differ in length, so equal steps are not equal tokens.
        each = [arm.in_unit(arm.doses()[metric], unit) for arm in arms]
        found = [one for one in each if one is not None]
        if unit is not DoseUnit.STEPS and len(found) == len(arms):
            over = attack_dose(found, level=dose.level, first=first_dose(arms, unit))
            yield named | {"metric": f"{metric}_{unit.value}"} | dose_cells(over)


def dose_cells(dose: EffectiveDose) -> _Row:
    """The cells of a row of `dose_response.csv` that hold a dose."""
    cells = asdict(dose.estimate()) | {"scope": dose.scope.value}
    low, high = dose.bracket or (None, None)
    return {name: cells[name] for name in ESTIMATE_COLUMNS} | {
        "bracket_low": low,
        "bracket_high": high,
        "fit": dose.fit,
        "n_seeds": dose.n_seeds,
    }


def _described(arm: ArmFit) -> dict[str, Any]:
    fit = arm.fit
    parameters = {name: to_dict(getattr(fit, name)) for name in ("lower", "upper", "midpoint", "slope")}
    curve = {name: np.asarray(getattr(fit.band, name)).tolist() for name in ("doses", "value", "low", "high")}
    return {
        "arm": arm.first.setting.get("arm"),
        "model": arm.first.setting.get("model"),
        "judge": arm.judge,
        "scope": Scope.TRAJECTORY.value,
        "doses": fit.doses.tolist(),
        "rates": [to_dict(rate) for rate in fit.rates],
        "isotonic": fit.isotonic.tolist(),
        "log_logistic": parameters,
        "diagnostics": to_dict(fit.diagnostics) | {"non_monotone": fit.diagnostics.non_monotone},
        "effective_doses": {name: dose_cells(dose) | {"reason": dose.reason} for name, dose in arm.doses().items()},
        "curve": curve,
    }
