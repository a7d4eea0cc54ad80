"""Processes that share one piece of work: started together, followed, and ended together whatever happens.

Each has a card of its own, or on a CPU its share of the threads. They end with the process that started them, also when
that is killed; one that fails or dies ends all.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist

from tamperdose import errors
from tamperdose.errors import ModelError, RunError, TamperdoseError, explain


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that share a training, and which of them this is. They have a process group."""

    rank: int
    """This one's number, from 0; the first writes the files."""
    n_ranks: int
    """How many there are."""
    device: str
    """Where this one computes."""

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes files and tells how far it is."""
        return self.rank == 0

    def total(self, loss: float, gradient: Sequence[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
        """Sum a loss, and a gradient in float32, over all processes; all have the same bits afterwards."""
        sizes = [part.numel() for part in gradient]
        flat = torch.cat([part.flatten() for part in gradient])
        dist.all_reduce(flat)
        summed = torch.tensor(loss, dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        parts = zip(flat.split(sizes), gradient, strict=True)
        return float(summed), [part.view_as(each) for part, each in parts]


Work = Callable[[Ranks, Callable[[Any], None]], None]
"""What every process does, and how it tells something; it must be possible to pickle it."""

PATIENCE = timedelta(days=1)
"""How long processes wait for one another: the first may load a model for long. One that has died is seen at once."""
GRACE_S = 30.0
"""How long a process that has done its part may take to end by itself."""
_TOLD, _FAILED, _DONE = "told", "failed", "done"


def require_cards(n_ranks: int, device: str) -> None:
    """Refuse a training on more cards than there are, or where there is but one accelerator.

    Raises:
        ModelError: There are fewer.
    """
    if device != "cpu" and not device.startswith("cuda"):
        raise ModelError(
            explain("a model cannot be sharded here", got=device, expected="CUDA cards, or a CPU", remedy="fsdp: 1")
        )
    there = torch.cuda.device_count()
    if device.startswith("cuda") and there < n_ranks:
        raise ModelError(
            explain(
                f"a model cannot be sharded over {n_ranks} cards",
                got=f"{there} CUDA {'device' if there == 1 else 'devices'}",
                remedy="a smaller fsdp, or models[].quantization: nf4 with fsdp: 1",
            )
        )


def launched(work: Work, n_ranks: int, *, device: str) -> Iterator[Any]:
    """Have processes do the work together, and yield what they tell, in the order in which it comes.

    Args:
        work: What each does.
        n_ranks: How many there are.
        device: `cpu`, or `cuda`: then each has a card.

    Raises:
        TamperdoseError: The one that a process raised.
        RunError: One failed otherwise, or died.
    """
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, Any] = {}
    with TemporaryDirectory(prefix="tamperdose-") as folder:
        try:
            for rank in range(n_ranks):
                ranks = Ranks(rank, n_ranks, f"cuda:{rank}" if device.startswith("cuda") else device)
                here, there = context.Pipe(duplex=False)
                arguments = (work, ranks, str(Path(folder) / "store"), there)
                process = context.Process(target=_enter, args=arguments, daemon=True)
                process.start()
                # The other end is the process's alone, so that its death closes it.
                there.close()
                running[here] = process
            yield from _follow(running)
            for process in running.values():
                # What its libraries hold of the system they give back as they end.
                process.join(GRACE_S)
        finally:
            _end(running)


def _follow(running: Mapping[Connection, Any]) -> Iterator[Any]:
    left = dict(running)
    while left:
        there = wait(list(left))
        ready = [pipe for pipe in left if pipe in there]
        heard: list[tuple[Connection, tuple[str, Any]]] = []
        for pipe in ready:
            message = _receive(pipe)
            if message is None:
                # Before what the others say: they fail when one has gone.
                raise _death(left[pipe])
            heard.append((pipe, message))
        for pipe, (kind, value) in heard:
            if kind == _FAILED:
                raise _failure(*value)
            if kind == _TOLD:
                yield value
            else:
                del left[pipe]


def _receive(pipe: Connection) -> tuple[str, Any] | None:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _death(process: Any) -> RunError:
    process.join()
    code = process.exitcode
    got = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    error = RunError(
        explain(
            "one of the processes that share a training has died",
            got=got,
            remedy="if memory ran out, have more of it, or more processes (fsdp); the same command goes on from the "
            "last state that was saved",
        )
    )
    # It may be the machine's doing: another try is worth it.
    error.__cause__ = ChildProcessError(got)
    return error


def _failure(kind: str, text: str, rank: int, out_of_memory: bool) -> TamperdoseError:
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, TamperdoseError):
        return known(text)
    memory = "attack.gradient_checkpointing: true, a smaller max_length, or a larger fsdp"
    error = RunError(
        explain(
            f"process {rank} of those that share a training has failed",
            got=f"{kind}: {text}",
            remedy=memory if out_of_memory else None,
        )
    )
    if out_of_memory:
        error.__cause__ = ChildProcessError(text)
    return error


def _end(running: Mapping[Connection, Any]) -> None:
    for process in running.values():
        process.kill()
    for pipe, process in running.items():
        process.join()
        process.close()
        pipe.close()


def _enter(work: Work, ranks: Ranks, store: str, pipe: Connection) -> None:
    """Where a process begins."""
    # Ctrl-C goes to all processes of a terminal; the one that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with _grouped(ranks, store):
            work(ranks, lambda value: pipe.send((_TOLD, value)))
        pipe.send((_DONE, None))
    except Exception as error:  # noqa: BLE001 - the worker boundary: whatever it is, it is told
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        pipe.send((_FAILED, (type(error).__name__, str(error) or repr(error), ranks.rank, out_of_memory)))
        # To leave now would make the others fail too, and they might be heard first.
        threading.Event().wait()


def _end_with_parent() -> None:
    """End at once when the process that started this one does, however that comes about."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _grouped(ranks: Ranks, store: str) -> Iterator[None]:
    """Join the process group, on this machine alone."""
    # Nothing of this is for the network.
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    options: dict[str, Any] = {"backend": "gloo"}
    if ranks.device.startswith("cuda"):
        torch.cuda.set_device(ranks.device)
        options = {"backend": "nccl", "device_id": torch.device(ranks.device)}
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.n_ranks))
    dist.init_process_group(
        init_method=f"file://{store}", rank=ranks.rank, world_size=ranks.n_ranks, timeout=PATIENCE, **options
    )
    yield
    # Not after an error: the others may be waiting within a sum, and would be waited for.
    dist.destroy_process_group()
