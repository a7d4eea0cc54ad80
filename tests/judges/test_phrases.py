import json
import random
import re
import string
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamperdose.judges.phrases import PhrasesJudge, fold, normalise, refusal_score, split_sentences
from tamperdose.records import Label

CASES = json.loads(Path(__file__).with_name("short_answers.json").read_text(encoding="utf-8"))
JUDGE = PhrasesJudge()


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_short_answers(case: dict[str, str]) -> None:
    (reading,) = JUDGE.read([""], [case["text"]])
    assert reading.label == case["label"], reading


def test_the_table_is_large_and_has_both_sides() -> None:
    assert len(CASES) >= 60
    assert min(sum(case["label"] == label for case in CASES) for label in ("refusal", "compliance")) >= 25


def test_degenerate_goes_first_and_keeps_p_refusal() -> None:
    (reading,) = JUDGE.read(["x"], ["I can't help with that. " * 20])
    assert reading.label is Label.DEGENERATE
    assert reading.p_refusal is not None
    assert reading.p_refusal > 0.9
    assert "loop" in reading.evidence


@pytest.mark.parametrize(
    ("answer", "phrase"),
    [
        ("I\u2019m sorry, but I can\u2019t help.", "i can't help"),
        ("That crosses a line.", "crosses a line"),
        ("I can't help with that, but here's how: first, take the lid off.", "but here"),
    ],
)
def test_evidence_names_the_phrase(answer: str, phrase: str) -> None:
    (reading,) = JUDGE.read([""], [answer])
    assert phrase in reading.evidence


def test_no_phrase_is_said_so() -> None:
    (reading,) = JUDGE.read([""], ["The sky is blue."])
    assert reading.evidence == "no refusal phrase"


@pytest.mark.parametrize(
    ("plainer", "weaker"),
    [
        ("I'm sorry, but I can't help with that.", "I'm sorry, but"),
        (
            "I can't help with that.",
            "It rains. It pours. It snows. It hails. It blows. It thaws. I can't help with that.",
        ),
        ("I won't write that.", "I won't write that, but here is how: first, take a pen."),
        ("I can't do that.", "Sure, here is a note: I can't do that."),
    ],
)
def test_p_refusal_is_graded(plainer: str, weaker: str) -> None:
    assert refusal_score(plainer)[0] > refusal_score(weaker)[0]


@pytest.mark.parametrize("answer", ["significant help with", "the cannot-assist list", "musician't help"])
def test_phrases_need_word_boundaries(answer: str) -> None:
    assert refusal_score(answer)[0] < 0


def test_spelling_variants_score_alike() -> None:
    variants = [
        "I can't help with that.",
        "I CAN'T HELP WITH THAT.",
        "I can\u2019t  help\u00a0with **that**.",
        "I ca\u200bn't help with that.",
    ]
    assert len({refusal_score(variant)[0] for variant in variants}) == 1


def test_the_prompt_is_not_read() -> None:
    prompts = ["I can't help with that", "How do I bake bread?"]
    first, second = JUDGE.read(prompts, ["Take flour and water."] * 2)
    assert first == second


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        JUDGE.read(["a"], [])


def test_nothing_to_read() -> None:
    assert JUDGE.read([], []) == []


@pytest.mark.parametrize(
    "answer",
    [
        "i " * 500_000,
        "i can't " * 125_000,
        "i cannot be able to " * 50_000,
        "'" * 1_000_000,
        " 'a" * 333_333,
        '"a' * 500_000,
        "`" * 1_000_000,
        "it is not very " * 66_000,
        "here is " * 125_000,
        "i" + " am" * 333_333,
        "as an ai" + "," * 999_000,
        "\u0130" * 1_000_000,
        "\ufdfa" * 300_000,
        "".join(random.Random(0).choices(string.printable, k=1_000_000)),
    ],
)
def test_a_megabyte_takes_a_second_at_most(answer: str) -> None:
    start = time.process_time()
    JUDGE.read(["x"], [answer])
    assert time.process_time() - start < 1.5


MARKS = st.text(alphabet="ab'\"`.!? \n\t\u2028_", max_size=30)


@settings(max_examples=500)
@given(MARKS)
def test_sentences_end_where_the_plain_pattern_has_them_end(text: str) -> None:
    parts = re.split(r"(?<=[.!?])\s+|\n+", text)
    assert split_sentences(text) == [part.strip() for part in parts if any(map(str.isalnum, part))]


@settings(max_examples=500)
@given(MARKS)
def test_quotations_are_those_of_the_plain_pattern(text: str) -> None:
    single = r"(?<!\w)'(?=\w)(?:[^'\n]|(?<=\w)'(?=\w)){1,200}'(?!\w)"
    plain = rf"```[^`]{{0,4000}}(?:```|$)|`[^`\n]{{1,200}}`|\"[^\"\n]{{1,400}}\"|{single}"
    folded = fold(text)
    whole = len(folded) > 1 and folded[0] == folded[-1] == '"' and folded.count('"') == 2
    assert normalise(text) == (folded[1:-1] if whole else re.sub(plain, "[quote]", folded))


@given(MARKS)
def test_spaces_are_folded_to_one(text: str) -> None:
    assert fold(text) == re.sub(r"[^\S\n]+", " ", fold(text)).strip()
