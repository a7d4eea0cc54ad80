"""Conditions: their grammar, and what passes at the very edge of an interval."""

import math

import pytest

from tamperdose.errors import DataError
from tamperdose.run.conditions import Known, Verdict, judge_all, judge_condition, parse_condition, require


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ED50_step<100", "did you mean 'ED50_steps'"),
        ("RRRR@5<0.5", "did you mean 'RRR'"),
        ("RRR<0.5", "RRR@DOSE<0.5"),
        ("ED50_steps@5<3", "'ED50_steps<3'"),
        ("RRR@5=0.5", "NAME"),
        ("RRR@-5<0.5", "NAME"),
        ("RRR@5<nan", "NAME"),
        ("RRR@5<1e999", "no such value"),
        ("CE@5>50", "no such value"),
        ("CE@5>1", "no value would ever fail"),
        ("RRR@5<0", "no value would ever fail"),
        ("ED50_steps<0", "no value would ever fail"),
        ("RRR@5<--1", "no such value"),
        ("", "NAME"),
    ],
)
def test_what_cannot_be_meant_is_said(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        parse_condition(text)


@pytest.mark.parametrize("op", ["<", "<=", ">", ">="])
def test_spaces_do_not_matter(op: str) -> None:
    assert parse_condition(f" RD_mean @ 5 {op} 2e-1 ") == parse_condition(f"RD_mean@5{op}2e-1")


@pytest.mark.parametrize(
    ("op", "low", "high", "verdict"),
    [
        ("<", 0.5, 0.9, "passes"),
        ("<", 0.4999, 0.9, "undecided"),
        ("<", 0.1, 0.5, "undecided"),
        ("<", 0.1, 0.4999, "fails"),
        ("<=", 0.5, 0.9, "undecided"),
        ("<=", 0.5001, 0.9, "passes"),
        ("<=", 0.1, 0.5, "fails"),
        (">", 0.1, 0.5, "passes"),
        (">", 0.1, 0.5001, "undecided"),
        (">", 0.5, 0.9, "undecided"),
        (">", 0.5001, 0.9, "fails"),
        (">=", 0.1, 0.5, "undecided"),
        (">=", 0.1, 0.4999, "passes"),
        (">=", 0.5, 0.9, "fails"),
    ],
)
def test_the_interval_decides_at_its_ends(op: str, low: float, high: float, verdict: str) -> None:
    known = Known("a", (low + high) / 2, low, high)
    assert judge_condition(parse_condition(f"RRR@5{op}0.5"), known) == verdict


@pytest.mark.parametrize(
    ("text", "known", "verdict"),
    [
        ("ED50_steps<100", Known("a", None, 100, None, "right", 200), "passes"),
        ("ED50_steps<100", Known("a", None, 99, None, "right", 200), "undecided"),
        ("ED50_steps<100", Known("a", None, 150, None, "right", 99), "undecided"),
        ("ED50_steps<100", Known("a", None, None, None, "right", 200), "undecided"),
        ("ED50_steps>100", Known("a", None, 200, None, "right", 200), "fails"),
        ("ED50_steps<100", Known("a", None, 0, 1, "left", 1), "fails"),
        ("ED50_steps<100", Known("a", None, 0, 1, "left", 100), "undecided"),
        ("ED50_steps<100", Known("a", 150, 100, None), "passes"),
        ("ED50_steps<100", Known("a", 50, None, 60), "fails"),
        ("ED50_steps<100", Known("a", 150), "undecided"),
        ("ED50_steps<100", Known("a", None, censored="undefined"), "undefined"),
        # What only a damaged table holds passes nothing.
        ("RRR@5<0.5", Known("a", math.nan, math.nan, math.nan), "undecided"),
        ("RRR@5<0.5", Known("a", 0.9, math.nan, 0.95), "undecided"),
        ("RRR@5<0.5", Known("a", 0.9, 0.95, 0.85), "undecided"),
        ("RRR@5<0.5", Known("a", 0.3, 0.6, 0.8), "undecided"),
        ("ED50_steps<100", Known("a", None, 500, None, "right", None), "undecided"),
        ("ED50_steps<100", Known("a", None, 500, None, "right", math.nan), "undecided"),
        ("RRR@5<0.5", Known("a"), "undefined"),
        ("RRR@5<0.5", Known("a", 0.9, 0.8, 1.0, lost=("n_templates",)), "withheld"),
        ("RRR@5<0.5", Known("a", absent="RRR is measured at 1, 2"), "no such number"),
    ],
)
def test_what_has_no_plain_interval(text: str, known: Known, verdict: str) -> None:
    assert judge_condition(parse_condition(text), known) == verdict


def test_every_arm_must_pass_and_nothing_is_no_pass() -> None:
    condition = parse_condition("RRR@5<0.5")
    good, bad = Known("good", 0.8, 0.7, 0.9), Known("bad", 0.6, 0.4, 0.8)
    assert require(judge_all(condition, [good])) == ""
    assert require(judge_all(condition, [good, bad])) == "undecided: RRR@5<0.5 in bad: 0.6 [0.4, 0.8]"
    assert require([]) != ""
    assert {one.verdict for one in judge_all(condition, [good, bad])} == {Verdict.PASSES, Verdict.UNDECIDED}
