"""Runs whose answers come from the engine `vllm`, a stand-in here, and the comparison that must come first."""

import json
from pathlib import Path
from typing import Any

import pytest

import fake_vllm
from studies import files_of, plan_of, run_study, tiny_changes, write_study
from tamperdose.errors import RunError, StudyError
from tamperdose.run.audit import audit_run
from tamperdose.run.equivalence import comparison_prompts, equivalence_key, read_equivalence
from tamperdose.run.ledger import Ledger
from tamperdose.run.schema import read_metrics
from tiny import save_tiny

pytestmark = pytest.mark.usefixtures("stub")

EQUIVALENCE = {"n_prompts": 64, "n_tokens": 4}
ENGINE = {"kind": "vllm", "device": "cpu", "equivalence": EQUIVALENCE}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model"), "llama", end_bias=2.5, seed=3)


def served_study(folder: Path, model: Path, **more: Any) -> Path:
    attack = {"data": "attack.jsonl", "lora_rank": 2, "doses": [1, 3], "batch_size": 2, "learning_rate": 0.02}
    changes = {"engine": ENGINE, "attack": attack, "rd_floor": False, "inside": None, **more}
    return write_study(folder, **{**tiny_changes(model), **changes})


def answers_of(run: Path) -> dict[str, str]:
    return {str(path.relative_to(run / "outputs")): path.read_text() for path in sorted(run.glob("outputs/*/*.csv"))}


def record_of(run: Path) -> dict[str, Any]:
    (record,) = json.loads((run / "manifest.json").read_text())["equivalence"].values()
    return record


def test_a_run_gives_what_transformers_gives_and_says_what_answered(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_vllm.install(monkeypatch)
    path = served_study(tmp_path, model)
    run = run_study(path, out=tmp_path / "vllm")
    plain = run_study(path, "engine={kind: hf, device: cpu}", out=tmp_path / "hf")
    assert answers_of(run) == answers_of(plain)
    columns = ["arm", "dose_steps", "subset", "metric", "value"]
    assert read_metrics(run / "metrics.csv")[columns].equals(read_metrics(plain / "metrics.csv")[columns])
    # One engine for the base and every adapter, ended when the model is done.
    assert len(fake.started) == fake.stopped == 1
    assert fake.started[0]["enable_lora"] is True
    record = record_of(run)
    assert (record["passed"], record["adapters"], record["n_prompts"]) == (True, "requests", 64)
    (attempt,) = record["tries"]
    assert attempt["states"]["base"]["n_same"] == attempt["states"]["adapter"]["n_same"] == 64
    assert attempt["states"]["adapter"]["max_difference"] < 1e-3
    assert record["adapter"]["effect"] >= 0.5
    assert attempt["adapter_effect"] == pytest.approx(record["adapter"]["effect"], rel=1e-3)
    check = next(check for check in audit_run(run).checks if check.name == "engine")
    assert check.outcome == "pass"
    # No tampered weights are left anywhere in the run's folder.
    assert not list(run.rglob("*.safetensors"))


def test_an_engine_that_leaves_adapters_off_answers_through_merged_weights(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_vllm.install(monkeypatch, ignores_adapters=True)
    path = served_study(tmp_path, model)
    run = run_study(path, out=tmp_path / "vllm")
    record = record_of(run)
    assert (record["passed"], record["adapters"]) == (True, "merged")
    first, second = record["tries"]
    assert (first["adapters"], second["adapters"]) == ("requests", "merged")
    assert any("does not act" in text for text in first["shortcomings"])
    assert any(text.startswith("adapter: log-probabilities differ") for text in first["shortcomings"])
    assert not [text for text in first["shortcomings"] if text.startswith("base")]
    assert second["shortcomings"] == []
    # Requests once; then an engine without adapters for each state.
    assert [bool(options.get("enable_lora")) for options in fake.started][:1] == [True]
    assert not any(options.get("enable_lora") for options in fake.started[1:])
    assert fake.stopped == len(fake.started)
    monkeypatch.undo()
    plain = run_study(path, "engine={kind: hf, device: cpu}", out=tmp_path / "hf")
    assert answers_of(run) == answers_of(plain)
    assert not list(run.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("defect", "adapters", "said"),
    [
        ({"noise": 0.5}, "auto", "log-probabilities differ by 0.5 nats in the mean"),
        ({"shift": 4}, "auto", "48 of 64 first tokens are the same"),
        ({"ignores_adapters": True}, "requests", "it does not act"),
        ({"forgets_adapters": True}, "requests", "adapter: what the engine says token by token is not"),
    ],
)
def test_an_engine_that_says_other_things_answers_nothing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, defect: dict[str, Any], adapters: str, said: str
) -> None:
    fake = fake_vllm.install(monkeypatch, **defect)
    path = served_study(tmp_path, model, engine={**ENGINE, "adapters": adapters})
    with pytest.raises(RunError, match="none of its answers would count") as failed:
        run_study(path, out=tmp_path / "out")
    assert said in str(failed.value)
    ledger = Ledger(tmp_path / "out" / "ledger")
    plan = plan_of(path)
    assert not list((ledger.root / "generate").glob("*"))
    record = read_equivalence(plan, ledger, plan.models[0])
    assert record is not None
    assert record["passed"] is False
    # It is known now: nothing is loaded again to say the same.
    n_started = len(fake.started)
    with pytest.raises(RunError, match="none of its answers would count"):
        run_study(path, out=tmp_path / "out")
    assert len(fake.started) == n_started
    # With another limit the comparison is made again.
    with pytest.raises(RunError):
        run_study(path, "engine.equivalence.n_tokens=3", out=tmp_path / "out")
    assert len(fake.started) > n_started


def test_a_run_that_goes_on_compares_once_and_ends_in_the_same_bytes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_vllm.install(monkeypatch)
    path = served_study(tmp_path, model)
    whole = run_study(path, out=tmp_path / "whole")
    fake.asked.clear()
    out = tmp_path / "cut"
    run_study(path, "attack.doses=[1]", out=out)
    n_compared = sum(params[0].prompt_logprobs is not None for _, params in fake.asked)
    run_study(path, out=out)
    # Of the base and the adapter, given answers and their own; of the base also the answers with the adapter.
    assert n_compared == 5
    assert sum(params[0].prompt_logprobs is not None for _, params in fake.asked) == n_compared
    before, after = files_of(whole), files_of(out)
    assert {name: after[name] for name in before if not name.startswith("ledger/")} == {
        name: value for name, value in before.items() if not name.startswith("ledger/")
    }


def test_a_trained_defence_and_controls_go_through_the_same_engine(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_vllm.install(monkeypatch)
    defence = {"kind": "safety_adapter", "harmful": "refusals.jsonl", "benign": "answers.jsonl", "steps": 2}
    defence |= {"lora_rank": 2, "benign_target": "data", "learning_rate": 0.02, "batch_size": 4}
    models = [{"id": str(model), "name": "tiny", "dtype": "float32", "defence": defence}]
    controls = {"random_draws": 3, "benign": "answers.jsonl", "max_prompts": 4}
    path = served_study(tmp_path, model, models=models, controls=controls)
    run = run_study(path, out=tmp_path / "vllm")
    plain = run_study(path, "engine={kind: hf, device: cpu}", out=tmp_path / "hf")
    assert answers_of(run) == answers_of(plain)
    assert (run / "controls.csv").read_text() == (plain / "controls.csv").read_text()
    assert len(fake.started) == 1
    # Attack 2, defence 2 twice: once trained in, once more while it answers.
    assert fake.started[0]["max_lora_rank"] == 8


def test_both_need_not_be_loaded_at_once(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_vllm.install(monkeypatch)
    path = served_study(tmp_path, model)
    together = run_study(path, out=tmp_path / "both")
    in_turn = run_study(path, "engine.keep_both=false", out=tmp_path / "turn")
    assert answers_of(together) == answers_of(in_turn)
    assert len(fake.started) > 2
    assert fake.stopped == len(fake.started)


def test_keys_name_the_engine_its_version_and_what_changes_its_answers(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamperdose.run import plan as plans
    from tamperdose.run.draws import base_draws
    from tamperdose.run.ladder import ladder_key

    path = served_study(tmp_path, model, attack={"data": "attack.jsonl", "doses": "auto", "search": {"max_steps": 8}})

    def keys(*overrides: str) -> tuple[Any, ...]:
        plan = plan_of(path, *overrides)
        (only,) = plan.models
        draw, arm = base_draws(plan, only)[0], only.arms[0]
        return draw.key, ladder_key(plan, arm), equivalence_key(plan, only)

    before = keys()
    for free in ("engine.gpu_memory_utilization=0.6", "engine.keep_both=false", "engine.max_model_len=200"):
        assert keys(free) == before
    for counts in ("engine.tensor_parallel_size=2", "engine.enforce_eager=true", "engine.batch_invariant=true"):
        assert not set(keys(counts)) & set(before)
    # A model may say its own; that counts with this engine alone.
    assert not set(keys("models.0.tensor_parallel_size=2")) & set(before)
    here, there = (
        plan_of(path, "engine={kind: hf, device: cpu}", *more) for more in ((), ("models.0.tensor_parallel_size=2",))
    )
    assert here.models[0].key == there.models[0].key
    # A limit changes what is compared, and no answer.
    assert keys("engine.equivalence.mean_logprob=0.05")[:2] == before[:2]
    assert keys("engine.equivalence.mean_logprob=0.05")[2] != before[2]
    hf = keys("engine={kind: hf, device: cpu}")
    assert hf[0] != before[0]
    assert hf[1] != before[1]
    assert hf[2] is None
    monkeypatch.setattr(plans, "package_version", lambda name: "0.33.0" if name == "vllm" else "1")
    assert not set(keys()) & set(before)


def test_few_prompts_are_made_up_for_by_bundled_ones(tmp_path: Path, model: Path) -> None:
    plan = plan_of(served_study(tmp_path, model))
    prompts = comparison_prompts(plan)
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 64
    assert [prompt.id for prompt in prompts][:6] == ["h0", "h1", "h2", "h3", "h4", "h5"]
    assert comparison_prompts(plan_of(served_study(tmp_path / "hf", model), "engine={kind: hf}")) == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("attack={kind: full, data: attack.jsonl, doses: [1]}", "a study of its own"),
        ("attack={kind: refusal_direction}", "a study of its own"),
        ("engine.equivalence.n_prompts=63", "n_prompts"),
        ("engine.equivalence.effect=0.2", "three times"),
        ("engine.tensor_parallel_size=0", "tensor_parallel_size"),
        ("engine.quantization=awq", "quantization"),
    ],
)
def test_studies_that_cannot_be_are_refused(tmp_path: Path, model: Path, override: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        plan_of(served_study(tmp_path, model), override)


def test_answers_of_an_engine_that_was_not_compared_are_withheld(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tamperdose.audit.findings import Claim, withheld

    fake_vllm.install(monkeypatch)
    run = run_study(served_study(tmp_path, model))
    path = run / "manifest.json"
    manifest = json.loads(path.read_text())
    arm = manifest["models"][0]["arms"]
    for damage in ({}, {key: {**value, "passed": False} for key, value in manifest["equivalence"].items()}):
        path.write_text(json.dumps({**manifest, "equivalence": damage}))
        audit = audit_run(run)
        for claim in (Claim.RRR, Claim.LOSS, Claim.RD, Claim.OVER_REFUSAL):
            assert "engine" in withheld(audit, claim, arm=next(iter(arm)), dose=1)


def _packed_plan(folder: Path, model: Path, **more: Any) -> Any:
    models = [{"id": str(model), "name": "tiny", "dtype": "bfloat16", "quantization": "nf4", **more}]
    return plan_of(served_study(folder, model, models=models, engine={"kind": "vllm"}))


def test_4bit_weights_are_served_as_they_were_trained_on(tmp_path: Path, model: Path) -> None:
    from tamperdose.errors import ModelError
    from tamperdose.models.vllm_engine import engine_options
    from tamperdose.run.backends import open_backend
    from tamperdose.run.plan import engine_identity
    from tamperdose.run.served import VllmBackend

    plan = _packed_plan(tmp_path, model, tensor_parallel_size=2)
    backend = open_backend(plan.study, plan.models[0])
    assert isinstance(backend, VllmBackend)
    options = engine_options(backend._base_weights(), backend.vllm, max_lora_rank=8)
    assert (options["quantization"], options["tensor_parallel_size"]) == ("bitsandbytes", 2)
    # No adapter can be merged into them: where requests fail, nothing is left to try.
    assert list(backend._ways()) == ["requests"]
    with pytest.raises(ModelError, match="cannot be merged into 4-bit"):
        backend._write_merged(None, tmp_path)
    assert "vllm-bnb-plugin" in engine_identity(plan.study)["packages"]


def test_what_trains_and_what_answers_is_one_loaded_4bit_model(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With transformers an adapter is never served on other weights than those it was trained on."""
    from tamperdose.models import load
    from tamperdose.run import backends
    from tiny import load_tiny

    plan = _packed_plan(tmp_path, model)
    loads: list[Any] = []

    def load_once(spec: Any, *_: Any, **__: Any) -> Any:
        loads.append(spec.quantization)
        return load_tiny(model)

    monkeypatch.setattr(load, "load_model", load_once)
    backend = backends.HfBackend(plan.study.engine, plan.models[0])
    arm = plan.models[0].arms[0]
    checkpoints = list(backend.attack(arm, plan.data, folder=tmp_path / "attack", on_step=lambda *_: None))
    for checkpoint in (None, *checkpoints):
        with backend.generator(checkpoint) as generator:
            assert generator.chat is backend.chat  # type: ignore[attr-defined]
    assert loads == ["nf4"]


def test_packed_and_whole_bases_share_no_answer(tmp_path: Path, model: Path) -> None:
    packed = _packed_plan(tmp_path / "a", model).models[0]
    whole = plan_of(tmp_path / "a" / "study.yaml", "models.0.quantization=null").models[0]
    assert packed.key != whole.key
    assert packed.arms[0].key != whole.arms[0].key
