"""Whether the words of an English text stand in an order that English has.

Words are reduced to classes: 150 frequent words are themselves, others are known by their ending. Of each pair of
classes `word_order_v1.json` says how much more often it stands side by side than chance would have it. Sentences have
many such pairs and few of the others; the same words shuffled have as few as chance gives.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from tamperdose.errors import JudgeError, explain
from tamperdose.files import read_text

TABLE = Path(__file__).with_name("word_order_v1.json")
"""The shipped figures, written by scripts/fit_word_order.py."""
ENDINGS = (
    "ing",
    "ed",
    "ly",
    "tion",
    "ness",
    "ment",
    "ity",
    "ous",
    "ive",
    "able",
    "al",
    "er",
    "est",
    "es",
    "s",
    "e",
    "y",
)
LIMIT = 3.0
"""A log-odds of a pair lies in [-LIMIT, LIMIT]."""
STEP = 0.25
"""Log-odds are stored in steps of this, as letters from `a`."""

_TOKEN = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*|\d+|[^\w\s]|\n")
# The same for lower-case ASCII, which is read in half the time.
_ASCII_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)*|[0-9]+|[^\w\s]|\n")
_READ_CHARACTERS = 20_000
_MIN_ENGLISH = 0.3
_STEMS = {"can't": "can", "won't": "will", "shan't": "shall"}
_ENDINGS = {"s": "is", "m": "am", "re": "are", "ll": "will", "ve": "have", "d": "would"}
_SUBJECTS = frozenset(["it", "that", "he", "she", "there", "here", "what", "who", "this", "where", "how", "let"])


@dataclass(frozen=True, slots=True)
class WordOrder:
    """The figures of `word_order_v1.json`."""

    words: frozenset[str]
    """Words that are a class of their own."""
    log_odds: dict[tuple[str, str], float]
    """For a pair of classes ln(observed / expected by chance), both smoothed, in [-3, 3]; 0 for a pair not in it."""


def class_of(word: str, words: frozenset[str]) -> str:
    """The class of a lower-case token: itself if it is among `words`, else `#` for digits, else its ending.

    >>> class_of("the", frozenset({"the"})), class_of("running", frozenset()), class_of("7", frozenset())
    ('the', '-ing', '#')
    """
    if word in words:
        return word
    return "#" if word[0].isdigit() else _ending_of(word[-_SHOWS_ENDING:])


# The longest ending and the two letters more that a word must have: all that an ending depends on.
_SHOWS_ENDING = max(map(len, ENDINGS)) + 3


@lru_cache(maxsize=1 << 16)
def _ending_of(tail: str) -> str:
    return next((f"-{end}" for end in ENDINGS if len(tail) > len(end) + 2 and tail.endswith(end)), "-")


def tokens(text: str) -> list[str]:
    """Lower-case words, numbers, marks and line ends of the first 20,000 characters, contractions written out.

    The second part of a contraction keeps its apostrophe: it makes no pair with the first, wherever the word stands.

    >>> tokens("It\u2019s 42, ok")
    ['it', "'is", '42', ',', 'ok']
    """
    written = text[:_READ_CHARACTERS].lower().replace("\u2019", "'")
    found: list[str] = (_ASCII_TOKEN if written.isascii() else _TOKEN).findall(written)
    if "'" not in written:
        return found
    return [part for token in found for part in (_expanded(token) if "'" in token[1:] else (token,))]


def _expanded(token: str) -> tuple[str, ...]:
    if len(token) > 3 and token.endswith("n't"):
        return (_STEMS.get(token, token[:-3]), "'not")
    stem, _, ending = token.partition("'")
    # The 's of a noun is a genitive, which parts nothing.
    if ending == "s" and stem not in _SUBJECTS:
        return (stem,)
    return (stem, f"'{_ENDINGS[ending]}") if ending in _ENDINGS else (stem,)


def class_pairs(words: Sequence[str], known: frozenset[str]) -> list[tuple[str, str]]:
    """Classes of neighbouring words, once for each pair of words; a mark or a line end between two words parts them.

    >>> class_pairs(["go", ",", "the", "cat"], frozenset({"the"}))
    [('the', '-')]
    """
    neighbours = dict.fromkeys(
        (left.lstrip("'"), right) for left, right in pairwise(words) if left[-1].isalnum() and right[0].isalnum()
    )
    return [(class_of(left, known), class_of(right, known)) for left, right in neighbours]


def order_score(text: str) -> tuple[float, int]:
    """How well the neighbours of a text go together.

    Returns:
        The mean log-odds of its pairs of classes, in [-3, 3] (English prose lies about 0.7, shuffled words about
        -0.4), and the number of pairs. (0, 0) where there are none, or where fewer than 30 % of its words are among
        the frequent English ones, so that nothing can be said.

    >>> order_score("the of and to is the in of a the was to")[0] < 0
    True
    >>> order_score("This is one of the best of them.")[0] > 0
    True
    """
    table = load_word_order()
    found = tokens(text)
    words = [token for token in found if token[0].isalpha()]
    if sum(map(table.words.__contains__, words)) < _MIN_ENGLISH * max(len(words), 1):
        return 0.0, 0
    pairs = class_pairs(found, table.words)
    if not pairs:
        return 0.0, 0
    return math.fsum(table.log_odds.get(pair, 0.0) for pair in pairs) / len(pairs), len(pairs)


@cache
def load_word_order(path: Path = TABLE) -> WordOrder:
    """Read the figures.

    Raises:
        JudgeError: The file is damaged.
        DataError: It cannot be read.
    """
    try:
        value: dict[str, Any] = json.loads(read_text(path))
        classes: list[str] = value["classes"]
        log_odds = {
            (left, right): (ord(letter) - ord("a")) * STEP - LIMIT
            for left, row in zip(classes, value["rows"], strict=True)
            for right, letter in zip(classes, row, strict=True)
        }
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        remedy = "install tamperdose again, or fit it anew with scripts/fit_word_order.py"
        raise JudgeError(explain(f"{path} is not a table of word order", got=repr(error), remedy=remedy)) from error
    words = frozenset(name for name in classes if name != "#" and not name.startswith("-"))
    return WordOrder(words, {pair: weight for pair, weight in log_odds.items() if weight})
