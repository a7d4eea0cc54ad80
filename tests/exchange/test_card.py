"""The block for a model card, by the hub library's own parser."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from exchanged import CANARY, EVIL_NAME
from tamperdose.errors import DataError
from tamperdose.exchange.card import model_card
from tamperdose.files import read_csv, write_csv, write_json
from tamperdose.run.schema import read_metrics


def passed(run: Path) -> Path:
    """The run with an audit that found nothing."""
    audit = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    for check in audit["checks"]:
        check["outcome"] = "pass"
    write_json(run / "audit.json", audit)
    return run


def front(text: str) -> Any:
    return yaml.safe_load(text.split("---\n")[1])


def rename(run: Path, name: str) -> None:
    for path in run.glob("*.csv"):
        columns, rows = read_csv(path, required=())
        write_csv(path, columns, [row | ({"model": name} if "model" in row else {}) for row in rows])


def test_the_hub_reads_the_numbers_of_the_run(run: Path) -> None:
    text = model_card(passed(run))
    results = ModelCard(text, ignore_metadata_errors=False).data.eval_results
    assert results is not None
    frame = read_metrics(run / "metrics.csv")
    rates = frame[(frame["metric"] == "RRR") & (frame["judge"] == "phrases")]
    found = [result for result in results if result.metric_type == "refusal_robustness_rate"]
    assert len(found) == 1 + 2, "dose 0 once, the last dose of both arms"
    for result in found:
        told = result.metric_args
        assert told is not None and result.task_type == "text-generation"
        assert isinstance(told["n"], int)
        mine = rates[rates["dose_steps"] == told["dose"]]
        mine = mine[mine["arm"] == told["arm"]] if "arm" in told else mine
        row = mine.iloc[0]
        assert (result.metric_value, told["low"], told["high"]) == pytest.approx(
            (row["value"], row["low"], row["high"]), abs=5e-5
        )
        assert str(round(row["value"], 3)) in text.split("---\n")[2] or f"{row['value']:.3f}" in text


def test_a_number_that_is_withheld_is_given_nowhere(damaged_audit: Path) -> None:
    text = model_card(damaged_audit)
    arm = sorted(path.name for path in (damaged_audit / "outputs").iterdir())[0]
    told = [one for entry in front(text)["model-index"] for result in entry["results"] for one in result["metrics"]]
    of_arm = [one for one in told if one["args"].get("arm") == arm]
    assert of_arm == []
    (line,) = [line for line in text.splitlines() if line.startswith("|") and "withheld" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3] == "withheld" and cells[4].startswith("withheld (degeneration")
    assert "FAIL: degeneration" in text


def test_a_run_of_which_nothing_stands_has_no_model_index(run: Path) -> None:
    audit = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    for check in audit["checks"]:
        check |= {"outcome": "fail", "cells": []}
    write_json(run / "audit.json", audit)
    text = model_card(run)
    assert "model-index" not in front(text)
    rows = [line for line in text.splitlines() if line.startswith("| fake")]
    assert rows and all("withheld" in row and "0." not in row for row in rows)


@pytest.mark.parametrize(
    "name", [EVIL_NAME, "yes", "1.5", "a: b # c", "'\"|&*!%@`", "<img src=x>\x1b[31m", "x\n---\n# y"]
)
def test_names_are_escaped(run: Path, name: str) -> None:
    rename(passed(run), name)
    text = model_card(run)
    index = front(text)["model-index"]
    assert isinstance(index[0]["name"], str)
    model_index_to_eval_results(index)
    body = text.split("\n---\n\n", 1)[1]
    assert "<" not in body.replace("&lt;", "") and "\x1b" not in text and "\u202e" not in text
    assert text.count("\n---") == 1, "nothing ends the head early"
    table = [line for line in body.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2


def test_no_answer_stands_in_it(hostile: Path) -> None:
    text = model_card(hostile)
    assert CANARY not in text and "/home/somebody" not in text
    assert "\x1b" not in text and "\nname: x" not in text


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to report"):
        model_card(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        model_card(tmp_path / "none")
