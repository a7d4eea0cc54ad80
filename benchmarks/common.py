"""What the benchmarks share: timing, the spread of what was timed, and the machine's own rate."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of a piece of work."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def spread(values: Sequence[float]) -> str:
    """Median with minimum and maximum."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def say(text: str) -> None:
    """Print at once: the benchmarks are long."""
    print(text, flush=True)


def matmul_rate(size: int = 1536) -> float:
    """Operations per second of a large product in float32, the best of several: what the floors below assume."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = min(timed(lambda: torch.mm(a, b))[0] for _ in range(8))
    return 2 * size**3 / seconds
