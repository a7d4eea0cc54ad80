"""What processes that share a training do in the tests: in a module of its own, so that they can be told by name."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tamperdose.models.load import ChatModel, find_model, load_empty, load_model
from tamperdose.models.sharded import shard_bytes
from tamperdose.models.train import Recipe, Source, train_trajectory
from tamperdose.models.workers import Ranks, launched
from tamperdose.records import Checkpoint
from tamperdose.study import ModelSpec
from tiny import make_examples

RECIPE = Recipe(learning_rate=3e-3, batch_size=4, warmup_steps=0, lora_rank=4, lora_alpha=8.0, max_length=128, seed=11)
DOSES = (1, 3)


class KilledError(Exception):
    """Stands for a process that ends in the middle of a trajectory."""


@dataclass(frozen=True)
class Case:
    """One training."""

    model: Path
    folder: Path
    recipe: Recipe = RECIPE
    dtype: str = "float32"
    killed_at: int | None = None
    """A step at which it is ended, and then taken up again."""


@dataclass(frozen=True)
class Trained:
    """What came of it."""

    losses: list[float]
    checkpoints: list[Checkpoint]
    held_bytes: list[int]
    """Of the base's weights, by process."""


def opened(case: Case, ranks: Ranks | None) -> ChatModel:
    spec = ModelSpec(id=str(case.model))
    if ranks is not None and not ranks.is_first:
        chat = load_empty(spec, find_model(spec), device="cpu", dtype=case.dtype)
    else:
        chat = load_model(spec, find_model(spec), device="cpu", dtype=case.dtype)
    return replace(chat, ranks=ranks)


def train(case: Case, ranks: Ranks | None = None) -> tuple[list[float], list[Checkpoint], int]:
    """Train; the base's bytes that were held are those after the first step."""
    losses: dict[int, float] = {}
    held: list[int] = []
    chat = opened(case, ranks)

    def on_step(step: int, loss: float, killed_at: int | None = None) -> None:
        losses[step] = loss
        held.append(shard_bytes(chat.model))
        if step == killed_at:
            raise KilledError

    source = Source(make_examples(10), case.recipe.batch_size)
    run = partial(train_trajectory, sources=[source], recipe=case.recipe, doses=DOSES, folder=case.folder)
    if case.killed_at is not None:
        try:
            list(run(chat, on_step=partial(on_step, killed_at=case.killed_at)))
        except KilledError:
            chat = opened(case, ranks)
    return losses, list(run(chat, on_step=on_step)), max(held)


def train_cases(cases: list[Case], ranks: Ranks, tell: Callable[[Any], None]) -> None:
    for number, case in enumerate(cases):
        losses, checkpoints, held = train(case, ranks)
        tell((number, ranks.rank, losses, checkpoints, held))


def told(work: Any, n_ranks: int = 2) -> Iterator[Any]:
    return launched(work, n_ranks, device="cpu")
