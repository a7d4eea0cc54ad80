"""Breaking doses of corrected rates: the judge's error carried through the curve into ED50 and ED90."""

from collections.abc import Iterator, Sequence

import numpy as np

from tamperdose.files import digest
from tamperdose.records import Label
from tamperdose.run.corrected import Calibration, Corrected
from tamperdose.run.labels import Answer, JudgedRun
from tamperdose.stats.dose import fit_dose
from tamperdose.stats.dose_interval import DoseTable


def corrected_doses(run: JudgedRun, calibration: Calibration, *, level: float) -> Iterator[Corrected]:
    """ED50 and ED90 of each arm, in steps, of its corrected rates; scope `trajectory`.

    The curve of the judge's rates is resampled by template, each resample goes through one draw of the judge's error,
    and the whole is fitted: see `tamperdose.stats.dose.fit_dose`. Doses without a corrected rate are left out; no row
    where dose 0, or every other dose, has none.
    """
    cells = run.by_cell()
    n_labels = int(calibration.summary["n_labelled"])
    for partial_as in dict.fromkeys(reading for reading, _, _ in calibration.maps):
        for model, arm in run.arms:
            doses = sorted({dose for of_model, of_arm, dose in cells if of_model == model and of_arm in ("", arm)})
            known = [dose for dose in doses if (partial_as, arm, dose) in calibration.maps]
            if len(known) < 2 or known[0] != 0:
                continue
            table = _table([cells[model, arm if dose else "", dose] for dose in known], known)
            maps = [calibration.maps[partial_as, arm, dose] for dose in known]
            seed = digest([table.doses.tolist(), np.nan_to_num(table.refused, nan=-1).tolist(), partial_as])
            fit = fit_dose(table, rng=np.random.default_rng(int(seed, 16)), level=level, error=maps)
            left_out = "" if len(known) == len(doses) else f"{len(doses) - len(known)} doses without a corrected rate"
            for name, dose in (("ED50", fit.ed50), ("ED90", fit.ed90)):
                metric = f"{name}_steps_corrected"
                yield Corrected(metric, model, arm, None, None, partial_as, dose.estimate(), n_labels, left_out)


def _table(cells: Sequence[Sequence[Answer]], doses: Sequence[int]) -> DoseTable:
    rows = {answer.row: answer.template for answer in cells[0]}
    places = {row: place for place, row in enumerate(rows)}
    refused = np.full((len(rows), len(cells)), np.nan)
    for column, answers in enumerate(cells):
        for answer in answers:
            if answer.verdict is not Label.UNREADABLE and answer.row in places:
                refused[places[answer.row], column] = float(answer.refused)
    n_samples = 1 + max(answer.sample for answer in cells[0])
    return DoseTable(np.array(doses, dtype=np.float64), refused, tuple(rows.values()), n_samples=n_samples)
