"""What a page is made of: sections of tables, lines, figures and code. Every text in them may come from outside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first cell of a row names it."""

    kind: ClassVar[str] = "table"
    caption: str
    """What it shows."""
    headings: tuple[str, ...]
    """One a column."""
    rows: tuple[tuple[str, ...], ...]
    """Cells as texts, as many as there are headings."""
    words: frozenset[int] = frozenset({0})
    """The columns that hold words, set to the left; numbers stand to the right."""
    folded: bool = False
    """Whether it is shown only on demand."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Statements, one an item."""

    kind: ClassVar[str] = "lines"
    items: tuple[str, ...]
    """Each a sentence or a few."""


@dataclass(frozen=True, slots=True)
class Code:
    """A text that is shown as it stands, such as commands."""

    kind: ClassVar[str] = "code"
    caption: str
    """What it is."""
    text: str
    """The text."""
    folded: bool = False
    """Whether it is shown only on demand."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure inside the page."""

    kind: ClassVar[str] = "picture"
    source: str
    """A `data:` URL."""
    alt: str
    """What it shows, for whoever cannot see it."""
    caption: str
    """What it is called."""
    width: int
    """Its width on a wide screen, in pixels."""
    height: int
    """Its height there."""
    folded: bool = False
    """Whether it is shown only on demand."""


@dataclass(frozen=True, slots=True)
class Group:
    """Tables that are shown together, on demand."""

    kind: ClassVar[str] = "group"
    caption: str
    """What they are."""
    tables: tuple[Table, ...]
    """The tables."""
    folded: bool = True
    """Always."""


Block = Table | Lines | Code | Picture | Group
FEW_ARMS = 3
"""Up to so many tables of arms are open; beyond, only the first arm's."""


def grouped(tables: Sequence[Table]) -> list[Block]:
    """The tables of several arms: a few as they are, of many the first alone and the others on demand."""
    if len(tables) <= FEW_ARMS:
        return list(tables)
    return [tables[0], Group(f"The other {len(tables) - 1} arms", tuple(tables[1:]))]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page with a title of its own."""

    anchor: str
    """Its id."""
    title: str
    """Its title."""
    intro: str
    """What the reader is looking at, in a sentence or two."""
    blocks: tuple[Block, ...]
    """What stands in it; a section without is left out."""
