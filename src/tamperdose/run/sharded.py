"""An attack whose model is sharded over several processes, each with a card: what one card does not hold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tamperdose.attacks.attack import Attack, OnStep, TrainingRows
from tamperdose.models.load import ChatModel, ModelSource, load_empty, load_model, local_files
from tamperdose.models.lora import merge
from tamperdose.models.workers import Ranks, launched, require_cards
from tamperdose.records import Checkpoint
from tamperdose.study import ModelSpec


@dataclass(frozen=True, slots=True)
class SharedAttack:
    """What every process is told."""

    spec: ModelSpec
    """What is loaded."""
    source: ModelSource
    """Where its files are."""
    dtype: str
    """The dtype it is loaded in."""
    defence: Path | None
    """An adapter that is merged first."""
    attack: Attack
    """The attack, which trains an adapter."""
    rows: TrainingRows
    """What it trains on."""
    doses: tuple[int, ...]
    """Its steps."""
    folder: Path
    """Where it resumes from, and where checkpoints go."""


def attack_sharded(shared: SharedAttack, n_ranks: int, *, device: str, on_step: OnStep) -> Iterator[Checkpoint]:
    """Run an attack in `n_ranks` processes that hold a share of the model each; they end with the iterator.

    Raises:
        ModelError: There are not so many cards, or the model cannot be loaded.
        RunError: A process died, or training failed.
    """
    require_cards(n_ranks, device)
    # A model that must be converted first is, once.
    local_files(shared.source)
    for told in launched(partial(_work, shared), n_ranks, device=device):
        if isinstance(told, Checkpoint):
            yield told
        else:
            on_step(*told)


def _work(shared: SharedAttack, ranks: Ranks, tell: Callable[[Any], None]) -> None:
    chat = replace(_open(shared, ranks), ranks=ranks)

    def on_step(step: int, loss: float) -> None:
        if ranks.is_first:
            tell((step, loss))

    steps = shared.attack.run(chat, shared.rows, doses=shared.doses, folder=shared.folder, on_step=on_step)
    for checkpoint in steps:
        if ranks.is_first:
            tell(checkpoint)


def _open(shared: SharedAttack, ranks: Ranks) -> ChatModel:
    """The model with its defence in main memory, in the first process; in the others, what has room for a share."""
    if not ranks.is_first:
        return load_empty(shared.spec, shared.source, device=ranks.device, dtype=shared.dtype)
    chat = load_model(shared.spec, shared.source, device="cpu", dtype=shared.dtype)
    if shared.defence is not None:
        # Where the model that is measured has it computed, so that the two are the same to the last bit.
        merge(chat.model, shared.defence, device=ranks.device)
    return replace(chat, device=ranks.device)
