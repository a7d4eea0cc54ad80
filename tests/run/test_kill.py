"""A run that is killed with SIGKILL and started again ends with the same files, byte for byte, and repeats nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from studies import files_of, tiny_changes, write_study

DRIVER = Path(__file__).with_name("killing.py")


@pytest.fixture
def tiny_study(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    """Every kind of stage: defence, base and floor answers, attack, kept adapters, controls, verdicts, figures."""
    changes = tiny_changes(tiny_folders["llama"], keep_adapters=True, keep_adapters_reason="to be compared")
    changes["controls"] = {"random_draws": 3, "benign": "answers.jsonl", "max_prompts": 3}
    defence = {"harmful": "refusals.jsonl", "benign": "answers.jsonl", "steps": 2, "batch_size": 2, "lora_rank": 2}
    changes["models"][0]["defence"] = defence
    attack = {"data": "attack.jsonl", "batch_size": 2, "lora_rank": 2, "doses": [1, 3], "learning_rate": 0.05}
    return write_study(tmp_path / "study", n_prompts=4, attack=attack, **changes)


def _kill(study: Path, points: list[str], figures: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(DRIVER), str(study), str(study.parent), figures, *points]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


def _check(study: Path, points: list[str], *, figures: str = "drawn") -> int:
    told = _kill(study, points, figures)
    assert [entry["point"] for entry in told] == ["none", *points]
    whole = files_of(study.parent / "whole")
    assert {"metrics.csv", "metrics.json", "manifest.json"} <= set(whole)
    assert any(name.endswith(".png") for name in whole)
    for entry in told[1:]:
        point = entry["point"]
        assert entry["killed"] == {"signal": 9}, point
        assert entry["resumed"] == {"code": 0}, point
        assert entry["twice"] == [], point
        resumed = files_of(study.parent / point.replace(":", "-"))
        assert sorted(resumed) == sorted(whole), point
        assert [name for name in whole if whole[name] != resumed[name]] == [], point
        assert not list((study.parent / point.replace(":", "-")).rglob("scratch/*")), point
    return int(told[0]["renames"])


def test_killed_at_any_of_these_points(tiny_study: Path) -> None:
    early = ["before:3", "after:4", "after:7", "before:12"]
    middle = ["after:18", "before:23", "after:26", "before:33", "after:40", "after:46"]
    late = ["after:-30", "before:-12", "before:-3"]
    assert _check(tiny_study, [*early, *middle, *late], figures="blank") > 50


@pytest.mark.slow
@pytest.mark.parametrize(("when", "first"), [("before", 1), ("after", 2)])
def test_killed_at_every_third_point(tiny_study: Path, when: str, first: int) -> None:
    """Just before one file is there and just after another, of all kinds: every one would take half an hour."""
    count = _check(tiny_study, [], figures="blank")
    _check(tiny_study, [f"{when}:{place}" for place in range(first, count + 1, 3)], figures="blank")


@pytest.mark.slow
def test_killed_while_drawing(tiny_study: Path) -> None:
    _check(tiny_study, ["before:2", *(f"{when}:-{place}" for place in range(1, 7) for when in ("before", "after"))])


@pytest.mark.slow
def test_killed_scripted_run(tmp_path: Path) -> None:
    study = write_study(tmp_path, judges=["phrases"])
    count = _check(study, [])
    _check(study, [f"before:{place}" for place in range(1, count + 1)])
