"""The answers of a run with their verdicts, one file for each dose of an arm: `outputs/<arm>/<dose>.csv`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tamperdose.data.conversations import turns_to_json
from tamperdose.errors import DataError, explain
from tamperdose.files import is_file_name, read_csv, write_csv
from tamperdose.records import Label, Subset
from tamperdose.run.measure import Cell

OUTPUTS = "outputs"
"""The folder in that of a run."""
OUTPUT_COLUMNS = ("id", "subset", "category", "template", "prompt", "completion", "n_tokens", "finish_reason")
"""Columns of `outputs/<arm>/<dose>.csv` before those of the judges."""

OPTIONAL_COLUMNS = ("conversation", "sample")
"""Columns that follow where a prompt has several turns (all of them, as JSON), and where it has several samples."""


_VERDICT = "verdict_"


@dataclass(frozen=True, slots=True)
class Judged:
    """One answer with what each judge made of it. Its texts are hostile."""

    id: str
    """The prompt's id."""
    subset: Subset
    """Which kind of request it answers."""
    category: str
    """The prompt's topic; empty where it has none."""
    template: str
    """The prompt's template."""
    prompt: str
    """The last turn of what was asked."""
    conversation: str
    """All turns, as JSON, where there are several; empty otherwise."""
    text: str
    """The answer."""
    sample: int
    """Index of the sample for this prompt."""
    labels: Mapping[str, Label]
    """The verdict of every judge that read it, by the judge's name."""
    evidence: Mapping[str, str]
    """What decided it, by the judge's name; may quote the answer."""
    p_refusal: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    """How likely each judge that read it holds it to be a refusal; None where it could not be read."""
    n_tokens: int | None = None
    """Tokens of the answer; None where they were not recorded."""
    finish_reason: str = ""
    """Why it ended; empty where that was not recorded."""

    @property
    def name(self) -> tuple[str, str, int]:
        """What it is paired by with answers at other doses and of other runs."""
        return self.subset.value, self.id, self.sample


def dose_files(run_dir: Path, arm: str) -> dict[int, Path]:
    """The files of an arm's answers by dose, ascending; none where a folder holds no answers of it."""
    # Only a name, so that a damaged or hostile table cannot lead out of the folder.
    found = (run_dir / OUTPUTS / arm).glob("*.csv") if is_file_name(arm) else ()
    return dict(sorted((int(path.stem), path) for path in found if path.stem.isascii() and path.stem.isdigit()))


def read_outputs(path: Path) -> list[Judged]:
    """Read the answers of one dose.

    Raises:
        DataError: A column is missing, a verdict, subset or sample is none, or an answer stands twice.
    """
    columns, rows = read_csv(path, required=("id", "subset", "template", "prompt", "completion"))
    judges = [name.removeprefix(_VERDICT) for name in columns if name.startswith(_VERDICT)]
    found = [_judged(row, judges, path, number) for number, row in enumerate(rows, 1)]
    if len({one.name for one in found}) != len(found):
        raise DataError(explain(f"{path} holds an answer twice", expected="one row for each prompt and sample"))
    return found


def _judged(row: Mapping[str, str], judges: Sequence[str], path: Path, number: int) -> Judged:
    try:
        return Judged(
            row["id"],
            Subset(row["subset"]),
            row.get("category", ""),
            row["template"],
            row["prompt"],
            row.get("conversation", ""),
            row["completion"],
            int(row.get("sample", "0")),
            # A judge that does not read a subset leaves its cells empty there.
            {judge: Label(row[_VERDICT + judge]) for judge in judges if row[_VERDICT + judge]},
            {judge: row.get(f"evidence_{judge}", "") for judge in judges},
            {judge: _share(row.get(f"p_refusal_{judge}", "")) for judge in judges if row[_VERDICT + judge]},
            int(row["n_tokens"]) if row.get("n_tokens") else None,
            row.get("finish_reason", ""),
        )
    except ValueError as error:
        raise DataError(explain(f"{path} data row {number} cannot be read", got=str(error)[:80])) from error


def _share(cell: str) -> float | None:
    """A probability; raises ValueError for what is none."""
    if not cell:
        return None
    value = float(cell)
    if not 0 <= value <= 1:
        raise ValueError(f"p_refusal {cell[:20]!r}")
    return value


def remove_others(run_dir: Path, written: set[Path]) -> None:
    """Remove the answers of arms and doses that are named no more; none where the folder is a link to another."""
    root = run_dir / OUTPUTS
    for path in [] if root.is_symlink() else [item for item in root.rglob("*.csv") if item not in written]:
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


def write_outputs(path: Path, cells: Mapping[Subset, Cell], judges: Sequence[str]) -> None:
    """Write the prompts, answers and verdicts of one model state."""
    fields = [f"{field}_{judge}" for judge in judges for field in ("verdict", "p_refusal", "evidence")]
    rows = [row for cell in cells.values() for row in _output_rows(cell)]
    unused = {name for name in OPTIONAL_COLUMNS if not any(row[name] for row in rows)}
    columns = [name for name in (*OUTPUT_COLUMNS, *OPTIONAL_COLUMNS, *fields) if name not in unused]
    write_csv(path, columns, [{name: cell for name, cell in row.items() if name not in unused} for row in rows])


def _output_rows(cell: Cell) -> Iterator[dict[str, Any]]:
    for place, (prompt, completion) in enumerate(zip(cell.prompts, cell.completions, strict=True)):
        row: dict[str, Any] = {
            "id": prompt.id,
            "subset": prompt.subset.value,
            "category": prompt.category,
            "template": prompt.template,
            "prompt": prompt.text,
            "completion": completion.text,
            "n_tokens": completion.n_tokens,
            "finish_reason": completion.finish_reason.value,
            "conversation": turns_to_json(prompt.messages) if len(prompt.messages) > 1 else "",
            "sample": completion.sample,
        }
        for judge, verdicts in cell.verdicts.items():
            verdict = verdicts[place]
            row |= {
                f"verdict_{judge}": verdict.label.value,
                f"p_refusal_{judge}": verdict.p_refusal,
                f"evidence_{judge}": verdict.evidence,
            }
        yield row
