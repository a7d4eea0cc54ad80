"""Several runs side by side: standardized copies of their metrics, one combined table, and its figures.

The combined table has one row per arm and dose. `Model` is the model's id; where several arms of one model are
combined, it also names the settings in which they differ, e.g. `Qwen2-7B [rank=8 seed=42]`. Arms are never averaged.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tamperdose import files
from tamperdose.errors import DataError, explain
from tamperdose.report.captions import MEANINGS
from tamperdose.report.figures import TITLES, Y_LABELS, Sheet, Trace, draw_compare, lines_figure, rd_top
from tamperdose.report.response_figures import draw_rates
from tamperdose.report.select import (
    Arm,
    Curve,
    arm_labels,
    arm_rows,
    curve,
    dose_label,
    headline_judge,
    list_arms,
    select_judge,
)
from tamperdose.report.style import save_png
from tamperdose.report.text import printable
from tamperdose.run.audit import read_audit
from tamperdose.run.schema import COMBINED_COLUMNS, METRIC_COLUMNS, column, keep_rows, read_combined, read_metrics

COMBINED_NAME = "combined_results_standardized"
"""The stem of the combined table's file."""

_METRICS = ("RRR", "CE", "RD")


def combine(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write `metrics/<study>.csv`, `metrics/combined_results_standardized.csv` and `figures/*_compare.png` under `out`.

    Where the runs are of models of several sizes, `figures/scaling_*` too. The copies hold every judge's rows; the
    combined table and the figures those of each run's headline judge, over harmful prompts. Nothing is written before
    every run has been read.

    Raises:
        DataError: No runs, a run that cannot be read, or two runs of studies with one name.
        RunError: `out` cannot be written.
    """
    if not runs:
        raise DataError(explain("there are no runs to combine", expected="at least one folder with a metrics.csv"))
    frames = {run: _read(run) for run in runs}
    names = _file_names(frames)
    headline = pd.concat([select_judge(frame, headline_judge(run)) for run, frame in frames.items()], ignore_index=True)
    rows = list(combined_rows(headline))
    audits = {study: read_audit(run) for run, frame in frames.items() for study in frame["study"].unique()}
    written = [_write_copy(out / "metrics" / f"{names[run]}.csv", frame) for run, frame in frames.items()]
    written.append(files.write_csv(out / "metrics" / f"{COMBINED_NAME}.csv", COMBINED_COLUMNS, rows))
    return [*written, *draw_compare(headline, out / "figures", audits), *draw_rates(headline, out / "figures", audits)]


def combined_rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield the combined table's rows from one judge's metrics: arms as `list_arms` orders them, doses ascending.

    Raises:
        DataError: Two arms cannot be told apart by name, or a dose has two values of one metric.
    """
    names = combined_names(list_arms(frame))
    for arm, name in names.items():
        mine = arm_rows(frame, arm)
        values = {metric: _by_dose(curve(mine, arm, metric)) for metric in _METRICS}
        for steps in sorted({step for points in values.values() for step in points}):
            yield {"Model": name, "Steps": steps} | {metric: values[metric].get(steps) for metric in _METRICS}


def combined_names(arms: Sequence[Arm]) -> dict[Arm, str]:
    """Name each arm for the `Model` column: its model, and in brackets what sets it apart from that model's other arms.

    Raises:
        DataError: Two arms get one name.
    """
    names: dict[Arm, str] = {}
    for model in dict.fromkeys(arm.model for arm in arms):
        mine = [arm for arm in arms if arm.model == model]
        for arm, label in zip(mine, arm_labels(mine, facet="model"), strict=True):
            names[arm] = printable(model) + (f" [{label}]" if label else "")
    if len(set(names.values())) < len(names):
        raise DataError(explain("two arms have one name", got=", ".join(names.values()), expected="distinct names"))
    return names


def draw_combined(path: Path, folder: Path) -> list[Path]:
    """Draw RRR_compare.png, CE_compare.png and RD_compare.png from a combined table, which has no intervals.

    Raises:
        DataError: The file is not a combined table, or has no rows.
        RunError: The folder cannot be written.
    """
    frame = read_combined(path)
    if frame.empty:
        raise DataError(explain(f"{path} has no rows", expected="one row for each model and dose"))
    written: list[Path] = []
    for metric in _METRICS:
        traces = _combined_traces(frame, metric)
        top = rd_top([trace.curve for trace in traces], {}) if metric == "RD" else 1.0
        text = f"{MEANINGS[metric]} The combined table holds no intervals."
        sheet = Sheet(TITLES[metric], Y_LABELS[metric], text, top, dose_label(()))
        written.append(save_png(lines_figure(traces, sheet), folder / f"{metric}_compare.png"))
    return written


def _combined_traces(frame: pd.DataFrame, metric: str) -> list[Trace]:
    names = list(dict.fromkeys(column(frame, "Model")))
    traces: list[Trace] = []
    for name in names:
        rows = keep_rows(frame, column(frame, "Model") == name).sort_values("Steps")
        steps, blank = tuple(int(step) for step in rows["Steps"]), (math.nan,) * len(rows)
        points = Curve(steps, tuple(float(value) for value in rows[metric]), blank, blank)
        # A trailing `seed=` is what `combined_names` writes: repeats of one recipe then share a colour.
        repeat = re.search(r"\bseed=\S+\]$", name)
        traces.append(Trace(name, name if len(names) == 1 else "", points, repeat[0] if repeat else ""))
    return traces


def _read(run: Path) -> pd.DataFrame:
    frame = read_metrics(run / "metrics.csv")
    studies = list(column(frame, "study").unique())
    if len(studies) != 1:
        raise DataError(
            explain(
                f"{run / 'metrics.csv'} does not hold exactly one study",
                got=", ".join(repr(study) for study in studies) or "no rows",
                expected="the metrics of one finished run",
            )
        )
    return frame


def _file_names(frames: dict[Path, pd.DataFrame]) -> dict[Path, str]:
    """Turn each run's study name into a file name that stays in its folder, and refuse two that meet."""
    names: dict[Path, str] = {}
    taken = {COMBINED_NAME: "the combined table"}
    for run, frame in frames.items():
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(frame["study"].iloc[0])).lstrip(".")[:120] or "_"
        if name.casefold() in taken:
            raise DataError(
                explain(
                    f"{run} would overwrite {taken[name.casefold()]}",
                    got=f"the file name '{name}.csv' twice",
                    expected="studies with distinct names",
                    remedy="rename one study, or leave one of the runs out",
                )
            )
        taken[name.casefold()], names[run] = f"the metrics of {run}", name
    return names


def _write_copy(path: Path, frame: pd.DataFrame) -> Path:
    rows = ({name: None if pd.isna(cell) else cell for name, cell in row.items()} for row in frame.to_dict("records"))
    return files.write_csv(path, METRIC_COLUMNS, rows)  # pyright: ignore[reportArgumentType]


def _by_dose(points: Curve) -> dict[int, float | None]:
    return {step: None if math.isnan(value) else value for step, value in zip(points.steps, points.value, strict=True)}
