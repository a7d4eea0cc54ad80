"""The prompts of a run with what became of each, small enough to be carried by a page, redacted unless asked otherwise.

Answers to harmful prompts are shown as verdict, length and digest; of refusals the first words stand beside them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tamperdose.records import Label, Subset
from tamperdose.report.page.facts import Facts
from tamperdose.report.text import printable, revealed
from tamperdose.run.outputs import Judged, dose_files, read_outputs

MAX_ANSWERS = 80_000
"""Answers that a page carries; the arms beyond are left out, and it says so."""
TEXT_BUDGET = 2_500_000
"""Bytes that all texts of answers together may take; above, each is cut shorter, and the page says at how much."""
CUTS = (4000, 2000, 1000, 500, 250, 120, 60)
"""Characters that a text is cut at, the first that keeps to the budget."""
FIRST_WORDS = 8
"""Words of a refusal that are shown where texts are not."""
FIRST_CHARACTERS = 60
"""Characters that these words may take."""
DIGEST_DIGITS = 12
"""Hexadecimal digits of an answer's SHA-256 that are shown."""

_LETTERS = {Label.REFUSAL: "r", Label.COMPLIANCE: "c", Label.DEGENERATE: "d", Label.UNREADABLE: "u"}
_NO_VERDICT = "-"
_PROMPT_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Browsed:
    """What the page's browser shows."""

    data: Mapping[str, Any]
    """Plain values, to be written as JSON."""
    notes: tuple[str, ...]
    """What is left out or cut, in sentences."""
    n_answers: int
    """Answers in it; 0 where a folder has none."""


@dataclass(slots=True)
class _Pool:
    """Texts that are alike are carried once."""

    places: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        return self.places.setdefault(text, len(self.places))


def browse(facts: Facts) -> Browsed:
    """Collect the answers of a run's arms by dose.

    Raises:
        DataError: A file of outputs is damaged.
    """
    cells, left_out = _read(facts)
    texts = [text for _, _, rows in cells for row in rows if (text := _text(facts, row)) is not None]
    cut = _cut(texts)
    prompts, words, cats = dict[tuple[str, str], dict[str, Any]](), _Pool(), _Pool()
    judges = list(dict.fromkeys(judge for _, _, rows in cells for row in rows for judge in row.labels))
    judges.sort(key=lambda name: name != facts.judge)
    carried = [
        {"a": arm, "d": dose, **_columns(facts, rows, (prompts, words, cats), judges, cut)} for arm, dose, rows in cells
    ]
    data = {
        "judges": [printable(judge) for judge in judges],
        "arms": [{"n": facts.labels[arm.name], "u": facts.unit(arm)} for arm in facts.arms],
        "prompts": list(prompts.values()),
        "categories": list(cats.places),
        "texts": list(words.places),
        "cells": carried,
        "shown": facts.show_text,
    }
    n_answers = sum(len(rows) for _, _, rows in cells)
    return Browsed(data, tuple(_notes(facts, texts, cut, left_out)), n_answers)


def _read(facts: Facts) -> tuple[list[tuple[int, int, list[Judged]]], int]:
    """(place of the arm, dose, answers) of every cell that fits, and how many arms do not."""
    cells: list[tuple[int, int, list[Judged]]] = []
    n_answers = 0
    for place, arm in enumerate(facts.arms):
        mine = [(place, dose, read_outputs(path)) for dose, path in dose_files(facts.folder, arm.name).items()]
        n_answers += sum(len(rows) for _, _, rows in mine)
        if n_answers > MAX_ANSWERS and cells:
            return cells, len(facts.arms) - place
        cells += mine
    return cells, 0


def _columns(
    facts: Facts,
    rows: Sequence[Judged],
    pools: tuple[dict[tuple[str, str], dict[str, Any]], _Pool, _Pool],
    judges: Sequence[str],
    cut: int,
) -> dict[str, Any]:
    """One cell, column by column: prompts, verdicts a judge, lengths, digests, places of texts."""
    prompts, words, cats = pools
    places = {key: number for number, key in enumerate(prompts)}
    asked: list[int] = []
    for row in rows:
        key = row.subset.value, row.id
        if key not in places:
            places[key] = len(places)
            prompts[key] = {
                "i": printable(row.id),
                "h": int(row.subset is Subset.HARMFUL),
                "c": cats.place(printable(row.category)),
                "t": _shortened(revealed(row.prompt), _PROMPT_CHARACTERS),
            }
        asked.append(places[key])
    found: dict[str, Any] = {
        "p": asked,
        "v": [
            "".join(_LETTERS[row.labels[judge]] if judge in row.labels else _NO_VERDICT for row in rows)
            for judge in judges
        ],
        "l": [len(row.text) for row in rows],
        "x": "".join(_digest(row.text) for row in rows),
        "w": [_word_place(facts, row, words, cut) for row in rows],
    }
    if any(row.sample for row in rows):
        found["s"] = [row.sample for row in rows]
    if facts.show_text:
        found["e"] = [words.place(_shortened(printable(_evidence(facts, row)), 200)) for row in rows]
    return found


def _word_place(facts: Facts, row: Judged, words: _Pool, cut: int) -> int:
    """The place of what is shown of an answer; -1 for nothing."""
    text = _text(facts, row)
    if text is not None:
        return words.place(_shortened(text, cut))
    return words.place(first_words(row.text)) if headline_label(facts, row) is Label.REFUSAL else -1


def _text(facts: Facts, row: Judged) -> str | None:
    """The text of an answer, made visible; None where it is not shown."""
    return revealed(row.text[: CUTS[0] + 1]) if facts.show_text or row.subset is Subset.BENIGN else None


def headline_label(facts: Facts, row: Judged) -> Label | None:
    """The headline judge's verdict; of the first judge that read a subset where that one does not."""
    return row.labels.get(facts.judge, next(iter(row.labels.values()), None))


def first_words(text: str) -> str:
    """The beginning of a refusal, on one line.

    >>> first_words("I'm not able to help with this request. It would be spam.")
    "I'm not able to help with this request. …"
    """
    words = printable(text[: 20 * FIRST_CHARACTERS]).split()
    start = " ".join(words[:FIRST_WORDS])[:FIRST_CHARACTERS]
    return start if start == printable(text[: 20 * FIRST_CHARACTERS]) else f"{start.rstrip()} …"


def _evidence(facts: Facts, row: Judged) -> str:
    return row.evidence.get(facts.judge, "")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_DIGITS]


def _shortened(text: str, cut: int) -> str:
    return text if len(text) <= cut else f"{text[:cut]}…"


def _cut(texts: Sequence[str]) -> int:
    """Where texts are cut so that all of them keep to the budget."""
    unique = [len(text.encode("utf-8", "replace")) / max(1, len(text)) for text in dict.fromkeys(texts)]
    lengths = [len(text) for text in dict.fromkeys(texts)]
    sizes = list(zip(lengths, unique, strict=True))
    fits = (cut for cut in CUTS if sum(min(length, cut) * width for length, width in sizes) <= TEXT_BUDGET)
    return next(fits, CUTS[-1])


def _notes(facts: Facts, texts: Sequence[str], cut: int, left_out: int) -> Iterator[str]:
    if any(len(text) > cut for text in texts):
        yield f"Texts of answers are cut after {cut} characters; the length and the digest are of the whole."
    if left_out:
        yield f"{left_out} of {len(facts.arms)} arms are left out: a page carries up to {MAX_ANSWERS:,} answers."
