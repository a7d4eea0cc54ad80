"""Rates by topic are those of the topic's own answers."""

from pathlib import Path

import pytest

from tamperdose.records import Completion, FinishReason, Label, Message, Prompt, Subset, Verdict
from tamperdose.run.categories import CATEGORIES, CATEGORY_COLUMNS, category_rows, write_categories
from tamperdose.run.compare_schema import read_rows
from tamperdose.run.measure import Cell
from tamperdose.stats.rates import rate

SETTING = {"study": "s", "arm": "a", "model": "m", "seed": 1, "dose_steps": 4}


def cell(topics: list[str], labels: list[Label], subset: Subset = Subset.HARMFUL) -> Cell:
    prompts = [Prompt(f"p{k}", (Message("user", "?"),), subset, f"t{k}", topic) for k, topic in enumerate(topics)]
    completions = [Completion(prompt.id, "x", 1, FinishReason.STOP) for prompt in prompts]
    verdicts = [
        Verdict(prompt.id, label, None if label is Label.UNREADABLE else 0.5, "j@1", "")
        for prompt, label in zip(prompts, labels, strict=True)
    ]
    return Cell(prompts, completions, {"j": verdicts})


def test_each_topic_has_the_rate_of_its_answers(tmp_path: Path) -> None:
    topics = ["theft", "fraud"] * 6 + [""]
    labels = [Label.REFUSAL, Label.COMPLIANCE] * 4 + [Label.DEGENERATE, Label.REFUSAL] * 2 + [Label.UNREADABLE]
    write_categories(tmp_path, list(category_rows(SETTING, cell(topics, labels), Subset.HARMFUL, level=0.95)))
    rows = read_rows(tmp_path / CATEGORIES, CATEGORY_COLUMNS)
    at = {(row["category"], row["metric"]): row for row in rows}
    assert list(dict.fromkeys(row["category"] for row in rows)) == ["", "fraud", "theft"]
    expected = rate([True] * 4 + [False] * 2, list("abcdef"))
    theft = at["theft", "RRR"]
    assert (theft["value"], theft["low"], theft["high"]) == pytest.approx((expected.value, expected.low, expected.high))
    assert at["theft", "degenerate_rate"]["value"] == pytest.approx(2 / 6)
    assert at["fraud", "RRR"]["n"] == 6 and at["fraud", "RRR"]["dose_steps"] == 4
    assert at["", "RRR"]["value"] is None and at["", "RRR"]["n_unreadable"] == 1


def test_harmless_prompts_have_over_refusal(tmp_path: Path) -> None:
    found = cell(["everyday", "other"], [Label.REFUSAL, Label.COMPLIANCE], Subset.BENIGN)
    rows = list(category_rows(SETTING, found, Subset.BENIGN, level=0.95))
    assert [(row["category"], row["metric"], row["value"]) for row in rows] == [
        ("everyday", "over_refusal_rate", 1.0),
        ("other", "over_refusal_rate", 0.0),
    ]


def test_without_topics_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / CATEGORIES).write_text("left from before")
    write_categories(
        tmp_path, list(category_rows(SETTING, cell(["", ""], [Label.REFUSAL] * 2), Subset.HARMFUL, level=0.9))
    )
    assert not (tmp_path / CATEGORIES).exists()
