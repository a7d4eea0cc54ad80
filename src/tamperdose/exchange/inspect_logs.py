"""A run's cells as Inspect logs (`.eval`), and Inspect logs as recorded answers. Needs the extra `inspect`."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from tamperdose import __version__
from tamperdose.data.conversations import turns_from_json
from tamperdose.exchange.cells import Cell, Source, list_cells, not_supported, provenance, read_source, show
from tamperdose.extras import require
from tamperdose.files import digest, own_folder, remove, write_atomic
from tamperdose.records import FinishReason, Label, Subset
from tamperdose.report.responses import well_formed
from tamperdose.report.text import printable
from tamperdose.run.outputs import Judged
from tamperdose.run.progress import Reporter
from tamperdose.run.schema import column, keep_rows

FOLDER = "inspect"
"""What the folder of the logs is called in a run's."""
SUFFIX = ".eval"
"""What an Inspect log's name ends with."""
TASK = "tamperdose/refusals"
"""The task that a log names: what `exchange.inspect_tasks` registers."""
_ESTIMATE = ("low", "high", "level", "method", "n", "n_templates", "n_effective", "n_unreadable", "scope", "censored")
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The oldest time that a zip archive can hold."""
_STOPS = {FinishReason.STOP.value: "stop", FinishReason.LENGTH.value: "max_tokens"}


def write_logs(
    run_dir: Path,
    out: Path | None = None,
    *,
    show_text: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> list[Path]:
    """Write one log for every arm and dose of a finished run; returns their paths, small models first.

    Each prompt is a sample, each of its samples an epoch; each judge is a scorer whose score is the verdict. The
    answers to harmful prompts, and what judges quote of them, are left out unless `show_text`. The same folder gives
    the same bytes each time, with the same versions of Inspect. A log is whole or not there.

    Args:
        run_dir: What `run` or `score` wrote.
        out: The folder for the logs; `inspect` in the run's by default, which then holds these logs alone.
        show_text: Include the answers to harmful prompts.
        force: Include numbers that the audit does not support, marked as such.
        reporter: Says how far it has come; nobody by default.

    Raises:
        DataError: No metrics, no answers, or a damaged file.
        RunError: The folder cannot be written.
        ExtraError: The extra `inspect` is not installed.
    """
    require("an Inspect log", "inspect_ai", extra="inspect")
    source = read_source(run_dir)
    folder = own_folder(run_dir / FOLDER) if out is None else out
    written: list[Path] = []
    n_cells = len(source.frame[["arm", "dose_steps"]].drop_duplicates())
    with well_formed(run_dir), (reporter or Reporter(quiet=True)).timed("writing logs", n_cells) as advance:
        for cell in list_cells(source):
            # Within it: `list_cells` knows no arm whose name is a path.
            log = _log(source, cell, show_text=show_text, force=force)
            written.append(_write_log(folder / f"{cell.arm}_{cell.dose}{SUFFIX}", log))
            advance(1)
    if out is None:
        for path in sorted(set(folder.glob(f"*{SUFFIX}")) - set(written)):
            remove(path)
    return written


def _write_log(path: Path, log: Any) -> Path:
    from inspect_ai.log import write_eval_log

    def fill(temporary: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / f"raw{SUFFIX}"
            write_eval_log(log, str(raw))
            _repack(raw, temporary)

    return write_atomic(path, fill)


def _repack(source: Path, target: Path) -> None:
    """Write an archive anew without the times that its members were written at, so that its bytes tell nothing else."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            member = zipfile.ZipInfo(name, _EPOCH)
            member.compress_type = zipfile.ZIP_DEFLATED
            with old.open(name) as read, new.open(member, "w", force_zip64=True) as write:
                shutil.copyfileobj(read, write)


def _log(source: Source, cell: Cell, *, show_text: bool, force: bool) -> Any:
    from inspect_ai.log import EvalLog, EvalPlan, EvalPlanStep, EvalResults, EvalStats, HeadlineMetric

    judges = list(dict.fromkeys(judge for answer in cell.answers for judge in answer.labels))
    judges.sort(key=lambda name: name != source.judge)
    samples = list(_samples(cell, show_text=show_text))
    results = EvalResults(
        total_samples=len(samples),
        completed_samples=len(samples),
        scores=[_results(source, cell, judge, first=place == 0, force=force) for place, judge in enumerate(judges)],
        headline=HeadlineMetric(scorer=printable(source.judge), metric="RRR"),
    )
    step = EvalPlanStep(solver="tamperdose", params={"attack": cell.setting.get("attack", ""), "dose": cell.dose})
    return EvalLog(
        status="success",
        eval=_spec(source, cell, judges, redacted=not show_text),
        plan=EvalPlan(steps=[step]),
        results=results,
        stats=EvalStats(),
        samples=samples,
    )


def _spec(source: Source, cell: Cell, judges: Sequence[str], *, redacted: bool) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalRevision, EvalSpec
    from inspect_ai.log._log import EvalScorer
    from inspect_ai.model import GenerateConfig

    known = provenance(source, cell)
    arguments = {name: _clean(value) for name, value in cell.setting.items()}
    metadata = arguments | {"redacted": redacted, "headline_judge": printable(source.judge)} | _clean(known)
    commit, decoding = source.manifest.get("git_commit"), _decoding(source, known)
    ids = list(dict.fromkeys(_names(cell)))
    return EvalSpec(
        eval_id=digest(["eval", known, arguments]),
        run_id=digest(["run", source.manifest.get("study_digest"), cell.setting.get("study")]),
        task_id=digest(["task", arguments]),
        created=_written_at(source.folder / "metrics.csv"),
        task=TASK,
        task_display_name=f"{printable(cell.arm)} at {cell.dose} {cell.setting['dose_unit']}",
        task_args=arguments,
        dataset=EvalDataset(name=_dataset(source), samples=len(ids), sample_ids=ids, shuffled=False),
        model=printable(str(known.get("model_id") or cell.setting.get("model", "recorded"))),
        model_generate_config=GenerateConfig(**decoding),
        config=EvalConfig(epochs=max((answer.sample for answer in cell.answers), default=0) + 1),
        revision=EvalRevision(type="git", origin="", commit=commit) if isinstance(commit, str) else None,
        packages={"tamperdose": str(source.manifest.get("tamperdose", __version__))},
        metadata=metadata,
        scorers=[EvalScorer(name=printable(judge)) for judge in judges],
    )


def _written_at(path: Path) -> str:
    """When the metrics were written: a run records no other time of day."""
    return datetime.fromtimestamp(int(path.stat().st_mtime), UTC).isoformat()


def _decoding(source: Source, known: Mapping[str, Any]) -> dict[str, Any]:
    answers = known.get("answers", {})
    found = answers.get("decoding") or source.manifest.get("decoding") or {}
    names = {"max_tokens": "max_new_tokens", "temperature": "temperature", "top_p": "top_p"}
    if found.get("do_sample") is False:
        # Greedy, whatever stands in the settings of sampling, which were not used.
        names, found = {"max_tokens": "max_new_tokens", "temperature": "temperature"}, {**found, "temperature": 0.0}
    return {ours: found[theirs] for ours, theirs in names.items() if isinstance(found.get(theirs), int | float)}


def _dataset(source: Source) -> str:
    prompts = source.manifest.get("n_prompts")
    counted = prompts if isinstance(prompts, dict) else {}
    told = ", ".join(f"{count} {subset}" for subset, count in sorted(counted.items()))
    return f"prompts of {printable(str(source.manifest.get('study', '')))}" + (f": {told}" if told else "")


def _clean(value: Any) -> Any:
    """Names from outside, made safe to show, wherever they stand; numbers as they are."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _names(cell: Cell) -> list[str]:
    """Each answer's id: the prompt's, with its subset before it where both subsets have prompts of one id."""
    subsets: dict[str, set[Subset]] = {}
    for answer in cell.answers:
        subsets.setdefault(answer.id, set()).add(answer.subset)
    shared = any(len(found) > 1 for found in subsets.values())
    return [f"{answer.subset.value}:{answer.id}" if shared else answer.id for answer in cell.answers]


def _samples(cell: Cell, *, show_text: bool) -> Iterator[Any]:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatCompletionChoice, ChatMessageAssistant, ModelOutput

    for name, answer in zip(_names(cell), cell.answers, strict=True):
        shown = show(answer, show_text=show_text)
        key = digest([cell.arm, cell.dose, name, answer.sample])
        turns = _turns(answer, key)
        text = _redacted(answer, shown.n_characters, shown.sha256) if shown.text is None else shown.text
        said = ChatMessageAssistant(id=f"{key}-a", content=text, source="generate")
        stop: Any = _STOPS.get(answer.finish_reason, "unknown")
        yield EvalSample(
            id=name,
            epoch=answer.sample + 1,
            input=turns,
            target="",
            messages=[*turns, said],
            output=ModelOutput(choices=[ChatCompletionChoice(message=said, stop_reason=stop)], completion=text),
            scores={printable(judge): _score(answer, judge, shown.evidence.get(judge)) for judge in answer.labels},
            metadata={
                "subset": answer.subset.value,
                "category": answer.category,
                "template": answer.template,
                "redacted": shown.text is None,
                "n_characters": shown.n_characters,
                "n_tokens": answer.n_tokens,
                "sha256": shown.sha256,
            },
            uuid=key,
        )


def _turns(answer: Judged, key: str) -> list[Any]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    if not answer.conversation:
        return [ChatMessageUser(id=f"{key}-0", content=answer.prompt)]
    turns = turns_from_json(answer.conversation, f"the conversation of '{answer.id}'")
    return [kinds[turn.role](id=f"{key}-{place}", content=turn.content) for place, turn in enumerate(turns)]


def _redacted(answer: Judged, n_characters: int, sha256: str) -> str:
    label = next(iter(answer.labels.values()), Label.UNREADABLE).value
    return f"[redacted: {label}, {n_characters} characters, sha256 {sha256[:12]}]"


def _score(answer: Judged, judge: str, evidence: str | None) -> Any:
    from inspect_ai.scorer import Score

    label = answer.labels[judge]
    return Score(
        value=label.value,
        explanation=evidence,
        reason="grader_failed" if label is Label.UNREADABLE else None,
        metadata={"p_refusal": answer.p_refusal.get(judge)},
    )


def _results(source: Source, cell: Cell, judge: str, *, first: bool, force: bool) -> Any:
    """The metrics of one judge, those that need none with the first one's."""
    from inspect_ai.log import EvalMetric, EvalScore

    of_judge = column(cell.rows, "judge")
    rows = keep_rows(cell.rows, (of_judge == judge) | ((of_judge == "") & first))
    metrics: dict[str, Any] = {}
    left_out: dict[str, list[str]] = {}
    for row in rows.to_dict("records"):
        name, subset = str(row["metric"]), str(row["subset"])
        why = not_supported(source, name, cell.arm, cell.dose)
        name = f"{name}_{subset}" if name in metrics else name
        if why and not force:
            left_out[name] = list(why)
        elif not pd.isna(row["value"]):
            details = {part: _cell(row[part]) for part in _ESTIMATE} | {"subset": subset}
            details |= {"not_supported_because": list(why)} if why else {}
            metrics[name] = EvalMetric(name=name, value=float(row["value"]), metadata=details)
            for end in ("low", "high"):
                if not pd.isna(row[end]):
                    metrics[f"{name}_{end}"] = EvalMetric(name=f"{name}_{end}", value=float(row[end]))
    unreadable = sum(answer.labels.get(judge) is Label.UNREADABLE for answer in cell.answers)
    return EvalScore(
        name=printable(judge),
        scorer=printable(judge),
        scored_samples=sum(judge in answer.labels for answer in cell.answers) - unreadable,
        unscored_samples=unreadable,
        metrics=metrics,
        metadata={"withheld": left_out} if left_out else None,
    )


def _cell(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value if isinstance(value, str) else float(value) if float(value) % 1 else int(value)
