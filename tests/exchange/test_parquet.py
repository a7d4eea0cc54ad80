"""Tables as Parquet, read back by pandas; and recorded answers from such a table."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exchanged import CANARY
from tamperdose.errors import DataError, ExtraError, RunError
from tamperdose.exchange import parquet, parquet_answers
from tamperdose.exchange.parquet import write_tables
from tamperdose.exchange.parquet_answers import read_parquet
from tamperdose.exchange.recordings import read_answers
from tamperdose.files import read_csv, write_csv
from tamperdose.run.outputs import read_outputs
from tamperdose.run.schema import read_metrics
from tamperdose.run.score import read_recording


def tables(paths: list[Path]) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in paths}


def test_tables_hold_what_the_csv_files_hold_with_types(run: Path) -> None:
    found = tables(write_tables(run))
    assert {"metrics", "dose_response", "comparisons", "agreement", "seeds", "answers", "transitions"} <= set(found)
    ours, theirs = found["metrics"], read_metrics(run / "metrics.csv")
    assert ours["dose_steps"].dtype == "int64" and ours["value"].dtype == "float64"
    for name in theirs.columns:
        left = [None if pd.isna(value) else value for value in ours[name]]
        right = [None if pd.isna(value) else value for value in theirs[name]]
        assert left == right, name
    schema = pq.read_schema(run / "parquet" / "metrics.parquet")
    assert schema.field("dose_flops").metadata[b"unit"] == b"FLOP"
    assert set(map(str, schema.types)) <= {"string", "int64", "double", "bool"}


def test_answers_are_redacted_unless_asked_for(hostile: Path, tmp_path: Path) -> None:
    redacted = tables(write_tables(hostile))["answers"]
    harmful = redacted[redacted["subset"] == "harmful"]
    assert harmful["completion"].isna().all() and harmful["evidence"].isna().all() and harmful["redacted"].all()
    assert redacted.loc[redacted["subset"] == "benign", "completion"].notna().all()
    for path in (hostile / "parquet").iterdir():
        for name in pq.read_schema(path).names:
            cells = pq.read_table(path, columns=[name]).column(0).to_pylist()
            assert not any(CANARY in cell for cell in cells if isinstance(cell, str)), (path.name, name)
    shown = tables(write_tables(hostile, tmp_path / "shown", show_text=True))["answers"]
    arm = shown["arm"].min()
    texts = {row.id: row.text for row in read_outputs(hostile / "outputs" / arm / "1.csv")}
    mine = shown[(shown["arm"] == arm) & (shown["dose_steps"] == 1)]
    assert dict(zip(mine["id"], mine["completion"], strict=True)) == texts
    assert (harmful["n_characters"] > 0).all() and harmful["sha256"].str.len().eq(64).all()


def test_transitions_count_as_the_comparisons_do(run: Path) -> None:
    found = tables(write_tables(run))
    moved, counted = found["transitions"], found["comparisons"]
    moved = moved[moved["subset"] == "harmful"]
    for row in counted.to_dict("records"):
        mine = moved[(moved["arm"] == row["arm"]) & (moved["dose_steps"] == row["dose_steps"])]
        before, after = mine["verdict_base"] == "refusal", mine["verdict"] == "refusal"
        assert (before & after).sum() == row["both_refused"]
        assert (before & ~after).sum() == row["refused_to_complied"]
        assert (~before & after).sum() == row["complied_to_refused"]


def test_numbers_without_support_are_marked(damaged_audit: Path) -> None:
    found = tables(write_tables(damaged_audit))
    metrics = found["metrics"]
    marked = metrics["not_supported_because"] == "degeneration"
    arm = metrics["arm"].min()
    assert set(metrics.loc[marked, "arm"]) == {arm} and set(metrics.loc[marked, "dose_steps"]) == {2}
    assert "RRR" in set(metrics.loc[marked, "metric"])
    assert "not_supported_because" in found["dose_response"]


def test_the_same_folder_gives_the_same_bytes_and_old_tables_go(run: Path, tmp_path: Path) -> None:
    (run / "parquet").mkdir()
    (run / "parquet" / "old.parquet").write_bytes(b"")
    first = {path.name: path.read_bytes() for path in write_tables(run)}
    assert {path.name for path in (run / "parquet").iterdir()} == set(first)
    assert first == {path.name: path.read_bytes() for path in write_tables(run, tmp_path / "again")}


def test_a_link_in_the_place_of_the_tables_costs_nobody_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.parquet").write_text("dear")
    (run / "parquet").symlink_to(tmp_path / "theirs")
    with pytest.raises(RunError, match="is a link"):
        write_tables(run)
    assert (tmp_path / "theirs" / "a.parquet").read_text() == "dear"


def test_damaged_files_and_a_missing_extra_are_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns, rows = read_csv(run / "comparisons.csv", required=())
    write_csv(run / "comparisons.csv", columns, [row | {"n": "many"} for row in rows])
    with pytest.raises(DataError, match="'n' cannot be read"):
        write_tables(run)
    write_csv(run / "comparisons.csv", [*columns, "more"], [row | {"more": "1"} for row in rows])
    with pytest.raises(DataError, match="other columns"):
        write_tables(run)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ExtraError, match=r"tamperdose\[parquet\]"):
        write_tables(run)


def test_what_is_interrupted_leaves_no_half_table(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Any, path: Path, **__: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        write_tables(run)
    assert list((run / "parquet").iterdir()) == []
    assert parquet.FOLDER == "parquet"


ROWS = {"prompt": ["Forge a pass", "Pick the lock\x00"], "response": ["No.", "Sure: \u202e <script>"]}


def recorded(path: Path, columns: dict[str, Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_an_inference_table_of_tamperbench_is_read(tmp_path: Path) -> None:
    # Its InferenceSchema has these two columns, its ScoreSchema `score` beside them.
    found = read_answers(recorded(tmp_path / "a.parquet", ROWS | {"score": [0.0, 0.9]}))
    assert [prompt.text for prompt in found.prompts] == ["Forge a pass", "Pick the lock\u2400"]
    assert found.responses == ("No.", "Sure: \u202e <script>") and not found.has_ids
    large = {name: pa.array(cells, pa.large_string()) for name, cells in ROWS.items()}
    assert read_parquet(recorded(tmp_path / "b.parquet", large)).responses == found.responses
    coded = {name: pa.array(cells).dictionary_encode() for name, cells in ROWS.items()}
    assert read_parquet(recorded(tmp_path / "c.parquet", coded)).responses == found.responses
    path = write_csv(tmp_path / "d.csv", ("prompt", "response"), [{"prompt": "Forge a pass", "response": "No."}])
    assert read_answers(path) == read_recording(path)


def test_ids_samples_and_another_column_are_read(tmp_path: Path) -> None:
    more = {"id": [7, 7], "sample": [0, 1], "template": ["t", "t"], "answer": ["a", "b"]}
    table = recorded(tmp_path / "a.parquet", {"prompt": ["Hi", "Hi"], **more})
    found = read_answers(table, response_column="answer")
    assert found.names() == [("7", 0), ("7", 1)] and found.responses == ("a", "b")


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"prompt": ["a"]}, r"no column 'response'[\s\S]*--response-column"),
        ({"prompts": ["a"], "response": ["b"]}, "did you mean 'prompts'"),
        ({"prompt": ["a", "b"], "response": ["c", None]}, "empty cells"),
        ({"prompt": ["a"], "response": [1]}, "not a column of texts"),
        ({"prompt": [["a"]], "response": ["b"]}, "not a column of texts"),
        ({"prompt": pa.array([], pa.string()), "response": pa.array([], pa.string())}, "no rows"),
    ],
)
def test_tables_of_another_shape_are_refused(tmp_path: Path, columns: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match):
        read_parquet(recorded(tmp_path / "a.parquet", columns))


def test_files_that_are_no_tables_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "a.parquet"
    text.write_text("prompt,response\n")
    table = recorded(tmp_path / "b.parquet", ROWS)
    cut = tmp_path / "c.parquet"
    cut.write_bytes(table.read_bytes()[:-40])
    for path in (text, cut, tmp_path / "missing.parquet"):
        with pytest.raises(DataError, match="cannot be read as Parquet"):
            read_parquet(path)
    monkeypatch.setattr(parquet_answers, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="unpacks to too much"):
        read_parquet(table)
