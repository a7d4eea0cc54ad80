"""Prompts that are conversations: what a file may hold, and what counts as the same request."""

import json
from pathlib import Path
from typing import Any

import pytest

from tamperdose.data.conversations import conversation_key, conversation_text, turns_from_json, turns_to_json
from tamperdose.data.overlap import OverlapKind, find_overlap
from tamperdose.data.prompts import conversation_template, load_prompts
from tamperdose.errors import DataError
from tamperdose.records import Message, Prompt, Subset

SYSTEM = {"role": "system", "content": "Answer in one line."}
ASK = {"role": "user", "content": "Which bread is cheap?"}
REPLY = {"role": "assistant", "content": "Rye."}
MORE = {"role": "user", "content": "And why is that?"}


def _load(folder: Path, *lines: dict[str, Any] | str, subset: Subset = Subset.HARMFUL) -> list[Prompt]:
    path = folder / "prompts.jsonl"
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return load_prompts(str(path), subset=subset)


def test_a_conversation_keeps_its_turns_and_its_text_is_the_last(tmp_path: Path) -> None:
    (prompt,) = _load(tmp_path, {"messages": [SYSTEM, ASK, REPLY, MORE], "id": "c1", "category": " food "})
    assert [turn.role for turn in prompt.messages] == ["system", "user", "assistant", "user"]
    assert (prompt.id, prompt.category, prompt.text) == ("c1", "food", "And why is that?")
    assert prompt.template == "which bread is cheap? | and why is that?"


def test_plain_prompts_stand_beside_conversations_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    prompts = _load(tmp_path, {"prompt": "Bake 3 loaves"}, "", {"messages": [ASK], "id": 7, "answer": "rye"})
    assert [(prompt.id, prompt.template) for prompt in prompts] == [
        ("p0001", "bake # loaves"),
        ("7", "which bread is cheap?"),
    ]
    assert prompts[1].answer == "rye"


def test_a_line_of_one_turn_is_the_prompt_that_a_csv_would_hold(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("id,prompt,category,template\na,Which bread is cheap?,food,t1\n", encoding="utf-8")
    fields = {"id": "a", "category": "food", "template": "t1"}
    as_csv = load_prompts(str(path), subset=Subset.BENIGN)
    assert _load(tmp_path, {"messages": [ASK], **fields}, subset=Subset.BENIGN) == as_csv
    assert _load(tmp_path, {"prompt": ASK["content"], **fields}, subset=Subset.BENIGN) == as_csv


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": [ASK, REPLY]}, "line 1: the turns are in a wrong order"),
        ({"messages": [SYSTEM]}, "the last being 'user'"),
        ({"messages": []}, "no messages"),
        ({"messages": [ASK, SYSTEM, MORE]}, "wrong order"),
        ({"messages": [ASK, MORE]}, "wrong order"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "wrong order"),
        ({"messages": [{"role": "user"}]}, "message 1: 'content' is missing"),
        ({"messages": [{"role": "user", "content": " "}]}, "message 1: 'content' is empty"),
        ({"messages": [{"role": "user", "content": 3}]}, "'content' is not a text"),
        ({"messages": ["Hi"]}, "message 1 is not an object"),
        ({"messages": "Hi"}, "'messages' is not a list"),
        ({"prompt": "a", "messages": [ASK]}, "is not a prompt"),
        ({"text": "a"}, "is not a prompt"),
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": "a\x00b"}, "cannot be written as UTF-8"),
        ({"prompt": "a", "id": True}, "'id' is not a text"),
        ({"prompt": "a", "id": "x\x00"}, "'id' is not a text"),
        ({"prompt": "a", "template": 4}, "'template' is not a text"),
        ("[1]", "a JSON list"),
        ("{", "is not JSON"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_line(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _load(tmp_path, line)


def test_an_empty_file_holds_no_prompts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prompts"):
        _load(tmp_path, "")


def test_a_last_turn_may_recur_but_not_a_conversation(tmp_path: Path) -> None:
    other = {"role": "user", "content": "Which cheese is cheap?"}
    prompts = _load(tmp_path, {"messages": [ASK, REPLY, MORE]}, {"messages": [other, REPLY, MORE]})
    assert len({prompt.template for prompt in prompts}) == 2
    spaced = {"role": "user", "content": "And  why is that? "}
    with pytest.raises(DataError, match="rows 1 and 2: 'user: Which bread is cheap"):
        _load(tmp_path, {"messages": [ASK, REPLY, MORE]}, {"messages": [ASK, REPLY, spaced]})


def test_the_same_request_under_two_system_turns_is_one_template(tmp_path: Path) -> None:
    prompts = _load(tmp_path, {"messages": [SYSTEM, ASK]}, {"messages": [ASK]})
    assert len({prompt.template for prompt in prompts}) == 1
    assert conversation_template(prompts[0].messages) == prompts[0].template


def test_a_text_of_one_turn_is_its_content_and_others_name_the_speaker() -> None:
    talk = (Message("user", "a\nb"), Message("assistant", "c"), Message("user", "d"))
    assert conversation_text(talk[:1]) == "a\nb"
    assert conversation_text(talk) == "user: a\nb\nassistant: c\nuser: d"
    assert conversation_key(talk) == "user: a b assistant: c user: d"
    assert turns_from_json(turns_to_json(talk), "here") == talk
    with pytest.raises(DataError, match="is not JSON"):
        turns_from_json("[{", "here")


def _talk(*turns: str) -> Prompt:
    roles = ["user", "assistant"] * len(turns)
    messages = tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False))
    return Prompt("c", messages, Subset.HARMFUL, "t")


def test_every_user_turn_is_looked_for_in_the_training_rows() -> None:
    prompt = _talk("Which bread is cheap in winter?", "Rye is cheap in every season.", "Go on.")
    (found,) = find_overlap(["Which bread is cheap in winter?"], [prompt])
    assert found.kind is OverlapKind.EXACT
    (found,) = find_overlap(["which bread is CHEAP in winter"], [prompt])
    assert found.kind is OverlapKind.NORMALISED
    assert find_overlap(["Rye is cheap in every season."], [prompt]) == []


def test_a_short_turn_among_several_gives_nothing_away() -> None:
    prompt = _talk("Which bread is cheap in winter?", "Rye.", "Go on.")
    assert find_overlap(["Go on."], [prompt]) == []
    # Where there is nothing longer, the last turn is what there is.
    assert len(find_overlap(["Go on."], [_talk("Bread?", "Rye.", "Go on.")])) == 1
    assert len(find_overlap(["Go on."], [_talk("Go on.")])) == 1
