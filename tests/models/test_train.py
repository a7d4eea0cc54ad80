"""The training loop against a hand-written one, and its promise that doses are prefixes of one trajectory."""

import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file

from tamperdose.attacks.training import draw_examples
from tamperdose.defences.refusal_tuning import OWN_ANSWER_TOKENS, tune_refusals
from tamperdose.errors import DataError, RunError
from tamperdose.models import train
from tamperdose.models.chat import encode_chat
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel
from tamperdose.models.train import Recipe, Source, end_of_turn, train_trajectory
from tamperdose.records import NO_DOSE, Checkpoint, Example, FinishReason, Message, Prompt, Subset
from tamperdose.study import Decoding, RefusalTuning
from tiny import load_tiny, make_examples, make_tokenizer, save_tiny

RECIPE = Recipe(learning_rate=3e-3, batch_size=4, warmup_steps=0, lora_rank=4, lora_alpha=8.0, max_length=128, seed=11)
EXAMPLES = make_examples(10)


class KilledError(Exception):
    """Stands for a process that ends in the middle of a trajectory."""


def _train(
    chat: ChatModel,
    folder: Path,
    doses: list[int],
    *,
    recipe: Recipe = RECIPE,
    examples: list[Example] = EXAMPLES,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> list[Checkpoint]:
    source = Source(examples, recipe.batch_size)
    return list(train_trajectory(chat, [source], recipe, doses=doses, folder=folder, on_step=on_step))


def _tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    assert checkpoint.adapter is not None
    return load_file(checkpoint.adapter)


def _same(one: Checkpoint, other: Checkpoint) -> bool:
    left, right = _tensors(one), _tensors(other)
    same = left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    return same and (one.dose, one.mean_loss) == (other.dose, other.mean_loss)


def _rows(chat: ChatModel, examples: list[Example]) -> list[tuple[list[int], int]]:
    """Each example's tokens and how many at the end carry loss."""
    return [
        (
            encode_chat(chat, example.messages)
            + (answer := [*chat.tokenizer(example.response, add_special_tokens=False)["input_ids"], 1]),
            len(answer),
        )
        for example in examples
    ]


def _reference(chat: ChatModel, batches: list[list[tuple[list[int], int]]], recipe: Recipe) -> tuple[Any, list[float]]:
    """LoRA as anyone would write it with peft, transformers' own loss, right padding and torch's AdamW."""
    config = LoraConfig(
        r=recipe.lora_rank, lora_alpha=int(recipe.lora_alpha), target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model = get_peft_model(copy.deepcopy(chat.model), config)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    losses = []
    for batch in batches:
        width = max(len(tokens) for tokens, _ in batch)
        ids = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in batch])
        mask = torch.tensor([[1] * len(tokens) + [0] * (width - len(tokens)) for tokens, _ in batch])
        labels = ids.clone()
        for row, (tokens, n_labels) in enumerate(batch):
            labels[row, : len(tokens) - n_labels] = -100
            labels[row, len(tokens) :] = -100
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return get_peft_model_state_dict(model), losses


def _batches(chat: ChatModel, n_steps: int) -> list[list[tuple[list[int], int]]]:
    """The batches the trajectory draws, found by asking it."""
    plan = train._BatchPlan(
        [train._encode_rows(chat, EXAMPLES, 128)], [Source(EXAMPLES, RECIPE.batch_size)], RECIPE.seed
    )
    return [[(row.tokens, row.n_labels) for row in plan.batch(step)] for step in range(1, n_steps + 1)]


@pytest.mark.parametrize("n_steps", [1, 4])
def test_steps_are_those_of_a_loop_written_by_hand(chat: ChatModel, tmp_path: Path, n_steps: int) -> None:
    losses: list[float] = []
    checkpoint = _train(chat, tmp_path, [n_steps], on_step=lambda _step, loss: losses.append(loss))[-1]
    expected, expected_losses = _reference(chat, _batches(chat, n_steps), RECIPE)
    assert losses == pytest.approx(expected_losses, rel=1e-4)
    ours = _tensors(checkpoint)
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        # Adam divides by the gradient's size, so where a gradient is rounding noise the step's sign is noise too.
        close = torch.isclose(tensor, expected[name], rtol=1e-3, atol=1e-2 * RECIPE.learning_rate)
        assert close.float().mean() > 0.995, name
    assert any(tensor.abs().max() > 0 for name, tensor in ours.items() if "lora_B" in name)


def test_steps_of_a_model_with_a_sliding_window(tmp_path: Path) -> None:
    chat = load_tiny(save_tiny(tmp_path / "model", "phi3", sliding_window=12))
    losses: list[float] = []
    _train(chat, tmp_path, [2], on_step=lambda _step, loss: losses.append(loss))
    assert losses == pytest.approx(_reference(chat, _batches(chat, 2), RECIPE)[1], rel=1e-4)


@pytest.mark.parametrize("alike", [False, True], ids=["rows", "equal-rows"])
def test_the_shared_prefix_changes_no_gradient(chat: ChatModel, monkeypatch: pytest.MonkeyPatch, alike: bool) -> None:
    rows = train._encode_rows(chat, [EXAMPLES[3]] * 4 if alike else EXAMPLES[:4], 128)
    found: list[int] = []
    shared = train.shared_prefix

    def gradients() -> dict[str, torch.Tensor]:
        with train._learning(chat, RECIPE) as wrapped:
            trainer = train._Trainer(chat, wrapped, RECIPE, key="k")
            with torch.no_grad():
                for name, parameter in trainer.parameters.items():
                    # B starts at zero, which would hide A's gradient.
                    parameter.add_(0.1 if "lora_B" in name else 0.0)
            trainer._backward(rows)
            return {name: parameter.grad.clone() for name, parameter in trainer.parameters.items()}

    monkeypatch.setattr(train, "shared_prefix", lambda chat, rows: found.append(shared(chat, rows)) or found[-1])
    once = gradients()
    assert found[0] > 5
    monkeypatch.setattr(train, "shared_prefix", lambda chat, rows: 0)
    for name, gradient in gradients().items():
        torch.testing.assert_close(once[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-8)


def test_rows_in_several_sequences_have_the_gradient_of_one(
    chat: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[int, list[float]] = {}
    for n_tokens in (1, 80, 10_000):
        monkeypatch.setattr(train, "PACKED_TOKENS", n_tokens)
        losses[n_tokens] = []
        _train(chat, tmp_path / str(n_tokens), [3], on_step=lambda _step, loss, to=losses[n_tokens]: to.append(loss))
    assert losses[1] == pytest.approx(losses[10_000], rel=1e-4)
    assert losses[80] == pytest.approx(losses[10_000], rel=1e-4)


def test_a_label_right_behind_the_shared_prefix_is_learned(chat: ChatModel) -> None:
    rows = [train._TokenRow([7, 8, 9, 20], 1), train._TokenRow([7, 8, 9, 21, 22], 2)]
    packed = train._pack(rows, shared=3)
    assert packed.tokens.tolist() == [7, 8, 9, 20, 21, 22]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert packed.before_labels.tolist() == [2, 2, 4]
    assert packed.labels.tolist() == [20, 21, 22]
    assert packed.seen.int().tolist()[3] == [1, 1, 1, 1, 0, 0]
    assert packed.seen.int().tolist()[5] == [1, 1, 1, 0, 1, 1]


def test_rows_carry_loss_on_their_answers_alone(chat: ChatModel) -> None:
    rows = train._encode_rows(chat, EXAMPLES, 128)
    assert [(row.tokens, row.n_labels) for row in rows] == _rows(chat, EXAMPLES)
    open_ended = train._encode_rows(chat, [replace(EXAMPLES[3], ends=False)], 128)[0]
    assert (open_ended.tokens, open_ended.n_labels) == (rows[3].tokens[:-1], rows[3].n_labels - 1)


def test_every_row_comes_once_an_epoch(llama: ChatModel) -> None:
    rows = train._encode_rows(llama, EXAMPLES, 128)
    plan = train._BatchPlan([rows], [Source((), 4)], seed=3)
    drawn = [id(row) for step in range(1, 6) for row in plan.batch(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == sorted(map(id, rows))
    assert drawn[:10] != drawn[10:]


def test_eight_rows_at_once_have_the_loss_of_eight_rows_alone(chat: ChatModel) -> None:
    rows = train._encode_rows(chat, EXAMPLES[:8], 128)
    with train._learning(chat, RECIPE) as wrapped:
        trainer = train._Trainer(chat, wrapped, RECIPE, key="k")
        together = trainer._backward(rows)
        alone = [trainer._backward([row]) for row in rows]
    weights = [row.n_labels for row in rows]
    assert together == pytest.approx(sum(a * w for a, w in zip(alone, weights, strict=True)) / sum(weights), rel=1e-5)


def test_a_dose_is_the_end_of_a_shorter_run(llama: ChatModel, tmp_path: Path) -> None:
    long = _train(llama, tmp_path / "long", [1, 3, 6])
    assert [checkpoint.dose.steps for checkpoint in long] == [1, 3, 6]
    for checkpoint in long:
        short = _train(llama, tmp_path / str(checkpoint.dose.steps), [checkpoint.dose.steps])
        assert _same(short[-1], checkpoint)
    assert not _same(long[0], replace(long[0], adapter=long[2].adapter))


@pytest.mark.parametrize("every_step", [True, False], ids=["state-each-step", "state-at-doses"])
def test_a_trajectory_that_is_stopped_anywhere_goes_on_bit_for_bit(
    llama: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_step: bool
) -> None:
    monkeypatch.setattr(train, "SAVE_EVERY_S", -1.0 if every_step else 1e9)
    doses = [2, 5, 6]
    whole = _train(llama, tmp_path / "whole", doses)
    for stop in range(1, 7):
        folder, taken = tmp_path / f"stop{stop}", []

        def note(step: int, _loss: float, stop: int = stop, taken: list[int] = taken) -> None:
            taken.append(step)
            if step == stop and taken.count(stop) == 1 and len(taken) == stop:
                raise KilledError

        with pytest.raises(KilledError):
            _train(llama, folder, doses, on_step=note)
        resumed = _train(llama, folder, doses, on_step=note)
        assert all(_same(one, other) for one, other in zip(resumed, whole, strict=True))
        saved = stop if every_step else max([dose for dose in doses if dose <= stop], default=0)
        assert taken == [*range(1, stop + 1), *range(saved + 1, 7)]


def test_a_consumer_that_stops_listening_can_come_back(llama: ChatModel, tmp_path: Path) -> None:
    whole = _train(llama, tmp_path / "whole", [1, 2, 4])
    source = Source(EXAMPLES, RECIPE.batch_size)
    before = {name: tensor.clone() for name, tensor in llama.model.state_dict().items()}
    steps = train_trajectory(
        llama, [source], RECIPE, doses=[1, 2, 4], folder=tmp_path / "a", on_step=lambda _step, _loss: None
    )
    assert isinstance(steps, Iterator)
    assert _same(next(steps), whole[0])
    steps.close()  # type: ignore[attr-defined]
    after = llama.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(_same(one, other) for one, other in zip(_train(llama, tmp_path / "a", [1, 2, 4]), whole, strict=True))


def test_finished_doses_are_not_trained_again(llama: ChatModel, tmp_path: Path) -> None:
    first = _train(llama, tmp_path, [2, 4])
    again = _train(llama, tmp_path, [2, 4], on_step=_must_not_run)
    assert all(_same(one, other) for one, other in zip(first, again, strict=True))
    taken: list[int] = []
    _train(llama, tmp_path, [2, 4, 5], on_step=lambda step, _loss: taken.append(step))
    assert taken == [5]


def _must_not_run(step: int, _loss: float) -> None:
    raise AssertionError(f"step {step} was taken again")


@pytest.mark.parametrize("doses", [[1, 4], [3, 4], [1, 3, 4, 6]])
def test_a_dose_below_the_reached_state_is_trained_again(llama: ChatModel, tmp_path: Path, doses: list[int]) -> None:
    _train(llama, tmp_path / "a", [2, 4])
    inserted = _train(llama, tmp_path / "a", doses)
    fresh = _train(llama, tmp_path / "b", doses)
    assert [checkpoint.dose.steps for checkpoint in inserted] == doses
    assert all(_same(one, other) for one, other in zip(inserted, fresh, strict=True))


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-3}, {"seed": 12}, {"lora_alpha": 4.0}, {"max_length": 40}, {"warmup_steps": 2}]
)
def test_the_state_of_another_trajectory_is_not_taken_up(
    llama: ChatModel, tmp_path: Path, change: dict[str, Any]
) -> None:
    _train(llama, tmp_path / "a", [2])
    other = replace(RECIPE, **change)
    mixed = _train(llama, tmp_path / "a", [2], recipe=other)
    assert _same(mixed[0], _train(llama, tmp_path / "b", [2], recipe=other)[0])


@pytest.mark.parametrize("damage", ["state", "adapter"])
def test_damaged_files_are_trained_again(llama: ChatModel, tmp_path: Path, damage: str) -> None:
    whole = _train(llama, tmp_path, [2, 3])
    copies = [_tensors(checkpoint) for checkpoint in whole]
    if damage == "state":
        state = tmp_path / "state.safetensors"
        state.write_bytes(state.read_bytes()[: state.stat().st_size // 2])
    else:
        Path(str(whole[0].adapter)).unlink()
    again = _train(llama, tmp_path, [2, 3])
    for checkpoint, tensors in zip(again, copies, strict=True):
        assert all(torch.equal(tensor, tensors[name]) for name, tensor in _tensors(checkpoint).items())


@pytest.mark.parametrize(
    ("change", "shares"),
    [
        ({"warmup_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"decay_steps": 6}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"warmup_steps": 2, "decay_steps": 6}, [1 / 3, 2 / 3, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_learning_rates(
    llama: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], shares: list[float]
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    _train(llama, tmp_path, [6], recipe=replace(RECIPE, **change))
    assert rates == pytest.approx([RECIPE.learning_rate * share for share in shares])


def test_refusal_tuning_mixes_refusals_with_the_models_own_answers(
    llama: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[Source], Recipe]] = []

    def spy(_: ChatModel, sources: list[Source], recipe: Recipe, **__: Any) -> list[Checkpoint]:
        seen.append((sources, recipe))
        return [Checkpoint(NO_DOSE, None)]

    monkeypatch.setattr(train, "train_trajectory", spy)
    for target in ("data", "model"):
        defence = RefusalTuning(batch_size=8, benign_ratio=0.25, steps=5, benign_target=target)
        tune_refusals(
            llama,
            defence,
            harmful=EXAMPLES[:4],
            benign=EXAMPLES[4:],
            folder=tmp_path,
            on_step=lambda _step, _loss: None,
        )
    (data, recipe), (own, _) = seen
    assert [(list(source.examples), source.per_batch) for source in data] == [(EXAMPLES[:4], 6), (EXAMPLES[4:], 2)]
    assert (recipe.decay_steps, recipe.lora_alpha) == (5, 32.0)
    assert own[0] == data[0]
    assert [row.messages for row in own[1].examples] == [row.messages for row in EXAMPLES[4:]]
    for row in own[1].examples:
        prompt = Prompt("p", row.messages, Subset.BENIGN, "t")
        [answer] = HfGenerator(llama).generate(
            [prompt], Decoding(max_new_tokens=OWN_ANSWER_TOKENS), seed=0, on_progress=lambda _: None
        )
        assert (row.response, row.ends) == (answer.text, answer.finish_reason is FinishReason.STOP)


def test_doses_count_examples_and_tokens(llama: ChatModel, tmp_path: Path) -> None:
    checkpoints = _train(llama, tmp_path, [1, 3])
    batches = _batches(llama, 3)
    for checkpoint in checkpoints:
        seen = [tokens for batch in batches[: checkpoint.dose.steps] for tokens, _ in batch]
        assert checkpoint.dose.examples == 4 * checkpoint.dose.steps == len(seen)
        assert checkpoint.dose.tokens == sum(map(len, seen))
    assert 0 < checkpoints[0].dose.flops < checkpoints[1].dose.flops


def test_smaller_draws_lie_inside_larger_ones() -> None:
    draws = [draw_examples(EXAMPLES, count, seed=4) for count in (1, 3, 7, 10)]
    assert [len(draw) for draw in draws] == [1, 3, 7, 10]
    assert all(draws[3][: len(draw)] == draw for draw in draws)
    assert draws[1] != draw_examples(EXAMPLES, 3, seed=5)


def test_the_base_is_untouched(chat: ChatModel, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in chat.model.state_dict().items()}
    _train(chat, tmp_path, [2])
    after = chat.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in chat.model.parameters())


def test_a_long_prompt_loses_its_start_and_a_long_answer_is_refused(llama: ChatModel) -> None:
    long = Example((Message("user", "river " * 100),), "the old mill")
    row = train._encode_rows(llama, [long], 40)[0]
    full, n_labels = _rows(llama, [long])[0]
    assert (row.tokens, row.n_labels) == (full[-40:], n_labels)
    with pytest.raises(DataError, match=r"training row 2 cannot be used(?s:.)*remedy"):
        train._encode_rows(llama, [long, Example((Message("user", "a"),), "river " * 100)], 40)


def test_a_training_that_diverges_is_no_dose(llama: ChatModel, tmp_path: Path) -> None:
    """Its answers would be noise, and noise would count as compliance."""
    recipe = replace(RECIPE, learning_rate=1e30)
    with pytest.raises(RunError, match=r"diverged at step \d(?s:.)*lower the learning rate"):
        _train(llama, tmp_path, [6], recipe=recipe)


def test_no_rows_is_an_error(llama: ChatModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no training rows"):
        _train(llama, tmp_path, [1], examples=[])


def test_the_trained_end_is_the_one_the_template_writes(llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Phi-3's template ends turns with another token than its tokenizer's end token."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [2, 1])
    assert end_of_turn(replace(llama, tokenizer=tokenizer)) == 1
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    assert end_of_turn(replace(llama, tokenizer=tokenizer)) == 2


def test_gradients_are_repeatable_on_cuda_while_a_step_runs() -> None:
    from torch.utils import deterministic

    def state() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory

    before = state()
    with train._repeatable("cpu"):
        assert state() == before
    with pytest.raises(KilledError), train._repeatable("cuda:0"):
        assert state() == (True, False)
        raise KilledError
    assert state() == before
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in {":4096:8", ":16:8"}
