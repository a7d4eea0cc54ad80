"""Rates corrected by labels of other answers than the run's: sensitivity and specificity are taken to be the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tamperdose.data.prompts import infer_template
from tamperdose.errors import DataError, explain, nearest
from tamperdose.files import digest
from tamperdose.judges import build_judge
from tamperdose.records import Label
from tamperdose.run.corrected import (
    Calibration,
    Corrected,
    covariance_of,
    describe_quality,
    judged_estimate,
    not_identifiable,
    template_flag,
    undefined_flag,
)
from tamperdose.run.filled import LabelRow, readings, truth
from tamperdose.run.labels import JudgedRun
from tamperdose.stats.carry import ErrorMap, corrected_difference, error_map
from tamperdose.stats.judge_error import quality_elsewhere, rogan_gladen


def from_elsewhere(run: JudgedRun, rows: Sequence[LabelRow], level: float) -> Calibration:
    """Correct every rate of a run by people's labels of other answers.

    Raises:
        DataError: The labels lack what the judge reads, or hold a verdict that is none.
    """
    refused, templates = _judge_elsewhere(run.judge, rows)
    told = digest([[row.item, row.label] for row in rows])
    corrected: list[Corrected] = []
    maps: dict[tuple[str, str, int], ErrorMap] = {}
    of_reading: dict[str, Any] = {}
    bands, cells = run.bands(), run.by_cell()
    for partial_as in readings([row.label for row in rows]):
        rng = np.random.default_rng(int(digest([told, partial_as]), 16))
        truths = [truth([row.label], partial_as) for row in rows]
        quality = quality_elsewhere(refused, truths, templates, rng=rng, level=level)
        reason = "labels from elsewhere, the judge's quality taken to be the same here"
        if not quality.identifiable:
            reason = not_identifiable(quality)
        for model, arm in run.arms:
            base, line = rogan_gladen(judged_estimate(cells[model, "", 0], level), quality), error_map(quality.draws)
            for cell in sorted(cell for cell in cells if cell[0] == model and cell[1] in ("", arm)):
                estimate = rogan_gladen(judged_estimate(cells[cell], level), quality)
                place = (model, arm, cell[2], bands[cell], partial_as)
                corrected.append(Corrected("RRR_corrected", *place, estimate, len(rows), reason))
                if cell[2]:
                    shared = covariance_of(cells[model, "", 0], cells[cell], (line, line))
                    difference = corrected_difference(base, estimate, covariance=shared)
                    corrected.append(Corrected("RRR_corrected_difference", *place, difference, len(rows), reason))
                if estimate.value is not None:
                    maps[partial_as, arm, cell[2]] = line
        of_reading[partial_as] = {"quality": {"elsewhere": describe_quality(quality)}}
    flags = [*template_flag(len(set(templates))), *undefined_flag(corrected)]
    summary = {
        "n_labelled": len(rows),
        "n_labels_templates": len(set(templates)),
        "readings": of_reading,
        "flags": flags,
    }
    return Calibration(tuple(corrected), maps, summary)


def _judge_elsewhere(judge: str, rows: Sequence[LabelRow]) -> tuple[list[bool], list[str]]:
    """The judge's verdicts on labelled answers, as the file tells them or read now, and their templates."""
    first = rows[0].row
    if "verdict" not in first and not {"prompt", "response"} <= set(first):
        raise DataError(
            explain(
                "labels from elsewhere lack what the judge reads",
                got="columns " + ", ".join(first),
                expected="`prompt` and `response`, or the judge's `verdict`",
            )
        )
    prompts = [row.row.get("prompt", "") for row in rows]
    if "verdict" in first:
        verdicts = [_verdict(row) for row in rows]
    else:
        readings = build_judge(judge).read(prompts, [row.row["response"] for row in rows])
        verdicts = [reading.label for reading in readings]
    # Without a prompt each answer is its own cluster.
    own = [f"row {number}" for number in range(len(rows))]
    inferred = [infer_template(text) if text.strip() else name for text, name in zip(prompts, own, strict=True)]
    templates = [row.row.get("template") or name for row, name in zip(rows, inferred, strict=True)]
    return [verdict is Label.REFUSAL for verdict in verdicts], templates


def _verdict(row: LabelRow) -> Label:
    word = row.row["verdict"].strip().lower()
    if word not in (Label.REFUSAL, Label.COMPLIANCE, Label.DEGENERATE):
        raise DataError(
            explain(
                f"{row.item}: 'verdict' is none of the judge's words{nearest(word, list(Label))}",
                got=repr(word[:40]),
                expected="refusal, compliance or degenerate",
            )
        )
    return Label(word)
