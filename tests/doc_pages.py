"""The documentation as tests see it: its code blocks, each with the mark that stands in a comment above it.

`run`, `run: slow`, `run: packaged` and `run: packaged, slow` are carried out in a folder that holds the page's
`file: NAME` blocks; `parsed: WHY` is only held against the command line. A command's comment may say `exits 3`.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One line of a shell block."""

    words: tuple[str, ...]
    exits: int


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found["language"], found["mark"] or "", found["text"])
        for found in _BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> list[Command]:
    commands: list[Command] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        exits = re.search(r"#.*\bexits (\d)", line)
        parts: list[list[str]] = [[]]
        for word in shlex.split(line, comments=True):
            parts.append([]) if word in ("&&", "|", ";", "&") else parts[-1].append(word)
        commands += [Command(tuple(words), int(exits[1]) if exits else 0) for words in parts if words]
    return commands


def write_files(page: Path, folder: Path) -> None:
    """Write the blocks that a page calls files."""
    for block in blocks_of(page):
        if block.mark.startswith("file: "):
            (folder / block.mark.removeprefix("file: ")).write_text(block.text, encoding="utf-8")


def shell_blocks(mark: str = "") -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page) if block.language == "bash" and mark in block.mark]
