"""Two lanes do what one does, and the same on one core as on two."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tamperdose.models import lanes
from tamperdose.models.hf import HfGenerator
from tamperdose.models.lanes import side_by_side, split
from tamperdose.models.load import ChatModel
from tamperdose.models.train import Recipe, Source, train_trajectory
from tamperdose.study import Decoding
from tiny import load_tiny, make_examples, make_prompts, save_tiny

RECIPE = Recipe(learning_rate=3e-3, batch_size=5, warmup_steps=0, lora_rank=4, lora_alpha=8.0, max_length=128, seed=11)


@pytest.fixture
def llama(tmp_path: Path) -> ChatModel:
    """A model of the smallest class."""
    return load_tiny(save_tiny(tmp_path / "model", "llama"))


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for products, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _trained(chat: ChatModel, folder: Path) -> tuple[dict[str, torch.Tensor], float | None]:
    source = Source(make_examples(10), RECIPE.batch_size)
    last = list(train_trajectory(chat, [source], RECIPE, doses=[3], folder=folder, on_step=lambda _step, _loss: None))[
        -1
    ]
    return load_file(str(last.adapter)), last.mean_loss


def test_rows_are_dealt_out_evenly_and_completely() -> None:
    rows = [list(range(size)) for size in (3, 50, 7, 41, 9, 12, 30)]
    first, second = split(rows, 2, size=len)
    assert sorted(map(len, [*first, *second])) == sorted(map(len, rows))
    assert abs(sum(map(len, first)) - sum(map(len, second))) < 20
    assert [len(row) for row in first] == sorted(map(len, first), reverse=True)


@pytest.mark.parametrize("count", [0, 1])
def test_no_lane_is_empty(count: int) -> None:
    assert split(["row"] * count, 2, size=len) == [["row"]] * count


@pytest.mark.usefixtures("two_threads")
def test_parts_run_at_the_same_time_and_threads_are_given_back() -> None:
    meeting = threading.Barrier(2, timeout=20)

    def meet(part: int) -> tuple[int, int]:
        meeting.wait()
        return part, torch.get_num_threads()

    assert side_by_side(meet, [1, 2]) == [(1, 1), (2, 1)]
    assert torch.get_num_threads() == 2
    assert side_by_side(lambda _part: torch.get_num_threads(), [0]) == [2]


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_a_lane_comes_out() -> None:
    def fail(part: int) -> int:
        if part:
            raise ValueError("in a lane")
        return part

    with pytest.raises(ValueError, match="in a lane"):
        side_by_side(fail, [0, 1])
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_training_in_lanes(llama: ChatModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same update as in one lane but for rounding, and the same bytes with cores as without."""
    whole, whole_loss = _trained(llama, tmp_path / "whole")
    monkeypatch.setattr(lanes, "MIN_PARAMETERS", 0)
    halves, halves_loss = _trained(llama, tmp_path / "halves")
    torch.set_num_threads(1)
    alone, alone_loss = _trained(llama, tmp_path / "alone")
    assert halves_loss == alone_loss == pytest.approx(whole_loss, abs=1e-4)
    for name, tensor in halves.items():
        assert torch.equal(tensor, alone[name])
        torch.testing.assert_close(tensor, whole[name], atol=2e-3, rtol=1e-2)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("batch_size", [2, 64])
def test_answers_in_lanes(llama: ChatModel, monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    prompts, decoding = make_prompts(9), Decoding(max_new_tokens=12)
    told: list[int] = []
    whole = HfGenerator(llama, batch_size=batch_size).generate(prompts, decoding, seed=0, on_progress=told.append)
    monkeypatch.setattr(lanes, "MIN_PARAMETERS", 0)
    in_lanes = HfGenerator(llama, batch_size=batch_size).generate(prompts, decoding, seed=0, on_progress=told.append)
    assert in_lanes == whole
    assert sum(told) == 2 * len(prompts)
