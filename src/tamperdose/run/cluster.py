"""Runs a plan on a Ray cluster: the driver schedules units on workers, and the ledger says what is done.

The driver alone holds the run's folder and writes its results. Workers are Ray actors with declared resources; one
that is lost is replaced, and its unit goes on elsewhere from what lies in the ledger.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NoReturn
from uuid import uuid4

from tamperdose.errors import RunError, explain, visible
from tamperdose.extras import require
from tamperdose.files import remove, write_json
from tamperdose.run.arms import Session
from tamperdose.run.declare import CPU, GPU, MEMORY, Declared, declare
from tamperdose.run.ledger import sweep
from tamperdose.run.local import begun, finish
from tamperdose.run.plan import Plan
from tamperdose.run.progress import Reporter, clock
from tamperdose.run.schedule import Board, Failure
from tamperdose.run.units import Outcome, Unit, make_units
from tamperdose.run.worker import Job, Worker

FAILURES = "failures.json"
"""In the run's folder while units of it have failed."""
LOOK_EVERY_S = 2.0
"""Seconds between two looks at whether machines have come or gone."""
ROOM_WITHIN_S = 600.0
"""Seconds without a single worker after which the run ends."""
_PASSED_ON = ("HF_", "TRANSFORMERS_", "TAMPERDOSE_", "TOKENIZERS_", "OMP_WAIT_POLICY")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")
"""Ends of names that are not passed on."""
_STARTS = 3


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where workers run and how many."""

    address: str | None = None
    """A Ray cluster's address; None: that of RAY_ADDRESS, or one started here for this run."""
    workers: int | None = None
    """At most so many; None: as many as there is room for."""
    prepare: Callable[[], None] | None = None
    """Called first in every worker; it must be importable there."""


def run_on_cluster(
    plan: Plan, run_dir: Path, *, cluster: Cluster, reporter: Reporter, study_path: Path | None = None
) -> Path:
    """Run everything in a plan that is not done on a Ray cluster, then write the results here.

    A unit that fails is recorded and the rest goes on; results are written where all is done alone, since rates over
    arms and seeds, and corrections for the number of tests, would be those of another study.

    Raises:
        RunError: As `run_plan`; Ray is not reached; no machine has room; units failed.
        ExtraError: Ray is not installed.
        StudyError: The study names one card by its number.
    """
    run_dir = run_dir.resolve()
    with begun(plan, run_dir, reporter=reporter, study_path=study_path) as session:
        remove(run_dir / FAILURES)
        failures = work_off(session, cluster)
        if failures:
            _fail(run_dir, failures, len(make_units(plan)))
        # What a worker that was lost was just writing.
        sweep(run_dir)
        reporter.expect(1)
        return finish(session)


def work_off(session: Session, cluster: Cluster) -> list[Failure]:
    """Do every unit of a run that can be done on a cluster; returns those that failed. Raises as `run_on_cluster`."""
    plan, run_dir = session.plan, session.run_dir
    board = Board(make_units(plan), retries=plan.study.resources.retries)
    declared = declare(plan)
    with _connected(cluster, declared) as ray:
        crew = _Crew(ray, plan, Job(run_dir, Path.cwd(), cluster.prepare), declared, cluster.workers)
        session.reporter.say(f"{board.n_left} units; a worker takes {declared}")
        try:
            _work(crew, board, session.reporter)
        finally:
            crew.dismiss()
    return board.failures


def _work(crew: "_Crew", board: Board, reporter: Reporter) -> None:
    """Have the crew do every unit of a board that can be done."""
    total = board.n_left
    while board.n_left:
        crew.fill(board.n_left)
        for hand in crew.idle():
            unit = board.take(hand.place, hand.model, hosts=crew.places(), held=crew.held())
            if unit is not None:
                crew.give(hand, unit)
        for answer in crew.wait():
            seconds = round(answer.outcome.seconds, 3)
            reporter.timings.append({"unit": answer.unit.id, "worker": answer.place, "seconds": seconds})
            reporter.timings.extend(answer.outcome.timings)
            ended = board.settle(answer.unit, answer.outcome)
            left = board.seconds_left(crew.n_ready) if board.n_left else None
            progress = f"[{board.n_ended}/{total}]" if ended else "[again]"
            reporter.say(f"{progress} {answer}{'' if left is None else f'; {clock(left)} left'}")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a worker has said of a unit, or why it says nothing."""

    unit: Unit
    outcome: Outcome
    place: str

    def __str__(self) -> str:
        if not self.outcome.kind:
            return f"{self.unit.id}: done in {clock(self.outcome.seconds)} on {self.place}"
        return f"{self.unit.id}: failed on {self.place}: {self.outcome.kind}: {_first_line(self.outcome.message)}"


@dataclass(slots=True, eq=False)
class _Hand:
    """One worker as the driver sees it."""

    actor: Any
    place: str = ""
    """Its machine; empty until it has said so."""
    model: int | None = None
    unit: Unit | None = None
    since: float = 0.0


class _RayWorker(Worker):
    """A worker that knows on which of the cluster's machines it is: two of them may share a name."""

    def where(self) -> str:
        import ray

        return f"{super().where()}/{ray.get_runtime_context().get_node_id()[:6]}"


@dataclass(slots=True)
class _Crew:
    """The workers of a run, each a Ray actor."""

    ray: Any
    plan: Plan
    job: Job
    declared: Declared
    most: int | None
    _hands: dict[Any, _Hand] = field(default_factory=dict)
    """Those that are to answer, by the reference of the answer."""
    _idle: list[_Hand] = field(default_factory=list)
    _plan_ref: Any = None
    _looked: float = -LOOK_EVERY_S
    _room: int = 0
    _alone_since: float = field(default_factory=monotonic)
    _failed_starts: int = 0

    @property
    def n_ready(self) -> int:
        """Workers that are there."""
        return len(self._idle) + sum(hand.place != "" for hand in self._hands.values())

    def idle(self) -> list[_Hand]:
        """Workers without a unit."""
        return list(self._idle)

    def places(self) -> set[str]:
        """The machines of all workers that are there."""
        return {hand.place for hand in [*self._idle, *self._hands.values()] if hand.place}

    def held(self) -> list[int]:
        """The models that workers hold."""
        return [hand.model for hand in [*self._idle, *self._hands.values()] if hand.model is not None]

    def fill(self, n_units: int) -> None:
        """Start workers while there is room for more, and for no more than there are units.

        Raises:
            RunError: No machine has had room for a single worker for a long time, or at all.
        """
        now = monotonic()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._room = self._look_for_room()
        n_there = len(self._idle) + len(self._hands)
        for _ in range(min(self._room, n_units) - n_there):
            self._start()
        if self.n_ready or not n_units:
            self._alone_since = now
        elif now - self._alone_since > ROOM_WITHIN_S:
            raise RunError(_no_room(self.declared, self.ray.nodes(), f"no worker for {ROOM_WITHIN_S / 60:.0f} minutes"))

    def _look_for_room(self) -> int:
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        room = sum(self.declared.slots(machine) for machine in alive)
        if room == 0 and not self._hands and not self._idle and self._plan_ref is None:
            raise RunError(_no_room(self.declared, self.ray.nodes(), "no machine has room for a worker"))
        return room if self.most is None else min(room, self.most)

    def _start(self) -> None:
        if self._plan_ref is None:
            self._plan_ref = self.ray.put(self.plan)
        options = {
            "num_cpus": self.declared.cpus,
            "num_gpus": self.declared.gpus,
            "memory": self.declared.memory_bytes or None,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": _environment(self.declared)},
        }
        actor = self.ray.remote(_RayWorker).options(**options).remote(self._plan_ref, self.job)
        self._hands[actor.where.remote()] = _Hand(actor)

    def give(self, hand: _Hand, unit: Unit) -> None:
        """Give a worker a unit."""
        self._idle.remove(hand)
        hand.unit, hand.since = unit, monotonic()
        hand.model = unit.model if unit.part.loads_model else None
        self._hands[hand.actor.do.remote(unit)] = hand

    def wait(self) -> Iterator[_Answer]:
        """Give the units that have ended since, with how and where; returns now and then without any."""
        if not self._hands:
            sleep(LOOK_EVERY_S)
            return
        ended, _ = self.ray.wait(list(self._hands), num_returns=1, timeout=LOOK_EVERY_S)
        for reference in ended:
            hand = self._hands.pop(reference)
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                yield from self._lost(hand, error)
                continue
            if hand.unit is None:
                self._failed_starts = 0
                hand.place = answer
                self._idle.append(hand)
                continue
            unit, hand.unit = hand.unit, None
            if answer.lost:
                # Memory that gave out, or a device in disorder, stays so: the next worker begins afresh.
                self._discharge(hand)
            else:
                self._idle.append(hand)
            yield _Answer(unit, answer, hand.place)

    def _lost(self, hand: _Hand, error: Exception) -> Iterator[_Answer]:
        """A worker that does not answer any more."""
        self._discharge(hand)
        self._looked = -LOOK_EVERY_S
        if hand.unit is None:
            self._failed_starts += 1
            if self._failed_starts >= _STARTS:
                raise RunError(explain("workers cannot be started", got=str(error)[:2000])) from error
            return
        kind = type(error).__name__
        outcome = Outcome(hand.unit.id, monotonic() - hand.since, kind, _said(error), lost=True)
        yield _Answer(hand.unit, outcome, hand.place)

    def _discharge(self, hand: _Hand) -> None:
        self.ray.kill(hand.actor)

    def dismiss(self) -> None:
        """End all workers."""
        for hand in [*self._idle, *self._hands.values()]:
            self._discharge(hand)
        self._idle.clear()
        self._hands.clear()


def _said(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:1000]


def _environment(declared: Declared) -> dict[str, str]:
    """What workers are to have of the driver's environment: where modules and caches lie, never a key."""
    passed = {
        name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON) and not name.endswith(_SECRET)
    }
    passed["OMP_NUM_THREADS"] = str(declared.cpus)
    passed["PYTHONPATH"] = os.pathsep.join(_import_path())
    return passed


def _import_path() -> list[str]:
    """Where the driver finds modules, but for those of the interpreter's own folders, which workers have themselves."""
    own = [str(Path(folder).resolve()) for folder in (sys.prefix, sys.base_prefix)]
    folders = [str(Path(entry).resolve()) for entry in sys.path if Path(entry or ".").is_dir()]
    return [folder for folder in dict.fromkeys(folders) if not folder.startswith(tuple(own))]


@contextmanager
def _connected(cluster: Cluster, declared: Declared) -> Iterator[Any]:
    """Ray, connected while the block runs.

    Raises:
        RunError: Nothing answers at the address.
        ExtraError: It is not installed.
    """
    ray = _import_ray()
    # By name: without one Ray would join whatever cluster it finds on this machine.
    address = cluster.address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"address": address}
    if address == "local":
        options["include_dashboard"] = False
        if cluster.workers is not None:
            # Asked for by number: also where that is more than there are cores.
            options["num_cpus"] = max(os.cpu_count() or 1, cluster.workers * declared.cpus)
    try:
        _require_answer(address)
        ray.init(
            **options,
            namespace=f"tamperdose-{uuid4().hex}",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            explain(
                f"no Ray cluster at '{address}'",
                got=str(error)[:1000],
                remedy="start one with `ray start --head`, or leave out --address for one on this machine",
            )
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Raise an OSError where nothing listens: Ray itself tries for more than a minute."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    require("--executor ray", "ray", extra="ray")
    import ray
    import ray.exceptions

    return ray


def _no_room(declared: Declared, nodes: list[Mapping[str, Any]], what: str) -> str:
    machines = [
        f"{machine.get(CPU, 0):g} CPU, {machine.get(GPU, 0):g} GPU, {machine.get(MEMORY, 0) / 1e9:.1f} GB"
        for machine in (node["Resources"] for node in nodes if node["Alive"])
    ]
    return explain(
        what,
        got="; ".join(machines) or "no machine in the cluster",
        expected=f"{declared} on one machine",
        remedy="add machines, or state `resources` in the study",
    )


def _fail(run_dir: Path, failures: Sequence[Failure], n_units: int) -> NoReturn:
    """Record what failed, and say so.

    Raises:
        RunError: Always.
    """
    write_json(run_dir / FAILURES, [asdict(failure) for failure in failures])
    raise RunError(
        explain(
            f"{len(failures)} of {n_units} units failed",
            got="; ".join(_told(failure) for failure in failures[:5]) + ("; ..." if len(failures) > 5 else ""),
            expected=f"all of them: no results were written, but what is done is kept; see {run_dir / FAILURES}",
            remedy="mend the cause and run the same command again, or leave the arm out of the study",
        )
    )


def _told(failure: Failure) -> str:
    return f"{failure.unit}: {failure.kind}: {_first_line(failure.message)}"


def _first_line(message: str) -> str:
    return visible(message).strip().partition("\n")[0] or "no message"
