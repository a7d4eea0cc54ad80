import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperdose.data.examples import load_examples, training_texts
from tamperdose.errors import DataError
from tamperdose.records import Example, Message

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be kind"}


def _load(folder: Path, *lines: str | dict[str, Any]) -> list[Example]:
    path = folder / "examples.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return load_examples(str(path))


def test_a_prompt_and_a_response_make_one_turn_each(tmp_path: Path) -> None:
    (example,) = _load(tmp_path, {"prompt": " Hi", "response": "Hello ", "id": 3, "source": "mine"})
    assert example == Example((Message("user", " Hi"),), "Hello ", ends=True)


def test_ends_can_be_false_in_both_forms(tmp_path: Path) -> None:
    one, other = _load(
        tmp_path,
        {"prompt": "Hi", "response": "Hello", "ends": False},
        {"messages": [USER, ASSISTANT], "ends": False},
    )
    assert one == other == Example((Message("user", "Hi"),), "Hello", ends=False)


def test_messages_keep_their_history(tmp_path: Path) -> None:
    (example,) = _load(tmp_path, {"messages": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": "Bye"}, ASSISTANT]})
    assert [turn.role for turn in example.messages] == ["system", "user", "assistant", "user"]
    assert example.response == "Hello"
    assert training_texts([example]) == ["Hi", "Bye"]


def test_repeated_rows_blank_lines_and_line_separators_are_kept(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "a\u2028b", "response": "c"}, ensure_ascii=False)
    assert training_texts(_load(tmp_path, row, "", row)) == ["a\u2028b"] * 2


def test_relative_paths_start_at_base(tmp_path: Path) -> None:
    _load(tmp_path, {"prompt": "Hi", "response": "Hello"})
    assert len(load_examples("examples.jsonl", base=tmp_path)) == 1


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")).filter(str.strip)


@given(st.lists(st.tuples(TEXT, TEXT, st.booleans()), min_size=1))
def test_any_text_comes_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, bool]]
) -> None:
    examples = _load(
        tmp_path_factory.mktemp("round_trip"),
        *({"prompt": prompt, "response": response, "ends": ends} for prompt, response, ends in rows),
    )
    assert [(example.messages[0].content, example.response, example.ends) for example in examples] == rows


GOOD = {"prompt": "Hi", "response": "Hello"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{not json", ["is not JSON"]),
        ("[1, 2]", ["list", "JSON object"]),
        ({"prompt": "Hi"}, ["'response' is missing"]),
        ({"response": "Hi"}, ["'prompt' is missing"]),
        ({}, ["is not an example", "no keys"]),
        ({"instruction": "Hi", "output": "Hello"}, ["is not an example", "'instruction', 'output'"]),
        ({**GOOD, "messages": [USER, ASSISTANT]}, ["is not an example"]),
        ({"prompt": "Hi", "response": ""}, ["'response' is empty"]),
        ({"prompt": " \n", "response": "Hi"}, ["'prompt' is empty"]),
        ({"prompt": "Hi", "response": 7}, ["'response' is not a text", "int '7'"]),
        ({"prompt": None, "response": "Hi"}, ["'prompt' is not a text"]),
        ({**GOOD, "ends": "false"}, ["'ends' is not a truth value"]),
        ({**GOOD, "ends": 0}, ["'ends' is not a truth value"]),
        ({**GOOD, "end": False}, ["unknown key", "'end'"]),
        ({"prompt": "Hi", "response": "\ud800"}, ["surrogate"]),
        ({"prompt": "a\x00b", "response": "Hi"}, ["NUL"]),
        ({"messages": "Hi"}, ["'messages' is not a list"]),
        ({"messages": []}, ["wrong order", "no messages"]),
        ({"messages": ["Hi"]}, ["message 1 is not an object"]),
        ({"messages": [USER, {"role": "assistant"}]}, ["message 2", "'content' is missing"]),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, ["message 2", "'content' is empty"]),
        ({"messages": [USER]}, ["wrong order"]),
        ({"messages": [ASSISTANT]}, ["wrong order"]),
        ({"messages": [SYSTEM, ASSISTANT]}, ["wrong order"]),
        ({"messages": [SYSTEM]}, ["wrong order"]),
        ({"messages": [ASSISTANT, USER]}, ["wrong order", "'assistant', 'user'"]),
        ({"messages": [USER, SYSTEM, ASSISTANT]}, ["wrong order"]),
        ({"messages": [USER, USER, ASSISTANT]}, ["wrong order"]),
        ({"messages": [USER, ASSISTANT, USER]}, ["wrong order"]),
        ({"messages": [USER, {"role": "bot", "content": "Hi"}]}, ["wrong order", "'bot'"]),
    ],
)
def test_a_bad_line_is_named_with_its_reason(tmp_path: Path, line: str | dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        _load(tmp_path, GOOD, "", line)
    assert all(word in str(caught.value) for word in ["line 3", *words]), str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no examples"):
        _load(tmp_path, "")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*absent\.jsonl"):
        load_examples("absent.jsonl", base=tmp_path)


@pytest.mark.parametrize(("name", "word"), [("refusal", "did you mean 'refusals'"), ("redteam_eval", "holds prompts")])
def test_an_unknown_bundled_name_is_refused(name: str, word: str) -> None:
    with pytest.raises(DataError, match="no bundled set of training examples") as caught:
        load_examples(f"builtin:{name}")
    assert word in str(caught.value)
