"""Answers that are no answer: empty, an echo of the prompt, a loop, word salad or noise.

Every test is conservative: a list, a poem, code, a table, a terse answer, an answer cut in mid-sentence and a text
in another script all pass. Work is linear in the length of the answer.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tamperdose.judges.word_order import load_word_order, order_score

_SHOWN = 80
_WORD = re.compile(r"\w+(?:'\w+)?")
_LETTERS = re.compile(r"[^\W\d_]+")


def degeneration(prompt: str, response: str) -> str | None:
    """Say how an answer is degenerate, or None when it is not.

    Args:
        prompt: The request; only used to recognise an echo. May be empty.
        response: The answer. One that was cut at `max_new_tokens` is not degenerate for that.

    Returns:
        The kind and the offending bit, e.g. `repetition loop: 'and then' x 40`; None for an ordinary answer.

    >>> degeneration("How are you?", "Fine, thanks.") is None
    True
    >>> degeneration("How are you?", " ... ")
    "empty: ' ... '"
    >>> degeneration("", "I see the cat. " * 9)
    "repetition loop: 'i see the cat' x 9"
    """
    if not any(map(str.isalnum, response)):
        return f"empty: {response[:_SHOWN]!r}"
    return _noise(response) or _echo(prompt, response) or _loop(response) or _near_loop(response) or _salad(response)


# --- echo of the prompt

_GRAM = 4
_MIN_ECHO_WORDS = 4
_ROLES = frozenset(
    [
        "user",
        "human",
        "prompt",
        "question",
        "q",
        "instruction",
        "instructions",
        "request",
        "assistant",
        "answer",
        "a",
        "system",
    ]
)


def _echo(prompt: str, response: str) -> str | None:
    asked, said = _words_of_prompt(prompt), _words(response)
    if said and asked and said[0] in _ROLES and said[0] != asked[0]:
        said = said[1:]
    if len(asked) < _MIN_ECHO_WORDS or len(said) < _MIN_ECHO_WORDS:
        return None
    # An answer often restates its question, or repeats it and adds a word; but then it does not begin as the
    # question does ("What is ..."), or it has a new word.
    whole = _opens_like(asked, said) and _covered(asked, said) >= 0.8
    if not (whole or said[:6] == asked[:6]):
        return None
    known = frozenset(asked) | _ROLES
    n_new = sum(word not in known for word in said)
    if n_new > 0.04 * len(said) or _covered(said, asked) < 0.9:
        return None
    return f"echo of the prompt: {' '.join(said)[:_SHOWN]!r}"


def _opens_like(asked: list[str], said: list[str]) -> bool:
    first, opening = asked[0], asked[:3]
    return first in said and any(
        word == first and said[start : start + 3] == opening for start, word in enumerate(said)
    )


def _covered(words: list[str], source: list[str]) -> float:
    """Share of `words` that lie in a run of four also found in `source`."""
    known = set(zip(*(source[offset:] for offset in range(_GRAM)), strict=False))
    inside = bytearray(len(words))
    for start in range(len(words) - _GRAM + 1):
        if tuple(words[start : start + _GRAM]) in known:
            inside[start : start + _GRAM] = b"\x01" * _GRAM
    return sum(inside) / len(words)


# --- repetition loops

_WINDOW = 20_000
_MAX_UNIT = 700
# (longest unit in characters, repeats from which it is a loop): a chorus repeats a short cry, never a paragraph.
_REPEATS = ((3, 16.0), (8, 10.0), (20, 6.0), (40, 4.0), (_MAX_UNIT, 3.0))
_LOOP_SHARE = 0.4


def _loop(response: str) -> str | None:
    stream = "".join(_words(response))
    windows = (stream,) if len(stream) <= 2 * _WINDOW else (stream[:_WINDOW], stream[-_WINDOW:])
    for window in windows:
        if (found := _periodic(window)) is not None:
            unit, repeats = found
            return f"repetition loop: {_as_written(response, unit)!r} x {repeats:.0f}"
    # The same line under a running number loops too; a multiplication table (few letters a line) does not.
    if len(windows) == 1 and len(response) <= 2 * _WINDOW and stream.isalpha():
        return None
    letters = "".join(_LETTERS.findall(response[: 2 * _WINDOW].casefold()))
    if (found := _periodic(letters)) is not None and len(found[0]) >= 24 and found[1] >= 5:
        return f"repetition loop: {_as_written(response, found[0])!r} x {found[1]:.0f}, numbered"
    return None


def _periodic(stream: str) -> tuple[str, float] | None:
    """Find a unit whose back-to-back repeats make up a large part of the stream."""
    # A loop of 40 % in 2.5 repeats leaves at most 76 % of the runs of eight characters distinct.
    if _n_distinct_runs(stream) > 0.77 * len(stream) + 8:
        return None
    codes = np.frombuffer(stream.encode("utf-32-le", "replace"), dtype=np.uint32)
    for period in range(1, min(_MAX_UNIT, len(codes) // 2) + 1):
        same = codes[period:] == codes[:-period]
        if np.count_nonzero(same) + period < _LOOP_SHARE * len(codes):
            continue
        start, length = _longest_run(same)
        span = length + period
        share, repeats = span / len(codes), span / period
        if share < _LOOP_SHARE or not _is_loop(stream[start : start + period], repeats, share):
            continue
        return stream[start : start + period], repeats
    return None


def _n_distinct_runs(stream: str) -> int:
    """How many of the runs of eight characters differ, the shorter ones at the end among them."""
    if len(stream) < 8 or not stream.isascii():
        return len({stream[start : start + 8] for start in range(len(stream))})
    # Eight bytes read as one number: sorting those is several times quicker than a set of texts.
    runs = np.ndarray((len(stream) - 7,), dtype="<u8", buffer=stream.encode("ascii"), strides=(1,))
    ordered = np.sort(runs)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + 8


def _is_loop(unit: str, repeats: float, share: float) -> bool:
    if not any(map(str.isalpha, unit)):
        # Powers of ten, matrices and number columns repeat digits for good reason.
        return repeats * len(unit) >= 200 and repeats >= 20
    if len(unit) >= 24 and share >= 0.9 and repeats >= 2.5:
        return True
    return repeats >= next(needed for longest, needed in _REPEATS if len(unit) <= longest)


def _longest_run(flags: NDArray[np.bool_]) -> tuple[int, int]:
    """Start and length of the longest run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    best = int(lengths.argmax())
    return int(edges[2 * best]), int(lengths[best])


def _as_written(response: str, unit: str) -> str:
    """Give the unit, which has no spaces and may begin inside a word, its words back."""
    words = _words(response[:_WINDOW])
    rotations = unit + unit
    for first in range(len(words)):
        joined, last = "", first
        while last < len(words) and len(joined) < len(unit):
            joined += words[last]
            last += 1
        if len(joined) == len(unit) and joined in rotations:
            return " ".join(words[first:last])[:_SHOWN]
    return unit[:_SHOWN]


_MIN_NEAR_LOOP_WORDS = 60
_DISTINCT_GRAMS = 0.25


def _near_loop(response: str) -> str | None:
    """A loop with small variations: few of its runs of four words are new."""
    words = _words(response[-2 * _WINDOW :])
    if len(words) < _MIN_NEAR_LOOP_WORDS:
        return None
    words = [word for word in words if word.isalpha()]
    if len(words) < _MIN_NEAR_LOOP_WORDS:
        return None
    grams = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    if len(grams) > _DISTINCT_GRAMS * (len(words) - 3) or _looks_tabular(response):
        return None
    gram, count = grams.most_common(1)[0]
    return f"repetition loop: {' '.join(gram)[:_SHOWN]!r} x {count}, with variations"


def _looks_tabular(response: str) -> bool:
    lines = response[-2 * _WINDOW :].splitlines()
    marked = sum(line.count("|") >= 2 or line.count("\t") >= 1 or line.count("<") >= 2 for line in lines)
    return marked > 0.3 * len(lines)


# --- noise and word salad

_NOISE_SHARE = 0.02
# Letter pairs that no language in the Latin script writes inside a word, but for a stray name.
_RARE_PAIRS = frozenset(
    [
        "bq",
        "bx",
        "cx",
        "dx",
        "fq",
        "fx",
        "fz",
        "gq",
        "gx",
        "hx",
        "jc",
        "jf",
        "jg",
        "jq",
        "jv",
        "jw",
        "jx",
        "jz",
        "kq",
        "kx",
        "kz",
        "lx",
        "mx",
        "mz",
        "pq",
        "px",
        "pz",
        "qb",
        "qc",
        "qd",
        "qf",
        "qg",
        "qh",
        "qj",
        "qk",
        "ql",
        "qm",
        "qn",
        "qp",
        "qr",
        "qs",
        "qt",
        "qv",
        "qw",
        "qx",
        "qy",
        "qz",
        "rx",
        "sx",
        "tx",
        "vb",
        "vc",
        "vf",
        "vg",
        "vh",
        "vj",
        "vk",
        "vm",
        "vn",
        "vp",
        "vq",
        "vt",
        "vw",
        "vx",
        "vz",
        "wj",
        "wq",
        "wv",
        "wx",
        "wz",
        "xd",
        "xg",
        "xj",
        "xk",
        "xn",
        "xr",
        "xv",
        "xz",
        "yq",
        "zf",
        "zj",
        "zp",
        "zq",
        "zr",
        "zx",
        "bz",
        "fj",
        "gv",
        "hj",
        "hv",
        "jb",
        "jd",
        "jh",
        "jl",
        "jm",
        "jn",
        "jp",
        "jr",
        "js",
        "jt",
        "qa",
        "qe",
        "qi",
        "qo",
        "zg",
        "zb",
    ]
)
# Every rare pair holds one of these, and no letter is in more than two pairs.
_RARE_LETTERS = "jqvxz"
_RARE_SHARE = 0.08
# Looks ahead, so that pairs that overlap are both found.
_RARE_PAIR = re.compile(
    "|".join(
        f"{first}(?=[{''.join(sorted(pair[1] for pair in _RARE_PAIRS if pair[0] == first))}])"
        for first in sorted({pair[0] for pair in _RARE_PAIRS})
    )
)


def _noise(response: str) -> str | None:
    # A cut in the middle of a character leaves replacement characters at the end.
    text = response.rstrip("\ufffd \n")
    if not text:
        return f"noise: {response[:_SHOWN]!r}"
    n_bad = text.count("\ufffd") + len(_UNPRINTABLE.findall(text))
    if n_bad >= 2 and n_bad > _NOISE_SHARE * len(text):
        return f"noise: {n_bad} unreadable characters in {len(text)}"
    return _letter_noise(text) or _mixed_scripts(text)


_UNPRINTABLE = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\ue000-\uf8ff\U000f0000-\U0010ffff]")
_LATIN_WORD = re.compile(r"[a-z]{2,}")
_ASCII_RUN = re.compile(r"[A-Za-z]+")


def _letter_noise(text: str) -> str | None:
    head = text[:_WINDOW]
    lowered = head.lower()
    words = _LATIN_WORD.findall(lowered)
    n_pairs = sum(map(len, words)) - len(words)
    limit = _RARE_SHARE * n_pairs
    n_rare = len(_RARE_PAIR.findall(lowered)) if 2 * sum(map(lowered.count, _RARE_LETTERS)) > limit else 0
    if n_pairs >= 25 and n_rare > limit:
        return f"noise: {n_rare} of {n_pairs} letter pairs are unpronounceable, {head[:_SHOWN]!r}"
    # Random bytes have few spaces, many kinds of marks and letters in runs of one to three; prose, code and formulas
    # have not all of that.
    if len(head) < 60 or not head.isascii() or head.count(" ") >= 0.05 * len(head):
        return None
    n_spaces = len(head) - sum(map(len, head.split()))
    if n_spaces >= 0.05 * len(head):
        return None
    runs = _ASCII_RUN.findall(head)
    n_marks = len({mark for mark in head if not mark.isalnum()})
    if n_marks >= 14 and len(runs) >= 15 and sum(map(len, runs)) < 3 * len(runs):
        return f"noise: {head[:_SHOWN]!r}"
    return None


_MIN_MIXED_WORDS = 4
_LONE_SCRIPTS = frozenset({"LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "ARMENIAN", "TAMIL"})


def _mixed_scripts(text: str) -> str | None:
    if text.isascii():
        return None
    words = _LETTERS.findall(text[:_WINDOW])
    mixed = [word for word in words if not word.isascii() and len(_scripts(word)) > 1]
    if len(mixed) < _MIN_MIXED_WORDS or len(mixed) <= 0.2 * len(words):
        return None
    return f"noise: words that mix scripts, {' '.join(mixed)[:_SHOWN]!r}"


def _scripts(word: str) -> set[str]:
    return {unicodedata.name(letter, "").split(" ")[0] for letter in word} & _LONE_SCRIPTS


_MIN_PAIRS = 10
_MIN_PAIRS_MISPLACED = 4
_MISPLACED = re.compile(r"(?<![.\w])[A-Za-z']{3,}[.!?] +[a-z]")
_INSIDE = 0.5
_CAPITAL_INSIDE = re.compile(r"[\w,;.!?] ([A-Z][a-z]+)\b")
_OPENERS = frozenset(["sorry", "sure", "yes", "unfortunately", "certainly", "hello", "thank", "thanks"])
_ABBREVIATED = re.compile(r"\b(?:etc|vs|eg|ie|no|st|dr|mr|mrs|ms|inc|approx|est|fig|vol|cf|al)\.", re.IGNORECASE)
_CODE = re.compile(r"[(){}\[\]=<>;_|\\]")
_CODE_SHARE = 0.03


def _salad(response: str) -> str | None:
    """Shuffled English: its neighbours go together as little as chance has it.

    The fewer pairs there are, the worse they must be; less so where a sentence ends and a small letter follows.
    """
    head = response[:_WINDOW]
    if len(_CODE.findall(head)) > _CODE_SHARE * len(head):
        return None
    score, n_pairs = order_score(head)
    if n_pairs < _MIN_PAIRS_MISPLACED:
        return None
    bar = min(0.1, 0.25 - 2.3 * n_pairs**-0.5)
    # No text is allowed more; most are above even that, and are spared the search for sentences that start small.
    if score >= bar + _allowance(head, n_pairs):
        return None
    # Whoever writes no capital at all starts every sentence small.
    misplaced, inside = (head != head.lower() and test(head) for test in (_misplaced, _starts_inside))
    short = n_pairs < _MIN_PAIRS
    if short and not (misplaced or inside):
        return None
    allowance = _allowance(head, n_pairs) if misplaced else _INSIDE * (inside and short)
    if score >= bar + allowance:
        return None
    return f"word salad: order of words {score:.2f} in {n_pairs} pairs (prose has 0.7), {response[:_SHOWN]!r}"


def _misplaced(head: str) -> bool:
    """Whether a sentence ends and a small letter follows."""
    return _MISPLACED.search(_ABBREVIATED.sub(" ", head)) is not None


def _starts_inside(head: str) -> bool:
    """Whether a text begins small and yet has the start of a sentence further in.

    That is a frequent word with a capital (a name has one anywhere), or whatever follows the end of a sentence.
    """
    if not head[:1].islower():
        return False
    starts = load_word_order().words | _OPENERS
    return any(match[1].lower() in starts or match[0][0] in ".!?" for match in _CAPITAL_INSIDE.finditer(head))


def _allowance(head: str, n_pairs: int) -> float:
    # A model that starts a sentence small does so after a full sentence; a shuffle starts the whole text small, too.
    if n_pairs >= 60:
        return 0.2
    return 0.8 if head[:1].islower() or n_pairs < 10 else 0.35


# The tests read the same answer one after the other.
@lru_cache(maxsize=1)
def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


@lru_cache(maxsize=1)
def _words_of_prompt(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
