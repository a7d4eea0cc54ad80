"""What transformers says of a model, and of a model with an adapter: what another engine is held against.

The adapter is a random one, made so strong that it changes log-probabilities beyond doubt: an engine that leaves it
off, as has happened in silence (vLLM issues 34186, 48019, 49354), cannot pass for one that does not.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import log_softmax

from tamperdose.errors import ModelError, explain
from tamperdose.models.changes import Guard, changed
from tamperdose.models.chat import encode_prompts
from tamperdose.models.hf import HfGenerator, pad_left
from tamperdose.models.load import ChatModel
from tamperdose.models.random_update import UpdateSize, write_random_adapter
from tamperdose.records import NO_DOSE, Checkpoint, Prompt
from tamperdose.stats.equivalence import Agreement, Reading, agreement, effect, shortcomings
from tamperdose.study import Equivalence

BASE, ADAPTER = "base", "adapter"
"""The states compared: the untampered model, and the same with the comparison's adapter."""
ROWS = 8
"""Rows that go through the model together."""
FIRST_SIZE, ENLARGED = 1 / 64, 14
"""The adapter's first size, see `_sizes`, and how often it is made larger at most: each time twice to 16 times."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What transformers says."""

    rows: tuple[tuple[int, ...], ...]
    """The prompts' tokens."""
    continuations: Mapping[str, tuple[tuple[int, ...], ...]]
    """The first tokens of each state's greedy answers, by state."""
    readings: Mapping[str, Reading]
    """Of each state, on its own continuations."""
    unchanged: Reading
    """Of the base, on the adapter's continuations."""
    adapter: Checkpoint
    """The comparison's adapter."""
    size: float
    """How large it had to be, see `_sizes`."""

    @property
    def effect(self) -> float:
        """What the adapter does to the log-probabilities of its own answers, nats."""
        return effect(self.readings[ADAPTER].logprobs, self.unchanged.logprobs)


Read = Callable[[Checkpoint | None, Sequence[Sequence[int]], Sequence[Sequence[int]], int], Reading]
"""Has an engine read prompts and continuations in a state of the model, the base or at a checkpoint, and say so many
tokens of its own; 0: the first alone."""


def read_reference(
    chat: ChatModel, prompts: Sequence[Prompt], limits: Equivalence, *, rank: int, folder: Path, guard: Guard | None
) -> Reference:
    """Read a model with transformers, and with an adapter strong enough to be told from none.

    Args:
        chat: The model, with its defence merged.
        prompts: What it is asked.
        limits: How many tokens, and how strong the adapter is to be.
        rank: The adapter's.
        folder: Where its file goes.
        guard: What is added whenever the model is measured.

    Raises:
        ModelError: No adapter changes the model's answers enough.
    """
    rows = [tuple(tokens) for tokens in encode_prompts(chat, prompts, limits.n_tokens)]
    with changed(chat, None, guard):
        base = _continued(chat, rows, limits.n_tokens)
        own = read_chat(chat, rows, base, tie=limits.tie)
    size, found = FIRST_SIZE, None
    for _ in range(ENLARGED):
        path = write_random_adapter(folder / "adapter.safetensors", _sizes(chat, rank, size), seed="equivalence")
        checkpoint = Checkpoint(NO_DOSE, str(path))
        with changed(chat, checkpoint, guard):
            continuations = _continued(chat, rows, limits.n_tokens)
            reading = read_chat(chat, rows, continuations, tie=limits.tie)
        with changed(chat, None, guard):
            unchanged = read_chat(chat, rows, continuations)
        states = {BASE: base, ADAPTER: continuations}
        found = Reference(tuple(rows), states, {BASE: own, ADAPTER: reading}, unchanged, checkpoint, size)
        if found.effect >= limits.effect:
            return found
        # About in proportion, while it is small.
        size *= min(16.0, max(2.0, 1.5 * limits.effect / max(found.effect, 1e-6)))
    raise ModelError(
        explain(
            "no adapter changes what this model says",
            got=f"{0.0 if found is None else found.effect:.3g} nats in the mean at the largest size tried",
            expected=f"at least {limits.effect:g}",
            remedy="engine: {kind: hf}",
        )
    )


def compare(reference: Reference, read: Read, limits: Equivalence) -> dict[str, Any]:
    """Hold an engine against the reference: agreement by state, effect, and what falls short, as plain values."""
    rows = reference.rows
    states = {BASE: None, ADAPTER: reference.adapter}
    readings = {
        name: read(states[name], rows, reference.continuations[name], limits.n_tokens) for name in (BASE, ADAPTER)
    }
    unchanged = read(None, rows, reference.continuations[ADAPTER], 0)
    found = {name: agreement(reference.readings[name], readings[name]) for name in (BASE, ADAPTER)}
    acts = effect(readings[ADAPTER].logprobs, unchanged.logprobs)
    short = list(shortcomings(found, limits, reference_effect=reference.effect, engine_effect=acts))
    return {
        "states": {name: _plain(each) for name, each in found.items()},
        "adapter_effect": acts,
        "shortcomings": short,
    }


def _plain(found: Agreement) -> dict[str, Any]:
    return {**asdict(found), "share": found.share}


def read_chat(
    chat: ChatModel, rows: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, tie: float = 0.0
) -> Reading:
    """What transformers says of prompts and of given continuations of them, as the model stands.

    First tokens within `tie` nats of the most likely are `near` it.
    """
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]) + len(continuations[place]))
    first: dict[int, int] = {}
    near: dict[int, frozenset[int]] = {}
    logprobs: dict[int, tuple[float, ...]] = {}
    with torch.inference_mode():
        for start in range(0, len(order), ROWS):
            places = order[start : start + ROWS]
            padded = pad_left([[*rows[k], *continuations[k]] for k in places], shared=0, device=chat.device)
            logits = chat.model(
                input_ids=padded.tokens,
                attention_mask=padded.mask,
                position_ids=padded.positions,
                use_cache=False,
                logits_to_keep=max(len(continuations[k]) for k in places) + 1,
            ).logits
            for row, place in zip(logits, places, strict=True):
                scores = log_softmax(row[-len(continuations[place]) - 1 :].float(), dim=-1)
                first[place] = int(scores[0].argmax())
                near[place] = frozenset((scores[0] >= scores[0].max() - tie).nonzero().flatten().tolist())
                tokens = torch.tensor([*continuations[place]], device=scores.device, dtype=torch.long)
                given = scores[:-1].gather(1, tokens.unsqueeze(1)).squeeze(1)
                logprobs[place] = tuple(given.tolist())
    places = range(len(rows))
    return Reading(tuple(first[k] for k in places), tuple(logprobs[k] for k in places), tuple(near[k] for k in places))


def _continued(chat: ChatModel, rows: Sequence[Sequence[int]], n_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The first tokens of greedy answers; of one that ends at once, its end."""
    answers = HfGenerator(chat).greedy_tokens(rows, n_tokens)
    ends = read_chat(chat, rows, [()] * len(rows)).first
    return tuple(tuple(tokens) or (end,) for (tokens, _), end in zip(answers, ends, strict=True))


def _sizes(chat: ChatModel, rank: int, size: float) -> dict[str, UpdateSize]:
    """An update of every linear layer but the head whose Frobenius norm is `size` times the root of its narrower side.

    That is a property of the shapes alone: packed weights say nothing of their own norm.
    """
    head = chat.model.get_output_embeddings()
    linears = {
        f"base_model.model.{name}": module
        for name, module in chat.model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return {
        name: UpdateSize(
            module.in_features, module.out_features, rank, size * min(module.in_features, module.out_features) ** 0.5
        )
        for name, module in linears.items()
    }
