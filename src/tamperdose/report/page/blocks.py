"""What a page is made of: sections of tables, lines, figures and code. Every text in them may come from outside."""

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


Block = Table | Lines | Code | Picture


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
