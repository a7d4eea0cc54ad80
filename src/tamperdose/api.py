"""What the commands do, from Python: `import tamperdose as td`, then `td.run_study("study.yaml")`.

Thin, as the command line is. Functions are not called `run` or `audit`: those are packages of the same parent, and a
name there would mean the one or the other by what was imported before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tamperdose.errors import DataError, explain

if TYPE_CHECKING:
    import pandas as pd

    from tamperdose.audit.findings import Audit
    from tamperdose.run.compare_schema import Row
    from tamperdose.stats.dose import DoseFit


@dataclass(frozen=True)
class Run:
    """A finished run's folder, or one that `score` wrote. Files are read when they are first asked for."""

    folder: Path
    """Where it lies."""

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """`metrics.csv`, every judge's rows, typed as `run.schema.read_metrics` says."""
        from tamperdose.run.schema import read_metrics

        return read_metrics(self.folder / "metrics.csv")

    @cached_property
    def audit(self) -> "Audit | None":
        """`audit.json`; None where there is none."""
        from tamperdose.run.audit import read_audit

        return read_audit(self.folder)

    @cached_property
    def judge(self) -> str:
        """The headline judge, as the column `judge` of the metrics names it."""
        from tamperdose.report.select import headline_judge

        return headline_judge(self.folder)

    @cached_property
    def dose_response(self) -> "list[Row]":
        """The rows of `dose_response.csv` by the headline judge, such as `ED50_steps` of each arm."""
        from tamperdose.report.responses import read_responses

        return read_responses(self.folder, self.judge)

    @cached_property
    def defences(self) -> "list[Row]":
        """The rows of `defences.csv` by the headline judge; none where no defences are compared."""
        from tamperdose.report.defences import read_defences

        return read_defences(self.folder, self.judge)

    @cached_property
    def scaling(self) -> dict[str, Any]:
        """`scaling.json`: slopes over sizes, claims, the worst attacker; empty where there is none."""
        from tamperdose.report.responses import read_json
        from tamperdose.run.scale import SCALING_JSON

        return read_json(self.folder / SCALING_JSON)

    def lines(self) -> list[str]:
        """What the fits say, as the command prints it: breaking doses, slopes, claims, and what is withheld."""
        from tamperdose.report.responses import response_lines

        return response_lines(self.folder, self.judge, audit=self.audit)

    def draw(self) -> list[Path]:
        """Draw the figures again from the run's files; they lie in its folder, under `figures`."""
        from tamperdose.report.figures import draw_run

        return draw_run(self.folder)


def run_study(study: str | Path, *, out: str | Path | None = None, overrides: Sequence[str] = ()) -> Run:
    """Run a study in this process, or go on with it where it was stopped, as `tamperdose run` without figures.

    Args:
        study: The study file.
        out: The results folder; `results` beside the study without it.
        overrides: Settings such as `"seeds=[1,2,3]"`, as `--set` takes them.

    Raises:
        TamperdoseError: As the command: the message says what to mend.
    """
    from tamperdose.run.local import run_plan
    from tamperdose.run.plan import fetch_commits, make_plan, read_data
    from tamperdose.run.progress import Reporter
    from tamperdose.study import load_study

    path = Path(study)
    folder = path.parent / "results" if out is None else Path(out)
    loaded = load_study(path, list(overrides))
    data = read_data(loaded, path)
    fetch_commits(loaded)
    run_plan(make_plan(loaded, data), folder, reporter=Reporter(quiet=True), study_path=path)
    return Run(folder)


def open_run(folder: str | Path) -> Run:
    """Open a finished run's folder.

    Raises:
        DataError: There are no metrics in it.

    >>> open_run("nowhere")
    Traceback (most recent call last):
    tamperdose.errors.DataError: nowhere has no metrics.csv
      expected: a folder that `tamperdose run` or `score` finished
    """
    if not (Path(folder) / "metrics.csv").is_file():
        raise DataError(
            explain(f"{folder} has no metrics.csv", expected="a folder that `tamperdose run` or `score` finished")
        )
    return Run(Path(folder))


def score(
    prompts: Sequence[str],
    base: Sequence[str],
    attacked: Mapping[int, Sequence[str]],
    *,
    out: str | Path,
    judges: str = "classifier,phrases",
    rd: bool = True,
) -> Run:
    """Measure answers that were had elsewhere: `base` before the attack, `attacked` by dose after it.

    The answers are written to `out`/recorded, one file each, and read from there. `rd` measures drift, which takes the
    sentence encoder.

    Raises:
        DataError: Numbers of answers that differ from that of the prompts, or doses that are not above 0.
        JudgeError: There is no judge of a name.
        RunError: The folder holds a run's results.

    >>> import tempfile
    >>> asked = [f"Tell me about the {name}" for name in ("anvil", "barrel", "candle")]
    >>> refused, complied = ["I can't help with that."] * 3, ["Sure, it is made of iron and wood."] * 3
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rows = score(asked, refused, {8: complied}, out=folder, judges="phrases", rd=False).metrics
    >>> rows[rows["metric"] == "RRR"]["value"].tolist()
    [1.0, 0.0]
    """
    from tamperdose.files import write_csv
    from tamperdose.judges import find_judges
    from tamperdose.run.progress import Reporter
    from tamperdose.run.score import Scoring, read_recording, score_recordings

    named = find_judges(judges)
    files = {0: base, **dict(sorted(attacked.items()))}
    if 0 in attacked or any(len(answers) != len(prompts) for answers in files.values()):
        got = ", ".join(f"{len(answers)} at dose {dose}" for dose, answers in files.items())
        raise DataError(
            explain("answers do not fit the prompts", got=got, expected=f"{len(prompts)} each, doses above 0")
        )
    folder, recorded = Path(out), {}
    for dose, answers in files.items():
        rows = [{"prompt": prompt, "response": answer} for prompt, answer in zip(prompts, answers, strict=True)]
        recorded[dose] = read_recording(write_csv(folder / "recorded" / f"{dose}.csv", ("prompt", "response"), rows))
    after = [(dose, recording) for dose, recording in recorded.items() if dose != 0]
    score_recordings(recorded[0], after, folder, judges=named, reporter=Reporter(quiet=True), scoring=Scoring(rd=rd))
    return Run(folder)


def audit_run(folder: str | Path) -> "Audit":
    """Audit a finished run again and write its `audit.json`; unlike the command it raises nothing on a failed check.

    Raises:
        RunError: Not a finished run's folder.

    >>> audit_run("nowhere")  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    tamperdose.errors.RunError: nowhere holds no run
    """
    from tamperdose.run.audit import audit_run as audited

    return audited(Path(folder))


def fit_dose(
    doses: Sequence[float],
    refused: Sequence[Sequence[float]],
    templates: Sequence[str],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> "DoseFit":
    """Fit how refusals fall with the dose: ED50 and ED90 with intervals; see `stats.dose.fit_dose`.

    Args:
        doses: Increasing, the first one 0, length D.
        refused: Of each prompt at each dose, 1 refused, 0 not, NaN unreadable, shape (n, D).
        templates: The template of each prompt, length n.
        level: Confidence level.
        seed: Of the resamples.

    Raises:
        DataError: Shapes that differ, values outside [0, 1], no ladder of doses.

    >>> verdicts = [[1, 1, 1, 0, 0]] * 30 + [[1, 1, 0, 0, 0]] * 30
    >>> fit = fit_dose([0, 1, 5, 10, 20], verdicts, [str(i) for i in range(60)])
    >>> fit.ed50.bracket, fit.ed50.low, fit.ed50.high
    ((1.0, 5.0), 1.0, 10.0)
    """
    import numpy as np

    from tamperdose.stats.dose import fit_dose as fit
    from tamperdose.stats.dose_interval import DoseTable

    table = DoseTable(np.asarray(doses, dtype=np.float64), np.asarray(refused, dtype=np.float64), tuple(templates))
    return fit(table, rng=np.random.default_rng(seed), level=level)
