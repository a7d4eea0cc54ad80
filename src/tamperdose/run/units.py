"""The units that a plan is scheduled in: each model's base, each arm, and the reading of the answers of each.

A unit is a function of the plan and the run's folder. Its output is in the ledger alone, so that it may run anywhere
that sees the folder, and a unit that was cut off goes on where it was.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from tamperdose.files import digest
from tamperdose.run.arms import Session, open_model, run_arm, run_base
from tamperdose.run.backends import Backend
from tamperdose.run.draws import untrained
from tamperdose.run.inside import asked_inside, measure_base
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan
from tamperdose.run.results import Reading, read_arm, read_base


class Part(StrEnum):
    """What a unit does."""

    BASE = "base"
    """Trains a model and its defence where that is to be done, and measures it untampered."""
    ARM = "arm"
    """Runs a trajectory, measures it at its doses, and its controls."""
    READ = "read"
    """Judges and embeds the answers of a base or of an arm."""

    @property
    def loads_model(self) -> bool:
        """Whether it takes the model under test."""
        return self is not Part.READ


@dataclass(frozen=True, slots=True)
class Unit:
    """One piece of work for one worker."""

    id: str
    """Readable and unique."""
    part: Part
    """What it does."""
    model: int
    """Place of its model in the plan."""
    arm: int | None = None
    """Place of its arm in the model; None for the base."""
    needs: tuple[str, ...] = ()
    """Units that must be done before it."""
    after: tuple[str, ...] = ()
    """Units that must have ended before it, well or not."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a unit ended on a worker."""

    unit: str
    """The unit's id."""
    seconds: float
    """How long it took."""
    kind: str = ""
    """Name of the error; empty where it is done."""
    message: str = ""
    """What the error says."""
    lost: bool = False
    """Whether another worker may fare better: this one was lost, or something of its machine gave out."""
    timings: tuple[dict[str, object], ...] = field(default=())
    """Seconds of the unit's stages."""


def make_units(plan: Plan) -> list[Unit]:
    """All units of a plan, each after those it needs; what is done already is passed over by the worker."""
    units: list[Unit] = []
    first_of: dict[str, str] = {}
    for place, model in enumerate(plan.models):
        name = _name(plan, model)
        base = f"{Part.BASE} {name}"
        units.append(Unit(base, Part.BASE, place, after=_after(model, base, first_of)))
        units.append(Unit(f"{Part.READ} {base}", Part.READ, place, needs=(base,)))
        for number, arm in enumerate(model.arms):
            trained = f"{Part.ARM} {arm.id}"
            units.append(Unit(trained, Part.ARM, place, number, needs=(base,)))
            units.append(Unit(f"{Part.READ} {trained}", Part.READ, place, number, needs=(trained,)))
    return units


def _after(model: ModelPlan, base: str, first_of: dict[str, str]) -> tuple[str, ...]:
    """The base whose organism this one is, too: it is trained into the cache once, not by two at the same time."""
    if model.source is None or untrained(model) is None:
        return ()
    first = first_of.setdefault(model.source.location, base)
    return () if first == base else (first,)


def _name(plan: Plan, model: ModelPlan) -> str:
    several = sum(other.spec.label == model.spec.label for other in plan.models) > 1
    return f"{model.spec.label} {model.spec.defence_label}" if several else model.spec.label


class Desk:
    """What a worker keeps from unit to unit: one model with its defence, the judges and the sentence encoder."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._model: int | None = None
        self._backend: Backend | None = None

    def do(self, unit: Unit) -> None:
        """Do a unit, once nobody else is at it; raises whatever its stages raise."""
        # What a driver that was killed has left behind may still be at work on it, until it notices.
        with self._session.ledger.held("unit", digest(unit.id)):
            self._do(unit)

    def _do(self, unit: Unit) -> None:
        model = self._session.plan.models[unit.model]
        arm = None if unit.arm is None else model.arms[unit.arm]
        if unit.part is Part.READ:
            # Reading comes when no arm is left for this worker: a judge that is a model may want the room.
            self.put_away()
            _read(self._session, model, arm)
        elif arm is None:
            backend = self._open(unit.model, model)
            run_base(self._session, model, backend)
            _look_inside_base(self._session, model, backend)
        else:
            run_arm(self._session, model, arm, self._open(unit.model, model))

    def _open(self, place: int, model: ModelPlan) -> Backend:
        if self._backend is None or self._model != place:
            self.put_away()
            self._backend, self._model = open_model(self._session, model), place
        return self._backend

    def put_away(self) -> None:
        """Let go of the model; the next unit that wants it loads it again."""
        if self._backend is not None:
            self._backend.close()
        self._backend = self._model = None


def _look_inside_base(session: Session, model: ModelPlan, backend: Backend) -> None:
    """Read the states that every arm is compared with, so that no two of them do it at the same time."""
    if asked_inside(session.plan) is not None and not all(arm.keeps_best for arm in model.arms):
        measure_base(session.plan, session.ledger, model, backend)


def _read(session: Session, model: ModelPlan, arm: ArmPlan | None) -> None:
    reading = Reading(session.plan, session.ledger, session.readers, _pass)
    if arm is None:
        read_base(reading, model)
    else:
        read_arm(reading, model, arm)


def _pass(_count: int) -> None:
    """Tell nobody."""
