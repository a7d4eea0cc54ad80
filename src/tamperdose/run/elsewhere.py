"""Rates corrected by labels of other answers than the run's: sensitivity and specificity are taken to be the same."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tamperdose.data.prompts import infer_template
from tamperdose.errors import DataError, explain, nearest
from tamperdose.files import digest
from tamperdose.judges import JUDGE_NAMES, build_judge
from tamperdose.records import Label
from tamperdose.run.corrected import (
    Calibration,
    Corrected,
    covariance_of,
    describe_quality,
    judged_estimate,
    not_identifiable,
    quality_flags,
    template_flag,
    undefined_flag,
)
from tamperdose.run.filled import LabelRow, readings, truth
from tamperdose.run.labels import JudgedRun
from tamperdose.stats.carry import ErrorMap, corrected_difference, error_map
from tamperdose.stats.judge_error import Quality, agreement_elsewhere, quality_elsewhere, rogan_gladen

_OF_A_SHEET = re.compile(r"[0-9a-f]{6}-[0-9a-f]{6}")
"""Ids of `tamperdose label`, whose answers are drawn by verdict."""


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """Labelled answers that are no sample of the run; those without a verdict are left out."""

    refused: list[bool]
    """Whether the judge read a refusal."""
    labels: list[list[str]]
    """What people wrote of each."""
    templates: list[str]
    """Their templates."""
    weights: list[float] | None
    """How many answers each stands for; None where they were drawn alike."""
    n_unreadable: int
    """Answers left out."""


def from_elsewhere(run: JudgedRun, rows: Sequence[LabelRow], level: float) -> Calibration:
    """Correct every rate of a run by people's labels of other answers.

    Rows with the same `item` are labels of one answer. A column `weight` says how many answers each stands for.

    Raises:
        DataError: The labels lack what the judge reads, hold a verdict or weight that is none, or are of answers drawn
            by verdict and lack their weights.
    """
    found = _gather(run.judge, rows)
    weights = found.weights or [1.0] * len(found.labels)
    told = sorted(zip(found.refused, found.labels, found.templates, weights, strict=True))
    corrected: list[Corrected] = []
    maps: dict[tuple[str, str, int], ErrorMap] = {}
    of_reading: dict[str, Any] = {}
    for partial_as in readings([row.label for row in rows]):
        rng = np.random.default_rng(int(digest([told, partial_as]), 16))
        truths = [truth(labels, partial_as) for labels in found.labels]
        quality = quality_elsewhere(found.refused, truths, found.templates, rng=rng, weights=found.weights, level=level)
        agreed = agreement_elsewhere(
            found.refused, truths, found.templates, rng=rng, weights=found.weights, level=level
        )
        corrected += _corrected(run, quality, partial_as, level)
        maps |= {
            (partial_as, row.arm, row.dose): error_map(quality.draws)
            for row in corrected
            if row.partial_as == partial_as and row.dose is not None and row.estimate.value is not None
        }
        of_reading[partial_as] = {
            "agreement": {"elsewhere": asdict(agreed)},
            "quality": {"elsewhere": describe_quality(quality)},
        }
    n_templates = len(set(found.templates))
    flags = [*template_flag(n_templates), *quality_flags(of_reading), *undefined_flag(corrected)]
    if found.n_unreadable:
        flags.append(f"{found.n_unreadable} labelled answers have no verdict of the judge: left out")
    summary = {"n_labels_templates": n_templates, "readings": of_reading, "flags": flags}
    return Calibration(tuple(corrected), maps, summary | {"n_labelled": len(found.labels)})


def _corrected(run: JudgedRun, quality: Quality, partial_as: str, level: float) -> Iterator[Corrected]:
    """Every rate of the run and its difference from dose 0."""
    bands, cells, line = run.bands(), run.by_cell(), error_map(quality.draws)
    reason = "labels from elsewhere, the judge's quality taken to be the same here"
    if not quality.identifiable:
        reason = not_identifiable(quality)
    for model, arm in run.arms:
        at_0 = cells[model, "", 0]
        base = rogan_gladen(judged_estimate(at_0, level), quality)
        for cell in sorted(cell for cell in cells if cell[0] == model and cell[1] in ("", arm)):
            estimate = rogan_gladen(judged_estimate(cells[cell], level), quality)
            place = (model, arm, cell[2], bands[cell], partial_as)
            yield Corrected("RRR_corrected", *place, estimate, quality.n_labels, reason)
            if cell[2]:
                difference = corrected_difference(
                    base, estimate, covariance=covariance_of(at_0, cells[cell], (line, line))
                )
                yield Corrected("RRR_corrected_difference", *place, difference, quality.n_labels, reason)


def _gather(judge: str, rows: Sequence[LabelRow]) -> _Elsewhere:
    """One entry for each labelled answer: its verdict, as the file tells it or read now, labels, template, weight."""
    _require_columns(judge, rows[0].row)
    groups: dict[str, list[LabelRow]] = {}
    for row in rows:
        groups.setdefault(row.item, []).append(row)
    answers = [_one_answer(group) for group in groups.values()]
    verdicts = _verdicts(judge, answers)
    weights = _weights(answers)
    kept = [place for place, verdict in enumerate(verdicts) if verdict is not Label.UNREADABLE]
    if not kept:
        raise DataError(explain("no labelled answer has a verdict", expected="refusal, compliance or degenerate"))
    return _Elsewhere(
        refused=[verdicts[place] is Label.REFUSAL for place in kept],
        labels=[sorted(row.label for row in groups[answers[place].item]) for place in kept],
        templates=[_template(answers[place]) for place in kept],
        weights=None if weights is None else [weights[place] for place in kept],
        n_unreadable=len(verdicts) - len(kept),
    )


def _require_columns(judge: str, columns: Mapping[str, str]) -> None:
    if "verdict" not in columns and (not {"prompt", "response"} <= set(columns) or judge not in JUDGE_NAMES):
        raise DataError(
            explain(
                "labels from elsewhere lack what the judge reads",
                got="columns " + ", ".join(columns),
                expected="`prompt` and `response`, or the judge's `verdict`"
                if judge in JUDGE_NAMES
                else f"the `verdict` of '{judge}', which has settings of its own",
                remedy=None if judge in JUDGE_NAMES else "read the answers with tamperdose judge first",
            )
        )


def _one_answer(group: Sequence[LabelRow]) -> LabelRow:
    first = group[0]
    for row in group[1:]:
        differing = [name for name in _OF_THE_ANSWER if row.row.get(name) != first.row.get(name)]
        if differing:
            raise DataError(
                explain(
                    f"rows of item {first.item[:40]!r} are of different answers",
                    got=f"two values of '{differing[0]}'",
                    expected="an `item` that names one answer",
                )
            )
    return first


_OF_THE_ANSWER = ("prompt", "response", "verdict", "template", "weight")


def _verdicts(judge: str, answers: Sequence[LabelRow]) -> list[Label]:
    if "verdict" in answers[0].row:
        return [_verdict(row) for row in answers]
    texts = [(row.row["prompt"], row.row["response"]) for row in answers]
    found = build_judge(judge).read([prompt for prompt, _ in texts], [response for _, response in texts])
    return [reading.label for reading in found]


def _template(row: LabelRow) -> str:
    # Without a prompt each answer is its own cluster.
    prompt = row.row.get("prompt", "")
    return row.row.get("template") or (infer_template(prompt) if prompt.strip() else f"item {row.item}")


def _weights(answers: Sequence[LabelRow]) -> list[float] | None:
    if "weight" in answers[0].row:
        return [_weight(row) for row in answers]
    if all(_OF_A_SHEET.fullmatch(row.item) for row in answers):
        raise DataError(
            explain(
                "the answers of a sheet are drawn by verdict and stand for different numbers of others",
                got="no column `weight`",
                expected="the weights from the sheet's key: without them sensitivity and specificity are wrong",
                remedy="copy `weight` from labels/<sheet>.key.csv by `item`; for the run of the sheet, leave out "
                "--elsewhere",
            )
        )
    return None


def _weight(row: LabelRow) -> float:
    text = row.row["weight"].strip()
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise DataError(explain(f"{row.item}: 'weight' is no weight", got=repr(text[:40]), expected="a number above 0"))
    return weight


def _verdict(row: LabelRow) -> Label:
    word = row.row["verdict"].strip().lower()
    if word not in list(Label):
        raise DataError(
            explain(
                f"{row.item}: 'verdict' is none of the judge's words{nearest(word, list(Label))}",
                got=repr(word[:40]),
                expected=", ".join(Label),
            )
        )
    return Label(word)
