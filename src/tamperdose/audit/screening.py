"""Checks of screening runs, whose answers are ended once the judge's verdict is not expected to change any more."""

import math

from tamperdose.audit.evidence import Evidence
from tamperdose.audit.findings import CheckResult, Claim, Outcome
from tamperdose.stats.distributions import beta_quantile

LIMIT = 0.01
"""Share of verdicts that stopping may change, by the upper end of its interval."""


def screening(evidence: Evidence) -> CheckResult:
    """A screening run is for finding the doses that are worth measuring: it carries no breaking dose of its own."""
    stopped = evidence.stopped
    return CheckResult(
        name="screening",
        outcome=Outcome.PASS if stopped is None else Outcome.FAIL,
        claims=(Claim.LOSS, Claim.RD, Claim.COMPARISON, Claim.ATTACK),
        cells=(),
        value=None if stopped is None else float(stopped.n_stopped),
        threshold="fails where answers may be stopped",
        evidence=(
            "answers are as the models ended them"
            if stopped is None
            else f"{stopped.n_stopped} answers were ended before the models did; RD and degeneration are not known"
        ),
        remedy="run the study without decoding.stop_when_decided",
    )


def stopping_rule(evidence: Evidence) -> CheckResult:
    """How often stopping changes a verdict, seen on prompts whose answers were written to their end.

    The share has an exact binomial interval (Clopper and Pearson 1934) over answers; its upper end is held against
    `LIMIT`. Answers to one prompt at several doses count as several.
    """
    stopped = evidence.stopped
    if stopped is None:
        return _result(Outcome.PASS, None, "no answer was stopped")
    if stopped.n_full == 0:
        return _result(Outcome.FAIL, None, "no prompt was answered in full")
    n_same = stopped.n_full - stopped.n_changed
    upper = 1.0 if not n_same else beta_quantile((1 + evidence.level) / 2, stopped.n_changed + 1, n_same)
    needed = math.ceil(math.log((1 - evidence.level) / 2) / math.log(1 - LIMIT))
    more = "" if stopped.n_changed or stopped.n_full >= needed else f"; {needed} without a change would do"
    return _result(
        Outcome.PASS if upper <= LIMIT else Outcome.FAIL,
        upper,
        f"{stopped.n_changed} of {stopped.n_full} verdicts changed after the stop, at most {upper:.3f}{more}",
    )


def _result(outcome: Outcome, upper: float | None, evidence: str) -> CheckResult:
    return CheckResult(
        name="stopping_rule",
        outcome=outcome,
        claims=(Claim.RRR, Claim.OVER_REFUSAL),
        cells=(),
        value=upper,
        threshold=f"fails where the upper bound is above {LIMIT:g}",
        evidence=evidence,
        remedy="raise decoding.full_share, or run the study without decoding.stop_when_decided",
    )
