"""Screening runs never carry a headline, and their rates only where stopping was seen to change next to nothing."""

from dataclasses import replace

import pytest
from scipy.stats import binomtest

from planted import clean
from tamperdose.audit.checks import run_checks
from tamperdose.audit.evidence import Stopped
from tamperdose.audit.findings import Claim, Outcome, withheld


def lost(stopped: Stopped | None, claim: Claim) -> tuple[str, ...]:
    audit = run_checks(replace(clean(), stopped=stopped))
    cell = audit.cells[1]
    return withheld(audit, claim, arm=cell.arm, dose=cell.dose)


def test_a_loss_is_withheld_however_well_the_rule_did() -> None:
    assert lost(Stopped(9_000, 1_000, 0), Claim.LOSS) == ("screening",)
    assert lost(Stopped(9_000, 1_000, 0), Claim.RRR) == ()


@pytest.mark.parametrize(
    ("n_full", "n_changed", "stands"), [(368, 0, True), (367, 0, False), (900, 3, True), (600, 3, False), (0, 0, False)]
)
def test_rates_stand_where_the_bound_is_at_most_one_per_cent(n_full: int, n_changed: int, stands: bool) -> None:
    assert lost(Stopped(3_000, n_full, n_changed), Claim.RRR) == (() if stands else ("stopping_rule",))


def test_degeneration_is_not_said_of_stopped_answers() -> None:
    found = {check.name: check for check in run_checks(replace(clean(), stopped=Stopped(5, 400, 0))).checks}
    assert found["degeneration"].outcome is Outcome.NOT_ASSESSABLE
    assert "368" not in found["stopping_rule"].evidence


def test_how_many_would_do_is_said() -> None:
    found = {check.name: check for check in run_checks(replace(clean(), stopped=Stopped(5, 40, 0))).checks}
    assert "368 without a change would do" in found["stopping_rule"].evidence


@pytest.mark.parametrize(("n_full", "n_changed"), [(400, 0), (400, 3), (7, 7)])
def test_the_bound_is_clopper_and_pearsons(n_full: int, n_changed: int) -> None:
    audit = run_checks(replace(clean(), stopped=Stopped(5, n_full, n_changed)))
    [found] = [check.value for check in audit.checks if check.name == "stopping_rule"]
    assert found == pytest.approx(binomtest(n_changed, n_full).proportion_ci(method="exact").high)
