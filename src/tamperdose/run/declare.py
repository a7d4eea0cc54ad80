"""What a worker declares to a scheduler: the study's `resources`, filled from the plan's estimates."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from tamperdose.errors import StudyError, explain
from tamperdose.models.load import find_architecture
from tamperdose.run.memory import memory_bytes, shards
from tamperdose.run.plan import ModelPlan, Plan
from tamperdose.run.units import make_units
from tamperdose.study import VllmEngine

CPU, GPU, MEMORY = "CPU", "GPU", "memory"
"""Names of what a machine has, as Ray names them; memory in bytes."""


@dataclass(frozen=True, slots=True)
class Declared:
    """What one worker takes."""

    cpus: int
    """Cores, and threads."""
    gpus: float
    """GPUs, or a share of one; 0 where the models run on CPUs."""
    memory_bytes: int
    """Memory of the machine; 0 where nothing is declared."""

    def slots(self, machine: Mapping[str, float]) -> int:
        """How many workers a machine has room for, all of it being free.

        >>> Declared(cpus=2, gpus=0.5, memory_bytes=0).slots({"CPU": 16, "GPU": 1})
        2
        """
        wanted = {CPU: float(self.cpus), GPU: self.gpus, MEMORY: float(self.memory_bytes)}
        rooms = [machine.get(name, 0.0) / amount for name, amount in wanted.items() if amount > 0]
        return math.floor(min(rooms) + 1e-9)

    def __str__(self) -> str:
        parts = [f"{self.cpus} CPU core{'' if self.cpus == 1 else 's'}"]
        parts += [f"{self.gpus:g} GPU"] if self.gpus else []
        parts += [f"{self.memory_bytes / 1e9:.1f} GB of memory"] if self.memory_bytes else []
        return ", ".join(parts)


def declare(plan: Plan) -> Declared:
    """What a worker of this plan takes: as much as its largest model.

    Raises:
        StudyError: The study names one card by its number.
    """
    stated = plan.study.resources
    devices = {model.device for model in plan.models}
    numbered = [device for device in sorted(devices) if ":" in device]
    if numbered:
        raise StudyError(
            explain(
                f"engine.device '{numbered[0]}' names one card",
                expected="cuda: each worker sees the card that it was given as its first",
                remedy="--set engine.device=cuda",
            )
        )
    on_gpu = any(device.startswith("cuda") for device in devices)
    largest = max(map(partial(_memory, plan), plan.models), default=0.0)
    gpus = 0.0
    if on_gpu:
        gpus = _cards(plan, largest) if stated.gpus == "auto" else stated.gpus
    automatic = 0.0 if on_gpu else largest
    memory = automatic if stated.memory_gb == "auto" else 1e9 * stated.memory_gb
    return Declared(stated.cpus, gpus, int(memory))


def _memory(plan: Plan, model: ModelPlan) -> float:
    """What the plan estimates for a model; 0 where its architecture is not known, or nothing is loaded."""
    architecture = None if model.source is None else find_architecture(model.spec)
    return 0.0 if architecture is None else memory_bytes(plan, model, architecture)


def _cards(plan: Plan, largest: float) -> float:
    """The share of a card that the estimate is; whole ones with an engine that takes its share of each, or sharded."""
    engine, n_shards = plan.study.engine, max(shards(plan, model) for model in plan.models)
    if isinstance(engine, VllmEngine):
        return float(max(n_shards, *(engine.cards(model.spec) for model in plan.models)))
    if n_shards > 1:
        return float(n_shards)
    return _share(largest, plan.study.resources.gpu_memory_gb)


def _share(estimate: float, gpu_memory_gb: float | None) -> float:
    """The share of a GPU that an estimate is, in hundredths, rounded up; all of it where either is not known."""
    if gpu_memory_gb is None or not estimate:
        return 1.0
    return min(1.0, math.ceil(100 * estimate / (1e9 * gpu_memory_gb)) / 100)


def describe_cluster(plan: Plan) -> dict[str, Any] | None:
    """What a cluster would be given: how many units of each kind, and what a worker takes; None where it cannot be."""
    try:
        declared = declare(plan)
    except StudyError:
        return None
    units = Counter(unit.part.value for unit in make_units(plan))
    return {"units": dict(units), "worker": asdict(declared)}
