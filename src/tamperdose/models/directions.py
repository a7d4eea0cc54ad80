"""The direction that tells refused requests from others in a model's residual stream, and how well it does.

Activations are those of the last prompt token after each block: see `activations`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tamperdose.errors import DataError, explain
from tamperdose.models.activations import last_states, read_states
from tamperdose.models.changes import projected_out
from tamperdose.models.chat import encode_chat
from tamperdose.models.flops import generation_flops
from tamperdose.models.load import ChatModel, architecture_of
from tamperdose.records import Message

LAYERS_TRIED = 0.8
"""Only the first layers are candidates: ablating the last ones changes the words themselves (Arditi et al., app. C)."""
CHOOSING = 0.25
"""Share of the requests that choose the layer and take no part in the means."""


@dataclass(frozen=True, slots=True)
class FoundDirection:
    """A unit vector and what it took."""

    direction: torch.Tensor
    """Shape (hidden_size,), float32, of length 1; from harmless towards harmful."""
    layer: int
    """After which block it was found, counted from 0."""
    n_requests: int
    """Requests that were read."""
    n_tokens: int
    """Tokens of them."""
    flops: int
    """Forward passes, those that chose the layer included."""


def find_direction(
    chat: ChatModel,
    harmful: Sequence[Sequence[Message]],
    harmless: Sequence[Sequence[Message]],
    *,
    n_examples: int,
    seed: int,
) -> FoundDirection:
    """Find the refusal direction: difference of means at each layer, the layer chosen on requests held out.

    Raises:
        DataError: Fewer than four requests of a kind.
    """
    rng = np.random.default_rng(seed)
    drawn = [_draw(rows, n_examples, rng) for rows in (harmful, harmless)]
    if min(map(len, drawn)) < 4:
        raise DataError(
            explain(
                "too few requests to find the refusal direction",
                got=f"{len(drawn[0])} harmful and {len(drawn[1])} harmless",
                expected="four of each at least; 128 in Arditi et al. 2024",
            )
        )
    encoded = [[encode_chat(chat, messages) for messages in rows] for rows in drawn]
    held_out = [max(1, round(CHOOSING * len(rows))) for rows in encoded]
    means = [last_states(chat, rows[n:]).mean(axis=0) for rows, n in zip(encoded, held_out, strict=True)]
    differences = means[0] - means[1]
    candidates = range(max(1, int(LAYERS_TRIED * len(differences))))
    opening = _openings(chat, encoded[0][: held_out[0]])
    scores = []
    for layer in candidates:
        with projected_out(chat.model, _unit(differences[layer]), 1.0):
            scores.append(_log_odds(chat, encoded[0][: held_out[0]], opening))
    layer = int(np.argmin(scores))
    read = [*encoded[0], *encoded[1], *encoded[0][: held_out[0]] * (1 + len(candidates))]
    sizes = architecture_of(chat.model.config)
    return FoundDirection(
        direction=_unit(differences[layer]),
        layer=layer,
        n_requests=len(encoded[0]) + len(encoded[1]),
        n_tokens=sum(map(len, [*encoded[0], *encoded[1]])),
        flops=sum(generation_flops(sizes, n_prompt=len(row), n_new=1) for row in read),
    )


def _openings(chat: ChatModel, rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens with which the model begins its answers."""
    return sorted({int(token) for batch in read_states(chat, rows) for token in batch.logits.argmax(dim=-1)})


def _log_odds(chat: ChatModel, rows: Sequence[Sequence[int]], tokens: Sequence[int]) -> float:
    """Mean over prompts of log p / (1 - p), p the probability that the answer begins with one of the tokens."""
    odds = []
    for batch in read_states(chat, rows):
        p = torch.softmax(batch.logits.double(), dim=-1)[:, list(tokens)].sum(dim=-1)
        odds.append(torch.logit(p, eps=1e-12))
    return float(torch.cat(odds).mean())


def _unit(vector: np.ndarray) -> torch.Tensor:
    length = float(np.linalg.norm(vector))
    return torch.from_numpy(vector / length if length else vector).to(torch.float32)


def _draw(rows: Sequence[Sequence[Message]], count: int, rng: np.random.Generator) -> list[Sequence[Message]]:
    return [rows[place] for place in rng.permutation(len(rows))[:count]]
