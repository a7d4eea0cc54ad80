"""The factors of a grid as text: their names, their levels, and where the averages lie."""

from collections.abc import Sequence
from pathlib import Path

from tamperdose.report.text import printable, shorten
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.marginals import MARGINAL_COLUMNS, MARGINALS

NAMES = {
    "model": "model",
    "defence": "defence",
    "lora_rank": "LoRA rank",
    "n_examples": "training examples",
    "learning_rate": "learning rate",
    "poison_ratio": "poison ratio",
    "seed": "seed",
    "data_order": "data order",
}
"""What a factor is called in text."""
_SHOWN_LEVELS = 6


def read_marginals(folder: Path, judge: str) -> list[Row]:
    """The averages of a run over its grid by one judge; none where no factor has several levels.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / MARGINALS
    rows = read_rows(path, MARGINAL_COLUMNS) if path.is_file() else []
    return [row for row in rows if row["judge"] == judge]


def marginal_lines(folder: Path, judge: str) -> list[str]:
    """Name the factors, their levels and the file; then those whose levels differ in something else as well.

    Raises:
        DataError: As `read_marginals`.
    """
    rows = read_marginals(folder, judge)
    if not rows:
        return []
    names = {str(row["factor"]): str(row["differs_in"]) for row in rows}
    listed = "; ".join(f"{factor_name(name)} {_levels_text(rows, name)}" for name in names)
    confounded = [
        f"  levels of {factor_name(name)} differ in {other_names(differs)} too: their difference may be that one's"
        for name, differs in names.items()
        if differs
    ]
    return [f"by grid factor, averaged over the others: {listed}: {folder / MARGINALS}", *confounded]


def factor_name(factor: str) -> str:
    """What a factor is called in text; one that is not known stays as it is written."""
    return NAMES.get(factor, printable(factor))


def other_names(differs_in: str) -> str:
    """The settings in a cell of `differs_in`, in words.

    >>> other_names("lora_rank defence"), other_names("combinations")
    ('LoRA rank, defence', 'combinations of the other settings')
    """
    if differs_in == "combinations":
        return "combinations of the other settings"
    return ", ".join(factor_name(name) for name in differs_in.split())


def show_level(text: str) -> str:
    """A level as people write it: `1` for `1.0`; everything but numbers with a point or an exponent stays as it is.

    >>> show_level("1.0"), show_level("1e-05"), show_level("1234567"), show_level("e5-base")
    ('1', '1e-05', '1234567', 'e5-base')
    """
    try:
        number = float(text)
    except ValueError:
        return shorten(printable(text), 40)
    return text if text.lstrip("-").isdigit() else f"{number:g}"


def levels_of(rows: Sequence[Row], factor: str) -> list[str]:
    """The levels of a factor, in the order of the file."""
    return list(dict.fromkeys(str(row["factor_level"]) for row in rows if row["factor"] == factor))


def _levels_text(rows: Sequence[Row], factor: str) -> str:
    levels = levels_of(rows, factor)
    shown = ", ".join(show_level(level) for level in levels[:_SHOWN_LEVELS])
    return f"({shown}{', ...' if len(levels) > _SHOWN_LEVELS else ''})"
