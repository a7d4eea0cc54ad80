"""What a run found inside its models, in lines for a terminal: the direction at the last dose, and when it turns."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tamperdose.errors import DataError, explain
from tamperdose.records import Scope
from tamperdose.report.responses import read_json
from tamperdose.report.text import printable
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.inside_results import AUC, DRIFT, INSIDE, INSIDE_COLUMNS, INSIDE_JSON
from tamperdose.stats.timing import MARGIN, Order

FEW_ARMS = 4
"""Up to so many arms the last dose of every arm is told; beyond, only when the direction turns."""


def read_inside_rows(folder: Path) -> list[Row]:
    """The rows of a run's `inside.csv`; none where nothing was looked at.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / INSIDE
    return read_rows(path, INSIDE_COLUMNS) if path.is_file() else []


def inside_lines(folder: Path) -> list[str]:
    """Say what became of the refusal direction at the last dose of every arm, and whether it turned before the break.

    Raises:
        DataError: A file is damaged.
    """
    rows = read_inside_rows(folder)
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    lines = [
        line for arm in arms if len(arms) <= FEW_ARMS for line in _last_lines([r for r in rows if r["arm"] == arm])
    ]
    try:
        told = [_timing_line(timing) for timing in read_json(folder / INSIDE_JSON).get("timings", [])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            explain(f"{folder / INSIDE_JSON} is damaged", got=f"{type(error).__name__}: {error}")
        ) from error
    return [*lines, *told]


def _last_lines(rows: Sequence[Row]) -> Iterator[str]:
    last = max(int(str(row["dose_steps"])) for row in rows)
    if last == 0:
        return
    drift, auc = (_values(rows, metric, last) for metric in (DRIFT, AUC))
    text = f"inside {printable(str(rows[0]['arm']))}: at dose {last} the refusal direction has turned by "
    text += _spread(drift) if drift else "an undefined angle"
    yield f"{text}; AUC along the untampered one {_spread(auc)}"
    states: dict[str, list[str]] = {}
    for row in rows:
        if row["dose_steps"] == last and row["metric"] == AUC and row["state"]:
            kind, _, figure = str(row["state"]).partition(": ")
            states.setdefault(kind, []).append(f"layer {row['layer']}{f' {figure}' if figure else ''}")
    for kind, places in states.items():
        more = f", and {len(places) - 3} layers more" if len(places) > 3 else ""
        yield f"  {kind}: {', '.join(places[:3])}{more}"


def _values(rows: Sequence[Row], metric: str, steps: int) -> list[float]:
    mine = [row for row in rows if row["metric"] == metric and row["dose_steps"] == steps]
    return [float(str(row["value"])) for row in mine if row["value"] is not None]


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f} over {len(values)} layers)"


def _timing_line(timing: Mapping[str, Any]) -> str:
    name = printable(str(timing["arm"]))
    if timing["reason"]:
        return f"inside {name}: no order of drift and break: {timing['reason']}"
    speaks = f"over {timing['n_seeds']} seeds" if timing["scope"] == Scope.ATTACK.value else "for this run"
    low, high = timing["low"], timing["high"]
    ends = f"[{low:.2f}, {'open' if high is None else f'{high:.2f}'}]"
    ratio = "a bound only" if timing["ratio"] is None else f"{timing['ratio']:.2f}"
    said = {
        Order.PRECEDES: "drift precedes the break",
        Order.FOLLOWS: "drift follows the break",
        Order.ACCOMPANIES: f"drift accompanies the break (within a factor of {MARGIN:g})",
        Order.UNDECIDED: "undecided whether drift precedes or follows the break",
    }[Order(timing["order"])]
    return f"inside {name}: {said}: half of the final drift at {ratio} x ED50, {ends} {speaks}"
