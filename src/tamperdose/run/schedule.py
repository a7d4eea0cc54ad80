"""Which unit a worker does next, what becomes of one that failed, and how long the rest will take."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tamperdose.run.units import Outcome, Part, Unit

NEEDS = "needs"
"""Kind of the failure of a unit that was not run, since one that it needs failed."""
_ORDER = {Part.BASE: 0, Part.ARM: 1, Part.READ: 2}


@dataclass(frozen=True, slots=True)
class Failure:
    """A unit that will not be done in this run."""

    unit: str
    """Its id."""
    kind: str
    """Name of the error; `needs` where it was not run at all."""
    message: str
    """What the error says."""
    tries: int
    """How often it was tried."""
    hosts: tuple[str, ...]
    """Where, try by try."""


class Board:
    """The units of a run: which wait, which are under way, and how the others ended."""

    def __init__(self, units: Sequence[Unit], *, retries: int) -> None:
        self._units = {unit.id: unit for unit in units}
        self._waiting = dict(self._units)
        self._running: set[str] = set()
        self._done: set[str] = set()
        self._failed: dict[str, Failure] = {}
        self._retries = retries
        self._hosts: defaultdict[str, list[str]] = defaultdict(list)
        self._seconds: defaultdict[Part, list[float]] = defaultdict(list)

    @property
    def failures(self) -> list[Failure]:
        """Units that failed, in the order of the plan."""
        return [self._failed[name] for name in self._units if name in self._failed]

    @property
    def n_left(self) -> int:
        """Units that wait or are under way."""
        return len(self._waiting) + len(self._running)

    @property
    def n_ended(self) -> int:
        """Units that are done or have failed."""
        return len(self._done) + len(self._failed)

    def take(self, host: str, loaded: int | None, *, hosts: Collection[str], held: Sequence[int]) -> Unit | None:
        """The next unit for a worker, which is under way from here on; None where nothing is ready for it.

        Args:
            host: The worker's machine.
            loaded: The model it holds.
            hosts: The machines of all workers: a unit goes back to one it was lost on where there is no other.
            held: The models that workers hold, one entry a worker.
        """
        ready = [unit for unit in self._waiting.values() if self._is_ready(unit) and self._suits(unit, host, hosts)]
        if not ready:
            return None
        # A model that is loaded is used up first; another one is loaded where fewest hold it already.
        unit = min(ready, key=lambda unit: (_ORDER[unit.part], unit.model != loaded, held.count(unit.model)))
        del self._waiting[unit.id]
        self._running.add(unit.id)
        self._hosts[unit.id].append(host)
        return unit

    def settle(self, unit: Unit, outcome: Outcome) -> bool:
        """Take in how a unit ended; whether it has, rather than waits to be tried again."""
        self._running.discard(unit.id)
        if not outcome.kind:
            self._done.add(unit.id)
            self._seconds[unit.part].append(outcome.seconds)
            return True
        tries = len(self._hosts[unit.id])
        if outcome.lost and tries <= self._retries:
            self._waiting[unit.id] = unit
            return False
        hosts = tuple(self._hosts[unit.id])
        self._failed[unit.id] = Failure(unit.id, outcome.kind, outcome.message, tries, hosts)
        self._give_up_dependants()
        return True

    def seconds_left(self, n_workers: int) -> float | None:
        """About how long the rest will take: what is left of each part times what one has taken; None: not known."""
        every = [seconds for part in self._seconds.values() for seconds in part]
        if not every or not n_workers:
            return None
        total = 0.0
        for part in Part:
            known = self._seconds[part] or every
            total += self._n_left_of(part) * sum(known) / len(known)
        return total / n_workers

    def _n_left_of(self, part: Part) -> int:
        running = sum(self._units[name].part is part for name in self._running)
        return running + sum(unit.part is part for unit in self._waiting.values())

    def _is_ready(self, unit: Unit) -> bool:
        ended = (name in self._done or name in self._failed for name in unit.after)
        return self._done.issuperset(unit.needs) and all(ended)

    def _suits(self, unit: Unit, host: str, hosts: Collection[str]) -> bool:
        lost_on = set(self._hosts[unit.id])
        return host not in lost_on or lost_on.issuperset(hosts)

    def _give_up_dependants(self) -> None:
        while stuck := [unit for unit in self._waiting.values() if any(name in self._failed for name in unit.needs)]:
            for unit in stuck:
                del self._waiting[unit.id]
                missing = next(name for name in unit.needs if name in self._failed)
                tries, hosts = len(self._hosts[unit.id]), tuple(self._hosts[unit.id])
                self._failed[unit.id] = Failure(unit.id, NEEDS, f"not run: '{missing}' failed", tries, hosts)
