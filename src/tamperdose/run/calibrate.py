"""From a labelled sheet to corrected rates: `corrected.csv` and `calibration.json` in the run's folder.

RRR itself is never touched: corrected rates have names of their own.
"""

from collections.abc import Sequence
from pathlib import Path

from tamperdose.errors import DataError, GateError, explain
from tamperdose.files import write_csv, write_json
from tamperdose.run.corrected import CORRECTED_COLUMNS, Calibration, csv_row
from tamperdose.run.corrected_doses import corrected_doses
from tamperdose.run.elsewhere import from_elsewhere
from tamperdose.run.filled import LabelRow, counted, read_labels
from tamperdose.run.in_run import from_run
from tamperdose.run.labels import (
    JudgedRun,
    judged_rate,
    key_of,
    read_key,
    read_run,
    same_answer,
    shows_answer,
    strata_of,
)
from tamperdose.run.schema import column, keep_rows, read_metrics


def calibrate(run_dir: Path, labels: Path, *, elsewhere: bool = False) -> Calibration:
    """Correct a run's refusal rates by labels and write `corrected.csv` and `calibration.json` beside metrics.csv.

    Args:
        run_dir: A finished run.
        labels: A sheet of `tamperdose label` with its labels, or, with `elsewhere`, any labelled answers: columns
            `label`, `labeller_kind` and either `verdict` or `prompt` and `response`, which the run's judge then reads;
            `item` where several people labelled an answer, `weight` where the answers were not drawn alike.
        elsewhere: The labels are no sample of this run.

    Raises:
        RunError: Not a finished run.
        DataError: Labels that cannot be used as they are, none by a person, or the run has changed since the sheet.
    """
    run = read_run(run_dir)
    rows, n_blank = read_labels(labels, elsewhere=elsewhere)
    level, study = _level(run_dir)
    if elsewhere:
        result = from_elsewhere(run, [row for row in rows if row.kind == "human"], level)
    else:
        of_answers, n_blank = _items_in_run(run_dir, run, rows)
        result = from_run(run, of_answers, level)
    doses = tuple(corrected_doses(run, result, level=level))
    result = Calibration((*result.rows, *doses), result.maps, result.summary)
    told = counted(rows, n_blank, labels)
    summary = {**told, **result.summary, "judge": run.judge, "level": level, "elsewhere": elsewhere}
    summary["flags"] = [*told["flags"], *result.summary["flags"]]
    write_csv(run_dir / "corrected.csv", CORRECTED_COLUMNS, (csv_row(row, study, run.judge) for row in result.rows))
    write_json(run_dir / "calibration.json", summary)
    return Calibration(result.rows, result.maps, summary)


def _items_in_run(
    run_dir: Path, run: JudgedRun, rows: Sequence[LabelRow]
) -> tuple[dict[tuple[str, str, int, str], list[str]], int]:
    """What people wrote of each answer, and how many answers of the sheet no person labelled.

    Before that: is the run still the one the sheet was drawn from, and do the rows still hold the answers they held?
    """
    sheet, key = read_key(run_dir, [row.item for row in rows])
    answers = {answer.key: answer for answer in run.answers}
    sizes = {name: len(group) for name, group in strata_of(run).items()}
    labels: dict[tuple[str, str, int, str], list[str]] = {}
    for row in rows:
        told = key[row.item]
        answer = answers.get(key_of(told))
        size = sizes.get((told["band"], told["verdict"]))
        if answer is None or not same_answer(told, answer) or size != int(told["n_population"]):
            raise DataError(
                explain(
                    f"the run has changed since sheet {sheet} was drawn",
                    got=f"another answer, verdict or band behind item {row.item}",
                    expected="the answers and verdicts that the key describes",
                    remedy="draw a new sheet",
                )
            )
        if not shows_answer(row.row.get("response"), answer):
            raise DataError(
                explain(
                    f"item {row.item} shows another answer than sheet {sheet} does",
                    got="a row whose cells were moved, or an answer that was edited: whose label is it?",
                    expected="every row as it was drawn, with the labels filled in",
                    remedy="sort whole rows only; copy the labels by their `item` into the sheet as it was drawn",
                )
            )
        if row.kind == "human":
            labels.setdefault(answer.key, []).append(row.label)
    return labels, len(key) - len(labels)


def judged_rates(run_dir: Path) -> dict[tuple[str, int], float]:
    """The judge's RRR by (arm, dose), as the run's answers have it."""
    run = read_run(run_dir)
    rates = {cell: judged_rate(answers) for cell, answers in run.by_cell().items()}
    return {
        (arm, dose): value
        for model, arm in run.arms
        for (of_model, of_arm, dose), value in rates.items()
        if of_model == model and of_arm in ("", arm) and value is not None
    }


def require_agreement(calibration: Calibration, least: float) -> None:
    """Hold a calibration to a gate: judge and people agree on at least this share of all answers, in every reading.

    Raises:
        GateError: They do not, or it is not known.
    """
    for partial_as, reading in calibration.summary["readings"].items():
        agreed = reading["agreement"]
        value = (agreed.get("all") or agreed["elsewhere"])["value"]
        if value is None or value < least:
            raise GateError(
                explain(
                    "judge and people agree too seldom",
                    got="not known" if value is None else f"{value:.3f} with partial read as {partial_as}",
                    expected=f"at least {least:g}, as --min-agreement asks",
                )
            )


def _level(run_dir: Path) -> tuple[float, str]:
    """The study's confidence level and name, from its metrics."""
    frame = read_metrics(run_dir / "metrics.csv")
    rows = keep_rows(frame, column(frame, "metric") == "RRR")
    if rows.empty:
        raise DataError(explain(f"{run_dir / 'metrics.csv'} holds no RRR", expected="the metrics of a finished run"))
    return float(column(rows, "level").iloc[0]), str(column(rows, "study").iloc[0])
