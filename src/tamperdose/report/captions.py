"""What a figure says below itself: what its numbers are and how far they can be trusted."""

from collections.abc import Sequence

import pandas as pd

from tamperdose.audit.findings import Audit, Claim, Outcome, unsupported
from tamperdose.report.samples import is_sampled
from tamperdose.report.select import NO_AUDITS, Audits, common_settings, dose_units, list_arms, metric_rows
from tamperdose.report.text import printable, shorten
from tamperdose.run.schema import column, keep_rows

MEANINGS = {
    "RRR": "RRR = refusals / judged harmful prompts; higher is safer.",
    "CE": "CE = 1 - RRR = compliance + degenerate answers, as shares of judged harmful prompts.",
    "RD": "RD = median over prompts of 1 - cos(SBERT(base answer), SBERT(tampered answer)); 0 at dose 0.",
}
"""One line of definition for each metric that has a figure."""


def caption(frame: pd.DataFrame, metric: str, audits: Audits = NO_AUDITS) -> str:
    """Say what a metric's numbers are: definition, n, templates, interval, scope, judge, shared settings, audit."""
    rows = metric_rows(frame, metric)
    judges = [judge for judge in column(rows, "judge").unique() if judge]
    settings = common_settings(list_arms(frame))
    parts = [
        MEANINGS[metric],
        dose_units(column(frame, "attack")),
        _counts(rows, "answers" if is_sampled(frame) else "prompts"),
        _intervals(rows),
        f"Judge: {', '.join(judges)}." if judges else "",
        f"Settings: {settings}." if settings else "",
        audit_text(audits, (Claim.RD,) if metric == "RD" else (Claim.RRR,)),
    ]
    return " ".join(part for part in parts if part)


def audit_text(audits: Audits, claims: Sequence[Claim]) -> str:
    """Say for each study which of these claims its audit leaves without support, or how many warnings there are.

    >>> audit_text({"demo": None}, [Claim.RRR])
    'Audit: none.'
    """
    said = {study: _audited(audit, claims) for study, audit in audits.items()}
    if len(set(said.values())) == 1:
        return f"Audit: {next(iter(said.values()))}."
    return " ".join(f"Audit of {shorten(printable(study), 40)}: {text}." for study, text in said.items())


def _audited(audit: Audit | None, claims: Sequence[Claim]) -> str:
    if audit is None:
        return "none"
    parts = [
        f"{item.claim}{f' at {shorten(printable(item.where), 120)}' if item.where else ''} not supported: "
        + ", ".join(item.because)
        for item in unsupported(audit)
        if item.claim in claims
    ]
    n_warnings = len(audit.ended(Outcome.WARN))
    if n_warnings:
        parts.append(f"{n_warnings} warning{'s' if n_warnings > 1 else ''}")
    return "; ".join(parts) or ("nothing that bears on this" if audit.outcome is Outcome.FAIL else str(audit.outcome))


def _counts(rows: pd.DataFrame, unit: str) -> str:
    n, templates, effective = (_range(column(rows, name)) for name in ("n", "n_templates", "n_effective"))
    unreadable = max((int(count) for count in column(rows, "n_unreadable").dropna()), default=0)
    return _sentence(
        [
            f"n = {n} {unit}" if n else "",
            f"{templates} templates" if templates else "",
            f"effective n {effective}" if effective else "",
            f"up to {unreadable} unreadable left out" if unreadable else "",
        ]
    )


def _intervals(rows: pd.DataFrame) -> str:
    bounded = keep_rows(rows, column(rows, "low").notna() & column(rows, "high").notna())
    if bounded.empty:
        return "No interval is defined."
    levels = "/".join(f"{100 * level:g}" for level in sorted(column(bounded, "level").dropna().unique()))
    methods, scopes = (
        ", ".join(dict.fromkeys(text for text in column(bounded, name) if text)) for name in ("method", "scope")
    )
    return _sentence([f"Intervals: {levels} %", methods, f"scope {scopes}" if scopes else ""])


def _range(values: pd.Series) -> str:
    known = [float(value) for value in values.dropna()]
    if not known:
        return ""
    low, high = f"{min(known):.4g}", f"{max(known):.4g}"
    return low if low == high else f"{low} to {high}"


def _sentence(parts: Sequence[str]) -> str:
    kept = [part for part in parts if part]
    return ", ".join(kept) + "." if kept else ""
