"""The stage `inside` on tiny models: what it leaves, what it depends on, and what a second run does."""

import json
from pathlib import Path
from typing import Any

import pytest

from studies import files_of, plan_of, run_study, tiny_changes, write_study
from tamperdose.models import activations
from tamperdose.records import Estimate, Scope, Subset
from tamperdose.report.inside_figures import draw_inside
from tamperdose.report.insides import inside_lines, read_inside_rows
from tamperdose.run.inside import asked_inside, inside_doses
from tamperdose.run.inside_results import AUC, DRIFT, METRICS, UPDATE, describe_state
from tamperdose.run.key_doses import find_key_doses
from tamperdose.run.ledger import Ledger
from tiny import save_tiny

pytestmark = pytest.mark.usefixtures("stub")

LADDER = [1, 2, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


def _study(folder: Path, model: Path, **more: Any) -> Path:
    attack = {"data": "attack.jsonl", "lora_rank": 2, "doses": LADDER, "batch_size": 2, "learning_rate": 0.05}
    return write_study(folder, **tiny_changes(model, attack=attack, **more))


def test_every_dose_is_looked_at_and_dose_0_has_no_drift(tmp_path: Path, model: Path) -> None:
    run = run_study(_study(tmp_path, model, inside={"at": "all"}))
    rows = read_inside_rows(run)
    assert {row["dose_steps"] for row in rows} == {0, *LADDER}
    assert {row["layer"] for row in rows} == {1, 2}
    assert {row["metric"] for row in rows} == set(METRICS)
    assert all(row["value"] == 0 for row in rows if row["metric"] == DRIFT and row["dose_steps"] == 0)
    drifts = [float(str(row["value"])) for row in rows if row["metric"] == DRIFT and row["dose_steps"] == 3]
    assert min(drifts) > 1e-4
    assert all(row["value"] is not None and 0 <= float(str(row["value"])) <= 1 for row in rows if row["metric"] == AUC)
    grown = [float(str(row["value"])) for row in rows if row["metric"] == UPDATE and row["layer"] == 1]
    assert grown == sorted(grown)
    assert len(grown) == len(LADDER)
    assert "nan" not in (run / "inside.csv").read_text().lower()


def test_by_default_it_is_the_key_doses(tmp_path: Path, model: Path) -> None:
    path = _study(tmp_path, model)
    run = run_study(path)
    plan = plan_of(path)
    key = find_key_doses(plan, ledger := Ledger(run / "ledger"), plan.models[0].arms[0])
    assert key is not None
    assert {row["dose_steps"] for row in read_inside_rows(run)} == {*key}
    assert json.loads((run / "inside.json").read_text())["timings"] == []
    assert inside_doses(plan, ledger, plan.models[0].arms[0]) == key[1:]
    assert inside_doses(plan, Ledger(tmp_path / "empty"), plan.models[0].arms[0]) == ()


def test_a_second_run_reads_no_states_and_changes_no_byte(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _study(tmp_path, model)
    before = files_of(run_study(path))
    monkeypatch.setattr(activations, "look_inside", None)
    assert files_of(run_study(path)) == before


def test_what_was_lost_is_read_again_to_the_same_bytes(tmp_path: Path, model: Path) -> None:
    path = _study(tmp_path, model)
    run = run_study(path)
    before = files_of(run)
    for entry in (run / "ledger" / "inside").iterdir():
        entry.unlink()
    (run / "metrics.json").unlink()
    assert files_of(run_study(path)) == before


def test_null_turns_it_off_and_removes_what_there_was(tmp_path: Path, model: Path) -> None:
    path = _study(tmp_path, model)
    run = run_study(path)
    assert (run / "inside.csv").is_file()
    run_study(path, "inside=null")
    assert not (run / "inside.csv").exists()
    assert not (run / "inside.json").exists()
    assert inside_lines(run) == []
    assert draw_inside(run) == []


def test_a_scripted_engine_and_a_study_without_benign_prompts_have_no_inside(tmp_path: Path, model: Path) -> None:
    run = run_study(write_study(tmp_path / "scripted"))
    assert not (run / "inside.csv").exists()
    assert asked_inside(plan_of(_study(tmp_path / "alone", model, prompts={"harmful": "harmful.csv"}))) is None


def test_few_prompts_are_spread_over_templates_and_over_the_file(tmp_path: Path, model: Path) -> None:
    path = _study(tmp_path, model, inside={"prompts": 6})
    asked = asked_inside(plan_of(write_study(tmp_path, n_prompts=40, **tiny_changes(model, inside={"prompts": 8}))))
    assert path.is_file()
    assert asked is not None
    harmful = [prompt.id for prompt in asked.prompts if prompt.subset is Subset.HARMFUL]
    assert harmful == [f"h{5 * k}" for k in range(8)]


def test_the_lines_and_the_figure_tell_of_it(tmp_path: Path, model: Path) -> None:
    run = run_study(_study(tmp_path, model, inside={"at": "all"}))
    lines = inside_lines(run)
    assert any("refusal direction has turned by" in line for line in lines)
    timings = json.loads((run / "inside.json").read_text())["timings"]
    assert len(timings) == 1
    assert timings[0]["order"] in ("precedes", "follows", "accompanies", "undecided")
    assert any("ED50" in line or "no order" in line for line in lines)
    assert [path.name for path in draw_inside(run)] == ["inside_layers.png", "inside_layers.svg"]


def _estimate(value: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(value, low, high, 0.95, "m", 9, 9, 9.0, 0, Scope.TRAJECTORY)


@pytest.mark.parametrize(
    ("auc", "at_base", "says"),
    [
        (_estimate(0.9, 0.8, 0.95), True, ""),
        (_estimate(0.51, 0.44, 0.58), True, "no longer separates: AUC 0.51 [0.44, 0.58]"),
        (_estimate(0.69, 0.48, 0.84), True, "not surely better than chance any more: AUC 0.69 [0.48, 0.84]"),
        (_estimate(0.1, 0.05, 0.2), True, "changed sides: AUC 0.10 [0.05, 0.20]"),
        (_estimate(0.52, 0.41, 0.63), False, "does not separate at dose 0 either: AUC 0.52"),
    ],
)
def test_what_no_longer_separates_is_said_in_words(auc: Estimate, at_base: bool, says: str) -> None:
    state = describe_state(auc, _estimate(0.3, 0.2, 0.4), longer=True, at_base=at_base)
    assert says in state
    assert bool(state) == bool(says)


def test_no_direction_is_said_in_words() -> None:
    nothing = Estimate(None, None, None, 0.95, "m", 9, 9, None, 0, Scope.TRAJECTORY)
    assert "no direction here" in describe_state(_estimate(0.5, 0.4, 0.6), nothing, longer=False, at_base=True)
    assert "may point anywhere" in describe_state(
        _estimate(0.5, 0.4, 0.6), _estimate(1.0, 0.0, 2.0), longer=False, at_base=True
    )
