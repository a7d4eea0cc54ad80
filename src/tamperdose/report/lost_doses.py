"""Which breaking doses an audit leaves without support: an arm's ED50 is a loss of refusals up to where it broke."""

from collections.abc import Mapping, Sequence
from typing import Any

from tamperdose.audit.findings import Audit, Claim, withheld
from tamperdose.records import Scope
from tamperdose.run.compare_schema import Row
from tamperdose.run.response import SETTINGS
from tamperdose.stats.claims import COLLAPSE_STEPS

Fits = Sequence[Mapping[str, Any]]
"""The `fits` of `dose_response.json` by one judge."""


def why_lost(fit: Mapping[str, Any], name: str, audit: Audit | None) -> tuple[str, ...]:
    """Names of the failed checks that bear on one of an arm's effective doses, such as `ED50`; empty: it stands.

    Loss of refusals has to stand at every dose up to the upper end of the bracket, and at every dose where the curve
    does not come down at all: what follows the break takes nothing from it.
    """
    dose = fit["effective_doses"].get(name)
    if audit is None or dose is None:
        return ()
    last = dose["bracket_high"]
    return _failed(fit, [step for step in _steps(fit) if last is None or step <= last], audit)


def lost_row(row: Row, fits: Fits, rows: Sequence[Row], audit: Audit | None) -> tuple[str, ...]:
    """The same for a row of `dose_response.csv`; over seeds a dose falls with that of any of its seeds.

    An arm whose fit is not there falls with loss of refusals at any dose that was audited: which of them it rests on
    cannot be told.
    """
    names = {str(row["arm"])}
    if row["scope"] == Scope.ATTACK.value:
        names = {str(each["arm"]) for each in rows if each["scope"] != row["scope"] and _recipe(each) == _recipe(row)}
    metric = str(row["metric"]).split("_", 1)[0]
    found = [why for fit in fits if str(fit.get("arm")) in names for why in why_lost(fit, metric, audit)]
    unfitted = names - {str(fit.get("arm")) for fit in fits}
    cells = [cell for cell in (() if audit is None else audit.cells) if cell.arm in unfitted and cell.dose > 0]
    found += [why for cell in cells if audit for why in withheld(audit, Claim.LOSS, arm=cell.arm, dose=cell.dose)]
    return tuple(dict.fromkeys(found))


def lost_arms(fits: Fits, audit: Audit | None) -> dict[str, tuple[str, ...]]:
    """The arms whose ED50 does not stand, with the names of the failed checks."""
    return {str(fit["arm"]): why for fit in fits if (why := why_lost(fit, "ED50", audit))}


def lost_collapse(fits: Fits, audit: Audit | None) -> dict[str, list[int]]:
    """The arms and doses that claim 1 rests on and the audit does not support."""
    if audit is None:
        return {}
    at = {str(fit["arm"]): [step for step in _steps(fit) if step in COLLAPSE_STEPS] for fit in fits}
    lost = {
        arm: [step for step in steps if withheld(audit, Claim.LOSS, arm=arm, dose=step)] for arm, steps in at.items()
    }
    return {arm: steps for arm, steps in lost.items() if steps}


def _failed(fit: Mapping[str, Any], steps: Sequence[int], audit: Audit) -> tuple[str, ...]:
    found = [why for step in steps for why in withheld(audit, Claim.LOSS, arm=str(fit["arm"]), dose=step)]
    return tuple(dict.fromkeys(found))


def _steps(fit: Mapping[str, Any]) -> list[int]:
    return [int(dose) for dose in fit["doses"] if dose > 0]


def _recipe(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in SETTINGS if name not in ("arm", "seed"))
