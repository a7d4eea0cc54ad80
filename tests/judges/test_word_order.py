import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperdose.errors import JudgeError
from tamperdose.judges import word_order
from tamperdose.judges.word_order import LIMIT, TABLE, class_pairs, load_word_order, order_score, tokens

PROSE = (
    "The house by the river was sold in the spring of that year to a man who had come from the city. He said that he "
    "wanted to keep bees, and for a while it looked as if he would, but in the end he went back and it was empty."
)


def test_prose_is_in_order_and_its_shuffles_are_not() -> None:
    rng = random.Random(0)
    words = PROSE.replace(".", "").replace(",", "").split()
    shuffled = [order_score(" ".join(rng.sample(words, len(words))))[0] for _ in range(50)]
    assert order_score(PROSE)[0] > 0.5
    assert max(shuffled) < 0.25
    assert sum(shuffled) < -0.1 * len(shuffled)


@pytest.mark.parametrize("text", ["", "1 2 3", "Le chat est sur la table et il dort.", "x = y + z", "\ud800"])
def test_nothing_is_said_of_what_is_not_english(text: str) -> None:
    assert order_score(text) == (0.0, 0)


def test_marks_and_line_ends_part_words() -> None:
    assert class_pairs(tokens("the. of\nto"), frozenset({"the", "of", "to"})) == []


def test_a_repeated_pair_counts_once() -> None:
    assert len(class_pairs(tokens("the of the of the of"), frozenset({"the", "of"}))) == 2


def test_contractions_are_written_out_and_make_no_pair() -> None:
    assert tokens("I can't, Tom's won't") == ["i", "can", "'not", ",", "tom", "will", "'not"]
    assert class_pairs(tokens("i can't go"), frozenset({"i", "can", "not", "go"})) == [("i", "can"), ("not", "go")]


def test_shipped_table() -> None:
    table = load_word_order()
    assert TABLE.stat().st_size < 100_000
    assert len(table.words) == 150
    assert max(map(abs, table.log_odds.values())) <= LIMIT
    assert table.log_odds["of", "the"] > 1 > -1 > table.log_odds["the", "the"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"classes": ["a"], "rows": []}', '{"classes": ["a"], "rows": ["ab"]}']
)
def test_damaged_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(JudgeError, match="not a table of word order"):
        load_word_order(path)


@given(st.text(alphabet=st.characters(max_codepoint=127)) | st.text(alphabet="ab'I7_ .\n\x1c"))
def test_ascii_is_cut_as_every_other_text_is(text: str) -> None:
    every = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[^\w\s]|\n", text.lower())
    assert word_order._ASCII_TOKEN.findall(text.lower()) == every
