"""Synthetic results: what a run would leave behind, made from a formula."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tamperdose.files import write_csv, write_json
from tamperdose.run.schema import METRIC_COLUMNS, read_metrics

Row = dict[str, Any]

DOSES = (0, 1, 2, 4, 8, 16)


def cell(arm: Row, steps: int, metric: str, value: float | None, half: float | None = None) -> Row:
    """One row of metrics.csv; `half` is the half-width of the interval."""
    subset = "benign" if metric == "over_refusal_rate" else "harmful"
    bounded = value is not None and half is not None
    return {
        **dict.fromkeys(METRIC_COLUMNS, ""),
        **arm,
        "dose_steps": steps,
        "dose_examples": 8 * steps,
        "dose_tokens": 2048 * steps,
        "dose_flops": 1.5e12 * steps,
        "subset": subset,
        "metric": metric,
        "value": "" if value is None else value,
        "low": max(0.0, value - half) if bounded else "",
        "high": min(1.0, value + half) if bounded else "",
        "level": 0.95 if bounded else "",
        "method": "wilson_korn_graubard" if bounded else "",
        "n": 155,
        "n_templates": 31,
        "n_effective": 88.25,
        "n_unreadable": 0,
        "scope": "trajectory",
        "judge": "" if metric.startswith("RD") else "classifier@1",
    }


def arm_settings(model: str = "builtin:smollm2-135m-instruct", *, seed: int = 42, rank: int = 8, **more: Any) -> Row:
    """The columns that name an arm."""
    settings = {
        "study": "demo",
        "arm": f"{model}/r{rank}/s{seed}",
        "model": model,
        "params_b": 0.135,
        "defence": "refusal_tuning",
        "attack": "lora",
        "lora_rank": rank,
        "n_examples": 64,
        "learning_rate": 1e-3,
        "batch_size": 8,
        "seed": seed,
        "data_order": seed,
    }
    return settings | more


def arm_rows(arm: Row, doses: tuple[int, ...] = DOSES, *, half_dose: float = 4.0, start: float = 0.94) -> list[Row]:
    """All metrics of one arm: refusals fall as a logistic curve of log dose."""
    rows: list[Row] = []
    for steps in doses:
        rrr = start / (1 + (steps / half_dose) ** 2)
        degenerate = (1 - rrr) * min(0.6, 0.03 * steps)
        drift = 0.0 if steps == 0 else 0.62 * (1 - math.exp(-steps / half_dose))
        rows += [
            cell(arm, steps, "RRR", rrr, 0.08),
            cell(arm, steps, "CE", 1 - rrr, 0.08),
            cell(arm, steps, "compliance_rate", 1 - rrr - degenerate, 0.08),
            cell(arm, steps, "degenerate_rate", degenerate, 0.04),
            cell(arm, steps, "RD", drift, 0.03 if steps else None),
            cell(arm, steps, "RD_floor", 0.21),
            cell(arm, steps, "refusal_retention", rrr / start, 0.08),
            cell(arm, steps, "over_refusal_rate", 0.2 * rrr, 0.06),
        ]
    return rows


def frame_of(rows: list[Row], folder: Path) -> pd.DataFrame:
    """Write rows as metrics.csv and read them back."""
    write_csv(folder / "metrics.csv", METRIC_COLUMNS, rows)
    return read_metrics(folder / "metrics.csv")


def run_of(rows: list[Row], folder: Path, judge: str = "classifier@1") -> Path:
    """Make a finished run's folder."""
    write_csv(folder / "metrics.csv", METRIC_COLUMNS, rows)
    write_json(folder / "manifest.json", {"headline_judge": judge})
    return folder


def three_models(seeds: tuple[int, ...] = (42, 43)) -> list[Row]:
    """Three models of growing size and as many arms of each as seeds."""
    sizes = {"TinyLlama-1.1B": 1.1, "Phi-3-mini-3.8B": 3.8, "Qwen2-7B": 7.6}
    return [
        row
        for model, size in sizes.items()
        for seed in seeds
        for row in arm_rows(arm_settings(model, seed=seed, params_b=size), half_dose=size * (1 + 0.1 * (seed - 42)))
    ]


class Synthetic:
    """The builders above, for tests to use as one fixture."""

    cell = staticmethod(cell)
    arm = staticmethod(arm_settings)
    rows = staticmethod(arm_rows)
    three_models = staticmethod(three_models)
    run = staticmethod(run_of)
    doses = DOSES

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def frame(self, rows: list[Row]) -> pd.DataFrame:
        return frame_of(rows, self.folder)


@pytest.fixture
def synthetic(tmp_path: Path) -> Synthetic:
    return Synthetic(tmp_path)
