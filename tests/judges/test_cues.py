import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest

from tamperdose.judges.cues import (
    CUES,
    DENIALS,
    DISCLAIMER,
    GIVES,
    GIVES_WORDS,
    NOT_DECLINING,
    Cue,
    denies,
    may_give,
    possible_cues,
)

MOST_TEXTS = 200

# The parse tree of a pattern has no public name.
parse: Callable[[str], Iterable[Any]] = importlib.import_module("re._parser").parse


def texts_of(nodes: Iterable[Any]) -> set[str] | None:
    """All texts a part of a pattern matches, what looks around left out; None where they are many."""
    found = {""}
    for node in nodes:
        more = texts_of_node(*node)
        if more is None or len(found) * len(more) > MOST_TEXTS:
            return None
        found = {left + right for left in found for right in more}
    return found


def texts_of_node(op: Any, value: Any) -> set[str] | None:
    if str(op) == "LITERAL":
        return {chr(value)}
    if str(op) in ("AT", "ASSERT", "ASSERT_NOT"):
        return {""}
    if str(op) == "SUBPATTERN":
        return texts_of(value[3])
    if str(op) == "IN" and all(str(each) == "LITERAL" for each, _ in value):
        return {chr(letter) for _, letter in value}
    if str(op) == "BRANCH":
        parts = [texts_of(part) for part in value[1]]
        return None if None in parts else set().union(*(part for part in parts if part))
    if str(op) in ("MAX_REPEAT", "MIN_REPEAT") and value[1] == 1:
        once = texts_of(value[2])
        return once if once is None or value[0] else once | {""}
    return None


def always_holds(nodes: Sequence[Any], words: Sequence[str]) -> bool:
    """Whether every text that the nodes match holds one of the words, as far as a simple proof goes."""
    for first in range(len(nodes)):
        for end in range(first + 1, len(nodes) + 1):
            texts = texts_of(nodes[first:end])
            if texts is None:
                break
            if all(any(word in text for word in words) for text in texts):
                return True
    return any(holds_node(op, value, words) for op, value in nodes)


def holds_node(op: Any, value: Any, words: Sequence[str]) -> bool:
    if str(op) == "SUBPATTERN":
        return always_holds(list(value[3]), words)
    if str(op) == "BRANCH":
        return all(always_holds(list(part), words) for part in value[1])
    return str(op) in ("MAX_REPEAT", "MIN_REPEAT") and value[0] > 0 and always_holds(list(value[2]), words)


def proven(pattern: str, words: Sequence[str]) -> bool:
    return always_holds(list(parse(pattern)), words)


@pytest.mark.parametrize(
    "cue", [cue for cue in CUES if cue.words], ids=lambda cue: f"{cue.name}-{cue.pattern.pattern}"[:40]
)
def test_every_match_of_a_cue_holds_one_of_its_words(cue: Cue) -> None:
    assert proven(cue.pattern.pattern, cue.words)


@pytest.mark.parametrize("pattern", [NOT_DECLINING, DISCLAIMER])
def test_every_denial_holds_one_of_the_denials(pattern: Any) -> None:
    assert proven(pattern.pattern, DENIALS)
    assert all(denies(f"a {word} b") for word in DENIALS)


def test_every_announcement_holds_one_of_its_words() -> None:
    assert proven(GIVES.pattern, GIVES_WORDS)
    assert all(may_give(f"a {word} b") for word in GIVES_WORDS)


def test_declining_cues_count_towards_refusal() -> None:
    assert all(cue.weight > 0 for cue in CUES if cue.declines)


def test_the_proof_finds_a_word_that_is_missing() -> None:
    assert proven(r"\bi (?:can't|will not)(?: \w+)? help", ["n't", "not"])
    assert not proven(r"\bi (?:can't|will not)(?: \w+)? help", ["n't"])
    assert not proven(r"a(?: b)?", ["b"])
    assert not proven(r"[^b]{1,3}c", ["b"])


def test_cues_without_their_words_are_not_tried_and_the_others_keep_their_order() -> None:
    assert {cue.name for cue in possible_cues("a blue vase")} == {cue.name for cue in CUES if not cue.words}
    tried = possible_cues("i'm sorry, but i can't help with that")
    assert [cue for cue in CUES if cue in tried] == list(tried)
    assert {"declines", "sorry"} <= {cue.name for cue in tried}
