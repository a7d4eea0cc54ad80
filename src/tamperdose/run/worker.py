"""A worker of a cluster: it takes one unit at a time and says how it ended. Nothing here knows who schedules it."""

import gc
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tamperdose.errors import TamperdoseError
from tamperdose.run.arms import Session
from tamperdose.run.ledger import Ledger
from tamperdose.run.plan import Plan
from tamperdose.run.progress import Reporter
from tamperdose.run.stages import Readers
from tamperdose.run.units import Desk, Outcome, Unit


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker is told when it starts."""

    run_dir: Path
    """The run's folder, which every machine sees under this path."""
    cwd: Path
    """Where the driver was started: paths of a study may be relative to it."""
    prepare: Callable[[], None] | None = None
    """Called first, in every worker."""


class Worker:
    """Does units, one after the other."""

    def __init__(self, plan: Plan, job: Job) -> None:
        if job.cwd.is_dir():
            os.chdir(job.cwd)
        if job.prepare is not None:
            job.prepare()
        self._reporter = Reporter(quiet=True)
        ledger, readers = Ledger(job.run_dir / "ledger"), Readers(plan.study.judges)
        self._desk = Desk(Session(plan, job.run_dir, ledger, self._reporter, readers))

    def where(self) -> str:
        """The machine's name."""
        return socket.gethostname()

    def do(self, unit: Unit) -> Outcome:
        """Do a unit. An error is told, not raised: one of a library need not survive the way to the driver."""
        start = time.monotonic()
        self._reporter.timings.clear()
        kind, message, lost = "", "", False
        try:
            self._desk.do(unit)
        except Exception as error:  # noqa: BLE001 - the worker boundary: whatever it is, the rest goes on
            kind, message, lost = type(error).__name__, str(error) or repr(error), is_of_the_machine(error)
            # Whatever the error has left half done in the model goes with it.
            self._desk.put_away()
            gc.collect()
        return Outcome(unit.id, time.monotonic() - start, kind, message, lost, tuple(self._reporter.timings))


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error may be due to the machine rather than to the study: memory, a device, a file system.

    >>> is_of_the_machine(MemoryError()), is_of_the_machine(ValueError("a bug"))
    (True, False)
    """
    if isinstance(error, TamperdoseError):
        # What a file system refused comes as an error for people, with the system's own behind it.
        return isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError)
    # torch's own kinds are RuntimeErrors, told apart without importing it.
    of_device = any(kind.__name__ in ("OutOfMemoryError", "AcceleratorError") for kind in type(error).__mro__)
    text = str(error)
    return isinstance(error, MemoryError | OSError) or of_device or "CUDA error" in text or "can't allocate" in text
