"""What `metrics.csv` and the combined results file look like, and the one strict way to read each.

A reader never guesses: a column that is missing, unknown or out of place, a word where a number belongs,
and a value outside its metric's range are errors. Text is only ever text: `=cmd` in a cell stays those four letters.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pandas as pd

from tamperdose import files
from tamperdose.errors import DataError, explain, nearest
from tamperdose.records import ESTIMATE_COLUMNS

METRIC_COLUMNS = (
    "study",
    "arm",
    "model",
    "params_b",
    "defence",
    "attack",
    "lora_rank",
    "n_examples",
    "learning_rate",
    "batch_size",
    "poison_ratio",
    "seed",
    "data_order",
    "dose_steps",
    "dose_examples",
    "dose_tokens",
    "dose_flops",
    "subset",
    "metric",
    *ESTIMATE_COLUMNS,
    "judge",
)
"""The columns of `metrics.csv`, in their order. One row is one metric of one cell, by one judge."""

METRIC_RANGES: dict[str, tuple[float, float]] = {
    "RRR": (0.0, 1.0),
    "CE": (0.0, 1.0),
    "compliance_rate": (0.0, 1.0),
    "degenerate_rate": (0.0, 1.0),
    "RD": (0.0, 2.0),
    "RD_mean": (0.0, 2.0),
    "RD_iqr": (0.0, 2.0),
    "RD_stripped": (0.0, 2.0),
    "RD_floor": (0.0, 2.0),
    "refusal_retention": (0.0, 1.0),
    "over_refusal_rate": (0.0, 1.0),
    "judge_entropy": (0.0, math.log(2)),
    "exact_answer_rate": (0.0, 1.0),
    "any_compliance_rate": (0.0, 1.0),
    "all_refusal_rate": (0.0, 1.0),
    "perplexity": (1.0, math.inf),
    "utility_accuracy": (0.0, 1.0),
    "kl_to_base": (0.0, math.inf),
    "any_of_k_compliance_rate": (0.0, 1.0),
    "RRR_unreadable_worst": (0.0, 1.0),
    "RRR_unreadable_best": (0.0, 1.0),
}
"""The values each metric can take."""

METRIC_NAMES = tuple(METRIC_RANGES)
"""The metrics `metrics.csv` may hold."""

COMBINED_COLUMNS = ("Model", "Steps", "RRR", "CE", "RD")
"""The columns of `combined_results_standardized.csv`, in their order. One row is one arm at one dose."""

INTEGER_COLUMNS = (
    "lora_rank",
    "n_examples",
    "batch_size",
    "seed",
    "dose_steps",
    "dose_examples",
    "dose_tokens",
    "n",
    "n_templates",
    "n_unreadable",
)
"""Whole numbers. `dose_flops` is not among them: it can pass what 64 bits hold."""

FLOAT_COLUMNS = (
    "params_b",
    "learning_rate",
    "poison_ratio",
    "dose_flops",
    "value",
    "low",
    "high",
    "level",
    "n_effective",
)
"""Real numbers; an empty cell is undefined and read as NaN."""

REQUIRED_CELLS = ("study", "arm", "model", "dose_steps", "subset", "metric")
"""Columns in which no cell may be empty."""

# Rounding in a cosine or an entropy may step over the edge of the range by this much.
_RANGE_SLACK = 1e-6

# RRR and CE printed with two decimals, as published tables do, sum to 1 only this closely.
_PRINTED_SUM_SLACK = 0.0101

_Rows = Sequence[dict[str, str]]


def require_metrics(path: Path) -> None:
    """Require a run's `metrics.csv`, which is written last: without it the run is not finished.

    Raises:
        DataError: No such file.
    """
    if not path.exists():
        raise DataError(
            explain(
                f"no such file: {path}",
                expected="the folder of a finished run, or one that `tamperdose score` wrote",
                remedy="let the run finish: the same command goes on where it stopped",
            )
        )


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a run's `metrics.csv` into a frame with the columns `METRIC_COLUMNS`.

    Text columns hold strings (empty stays empty), `INTEGER_COLUMNS` are nullable Int64 (`dose_steps` has no gaps),
    `FLOAT_COLUMNS` are float64 with NaN for an empty cell. A file with a header alone gives a frame without rows.

    Raises:
        DataError: The columns are not exactly those, a number cannot be read, a metric is unknown, a value is
            outside its metric's range, or an interval is upside down.
    """
    require_metrics(path)
    columns, rows = files.read_csv(path, required=METRIC_COLUMNS)
    _check_columns(path, columns, METRIC_COLUMNS)
    _check_filled(path, rows, REQUIRED_CELLS)
    frame = pd.DataFrame({name: _typed(path, rows, name) for name in METRIC_COLUMNS})
    _check_metrics(path, frame)
    return frame


def read_combined(path: Path) -> pd.DataFrame:
    """Read `combined_results_standardized.csv`: `Model` text, `Steps` Int64, the metrics float64 (NaN if empty).

    Raises:
        DataError: The columns are not exactly `COMBINED_COLUMNS`, a cell is not what its column holds, RRR and CE
            are not each other's complement, or a model has two rows for one dose.
    """
    columns, rows = files.read_csv(path, required=COMBINED_COLUMNS)
    _check_columns(path, columns, COMBINED_COLUMNS)
    _check_filled(path, rows, ("Model", "Steps"))
    frame = pd.DataFrame(
        {
            "Model": _text(rows, "Model"),
            "Steps": _integers(path, rows, "Steps"),
            **{name: _floats(path, rows, name) for name in ("RRR", "CE", "RD")},
        }
    )
    _check_doses(path, column(frame, "Steps"))
    for name in ("RRR", "CE", "RD"):
        _check_range(path, column(frame, name), name)
    _check_complement(path, frame)
    _check_repeats(path, frame)
    return frame


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """Return one column; the column's name is known to be unique, which pandas' types do not say."""
    return cast(pd.Series, frame[name])


def keep_rows(frame: pd.DataFrame, mask: pd.Series) -> pd.DataFrame:
    """Return the rows where `mask` is true, with their index."""
    return cast(pd.DataFrame, frame.loc[mask.astype(bool)])


def _typed(path: Path, rows: _Rows, name: str) -> pd.Series:
    if name in INTEGER_COLUMNS:
        return _integers(path, rows, name)
    if name in FLOAT_COLUMNS:
        return _floats(path, rows, name)
    return _text(rows, name)


def _text(rows: _Rows, name: str) -> pd.Series:
    return pd.Series([row[name] for row in rows], dtype="str", name=name)


def _integers(path: Path, rows: _Rows, name: str) -> pd.Series:
    values = [_number(path, k, name, row[name], int) for k, row in enumerate(rows, 1)]
    return pd.Series(pd.array(values, dtype="Int64"), name=name)


def _floats(path: Path, rows: _Rows, name: str) -> pd.Series:
    values = [_number(path, k, name, row[name], float) for k, row in enumerate(rows, 1)]
    return pd.Series([math.nan if value is None else value for value in values], dtype="float64", name=name)


def _number(path: Path, row: int, name: str, cell: str, kind: Callable[[str], float]) -> float | None:
    if cell == "":
        return None
    try:
        value = kind(cell)
    except ValueError as error:
        raise _bad_cell(path, row, name, cell, kind) from error
    # int and float also accept `1_000`, padding and other scripts' digits; 64 bits do not hold every int.
    too_large = abs(value) >= 2**63 if kind is int else not math.isfinite(value)
    if "_" in cell or cell != cell.strip() or not cell.isascii() or too_large:
        raise _bad_cell(path, row, name, cell, kind)
    return value


def _bad_cell(path: Path, row: int, name: str, cell: str, kind: Callable[[str], float]) -> DataError:
    return DataError(
        explain(
            f"{path} data row {row}: '{name}' is not a number",
            got=repr(cell[:60]),
            expected="a whole number" if kind is int else "a finite number, or an empty cell for undefined",
        )
    )


def _check_columns(path: Path, columns: Sequence[str], expected: Sequence[str]) -> None:
    unknown = [name for name in columns if name not in expected]
    if unknown:
        names = ", ".join(f"'{name}'{nearest(name, expected)}" for name in unknown)
        raise DataError(
            explain(f"{path} has unknown column(s) {names}", expected=f"exactly the columns {', '.join(expected)}")
        )
    if list(columns) != list(expected):
        raise DataError(
            explain(
                f"{path} has its columns in another order",
                got=", ".join(columns),
                expected=", ".join(expected),
                remedy="write the columns in the expected order",
            )
        )


def _check_filled(path: Path, rows: _Rows, names: Sequence[str]) -> None:
    for number, row in enumerate(rows, 1):
        empty = [name for name in names if row[name] == ""]
        if empty:
            raise DataError(
                explain(f"{path} data row {number}: '{empty[0]}' is empty", expected="a value in every row")
            )


def _check_metrics(path: Path, frame: pd.DataFrame) -> None:
    metrics = column(frame, "metric")
    for name in metrics.unique():
        if name not in METRIC_RANGES:
            raise DataError(
                explain(
                    f"{path} has an unknown metric '{name}'{nearest(name, METRIC_NAMES)}",
                    expected=", ".join(METRIC_NAMES),
                )
            )
        _check_range(path, column(keep_rows(frame, metrics == name), "value"), name)
    _check_doses(path, column(frame, "dose_steps"))
    row = _first(column(frame, "low") > column(frame, "high"))
    if row is not None:
        raise DataError(explain(f"{path} data row {row + 1}: 'low' is above 'high'", expected="low <= high"))


def _check_range(path: Path, values: pd.Series, metric: str) -> None:
    low, high = METRIC_RANGES[metric]
    row = _first((values < low - _RANGE_SLACK) | (values > high + _RANGE_SLACK))
    if row is not None:
        raise DataError(
            explain(
                f"{path} data row {row + 1}: {metric} is out of range",
                got=f"{values.loc[row]:g}",
                expected=f"a value in [{low:g}, {high:.4g}]",
            )
        )


def _check_doses(path: Path, steps: pd.Series) -> None:
    row = _first(steps < 0)
    if row is not None:
        raise DataError(explain(f"{path} data row {row + 1}: a dose is negative", expected="steps >= 0"))


def _check_complement(path: Path, frame: pd.DataFrame) -> None:
    rrr, ce = column(frame, "RRR"), column(frame, "CE")
    row = _first((rrr + ce - 1).abs() > _PRINTED_SUM_SLACK)
    if row is not None:
        raise DataError(
            explain(
                f"{path} data row {row + 1}: CE is not 1 - RRR",
                got=f"RRR {rrr.loc[row]:g}, CE {ce.loc[row]:g}",
                expected="CE = 1 - RRR",
                remedy="CE may hold another quantity, such as an entropy: regenerate the file from the runs",
            )
        )


def _check_repeats(path: Path, frame: pd.DataFrame) -> None:
    row = _first(frame.duplicated(["Model", "Steps"]))
    if row is not None:
        raise DataError(
            explain(
                f"{path} data row {row + 1}: a second row for one model and dose",
                got=f"{column(frame, 'Model').loc[row]!r} at {column(frame, 'Steps').loc[row]} steps",
                expected="one row for each model (or arm, named in Model) and dose",
            )
        )


def _first(wrong: pd.Series) -> int | None:
    """Return the index of the first true row; the frame's index counts data rows from 0."""
    rows = wrong.index[wrong.to_numpy(dtype=bool)]
    return int(rows[0]) if len(rows) else None
