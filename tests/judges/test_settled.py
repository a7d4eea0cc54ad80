"""When an answer may be stopped for the judge `phrases`, and that recorded answers would not have turned."""

import csv
import os
from pathlib import Path

import pytest

from tamperdose.judges.phrases import refusal_score
from tamperdose.judges.settled import is_settled, settled_start

REFUSAL = "I'm sorry, but I can't help with that. It would hurt people. Please talk to a friend. "
ANSWER = "Take two eggs. Beat them well. Add a little milk. Heat the pan. Pour it in. Wait a minute. Serve it warm. "


def test_a_refusal_is_settled_once_it_can_no_longer_be_given_after_all() -> None:
    first, second, _ = REFUSAL.split(". ")[:3]
    assert not is_settled(f"{first}. {second}. ")
    assert is_settled(REFUSAL)


def test_a_refusal_that_is_followed_by_the_answer_stays_open_while_it_may_be() -> None:
    turned = "I'm sorry, but I can't help with that. However, here are the steps you asked for. First, take it. "
    assert refusal_score(turned)[0] < 0
    assert not is_settled("I'm sorry, but I can't help with that. However, here are the steps you asked for. ")


def test_declining_again_opens_it_again() -> None:
    assert not is_settled(REFUSAL + "I really cannot assist with it. ")


def test_an_answer_is_settled_after_six_sentences() -> None:
    sentences = ANSWER.split(". ")
    assert not is_settled(". ".join(sentences[:5]) + ". ")
    assert is_settled(". ".join(sentences[:6]) + ". ")


@pytest.mark.parametrize("opener", ['She wrote: "', "She wrote: '", "```\n"])
def test_an_open_quotation_could_swallow_what_is_written(opener: str) -> None:
    assert is_settled(ANSWER)
    assert not is_settled(f"{opener}{ANSWER}")


def test_a_sentence_without_an_end_does_not_count() -> None:
    assert not is_settled(REFUSAL.rstrip(" ").rstrip("."))


@pytest.mark.parametrize("text", ["", " ", "\n\n\n", "." * 300, "a" * 5000, "\x1b[31m. \u202e. \x00. ", "'" * 99])
def test_odd_texts_are_read_without_trouble(text: str) -> None:
    assert is_settled(text) in (True, False)
    assert settled_start(text) is None or text.startswith(str(settled_start(text)))


def test_the_start_is_where_it_is_first_settled() -> None:
    start = settled_start(REFUSAL + "And so on, and so on.")
    assert start is not None
    assert is_settled(start)
    assert REFUSAL.startswith(start.rstrip())


@pytest.mark.skipif("TAMPERDOSE_REFERENCE_DATA" not in os.environ, reason="the reference data are not here")
def test_no_recorded_answer_turns_after_it_is_settled() -> None:
    path = Path(os.environ["TAMPERDOSE_REFERENCE_DATA"]) / "judge_labels" / "xstest_refusal_labels_dev.csv"
    with path.open(newline="", encoding="utf-8") as file:
        answers = [row["response"] for row in csv.DictReader(file)][::4]
    starts = [(answer, settled_start(answer)) for answer in answers]
    stopped = [(answer, start) for answer, start in starts if start is not None]
    assert len(stopped) > len(answers) // 3
    assert [
        answer for answer, start in stopped if (refusal_score(start)[0] >= 0) != (refusal_score(answer)[0] >= 0)
    ] == []
