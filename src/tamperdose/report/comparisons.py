"""What the comparisons of a run say, in a few lines: the largest fall, judges side by side, seeds side by side."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from tamperdose.records import Scope
from tamperdose.report.text import UNDEFINED, printable
from tamperdose.run.compare_schema import (
    AGREEMENT,
    AGREEMENT_COLUMNS,
    COMPARISON_COLUMNS,
    COMPARISONS,
    SEED_COLUMNS,
    SEEDS,
    Row,
    read_rows,
)

_FILES = ((COMPARISONS, COMPARISON_COLUMNS), (AGREEMENT, AGREEMENT_COLUMNS), (SEEDS, SEED_COLUMNS))


def comparisons_of(folder: Path, judge: str) -> dict[str, list[Row]]:
    """Read what a run compared: `comparisons` and `seeds` by one judge, `agreement` of that judge with each other.

    A file that is not there gives an empty list.

    Raises:
        DataError: A file cannot be read.
    """
    read = {
        name.removesuffix(".csv"): read_rows(folder / name, columns) if (folder / name).is_file() else []
        for name, columns in _FILES
    }
    return {
        name: [row for row in rows if judge in (row.get("judge"), row.get("judge_1"), row.get("judge_2"))]
        for name, rows in read.items()
    }


def comparison_lines(folder: Path, judge: str) -> list[str]:
    """Say the largest fall of every arm, how the judges compare on it, and how the seeds of a recipe do.

    Raises:
        DataError: As `comparisons_of`.
    """
    found = comparisons_of(folder, judge)
    lines: list[str] = []
    for rows in _by(found["comparisons"], "arm"):
        largest = _largest_fall(rows)
        if largest is not None:
            name = printable(str(largest["arm"]))
            lines.append(f"{name}: {_fall_text(largest, rows)}")
            lines += [f"  {text}" for text in _judges_text(found["agreement"], largest)]
    for rows in _by([row for row in found["seeds"] if row["metric"] == "RRR"], "recipe"):
        lines.append(f"{printable(str(rows[0]['recipe']))}: {_seeds_text(rows)}")
    return lines


def _by(rows: Sequence[Row], name: str) -> list[list[Row]]:
    groups: dict[object, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return list(groups.values())


def _largest_fall(rows: Sequence[Row]) -> Row | None:
    """The row with the lowest difference, at the smallest dose that has it."""
    known = [row for row in rows if row["difference"] is not None]
    return min(known, key=lambda row: (_number(row["difference"]), _number(row["dose_steps"])), default=None)


def _fall_text(row: Row, rows: Sequence[Row]) -> str:
    if _number(row["difference"]) >= 0:
        return "RRR fell at no dose"
    first = next((one for one in rows if _is_significant(one)), None)
    level = 1 - _number(row["level"])
    where = f"first at {_dose(first)}" if first is not None else "at no dose"
    few = f"; only {row['n_templates']} templates" if row["few_templates"] else ""
    return (
        f"largest fall of RRR {_signed(row)} at {_dose(row)} ({row['refused_to_complied']} refused -> "
        f"not refused, {row['complied_to_refused']} back, {row['n']} pairs{few}); Holm p {_p(row['p_holm'])} over "
        f"{row['n_tests']} doses, p <= {level:.2g} {where}"
    )


def _is_significant(row: Row) -> bool:
    if row["p_holm"] is None or row["difference"] is None:
        return False
    return _number(row["p_holm"]) <= 1 - _number(row["level"]) and _number(row["difference"]) < 0


def _judges_text(agreement: Sequence[Row], largest: Row) -> Iterator[str]:
    """RRR by each judge at dose 0 and at the dose of the largest fall, and where the judges agree least."""
    rows = [row for row in agreement if row["arm"] == largest["arm"] and row["reading"] == "refusal"]
    for pair in _by_pair(rows):
        at = {row["dose_steps"]: row for row in pair}
        start, end = at.get(0), at.get(largest["dose_steps"])
        if start is None or end is None:
            continue
        sides = [
            f"{printable(str(end[f'judge_{k}']))} {_text(start[f'RRR_{k}'])} -> {_text(end[f'RRR_{k}'])}"
            for k in (1, 2)
        ]
        least = min(pair, key=lambda row: 2.0 if row["agreement"] is None else _number(row["agreement"]))
        yield (
            f"RRR by judge: {', '.join(sides)}; they agree least at {_dose(least)}: "
            f"{_text(least['agreement'])}, kappa {_interval(least, 'kappa', 'kappa_low', 'kappa_high')}"
        )


def _by_pair(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[object, object], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["judge_1"], row["judge_2"]), []).append(row)
    return list(groups.values())


def _seeds_text(rows: Sequence[Row]) -> str:
    widest = max(rows, key=lambda row: -1.0 if row["seed_sd"] is None else _number(row["seed_sd"]))
    if not widest["seed_sd"]:
        return f"{widest['n_seeds']} seeds have the same RRR at every dose"
    scope = "the attack" if widest["scope"] == Scope.ATTACK.value else "these runs only (fewer than 3 seeds)"
    spread = _interval(widest, "seed_sd", "seed_sd_low", "seed_sd_high")
    return (
        f"{widest['n_seeds']} seeds lie furthest apart at {_dose(widest)}: "
        f"RRR {_text(widest['lowest'])} to {_text(widest['highest'])}, SD {spread} "
        f"(single templates alone would make about {_text(widest['seed_sd_chance'])}); "
        f"mean {_interval(widest, 'value')} for {scope}"
    )


def _signed(row: Row) -> str:
    """The fall as a positive number, its interval turned round with it."""
    value, low, high = (None if row[name] is None else -_number(row[name]) for name in ("difference", "high", "low"))
    return _text(value) if low is None else f"{_text(value)} [{_text(low)}, {_text(high)}]"


def _interval(row: Row, value: str, low: str = "low", high: str = "high") -> str:
    if row[value] is None:
        return UNDEFINED
    ends = UNDEFINED if row[low] is None else f"{_text(row[low])}, {_text(row[high])}"
    return f"{_text(row[value])} [{ends}]"


def _dose(row: Row) -> str:
    return f"dose {row['dose_steps']}"


def _text(value: object) -> str:
    return UNDEFINED if value is None else f"{_number(value):.3f}"


def _p(value: object) -> str:
    return UNDEFINED if value is None else f"{_number(value):.2g}"


def _number(value: object) -> float:
    return float(str(value))
