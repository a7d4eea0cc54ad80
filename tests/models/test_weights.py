"""Training all weights: against a loop written by hand, resumed, and undone to the last bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tamperdose.errors import ModelError
from tamperdose.models import train
from tamperdose.models.changes import change_size, changed
from tamperdose.models.flops import n_parameters, training_flops
from tamperdose.models.load import ChatModel, architecture_of
from tamperdose.models.train import Recipe, Source, train_trajectory
from tamperdose.records import NO_DOSE, Checkpoint, RandomStep
from tiny import load_tiny, make_examples

RECIPE = Recipe(
    learning_rate=1e-3, batch_size=4, warmup_steps=0, lora_rank=None, lora_alpha=0.0, max_length=128, seed=11
)
EXAMPLES = make_examples(10)


class KilledError(Exception):
    """Stands for a process that ends in the middle of a trajectory."""


def train_all(
    chat: ChatModel,
    folder: Path,
    doses: list[int],
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> list[Checkpoint]:
    source = Source(EXAMPLES, RECIPE.batch_size)
    return list(train_trajectory(chat, [source], RECIPE, doses=doses, folder=folder, on_step=on_step))


def weights_of(chat: ChatModel) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in chat.model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def file_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    assert checkpoint.adapter is None
    return load_file(str(checkpoint.weights))


def reference(chat: ChatModel, n_steps: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Every row alone, transformers' own loss, torch's AdamW: as anyone would write it."""
    rows = train._encode_rows(chat, EXAMPLES, RECIPE.max_length)
    batches = train._BatchPlan([rows], [Source((), RECIPE.batch_size)], RECIPE.seed)
    model: Any = copy.deepcopy(chat.model)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE.learning_rate, weight_decay=0.0)
    losses: list[float] = []
    for step in range(1, n_steps + 1):
        batch = batches.batch(step)
        n_labels = sum(row.n_labels for row in batch)
        total = 0.0
        for row in batch:
            tokens = torch.tensor([row.tokens])
            labels = tokens.clone()
            labels[0, : len(row.tokens) - row.n_labels] = -100
            loss = model(input_ids=tokens, labels=labels).loss * row.n_labels / n_labels
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return {name: weight.detach() for name, weight in model.named_parameters()}, losses


def test_steps_are_those_of_a_loop_written_by_hand(chat: ChatModel, tmp_path: Path) -> None:
    losses: list[float] = []
    before = weights_of(chat)
    checkpoint = train_all(chat, tmp_path, [3], lambda _step, loss: losses.append(loss))[-1]
    expected, expected_losses = reference(chat, 3)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    ours = file_of(checkpoint)
    assert ours.keys() == expected.keys()
    for name, weight in ours.items():
        # Adam divides by the gradient's size, so where a gradient is rounding noise the step's sign is noise too.
        close = torch.isclose(weight, expected[name], rtol=1e-4, atol=2e-2 * RECIPE.learning_rate)
        assert close.float().mean() > 0.99, name
        assert not torch.equal(weight, before[name]), name


def test_the_base_is_as_before_to_the_last_bit(chat: ChatModel, tmp_path: Path) -> None:
    before = weights_of(chat)
    first, last = train_all(chat, tmp_path, [1, 3])
    assert same(weights_of(chat), before)
    assert not any(weight.requires_grad for weight in chat.model.parameters())
    for checkpoint in (first, last):
        with changed(chat, checkpoint):
            assert same(weights_of(chat), file_of(checkpoint))
        assert same(weights_of(chat), before)
    with pytest.raises(RuntimeError, match="inside"), changed(chat, last):
        raise RuntimeError("inside")
    assert same(weights_of(chat), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_trajectory_that_was_killed_goes_on_to_the_same_bits(
    tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY_S", 0.0)
    # However long a save takes here, the state of every step is there.
    monkeypatch.setattr(train, "SAVING_SHARE", float("inf"))
    chat = load_tiny(tiny_folders["qwen2"], dtype=dtype)
    whole = train_all(chat, tmp_path / "whole", [1, 3, 4])
    steps: list[int] = []

    def kill(step: int, _loss: float) -> None:
        steps.append(step)
        if len(steps) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train_all(chat, tmp_path / "killed", [1, 3, 4], kill)
    resumed = train_all(chat, tmp_path / "killed", [1, 3, 4], lambda step, _loss: steps.append(step))
    assert steps == [1, 2, 3, 4]
    for one, other in zip(whole, resumed, strict=True):
        assert same(file_of(one), file_of(other))
        assert (one.dose, one.mean_loss) == (other.dose, other.mean_loss)
    # A call on a finished folder yields what is there.
    again = train_all(chat, tmp_path / "killed", [1, 3, 4], lambda step, _loss: steps.append(step))
    assert steps == [1, 2, 3, 4]
    assert [checkpoint.weights for checkpoint in again] == [checkpoint.weights for checkpoint in resumed]


def test_steps_that_half_precision_would_round_away_add_up(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    chat = load_tiny(tiny_folders["llama"], dtype="bfloat16")
    before = weights_of(chat)
    small = Recipe(**{**{name: getattr(RECIPE, name) for name in RECIPE.__slots__}, "learning_rate": 1e-4})
    source = Source(EXAMPLES, small.batch_size)
    first, last = train_trajectory(
        chat, [source], small, doses=[1, 20], folder=tmp_path, on_step=lambda _step, _loss: None
    )
    name = "model.layers.0.mlp.up_proj.weight"
    # Beyond 0.25 two numbers lie 0.002 apart: a step of 0.0001 is nothing, twenty may pass the half of it.
    large = before[name].abs() > 0.25
    moved = [float((file_of(c)[name] != before[name])[large].float().mean()) for c in (first, last)]
    assert file_of(last)[name].dtype == torch.bfloat16
    assert moved[0] == 0
    assert moved[1] > 0.2


def test_the_dose_counts_six_operations_per_weight(chat: ChatModel, tmp_path: Path) -> None:
    dose = train_all(chat, tmp_path, [2])[-1].dose
    architecture = architecture_of(chat.model.config)
    assert (dose.steps, dose.examples) == (2, 8)
    assert dose.flops > NO_DOSE.flops
    linear_only = training_flops(architecture, lora_rank=None, lengths=[dose.tokens], n_labels=0)
    assert dose.flops < 6 * n_parameters(architecture) * dose.tokens + linear_only


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_step_goes_as_far_as_the_attack_and_back(
    tmp_path: Path, tiny_folders: dict[str, Path], dtype: str
) -> None:
    chat = load_tiny(tiny_folders["llama"], dtype=dtype)
    before = weights_of(chat)
    (checkpoint,) = train_all(chat, tmp_path, [3])
    size = change_size(chat, checkpoint)
    assert size is not None
    attacked = {name: float((file_of(checkpoint)[name].float() - w.float()).norm()) for name, w in before.items()}
    assert size["weights"] == pytest.approx(attacked, rel=1e-5)
    seen = []
    for seed in ("a1", "a1", "b2"):
        step = Checkpoint(checkpoint.dose, None, change=RandomStep(size["weights"], seed))
        with changed(chat, step):
            seen.append(weights_of(chat))
        assert same(weights_of(chat), before)
    moves = {name: (weight.float() - before[name].float()).flatten() for name, weight in seen[0].items()}
    large = {name for name, move in moves.items() if move.numel() > 1000 or dtype == "float32"}
    # Of a few numbers in half precision only so many norms can be had.
    assert {name: float(moves[name].norm()) for name in large} == pytest.approx(
        {name: attacked[name] for name in large}, rel=0.011
    )
    assert sum(float(m.norm()) ** 2 for m in moves.values()) == pytest.approx(
        sum(n**2 for n in attacked.values()), 0.03
    )
    largest = max(moves, key=lambda name: moves[name].numel())
    other = (file_of(checkpoint)[largest].float() - before[largest].float()).flatten()
    assert abs(float(torch.cosine_similarity(moves[largest], other, dim=0))) < 0.1
    assert same(seen[0], seen[1]) and not same(seen[0], seen[2])


def test_packed_weights_do_not_learn(llama: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.model, "is_loaded_in_4bit", True, raising=False)
    with pytest.raises(ModelError, match="leave out `quantization`"):
        train_all(llama, tmp_path, [1])


def test_a_file_of_other_weights(llama: ChatModel, loaded: dict[str, ChatModel], tmp_path: Path) -> None:
    other = train_all(loaded["phi3"], tmp_path, [1])[-1]
    with pytest.raises(ModelError, match="weights of another model"), changed(llama, other):
        pass
    with pytest.raises(ModelError, match="cannot read"), changed(llama, Checkpoint(NO_DOSE, None, weights="missing")):
        pass
