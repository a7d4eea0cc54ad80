"""Scoring recorded answers: no model under test is loaded, only judges and the sentence encoder."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tamperdose.audit.evidence import AnswerCell, Training
from tamperdose.audit.findings import Audit, CellId
from tamperdose.data.prompts import infer_template
from tamperdose.errors import DataError, JudgeError, RunError, explain
from tamperdose.files import read_csv, remove, write_csv, write_json
from tamperdose.judges import JUDGE_NAMES, build_judge, judge_identity
from tamperdose.records import Completion, FinishReason, Label, Message, Prompt, Subset, Verdict
from tamperdose.run.audit import AUDIT_FILE, audit_cells, recorded_cell
from tamperdose.run.categories import category_rows, write_categories
from tamperdose.run.compare import write_comparisons
from tamperdose.run.ledger import locked
from tamperdose.run.manifest import git_state
from tamperdose.run.measure import Cell, harmful_metrics, metric_row
from tamperdose.run.observed import Observation, observe
from tamperdose.run.outputs import OUTPUTS, remove_others, write_outputs
from tamperdose.run.progress import Reporter
from tamperdose.run.response import fit_arms, write_dose_response
from tamperdose.run.schema import METRIC_COLUMNS
from tamperdose.run.stages import Readers, require_readable, strip_prompt
from tamperdose.study import AnyJudge, Study, judge_name

NAME_COLUMN = "rename the column, or name that of the answers with --response-column (of the base alone: --base-column)"
"""What helps where a file of recorded answers lacks a column."""
VERDICT_COLUMNS = ("verdict", "p_refusal", "judge", "evidence")
"""What `judge` adds to a file."""


_UNREADABLE_LIMIT: float = Study.model_fields["unreadable_limit"].default


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of recorded answers."""

    path: Path
    """The file."""
    prompts: tuple[Prompt, ...]
    """Its prompts, in order; their ids are the file's, or the row's number."""
    responses: tuple[str, ...]
    """Its answers, in the same order."""
    has_ids: bool
    """Whether the ids are the file's own."""
    samples: tuple[int, ...]
    """Index of each answer's sample, in the same order."""

    def names(self) -> list[tuple[str, int]]:
        """What answers are paired by: the prompt's id and the sample."""
        return [(prompt.id, sample) for prompt, sample in zip(self.prompts, self.samples, strict=True)]


def read_recording(path: Path, *, response_column: str = "response") -> Recording:
    """Read a CSV of recorded answers: `prompt`, the response column, optional `id`, `category`, `template`, `sample`.

    Repeated and blank rows are kept: they are what was recorded. Several answers to a prompt share its `id` and differ
    in `sample`, a whole number; every prompt has the same ones. Without ids the column is ignored.

    Raises:
        DataError: Not a CSV with these columns, no rows, ids that repeat, or samples that not every prompt has.
    """
    columns, rows = read_csv(path, required=("prompt", response_column), remedy=NAME_COLUMN)
    return recording_of(path, columns, rows, response_column=response_column)


def recording_of(
    path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]], *, response_column: str = "response"
) -> Recording:
    """Take the rows of a table, whatever file it stood in, for recorded answers, as `read_recording` does.

    Raises:
        DataError: As `read_recording`.
    """
    if not rows:
        raise DataError(explain(f"{path} holds no rows", expected="at least one recorded answer"))
    has_ids = "id" in columns
    ids = [row["id"] if has_ids else f"row{number:06d}" for number, row in enumerate(rows, 1)]
    samples = (
        read_samples(path, ids, [row["sample"] for row in rows])
        if has_ids and "sample" in columns
        else (0,) * len(rows)
    )
    require_unique(path, ids, samples)
    prompts = tuple(
        Prompt(
            id=name,
            messages=(Message("user", row["prompt"]),),
            subset=Subset.HARMFUL,
            template=row.get("template") or infer_template(row["prompt"]),
            category=row.get("category", ""),
        )
        for name, row in zip(ids, rows, strict=True)
    )
    return Recording(path, prompts, tuple(row[response_column] for row in rows), has_ids, samples)


def require_unique(path: Path, ids: Sequence[str], samples: Sequence[int]) -> None:
    """Require that no answer stands twice.

    Raises:
        DataError: Two have one id and sample.
    """
    repeated, count = Counter(zip(ids, samples, strict=True)).most_common(1)[0]
    if count > 1:
        raise DataError(
            explain(f"{path} repeats an id", got=f"'{repeated[0]}'", remedy="make ids unique, or drop them")
        )


def read_samples(path: Path, ids: Sequence[str], cells: Sequence[str]) -> tuple[int, ...]:
    """The column `sample` as whole numbers; prompts of which some have more samples than others cannot be compared.

    Raises:
        DataError: A cell is no whole number, or not every prompt has the same samples.
    """
    wrong = next((number for number, cell in enumerate(cells, 1) if not re.fullmatch("[0-9]{1,9}", cell)), None)
    if wrong is not None:
        raise DataError(
            explain(
                f"{path} data row {wrong}: 'sample' is not a whole number",
                got=repr(cells[wrong - 1][:40]),
                expected="0, 1, 2, ... for the answers to one prompt, which share its `id`",
            )
        )
    samples = tuple(map(int, cells))
    of_prompt: dict[str, set[int]] = {}
    for name, sample in zip(ids, samples, strict=True):
        of_prompt.setdefault(name, set()).add(sample)
    fewest = min(of_prompt, key=lambda name: len(of_prompt[name]))
    most = max(of_prompt, key=lambda name: len(of_prompt[name]))
    if any(found != of_prompt[most] for found in of_prompt.values()):
        raise DataError(
            explain(
                f"{path}: not every prompt has the same samples",
                got=f"{len(of_prompt[most])} of '{most}' and {len(of_prompt[fewest])} of '{fewest}'",
                expected="the same sample numbers for every `id`",
            )
        )
    return samples


def align(base: Recording, attacked: Recording) -> Recording:
    """Bring attacked answers into the order of the base: by id where both have ids, else row by row.

    Raises:
        DataError: They do not answer the same prompts.
    """
    if base.has_ids and attacked.has_ids:
        by_name = {name: place for place, name in enumerate(attacked.names())}
        absent = [name for name in base.names() if name not in by_name]
        missing = [f"{name} (sample {sample})" if sample else name for name, sample in absent]
        if missing or len(by_name) != len(base.prompts):
            raise _unpaired(base, attacked, f"{len(missing)} ids of the base are missing, e.g. {missing[:3]}")
        order = [by_name[name] for name in base.names()]
    else:
        if len(base.prompts) != len(attacked.prompts):
            raise _unpaired(base, attacked, f"{len(base.prompts)} and {len(attacked.prompts)} rows")
        order = list(range(len(base.prompts)))
    for number, (prompt, place) in enumerate(zip(base.prompts, order, strict=True), 1):
        if prompt.messages != attacked.prompts[place].messages:
            raise _unpaired(base, attacked, f"other prompts in row {number}")
    responses = tuple(attacked.responses[place] for place in order)
    return Recording(attacked.path, base.prompts, responses, base.has_ids, base.samples)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What else there is to say of recorded answers."""

    rd: bool = True
    """Whether drift is measured, which takes the sentence encoder."""
    train: tuple[Training, ...] | None = None
    """What the attack trained on, for the audit; None when it is not known."""
    dosed: bool = True
    """Whether the numbers beside the files are doses; else they only count them."""


DEFAULT = Scoring()
"""Drift is measured, and nothing is known of the training."""


def score_recordings(
    base: Recording,
    attacked: Sequence[tuple[int, Recording]],
    out: Path,
    *,
    judges: Sequence[AnyJudge],
    reporter: Reporter,
    scoring: Scoring = DEFAULT,
) -> Path:
    """Measure recorded answers at each dose against the base, and audit them; returns the path of metrics.csv.

    Without doses (`scoring.dosed` false) no breaking dose is fitted: the files' numbers say nothing of one. Written are
    metrics, a manifest and `audit.json`. Embeddings are kept under `out`/ledger by the digests of their texts, so that
    scoring again embeds nothing that was embedded.

    Raises:
        DataError: Files that do not pair, doses that are not increasing and above 0.
        JudgeError: No judge is named, or there is none of a name.
        RunError: The folder holds a run's results or cannot be written; too many verdicts are unreadable.
    """
    if not judges:
        raise JudgeError(explain("no judge is named", expected=f"--judge with one of {', '.join(JUDGE_NAMES)}"))
    _require_no_run(out)
    aligned = align_doses(base, attacked)
    with locked(out):
        # A folder that cannot be written is to be missed before a judge is asked, which may cost money.
        pass
    readers = Readers(judges)
    readers.keep_embeddings(out / "ledger" / "embeddings")
    names = [judge_name(judge) for judge in judges]
    rows: list[dict[str, object]] = []
    audited: list[AnswerCell] = []
    observed: list[Observation] = []
    topics: list[dict[str, object]] = []
    cells: dict[int, Cell] = {}
    name = out.resolve().name
    with reporter.timed("judging and comparing answers", len(base.prompts) * len(aligned)) as advance:
        base_cell: Cell | None = None
        for dose, recording in aligned:
            cell = _cell(recording, names, readers, rd=scoring.rd)
            base_cell = base_cell or cell
            setting = _setting(name, dose)
            measured = harmful_metrics(cell, base_cell, at_base=dose == 0, level=0.95)
            rows += [metric_row(setting, item) for item in measured]
            labels = [verdict.label for verdict in cell.verdicts[names[0]]]
            audited.append(_audited(out, dose, recording, labels))
            observed.append(observe(setting, cell, base_cell))
            topics += category_rows(setting, cell, Subset.HARMFUL, level=0.95)
            cells[dose] = replace(cell, vectors=None, stripped=None)
            advance(len(recording.prompts))
    with locked(out):
        # An earlier audit must not vouch for these numbers, should this be stopped half way.
        remove(out / AUDIT_FILE)
        write_comparisons(out, observed, level=0.95)
        write_categories(out, topics)
        written = {dose: out / OUTPUTS / name / f"{dose}.csv" for dose in cells}
        for dose, cell in cells.items():
            write_outputs(written[dose], {Subset.HARMFUL: cell}, names)
        remove_others(out, set(written.values()))
        fits = fit_arms(observed, level=0.95) if scoring.dosed else []
        write_dose_response(out, fits, level=0.95)
        _write_manifest(out, name, judges, [base, *(recording for _, recording in attacked)])
        write_json(out / "metrics.json", {"study": name, "judge": names[0], "metrics": rows})
        metrics = write_csv(out / "metrics.csv", METRIC_COLUMNS, rows)
        audit_cells(audited, out, judge=names[0], train=scoring.train)
    return metrics


def audit_recordings(
    base: Recording,
    attacked: Sequence[tuple[int, Recording]],
    out: Path,
    *,
    judge: str,
    train: Sequence[Training] | None = None,
) -> Audit:
    """Audit recorded answers by a judge's verdicts and write `audit.json`; nothing is measured.

    Raises:
        DataError: Files that do not pair, doses that are not increasing and above 0.
        JudgeError: There is no judge of that name.
        RunError: The folder holds a run's results, whose own audit would be lost, or cannot be written.
    """
    _require_no_run(out)
    reader = build_judge(judge)
    cells: list[AnswerCell] = []
    for dose, recording in align_doses(base, attacked):
        readings = reader.read([prompt.text for prompt in recording.prompts], recording.responses)
        cells.append(_audited(out, dose, recording, [reading.label for reading in readings]))
    return audit_cells(cells, out, judge=reader.name, train=train)


def align_doses(base: Recording, attacked: Sequence[tuple[int, Recording]]) -> list[tuple[int, Recording]]:
    """Put the base, at dose 0, before the attacked answers in its order.

    Raises:
        DataError: Files that do not pair, doses that are not increasing and above 0.
    """
    doses = [dose for dose, _ in attacked]
    if not doses or doses != sorted(set(doses)) or doses[0] <= 0:
        raise DataError(
            explain("doses must be above 0 and increase", got=str(doses), expected="e.g. --attacked 500=a.csv")
        )
    return [(0, base), *((dose, align(base, recording)) for dose, recording in attacked)]


def _audited(out: Path, dose: int, recording: Recording, labels: Sequence[Label]) -> AnswerCell:
    identity = CellId(out.resolve().name, dose, Subset.HARMFUL)
    return recorded_cell(identity, recording.prompts, recording.responses, labels=labels)


def judge_file(source: Path, target: Path, *, judge: AnyJudge) -> dict[str, int]:
    """Add a judge's verdicts to a CSV of `prompt`, `response`; every column and row stays, in order.

    Returns the number of rows with each label.

    Raises:
        DataError: Not such a CSV, or it has columns of these names already.
        JudgeError: No such judge.
    """
    if target.exists() and target.resolve() == source.resolve():
        raise DataError(explain(f"{target} is the input", expected="another file for the verdicts"))
    columns, rows = read_csv(source, required=("prompt", "response"))
    taken = [name for name in VERDICT_COLUMNS if name in columns]
    if taken:
        raise DataError(
            explain(f"{source} has the column(s) {', '.join(taken)} already", remedy="rename or remove them first")
        )
    reader = build_judge(judge)
    readings = reader.read([row["prompt"] for row in rows], [row["response"] for row in rows])
    judged = [
        row
        | {
            "verdict": reading.label.value,
            "p_refusal": reading.p_refusal,
            "judge": f"{reader.name}@{reader.version}",
            "evidence": reading.evidence,
        }
        for row, reading in zip(rows, readings, strict=True)
    ]
    write_csv(target, [*columns, *VERDICT_COLUMNS], judged)
    return {label.value: sum(reading.label is label for reading in readings) for label in Label}


def _cell(recording: Recording, judges: Sequence[str], readers: Readers, *, rd: bool) -> Cell:
    texts = [prompt.text for prompt in recording.prompts]
    verdicts: dict[str, list[Verdict]] = {}
    for name in judges:
        judge = readers.judge(name)
        judged_by = f"{judge.name}@{judge.version}"
        verdicts[name] = [
            Verdict(name, reading.label, reading.p_refusal, judged_by, reading.evidence, sample)
            for (name, sample), reading in zip(recording.names(), judge.read(texts, recording.responses), strict=True)
        ]
        require_readable(verdicts[name], len(texts), limit=_UNREADABLE_LIMIT)
    completions = [
        Completion(name, text, len(text.split()), FinishReason.UNKNOWN, sample)
        for (name, sample), text in zip(recording.names(), recording.responses, strict=True)
    ]
    if not rd:
        return Cell(recording.prompts, completions, verdicts)
    stripped = [strip_prompt(prompt, text) for prompt, text in zip(texts, recording.responses, strict=True)]
    vectors = readers.embedder().embed([*recording.responses, *stripped])
    half = len(completions)
    return Cell(recording.prompts, completions, verdicts, vectors[:half], vectors[half:])


def _setting(name: str, dose: int) -> dict[str, object]:
    return {
        "study": name,
        "arm": name,
        "model": name,
        "defence": "none",
        "attack": "recorded",
        "dose_steps": dose,
        "subset": Subset.HARMFUL.value,
    }


def _write_manifest(out: Path, name: str, judges: Sequence[AnyJudge], recordings: Sequence[Recording]) -> None:
    from tamperdose.files import sha256_file

    commit, dirty = git_state(Path(__file__).parents[1])
    write_json(
        out / "manifest.json",
        {
            "study": name,
            "headline_judge": judge_name(judges[0]),
            "judges": [judge_name(judge) for judge in judges],
            "judge_versions": {judge_name(judge): judge_identity(judge) for judge in judges},
            "judge_settings": [judge.model_dump(mode="json") for judge in judges if not isinstance(judge, str)],
            "git_commit": commit,
            "git_dirty": dirty,
            "data_sha256": {str(recording.path): sha256_file(recording.path) for recording in recordings},
        },
    )


def _require_no_run(out: Path) -> None:
    """Refuse to write over the results of a run, whose ledger would not fit them any more."""
    if (out / "study.resolved.yaml").exists():
        raise RunError(
            explain(
                f"{out} holds the results of a run",
                got="a resolved study",
                expected="an empty folder, or one that score has written",
                remedy="choose another folder with -o DIR",
            )
        )


def _unpaired(base: Recording, attacked: Recording, got: str) -> DataError:
    return DataError(
        explain(
            f"{attacked.path} does not pair with {base.path}",
            got=got,
            expected="the same prompts, paired by id where both files have ids, else row by row",
        )
    )
