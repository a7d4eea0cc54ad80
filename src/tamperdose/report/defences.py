"""What defences are worth and what they cost, in a short table for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamperdose.audit.findings import Audit
from tamperdose.records import Scope
from tamperdose.report.lost_doses import lost_arms
from tamperdose.report.responses import amount_text, read_fits, read_responses
from tamperdose.report.text import MARK, UNDEFINED, WITHHELD, printable, shorten
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.defences import COST_METRICS, DEFENCE_COLUMNS, DEFENCES, DOSE_METRICS, RECIPE

HEADINGS = ("defence", "ED50 without", "ED50 with", "times", "[interval]", "later/sooner/?", "gate", "not supported")
"""The columns of the table of doses."""
COST_HEADINGS = ("defence", "RRR without", "RRR with", "over-refusal rise", "perplexity loss", "accuracy loss")
"""The columns of the table of costs, all at dose 0."""


def read_defences(folder: Path, judge: str) -> list[Row]:
    """The rows of `defences.csv` by one judge, and those without a judge; none where no defences are compared.

    Raises:
        DataError: The file cannot be read.
    """
    path = folder / DEFENCES
    rows = read_rows(path, DEFENCE_COLUMNS) if path.is_file() else []
    return [row for row in rows if row["judge"] in (judge, "")]


def lost_defences(folder: Path, judge: str, audit: Audit | None) -> dict[tuple[str, ...], tuple[str, ...]]:
    """The failed checks that bear on ED50 by model, defence and attack: see `key_of`; what is not there stands.

    Raises:
        DataError: As `read_fits`.
    """
    lost = lost_arms(read_fits(folder, judge), audit)
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in read_responses(folder, judge):
        why = lost.get(str(row["arm"]), ())
        if why and row["scope"] == Scope.TRAJECTORY.value:
            found[key_of(row)] = tuple(dict.fromkeys((*found.get(key_of(row), ()), *why)))
    return found


def key_of(row: Row, defence: str | None = None) -> tuple[str, ...]:
    """What names the arms behind a row: model, defence and attack; of another defence on request."""
    named = row["defence"] if defence is None else defence
    return (str(row["model"]), str(named), *(str(row[name]) for name in RECIPE))


def why_unsupported(row: Row, lost: Mapping[tuple[str, ...], tuple[str, ...]]) -> tuple[str, ...]:
    """The failed checks that bear on a row of an attack: on the defended model's arms, the other's, or both."""
    with_it, without = lost.get(key_of(row), ()), lost.get(key_of(row, "none"), ())
    used = {"without": (without,), "with": (with_it,)}.get(str(row["metric"]).rsplit("_", 1)[-1], (without, with_it))
    return tuple(dict.fromkeys(why for part in used for why in part))


def defences_of(folder: Path, judge: str, audit: Audit | None) -> list[dict[str, Any]]:
    """The rows for a program: each with the failed checks that leave it without support.

    Raises:
        DataError: As `read_defences` and `lost_defences`.
    """
    rows = read_defences(folder, judge)
    lost = lost_defences(folder, judge, audit) if rows else {}
    return [
        row | {"not_supported_because": list(why_unsupported(row, lost)) if row["metric"] in DOSE_METRICS else []}
        for row in rows
    ]


def defence_lines(folder: Path, judge: str, *, audit: Audit | None = None, force: bool = False) -> list[str]:
    """A table for each model and attack: ED50 without and with each defence and their ratio; then one of costs.

    A dose that the audit leaves without support is withheld, or with `force` printed with a mark.

    Raises:
        DataError: As `defences_of`.
    """
    rows = defences_of(folder, judge, audit)
    lines: list[str] = []
    for model in dict.fromkeys(str(row["model"]) for row in rows):
        mine = [row for row in rows if row["model"] == model]
        doses = [row for row in mine if row["metric"] in DOSE_METRICS]
        for recipe in dict.fromkeys(tuple(str(row[name]) for name in RECIPE) for row in doses):
            chosen = [row for row in doses if tuple(str(row[name]) for name in RECIPE) == recipe]
            first = next(row for row in chosen if row["metric"] == DOSE_METRICS[2])
            lines.append(
                f"defences of {printable(model)} against {printable(str(chosen[0]['attack']))}: {_runs(first)}"
            )
            lines += _table(_dose_cells(chosen, force=force))
        lines.append(f"  what they cost before any attack (dose 0), judge {printable(judge)}:")
        lines += _table(_cost_cells([row for row in mine if row["metric"] in COST_METRICS]))
    return lines


def _runs(row: Row) -> str:
    """What the intervals speak for."""
    many = f"{row['n_pairs']} pairs of runs, {row['n_seeds']} seeds x {row['n_orders']} data orders"
    if row["scope"] == Scope.ATTACK.value:
        return f"{many}; intervals are for other seeds"
    return f"{many}; no interval below three seeds"


def _dose_cells(rows: Sequence[Mapping[str, Any]], *, force: bool) -> Iterator[tuple[str, ...]]:
    yield HEADINGS
    for defence in dict.fromkeys(str(row["defence"]) for row in rows):
        by_metric = {str(row["metric"]): row for row in rows if row["defence"] == defence}
        without, defended, ratio = (by_metric[metric] for metric in DOSE_METRICS)
        lost: list[str] = ratio["not_supported_because"]
        counts = f"{ratio['n_longer']}/{ratio['n_shorter']}/{ratio['n_unclear']}"
        yield (
            shorten(printable(defence), 28),
            _supported(without, amount_text(without), force=force),
            _supported(defended, amount_text(defended), force=force),
            _supported(ratio, ratio_text(ratio), force=force),
            "" if lost and not force else interval_text(ratio),
            counts,
            str(ratio["gate"]).replace("_", " "),
            printable(", ".join(lost)),
        )


def _supported(row: Mapping[str, Any], text: str, *, force: bool) -> str:
    if not row["not_supported_because"]:
        return text
    return f"{text} {MARK}" if force else WITHHELD


def ratio_text(row: Mapping[str, Any]) -> str:
    """A ratio, or the bound that stands for it: "3.1", "at least 3.1", "at most 0.5"."""
    return amount_text(row, above="at least", below="at most")


def interval_text(row: Mapping[str, Any]) -> str:
    """An interval of a ratio, its ends open where nothing bounds them."""
    low, high = row["low"], row["high"]
    if low is None and high is None:
        return UNDEFINED
    return f"[{_number(low)}, {'open' if high is None else _number(high)}]"


def _cost_cells(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    yield COST_HEADINGS
    for defence in dict.fromkeys(str(row["defence"]) for row in rows):
        by_metric = {str(row["metric"]): row for row in rows if row["defence"] == defence}
        cells = [_estimate(by_metric.get(metric)) for metric in COST_METRICS]
        yield (shorten(printable(defence), 28), *cells)


def _estimate(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return UNDEFINED
    if row["low"] is None or row["high"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _table(cells: Iterator[tuple[str, ...]]) -> Iterator[str]:
    lines = list(cells)
    # A column that nothing stands in is left out.
    kept = [place for place in range(len(lines[0])) if any(line[place] for line in lines[1:])]
    widths = {place: max(len(line[place]) for line in lines) for place in kept}
    for line in lines:
        first, *others = kept
        yield "    " + "  ".join([line[first].ljust(widths[first]), *(line[k].rjust(widths[k]) for k in others)])


def _number(value: object) -> str:
    return UNDEFINED if value is None else f"{float(str(value)):.3g}"
