"""A base whose weights are sharded over processes: the same training, in as little of its memory as they are many."""

import multiprocessing
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file

import failing
import sharding
from sharding import RECIPE, Case, Trained
from tamperdose.errors import DataError, ModelError, RunError
from tamperdose.models import load, workers
from tamperdose.models.activations import last_states
from tamperdose.models.changes import changed
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel
from tamperdose.models.train import Recipe, Source, train_trajectory
from tamperdose.models.workers import require_cards
from tamperdose.records import Checkpoint
from tamperdose.run.worker import is_of_the_machine
from tamperdose.study import Decoding
from tiny import load_tiny, make_examples, make_prompts, save_tiny

TWO = 2
CASES: dict[str, tuple[str, Recipe, str, int | None]] = {
    "llama": ("llama", RECIPE, "float32", None),
    "llama, killed": ("llama", RECIPE, "float32", 2),
    "llama, computed again": ("llama", replace(RECIPE, gradient_checkpointing=True), "float32", None),
    # Five rows, each a sequence of its own: one process has one more than the other.
    "qwen2, sliding": ("qwen2", replace(RECIPE, batch_size=5), "float32", None),
    "phi3, one row": ("phi3", replace(RECIPE, batch_size=1), "float32", None),
    "tied, bfloat16": ("tied", replace(RECIPE, batch_size=3), "bfloat16", None),
}
"""Trainings: the model, the recipe, the dtype and where one is killed."""


def tensors(path: str | None) -> dict[str, torch.Tensor]:
    assert path is not None
    return load_file(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    sliding = {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1}
    return {
        "llama": save_tiny(root / "llama", "llama"),
        "qwen2": save_tiny(root / "qwen2", "qwen2", **sliding),
        "phi3": save_tiny(root / "phi3", "phi3", sliding_window=12),
        "tied": save_tiny(root / "tied", "llama", tie_word_embeddings=True, num_hidden_layers=3),
    }


@pytest.fixture(scope="module")
def cases(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    root = tmp_path_factory.mktemp("sharded")
    return {
        name: Case(models[model], root / str(number), recipe, dtype, killed_at)
        for number, (name, (model, recipe, dtype, killed_at)) in enumerate(CASES.items())
    }


@pytest.fixture(scope="module")
def sharded(cases: dict[str, Case]) -> dict[str, Trained]:
    """All trainings by two processes, which are started once."""
    found: dict[str, Trained] = {}
    losses: dict[tuple[str, int], dict[int, float]] = {}
    held: dict[tuple[str, int], int] = {}
    for number, rank, each, checkpoints, n_bytes in sharding.told(partial(sharding.train_cases, [*cases.values()])):
        name = list(cases)[number]
        losses[name, rank], held[name, rank] = each, n_bytes
        if rank == 0:
            found[name] = Trained([*each.values()], checkpoints, [])
    for name, trained in found.items():
        # Every process knows the loss of the whole batch.
        assert losses[name, 0] == losses[name, 1]
        trained.held_bytes.extend(held[name, rank] for rank in range(TWO))
    return found


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(
    name: str, cases: dict[str, Case], sharded: dict[str, Trained], tmp_path: Path
) -> None:
    case, ours = cases[name], sharded[name]
    losses, alone, _ = sharding.train(replace(case, folder=tmp_path, killed_at=None))
    coarse = case.dtype == "bfloat16"
    assert ours.losses == pytest.approx([*losses.values()], rel=2e-2 if coarse else 1e-5)
    assert [one.dose for one in ours.checkpoints] == [one.dose for one in alone]
    assert [one.dose.steps for one in alone] == [*sharding.DOSES]
    for one, other in zip(ours.checkpoints, alone, strict=True):
        found, expected = tensors(one.adapter), tensors(other.adapter)
        assert found.keys() == expected.keys()
        for layer, tensor in found.items():
            # Adam divides by the gradient's size, so where a gradient is rounding noise the step's sign is noise too.
            if coarse:
                assert torch.cosine_similarity(tensor.flatten(), expected[layer].flatten(), dim=0) > 0.9, layer
                continue
            close = torch.isclose(tensor, expected[layer], rtol=1e-3, atol=1e-2 * RECIPE.learning_rate)
            assert close.float().mean() > 0.995, layer
        assert any(tensor.abs().max() > 0 for layer, tensor in found.items() if "lora_B" in layer)


def test_a_training_that_was_killed_ends_with_the_same_bytes(
    cases: dict[str, Case], sharded: dict[str, Trained]
) -> None:
    whole, resumed = sharded["llama"], sharded["llama, killed"]
    assert resumed.losses == whole.losses
    for name in ("step_000001.safetensors", "step_000003.safetensors"):
        one, other = (cases[case].folder / name for case in ("llama", "llama, killed"))
        assert one.read_bytes() == other.read_bytes()
    one, other = (tensors(str(cases[case].folder / "state.safetensors")) for case in ("llama", "llama, killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_computed_again_is_the_same_to_the_bit(sharded: dict[str, Trained]) -> None:
    whole, again = sharded["llama"], sharded["llama, computed again"]
    assert whole.losses == again.losses
    for one, other in zip(whole.checkpoints, again.checkpoints, strict=True):
        found, expected = tensors(one.adapter), tensors(other.adapter)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("name", CASES)
def test_each_process_holds_its_share_of_the_base(
    name: str, cases: dict[str, Case], sharded: dict[str, Trained]
) -> None:
    chat = sharding.opened(cases[name], None)
    whole = sum(weight.nbytes for weight in chat.model.parameters())
    held = sharded[name].held_bytes
    assert sum(held) >= whole
    # What cannot be halved to the row is filled up.
    assert max(held) <= 0.5 * whole + 64 * len(list(chat.model.parameters()))


def test_an_unsharded_state_is_not_gone_on_from(cases: dict[str, Case], sharded: dict[str, Trained]) -> None:
    steps: list[int] = []
    case = replace(cases["llama, killed"], killed_at=None)
    losses, _, _ = sharding.train(case)
    steps += losses
    assert steps == [1, 2, 3]
    assert sharded["llama, killed"].losses == pytest.approx([*losses.values()], rel=1e-5)


def test_what_a_process_raises_is_raised_here() -> None:
    error = DataError("training row 7 cannot be used")
    with pytest.raises(DataError, match="training row 7 cannot be used"):
        list(sharding.told(partial(failing.fail, 1, error)))
    assert not multiprocessing.active_children()


def test_memory_that_runs_out_says_what_to_do() -> None:
    told = workers._failure("OutOfMemoryError", "CUDA out of memory", 1, True)
    assert isinstance(told, RunError)
    assert "process 1" in str(told)
    assert "attack.gradient_checkpointing: true" in str(told)
    # Another try, by another worker of a cluster, is worth it.
    assert is_of_the_machine(told)
    assert not is_of_the_machine(workers._failure("ValueError", "a bug", 0, False))


def test_a_process_that_dies_ends_the_training() -> None:
    with pytest.raises(RunError, match="killed by signal 9") as failed:
        list(sharding.told(partial(failing.die, 1)))
    assert is_of_the_machine(failed.value)
    assert not multiprocessing.active_children()


def test_processes_end_when_nobody_listens() -> None:
    telling = sharding.told(failing.wait)
    assert next(telling)
    assert len(multiprocessing.active_children()) == TWO
    telling.close()
    assert not multiprocessing.active_children()


LISTENER = """
import sys
sys.path.insert(0, {tests!r})
if __name__ == "__main__":
    import failing
    from tamperdose.models.workers import launched
    for process in launched(failing.wait, 2, device="cpu"):
        print(process, flush=True)
"""


def test_processes_end_with_one_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "listener.py"
    script.write_text(LISTENER.format(tests=str(Path(sharding.__file__).parent)))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        children = [psutil.Process(int(parent.stdout.readline())) for _ in range(TWO)]
        parent.kill()
    _, left = psutil.wait_procs(children, timeout=20)
    assert not left


def test_more_cards_than_there_are_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.torch.cuda, "device_count", lambda: 1)
    require_cards(4, "cpu")
    with pytest.raises(ModelError, match="sharded over 2 cards") as failed:
        require_cards(2, "cuda")
    assert "1 CUDA device\n" in str(failed.value)
    with pytest.raises(ModelError, match="cannot be sharded here"):
        require_cards(2, "mps")


@pytest.fixture
def hooked(models: dict[str, Path]) -> ChatModel:
    """A model with the hooks that Accelerate puts on one whose layers lie on several cards; here all on the CPU."""
    chat = load_tiny(models["llama"])
    names = ["model.embed_tokens", *(f"model.layers.{k}" for k in range(2)), "model.norm", "model.rotary_emb"]
    skipped = chat.model._skip_keys_device_placement
    dispatch_model(
        chat.model,
        dict.fromkeys([*names, "lm_head"], "cpu"),
        main_device="cpu",
        force_hooks=True,
        skip_keys=skipped,
    )
    load._leave_indices(chat.model)
    assert {"logits_to_keep", *skipped} == set(chat.model._hf_hook.skip_keys)
    return chat


def test_a_model_that_is_spread_learns_and_answers_the_same(
    hooked: ChatModel, models: dict[str, Path], tmp_path: Path
) -> None:
    plain, prompts = load_tiny(models["llama"]), make_prompts(5)
    recipe = replace(RECIPE, gradient_checkpointing=True)

    def learn(chat: ChatModel, folder: Path) -> Checkpoint:
        source = Source(make_examples(10), recipe.batch_size)
        run = train_trajectory(chat, [source], recipe, doses=[2], folder=folder, on_step=lambda _step, _loss: None)
        return list(run)[-1]

    def answers(chat: ChatModel, checkpoint: Checkpoint) -> list[str]:
        with changed(chat, checkpoint):
            generator = HfGenerator(chat, batch_size=4)
            told = generator.generate(prompts, Decoding(max_new_tokens=8), seed=0, on_progress=lambda _count: None)
        return [each.text for each in told]

    one, other = learn(hooked, tmp_path / "hooked"), learn(plain, tmp_path / "plain")
    found, expected = tensors(one.adapter), tensors(other.adapter)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert answers(hooked, one) == answers(plain, other)
    rows = [[7, 8, 9, 10], [7, 8, 20]]
    np.testing.assert_array_equal(last_states(hooked, rows), last_states(plain, rows))


def test_places_are_told_from_the_cpu_where_layers_lie_on_several_cards(llama: ChatModel) -> None:
    def placed(**places: int) -> ChatModel:
        return replace(llama, model=SimpleNamespace(hf_device_map=places), device="cuda")

    assert placed(a=0, b=1).index_device == "cpu"
    assert placed(a=0, b=0).index_device == placed().index_device == "cuda"
    assert llama.index_device == "cpu"


def test_layers_are_spread_over_the_cards_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (70 + card, 80))
    assert load._placement("cuda", 1) == {"device_map": {"": "cuda"}}
    assert load._placement("cuda", 2) == {"device_map": "balanced", "max_memory": {0: 70, 1: 71}}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert load._placement("cuda", 2) == {"device_map": {"": "cuda"}}
