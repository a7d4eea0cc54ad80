"""Text from outside, made safe to print: on a terminal, in Markdown and in a figure."""

import unicodedata

UNDEFINED = "\N{EN DASH}"
"""How a table shows a number that is not defined."""
WITHHELD = "withheld"
"""Stands where a number is not supported."""
MARK = "!"
"""Stands beside such a number where it is printed all the same."""


def printable(text: str) -> str:
    r"""Return a text as one line: control, bidirectional and unassigned characters and runs of spaces become a space.

    A model's name may hold escape sequences that repaint a terminal, or marks that reorder the line.

    >>> printable("a\x1b[31mb\nc\u202ed")
    'a [31mb c d'
    """
    kept = "".join(" " if unicodedata.category(character)[0] in "CZ" else character for character in text)
    return " ".join(kept.split())


def revealed(text: str) -> str:
    r"""Return a text with its lines, and an escape in place of every character that acts instead of being seen.

    Control, bidirectional, private and unassigned characters and line and paragraph separators; tabs become spaces.

    >>> revealed("a\x1b[31mb\n\u202ec\td")
    'a\\x1b[31mb\n\\u202ec d'
    """
    lines = text.replace("\r\n", "\n").replace("\t", " ")
    return "".join(c if c == "\n" or not _acts(c) else _escape(c) for c in lines)


def _acts(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] == "C" or category in ("Zl", "Zp")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def shorten(text: str, width: int) -> str:
    """Cut the middle out of a text longer than `width` (at least 3): names often differ at their ends.

    >>> shorten("organisation/some-model-7b-instruct", 17)
    'organisa…instruct'
    """
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}\N{HORIZONTAL ELLIPSIS}{text[-tail:]}"


def markdown_cell(text: str) -> str:
    r"""Escape a text for a Markdown table: no markup, no HTML, no cell border of its own.

    >>> markdown_cell("a|b <i> $x_1$")
    'a\\|b &lt;i&gt; \\$x\\_1\\$'
    """
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + character if character in "\\`*_{}[]|$~#!" else character for character in escaped)
