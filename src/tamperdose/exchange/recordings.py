"""Recorded answers from whatever file holds them: CSV, Parquet, an Inspect log."""

from pathlib import Path

from tamperdose.errors import DataError, explain
from tamperdose.exchange.inspect_logs import SUFFIX
from tamperdose.exchange.parquet_answers import PARQUET, read_parquet
from tamperdose.run.score import Recording, read_recording


def read_answers(path: Path, *, response_column: str | None = None) -> Recording:
    """Read recorded answers by the file's name: `.eval` an Inspect log, `.parquet` a table, else a CSV.

    Args:
        path: The file.
        response_column: The column of the answers in a table, `response` by default.

    Raises:
        DataError: What the file holds cannot be taken for recorded answers, or a column is named for a log.
        ExtraError: The extra that reads it is not installed.
    """
    kind = path.suffix.lower()
    if kind == SUFFIX:
        from tamperdose.exchange.inspect_answers import read_log

        if response_column is not None:
            raise DataError(explain(f"{path} is an Inspect log", got=f"the column '{response_column}'", remedy="none"))
        return read_log(path)
    read = read_parquet if kind == PARQUET else read_recording
    return read(path, response_column=response_column or "response")
