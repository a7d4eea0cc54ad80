"""Studies whose model is sharded over several processes while it is attacked."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

import fake_vllm
from studies import plan_of, run_study, tiny_changes, write_study
from tamperdose.errors import StudyError
from tamperdose.run.audit import audit_run
from tamperdose.run.schema import read_metrics
from tiny import save_tiny

pytestmark = pytest.mark.usefixtures("stub")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", end_bias=2.5, seed=3)


def sharded_study(folder: Path, model: Path, **more: Any) -> Path:
    attack = {"data": "attack.jsonl", "lora_rank": 2, "doses": [1, 3], "batch_size": 3, "learning_rate": 0.02}
    changes = {
        "engine": {"kind": "hf", "device": "cpu", "fsdp": 2},
        "attack": attack,
        "rd_floor": False,
        "inside": None,
        **more,
    }
    return write_study(folder, **{**tiny_changes(model), **changes})


def test_a_run_gives_what_it_gives_unsharded(tmp_path: Path, model: Path) -> None:
    defence = {"kind": "refusal_tuning", "harmful": "refusals.jsonl", "benign": "answers.jsonl", "steps": 2}
    models = [{"id": str(model), "name": "tiny", "dtype": "float32", "defence": defence}]
    path = sharded_study(tmp_path, model, models=models)
    run = run_study(path, out=tmp_path / "sharded")
    assert not multiprocessing.active_children()
    plain = run_study(path, "engine.fsdp=1", out=tmp_path / "plain")
    for name in sorted(plain.glob("outputs/*/*.csv")):
        assert (run / name.relative_to(plain)).read_text() == name.read_text()
    columns = ["arm", "dose_steps", "subset", "metric", "value"]
    assert read_metrics(run / "metrics.csv")[columns].equals(read_metrics(plain / "metrics.csv")[columns])
    ours, theirs = ([(check.name, check.outcome) for check in audit_run(each).checks] for each in (run, plain))
    assert ours == theirs
    # No tampered weights are left anywhere in the run's folder.
    assert not list(run.rglob("step_*.safetensors"))


@pytest.mark.slow
def test_an_engine_makes_room_for_the_processes(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_vllm.install(monkeypatch)
    path = sharded_study(tmp_path, model)
    engine = "engine={kind: vllm, device: cpu, fsdp: 2, equivalence: {n_prompts: 64, n_tokens: 4}}"
    run = run_study(path, engine, out=tmp_path / "vllm")
    # One for the comparison and the base; it has ended while the processes trained.
    assert len(fake.started) == fake.stopped == 2
    monkeypatch.undo()
    plain = run_study(path, "engine.fsdp=1", out=tmp_path / "plain")
    for name in sorted(plain.glob("outputs/*/*.csv")):
        assert (run / name.relative_to(plain)).read_text() == name.read_text()


def test_sharding_is_part_of_the_keys_of_what_is_trained(tmp_path: Path, model: Path) -> None:
    attacks = [
        {"data": "attack.jsonl", "lora_rank": 2, "doses": [1], "batch_size": 2},
        {"kind": "prefill", "opener": "Sure", "doses": [1]},
    ]
    path = sharded_study(tmp_path, model, attack=attacks)
    two, one, four = (plan_of(path, *changes).models[0] for changes in ((), ("engine.fsdp=1",), ("models.0.fsdp=4",)))
    assert two.key == one.key == four.key
    assert len({each.arms[0].key for each in (two, one, four)}) == 3
    assert len({each.arms[1].key for each in (two, one, four)}) == 1
    # What was measured before there was the choice stays good.
    unsaid = plan_of(path, "engine={kind: hf, device: cpu}").models[0]
    assert [arm.key for arm in unsaid.arms] == [arm.key for arm in one.arms]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("models.0.quantization=nf4",), "4-bit weights do not come in shards"),
        (("attack={kind: full, data: attack.jsonl, doses: [1]}",), "'full' trains all weights"),
        (("engine.device=cuda:1",), "takes the first cards"),
        (("engine.device=mps",), "it needs cuda"),
        (("engine.fsdp=0",), "fsdp"),
        (("engine={kind: vllm, fsdp: 2}", "models.0.quantization=nf4"), "4-bit weights do not come in shards"),
    ],
)
def test_what_cannot_be_sharded_is_refused(tmp_path: Path, model: Path, changes: tuple[str, ...], said: str) -> None:
    path = sharded_study(tmp_path, model)
    with pytest.raises(StudyError, match=said):
        plan_of(path, *changes)
