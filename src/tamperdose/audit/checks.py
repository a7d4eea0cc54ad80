"""The list of checks, and running it."""

from collections.abc import Callable

from tamperdose.audit.answers import (
    cut_answers,
    degeneration,
    judge_range,
    prompt_echo,
    repeated_sentence,
    unreadable,
)
from tamperdose.audit.design import base_rate, n_templates, over_refusal, seeds, train_evaluation_overlap
from tamperdose.audit.evidence import Evidence
from tamperdose.audit.findings import Audit, CheckResult
from tamperdose.audit.screening import screening, stopping_rule
from tamperdose.audit.setup import (
    chat_template,
    complement,
    decoding,
    dtype,
    engine,
    provenance,
    stored_metrics,
)

CHECKS: tuple[Callable[[Evidence], CheckResult], ...] = (
    train_evaluation_overlap,
    n_templates,
    prompt_echo,
    repeated_sentence,
    degeneration,
    unreadable,
    base_rate,
    decoding,
    chat_template,
    dtype,
    engine,
    complement,
    stored_metrics,
    judge_range,
    over_refusal,
    cut_answers,
    screening,
    stopping_rule,
    seeds,
    provenance,
)
"""Every check, in the order in which they are reported."""


def run_checks(evidence: Evidence) -> Audit:
    """Run every check."""
    return Audit(tuple(cell.id for cell in evidence.cells), tuple(check(evidence) for check in CHECKS))
