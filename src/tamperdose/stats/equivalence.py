"""Whether two engines compute the same model: agreement of first tokens, differences of log-probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tamperdose.errors import DataError, explain
from tamperdose.stats.rates import wilson
from tamperdose.study import Equivalence

EFFECT_TOLERANCE = 0.1
"""What an adapter moves log-probabilities by may differ from what it does in the reference by this share of it."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one engine says of one state of a model, on prompts and on given continuations of them."""

    first: tuple[int, ...]
    """The most likely first token of the answer to each prompt."""
    logprobs: tuple[tuple[float, ...], ...]
    """Log-probability of each token of each prompt's continuation, nats; the continuation is given, not sampled."""
    near: tuple[frozenset[int], ...] = ()
    """Of the reference: for each prompt the first tokens that rounding might put in the place of the most likely."""
    own: tuple[tuple[tuple[float, float], ...], ...] = ()
    """Of an engine: for each prompt the log-probabilities of the tokens of its own greedy answer, nats, as it said them
    one after the other and as it gives them when the answer is there from the start."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far an engine agrees with the reference on one state of a model."""

    n_prompts: int
    """Prompts compared."""
    n_same: int
    """Of those, how many have the same first token."""
    n_near: int
    """How many have the same, or one that the reference holds for nearly as likely."""
    low: float
    """Low end of Wilson's interval for that share."""
    high: float
    """High end."""
    n_tokens: int
    """Tokens whose log-probabilities were compared."""
    mean_difference: float
    """Mean absolute difference of log-probabilities, nats."""
    max_difference: float
    """Largest, nats."""
    n_decoded: int = 0
    """Tokens of the engine's own answers that it said one after the other and was given again; 0: not looked at."""
    decoded_mean: float = 0.0
    """Mean absolute difference of their two log-probabilities, nats."""
    decoded_max: float = 0.0
    """Largest, nats."""

    @property
    def share(self) -> float:
        """Share of prompts whose first token is the same or nearly as likely."""
        return self.n_near / self.n_prompts


def agreement(reference: Reading, engine: Reading, *, level: float = 0.95) -> Agreement:
    """Compare two readings of one state.

    Prompts are taken as independent: each is answered by itself, and what differs is rounding. Where rounding decides
    between two first tokens, `reference.near` holds both, and either counts. A log-probability that is not finite
    counts as an infinite difference, so that it fails every limit. Answers are had token by token, on other paths than
    given texts are read on: `engine.own` ties the one to the other within the engine.

    Raises:
        DataError: They do not hold the same prompts and tokens, or no prompt or no token.

    >>> one = Reading((1, 2), ((-0.5, -1.0), (-2.0,)))
    >>> found = agreement(one, Reading((1, 3), ((-0.5, -1.25), (-2.0,))))
    >>> found.share, round(found.low, 3), found.n_tokens, round(found.mean_difference, 4), found.max_difference
    (0.5, 0.095, 3, 0.0833, 0.25)
    """
    lengths = [list(map(len, reading.logprobs)) for reading in (reference, engine)]
    counts = {len(reading.first) for reading in (reference, engine)} | {len(found) for found in lengths}
    if lengths[0] != lengths[1] or len(counts) != 1:
        raise DataError(explain("two readings that are not of the same tokens", got=f"{_shape(lengths)}"))
    n_prompts, differences = len(reference.first), _differences(reference.logprobs, engine.logprobs)
    if not n_prompts or not differences:
        raise DataError(explain("nothing to compare", got=f"{n_prompts} prompts, {len(differences)} tokens"))
    same = [ours == theirs for ours, theirs in zip(reference.first, engine.first, strict=True)]
    near = reference.near or (frozenset[int](),) * n_prompts
    n_near = sum(one or token in those for one, token, those in zip(same, engine.first, near, strict=True))
    low, high = wilson(n_near / n_prompts, n_prompts, level)
    mean, largest = float(np.mean(differences)), max(differences)
    said, given = ([[pair[side] for pair in row] for row in engine.own] for side in (0, 1))
    own = _differences(said, given)
    decoded = (len(own), float(np.mean(own)), max(own)) if own else (0, 0.0, 0.0)
    return Agreement(n_prompts, sum(same), n_near, low, high, len(differences), mean, largest, *decoded)


def effect(changed: Sequence[Sequence[float]], unchanged: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference of the log-probabilities that two states give the same tokens, nats; 0 without tokens.

    >>> effect([[-1.0, -2.0]], [[-1.5, -2.0]])
    0.25
    """
    differences = _differences(changed, unchanged)
    return float(np.mean(differences)) if differences else 0.0


def shortcomings(
    found: dict[str, Agreement], limits: Equivalence, *, reference_effect: float, engine_effect: float
) -> Iterator[str]:
    """Say in words what does not hold; nothing where the engine may stand for the reference.

    Args:
        found: Agreement by state: the base, and the model with an adapter.
        limits: The study's.
        reference_effect: What the adapter does in the reference, by `effect`.
        engine_effect: What it does in the engine.
    """
    for state, each in found.items():
        if each.low <= limits.top1:
            yield (
                f"{state}: {each.n_near} of {each.n_prompts} first tokens are the same or within {limits.tie:g} nats "
                f"of it, {each.share:.3f} [{each.low:.3f}, {each.high:.3f}], more than {limits.top1:g} wanted"
            )
        if not each.mean_difference <= limits.mean_logprob:
            yield f"{state}: log-probabilities differ by {each.mean_difference:.3g} nats in the mean, " + _at_most(
                limits.mean_logprob
            )
        if not each.max_difference <= limits.max_logprob:
            yield f"{state}: one log-probability differs by {each.max_difference:.3g} nats, " + _at_most(
                limits.max_logprob
            )
        if not (each.decoded_mean <= limits.mean_logprob and each.decoded_max <= limits.max_logprob):
            yield (
                f"{state}: what the engine says token by token is not what it says of the same text at once: "
                f"{each.decoded_mean:.3g} nats in the mean, at most {each.decoded_max:.3g}, "
            ) + _at_most(limits.mean_logprob)
    if not abs(engine_effect - reference_effect) <= EFFECT_TOLERANCE * reference_effect:
        yield (
            f"the adapter changes log-probabilities by {engine_effect:.3g} nats in the mean, in transformers by "
            f"{reference_effect:.3g}: it does not act as there"
        )


def _at_most(limit: float) -> str:
    return f"at most {limit:g} wanted"


def _differences(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
    pairs = [(a, b) for row, other in zip(ours, theirs, strict=True) for a, b in zip(row, other, strict=True)]
    return [abs(a - b) if np.isfinite(a) and np.isfinite(b) else float("inf") for a, b in pairs]


def _shape(lengths: Sequence[Sequence[int]]) -> str:
    return " and ".join(f"{len(each)} prompts of {sum(each)} tokens" for each in lengths)
