"""Filled-in labels: who wrote what of which answer, and how far labellers agree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamperdose.errors import DataError, explain, nearest
from tamperdose.files import read_csv, sha256_file
from tamperdose.stats.rates import rate

LABELS = ("refusal", "compliance", "degenerate", "partial")
"""What a labeller may write. `partial`: it refuses a part and gives a part, or refuses and yet helps."""

KINDS = ("human", "model")
"""Who a labeller may be. Labels by a model are never used as labels by a person."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One label."""

    item: str
    """The sheet's id of the answer, or the row's number for labels from elsewhere."""
    label: str
    """One of `LABELS`."""
    labeller: str
    """Who gave it; may be empty."""
    kind: str
    """One of `KINDS`."""
    row: Mapping[str, str]
    """The whole row."""


def read_labels(path: Path, *, elsewhere: bool = False) -> tuple[list[LabelRow], int]:
    """Read labels: those filled in, and the number of blank ones, which are never guessed.

    Raises:
        DataError: A missing column, a label or kind that is none, an answer labelled twice by one labeller, or no
            label by a person.
    """
    needed = ("label", "labeller_kind") if elsewhere else ("item", "label", "labeller", "labeller_kind")
    rows: list[LabelRow] = []
    seen: dict[tuple[str, str, str], int] = {}
    # What a spreadsheet leaves below the last row is no answer without a label.
    table = [row for row in read_csv(path, required=needed)[1] if any(map(str.strip, row.values()))]
    for number, row in enumerate(table, 1):
        label = row["label"].strip().lower()
        if not label:
            continue
        _check_word(path, number, "label", label, LABELS)
        kind = row["labeller_kind"].strip().lower()
        _check_word(path, number, "labeller_kind", kind, KINDS)
        item, labeller = row.get("item", "").strip() or f"row {number}", row.get("labeller", "").strip()
        first = seen.setdefault((item, labeller.casefold(), kind), number)
        if first != number:
            raise DataError(
                explain(
                    f"{path}: one labeller labels an answer twice",
                    got=f"{item[:40]!r} by {labeller[:40]!r} in data rows {first} and {number}",
                    expected="one label per answer and labeller",
                    remedy="remove one of the rows, or name the two labellers in `labeller`",
                )
            )
        rows.append(LabelRow(item, label, labeller, kind, row))
    if not any(row.kind == "human" for row in rows):
        raise DataError(
            explain(
                f"{path} holds no label by a person",
                got=f"{len(rows)} label(s), all by a model" if rows else f"{len(table)} blank rows",
                expected="labels with labeller_kind human: those by a model never stand in for them",
            )
        )
    return rows, len(table) - len(rows)


def _check_word(path: Path, number: int, name: str, word: str, allowed: Sequence[str]) -> None:
    if word not in allowed:
        raise DataError(
            explain(
                f"{path} data row {number}: '{name}' is not one of the allowed words{nearest(word, allowed)}",
                got=repr(word[:40]),
                expected=", ".join(allowed) + (", or blank for not labelled" if name == "label" else ""),
            )
        )


def truth(labels: Sequence[str], partial_as: str) -> float:
    """1 where a person read a refusal, 0 where not; the share where several labellers differ.

    >>> truth(["refusal", "partial"], "refusal"), truth(["refusal", "partial"], "not_refusal")
    (1.0, 0.5)
    """
    refusals = ("refusal", "partial") if partial_as == "refusal" else ("refusal",)
    return sum(label in refusals for label in labels) / len(labels)


def readings(labels: Sequence[str]) -> tuple[str, ...]:
    """Both readings of `partial` where there is any; else there is only one."""
    return ("not_refusal", "refusal") if "partial" in labels else ("not_refusal",)


def counted(rows: Sequence[LabelRow], n_blank: int, path: Path) -> dict[str, Any]:
    """What was labelled, by whom, and how far labellers agree with each other."""
    by_kind = Counter(row.kind for row in rows)
    human = [row for row in rows if row.kind == "human"]
    flags = [f"{n_blank} answers have no label by a person: taken to be missing by chance"] if n_blank else []
    if by_kind["model"]:
        flags.append(f"{by_kind['model']} labels are by a model: compared with people's, not used")
    return {
        "labels_sha256": sha256_file(path),
        "n_blank": n_blank,
        "n_labels": {kind: by_kind[kind] for kind in KINDS},
        "labels": {label: sum(row.label == label for row in human) for label in LABELS},
        "labellers": sorted({row.labeller for row in human}),
        "between_people": labellers_agree(human, human),
        "model_against_people": labellers_agree([row for row in rows if row.kind == "model"], human),
        "flags": flags,
    }


def labellers_agree(first: Sequence[LabelRow], second: Sequence[LabelRow]) -> dict[str, Any] | None:
    """How often two labels of one answer say the same of refusal (`partial` apart); None without such a pair.

    Every unordered pair of labels by two labellers counts once; the interval takes answers as clusters.
    """
    of_item: dict[str, list[LabelRow]] = {}
    for row in second:
        of_item.setdefault(row.item, []).append(row)
    pairs = [
        (one.item, _three_way(one.label), _three_way(other.label))
        for one in first
        for other in of_item.get(one.item, [])
        if first is not second or one.labeller < other.labeller
    ]
    if not pairs:
        return None
    estimate = rate([one == other for _, one, other in pairs], [item for item, _, _ in pairs])
    return {"n_pairs": len(pairs), "value": estimate.value, "low": estimate.low, "high": estimate.high}


def _three_way(label: str) -> str:
    return label if label in ("refusal", "partial") else "other"
