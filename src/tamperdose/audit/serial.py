"""An audit as plain values for `audit.json`, and back."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from tamperdose.audit.findings import Audit, CellId, CheckResult, Claim, Outcome, summary, unsupported
from tamperdose.errors import DataError, explain
from tamperdose.records import Subset

SCHEMA = 1
"""Version of the file's layout."""


def to_json(audit: Audit) -> dict[str, Any]:
    """Write an audit as dicts, lists, texts and numbers; the summary and what does not stand are spelt out."""
    return {
        "schema": SCHEMA,
        "outcome": audit.outcome.value,
        "summary": summary(audit),
        "not_supported": [
            {"claim": item.claim.value, "where": item.where, "because": list(item.because)}
            for item in unsupported(audit)
        ],
        "cells": [_cell(cell) for cell in audit.cells],
        "checks": [
            {
                "name": check.name,
                "outcome": check.outcome.value,
                "claims": [claim.value for claim in check.claims],
                "cells": [_cell(cell) for cell in check.cells],
                "value": check.value,
                "threshold": check.threshold,
                "evidence": check.evidence,
                "remedy": check.remedy,
                "quotes": list(check.quotes),
            }
            for check in audit.checks
        ],
    }


def from_json(value: object, *, where: str) -> Audit:
    """Read an audit back; `where` names the file in messages.

    Raises:
        DataError: It is not an audit of this schema.
    """
    try:
        tree = cast(Mapping[str, Any], value)
        if tree["schema"] != SCHEMA:
            raise ValueError(f"schema {tree['schema']!r}")
        checks = tuple(_check(item) for item in tree["checks"])
        return Audit(_cells(tree["cells"]), checks)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(
            explain(
                f"{where} is not an audit",
                got=f"{type(error).__name__}: {error}",
                expected=f"what `tamperdose audit` writes, schema {SCHEMA}",
                remedy="run `tamperdose audit` again",
            )
        ) from error


def _cell(cell: CellId) -> dict[str, str | int]:
    return {"arm": cell.arm, "dose": cell.dose, "subset": cell.subset.value}


def _cells(items: Sequence[Mapping[str, Any]]) -> tuple[CellId, ...]:
    return tuple(CellId(str(item["arm"]), int(item["dose"]), Subset(item["subset"])) for item in items)


def _check(item: Mapping[str, Any]) -> CheckResult:
    value = item["value"]
    return CheckResult(
        name=str(item["name"]),
        outcome=Outcome(item["outcome"]),
        claims=tuple(Claim(claim) for claim in item["claims"]),
        cells=_cells(item["cells"]),
        value=None if value is None else float(value),
        threshold=str(item["threshold"]),
        evidence=str(item["evidence"]),
        remedy=str(item["remedy"]),
        quotes=tuple(str(quote) for quote in item["quotes"]),
    )
