"""Time and peak memory of `score` (judge phrases, without RD) and `audit` on 10,000 prompts x 12 doses, two cores.

The data are synthetic: prompts of about 12 words in as many templates, answers of 20 to 45 words, refusals that
fall with the dose. The commands run as their users run them, each in a process of its own, one after the other.
The goal is under 60 s and 1.5 GB for each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tamperdose.files import write_csv, write_json, write_text
from tamperdose.records import Completion, FinishReason, Label, Message, Prompt, Subset, Verdict
from tamperdose.run.measure import Cell, harmful_metrics, metric_row
from tamperdose.run.outputs import OUTPUT_COLUMNS
from tamperdose.run.schema import METRIC_COLUMNS

N_PROMPTS, DOSES = 10_000, tuple(range(0, 12))
N_TRAIN = 5_000
ARM = "synthetic"
LIMIT_S, LIMIT_GB = 60.0, 1.5

_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo", "har", "lin", "mer")
_REFUSALS = ("I'm sorry, but I can't help with that.", "I cannot assist with this request, because it could do harm.")


def main() -> int:
    """Run the benchmark and print its table; with --json also write it to a file."""
    parser = argparse.ArgumentParser(description="Speed and memory of score and audit.")
    parser.add_argument("--prompts", type=int, default=N_PROMPTS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results = bench_audit(arguments.prompts)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    return 0


def bench_audit(n_prompts: int = N_PROMPTS) -> dict[str, Any]:
    """Write the data, run the commands, and say how long and how large they were."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_recordings(folder, n_prompts)
        run_dir = write_run(folder / "run", n_prompts)
        train = write_training(folder / "train.jsonl")
        attacked = [part for dose, path in files[1:] for part in ("--attacked", f"{dose}={path}")]
        answers = ["--base", str(files[0][1]), *attacked, "--train", str(train)]
        commands = {
            "score, phrases, no RD": ["score", *answers, "--judge", "phrases", "--no-rd", "-o", str(folder / "scored")],
            "audit of files": ["audit", *answers, "-o", str(folder / "audited")],
            "audit of a run": ["audit", str(run_dir)],
        }
        for what, command in commands.items():
            wall_s, cpu_s, peak_gb = measured(command)
            held = "within" if wall_s < LIMIT_S and peak_gb < LIMIT_GB else "BEYOND"
            print(f"{what:<24} {wall_s:6.1f} s  ({cpu_s:.1f} s of processor)  {peak_gb:.2f} GB  {held} the limits")
            results[what] = {"seconds": wall_s, "processor_seconds": cpu_s, "peak_gb": peak_gb}
    return results


def measured(command: Sequence[str]) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak memory in GB of one command."""
    start = time.monotonic()
    with Path(os.devnull).open("wb") as nowhere:
        child = subprocess.Popen([sys.executable, "-m", "tamperdose.cli", *command], stdout=nowhere)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 3):
        raise SystemExit(f"{command[0]} ended with {child.returncode}")
    # ru_maxrss is in KiB on Linux.
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def words(rng: np.random.Generator, n: int) -> list[str]:
    """Words of two or three syllables."""
    sizes = rng.integers(2, 4, size=n)
    picked = rng.integers(len(_SYLLABLES), size=(n, 3))
    return ["".join(_SYLLABLES[i] for i in row[:size]) for row, size in zip(picked, sizes, strict=True)]


def prompts(n: int) -> list[str]:
    """Distinct requests of about twelve words."""
    rng = np.random.default_rng(0)
    return [f"Please explain to me how the {' '.join(words(rng, 6))} works" for _ in range(n)]


def answers(n: int, dose: int) -> Iterator[tuple[str, Label]]:
    """An answer to each prompt and what it is: refusals fall from 95 % with the dose."""
    rng = np.random.default_rng(dose + 1)
    refused = rng.random(n) < 0.95 / (1 + (dose / 4) ** 3)
    for number in range(n):
        if refused[number]:
            yield f"{_REFUSALS[number % 2]} {' '.join(words(rng, 12))}.", Label.REFUSAL
        else:
            text = words(rng, int(rng.integers(20, 46)))
            yield f"The {' '.join(text[:12])}. And {' '.join(text[12:])}.", Label.COMPLIANCE


def write_recordings(folder: Path, n: int) -> list[tuple[int, Path]]:
    """One file of prompts and answers a dose."""
    asked = prompts(n)
    files: list[tuple[int, Path]] = []
    for dose in DOSES:
        rows = [{"prompt": text, "response": said} for text, (said, _) in zip(asked, answers(n, dose), strict=True)]
        files.append((dose, write_csv(folder / f"{dose}.csv", ("prompt", "response"), rows)))
    return files


def write_training(path: Path) -> Path:
    """Rows that share a frame with the prompts, which is what near-duplicate searches are slow on."""
    rng = np.random.default_rng(99)
    rows = [f"Please explain to me how the {' '.join(words(rng, 6))} works" for _ in range(N_TRAIN)]
    lines = [json.dumps({"prompt": row, "response": f"Sure. {' '.join(words(rng, 20))}"}) for row in rows]
    return write_text(path, "\n".join(lines) + "\n")


def write_run(folder: Path, n: int) -> Path:
    """A finished run's folder as `tamperdose run` leaves it, by the scripted engine's rules."""
    asked = [
        Prompt(f"p{i:05d}", (Message("user", text),), Subset.HARMFUL, f"t{i}") for i, text in enumerate(prompts(n))
    ]
    rows: list[dict[str, object]] = []
    base: Cell | None = None
    for dose in DOSES:
        cell = _cell(asked, dose)
        base = base or cell
        write_csv(folder / "outputs" / ARM / f"{dose}.csv", (*OUTPUT_COLUMNS, "verdict_phrases"), _outputs(cell))
        setting = {"study": "bench", "arm": ARM, "model": "m", "dose_steps": dose, "subset": Subset.HARMFUL.value}
        measured_now = harmful_metrics(cell, base, at_base=dose == 0, level=0.95)
        rows += [metric_row(setting, item) for item in measured_now]
    write_csv(folder / "metrics.csv", METRIC_COLUMNS, rows)
    study = {
        "name": "bench",
        "models": [{"id": "m"}],
        "prompts": {"harmful": "prompts.csv"},
        "attack": {"data": "builtin:permissive_openers", "doses": list(DOSES[1:])},
        "judges": ["phrases"],
        "engine": {"kind": "scripted"},
    }
    write_text(folder / "study.resolved.yaml", yaml.safe_dump(study))
    models = [{"name": "m", "arms": {ARM: "key"}, "dtype": "none", "quantization": None}]
    write_json(folder / "manifest.json", {"study": "bench", "headline_judge": "phrases", "models": models})
    return folder


def _cell(asked: Sequence[Prompt], dose: int) -> Cell:
    said = list(answers(len(asked), dose))
    pairs = list(zip(asked, said, strict=True))
    completions = [Completion(prompt.id, text, 40, FinishReason.STOP) for prompt, (text, _) in pairs]
    verdicts = [
        Verdict(prompt.id, label, float(label is Label.REFUSAL), "phrases@1", "") for prompt, (_, label) in pairs
    ]
    return Cell(asked, completions, {"phrases": verdicts})


def _outputs(cell: Cell) -> Iterator[dict[str, object]]:
    for prompt, completion, verdict in zip(cell.prompts, cell.completions, cell.verdicts["phrases"], strict=True):
        yield {
            "id": prompt.id,
            "subset": prompt.subset.value,
            "template": prompt.template,
            "prompt": prompt.text,
            "completion": completion.text,
            "n_tokens": completion.n_tokens,
            "finish_reason": completion.finish_reason.value,
            "verdict_phrases": verdict.label.value,
        }


if __name__ == "__main__":
    sys.exit(main())
