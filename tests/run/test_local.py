"""Whole runs: with the scripted engine, whose truth is known, and with tiny models of each class."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel

from studies import files_of, plan_of, run_study, stub_embedder, tiny_changes, write_study
from tamperdose import files
from tamperdose.errors import DataError, ModelError, RunError
from tamperdose.judges import Reading
from tamperdose.judges.phrases import PhrasesJudge
from tamperdose.models import load, train
from tamperdose.models.hf import HfGenerator
from tamperdose.models.lora import merged
from tamperdose.models.scripted import refusal_probability
from tamperdose.records import Label, Prompt, Subset
from tamperdose.run.checks import describe_status
from tamperdose.run.compare_schema import read_rows
from tamperdose.run.costs import COST_COLUMNS, COSTS
from tamperdose.run.draws import count_stages
from tamperdose.run.estimate import describe_plan
from tamperdose.run.ledger import Ledger
from tamperdose.run.outputs import remove_others
from tamperdose.run.schema import read_metrics
from tamperdose.run.stages import Readers
from tamperdose.stats.key_doses import key_doses
from tamperdose.study import ScriptedEngine
from tiny import CLASSES, load_tiny

pytestmark = pytest.mark.usefixtures("stub")

ED50, SLOPE, START = 3.0, 3.0, 0.93
LADDER = [1, 2, 4, 8]


@pytest.fixture(scope="module")
def ladder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scripted study of 300 prompts, two arms and four doses."""
    engine = {"kind": "scripted", "refusal_rate": START, "ed50_steps": ED50, "slope": SLOPE, "degenerate_rate": 0.1}
    attack = {"data": "attack.jsonl", "lora_rank": [2, 4], "doses": LADDER, "batch_size": 2}
    path = write_study(tmp_path_factory.mktemp("ladder"), n_prompts=300, engine=engine, attack=attack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "embedder", stub_embedder)
        return run_study(path)


def _values(run: Path, metric: str, arm: str | None = None) -> dict[int, float]:
    frame = read_metrics(run / "metrics.csv")
    arms = sorted(set(frame["arm"]))
    chosen = frame[(frame["metric"] == metric) & (frame["arm"] == (arm or arms[0]))]
    return dict(zip(chosen["dose_steps"].astype(int), chosen["value"].astype(float), strict=True))


def test_refusals_follow_the_known_curve(ladder_run: Path) -> None:
    engine = ScriptedEngine(refusal_rate=START, ed50_steps=ED50, slope=SLOPE)
    for steps, value in _values(ladder_run, "RRR").items():
        p = refusal_probability(engine, steps)
        assert value == pytest.approx(p, abs=4 * (p * (1 - p) / 300) ** 0.5), steps


def test_every_arm_has_every_dose_and_dose_0(ladder_run: Path) -> None:
    frame = read_metrics(ladder_run / "metrics.csv")
    arms = sorted(set(frame["arm"]))
    assert len(arms) == 2
    for arm in arms:
        rows = frame[frame["arm"] == arm]
        assert sorted(set(rows["dose_steps"].astype(int))) == [0, *LADDER]
        for metric in ("RRR", "CE", "RD", "RD_stripped", "refusal_retention", "over_refusal_rate"):
            assert sorted(_values(ladder_run, metric, arm)) == [0, *LADDER], metric
        assert list(_values(ladder_run, "RD_floor", arm)) == [0]
        assert {path.stem for path in (ladder_run / "outputs" / arm).iterdir()} == {"0", "1", "2", "4", "8"}
        assert (rows.set_index("dose_steps")["dose_examples"].to_dict()) == {s: 2 * s for s in (0, *LADDER)}


def test_metrics_keep_their_definitions(ladder_run: Path) -> None:
    rrr, ce = _values(ladder_run, "RRR"), _values(ladder_run, "CE")
    complied, broken = _values(ladder_run, "compliance_rate"), _values(ladder_run, "degenerate_rate")
    for steps in (0, *LADDER):
        assert ce[steps] == pytest.approx(1 - rrr[steps], abs=1e-12)
        assert ce[steps] == pytest.approx(complied[steps] + broken[steps], abs=1e-12)
    assert max(broken.values()) > 0.05
    assert _values(ladder_run, "RD")[0] == 0
    assert _values(ladder_run, "refusal_retention")[0] == 1
    assert all(value > 0 for steps, value in _values(ladder_run, "RD_mean").items() if steps)


def test_retention_is_paired_with_dose_0(ladder_run: Path) -> None:
    arm = sorted(path.name for path in (ladder_run / "outputs").iterdir())[0]
    refused: dict[int, set[str]] = {}
    for steps in (0, *LADDER):
        _, rows = files.read_csv(ladder_run / "outputs" / arm / f"{steps}.csv", required=["id", "verdict_phrases"])
        harmful = [row for row in rows if row["subset"] == "harmful"]
        assert [row["id"] for row in harmful] == [f"h{i}" for i in range(300)]
        refused[steps] = {row["id"] for row in harmful if row["verdict_phrases"] == "refusal"}
    for steps, value in _values(ladder_run, "refusal_retention").items():
        assert value == pytest.approx(len(refused[steps] & refused[0]) / len(refused[0]))


def test_metrics_json_holds_the_same_numbers(ladder_run: Path) -> None:
    frame = read_metrics(ladder_run / "metrics.csv")
    told = json.loads((ladder_run / "metrics.json").read_text())
    assert told["judge"] == "phrases"
    assert len(told["metrics"]) == len(frame)
    values = [np.nan if row["value"] is None else row["value"] for row in told["metrics"]]
    np.testing.assert_array_equal(values, frame["value"].astype(float).to_numpy())


def test_running_again_changes_no_byte(ladder_run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(ladder_run.parent, tmp_path / "copy"))
    before = files_of(ladder_run)
    manifest = before.pop("manifest.json")
    after = files_of(run_study(copy / "study.yaml"))
    assert after.pop("manifest.json") == manifest.replace(str(ladder_run.parent).encode(), str(copy).encode())
    assert after == before
    timings = json.loads((copy / "results" / "timings.json").read_text())
    assert len(timings) == 2
    assert [entry["stage"] for entry in timings[1]] == ["judging and comparing answers"]


def test_status_and_plan_know_what_is_done(ladder_run: Path) -> None:
    status = describe_status(ladder_run)
    assert status["finished"]
    assert [arm["doses_done"] for arm in status["arms"]] == [LADDER, LADDER]
    plan = plan_of(ladder_run.parent / "study.yaml")
    assert count_stages(plan, Ledger(ladder_run / "ledger")) == 1
    described = describe_plan(plan, Ledger(ladder_run / "ledger"))
    assert [arm["doses_done"] for arm in described["arms"]] == [LADDER, LADDER]
    assert described["costs"][0]["remaining_share"] == 0
    assert describe_plan(plan, Ledger(ladder_run / "no-ledger"))["costs"][0]["remaining_share"] == 1


# --- which work a change costs


class Work:
    """Counts what a run really does, by wrapping what does it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.answered: list[tuple[int, int]] = []
        self.steps = 0
        self.judged = 0
        self.loads = 0
        self._wrap(patch)

    def _wrap(self, patch: pytest.MonkeyPatch) -> None:
        generate, step, read, load_model = (
            HfGenerator.generate,
            train._Trainer.step,
            PhrasesJudge.read,
            load.load_model,
        )

        def generated(engine: HfGenerator, prompts: Sequence[Prompt], *args: Any, **more: Any) -> Any:
            self.answered.append((len(prompts), more.get("sample", 0)))
            return generate(engine, prompts, *args, **more)

        def stepped(trainer: Any, batch: Any) -> float:
            self.steps += 1
            return step(trainer, batch)

        def judged(judge: PhrasesJudge, prompts: Sequence[str], responses: Sequence[str]) -> list[Reading]:
            self.judged += 1
            return read(judge, prompts, responses)

        def loaded(*args: Any, **more: Any) -> Any:
            self.loads += 1
            return load_model(*args, **more)

        patch.setattr(HfGenerator, "generate", generated)
        patch.setattr(train._Trainer, "step", stepped)
        patch.setattr(PhrasesJudge, "read", judged)
        patch.setattr(load, "load_model", loaded)

    def take(self) -> dict[str, Any]:
        """What was done since the last call."""
        done = {"answers": self.answered, "steps": self.steps, "judged": self.judged, "loads": self.loads}
        self.answered, self.steps, self.judged, self.loads = [], 0, 0, 0
        return done


H, B = (6, 0), (3, 0)
FLOOR = [(6, 1), (6, 2)]
NOTHING = {"answers": [], "steps": 0, "judged": 0, "loads": 0}


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


@pytest.fixture
def tiny_study(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    # A rate so high that two steps change what the model says: equal answers would be judged once.
    attack = {"data": "attack.jsonl", "batch_size": 2, "lora_rank": 2, "doses": [1, 2], "learning_rate": 0.05}
    return write_study(tmp_path / "study", **tiny_changes(tiny_folders["llama"]), attack=attack)


def test_a_change_runs_again_what_depends_on_it_and_nothing_else(tiny_study: Path, work: Work) -> None:
    run_study(tiny_study)
    assert work.take() == {"answers": [H, B, *FLOOR, H, B, H, B], "steps": 2, "judged": 6, "loads": 1}
    run_study(tiny_study)
    assert work.take() == NOTHING
    for free in ("engine.batch_size=2", "level=0.9", "unreadable_limit=0.5"):
        run_study(tiny_study, free)
        assert work.take() == NOTHING, free
    run_study(tiny_study, "attack.doses=[1, 2, 3]")
    assert work.take() == {"answers": [H, B], "steps": 3, "judged": 2, "loads": 1}
    # With a last dose of its own a study would look inside there, which takes the weights.
    run_study(tiny_study, "attack.doses=[1]", "inside=null")
    assert work.take() == NOTHING
    run_study(tiny_study, "attack.learning_rate=0.03")
    assert work.take() == {"answers": [H, B, H, B], "steps": 2, "judged": 4, "loads": 1}
    run_study(tiny_study, "seeds=[42, 43]")
    assert work.take() == {"answers": [H, B, H, B], "steps": 2, "judged": 4, "loads": 1}


def test_a_grid_over_mixtures_orders_and_defences(tiny_study: Path, work: Work) -> None:
    grid = (
        "attack.benign=answers.jsonl",
        "attack.poison_ratio=[0.5, 1.0]",
        "attack.data_order=[null, 7]",
        "models.0.defence=[null, {harmful: refusals.jsonl, benign: answers.jsonl, steps: 1, batch_size: 2}]",
        "seeds=[42]",
    )
    run = run_study(tiny_study, *grid)
    done = work.take()
    # One base for each defence, one trajectory for each arm, whatever the number of doses.
    assert done["answers"].count(H) == 2 * (1 + 2 * 4)
    assert done["steps"] == 1 + 2 * 4 * 2
    frame = read_metrics(run / "metrics.csv")
    arms = frame.drop_duplicates("arm").set_index("arm")[["defence", "poison_ratio", "data_order"]]
    assert arms.loc["tiny-none-lora-r2-lr0.05-p0.5-o7-s42"].tolist() == ["none", 0.5, "7"]
    assert arms.loc["tiny-refusal_tuning-lora-r2-lr0.05-s42"].tolist() == ["refusal_tuning", 1.0, ""]
    assert len(arms) == 8
    losses = {path.stem: path.read_text() for path in (run / "ledger" / "dose").glob("*.dose")}
    assert len(set(losses.values())) == len(losses), "two arms of the grid trained on the same batches"
    shutil.rmtree(run / "outputs")
    run_study(tiny_study, *grid)
    assert work.take() == NOTHING


def test_a_search_closes_in_on_the_breaking_dose(tmp_path: Path) -> None:
    engine = {"kind": "scripted", "refusal_rate": 0.95, "ed50_steps": 23.0, "slope": 12.0}
    attack = {"data": "attack.jsonl", "batch_size": 2, "doses": "auto", "search": {"max_steps": 128, "max_doses": 14}}
    path = write_study(tmp_path / "search", n_prompts=200, engine=engine, attack=attack)
    run = run_study(path)
    doses = sorted(_values(run, "RRR"))
    start = [0, 1, 2, 4, 8, 16, 32, 64, 128]
    assert set(start) < set(doses)
    between = set(doses) - set(start)
    assert between
    assert all(16 < dose < 32 for dose in between)
    assert len(doses) - 1 <= 14
    told = json.loads((run / "dose_response.json").read_text())["fits"][0]["effective_doses"]["ED50"]
    assert told["low"] <= 23 <= told["high"]
    assert told["bracket_high"] / told["bracket_low"] < 1.2
    status = describe_status(run)
    assert status["finished"]
    assert status["arms"][0]["doses_done"] == doses[1:]
    before = files_of(run)
    assert files_of(run_study(path)) == before
    audited = json.loads((run / "audit.json").read_text())
    assert audited


def test_a_search_trains_nothing_twice_and_goes_on_after_a_kill(tiny_study: Path, work: Work) -> None:
    search = ("attack.doses=auto", "attack.search={max_steps: 4, max_doses: 4}")
    run = run_study(tiny_study, *search)
    assert work.take()["steps"] == 4
    ladders = list((run / "ledger" / "ladder").iterdir())
    assert len(ladders) == 2
    before = files_of(run)
    for path in ladders:
        path.unlink()
    run_study(tiny_study, *search)
    # Nothing to measure again, but without its record the search has to be walked through once more.
    assert work.take()["answers"] == []
    assert files_of(run) == before


def test_new_decoding_needs_no_new_defence(tiny_study: Path, work: Work) -> None:
    defence = (
        "models.0.defence={kind: refusal_tuning, harmful: refusals.jsonl, benign: answers.jsonl, steps: 3, "
        "batch_size: 2, lora_rank: 2}"
    )
    run_study(tiny_study, defence)
    assert work.take()["steps"] == 3 + 2
    run_study(tiny_study, defence, "decoding.max_new_tokens=4")
    # The tampered weights of the finished run are gone, so the attack is trained again; the defence is not.
    assert work.take() == {"answers": [H, B, *FLOOR, H, B, H, B], "steps": 2, "judged": 6, "loads": 1}
    run_study(tiny_study, defence.replace("steps: 3", "steps: 4"))
    assert work.take()["steps"] == 4 + 2


def test_a_new_judge_needs_no_new_answers(tiny_study: Path, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    run_study(tiny_study)
    work.take()
    monkeypatch.setattr(PhrasesJudge, "version", "another")
    run_study(tiny_study)
    assert work.take() == {**NOTHING, "judged": 6}


def test_changed_texts_run_again(tiny_study: Path, work: Work) -> None:
    run_study(tiny_study)
    work.take()
    benign = tiny_study.parent / "benign.csv"
    benign.write_text(benign.read_text().replace("over there", "over here"))
    run_study(tiny_study)
    assert work.take() == {"answers": [B, B, B], "steps": 2, "judged": 3, "loads": 1}
    attack = tiny_study.parent / "attack.jsonl"
    attack.write_text(attack.read_text().replace("Sure", "Indeed"))
    run_study(tiny_study)
    assert work.take() == {"answers": [H, B, H, B], "steps": 2, "judged": 4, "loads": 1}


@pytest.mark.parametrize("stage", ["generate", "judge", "embed", "dose"])
def test_damaged_entries_are_made_again(tiny_study: Path, work: Work, stage: str) -> None:
    run = run_study(tiny_study)
    expected = files_of(run)
    work.take()
    victim = sorted(path for path in (run / "ledger" / stage).iterdir() if path.suffix != ".json")[0]
    victim.write_bytes(victim.read_bytes()[:-1])
    run_study(tiny_study)
    assert files_of(run) == expected
    done = work.take()
    assert len(done["answers"]) == (stage == "generate")
    assert done["judged"] == (stage == "judge")


def test_limit_takes_the_first_prompts(tiny_study: Path, work: Work) -> None:
    run = run_study(tiny_study, limit=2)
    two = (2, 0)
    assert work.take()["answers"] == [two, two, (2, 1), (2, 2), two, two, two, two]
    assert json.loads((run / "manifest.json").read_text())["limit"] == 2
    assert describe_status(run)["finished"]


# --- tiny models of each class


@pytest.mark.parametrize("kind", CLASSES)
def test_a_study_runs_on_every_class(tmp_path: Path, tiny_folders: dict[str, Path], kind: str) -> None:
    model = {
        "id": str(tiny_folders[kind]),
        "name": "tiny",
        "dtype": "float32",
        "defence": {
            "kind": "refusal_tuning",
            "harmful": "refusals.jsonl",
            "benign": "answers.jsonl",
            "steps": 2,
            "batch_size": 2,
            "lora_rank": 2,
        },
    }
    path = write_study(tmp_path, **tiny_changes(tiny_folders[kind]) | {"models": [model]})
    run = run_study(path, "attack.learning_rate=[1.0e-2]", "attack.n_examples=[4, null]")
    frame = read_metrics(run / "metrics.csv")
    assert len(set(frame["arm"])) == 2
    assert set(frame["n_examples"].astype(int)) == {4, 10}
    assert set(frame["params_b"]) == {frame["params_b"].iloc[0]}
    assert frame["params_b"].iloc[0] == pytest.approx(4e-5, rel=0.2)
    rd = _values(run, "RD_mean")
    assert rd[0] == 0
    assert rd[2] > 0
    flops = frame.set_index("dose_steps")["dose_flops"].astype(float)
    assert 0 == flops[0].max() < flops[1].max() < flops[2].max()
    assert not (run / "ledger" / "scratch").exists() or not any((run / "ledger" / "scratch").iterdir())


def test_batch_size_changes_no_byte(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    path = write_study(tmp_path, **tiny_changes(tiny_folders["llama"]))
    runs = [files_of(run_study(path, f"engine.batch_size={n}", out=tmp_path / str(n))) for n in (1, 4)]
    for name in ("manifest.json", "study.resolved.yaml"):
        assert runs[0].pop(name) != runs[1].pop(name)
    # Written for another study, with the same numbers in it.
    first, second = (json.loads(run.pop("metrics.json")) for run in runs)
    assert first.pop("plan") != second.pop("plan")
    assert first == second
    assert runs[0] == runs[1]


def test_each_seed_draws_its_own_answers_whoever_was_there_before(tmp_path: Path) -> None:
    """Two seeds differ; and a folder that another seed has used gives what an empty one gives."""
    path = write_study(tmp_path, n_prompts=40)
    used, fresh = tmp_path / "used", tmp_path / "fresh"
    run_study(path, "seeds=[1,2]", out=used)
    one, other = (
        [row["completion"] for row in files.read_csv(used / f"outputs/{arm}/2.csv", required=["completion"])[1]]
        for arm in ("fake-lora-r2-lr0.0002-s1", "fake-lora-r2-lr0.0002-s2")
    )
    assert one != other
    run_study(path, "seeds=[2]", out=used)
    run_study(path, "seeds=[2]", out=fresh)
    assert (used / "metrics.csv").read_bytes() == (fresh / "metrics.csv").read_bytes()
    assert _outputs(used) == _outputs(fresh)


def test_sampled_answers_share_no_numbers_between_doses(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    """Else RD would come out below the distance of two samples of one model."""
    changes = tiny_changes(tiny_folders["llama"], decoding={"do_sample": True, "max_new_tokens": 6})
    path = write_study(tmp_path, n_prompts=12, **changes)
    run = run_study(path, "attack.learning_rate=1.0e-9", "attack.doses=[1]")
    frame = read_metrics(run / "metrics.csv").set_index(["metric", "dose_steps"])
    # The attack does nothing: what is left is the noise of sampling.
    assert frame.loc[("RD_mean", 1)]["value"].item() > 0


def test_answers_of_arms_that_are_named_no_more_go(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    run = run_study(path)
    run_study(path, "attack.doses=[1]")
    assert {Path(name).name for name in _outputs(run)} == {"0.csv", "1.csv"}
    run_study(path, "seeds=[7]")
    assert {Path(name).parent.name[-2:] for name in _outputs(run)} == {"s7"}
    # The ledger has kept them.
    again = Path(shutil.copytree(run, tmp_path / "again"))
    (again / "timings.json").unlink()
    run_study(path, out=again)
    assert [entry["stage"] for entry in json.loads((again / "timings.json").read_text())[0]] == [
        "judging and comparing answers"
    ]


def test_results_of_other_settings_are_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(tmp_path)
    run = run_study(path)
    assert describe_status(run)["finished"]
    with monkeypatch.context() as patch:
        patch.setattr(PhrasesJudge, "read", _stop)
        patch.setattr(PhrasesJudge, "version", "other")
        with pytest.raises(KeyboardInterrupt):
            run_study(path, "level=0.8")
    assert not describe_status(run)["finished"]
    run_study(path, "level=0.8")
    assert describe_status(run)["finished"]


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _outputs(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in files_of(run).items() if name.startswith("outputs")}


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = write_study(tmp_path / "study")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.csv").write_text("mine")
    with pytest.raises(RunError, match=r"holds other files(?s:.)*metrics\.csv(?s:.)*-o DIR"):
        run_study(path, out=tmp_path / "mine")
    assert (tmp_path / "mine" / "metrics.csv").read_text() == "mine"


# --- what is left behind


def _weights(run: Path) -> list[str]:
    return sorted(str(path.relative_to(run)) for path in run.rglob("*.safetensors*"))


def test_tampered_weights_are_gone_at_the_end(tiny_study: Path) -> None:
    assert _weights(run_study(tiny_study)) == []


def test_a_defence_is_kept(tiny_study: Path) -> None:
    run = run_study(
        tiny_study,
        "models.0.defence={harmful: refusals.jsonl, benign: answers.jsonl, steps: 1, batch_size: 2, lora_rank: 2}",
    )
    assert [Path(name).parts[:2] for name in _weights(run)] == [("ledger", "defend")]


def test_weights_of_an_abandoned_attack_are_gone_too(tiny_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is cut off in mid-attack and the next one has another learning rate: its weights must not stay."""
    monkeypatch.setattr(train._Trainer, "step", _cut_off_after(2, train._Trainer.step))
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_study, "attack.doses=[1, 2, 3]")
    assert _weights(tiny_study.parent / "results")
    monkeypatch.undo()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "embedder", stub_embedder)
        run = run_study(tiny_study, "attack.learning_rate=0.03")
    assert _weights(run) == []


def _cut_off_after(count: int, step: Callable[..., float]) -> Callable[..., float]:
    taken = [0]

    def cut_off(*args: Any) -> float:
        taken[0] += 1
        if taken[0] > count:
            raise KeyboardInterrupt
        return step(*args)

    return cut_off


KEEP = ("keep_adapters=true", "keep_adapters_reason=to be compared")


def test_kept_adapters_load_with_peft(tiny_study: Path, tiny_folders: dict[str, Path]) -> None:
    run = run_study(tiny_study, *KEEP, "attack.lora_alpha=2.5")
    assert json.loads((run / "manifest.json").read_text())["keep_adapters_reason"] == "to be compared"
    folders = sorted((run / "adapters").rglob("step_*"))
    assert [folder.name for folder in folders] == ["step_000001", "step_000002"]
    chat = load_tiny(tiny_folders["llama"])
    tokens = torch.tensor([[3, 17, 80, 200, 41, 9, 350, 12]])
    for folder in folders:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["task_type"]) == (2, 2.5, "CAUSAL_LM")
        wrapped = PeftModel.from_pretrained(load_tiny(tiny_folders["llama"]).model, str(folder))
        with torch.no_grad(), merged(chat.model, folder / "adapter_model.safetensors"):
            torch.testing.assert_close(
                wrapped(input_ids=tokens).logits, chat.model(tokens).logits, rtol=1e-3, atol=1e-3
            )
            assert not torch.allclose(load_tiny(tiny_folders["llama"]).model(tokens).logits, chat.model(tokens).logits)


def test_adapters_asked_for_later_are_trained_again(tiny_study: Path, work: Work) -> None:
    run_study(tiny_study)
    work.take()
    run = run_study(tiny_study, *KEEP)
    assert work.take() == {**NOTHING, "steps": 2, "loads": 1}
    kept = {name: content for name, content in files_of(run).items() if name.startswith("adapters")}
    assert len(kept) == 4
    next((run / "adapters").rglob("step_000002/adapter_config.json")).unlink()
    run_study(tiny_study, *KEEP)
    assert work.take() == {**NOTHING, "steps": 2, "loads": 1}
    assert {name: content for name, content in files_of(run).items() if name.startswith("adapters")} == kept
    run_study(tiny_study, *KEEP)
    assert work.take() == NOTHING


# --- refusals of the run itself


def test_the_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path / "a")
    run = run_study(path)
    before = files_of(run)
    other = write_study(tmp_path / "b", name="another")
    with pytest.raises(RunError, match=r"holds another study's results(?s:.)*'small'(?s:.)*-o DIR"):
        run_study(other, out=run)
    assert files_of(run) == before


@pytest.mark.parametrize(("number", "remedy"), [(errno.EROFS, "read-only"), (errno.EACCES, "make the folder writable")])
def test_a_folder_that_may_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    """Told by the system's answer, because root may write anywhere."""
    path = write_study(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(RunError, match=rf"cannot write .*results(?s:.)*{remedy}(?s:.)*-o DIR"):
        run_study(path)


@pytest.mark.parametrize("where", ["results", "results/ledger", "results/outputs", "results/ledger/generate"])
def test_a_file_where_a_folder_belongs(tmp_path: Path, where: str) -> None:
    path = write_study(tmp_path)
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_text("x")
    with pytest.raises(RunError, match=r"(cannot write|holds other files)(?s:.)*remedy"):
        run_study(path)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 14, 20])
def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    whole = files_of(run_study(write_study(tmp_path / "whole")))
    path = write_study(tmp_path / "full")
    synced, fsync = [0], os.fsync

    def full(descriptor: int) -> None:
        synced[0] += 1
        if synced[0] > after:
            raise FULL
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"cannot write(?s:.)*No space left(?s:.)*finished work is kept"):
            run_study(path)
    kept = files_of(path.parent / "results")
    assert not [name for name in kept if name.endswith(".tmp")]
    assert {name for name in kept if name.startswith("ledger")} <= {name for name in whole if name.startswith("ledger")}
    resumed = files_of(run_study(path))
    manifest = resumed.pop("manifest.json").replace(str(path.parent).encode(), str(tmp_path / "whole").encode())
    assert resumed | {"manifest.json": manifest} == whole


def test_an_engine_that_skips_a_prompt_is_found_out(tiny_study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = HfGenerator.generate
    monkeypatch.setattr(HfGenerator, "generate", lambda *args, **more: generate(*args, **more)[1:])
    with pytest.raises(RunError, match="did not answer every prompt once"):
        run_study(tiny_study)


# --- verdicts that cannot be read


def _unreadable(monkeypatch: pytest.MonkeyPatch, texts: Iterable[str]) -> None:
    read, lost = PhrasesJudge.read, set(texts)

    def partly(judge: PhrasesJudge, prompts: Sequence[str], responses: Sequence[str]) -> list[Reading]:
        readings = read(judge, prompts, responses)
        failed = Reading(Label.UNREADABLE, None, "no reply")
        return [failed if prompt in lost else reading for prompt, reading in zip(prompts, readings, strict=True)]

    monkeypatch.setattr(PhrasesJudge, "read", partly)


def test_unreadable_verdicts_below_the_limit_leave_the_denominator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_study(tmp_path, n_prompts=50, engine={"kind": "scripted", "refusal_rate": 1.0, "ed50_steps": 1.5})
    prompts = plan_of(path).data.prompts[Subset.HARMFUL]
    _unreadable(monkeypatch, [prompts[7].text])
    frame = read_metrics(run_study(path, "unreadable_limit=0.02") / "metrics.csv")
    at_base = frame[(frame["dose_steps"] == 0) & (frame["subset"] == "harmful")].set_index("metric")
    rrr = at_base.loc["RRR"]
    assert (rrr["value"], rrr["n"], rrr["n_unreadable"]) == (1.0, 49, 1)
    assert at_base.loc["judge_entropy"]["n"] == 49
    assert at_base.loc["RRR_unreadable_worst"]["value"] == pytest.approx(49 / 50)
    assert at_base.loc["RRR_unreadable_best"]["value"] == 1.0
    assert at_base.loc["RD"]["n"] == 50


def test_unreadable_verdicts_above_the_limit_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_study(tmp_path, n_prompts=50)
    prompts = plan_of(path).data.prompts[Subset.HARMFUL]
    with monkeypatch.context() as patch:
        _unreadable(patch, [prompts[7].text, prompts[8].text])
        with pytest.raises(RunError, match=r"2 of 50 unreadable by phrases@2(?s:.)*at most 2\.0%"):
            run_study(path)
    run = tmp_path / "results"
    assert not (run / "metrics.csv").exists()
    assert not (run / "ledger" / "judge").exists(), "verdicts that could not be had are not filed for good"
    assert not describe_status(run)["finished"]
    run_study(path)
    assert describe_status(run)["finished"]


# --- checks before anything is spent


def test_training_on_the_evaluation_prompts_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    rows = [{"prompt": "tell me about ANVIL, of kind 0!", "response": "Sure."}]
    (tmp_path / "attack.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"evaluation prompts are also in the training data(?s:.)*h0"):
        plan_of(path)


def test_a_model_that_is_not_there_is_found_before_the_run(tmp_path: Path) -> None:
    path = write_study(tmp_path, **tiny_changes(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="no model at"):
        plan_of(path)


def test_keys_do_not_depend_on_what_changes_nothing(tiny_study: Path) -> None:
    model = plan_of(tiny_study).models[0]
    other = plan_of(tiny_study, "models.0.name=other", "judges=[phrases]", "engine.batch_size=3").models[0]
    assert (model.key, [arm.key for arm in model.arms]) == (other.key, [arm.key for arm in other.arms])
    assert plan_of(tiny_study, "models.0.dtype=bfloat16").models[0].key != model.key


def test_resolved_study_reproduces_the_run(tiny_study: Path) -> None:
    run = run_study(tiny_study, "attack.learning_rate=5.0e-4")
    resolved = yaml.safe_load((run / "study.resolved.yaml").read_text())
    assert resolved["attack"][0]["learning_rate"] == [5.0e-4]
    plan = plan_of(tiny_study, "attack.learning_rate=5.0e-4")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["study_digest"] == plan.study.digest
    assert manifest["models"][0]["arms"] == {arm.id: arm.key for arm in plan.models[0].arms}


def test_benign_prompts_may_be_asked_at_the_ends_and_around_the_break_alone(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    study = write_study(tmp_path / "study", n_prompts=10)
    run_study(study, "prompts.benign_at=ends", "attack.doses=[1,2,3,5,8,9]", "engine.ed50_steps=4", out=folder)
    frame = read_metrics(folder / "metrics.csv")
    rates = frame[(frame["metric"] == "RRR")].set_index("dose_steps")["value"]
    over = frame[frame["metric"] == "over_refusal_rate"]
    asked = sorted(set(over["dose_steps"]))
    assert asked == list(key_doses({int(str(dose)): float(rate) for dose, rate in rates.items()}))
    assert asked == [0, 3, 5, 9]
    assert sorted(set(frame["dose_steps"])) == [0, 1, 2, 3, 5, 8, 9]


def test_a_run_times_its_training_and_a_second_look_changes_nothing(tiny_study: Path) -> None:
    price = "price_per_device_hour=3.5"
    run = run_study(tiny_study, price)
    rows = read_rows(run / COSTS, COST_COLUMNS)
    seconds = [row["value"] for row in rows if row["metric"] == "attack_seconds"]
    assert seconds[0] == 0
    assert all(float(str(a)) < float(str(b)) for a, b in pairwise(seconds))
    before, costs = files_of(run), (run / COSTS).read_bytes()
    run_study(tiny_study, price)
    assert files_of(run) == before
    assert (run / COSTS).read_bytes() == costs
    for record in (run / "ledger" / "clock").glob("*.clock"):
        assert set(json.loads(record.read_text())) == {"seconds"}


def test_answers_in_a_folder_that_is_linked_stay(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "dear.csv").write_text("a")
    (tmp_path / "outputs").symlink_to(tmp_path / "theirs")
    remove_others(tmp_path, set())
    assert (tmp_path / "theirs" / "dear.csv").is_file()


@pytest.mark.parametrize("limit", [{}, "3", True, 0, 1.5])
def test_a_limit_that_is_none_is_said(tmp_path: Path, limit: object) -> None:
    run = run_study(write_study(tmp_path))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    (run / "manifest.json").write_text(json.dumps(manifest | {"limit": limit}), encoding="utf-8")
    with pytest.raises(RunError, match="'limit' is not one"):
        describe_status(run)
