"""Recorded answers from a Parquet table: columns `prompt` and `response`, as TamperBench's inference tables have them.

Needs the extra `parquet`. A table of TamperBench holds prompts as the model got them: where its configuration wraps
them in a chat template, so do these.
"""

from pathlib import Path
from typing import Any

from tamperdose.errors import DataError, explain, nearest
from tamperdose.extras import require
from tamperdose.run.score import NAME_COLUMN, Recording, recording_of

PARQUET = ".parquet"
"""What the name of such a table ends with."""
MAX_BYTES = 4 << 30
"""Bytes that the columns read may unpack to."""
OPTIONAL = ("id", "category", "template", "sample")
"""What is read beside the two, where it is there."""


def read_parquet(path: Path, *, response_column: str = "response") -> Recording:
    """Read recorded answers from a Parquet table, as `run.score.read_recording` reads them from a CSV.

    Raises:
        DataError: Not a Parquet file, a column missing or of another type, an empty cell, or as `read_recording`.
        ExtraError: The extra `parquet` is not installed.
    """
    require("a Parquet table", "pyarrow", extra="parquet")
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            columns = _columns(path, file.schema_arrow.names, response_column)
            _require_size(path, file.metadata, columns)
            table = file.read(columns=columns)
        cells = {name: _texts(path, name, table.column(name)) for name in columns}
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            explain(f"{path} cannot be read as Parquet", got=str(error).partition("\n")[0][:200])
        ) from error
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    return recording_of(path, columns, rows, response_column=response_column)


def _columns(path: Path, names: list[str], response_column: str) -> list[str]:
    for wanted in ("prompt", response_column):
        if names.count(wanted) != 1:
            shown = ", ".join(f"'{name[:40]}'" for name in names[:12])
            raise DataError(
                explain(
                    f"{path} has no column '{wanted}'{nearest(wanted, names)}",
                    got=f"the columns {shown}",
                    expected="one column 'prompt' and one of the answers",
                    remedy=NAME_COLUMN,
                )
            )
    return ["prompt", response_column, *(name for name in OPTIONAL if names.count(name) == 1)]


def _require_size(path: Path, metadata: Any, columns: list[str]) -> None:
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    if size > MAX_BYTES:
        raise DataError(explain(f"{path} unpacks to too much", got=f"{size} bytes", expected=f"at most {MAX_BYTES}"))


def _texts(path: Path, name: str, column: Any) -> list[str]:
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    whole = name in ("id", "sample") and pa.types.is_integer(kind)
    if not is_text and not whole:
        raise DataError(explain(f"{path}: '{name}' is not a column of texts", got=str(kind)[:80], expected="string"))
    if column.null_count:
        raise DataError(
            explain(
                f"{path}: '{name}' has empty cells",
                got=f"{column.null_count} of {len(column)} are null",
                expected="a text in every row; an empty answer is an empty text",
            )
        )
    return [str(value).replace("\x00", "\u2400") for value in column.to_pylist()]
