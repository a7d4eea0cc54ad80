"""What an attack takes in device time and money, and the breaking doses in both: `costs.csv`.

Clock values: they differ from run to run, so they lie in a file of their own, outside what a resumed run gives to the
byte. Only the attack's training steps count; measuring it costs no attacker anything.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tamperdose.files import write_csv
from tamperdose.records import ESTIMATE_COLUMNS
from tamperdose.run.observed import Observation, recipe_label
from tamperdose.run.response import DOSE_CELLS, SETTINGS, ArmFit, dose_cells, seed_doses
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.dose_seeds import attack_dose

COSTS = "costs.csv"
"""One row for each arm, dose and unit (`attack_seconds`, `attack_usd`), and for each breaking dose in these units."""
COST_COLUMNS = (*SETTINGS, "device", "dose_steps", "judge", "metric", *ESTIMATE_COLUMNS, *DOSE_CELLS)
"""Columns of `costs.csv`."""
SECONDS_PER_HOUR = 3600.0

_Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Clock:
    """How long the training of one arm took on its device."""

    device: str
    """`cpu`, `cuda` or `mps`: one of them, of the machine that the run is on."""
    seconds: Mapping[int, float]
    """Seconds of training up to each dose, in steps, from 0 at dose 0."""


def write_costs(
    folder: Path,
    observations: Sequence[Observation],
    fits: Sequence[ArmFit],
    clocks: Mapping[str, Clock],
    *,
    price: float | None,
    level: float,
) -> Path:
    """Write `costs.csv`: what each dose took, and the effective doses of `fits` in seconds and US dollars.

    USD = seconds / 3600 x price. An effective dose is carried over as it is into tokens, linearly between the doses
    of the arm that were timed; over seeds, each by its own times.

    Args:
        folder: The run's.
        observations: Every arm's cells, which name its settings and doses.
        fits: Of `tamperdose.run.response.fit_arms`.
        clocks: By arm; an arm without one, or with a dose that was not timed, gives no rows.
        price: US dollars for one hour of one device; None leaves the rows in USD out.
        level: Confidence level of the intervals over seeds.
    """
    units = {"seconds": 1.0} | ({} if price is None else {"usd": price / SECONDS_PER_HOUR})
    rows = [row for seen in observations for row in _spent(seen, clocks, units)]
    rows += [row for fit in fits for row in _of_arm(fit, clocks, units)]
    rows += [
        row
        for arms, metric, dose in seed_doses(fits, level=level)
        for row in _of_seeds(arms, f"{metric}", dose.level, clocks, units)
    ]
    return write_csv(folder / COSTS, COST_COLUMNS, rows)


def _spent(seen: Observation, clocks: Mapping[str, Clock], units: Mapping[str, float]) -> Iterator[_Row]:
    clock = clocks.get(str(seen.setting["arm"]))
    if clock is not None and seen.steps in clock.seconds:
        for unit, factor in units.items():
            value = factor * clock.seconds[seen.steps]
            yield _named(seen, clock) | {"dose_steps": seen.steps, "metric": f"attack_{unit}", "value": value}


def _of_arm(fit: ArmFit, clocks: Mapping[str, Clock], units: Mapping[str, float]) -> Iterator[_Row]:
    clock = clocks.get(str(fit.first.setting["arm"]))
    for metric, dose in fit.doses().items():
        for unit, factor in units.items():
            found = _in_unit(fit, dose, clock, factor)
            if found is not None and clock is not None:
                yield _named(fit.first, clock) | {"judge": fit.judge, "metric": f"{metric}_{unit}"} | dose_cells(found)


def _of_seeds(
    arms: Sequence[ArmFit], metric: str, level: float, clocks: Mapping[str, Clock], units: Mapping[str, float]
) -> Iterator[_Row]:
    first = arms[0].first
    clock = clocks.get(str(first.setting["arm"]))
    for unit, factor in units.items():
        each = [_in_unit(arm, arm.doses()[metric], clocks.get(str(arm.first.setting["arm"])), factor) for arm in arms]
        found = [dose for dose in each if dose is not None]
        if clock is not None and len(found) == len(arms):
            named = _named(first, clock) | {"arm": recipe_label(first), "seed": None, "judge": arms[0].judge}
            spent = [factor * clocks[str(arm.first.setting["arm"])].seconds[arm.observations[1].steps] for arm in arms]
            over = attack_dose(found, level=level, first=min(spent))
            yield named | {"metric": f"{metric}_{unit}"} | dose_cells(over)


def _in_unit(arm: ArmFit, dose: EffectiveDose, clock: Clock | None, factor: float) -> EffectiveDose | None:
    if clock is None or any(seen.steps not in clock.seconds for seen in arm.observations):
        return None
    return arm.converted(dose, [factor * clock.seconds[seen.steps] for seen in arm.observations])


def _named(seen: Observation, clock: Clock) -> _Row:
    return {name: seen.setting.get(name) for name in SETTINGS} | {"device": clock.device}
