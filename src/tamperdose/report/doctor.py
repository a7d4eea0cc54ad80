"""What was found on a machine, as lines for a terminal and as values for a program."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tamperdose.report.text import printable
from tamperdose.run.doctor import Finding, State, is_usable

_ARROW = "  -> "


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """One line for each thing, its remedy behind it, and a last one that says what follows.

    >>> finding_lines([Finding("cores", State.OK, "2")])[0]
    'ok       cores  2'
    """
    wide = max((len(finding.name) for finding in findings), default=0)
    return [*(_line(finding, wide) for finding in findings), _summary(findings)]


def findings_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """The same for a program: `usable`, and every finding."""
    return {"usable": is_usable(findings), "findings": [asdict(finding) for finding in findings]}


def _line(finding: Finding, wide: int) -> str:
    remedy = _ARROW + printable(finding.remedy) if finding.remedy else ""
    return f"{finding.state:<7}  {finding.name:<{wide}}  {printable(finding.detail)}{remedy}"


def _summary(findings: Sequence[Finding]) -> str:
    if not is_usable(findings):
        return "the base install is not usable: run what stands behind the arrows"
    absent = [finding.name for finding in findings if finding.state is State.MISSING]
    rest = f"; missing, where a study asks for it: {', '.join(absent)}" if absent else ""
    return f"the base install is usable{rest}"
