"""Two halves of a batch side by side on a CPU, each with its share of the cores.

A small model's step is thousands of short operations. Cores that share every one of them wait for one another at each
end; cores that have rows of their own do not. Which rows go together is a function of the rows alone, so results are
the same on one core as on many.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")
R = TypeVar("R")

N_LANES = 2
"""Lanes of a CPU: the sum of two gradients does not depend on their order, that of more does."""
MIN_PARAMETERS = 20_000_000
"""In smaller models most of the time goes into Python, of which only one thread runs at a time."""


def n_lanes(model: nn.Module, device: str) -> int:
    """Into how many lanes a model's rows are split."""
    size = sum(parameter.numel() for parameter in model.parameters())
    return N_LANES if device == "cpu" and size >= MIN_PARAMETERS else 1


def split(rows: Sequence[T], lanes: int, *, size: Callable[[T], int]) -> list[list[T]]:
    """Deal rows out, longest first and to and fro, so that lanes have about as much to do; none is empty.

    >>> split(["a", "bbb", "cc", "dddd", "e"], 2, size=len)
    [['dddd', 'a', 'e'], ['bbb', 'cc']]
    """
    ordered = sorted(rows, key=lambda row: -size(row))
    turn = [*range(lanes), *reversed(range(lanes))]
    dealt: list[list[T]] = [[] for _ in range(lanes)]
    for place, row in enumerate(ordered):
        dealt[turn[place % len(turn)]].append(row)
    return [lane for lane in dealt if lane]


def side_by_side(work: Callable[[T], R], parts: Sequence[T]) -> list[R]:
    """Do the work on every part, at the same time where there are cores for it; results in the order of the parts."""
    n_threads = torch.get_num_threads()
    if len(parts) < 2 or n_threads < 2:
        return [work(part) for part in parts]
    share = max(1, n_threads // len(parts))
    try:
        with ThreadPoolExecutor(len(parts), initializer=torch.set_num_threads, initargs=(share,)) as pool:
            return list(pool.map(work, parts))
    finally:
        # The number set last is the one that threads to come begin with.
        torch.set_num_threads(n_threads)
