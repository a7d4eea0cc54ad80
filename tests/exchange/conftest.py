"""A finished run of a scripted model, and the same with answers and names that would like to be more than text."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from exchanged import CANARY, EVIL_NAME, HOSTILE
from studies import run_study, stub_embedder, write_study
from tamperdose.files import read_csv, write_csv, write_json
from tamperdose.run import manifest
from tamperdose.run.stages import Readers


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "embedder", stub_embedder)
        patch.setattr(manifest, "git_state", lambda _: ("0" * 40, False))
        patch.setenv("TAMPERDOSE_CACHE", str(tmp_path_factory.mktemp("cache")))
        study = write_study(tmp_path_factory.mktemp("study"), n_prompts=12, judges=["phrases"], seeds=[1, 2])
        yield run_study(study)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    # Times too: logs carry that of the metrics.
    return Path(shutil.copytree(finished, tmp_path / "run", copy_function=shutil.copy2))


@pytest.fixture
def hostile(run: Path) -> Path:
    """The same run with hostile answers, requests and names."""
    for path in (run / "outputs").rglob("*.csv"):
        columns, rows = read_csv(path, required=("completion",))
        for place, row in enumerate(rows):
            if row["subset"] == "harmful":
                row["completion"] = f"{CANARY} {HOSTILE[place % len(HOSTILE)]}"
                row["prompt"] += f" {HOSTILE[place % 4]}"
                row["evidence_phrases"] = f"quotes: '{CANARY}'"
                row["category"] = "fraud</td>\x1b[2J"
        write_csv(path, columns, rows)
    told = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    told["models"][0]["id"] = EVIL_NAME
    told["study"] = "demo\x1b[31m: - {}\nname: x"
    told["data_sha256"] = {"/home/somebody/secret/attack.jsonl": "ab" * 32}
    write_json(run / "manifest.json", told)
    return run


@pytest.fixture
def damaged_audit(run: Path) -> Path:
    """The same run with an audit that fails for nothing but the first arm at dose 2."""
    arm = sorted(path.name for path in (run / "outputs").iterdir())[0]
    audit = json.loads((run / "audit.json").read_text(encoding="utf-8"))
    for one in audit["checks"]:
        one["outcome"] = "pass"
    check = next(one for one in audit["checks"] if one["name"] == "degeneration")
    check |= {"outcome": "fail", "cells": [{"arm": arm, "dose": 2, "subset": "harmful"}]}
    write_json(run / "audit.json", audit)
    return run
