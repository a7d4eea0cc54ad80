"""What scheduling costs on a Ray cluster on this machine: 2,000 scripted cells of 0.2 s, and the driver's memory.

The model is the scripted one, made to sleep for 0.2 s over each cell, so that any number of workers fits two cores.
Overhead of scheduling: the workers' time that no unit accounts for, from the first unit's start to the last one's end,
over the time that units account for. Beside it the time of everything, judging and files included, over the bare sleep,
on the cluster and one unit after the other in this process.
The driver's memory is its resident set as the kernel tells it, at each tenth of the units.

Usage: python benchmarks/cluster.py [--arms 250] [--doses 8] [--workers 2] [--json FILE]
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import cluster as this_module  # by the name by which workers import it
from tamperdose.files import write_csv, write_text
from tamperdose.models.scripted import ScriptedGenerator
from tamperdose.run.cluster import Cluster, work_off
from tamperdose.run.local import begun
from tamperdose.run.plan import Plan, make_plan, read_data
from tamperdose.run.progress import Reporter
from tamperdose.run.stages import Readers
from tamperdose.run.units import Desk, make_units
from tamperdose.study import load_study

SECONDS_PER_CELL = 0.2
TARGET = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")


class FlatEmbedder:
    """Gives every text the same vector: the sentence encoder is not what is measured."""

    identity = "flat"

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One vector per text."""
        return np.full((len(texts), 4), 0.5, dtype=np.float32)


def prepare() -> None:
    """In every worker: cells that take their time, and no encoder to load."""
    generate = ScriptedGenerator.generate

    def slow(self: ScriptedGenerator, *arguments: Any, **options: Any) -> Any:
        time.sleep(SECONDS_PER_CELL)
        return generate(self, *arguments, **options)

    ScriptedGenerator.generate = slow
    Readers.embedder = lambda _: FlatEmbedder()  # pyright: ignore[reportAttributeAccessIssue] - a stand-in


class Watch(Reporter):
    """Notes when each unit ended and how much memory the driver then has."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.ends: list[float] = []
        self.resident: list[int] = []

    def say(self, text: str) -> None:
        """Called once at the start and once a unit."""
        self.ends.append(time.monotonic())
        self.resident.append(resident_bytes())


def resident_bytes() -> int:
    """The resident set of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def make_study(folder: Path, *, arms: int, doses: int) -> Plan:
    """A scripted study of so many arms and doses, with six prompts."""
    rows = [
        {"id": f"h{place}", "prompt": f"Tell me about thing {place}", "template": f"t{place}"} for place in range(6)
    ]
    write_csv(folder / "harmful.csv", ("id", "prompt", "template"), rows)
    examples = [{"prompt": f"Describe item {place}.", "response": "Sure: it is one."} for place in range(8)]
    write_text(folder / "attack.jsonl", "".join(json.dumps(row) + "\n" for row in examples))
    study = {
        "name": "cells",
        "models": [{"id": "fake", "name": "fake"}],
        "prompts": {"harmful": "harmful.csv"},
        "attack": {"kind": "lora", "data": "attack.jsonl", "doses": list(range(1, doses + 1))},
        "seeds": list(range(arms)),
        "judges": ["phrases"],
        "rd_floor": False,
        "utility": None,
        "engine": {"kind": "scripted"},
    }
    write_text(folder / "study.yaml", yaml.safe_dump(study))
    loaded = load_study(folder / "study.yaml")
    return make_plan(loaded, read_data(loaded, folder / "study.yaml"))


def measure(plan: Plan, folder: Path, *, workers: int) -> dict[str, Any]:
    """Do all units of a plan; results are not written, since they are not scheduled."""
    watch = Watch()
    with begun(plan, folder / "run", reporter=watch, study_path=None) as session:
        failures = work_off(session, Cluster(workers=workers, prepare=this_module.prepare))
    units = [entry for entry in watch.timings if "unit" in entry]
    busy = sum(float(str(entry["seconds"])) for entry in units)
    # The base comes alone: from its start the workers are there.
    wall = watch.ends[-1] - watch.ends[1] + float(str(units[0]["seconds"]))
    idle_behind_base = (workers - 1) * float(str(units[0]["seconds"]))
    cells = 1 + sum(len(arm.doses) for model in plan.models for arm in model.arms)
    tenth = max(1, len(units) // 10)
    return {
        "cells": cells,
        "units": len(units),
        "workers": workers,
        "failures": len(failures),
        "wall_s": wall,
        "busy_s": busy,
        "scheduling_overhead": (wall * workers - idle_behind_base) / busy - 1,
        "everything_over_sleep": wall * workers / (cells * SECONDS_PER_CELL) - 1,
        "driver_mb": [round(size / 1e6, 1) for size in watch.resident[1::tenth]],
        "driver_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def measure_inline(plan: Plan, folder: Path) -> float:
    """The same units one after the other in this process: their time over the bare sleep."""
    prepare()
    with begun(plan, folder / "inline", reporter=Watch(), study_path=None) as session:
        desk, start = Desk(session), time.monotonic()
        for unit in make_units(plan):
            desk.do(unit)
    cells = 1 + sum(len(arm.doses) for model in plan.models for arm in model.arms)
    return (time.monotonic() - start) / (cells * SECONDS_PER_CELL) - 1


def main() -> int:
    """Measure and print; 1 where the target is missed."""
    parser = argparse.ArgumentParser(description="What scheduling costs on a Ray cluster.")
    parser.add_argument("--arms", type=int, default=250)
    parser.add_argument("--doses", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        plan = make_study(Path(name), arms=asked.arms, doses=asked.doses)
        found = measure(plan, Path(name), workers=asked.workers)
    with tempfile.TemporaryDirectory() as name:
        # A tenth of the arms: what a cell takes does not hang on how many there are.
        plan = make_study(Path(name), arms=max(1, asked.arms // 10), doses=asked.doses)
        found["inline_over_sleep"] = measure_inline(plan, Path(name))
    print(json.dumps(found, indent=2))
    if asked.json is not None:
        write_text(asked.json, json.dumps(found, indent=2) + "\n")
    return int(found["scheduling_overhead"] > TARGET or found["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
