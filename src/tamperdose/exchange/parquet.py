"""A run's tables as Parquet: the CSV files with their types, every answer, every prompt's transition.

Needs the extra `parquet`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tamperdose.errors import DataError, explain
from tamperdose.exchange.cells import Cell, list_cells, not_supported, read_source, show
from tamperdose.exchange.columns import COLUMNS, TABLES, Column, Kind, Table
from tamperdose.extras import require
from tamperdose.files import own_folder, read_csv, remove, write_atomic
from tamperdose.records import Label
from tamperdose.report.responses import responses_of
from tamperdose.run.compare_schema import Row
from tamperdose.run.outputs import Judged
from tamperdose.run.response import DOSE_RESPONSE

FOLDER = "parquet"
"""What the folder of the tables is called in a run's."""
ANSWERS, TRANSITIONS = "answers", "transitions"
"""The tables that are not among the CSV files."""

_WHY = Column(Kind.TEXT, "", "names of checks, or null", "The failed checks that leave the number without support")
_WORDS = ", ".join(f"`{label.value}`" for label in Label)
_CELL = ("study", "arm", "model", "attack", "seed", "dose_steps")
_ASKED = ("subset", "id", "sample", "category", "template")
_DETAILS = {
    "redacted": Column(Kind.FLAG, "", "true, false", "Whether `completion` and `evidence` are left out"),
    "n_characters": Column(Kind.INTEGER, "characters", ">= 0", "Length of the whole answer"),
    "sha256": Column(Kind.TEXT, "", "64 hexadecimal digits", "SHA-256 of the whole answer as UTF-8"),
    "verdict": Column(Kind.TEXT, "", _WORDS, "The judge's verdict"),
}
ANSWER_COLUMNS: dict[str, Column] = {
    **{name: COLUMNS[name] for name in (*_CELL, *_ASKED, "prompt", "conversation", "completion")},
    **{name: _DETAILS[name] for name in ("redacted", "n_characters", "sha256")},
    **{name: COLUMNS[name] for name in ("n_tokens", "finish_reason", "judge")},
    "verdict": _DETAILS["verdict"],
    **{name: COLUMNS[name] for name in ("p_refusal", "evidence")},
}
"""The columns of `answers`."""
TRANSITION_COLUMNS: dict[str, Column] = {
    **{name: COLUMNS[name] for name in (*_CELL, *_ASKED, "judge")},
    "verdict_base": Column(Kind.TEXT, "", _WORDS, "The judge's verdict at dose 0"),
    "verdict": Column(Kind.TEXT, "", _WORDS, "The judge's verdict at this dose"),
}
"""The columns of `transitions`."""

_Rows = Iterable[Mapping[str, Any]]


def write_tables(run_dir: Path, out: Path | None = None, *, show_text: bool = False) -> list[Path]:
    """Write a finished run's tables and return their paths.

    The answers to harmful prompts, and what judges quote of them, are null unless `show_text`. Numbers that the audit
    does not support are there with the names of the failed checks beside them. The same folder gives the same bytes
    each time, with the same version of pyarrow. A table is whole or not there.

    Args:
        run_dir: What `run` or `score` wrote.
        out: The folder for the tables; `parquet` in the run's by default, which then holds these tables alone.
        show_text: Include the answers to harmful prompts.

    Raises:
        DataError: No metrics, no answers, a column that is not described, or a damaged file.
        RunError: The folder cannot be written.
        ExtraError: The extra `parquet` is not installed.
    """
    require("a Parquet table", "pyarrow", extra="parquet")
    source = read_source(run_dir)
    folder = own_folder(run_dir / FOLDER) if out is None else out
    cells = list(list_cells(source))
    written: list[Path] = []
    for table in TABLES:
        path = run_dir / table.name
        if path.is_file():
            columns, rows = _read(path, table)
            if table.name == "metrics.csv":
                rows = [row | {"not_supported_because": _why_not(source, row)} for row in rows]
                columns |= {"not_supported_because": _WHY}
            elif table.name == DOSE_RESPONSE:
                rows, columns = _with_support(run_dir, source, rows), columns | {"not_supported_because": _WHY}
            written.append(_write(folder / f"{path.stem}.parquet", columns, rows))
    written.append(_write(folder / f"{ANSWERS}.parquet", ANSWER_COLUMNS, _answer_rows(cells, show_text=show_text)))
    written.append(_write(folder / f"{TRANSITIONS}.parquet", TRANSITION_COLUMNS, _transition_rows(cells)))
    if out is None:
        for path in sorted(set(folder.glob("*.parquet")) - set(written)):
            remove(path)
    return written


def _read(path: Path, table: Table) -> tuple[dict[str, Column], list[dict[str, Any]]]:
    """A CSV file's columns as the catalogue has them, and its rows with numbers as numbers."""
    names, rows = read_csv(path, required=table.columns)
    if list(names) != list(table.columns):
        raise DataError(
            explain(f"{path} has other columns", got=", ".join(names)[:300], expected=", ".join(table.columns))
        )
    columns = {name: table.column(name) for name in table.columns}
    return columns, [
        {name: _typed(path, number, name, row[name], column.kind) for name, column in columns.items()}
        for number, row in enumerate(rows, 1)
    ]


def _typed(path: Path, number: int, name: str, cell: str, kind: Kind) -> str | int | float | bool | None:
    if kind is Kind.TEXT:
        return cell
    if cell == "":
        return None
    if kind is Kind.FLAG and cell in ("True", "False"):
        return cell == "True"
    try:
        if kind is Kind.FLAG:
            raise ValueError(cell)
        return int(cell) if kind is Kind.INTEGER else float(cell)
    except ValueError as error:
        raise DataError(
            explain(f"{path} data row {number}: '{name}' cannot be read", got=repr(cell[:60]), expected=kind.value)
        ) from error


def _why_not(source: Any, row: Mapping[str, Any]) -> str | None:
    return ", ".join(not_supported(source, row["metric"], row["arm"], row["dose_steps"])) or None


def _with_support(run_dir: Path, source: Any, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `dose_response.csv`, each with what leaves it without support, by its own judge's fits."""
    found: dict[tuple[object, ...], str | None] = {}
    for judge in dict.fromkeys(row["judge"] for row in rows):
        for told in responses_of(run_dir, judge, source.audit):
            found[_key(told)] = ", ".join(told["not_supported_because"]) or None
    return [row | {"not_supported_because": found.get(_key(row))} for row in rows]


def _key(row: Row | Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("arm", "judge", "metric", "scope"))


def _answer_rows(cells: Iterable[Cell], *, show_text: bool) -> Iterator[dict[str, Any]]:
    for cell in cells:
        named = _named(cell)
        for answer in cell.answers:
            shown = show(answer, show_text=show_text)
            told = named | _asked(answer) | {"prompt": answer.prompt, "conversation": answer.conversation or None}
            told |= {"completion": shown.text, "redacted": shown.text is None}
            told |= {"n_characters": shown.n_characters, "sha256": shown.sha256}
            told |= {"n_tokens": answer.n_tokens, "finish_reason": answer.finish_reason}
            for judge, label in answer.labels.items():
                seen = {"p_refusal": answer.p_refusal.get(judge), "evidence": shown.evidence.get(judge)}
                yield told | {"judge": judge, "verdict": label.value} | seen


def _transition_rows(cells: Iterable[Cell]) -> Iterator[dict[str, Any]]:
    base: dict[str, dict[tuple[str, str, int], Judged]] = {}
    for cell in cells:
        if cell.dose == 0:
            base[cell.arm] = {answer.name: answer for answer in cell.answers}
            continue
        for answer in cell.answers:
            before = base.get(cell.arm, {}).get(answer.name)
            for judge, label in answer.labels.items():
                if before is not None and judge in before.labels:
                    told = {"judge": judge, "verdict_base": before.labels[judge].value, "verdict": label.value}
                    yield _named(cell) | _asked(answer) | told


def _named(cell: Cell) -> dict[str, Any]:
    return {name: cell.setting.get(name) for name in _CELL} | {"arm": cell.arm, "dose_steps": cell.dose}


def _asked(answer: Judged) -> dict[str, Any]:
    told = {"subset": answer.subset.value, "id": answer.id, "sample": answer.sample}
    return told | {"category": answer.category, "template": answer.template}


def _write(path: Path, columns: Mapping[str, Column], rows: _Rows) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {Kind.TEXT: pa.string(), Kind.INTEGER: pa.int64(), Kind.REAL: pa.float64(), Kind.FLAG: pa.bool_()}
    about = {name: {"unit": column.unit, "meaning": column.meaning} for name, column in columns.items()}
    schema = pa.schema([pa.field(name, kinds[column.kind], metadata=about[name]) for name, column in columns.items()])
    found = list(rows)
    try:
        arrays = [
            pa.array([row[name] for row in found], kind) for name, kind in zip(schema.names, schema.types, strict=True)
        ]
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise DataError(
            explain(f"cannot write {path}", got=str(error)[:200], expected="what docs/schema.md says")
        ) from error
    table = pa.Table.from_arrays(arrays, schema=schema)
    return write_atomic(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
