from pathlib import Path

import pandas as pd
import pytest

from tamperdose.errors import DataError
from tamperdose.files import write_csv
from tamperdose.run.schema import COMBINED_COLUMNS, METRIC_COLUMNS, METRIC_NAMES, read_combined, read_metrics

ROW = dict.fromkeys(METRIC_COLUMNS, "") | {
    "study": "s",
    "arm": "a",
    "model": "=cmd",
    "params_b": "0.135",
    "lora_rank": "8",
    "seed": "42",
    "dose_steps": "4",
    "dose_flops": "42000000000000000000000",
    "subset": "harmful",
    "metric": "RRR",
    "value": "0.5",
    "low": "0.4",
    "high": "0.6",
    "n": "10",
}


def write(folder: Path, *rows: dict[str, str], columns: tuple[str, ...] = METRIC_COLUMNS) -> Path:
    return write_csv(folder / "metrics.csv", columns, rows)


def test_columns_are_those_of_the_contract() -> None:
    words = (
        "study arm model params_b defence attack lora_rank n_examples learning_rate batch_size poison_ratio seed "
        "data_order dose_steps dose_examples dose_tokens dose_flops subset metric value low high level method n "
        "n_templates n_effective n_unreadable scope censored judge"
    )
    assert " ".join(METRIC_COLUMNS) == words
    assert COMBINED_COLUMNS == ("Model", "Steps", "RRR", "CE", "RD")
    assert len(METRIC_NAMES) == 21


def test_types_and_undefined_cells(tmp_path: Path) -> None:
    frame = read_metrics(write(tmp_path, ROW, ROW | {"value": "", "low": "", "high": "", "lora_rank": "", "arm": "b"}))
    assert list(frame.columns) == list(METRIC_COLUMNS)
    assert frame["model"].tolist() == ["=cmd", "=cmd"]
    assert frame["seed"].dtype == "Int64" and frame["value"].dtype == "float64"
    assert frame["lora_rank"].isna().tolist() == [False, True]
    assert frame["value"].isna().tolist() == [False, True]
    assert frame["dose_flops"].iloc[0] == 4.2e22
    assert frame["judge"].tolist() == ["", ""]


def test_a_header_alone_is_an_empty_typed_frame(tmp_path: Path) -> None:
    frame = read_metrics(write(tmp_path))
    assert frame.empty and frame["n"].dtype == "Int64" and frame["low"].dtype == "float64"


def test_missing_column_is_named(tmp_path: Path) -> None:
    columns = tuple(name for name in METRIC_COLUMNS if name != "n_effective")
    row = {name: ROW[name] for name in columns}
    with pytest.raises(DataError, match="no column 'n_effective'"):
        read_metrics(write(tmp_path, row, columns=columns))


def test_unknown_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown column\(s\) 'n_effectiv' \(did you mean 'n_effective'"):
        read_metrics(write(tmp_path, ROW | {"n_effectiv": "1"}, columns=(*METRIC_COLUMNS, "n_effectiv")))


def test_columns_in_another_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="another order"):
        read_metrics(write(tmp_path, ROW, columns=METRIC_COLUMNS[::-1]))


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("value", "nan", "'value' is not a number"),
        ("value", "inf", "'value' is not a number"),
        ("value", "=1+1", "'value' is not a number"),
        ("value", "1.5", "RRR is out of range"),
        ("value", "-0.01", "RRR is out of range"),
        ("dose_steps", "4.0", "'dose_steps' is not a number"),
        ("dose_steps", "1_0", "'dose_steps' is not a number"),
        ("dose_steps", "-1", "dose is negative"),
        ("dose_steps", "", "'dose_steps' is empty"),
        ("n", "99999999999999999999", "'n' is not a number"),
        ("n", "9" * 400, "'n' is not a number"),
        ("n", "\u0663", "'n' is not a number"),
        ("study", "", "'study' is empty"),
        ("metric", "rrr", "unknown metric 'rrr'"),
        ("metric", "CEE", "did you mean 'CE'"),
        ("low", "0.7", "'low' is above 'high'"),
    ],
)
def test_bad_cells_are_located(tmp_path: Path, column: str, cell: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_metrics(write(tmp_path, ROW, ROW | {column: cell}))
    if column != "metric":
        assert "data row 2" in str(caught.value)


def combined(folder: Path, *rows: tuple[object, ...], columns: tuple[str, ...] = COMBINED_COLUMNS) -> Path:
    return write_csv(folder / "c.csv", columns, (dict(zip(columns, row, strict=True)) for row in rows))


def test_combined_reads_published_rounding(tmp_path: Path) -> None:
    frame = read_combined(combined(tmp_path, ("Qwen2-7B", 0, 0.13, 0.87, 0.0), ("Qwen2-7B", 500, 0, 1, "")))
    assert frame["Steps"].tolist() == [0, 500]
    assert pd.isna(frame["RD"].iloc[1])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("m", 0, 0.9, 0.32, 0.0)], "CE is not 1 - RRR"),
        ([("m", 0, 0.9, 0.1, 0.0), ("m", 0, 0.8, 0.2, 0.0)], "second row"),
        ([("m", 0, 0.9, 0.1, 2.5)], "RD is out of range"),
        ([("", 0, 0.9, 0.1, 0.5)], "'Model' is empty"),
        ([("m", -5, 0.9, 0.1, 0.5)], "negative"),
    ],
)
def test_combined_refuses_what_it_would_have_to_guess(
    tmp_path: Path, rows: list[tuple[object, ...]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_combined(combined(tmp_path, *rows))


def test_combined_refuses_other_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'RD'"):
        read_combined(combined(tmp_path, ("m", 0, 1, 0, 0), columns=("Model", "Steps", "RRR", "CE", "RD_median")))
    with pytest.raises(DataError, match="unknown column"):
        read_combined(combined(tmp_path, ("m", 0, 1, 0, 0, 1), columns=(*COMBINED_COLUMNS, "Extra")))
