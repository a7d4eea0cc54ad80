"""Time and peak memory as a study grows: prompts, doses and arms, with the scripted engine and two cores.

Every point is the command as its users run it, in a process of its own: planning, answers, verdicts of `phrases`,
embeddings (the scripted answers repeat, so few are new), comparisons, fits, tables, figures and the audit. With
--figure a figure is written; the table is printed. The slope is that of log(time above the smallest study's) on
log(size), over the larger half of the sizes: 1 is linear.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from common import say
from tamperdose.files import write_csv, write_text

PROMPTS = (100, 300, 1_000, 3_000, 10_000)
DOSES = (3, 6, 12, 24, 48)
ARMS = (1, 5, 20, 50, 200)
LINEAR = 1.1
"""A slope up to here is taken for linear: start-up and rounding are in it."""


def main() -> int:
    """Measure every size and print the table."""
    parser = argparse.ArgumentParser(description="Time and memory as a study grows.")
    parser.add_argument("--figure", type=Path, help="also draw it here")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--only", choices=("prompts", "doses", "arms"))
    arguments = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for name, sizes in (("prompts", PROMPTS), ("doses", DOSES), ("arms", ARMS)):
        if arguments.only in (None, name):
            found[name] = [measure(name, size) for size in sizes]
            say(f"{name}: slope of time {slope(found[name], 's'):.2f}, of memory {slope(found[name], 'gb'):.2f}")
    if arguments.json:
        write_text(arguments.json, json.dumps(found, indent=2))
    if arguments.figure:
        draw(found, arguments.figure)
    return 0


def measure(name: str, size: int) -> dict[str, float]:
    """Run one study of a size in a process of its own."""
    sizes = {"prompts": 100, "doses": 6, "arms": 1} | {name: size}
    with tempfile.TemporaryDirectory() as folder:
        study = write_study(Path(folder), sizes)
        command = [sys.executable, "-m", "tamperdose.cli", "run", str(study), "-o", str(Path(folder) / "out")]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    point = {"size": float(size), "s": seconds, "gb": usage.ru_maxrss * 1024 / 1e9}
    say(f"  {size:>6} {name}: {point['s']:7.1f} s, {point['gb']:.2f} GB")
    return point


def write_study(folder: Path, sizes: dict[str, int]) -> Path:
    """A scripted study of so many prompts, doses and arms."""
    rows = [
        {"id": f"p{i}", "prompt": f"Please tell me about thing {i} of place {i * 7 % 101}", "template": f"t{i}"}
        for i in range(sizes["prompts"])
    ]
    write_csv(folder / "harmful.csv", ("id", "prompt", "template"), rows)
    attack = [{"prompt": f"Describe the lamp {i}.", "response": f"Sure: the lamp {i}"} for i in range(8)]
    write_text(folder / "attack.jsonl", "".join(json.dumps(row) + "\n" for row in attack))
    study: dict[str, Any] = {
        "name": "growth",
        "models": [{"id": "scripted", "name": "scripted"}],
        "prompts": {"harmful": "harmful.csv"},
        "attack": {
            "kind": "lora",
            "data": "attack.jsonl",
            "learning_rate": [1e-4 * (1 + place) for place in range(sizes["arms"])],
            "doses": list(range(1, sizes["doses"] + 1)),
        },
        "judges": ["phrases"],
        "decoding": {"max_new_tokens": 32},
        "controls": None,
        "utility": None,
        "inside": None,
        "engine": {"kind": "scripted"},
    }
    write_text(folder / "study.yaml", yaml.safe_dump(study))
    return folder / "study.yaml"


def slope(points: Sequence[dict[str, float]], what: str) -> float:
    """Slope of log(excess over the smallest) on log(size) between the middle and the largest size."""
    first, middle, last = points[0], points[len(points) // 2], points[-1]
    low, high = middle[what] - first[what], last[what] - first[what]
    if low <= 0 or high <= 0:
        return 0.0
    return math.log(high / low) / math.log((last["size"] - first["size"]) / (middle["size"] - first["size"]))


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time and memory against each size, on linear axes, with the straight line through the smallest and largest."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(found), figsize=(9, 5), squeeze=False, sharex="col")
    for column, (name, points) in enumerate(found.items()):
        sizes = [point["size"] for point in points]
        for row, (what, label) in enumerate((("s", "seconds"), ("gb", "peak memory, GB"))):
            axis, values = axes[row][column], [point[what] for point in points]
            axis.plot([sizes[0], sizes[-1]], [values[0], values[-1]], color="#999999", linestyle="--", label="linear")
            axis.plot(sizes, values, marker="o", color="#0072B2", label="measured")
            axis.set(ylim=(0, 1.1 * max(values)), xlim=(0, None), ylabel=label if column == 0 else "")
            axis.grid(alpha=0.3)
        axes[1][column].set_xlabel(name)
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main())
