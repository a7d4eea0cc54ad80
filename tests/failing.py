"""Processes that fail or die beside others that wait for them. Little is imported: each of them has to."""

import os
import signal
from collections.abc import Callable
from typing import Any

import torch

from tamperdose.models.workers import Ranks


def fail(where: int, error: Exception, ranks: Ranks, tell: Callable[[Any], None]) -> None:
    tell(ranks.rank)
    if ranks.rank == where:
        raise error
    _wait(ranks)


def die(where: int, ranks: Ranks, tell: Callable[[Any], None]) -> None:
    if ranks.rank == where:
        os.kill(os.getpid(), signal.SIGKILL)
    _wait(ranks)


def wait(ranks: Ranks, tell: Callable[[Any], None]) -> None:
    tell(os.getpid())
    if ranks.is_first:
        _wait(ranks)
    else:
        signal.pause()


def _wait(ranks: Ranks) -> None:
    ranks.total(0.0, [torch.zeros(1)])
