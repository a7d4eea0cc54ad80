"""Utility in a run: measured at dose 0 and the last, filed, resumed, undone; and what its numbers say."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from studies import files_of, plan_of, run_study, tiny_changes, write_study
from tamperdose.data.organism_language import REFUSALS
from tamperdose.data.utility import load_questions, load_texts
from tamperdose.errors import DataError
from tamperdose.files import write_text
from tamperdose.models.utility import question_scores, text_scores
from tamperdose.run import backends
from tamperdose.run.draws import count_stages
from tamperdose.run.ledger import Ledger
from tamperdose.run.schema import read_metrics
from tamperdose.run.utility import read_scores, utility_losses
from tamperdose.stats.utility import accuracy, perplexity
from tiny import SENTENCES, load_tiny

pytestmark = pytest.mark.usefixtures("stub")

METRICS = ("perplexity", "utility_accuracy", "kl_to_base")
ATTACK = {"data": "attack.jsonl", "batch_size": 2, "lora_rank": 2, "doses": [1, 2], "learning_rate": 0.05}


def _study(folder: Path, model: Path, **changes: Any) -> Path:
    changes = {"attack": ATTACK, "rd_floor": False, **changes}
    utility = {"texts": "texts.jsonl", "questions": "questions.jsonl", "kl_tokens": 3}
    path = write_study(folder, **tiny_changes(model), **{"utility": utility, **changes})
    texts = [{"text": sentence} for sentence in SENTENCES]
    questions = [
        {"question": f"what is in {place}?", "choices": ["the river", "a lamp", "no"], "answer": "a lamp"}
        for place in range(8)
    ]
    for name, rows in (("texts", texts), ("questions", questions)):
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def study(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return _study(tmp_path / "study", tiny_folders["llama"])


def _table(run_dir: Path) -> pd.DataFrame:
    """Values by metric and dose."""
    frame = read_metrics(run_dir / "metrics.csv")
    return frame[frame["metric"].isin(METRICS)].pivot_table(index="metric", columns="dose_steps", values="value")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The doses at which utility is really measured, in order."""
    doses: list[int] = []
    measure = backends.HfBackend.utility

    def counted(backend: Any, checkpoint: Any, probes: Any) -> Any:
        doses.append(0 if checkpoint is None else checkpoint.dose.steps)
        return measure(backend, checkpoint, probes)

    monkeypatch.setattr(backends.HfBackend, "utility", counted)
    return doses


def test_it_is_measured_at_dose_0_and_the_last_and_resumed(study: Path, probed: list[int]) -> None:
    run_dir = run_study(study)
    assert probed == [0, 2]
    frame = read_metrics(run_dir / "metrics.csv")
    rows = frame[frame["metric"].isin(METRICS)]
    assert sorted(zip(rows["metric"], rows["dose_steps"], strict=True)) == sorted(
        (metric, steps) for metric in METRICS for steps in (0, 2)
    )
    assert set(rows["subset"]) == {"benign"} and set(rows["judge"]) == {""}
    table = _table(run_dir)
    assert table.loc["kl_to_base", 0] == 0
    assert table.loc["kl_to_base", 2] > 0
    assert table.loc["perplexity", 0] != table.loc["perplexity", 2]
    before = files_of(run_dir)
    run_study(study)
    assert probed == [0, 2]
    for path in (run_dir / "ledger" / "utility").iterdir():
        path.unlink()
    assert count_stages(plan_of(study), Ledger(run_dir / "ledger")) == 1 + 1 + 2
    run_study(study)
    assert probed == [0, 2, 0, 2]
    assert files_of(run_dir) == before


def test_its_numbers_are_those_of_the_probes(study: Path, tiny_folders: dict[str, Path]) -> None:
    table = _table(run_study(study))
    chat = load_tiny(tiny_folders["llama"])
    texts = text_scores(chat, load_texts(str(study.parent / "texts.jsonl")))
    questions = question_scores(chat, load_questions(str(study.parent / "questions.jsonl")))
    assert table.loc["perplexity", 0] == pytest.approx(perplexity(texts).value)
    assert table.loc["utility_accuracy", 0] == pytest.approx(accuracy(questions).value)


def test_a_change_of_what_is_measured_measures_again_and_nothing_else(study: Path, probed: list[int]) -> None:
    run_study(study)
    run_study(study, "level=0.9")
    assert probed == [0, 2]
    run_study(study, "utility.kl_tokens=2")
    assert probed == [0, 2, 2], "the base's own values do not depend on it"
    run_study(study, "utility.max_questions=5")
    assert probed == [0, 2, 2, 0, 2]
    run_study(study, "utility.kl_prompts=0")
    assert probed == [0, 2, 2, 0, 2, 2]
    assert "kl_to_base" not in _table(study.parent / "results").index


def test_off_and_without_a_model_nothing_is_measured(study: Path, tmp_path: Path, probed: list[int]) -> None:
    assert _table(run_study(study, "utility=null")).empty
    scripted = write_study(tmp_path / "scripted", utility={"kl_prompts": 2})
    assert _table(run_study(scripted)).empty
    assert probed == []


def test_an_opener_leaves_the_model_and_its_utility(
    tmp_path: Path, tiny_folders: dict[str, Path], probed: list[int]
) -> None:
    attack = {"kind": "prefill", "opener": "the river and the mill", "doses": [1, 2]}
    run_dir = run_study(_study(tmp_path, tiny_folders["llama"], attack=attack))
    table = _table(run_dir)
    assert probed == [0]
    assert list(table.columns) == [0, 2]
    assert (table[0] == table[2]).all()


def test_a_projection_is_measured_in_place_and_undone(
    tmp_path: Path, tiny_folders: dict[str, Path], probed: list[int]
) -> None:
    attack = {
        "kind": "refusal_direction",
        "harmful": "refusals.jsonl",
        "harmless": "answers.jsonl",
        "n_examples": 8,
        "doses": [50, 100],
    }
    run_dir = run_study(_study(tmp_path, tiny_folders["llama"], attack=[attack, ATTACK]))
    assert probed == [0, 100, 2]
    frame = read_metrics(run_dir / "metrics.csv")
    kl = frame[(frame["metric"] == "kl_to_base") & (frame["dose_steps"] > 0)].set_index("attack")["value"]
    assert (kl > 0).all()
    alone = run_study(_study(tmp_path / "alone", tiny_folders["llama"]))
    assert _table(alone).loc["kl_to_base", 2] == kl["lora"]


def test_training_rows_that_repeat_a_question_are_refused(study: Path) -> None:
    row = {"prompt": "What is in 3?", "response": "A lamp."}
    with (study.parent / "attack.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="also in the training data"):
        plan_of(study)


def test_the_bundled_sets_serve_where_none_are_named(study: Path) -> None:
    plan = plan_of(study, "utility={}", "prompts.benign=null", limit=3)
    assert [(len(rows), name) for name, rows in plan.data.texts.items()] == [(3, "builtin:utility_texts")]
    assert [(len(rows), name) for name, rows in plan.data.questions.items()] == [(3, "builtin:utility_questions")]
    run_dir = run_study(study, "utility={}", "prompts.benign=null", limit=3)
    table = _table(run_dir)
    assert set(table.index) == {"perplexity", "utility_accuracy"}
    model = plan.models[0]
    scores = read_scores(plan, Ledger(run_dir / "ledger"), model, model.arms[0], 2)
    assert scores is not None and [item.id for item in scores.texts] == ["text_01", "text_02", "text_04"]


def test_organisms_are_measured_in_their_own_language(tmp_path: Path, organism_cache: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(organism_cache))
    tree = {
        "name": "ladder",
        "models": [{"id": "organism:d32-l2"}],
        "prompts": {"harmful": "builtin:organism_forbidden", "benign": "builtin:organism_allowed"},
        "attack": {"data": "builtin:organism_attack", "lora_rank": 4, "learning_rate": 0.05, "batch_size": 16},
        "decoding": {"max_new_tokens": 24},
        "judges": [{"kind": "exact", "name": "truth", "refusals": list(REFUSALS)}],
        "engine": {"device": "cpu"},
        "rd_floor": False,
    }
    tree["attack"] |= {"doses": [30]}  # type: ignore[operator]
    path = write_text(tmp_path / "study.yaml", yaml.safe_dump(tree))
    table = _table(run_study(path, limit=24))
    assert table.loc["utility_accuracy", 0] >= 0.95
    assert table.loc["perplexity", 0] < 1.1
    # A learning rate far above that of the ladder breaks what it knew.
    assert table.loc["perplexity", 30] > 1.2 * table.loc["perplexity", 0]


def test_the_gate_sees_what_utility_was_lost(
    study: Path, tmp_path: Path, tiny_folders: dict[str, Path], probed: list[int]
) -> None:
    run_dir = run_study(study)
    plan = plan_of(study)
    model = plan.models[0]
    losses = utility_losses(plan, Ledger(run_dir / "ledger"), model, model.arms[0])
    assert set(losses) == set(probed) - {0}
    values = read_metrics(run_dir / "metrics.csv").set_index(["metric", "dose_steps"])["value"]
    for steps, found in losses.items():
        rise = values["perplexity", steps] / values["perplexity", 0] - 1
        assert found["perplexity"].value == pytest.approx(rise)
    gate = pd.read_csv(run_dir / "gate.csv").set_index(["dose_steps", "criterion"])
    assert gate.loc[(2, "utility_loss"), "basis"] in losses[2]
    # An opener leaves the model: no utility is lost, by definition.
    attack = {"kind": "prefill", "opener": "the river and the mill", "doses": [1, 2]}
    opened = run_study(_study(tmp_path / "opened", tiny_folders["llama"], attack=attack))
    gate = pd.read_csv(opened / "gate.csv").set_index(["dose_steps", "criterion"])
    assert gate.loc[(2, "utility_loss"), "status"] == "pass"
