"""Held-out texts and questions: what is read, and what is refused with its reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamperdose.data.utility import HeldOutText, Question, load_questions, load_texts, questions_digest, texts_digest
from tamperdose.errors import DataError

QUESTION: dict[str, Any] = {"question": "Which?", "choices": ["this", "that"], "answer": "that"}


def _write(folder: Path, *lines: Any) -> str:
    path = folder / "rows.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return str(path)


def test_texts_are_read_as_they_are(tmp_path: Path) -> None:
    source = _write(tmp_path, {"text": " One. "}, "", {"id": "b", "text": "Two.", "prompt": "Say", "category": "x"})
    assert load_texts(source) == [HeldOutText("t0001", " One. "), HeldOutText("b", "Two.", "Say")]


def test_questions_are_read_as_they_are(tmp_path: Path) -> None:
    source = _write(tmp_path, QUESTION, {**QUESTION, "question": "And?", "id": "b", "category": "x"})
    assert load_questions(source) == [
        Question("q0001", "Which?", ("this", "that"), 1),
        Question("b", "And?", ("this", "that"), 1),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", ["is not JSON"]),
        ({"txt": "x"}, ["unknown key 'txt'", "did you mean 'text'"]),
        ({"prompt": "x"}, ["'text' is missing"]),
        ({"text": " "}, ["'text' is empty"]),
        ({"text": 3}, ["'text' is not a text", "int"]),
        ({"text": "x", "prompt": ""}, ["'prompt' is empty"]),
        ({"text": "a\x00b"}, ["NUL"]),
        ({"text": "Hi", "id": 7}, ["'id' is not a text"]),
    ],
)
def test_a_bad_text_is_named_with_its_reason(tmp_path: Path, line: Any, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        load_texts(_write(tmp_path, {"text": "Good."}, "", line))
    assert all(word in str(caught.value) for word in ["line 3", *words]), str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"answers": "that"}, ["unknown key 'answers'", "did you mean 'answer'"]),
        ({"question": ""}, ["'question' is empty"]),
        ({"choices": "this"}, ["'choices' is not a list"]),
        ({"choices": ["that"]}, ["'choices' is not a list of two or more"]),
        ({"choices": None}, ["'choices' is not a list", "no choices"]),
        ({"choices": ["that", 4]}, ["'choice 2' is not a text"]),
        ({"choices": ["that", ""]}, ["'choice 2' is empty"]),
        ({"choices": ["that", "that"]}, ["two choices are the same"]),
        ({"answer": "neither"}, ["none of the choices", "'this', 'that'", "word for word"]),
        ({"answer": 1}, ["'answer' is not a text"]),
    ],
)
def test_a_bad_question_is_named_with_its_reason(tmp_path: Path, change: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        load_questions(_write(tmp_path, {**QUESTION, "question": "Fine?"}, {**QUESTION, **change}))
    assert all(word in str(caught.value) for word in ["line 2", *words]), str(caught.value)


def test_repeats_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="repeats values of 'question'"):
        load_questions(_write(tmp_path, QUESTION, QUESTION))
    with pytest.raises(DataError, match="repeats values of 'id'"):
        load_texts(_write(tmp_path, {"text": "a", "id": "x"}, {"text": "b", "id": "x"}))
    with pytest.raises(DataError, match="holds no rows"):
        load_texts(_write(tmp_path, ""))
    with pytest.raises(DataError, match="no such file"):
        load_questions(str(tmp_path / "absent.jsonl"))


def test_a_bundled_name_of_another_kind_is_told() -> None:
    with pytest.raises(DataError, match="no bundled set of held-out texts") as caught:
        load_texts("builtin:utility_questions")
    assert "which holds questions" in str(caught.value)


def test_digests_see_everything_that_counts() -> None:
    text, question = HeldOutText("a", "b", "c"), Question("a", "b", ("c", "d"), 0)
    texts = [text, HeldOutText("x", "b", "c"), HeldOutText("a", "x", "c"), HeldOutText("a", "b")]
    assert len({texts_digest([row]) for row in texts}) == 4
    questions = [question, Question("a", "b", ("c", "d"), 1), Question("a", "b", ("d", "c"), 0)]
    assert len({questions_digest([row]) for row in questions}) == 3
