import random
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamperdose.data.overlap import NEAR_DUPLICATE, Overlap, OverlapKind, find_overlap, fold_text, require_disjoint
from tamperdose.errors import DataError
from tamperdose.records import Message, Prompt, Subset


def _prompts(texts: list[str]) -> list[Prompt]:
    return [
        Prompt(f"p{number}", (Message("user", text),), Subset.HARMFUL, f"t{number}")
        for number, text in enumerate(texts)
    ]


def _kind(train: str, evaluation: str) -> OverlapKind | None:
    found = find_overlap([train], _prompts([evaluation]))
    return found[0].kind if found else None


LONG = "please write a long and friendly letter to the editor of the weekly paper about the price of plums"


@pytest.mark.parametrize(
    ("train", "evaluation", "kind"),
    [
        ("Write a letter", "Write a letter", OverlapKind.EXACT),
        ("Write a letter", "write  a letter!", OverlapKind.NORMALISED),
        ("Write a letter", "\uff37\uff52\uff49\uff54\uff45 a\u00a0letter", OverlapKind.NORMALISED),
        ("Write a letter", "Wri\u200bte a letter", OverlapKind.NORMALISED),
        ("Don't write", "Don’t write", OverlapKind.NORMALISED),
        ("Write letter #1", "Write letter #2", OverlapKind.TEMPLATE),
        ('Say "one" and go', 'Say "another" and go', OverlapKind.TEMPLATE),
        (LONG, LONG.replace("plums", "pears"), OverlapKind.NEAR_DUPLICATE),
        (LONG, LONG.replace("editor", "owner"), None),
        ("Write a letter", "Write a poem", None),
        ("", "Write a poem", None),
        ("???", "!!!", None),
        ("👍", "👎", None),
        ("हिंदी में", "हदी म", None),
    ],
)
def test_each_kind_of_overlap(train: str, evaluation: str, kind: OverlapKind | None) -> None:
    assert _kind(train, evaluation) == kind


def test_the_strictest_kind_and_the_first_text_are_reported() -> None:
    train = ["other", "write 5 LETTERS", "Write 5 letters", "Write 6 letters"]
    assert find_overlap(train, _prompts(["Write 6 letters", "write 5 letters", "unseen"])) == [
        Overlap("p0", OverlapKind.EXACT, "Write 6 letters", 1.0),
        Overlap("p1", OverlapKind.NORMALISED, "write 5 LETTERS", 1.0),
    ]


def test_nothing_overlaps_with_nothing() -> None:
    assert find_overlap([], _prompts(["one"])) == find_overlap(["one"], []) == find_overlap([], []) == []


def test_only_the_last_user_turn_is_compared() -> None:
    turns = (Message("user", "Say hello"), Message("assistant", "Hello"), Message("user", "Say goodbye"))
    prompt = Prompt("p0", turns, Subset.HARMFUL, "t0")
    assert find_overlap(["Say hello"], [prompt]) == []
    assert find_overlap(["Say goodbye"], [prompt])[0].kind is OverlapKind.EXACT


def _grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))}


WORDS = st.lists(st.sampled_from("abc"), min_size=1, max_size=24).map(" ".join)


@settings(max_examples=300)
@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=6))
def test_near_duplicates_are_those_of_an_exhaustive_comparison(train: list[str], evaluation: list[str]) -> None:
    found = {overlap.prompt_id: overlap for overlap in find_overlap(train, _prompts(evaluation))}
    for prompt in _prompts(evaluation):
        mine = _grams(prompt.text)
        jaccards = {text: len(mine & _grams(text)) / len(mine | _grams(text)) for text in train}
        assert (prompt.id in found) == any(value >= NEAR_DUPLICATE for value in jaccards.values())
        if prompt.id in found and found[prompt.id].kind is OverlapKind.NEAR_DUPLICATE:
            assert found[prompt.id].similarity == pytest.approx(jaccards[found[prompt.id].training_text])


def test_a_threshold_met_exactly_counts() -> None:
    words = [f"w{letter}" for letter in "abcdefghijklmn"]
    # 9 grams each side, 8 shared of 10: exactly 0.8.
    (overlap,) = find_overlap([" ".join(words[:13])], _prompts([" ".join([*words[:12], "other"])]))
    assert overlap.similarity == pytest.approx(0.8)
    assert overlap.kind is OverlapKind.NEAR_DUPLICATE
    assert find_overlap([" ".join(words[:12])], _prompts([" ".join([*words[:11], "other"])])) == []


@pytest.mark.parametrize("n_frame", [0, 12], ids=["unrelated texts", "one frame in every text"])
def test_ten_thousand_against_ten_thousand_takes_seconds(n_frame: int) -> None:
    rng = random.Random(0)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=5)) for _ in range(3000)]
    frame = vocabulary[:n_frame]

    def texts() -> list[str]:
        return [" ".join(frame + rng.choices(vocabulary, k=15 - n_frame)) for _ in range(10_000)]

    train, evaluation = texts(), _prompts(texts())
    start = time.perf_counter()
    find_overlap(train, evaluation)
    assert time.perf_counter() - start < 20


def test_disjoint_data_pass() -> None:
    require_disjoint(["one thing"], _prompts(["another thing"]))


def test_overlapping_data_are_refused_with_a_count_and_the_first_few() -> None:
    texts = [f"prompt {letter}" for letter in "abcdef"]
    with pytest.raises(DataError) as caught:
        require_disjoint([*texts[:4], "Prompt E!"], _prompts(texts))
    message = str(caught.value)
    assert "5 of 6 evaluation prompts" in message
    assert "4 exact, 1 normalised" in message
    assert "p0 (exact, 1.00): 'prompt a' and 'prompt a'" in message
    assert "p2" in message
    assert "p3" not in message
    assert "and 2 more" in message


@given(st.text() | st.text(alphabet=st.characters(max_codepoint=127)))
def test_a_text_is_folded_character_by_character(text: str) -> None:
    def kept(character: str) -> str:
        category = unicodedata.category(character)
        if category[0] in "LNM" or category == "So":
            return character
        return "" if category == "Cf" or character in "'\u2019" else " "

    folded = unicodedata.normalize("NFKC", text).casefold()
    assert fold_text(text) == " ".join("".join(map(kept, folded)).split())
