"""Find evaluation prompts that an attack or a defence has trained on, exactly or nearly."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tamperdose.data.conversations import user_turns
from tamperdose.data.prompts import infer_template
from tamperdose.data.sources import excerpt
from tamperdose.errors import DataError, explain
from tamperdose.records import Prompt

NEAR_DUPLICATE = 0.8
"""Jaccard similarity of word 5-grams from which two texts count as near duplicates."""

N_WORDS = 5
"""Words in a gram. A shorter text is a single gram of all its words."""

Gram = tuple[str, ...]
"""Consecutive words."""

_SHOWN = 3
_KEPT_CHARACTERS = 20_000
# A pattern that begins with one character is searched for several times quicker than one that begins with a repeat.
_DIGITS = re.compile(r"\d\d*")


class OverlapKind(StrEnum):
    """How a training text matches a prompt, from the strictest to the loosest."""

    EXACT = "exact"
    """Equal character by character."""
    NORMALISED = "normalised"
    """Equal after NFKC, case folding, and folding of punctuation and white space."""
    TEMPLATE = "template"
    """The same inferred template: they differ in a number, a quotation or a slot."""
    NEAR_DUPLICATE = "near_duplicate"
    """Jaccard similarity of word 5-grams of at least `NEAR_DUPLICATE`."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """One evaluation prompt that training has seen."""

    prompt_id: str
    """The prompt's id."""
    kind: OverlapKind
    """The strictest way in which a training text matches it."""
    training_text: str
    """The first training text that matches it in this way; of near duplicates any one, not always the closest."""
    similarity: float
    """Jaccard similarity for near duplicates, 1 for the other kinds. In [NEAR_DUPLICATE, 1]."""


def find_overlap(train: Sequence[str], evaluation: Sequence[Prompt]) -> list[Overlap]:
    """List the evaluation prompts that training has seen, at most once each, in evaluation order.

    Compared are the training texts (user turns: :func:`tamperdose.data.examples.training_texts`) and each prompt's user
    turns, of several only those of five words or more, if there are any: "Go on." gives nothing away. Every kind is
    looked up in an index, so time grows with the texts, not with their pairs.
    With nothing on either side the list is empty.

    Returns:
        One :class:`Overlap` per prompt that is matched, of the strictest kind that matches.

    Source: near duplicates after Lee et al. 2022, "Deduplicating Training Data Makes Language Models Better"
    (word 5-grams, Jaccard 0.8); there by MinHash, here exact, by the bounds of Xiao et al. 2011, "Efficient
    Similarity Joins for Near-Duplicate Detection" (doi:10.1145/2000824.2000825).

    >>> from tamperdose.records import Message, Subset
    >>> prompt = Prompt("p1", (Message("user", "Forge 3 stamps, please!"),), Subset.HARMFUL, "t1")
    >>> find_overlap(["forge 5 stamps, please!"], [prompt])[0].kind
    <OverlapKind.TEMPLATE: 'template'>
    """
    exact = _first_by(train, str)
    normalised = _first_by(train, fold_text)
    template = _first_by(train, infer_template)
    near = _index(train)
    found: list[Overlap] = []
    for prompt in evaluation:
        turns = _compared_turns(prompt)
        matches = (
            (kind, text)
            for kind, texts, key in (
                (OverlapKind.EXACT, exact, str),
                (OverlapKind.NORMALISED, normalised, fold_text),
                (OverlapKind.TEMPLATE, template, infer_template),
            )
            for turn in turns
            if (text := texts.get(key(turn))) is not None
        )
        first = next(matches, None)
        if first is not None:
            found.append(Overlap(prompt.id, *first, 1.0))
        else:
            found.extend([overlap for turn in turns for overlap in _near_duplicate(prompt.id, turn, near)][:1])
    return found


def _compared_turns(prompt: Prompt) -> list[str]:
    turns = user_turns(prompt.messages)
    if len(turns) == 1:
        return turns
    return [turn for turn in turns if len(fold_text(turn).split()) >= N_WORDS] or [prompt.text]


def require_disjoint(train: Sequence[str], evaluation: Sequence[Prompt], *, source: str = "") -> None:
    """Refuse training data, named `source`, that holds evaluation prompts.

    Raises:
        DataError: At least one prompt overlaps; the message counts them by kind and shows the first few.
    """
    found = find_overlap(train, evaluation)
    if not found:
        return
    texts = {prompt.id: prompt.text for prompt in evaluation}
    kinds = Counter(overlap.kind for overlap in found)
    shown = "".join(
        f"\n            {overlap.prompt_id} ({overlap.kind}, {overlap.similarity:.2f}): "
        f"{excerpt(texts[overlap.prompt_id])} and {excerpt(overlap.training_text)}"
        for overlap in found[:_SHOWN]
    )
    of = f" of {source}" if source else ""
    more = f"\n            and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    raise DataError(
        explain(
            f"{len(found)} of {len(evaluation)} evaluation prompts are also in the training data{of}",
            got=", ".join(f"{kinds[kind]} {kind}" for kind in OverlapKind if kind in kinds) + shown + more,
            expected="none: a model tested on what it was trained on shows what it memorised",
            remedy="remove these rows from the training data or name other data, or evaluate on other prompts",
        )
    )


def fold_text(text: str) -> str:
    """Fold what hides that two texts are the same: NFKC, case, punctuation, invisible characters, white space.

    >>> fold_text("Isn\u2019t  it  \u2018FINE\u2019?!")
    'isnt it fine'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().translate(_FOLDED).split())


def mask_digits(text: str) -> str:
    """Put one mark in place of every run of digits: numbered copies of a text become the same.

    >>> mask_digits("part 12 of 3")
    'part # of #'
    """
    return _DIGITS.sub("#", text)


class _Folded(dict[int, str | None]):
    """What becomes of each character, found when it is first met; None where nothing does.

    Not an empty text: with None str.translate keeps to its quick way through ASCII.
    """

    def __missing__(self, code: int) -> str | None:
        folded = _fold(chr(code)) or None
        # A text that goes through all of Unicode must not fill the memory.
        if len(self) < _KEPT_CHARACTERS:
            self[code] = folded
        return folded


def _fold(character: str) -> str:
    category = unicodedata.category(character)
    # Letters, digits, combining marks and pictures carry meaning; format characters (zero-width) only hide it.
    if category[0] in "LNM" or category == "So":
        return character
    return "" if category == "Cf" or character in "'\u2019" else " "


_FOLDED = _Folded()


def _first_by(texts: Sequence[str], key: Callable[[str], str]) -> dict[str, str]:
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(key(text), text)
    # Texts of punctuation alone all normalise to nothing, which makes them no duplicates of one another.
    first.pop("", None)
    return first


@dataclass(frozen=True, slots=True)
class _Index:
    """Training texts by their rarest grams: gram -> (number of grams, gram's position) -> texts."""

    texts: list[str]
    grams: list[frozenset[Gram]]
    n_texts: Counter[Gram]
    postings: dict[Gram, dict[tuple[int, int], list[int]]]


def _index(texts: Sequence[str]) -> _Index:
    unique: dict[frozenset[Gram], str] = {}
    for text in texts:
        unique.setdefault(_grams(text), text)
    unique.pop(frozenset(), None)
    index = _Index(list(unique.values()), list(unique), Counter(), {})
    index.n_texts.update(gram for grams in index.grams for gram in grams)
    for number, grams in enumerate(index.grams):
        for position, gram in _prefix(grams, index):
            groups = index.postings.setdefault(gram, {})
            groups.setdefault((len(grams), position), []).append(number)
    return index


def _grams(text: str) -> frozenset[Gram]:
    words = fold_text(text).split()
    if len(words) < N_WORDS:
        return frozenset({tuple(words)} if words else ())
    return frozenset(tuple(words[start : start + N_WORDS]) for start in range(len(words) - N_WORDS + 1))


def _prefix(grams: frozenset[Gram], index: _Index) -> list[tuple[int, Gram]]:
    # Two sets of Jaccard similarity t share one of the first n - ceil(t n) + 1 grams of either, in any common order.
    # Rarest first makes that shared gram a rare one.
    n_first = len(grams) - math.ceil(NEAR_DUPLICATE * len(grams) - 1e-9) + 1
    ordered = sorted(grams, key=lambda gram: (index.n_texts[gram], gram))
    return list(enumerate(ordered[:n_first]))


def _near_duplicate(prompt_id: str, turn: str, index: _Index) -> list[Overlap]:
    grams = _grams(turn)
    for number in _candidates(grams, index):
        similarity = len(grams & index.grams[number]) / len(grams | index.grams[number])
        if similarity >= NEAR_DUPLICATE:
            return [Overlap(prompt_id, OverlapKind.NEAR_DUPLICATE, index.texts[number], similarity)]
    return []


def _candidates(grams: frozenset[Gram], index: _Index) -> Iterator[int]:
    seen: set[int] = set()
    for position, gram in _prefix(grams, index):
        for (n_grams, other), numbers in index.postings.get(gram, {}).items():
            needed = NEAR_DUPLICATE / (1 + NEAR_DUPLICATE) * (len(grams) + n_grams) - 1e-9
            # If this is the first gram the two share, they share at most the shorter rest: whole groups that cannot
            # reach the threshold are skipped at once, so a frame common to all texts costs nothing.
            if min(len(grams) - position, n_grams - other) < needed:
                continue
            for number in numbers:
                if number not in seen:
                    seen.add(number)
                    yield number
