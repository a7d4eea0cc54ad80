"""Controls of a run: which there are, that they are the attack's size, and that the run is the same after a kill."""

from pathlib import Path
from typing import Any

import pytest

from studies import run_study, tiny_changes, write_study
from tamperdose.errors import RunError
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.gates import CONTROL_COLUMNS, CONTROLS, GATE, GATE_COLUMNS
from tamperdose.run.progress import Reporter


def controlled(folder: Path, model: Path, **changes: Any) -> Path:
    attack = {"data": "attack.jsonl", "batch_size": 2, "lora_rank": 2, "doses": [1, 2, 4], "learning_rate": 0.05}
    controls = {"random_draws": 3, "benign": "answers.jsonl", "max_prompts": 4}
    parts = {"attack": attack, "controls": controls, **changes}
    return write_study(folder, **tiny_changes(model, **parts))


@pytest.fixture
def tiny(tiny_folders: dict[str, Path]) -> Path:
    return tiny_folders["llama"]


def rows_of(folder: Path) -> list[Row]:
    return read_rows(folder / CONTROLS, CONTROL_COLUMNS)


def test_random_weights_stand_beside_an_attack_on_all_of_them(tmp_path: Path, tiny: Path, stub: None) -> None:
    attack = {"kind": "full", "data": "attack.jsonl", "batch_size": 2, "doses": [1, 2], "learning_rate": 0.01}
    folder = run_study(controlled(tmp_path, tiny, attack=attack))
    seen = {(row["control"], row["dose_steps"], row["draw"]) for row in rows_of(folder)}
    assert {("random_weights", 2, draw) for draw in ("1", "2", "3", "mean")} <= seen


def test_states_of_a_run(tmp_path: Path, tiny: Path, stub: None) -> None:
    folder = run_study(controlled(tmp_path, tiny))
    seen = {(row["control"], row["dose_steps"], row["draw"]) for row in rows_of(folder)}
    assert ("base", 0, "") in seen
    assert ("none", 0, "") in seen
    assert {
        ("attack", 4, ""),
        ("benign", 4, ""),
        *(("random_adapter", 4, draw) for draw in ("1", "2", "3", "mean")),
    } <= seen
    assert {row["n"] for row in rows_of(folder)} == {4}
    outputs = sorted(path.name for path in folder.glob("outputs/*/controls/*.csv"))
    assert "random_adapter-4-1.csv" in outputs
    assert "none-0.csv" in outputs
    gate = read_rows(folder / GATE, GATE_COLUMNS)
    assert {row["dose_steps"] for row in gate} == {1, 2, 4}


def test_a_control_that_cannot_be_trained_is_named_and_costs_nothing(
    tmp_path: Path, tiny: Path, stub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamperdose.attacks.lora import LoraAttack

    run = LoraAttack.run

    def diverging(self: LoraAttack, *args: Any, **kwargs: Any) -> Any:
        if self.kind == "benign":
            raise RunError("training diverged")
        return run(self, *args, **kwargs)

    study = controlled(tmp_path, tiny)
    with monkeypatch.context() as patch:
        patch.setattr(LoraAttack, "run", diverging)
        with pytest.raises(RunError, match=r"harmless rows(?s:.)*training diverged(?s:.)*controls\.benign"):
            run_study(study)
    assert run_study(study).joinpath("metrics.csv").is_file()


def test_tampered_weights_of_an_earlier_run_are_named(
    tmp_path: Path, tiny: Path, stub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda _self, text: said.append(text))
    study = controlled(tmp_path, tiny)
    folder = run_study(study)
    assert not any("adapters" in text for text in said)
    (folder / "adapters").mkdir()
    run_study(study)
    assert any(f"kept in {folder / 'adapters'}" in text for text in said)
