"""Rates corrected by labels drawn from the run itself: each dose by its own labels, or by those of its band."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tamperdose.files import digest
from tamperdose.records import Estimate
from tamperdose.run.corrected import (
    Calibration,
    Corrected,
    covariance_of,
    describe_quality,
    judged_estimate,
    not_identifiable,
    quality_flags,
    readable,
    template_flag,
    undefined_flag,
)
from tamperdose.run.filled import readings, truth
from tamperdose.run.labels import Answer, Band, JudgedRun, strata_of
from tamperdose.stats.carry import (
    ErrorMap,
    corrected_difference,
    error_map,
    post_stratified_rate,
    predictive_map,
    transported_rate,
)
from tamperdose.stats.correction import JudgedSample, agreement, corrected_rate, judged_sample
from tamperdose.stats.judge_error import Quality, combined_quality, quality_change, quality_in_run

OWN_LABELS = 25
"""Labels of each verdict, or all there are, with which a dose is corrected by its own labels alone."""

Cell = tuple[str, str, int]


def from_run(run: JudgedRun, labels: Mapping[tuple[str, str, int, str], list[str]], level: float) -> Calibration:
    """Correct the rates of a run by people's labels of answers drawn from it, given by the answers' keys."""
    rows: list[Corrected] = []
    maps: dict[tuple[str, str, int], ErrorMap] = {}
    told: dict[str, Any] = {}
    for partial_as in readings([label for group in labels.values() for label in group]):
        data = _Labelled(run, labels, run.bands(), level, partial_as)
        bands = _by_band(data)
        rows += [row for band, answers in bands.items() for row in _band_rows(data, band, answers)]
        of_bands = {band: _of_band(data, bands, band) for band in bands}
        cells = run.by_cell()
        for model, arm in run.arms:
            of_arm = _Arm(data, of_bands, _cells_of(cells, model, arm), (model, arm))
            rows += list(of_arm.rows())
            maps |= {(partial_as, arm, dose): line for dose, line in of_arm.lines.items()}
        told[partial_as] = _quality_summary(data, bands)
    chosen = [answer for answer in run.answers if answer.key in labels]
    n_templates = len({answer.template for answer in chosen})
    summary = {
        "n_labelled": len(labels),
        "n_labels_templates": n_templates,
        "n_labels_prompts": len({answer.prompt_id for answer in chosen}),
        "bands": {band: _band_summary(run, labels, band) for band in Band},
        "readings": told,
        "flags": [*template_flag(n_templates), *quality_flags(told), *undefined_flag(rows)],
    }
    return Calibration(tuple(rows), maps, summary)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """A run with what people said of its answers."""

    run: JudgedRun
    """The run."""
    labels: Mapping[tuple[str, str, int, str], list[str]]
    """What people wrote of an answer, by its key."""
    bands: Mapping[Cell, Band]
    """The band of each cell."""
    level: float
    """Confidence level."""
    partial_as: str = "not_refusal"
    """How `partial` is read."""

    def sample(self, answers: Sequence[Answer]) -> JudgedSample:
        """The readable answers among these, with their labels and the strata they were drawn in."""
        read = readable(answers)
        return judged_sample(
            [answer.refused for answer in read],
            [answer.template for answer in read],
            [self._truth(answer) for answer in read],
            strata=[f"{self.bands[answer.cell]}/{answer.verdict}" for answer in read],
            scores=[answer.p_refusal or 0.0 for answer in read],
        )

    def _truth(self, answer: Answer) -> float | None:
        labels = self.labels.get(answer.key)
        return None if labels is None else truth(labels, self.partial_as)

    def rng(self, *names: object) -> np.random.Generator:
        """A generator of its own for each purpose: neither order nor company changes an interval."""
        told = sorted((list(map(str, key)), labels) for key, labels in self.labels.items())
        return np.random.default_rng(int(digest([told, self.partial_as, *map(str, names)]), 16))


def _by_band(data: _Labelled) -> dict[Band, list[Answer]]:
    bands: dict[Band, list[Answer]] = {}
    for answer in data.run.answers:
        bands.setdefault(data.bands[answer.cell], []).append(answer)
    return {band: bands[band] for band in Band if band in bands}


def _band_rows(data: _Labelled, band: Band, answers: Sequence[Answer]) -> Iterator[Corrected]:
    """The band as a whole: the judge's rate, the corrected one, and how often judge and people agree."""
    sample = data.sample(answers)
    estimates = {
        "RRR_band": judged_estimate(answers, data.level),
        "RRR_band_corrected": corrected_rate(sample, level=data.level),
        "RRR_band_corrected_ppi": corrected_rate(sample, power_tuned=True, level=data.level),
        "judge_agreement": agreement(sample, level=data.level),
    }
    for metric, estimate in estimates.items():
        reason = "" if metric == "RRR_band" else _unlabelled(sample)
        yield Corrected(metric, "", "", None, band, data.partial_as, estimate, sample.n_labels, reason)


def _unlabelled(sample: JudgedSample) -> str:
    bare = [stratum for stratum in sample.strata if stratum.n_labels == 0]
    if not bare:
        return ""
    n = sum(stratum.n_population for stratum in bare)
    return f"none of {n} answers of a kind is labelled (judged {'refusals' if bare[0].refused else 'no refusals'})"


class _Arm:
    """The corrected rates of one arm, dose by dose, and their differences from dose 0."""

    def __init__(
        self,
        data: _Labelled,
        bands: Mapping[Band, "_OfBand"],
        cells: Mapping[int, Sequence[Answer]],
        names: tuple[str, str],
    ) -> None:
        self.data, self.bands, self.cells = data, bands, cells
        self.model, self.arm = names
        self.lines: dict[int, ErrorMap] = {}

    def rows(self) -> Iterator[Corrected]:
        corrected: dict[int, Corrected] = {}
        for dose, answers in sorted(self.cells.items()):
            corrected[dose] = row = self._correct(dose, answers)
            yield row
            if row.estimate.method.startswith("stratified"):
                sample = self.data.sample(answers)
                tuned = corrected_rate(sample, power_tuned=True, level=self.data.level)
                yield self._row("RRR_corrected_ppi", dose, tuned, row.n_labels)
        for dose, row in corrected.items():
            if dose:
                estimate = self._difference(dose, corrected[0].estimate, row.estimate)
                yield self._row("RRR_corrected_difference", dose, estimate, row.n_labels, row.reason)

    def _correct(self, dose: int, answers: Sequence[Answer]) -> Corrected:
        own, of_band = self.data.sample(answers), self.bands[self._band(dose)]
        rng = self.data.rng(self.model, self.arm if dose else "", dose)
        if own.n == of_band.sample.n or _enough(own):
            estimate = corrected_rate(own, n_unreadable=len(answers) - own.n, level=self.data.level)
            if estimate.value is not None:
                self.lines[dose] = predictive_map(own, rng=rng)
            return self._row("RRR_corrected", dose, estimate, own.n_labels, _unlabelled(own))
        judged = judged_estimate(answers, self.data.level)
        if of_band.no_refusal:
            estimate = post_stratified_rate(judged, of_band.sample, rng=rng)
        else:
            estimate = transported_rate(judged, of_band.quality, rng=rng)
        # Doses of a band share the draws of their judge.
        if estimate.value is not None:
            self.lines[dose] = of_band.line
        reason = of_band.reason if estimate.value is not None else of_band.why_not
        return self._row("RRR_corrected", dose, estimate, of_band.sample.n_labels, reason)

    def _difference(self, dose: int, base: Estimate, tampered: Estimate) -> Estimate:
        if dose not in self.lines or 0 not in self.lines:
            return corrected_difference(base, tampered)
        lines = (self.lines[0], self.lines[dose])
        return corrected_difference(base, tampered, covariance=covariance_of(self.cells[0], self.cells[dose], lines))

    def _band(self, dose: int) -> Band:
        return self.data.bands[self.cells[dose][0].cell]

    def _row(self, metric: str, dose: int, estimate: Estimate, n_labels: int, reason: str = "") -> Corrected:
        band = self._band(dose)
        return Corrected(metric, self.model, self.arm, dose, band, self.data.partial_as, estimate, n_labels, reason)


@dataclass(frozen=True, slots=True)
class _OfBand:
    """What the labels of a band give to its doses."""

    sample: JudgedSample
    """Its answers."""
    quality: Quality
    """The judge's quality in it; after the break with the sensitivity of all tampered answers."""
    no_refusal: bool
    """Whether it is labelled and no label is a refusal."""
    line: ErrorMap
    """Draws of the line from the judge's rate to the true one."""
    reason: str
    """What a rate rests on that is corrected by it."""

    @property
    def why_not(self) -> str:
        """Why a rate cannot be corrected by it."""
        return _unlabelled(self.sample) or not_identifiable(self.quality)


def _of_band(data: _Labelled, bands: Mapping[Band, Sequence[Answer]], band: Band) -> _OfBand:
    sample, level = data.sample(bands[band]), data.level
    quality = quality_in_run(sample, rng=data.rng(band), level=level)
    if not sample.unlabelled_strata and not any(stratum.labels.any() for stratum in sample.strata):
        line = predictive_map(sample, rng=data.rng(band))
        return _OfBand(sample, quality, True, line, "labels of its band, among which there is no refusal")
    reason = "labels of its band, the judge's quality taken as constant over it"
    if band is Band.AFTER:
        tampered = quality_in_run(data.sample(_tampered(bands)), rng=data.rng("tampered"), level=level)
        quality = combined_quality(tampered, quality, level=level)
        reason += "; its sensitivity from all tampered answers"
    return _OfBand(sample, quality, False, error_map(quality.draws), reason)


def _cells_of(cells: Mapping[Cell, Sequence[Answer]], model: str, arm: str) -> dict[int, Sequence[Answer]]:
    """The answers of one arm by dose, dose 0 being its model's."""
    return {cell[2]: answers for cell, answers in cells.items() if cell[0] == model and cell[1] in ("", arm)}


def _tampered(bands: Mapping[Band, Sequence[Answer]]) -> list[Answer]:
    return [answer for band, answers in bands.items() if band is not Band.DOSE_0 for answer in answers]


def _enough(sample: JudgedSample) -> bool:
    """Whether a dose has labels enough of its own, of each verdict."""
    return all(stratum.n_labels >= min(OWN_LABELS, stratum.n_population) for stratum in sample.strata)


def _quality_summary(data: _Labelled, bands: Mapping[Band, Sequence[Answer]]) -> dict[str, Any]:
    """The judge's quality by band, and whether it differs between dose 0 and tampered answers."""
    samples = {band.value: data.sample(answers) for band, answers in bands.items()}
    samples["tampered"] = data.sample(_tampered(bands))
    samples["all"] = data.sample(data.run.answers)
    quality = {name: quality_in_run(sample, rng=data.rng(name), level=data.level) for name, sample in samples.items()}
    changes = quality_change(quality[Band.DOSE_0], quality["tampered"], level=data.level)
    return {
        "agreement": {name: asdict(agreement(sample, level=data.level)) for name, sample in samples.items()},
        "quality": {name: describe_quality(item) for name, item in quality.items()},
        "change": [asdict(change) for change in changes],
    }


def _band_summary(
    run: JudgedRun, labels: Mapping[tuple[str, str, int, str], list[str]], band: Band
) -> list[dict[str, Any]]:
    """How many answers of each verdict a band has, and how many of them are labelled."""
    strata = {verdict: answers for (name, verdict), answers in strata_of(run).items() if name == band}
    return [
        {"verdict": verdict, "answers": len(answers), "labelled": sum(answer.key in labels for answer in answers)}
        for verdict, answers in strata.items()
    ]
