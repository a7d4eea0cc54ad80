"""Screening runs never carry a headline, and their rates only where stopping was seen to change next to nothing."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from planted import clean, stopped_of
from tamperdose.audit.checks import run_checks
from tamperdose.audit.evidence import Stopped
from tamperdose.audit.findings import Claim, Outcome, withheld
from tamperdose.audit.screening import stopping_rule


def lost(stopped: Stopped | None, claim: Claim) -> tuple[str, ...]:
    audit = run_checks(replace(clean(), stopped=stopped))
    cell = audit.cells[1]
    return withheld(audit, claim, arm=cell.arm, dose=cell.dose)


def test_a_loss_is_withheld_however_well_the_rule_did() -> None:
    assert lost(stopped_of(1_000, 0), Claim.LOSS) == ("screening",)
    assert lost(stopped_of(1_000, 0), Claim.RRR) == ()


@pytest.mark.parametrize(
    ("n_full", "n_changed", "stands"), [(368, 0, True), (367, 0, False), (900, 3, True), (600, 3, False), (0, 0, False)]
)
def test_rates_stand_where_the_bound_is_at_most_one_per_cent(n_full: int, n_changed: int, stands: bool) -> None:
    assert lost(stopped_of(n_full, n_changed), Claim.RRR) == (() if stands else ("stopping_rule",))


def test_degeneration_is_not_said_of_stopped_answers() -> None:
    found = {check.name: check for check in run_checks(replace(clean(), stopped=stopped_of(400, 0))).checks}
    assert found["degeneration"].outcome is Outcome.NOT_ASSESSABLE
    assert "368" not in found["stopping_rule"].evidence


def test_how_many_would_do_is_said() -> None:
    found = {check.name: check for check in run_checks(replace(clean(), stopped=stopped_of(40, 0))).checks}
    assert "about 368 templates without a change would do" in found["stopping_rule"].evidence


@pytest.mark.parametrize(("n_full", "n_changed"), [(400, 0), (400, 3), (7, 7)])
def test_the_bound_is_clopper_and_pearsons(n_full: int, n_changed: int) -> None:
    audit = run_checks(replace(clean(), stopped=stopped_of(n_full, n_changed)))
    [found] = [check.value for check in audit.checks if check.name == "stopping_rule"]
    assert found == pytest.approx(binomtest(n_changed, n_full).proportion_ci(method="exact").high)


@pytest.mark.parametrize(("n_full", "n_changed", "high"), [(400, 0, 0.29), (400, 8, 0.06), (31, 0, 1.0)])
def test_a_prompt_at_many_doses_is_not_many_prompts(n_full: int, n_changed: int, high: float) -> None:
    """Twelve prompts at thirty doses: a rule that fails on one prompt in ten passes unseen by most sets of twelve."""
    audit = run_checks(replace(clean(), stopped=stopped_of(n_full, n_changed, per_template=33)))
    [found] = [check for check in audit.checks if check.name == "stopping_rule"]
    assert found.outcome is Outcome.FAIL and found.value is not None and found.value > 0.8 * high


def test_the_bound_holds_where_prompts_turn_at_every_dose_or_at_none() -> None:
    rng, n_below, share = np.random.default_rng(2), 0, 0.005
    for _ in range(400):
        turns = rng.random(600) < share
        changed = tuple(bool(turn) for turn in turns for _ in range(8))
        templates = tuple(f"t{i // 8}" for i in range(4_800))
        found = stopping_rule(replace(clean(), stopped=Stopped(9, changed, templates)))
        n_below += found.value is not None and found.value < share
    assert n_below <= 400 * 0.05
