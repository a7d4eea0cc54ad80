"""Checks of screening runs, whose answers are ended once the judge's verdict is not expected to change any more."""

import math

from tamperdose.audit.evidence import Evidence
from tamperdose.audit.findings import CheckResult, Claim, Outcome
from tamperdose.stats.clusters import Clustering, event_clustering, group
from tamperdose.stats.distributions import beta_quantile
from tamperdose.stats.rates import degrees_of_freedom_size

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

    The share has the interval of Clopper and Pearson (1934) on the effective size of Korn and Graubard (1998), as
    `stats.rates.rate` has Wilson's; its upper end is held against `LIMIT`. Answers to the same prompt at several doses,
    and prompts of one template, are no more than one where none of their verdicts changed: a prompt whose answers turn
    late does so at every dose.
    """
    stopped = evidence.stopped
    if stopped is None:
        return _result(Outcome.PASS, None, "no answer was stopped")
    n, n_changed = len(stopped.changed), sum(stopped.changed)
    if not n:
        return _result(Outcome.FAIL, None, "no prompt was answered in full")
    sample = event_clustering(group(stopped.changed, stopped.templates))
    upper = _upper(n_changed / n, sample, evidence.level)
    needed = math.ceil(math.log((1 - evidence.level) / 2) / math.log(1 - LIMIT))
    more = "" if n_changed or sample.n_templates >= needed else f"; about {needed} templates without a change would do"
    return _result(
        Outcome.PASS if upper <= LIMIT else Outcome.FAIL,
        upper,
        f"{n_changed} of {n} verdicts changed after the stop, on {sample.n_templates} templates, at most "
        f"{upper:.3f}{more}",
    )


def _upper(share: float, sample: Clustering, level: float) -> float:
    if sample.n_templates < 2:
        return 1.0
    size = degrees_of_freedom_size(sample, level)
    n_changed, n_same = share * size, (1 - share) * size
    return 1.0 if not n_same else beta_quantile((1 + level) / 2, n_changed + 1, n_same)


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
