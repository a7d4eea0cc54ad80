"""The command line: thin. Results go to stdout, everything else to stderr.

Exit codes: 0 ok, 1 failed, 2 usage, 3 a gate that was asked for is not met.
"""

import ctypes
import io
import json
import os
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tamperdose.errors import DataError, GateError, RunError, TamperdoseError, explain, visible

if TYPE_CHECKING:
    from tamperdose.audit.evidence import Training
    from tamperdose.run.plan import Plan
    from tamperdose.run.score import Recording

app = typer.Typer(
    name="tamperdose",
    help="How much fine-tuning removes a model's refusals: run the attack as a dose, measure, report with intervals.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyPath = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")]
OutDir = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="DIR", help="Results folder [results/ by the study].")
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting; repeatable.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N prompts of each subset.")]
Cards = Annotated[
    str | None,
    typer.Option("--on", metavar="CARD[,CARD]", help="What each arm takes on h100, a100-80g, 4090."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Print numbers that the audit does not support, with a mark.")]
FailIf = Annotated[
    list[str] | None,
    typer.Option("--fail-if", metavar="COND", help='Exit with 3 unless surely not so: "RRR@500<0.5"; repeatable.'),
]
Judges = Annotated[str, typer.Option("--judge", metavar="NAME[,NAME]", help="The first is the headline.")]
ResponseColumn = Annotated[str | None, typer.Option(metavar="NAME", help="Column of the answers [response].")]
BaseColumn = Annotated[str | None, typer.Option(metavar="NAME", help="The same in the base, if it differs.")]
Train = Annotated[
    Path | None, typer.Option(metavar="T.csv|jsonl", help="What the attack trained on: the audit looks for overlap.")
]

Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster; without it one on this machine, for this run.")
]
Workers = Annotated[int | None, typer.Option(min=1, metavar="N", help="At most N workers [all there is room for].")]


class Executor(StrEnum):
    """What schedules a run."""

    INLINE = "inline"
    RAY = "ray"


Executors = Annotated[Executor, typer.Option(help="inline: this process, one thing after the other. ray: a cluster.")]

_M_ARENA_MAX = -8
"""`mallopt`'s name for the number of heaps, from glibc's malloc.h."""
_INTERRUPTED = 130
"""The exit code after an interrupt (Ctrl-C), as shells count it."""


def main() -> None:
    """Run the command line and turn errors a user can mend into a message and an exit code."""
    _share_one_heap()
    # Before anything imports torch. Threads that spin while they wait make every matrix product wait for a time
    # slice as soon as another process shares the cores: steps of 3 to 5 s were seen to take 18 to 57 s.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows an escape for what it cannot show, rather than end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
        sys.stdout.flush()
    except GateError as error:
        _fail(error, 3)
    except TamperdoseError as error:
        _fail(error, 1)
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; the results are written. Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _fail(RunError(explain("the system refused", got=str(error))), 1)
    except SystemExit as leaving:
        # What typer makes of an interrupt, without a word.
        if leaving.code == _INTERRUPTED:
            _say_interrupted()
        raise
    except KeyboardInterrupt:
        _say_interrupted()
        sys.exit(_INTERRUPTED)


def _share_one_heap() -> None:
    """Have all threads allocate from one heap: glibc gives each its own, which keeps what the thread has freed.

    Before the first thread starts: later it has no effect.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@app.command()
def run(  # noqa: PLR0913 - one parameter per option
    study: StudyPath,
    out: OutDir = None,
    overrides: Overrides = None,
    limit: Limit = None,
    executor: Executors = Executor.INLINE,
    address: Address = None,
    workers: Workers = None,
    as_json: AsJson = False,
    force: Force = False,
    fail_if: FailIf = None,
) -> None:
    """Run a study: defence, attack, answers, verdicts, metrics, audit, figures. Goes on where it was stopped."""
    from tamperdose.report.conditions import hold, judge_run
    from tamperdose.report.figures import draw_run
    from tamperdose.run.conditions import parse_condition
    from tamperdose.run.progress import Reporter

    # A misspelt condition is to be missed before the hours of training.
    conditions = [parse_condition(text) for text in fail_if or []]
    if executor is not Executor.RAY and (address is not None or workers is not None):
        raise typer.BadParameter("--address and --workers go with --executor ray")
    folder = _folder(study, out, limit)
    plan = _plan(study, overrides, limit, fetch=True)
    if executor is Executor.RAY:
        from tamperdose.run.cluster import Cluster, run_on_cluster

        where = Cluster(address, workers)
        metrics = run_on_cluster(plan, folder, cluster=where, reporter=Reporter(), study_path=study)
    else:
        from tamperdose.run.local import run_plan

        metrics = run_plan(plan, folder, reporter=Reporter(), study_path=study)
    _report(folder, metrics, draw_run(folder), as_json=as_json, force=force)
    if conditions:
        judged = judge_run(folder, conditions)
        if not as_json:
            _print_lines([one.line() for one in judged if one.passed])
        hold(judged)


@app.command()
def gate(
    run_dir: RunPath,
    fail_if: Annotated[
        list[str], typer.Option("--fail-if", metavar="COND", help='"ED50_steps<100", "RRR@500<0.5"; repeatable.')
    ],
    as_json: AsJson = False,
) -> None:
    """Hold a finished run to conditions; exits 3 unless every arm's whole interval lies on the passing side."""
    from tamperdose.report.conditions import hold, judge_run
    from tamperdose.run.conditions import parse_condition

    judged = judge_run(run_dir, [parse_condition(text) for text in fail_if])
    if as_json:
        from dataclasses import asdict

        told = [{"condition": one.condition.text, "verdict": one.verdict} | asdict(one.known) for one in judged]
        _print_json({"passed": all(one.passed for one in judged), "conditions": told})
    else:
        _print_lines([one.line() for one in judged if one.passed])
    hold(judged)


@app.command()
def plan(
    study: StudyPath,
    out: OutDir = None,
    overrides: Overrides = None,
    limit: Limit = None,
    on: Cards = None,
    as_json: AsJson = False,
) -> None:
    """Show arms, doses, what is done already, and the estimated FLOPs, memory, time and disk; loads no model."""
    from tamperdose.report.plans import print_cards, print_plan
    from tamperdose.run.declare import describe_cluster
    from tamperdose.run.devices import describe_cards
    from tamperdose.run.estimate import describe_plan
    from tamperdose.run.ledger import Ledger

    planned, ledger = _plan(study, overrides, limit), Ledger(_folder(study, out, limit) / "ledger")
    cards = [] if on is None else describe_cards(planned, ledger, on.split(","))
    described = describe_plan(planned, ledger) | {"cluster": describe_cluster(planned)}
    described |= {"on": cards} if cards else {}
    if as_json:
        _print_json(described)
        return
    print_plan(described)
    if cards:
        print_cards(cards)


@app.command()
def check(study: StudyPath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Validate a study, its data and its judges without loading a model."""
    from tamperdose.report.plans import print_checks
    from tamperdose.run.checks import run_checks

    checks = run_checks(study, overrides or [])
    _print_json(checks) if as_json else print_checks(checks)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has and lacks, and the command that mends it; 1 where the base install is not usable."""
    from tamperdose.report.doctor import finding_lines, findings_json
    from tamperdose.run.doctor import examine, is_usable

    findings = examine()
    _print_json(findings_json(findings)) if as_json else _print_lines(finding_lines(findings))
    if not is_usable(findings):
        raise typer.Exit(1)


@app.command()
def init(
    model: Annotated[str, typer.Option(metavar="ID", help="A hub id, a folder, a .gguf file, or builtin:NAME.")],
    prompts: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Harmful prompts: CSV or JSONL, column `prompt`, or hf://OWNER/NAME?split=S&column=C."
        ),
    ],
    study: Annotated[Path, typer.Argument(metavar="[STUDY]", help="The file to write.")] = Path("study.yaml"),
    attack_data: Annotated[
        str | None, typer.Option(metavar="FILE", help="JSONL of `prompt`, `response` [builtin:permissive_openers]")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented study file for a model and a file of prompts, once both are found usable."""
    from tamperdose.report.plans import print_started
    from tamperdose.run.starter import ATTACK_DATA, write_starter

    data = ATTACK_DATA if attack_data is None else attack_data
    started = write_starter(study, model=model, prompts=prompts, data=data, force=force)
    if as_json:
        counts = {"prompts": started.n_prompts, "templates": started.n_templates, "examples": started.n_examples}
        _print_json({"study": str(started.study), **counts})
    else:
        print_started(started)


@app.command()
def status(run_dir: RunPath, as_json: AsJson = False) -> None:
    """Show what a run has done and what is left."""
    from tamperdose.report.plans import print_status
    from tamperdose.run.checks import describe_status

    described = describe_status(run_dir)
    _print_json(described) if as_json else print_status(described)


@app.command()
def figures(run_dir: RunPath, as_json: AsJson = False) -> None:
    """Draw a run's figures again from its metrics.csv."""
    from tamperdose.report.figures import draw_run

    paths = [str(path) for path in draw_run(run_dir)]
    _print_json({"figures": paths}) if as_json else _print_lines(paths)


@app.command()
def compare(  # noqa: PLR0913 - one parameter per option
    a: Annotated[Path, typer.Argument(metavar="A", help="A finished run's folder, or one that score wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same prompts.")],
    margin: Annotated[float, typer.Option(metavar="M", help="Differences of rates up to this are the same.")] = 0.1,
    level: Annotated[float, typer.Option(metavar="L", help="Confidence level of the intervals.")] = 0.95,
    arms: Annotated[
        list[str] | None, typer.Option("--arm", metavar="ARM_A=ARM_B", help="Arms of other names; repeatable.")
    ] = None,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Say whether B reproduces A: the same prompts, paired differences at every dose that both have."""
    from tamperdose.report.reproductions import print_comparison
    from tamperdose.run.reproduction import compare_runs, to_json

    named = [name.partition("=") for name in arms or []]
    if any(not (one and two) for one, _, two in named):
        raise typer.BadParameter("--arm takes ARM_OF_A=ARM_OF_B")
    found = compare_runs(a, b, margin=margin, level=level, arms=[(one, two) for one, _, two in named], force=force)
    _print_json(to_json(found)) if as_json else print_comparison(found)


class Format(StrEnum):
    """What a report is written as."""

    HTML = "html"
    MARKDOWN = "markdown"


@app.command()
def report(
    run_dir: RunPath,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="[report.html or report.md in the run's folder]")
    ] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Include the texts of answers to harmful prompts.")
    ] = False,
    form: Annotated[
        Format, typer.Option("--format", help="html: one file to read. markdown: a section for a system card.")
    ] = Format.HTML,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Write a run's results as one file that needs no network, from the run's files alone."""
    from tamperdose.report.page.html import write_page
    from tamperdose.report.page.markdown import write_markdown

    if form is Format.MARKDOWN:
        if show_text:
            raise typer.BadParameter("--show-text goes with --format html")
        path = write_markdown(run_dir, out, force=force)
    else:
        path = write_page(run_dir, out, show_text=show_text, force=force)
    _print_json({"report": str(path)}) if as_json else _print_lines([str(path)])


class Export(StrEnum):
    """What a run is exported as."""

    INSPECT = "inspect"
    PARQUET = "parquet"


@app.command()
def export(
    run_dir: RunPath,
    form: Annotated[
        Export, typer.Option("--format", help="inspect: a log (.eval) for each arm and dose. parquet: typed tables.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder to write [inspect/ or parquet/ in the run]."),
    ] = None,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Include the texts of answers to harmful prompts.")
    ] = False,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Write a finished run for other tools: Inspect logs or Parquet tables, answers to harmful prompts redacted."""
    if form is Export.INSPECT:
        from tamperdose.exchange.inspect_logs import write_logs
        from tamperdose.run.progress import Reporter

        paths = write_logs(run_dir, out, show_text=show_text, force=force, reporter=Reporter())
    else:
        if force:
            raise typer.BadParameter(
                "--force goes with --format inspect: tables hold every number, marked where unsupported"
            )
        from tamperdose.exchange.parquet import write_tables

        paths = write_tables(run_dir, out, show_text=show_text)
    _print_json({"files": [str(path) for path in paths]}) if as_json else _print_lines([str(path) for path in paths])


@app.command()
def card(
    run_dir: RunPath,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write [stdout].")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run as a block of a Hugging Face model card: `model-index` in YAML and a short table."""
    from tamperdose.exchange.card import model_card
    from tamperdose.files import write_text

    text = model_card(run_dir)
    if out is not None:
        write_text(out, text)
    if as_json:
        _print_json({"card": text if out is None else str(out)})
    else:
        typer.echo(text if out is None else str(out), nl=out is not None)


@app.command()
def judge(
    source: Annotated[Path, typer.Argument(metavar="IN.csv", help="Columns prompt, response; others are kept.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT.csv", help="Where to write.")],
    name: Annotated[
        str, typer.Option("--judge", metavar="NAME|FILE", help="classifier, phrases, or a YAML file with one judge.")
    ] = "classifier",
    as_json: AsJson = False,
) -> None:
    """Add a judge's verdict, p_refusal and evidence to every row of a file of answers."""
    from tamperdose.judges import find_judges
    from tamperdose.run.score import judge_file

    judges = find_judges(name)
    if len(judges) != 1:
        raise DataError(explain("one judge reads the file", got=f"--judge '{name}'", expected="one name or one file"))
    counts = judge_file(source, out, judge=judges[0])
    if as_json:
        _print_json({"out": str(out), "counts": counts})
    else:
        _print_lines([f"{label:<11} {count}" for label, count in counts.items()] + [str(out)])


@app.command()
def score(  # noqa: PLR0913 - one parameter per option
    base: Annotated[
        Path,
        typer.Option(metavar="B", help="Answers before the attack: .csv or .parquet (prompt, response), or .eval."),
    ],
    attacked: Annotated[list[str], typer.Option(metavar="[DOSE=]A", help="Answers after it, likewise; repeatable.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Results folder.")],
    response_column: ResponseColumn = None,
    base_column: BaseColumn = None,
    judges: Judges = "classifier,phrases",
    train: Train = None,
    rd: Annotated[bool, typer.Option("--rd/--no-rd", help="Measure drift, which takes the sentence encoder.")] = True,
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Measure recorded answers: metrics.csv, the audit and the figures, without loading a chat model."""
    from tamperdose.judges import find_judges
    from tamperdose.report.figures import draw_run
    from tamperdose.run.progress import Reporter
    from tamperdose.run.score import Scoring, score_recordings

    untouched, recordings = _recordings(base, attacked, response_column, base_column)
    dosed = _dose_and_path(attacked[0])[0] is not None
    scoring = Scoring(rd=rd, train=_training(train), dosed=dosed)
    named = find_judges(judges)
    metrics = score_recordings(untouched, recordings, out, judges=named, reporter=Reporter(), scoring=scoring)
    _report(out, metrics, draw_run(out), as_json=as_json, force=force)


@app.command()
def audit(  # noqa: PLR0913 - one parameter per option
    run_dir: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run's folder.")] = None,
    base: Annotated[
        Path | None,
        typer.Option(metavar="B.csv", help="Or: answers before the attack: CSV, JSON lines, Parquet, .eval."),
    ] = None,
    attacked: Annotated[list[str] | None, typer.Option(metavar="[DOSE=]A.csv", help="And after; repeatable.")] = None,
    train: Train = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where audit.json goes then.")] = None,
    response_column: ResponseColumn = None,
    base_column: BaseColumn = None,
    judge: Annotated[str, typer.Option(metavar="NAME", help="Reads recorded answers.")] = "phrases",
    as_json: AsJson = False,
    force: Force = False,
) -> None:
    """Check what would invalidate a run's numbers, or recorded answers; writes audit.json, exits 3 on a failure."""
    from tamperdose.audit.findings import Outcome
    from tamperdose.audit.serial import to_json
    from tamperdose.report.audits import print_audit
    from tamperdose.run.audit import audit_run
    from tamperdose.run.score import audit_recordings

    given = (base is not None, bool(attacked), out is not None)
    if (run_dir is not None and any(given)) or (run_dir is None and not all(given)):
        raise typer.BadParameter("give either RUN, or all of --base, --attacked and -o")
    if run_dir is not None:
        found = audit_run(run_dir)
    else:
        untouched, recordings = _recordings(Path(str(base)), attacked or [], response_column, base_column)
        found = audit_recordings(untouched, recordings, Path(str(out)), judge=judge, train=_training(train))
    if as_json:
        _print_json(to_json(found))
    else:
        print_audit(found)
        if run_dir is not None:
            _headline(run_dir, run_dir / "metrics.csv", force=force)
    if found.outcome is Outcome.FAIL:
        raise typer.Exit(3)


def _recordings(
    base: Path, attacked: list[str], response_column: str | None, base_column: str | None
) -> "tuple[Recording, list[tuple[int, Recording]]]":
    from tamperdose.exchange.recordings import read_answers

    read = [_dose_and_path(text) for text in attacked]
    if len({dose is None for dose, _ in read}) > 1:
        raise DataError(explain("some --attacked name a dose and some do not", expected="DOSE=FILE for all, or none"))
    recordings = [
        (number if dose is None else dose, read_answers(path, response_column=response_column))
        for number, (dose, path) in enumerate(read, 1)
    ]
    return read_answers(base, response_column=base_column or response_column), recordings


def _training(train: Path | None) -> "tuple[Training, ...] | None":
    from tamperdose.run.audit import read_training

    return None if train is None else (read_training(train),)


@app.command()
def label(
    run_dir: RunPath,
    n: Annotated[int, typer.Option("--n", min=1, metavar="N", help="Answers to draw.")] = 300,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="SHEET.csv", help="Sheet to write [labels/ in the run].")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Another seed draws another sheet.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw answers of a finished run for people to label, blinded to dose and verdict."""
    from tamperdose.report.calibration import print_drawn
    from tamperdose.run.labels import draw_sheet

    drawn = draw_sheet(run_dir, n=n, seed=seed, out=out)
    if as_json:
        strata = [dict(zip(("band", "verdict", "answers", "drawn"), row, strict=True)) for row in drawn.strata]
        _print_json({"sheet": str(drawn.sheet), "key": str(drawn.key), "strata": strata})
    else:
        print_drawn(drawn)


@app.command()
def calibrate(
    run_dir: RunPath,
    labels: Annotated[Path, typer.Argument(metavar="LABELS.csv", help="A labelled sheet of this run.")],
    elsewhere: Annotated[bool, typer.Option(help="The labels are of other answers than this run's.")] = False,
    min_agreement: Annotated[
        float | None,
        typer.Option(min=0, max=1, metavar="SHARE", help="Exit with 3 where judge and people agree less often."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Correct a run's refusal rates by people's labels: corrected.csv, calibration.json; RRR stays as it is."""
    from tamperdose.report.calibration import print_calibration
    from tamperdose.run.calibrate import calibrate as calibrate_run
    from tamperdose.run.calibrate import judged_rates, require_agreement

    result = calibrate_run(run_dir, labels, elsewhere=elsewhere)
    if as_json:
        _print_json(dict(result.summary))
    else:
        print_calibration(result, judged_rates(run_dir))
        _print_lines([str(run_dir / name) for name in ("corrected.csv", "calibration.json")])
    if min_agreement is not None:
        require_agreement(result, min_agreement)


def _plan(study: Path, overrides: list[str] | None, limit: int | None, *, fetch: bool = False) -> "Plan":
    from tamperdose.run.plan import fetch_commits, make_plan, read_data
    from tamperdose.study import load_study

    loaded = load_study(study, overrides or [])
    data = read_data(loaded, study, limit=limit)
    if fetch:
        fetch_commits(loaded)
    return make_plan(loaded, data, limit=limit)


def _folder(study: Path, out: Path | None, limit: int | None) -> Path:
    """Where results go: a quick look at a few prompts does not replace the results of all."""
    return out or study.parent / ("results" if limit is None else f"results_limit_{limit}")


def _dose_and_path(text: str) -> tuple[int | None, Path]:
    """Read `[DOSE=]A.csv`; None without a dose."""
    read = re.fullmatch(r"\s*(-?[0-9]{1,15})=(.+)", text, re.DOTALL)
    if read is None:
        if "=" in text and not Path(text).exists():
            raise DataError(explain(f"cannot read --attacked '{text}'", expected="[DOSE=]FILE, e.g. 500=attacked.csv"))
        return None, Path(text)
    return int(read[1]), Path(read[2])


def _report(folder: Path, metrics: Path, drawn: list[Path], *, as_json: bool, force: bool) -> None:
    """Print the dose table, what the audit says of it, and where everything lies."""
    from tamperdose.report.comparisons import comparisons_of
    from tamperdose.report.controls import controls_of
    from tamperdose.report.defences import defences_of
    from tamperdose.report.insides import read_inside_rows
    from tamperdose.report.marginals import read_marginals
    from tamperdose.report.responses import read_costs, read_json, responses_of
    from tamperdose.report.select import headline_judge
    from tamperdose.report.tables import dose_table, not_supported
    from tamperdose.run.audit import read_audit
    from tamperdose.run.inside_results import INSIDE_JSON
    from tamperdose.run.scale import SCALING_JSON
    from tamperdose.run.schema import read_metrics

    if as_json:
        from dataclasses import asdict

        from tamperdose.audit.serial import to_json

        found = read_audit(folder)
        judge = headline_judge(folder)
        rows = dose_table(read_metrics(metrics), judge=judge)
        doses = [asdict(row) | {"not_supported": not_supported(row, found)} for row in rows]
        audited = None if found is None else to_json(found)
        figures = [str(path) for path in drawn]
        printed = {"metrics": str(metrics), "figures": figures, "audit": audited, "doses": doses}
        told = {
            "dose_response": responses_of(folder, judge, found),
            **controls_of(folder, judge),
            "costs": read_costs(folder, judge),
            "scaling": read_json(folder / SCALING_JSON) or None,
            "marginals": read_marginals(folder, judge),
            "defences": defences_of(folder, judge, found),
            "inside": {"rows": read_inside_rows(folder), **read_json(folder / INSIDE_JSON)},
        }
        _print_json(printed | comparisons_of(folder, judge) | told)
    else:
        _headline(folder, metrics, force=force)
        _print_lines([f"metrics  {metrics}", *(f"figure   {path}" for path in drawn)])


def _headline(folder: Path, metrics: Path, *, force: bool) -> None:
    from rich.console import Console

    from tamperdose.report.comparisons import comparison_lines
    from tamperdose.report.controls import control_lines
    from tamperdose.report.defences import defence_lines
    from tamperdose.report.insides import inside_lines
    from tamperdose.report.marginals import marginal_lines
    from tamperdose.report.responses import response_lines
    from tamperdose.report.select import headline_judge
    from tamperdose.report.tables import render_dose_table
    from tamperdose.run.audit import read_audit
    from tamperdose.run.schema import read_metrics

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    frame, judge_name = read_metrics(metrics), headline_judge(folder)
    found = read_audit(folder)
    render_dose_table(frame, console, judge_name, audit=found, force=force)
    said = [
        comparison_lines(folder, judge_name),
        response_lines(folder, judge_name, audit=found, force=force),
        control_lines(folder, judge_name),
        defence_lines(folder, judge_name, audit=found, force=force),
        marginal_lines(folder, judge_name),
        inside_lines(folder),
    ]
    _print_lines([line for lines in said for line in lines])


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(_without_nan(value), indent=2, ensure_ascii=False))


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: an undefined number becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def _print_lines(lines: list[str]) -> None:
    if lines:
        typer.echo("\n".join(lines))


def _say_interrupted() -> None:
    print("interrupted: finished work is kept; run the same command again to go on", file=sys.stderr)  # noqa: T201


def _fail(error: TamperdoseError, code: int) -> None:
    print(f"error: {visible(str(error))}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
