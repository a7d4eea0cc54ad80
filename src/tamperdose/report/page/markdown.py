"""The same results as a section for a system card, in Markdown."""

from pathlib import Path


def write_markdown(run_dir: Path, out: Path | None = None, *, force: bool = False) -> Path:
    raise NotImplementedError
