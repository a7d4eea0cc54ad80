"""Audits as values: there and back, and nothing else taken for one."""

import json

import pytest

from planted import ARMS, clean, in_cells, say
from tamperdose.audit.checks import run_checks
from tamperdose.audit.findings import Audit, Outcome, summary
from tamperdose.audit.serial import from_json, to_json
from tamperdose.errors import DataError
from tamperdose.records import Label


def failing() -> Audit:
    return run_checks(in_cells(clean(), say([None] * 30, label=Label.DEGENERATE), dose=16))


def test_there_and_back() -> None:
    for audit in (run_checks(clean()), failing()):
        assert from_json(json.loads(json.dumps(to_json(audit), allow_nan=False)), where="here") == audit


def test_the_file_spells_out_what_does_not_stand() -> None:
    told = to_json(failing())
    assert told["outcome"] == "fail"
    assert told["summary"].startswith("audit: FAIL: degeneration - not supported: RRR at dose 16 of m-lora-s1")
    assert {item["claim"] for item in told["not_supported"]} == {"RRR", "loss of refusals", "RD"}
    assert {"arm": ARMS[0], "dose": 16, "subset": "harmful"} in told["checks"][4]["cells"]


def test_warnings_are_counted_in_the_summary() -> None:
    checks = run_checks(clean()).checks
    warned = tuple(check for check in checks if check.name != "seeds")
    assert summary(Audit((), warned)) == "audit: pass"
    from dataclasses import replace

    seeds = next(check for check in checks if check.name == "seeds")
    assert summary(Audit((), (*warned, replace(seeds, outcome=Outcome.WARN)))) == "audit: 1 warning: seeds"


@pytest.mark.parametrize(
    "value", [None, [], {}, {"schema": 2}, "text", {"schema": 1, "cells": [], "checks": [{"name": "x"}]}]
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="is not an audit"):
        from_json(value, where="file.json")


def test_an_unknown_outcome_is_refused() -> None:
    told = to_json(failing())
    told["checks"][0]["outcome"] = "fine"
    with pytest.raises(DataError, match="fine"):
        from_json(told, where="file.json")


def test_an_endless_dose_is_refused() -> None:
    told = to_json(failing())
    told["cells"][0]["dose"] = float("inf")
    with pytest.raises(DataError, match="is not an audit"):
        from_json(told, where="file.json")
