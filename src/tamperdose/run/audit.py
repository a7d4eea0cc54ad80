"""Gathers what the audit looks at, from a finished run or from recorded answers, and writes `audit.json`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tamperdose.audit.checks import run_checks
from tamperdose.audit.evidence import AnswerCell, Evidence, JudgeRange, Role, Setup, Stopped, Stored, Training
from tamperdose.audit.findings import Audit, CellId
from tamperdose.audit.serial import from_json, to_json
from tamperdose.data.conversations import turns_from_json
from tamperdose.data.examples import load_examples, training_texts
from tamperdose.data.sources import examples_path
from tamperdose.errors import DataError, RunError, explain
from tamperdose.files import read_csv, read_text, sha256_file, write_json
from tamperdose.judges.degeneration import degeneration
from tamperdose.judges.phrases import PhrasesJudge
from tamperdose.judges.settled import settled_start
from tamperdose.models.generator import in_full
from tamperdose.records import FinishReason, Label, Message, Prompt, Subset
from tamperdose.run.manifest import read_manifest, require_finished
from tamperdose.run.schema import read_metrics
from tamperdose.study import Decoding, Study, find_source, load_study

AUDIT_FILE = "audit.json"
"""Where an audit lies in a run's folder."""

# The labelled sets that judges are checked on are English; their longest answers have 219 words (XSTest) and 371
# (chatgpt-refusals).
_LABELLED = JudgeRange(max_words=371, scripts=("LATIN",))
JUDGE_RANGES = {"classifier": _LABELLED, "phrases": _LABELLED}
"""What each judge was checked on."""


def audit_run(run_dir: Path) -> Audit:
    """Audit a finished run from its outputs and write `audit.json` beside them.

    Raises:
        RunError: Not a finished run's folder.
        DataError: A file in it is damaged.
    """
    return _written(run_checks(gather_run(run_dir)), run_dir)


def audit_cells(
    cells: Sequence[AnswerCell], out: Path, *, judge: str, train: Sequence[Training] | None = None
) -> Audit:
    """Audit cells of recorded answers, of which nothing but their texts is known, and write `audit.json`."""
    evidence = Evidence(
        cells=tuple(cells),
        judge=judge,
        judge_range=JUDGE_RANGES.get(judge),
        training=None if train is None else tuple(train),
        gaps=("recorded answers do not say which model, weights, decoding and chat template they come from",),
    )
    return _written(run_checks(evidence), out)


def recorded_cell(
    identity: CellId, prompts: Sequence[Prompt], answers: Sequence[str], *, labels: Sequence[Label]
) -> AnswerCell:
    """Make a cell of recorded answers and a judge's verdicts on them."""
    return AnswerCell(
        id=identity,
        prompts=tuple(prompts),
        answers=tuple(answers),
        labels=tuple(labels),
        # Every judge reads degeneration before anything else.
        degenerate=tuple(label is Label.DEGENERATE for label in labels),
        finish_reasons=(FinishReason.UNKNOWN,) * len(labels),
    )


def read_audit(run_dir: Path) -> Audit | None:
    """Read a folder's `audit.json`; None when it has none.

    Raises:
        DataError: It is damaged.
    """
    path = run_dir / AUDIT_FILE
    if not path.exists():
        return None
    try:
        return from_json(json.loads(read_text(path)), where=str(path))
    except (ValueError, RecursionError) as error:
        raise DataError(
            explain(f"{path} is not JSON", got=str(error), remedy="run `tamperdose audit` again")
        ) from error


def read_training(path: Path) -> Training:
    """Read an attack's training rows: JSONL as a study's, or a CSV with `prompt` and perhaps `response`.

    Raises:
        DataError: The file cannot be read as what its name says.
    """
    if path.suffix.lower() == ".csv":
        _, rows = read_csv(path, required=("prompt",))
        responses = tuple(row["response"] for row in rows if row.get("response"))
        return Training(Role.ATTACK, tuple(row["prompt"] for row in rows), responses)
    examples = load_examples(str(path))
    return Training(Role.ATTACK, tuple(training_texts(examples)), tuple(example.response for example in examples))


def _written(audit: Audit, folder: Path) -> Audit:
    write_json(folder / AUDIT_FILE, to_json(audit))
    return audit


# --- a run's folder


@dataclass(slots=True)
class _Reader:
    """Reads a run's answers; what many cells share is kept once."""

    judge: str
    prompts: dict[tuple[str, str, str, str], Prompt]
    broken: dict[tuple[str, str], bool]

    def cell(self, identity: CellId, rows: Sequence[Mapping[str, str]], path: Path) -> AnswerCell:
        """Make a cell of its rows."""
        prompts = tuple(self._prompt(row, identity.subset) for row in rows)
        answers = tuple(row["completion"] for row in rows)
        return AnswerCell(
            id=identity,
            prompts=prompts,
            answers=answers,
            labels=tuple(_label(row[f"verdict_{self.judge}"], path) for row in rows),
            degenerate=tuple(self._broken(row["prompt"], row["completion"]) for row in rows),
            finish_reasons=tuple(_finish_reason(row["finish_reason"], path) for row in rows),
        )

    def _prompt(self, row: Mapping[str, str], subset: Subset) -> Prompt:
        talk = row.get("conversation", "")
        key = (row["id"], talk or row["prompt"], row["template"], subset.value)
        if key not in self.prompts:
            turns = turns_from_json(talk, f"prompt '{key[0]}'") if talk else (Message("user", row["prompt"]),)
            self.prompts[key] = Prompt(key[0], turns, subset, key[2])
        return self.prompts[key]

    def _broken(self, prompt: str, answer: str) -> bool:
        if (prompt, answer) not in self.broken:
            self.broken[prompt, answer] = degeneration(prompt, answer) is not None
        return self.broken[prompt, answer]


def gather_run(run_dir: Path) -> Evidence:
    """Read everything a run's folder says that the audit looks at.

    Raises:
        RunError: Not a finished run's folder.
        DataError: A file in it is damaged, or does not belong to it.
    """
    manifest, resolved = read_manifest(run_dir), run_dir / "study.resolved.yaml"
    if not resolved.is_file():
        raise RunError(
            explain(
                f"{run_dir} has no resolved study",
                expected="a folder written by tamperdose run",
                remedy="for recorded answers use --base and --attacked",
            )
        )
    require_finished(run_dir)
    study = load_study(resolved)
    judge = str(manifest.get("headline_judge"))
    arms = [(model, arm) for model in _models(manifest, run_dir) for arm in _inner(model, "arms")]
    reader = _Reader(judge, {}, {})
    places = [(model, arm, dose) for model, arm in arms for dose in _doses(manifest, arm, study)]
    cells = [cell for _, arm, dose in places for cell in _cells(run_dir, arm, dose, reader)]
    training, gaps = _training(study, manifest)
    return Evidence(
        cells=tuple(cells),
        judge=judge,
        judge_range=JUDGE_RANGES.get(judge),
        level=study.level,
        training=training,
        setups=tuple(_setup(manifest, *place) for place in places),
        metrics=tuple(_stored(run_dir)),
        n_seeds=len(study.seeds),
        stopped=_stopped(cells, study.decoding) if study.decoding.stop_when_decided else None,
        gaps=(*gaps, *_gaps(study, manifest)),
    )


def _stopped(cells: Sequence[AnswerCell], decoding: Decoding) -> Stopped:
    """What a screening run says of its own stopping, by the answers that were written to their end."""
    judge = PhrasesJudge()
    n_stopped = sum(reason is FinishReason.DECIDED for cell in cells for reason in cell.finish_reasons)
    # Arms of one model share its base's answers, and an answer may be the same at several doses.
    full = {
        (prompt.subset, prompt.id, answer): (prompt, label)
        for cell in cells
        for prompt, answer, label in zip(cell.prompts, cell.answers, cell.labels, strict=True)
        if in_full(prompt.id, decoding.full_share)
    }
    starts = {name: start for name in full if (start := settled_start(name[2])) is not None}
    readings = judge.read([full[name][0].text for name in starts], list(starts.values()))
    then = {name: reading.label for name, reading in zip(starts, readings, strict=True)}
    changed = [
        (then.get(name, label) is Label.REFUSAL) != (label is Label.REFUSAL) for name, (_, label) in full.items()
    ]
    return Stopped(n_stopped, tuple(changed), tuple(prompt.template for prompt, _ in full.values()))


def _models(manifest: Mapping[str, Any], run_dir: Path) -> list[Mapping[str, Any]]:
    models = manifest.get("models")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise DataError(explain(f"{run_dir / 'manifest.json'} names no models", remedy="run the study again"))
    return models


def _cells(run_dir: Path, arm: str, dose: int, reader: _Reader) -> Iterator[AnswerCell]:
    # Only a name, so that a damaged manifest cannot lead out of the folder.
    path = run_dir / "outputs" / Path(arm).name / f"{dose}.csv"
    if not path.is_file():
        raise RunError(
            explain(f"the run in {run_dir} is not finished", got=f"no {path}", remedy="run the same command again")
        )
    required = ("id", "subset", "template", "prompt", "completion", "finish_reason", f"verdict_{reader.judge}")
    _, rows = read_csv(path, required=required)
    unknown = {row["subset"] for row in rows} - {subset.value for subset in Subset}
    if unknown:
        raise DataError(explain(f"{path} has an unknown subset", got=repr(sorted(unknown)[0][:60])))
    for subset in Subset:
        # A guard that judges harm is not asked about benign prompts: there are no verdicts to audit.
        chosen = [row for row in rows if row["subset"] == subset.value and row[f"verdict_{reader.judge}"]]
        if chosen:
            yield reader.cell(CellId(arm, dose, subset), chosen, path)


def _label(text: str, path: Path) -> Label:
    try:
        return Label(text)
    except ValueError as error:
        raise DataError(
            explain(f"{path} has an unknown verdict", got=repr(text[:60]), expected=", ".join(Label))
        ) from error


def _finish_reason(text: str, path: Path) -> FinishReason:
    try:
        return FinishReason(text)
    except ValueError as error:
        raise DataError(
            explain(f"{path} has an unknown finish_reason", got=repr(text[:60]), expected=", ".join(FinishReason))
        ) from error


def _stored(run_dir: Path) -> Iterator[Stored]:
    frame = read_metrics(run_dir / "metrics.csv")
    names = ["arm", "dose_steps", "subset", "judge", "metric", "value"]
    for arm, dose, subset, judge, metric, value in frame[names].itertuples(index=False, name=None):
        if subset in set(Subset):
            # NaN, which an empty cell is read as, is not equal to itself.
            yield Stored(CellId(arm, int(dose), Subset(subset)), judge, metric, value if value == value else None)


def _setup(manifest: Mapping[str, Any], model: Mapping[str, Any], arm: str, dose: int) -> Setup:
    """Settings as recorded with the answers; an older manifest has one decoding for all, and a dtype per model."""
    answers = _inner(manifest, "answers", arm, str(dose))
    settings = _inner(answers, "settings")
    decoding = answers.get("decoding", manifest.get("decoding"))
    dtype = settings.get("dtype", model.get("dtype"))
    return Setup(
        model=str(model.get("name")),
        arm=arm,
        dose=dose,
        decoding=None if decoding is None else json.dumps(decoding, sort_keys=True),
        chat_template=settings.get("chat_template"),
        dtype=None if dtype is None else f"{dtype}, {model.get('quantization') or 'not quantized'}",
        engine=_engine(settings),
        equivalence=_equivalence(manifest, model),
    )


def _engine(settings: Mapping[str, Any]) -> str | None:
    """What answered, by its settings: the reference by its name alone."""
    name = settings.get("engine")
    if name is None or "adapters" not in settings:
        return None if name is None else str(name)
    return f"{name} {settings.get('engine_version')}, adapters by {settings['adapters']}"


def _equivalence(manifest: Mapping[str, Any], model: Mapping[str, Any]) -> bool | None:
    passed = _inner(manifest, "equivalence", str(model.get("key"))).get("passed")
    return passed if isinstance(passed, bool) else None


def _inner(tree: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The mapping under these names; empty where there is none."""
    for name in names:
        value = tree.get(name, {})
        if not isinstance(value, dict):
            raise DataError(
                explain(f"manifest.json is damaged: {name!r}", got=type(value).__name__, remedy="run the study again")
            )
        tree = cast(dict[str, Any], value)
    return tree


def _doses(manifest: Mapping[str, Any], arm: str, study: Study) -> list[int]:
    """The doses of an arm, 0 first: those whose answers are recorded, else the study's."""
    recorded = _inner(_inner(manifest, "answers"), arm)
    doses = sorted(int(steps) for steps in recorded if str(steps).isdecimal() and len(str(steps)) < 12)
    fixed = [0, *study.attack[0].doses] if len(study.attack) == 1 and study.attack[0].search is None else None
    return fixed or doses or [0, *study.attack[0].doses]


def _training(study: Study, manifest: Mapping[str, Any]) -> tuple[tuple[Training, ...] | None, list[str]]:
    """Read what was trained on again; None with the reason where a file cannot be had any more."""
    wanted = [(Role.ATTACK, source) for source in _attack_sources(study)]
    for model in study.models:
        wanted += [(Role.DEFENCE, source) for source in (() if model.defence is None else model.defence.sources)]
    study_path = manifest.get("study_path")
    origin = Path(study_path) if isinstance(study_path, str) else None
    sets: list[Training] = []
    gaps: list[str] = []
    for role, source in dict.fromkeys(wanted):
        found = find_source(source, origin)
        try:
            examples = load_examples(found)
        except DataError:
            return None, [f"the training rows {source!r} cannot be read any more"]
        if sha256_file(examples_path(found)) != _inner(manifest, "data_sha256").get(source):
            gaps.append(f"the training rows {source!r} are not those recorded")
        sets.append(Training(role, tuple(training_texts(examples)), tuple(example.response for example in examples)))
    return tuple(sets), gaps


def _attack_sources(study: Study) -> list[str]:
    return [source for attack in study.attack for source in attack.sources]


def _gaps(study: Study, manifest: Mapping[str, Any]) -> list[str]:
    gaps: list[str] = []
    if not manifest.get("git_commit"):
        gaps.append("the commit of the code is not recorded")
    elif manifest.get("git_dirty"):
        gaps.append("the code had changes that were not committed")
    for model in study.models:
        named = (model.label, model.loaded.id)
        found = (item for item in manifest["models"] if (item.get("name"), item.get("id")) == named)
        identity = next((item.get("identity") for item in found), None)
        if isinstance(identity, dict) and "hub_id" in identity and model.loaded.revision is None:
            of = "" if model.loaded == model else f", defence {model.defence_label}"
            gaps.append(f"the revision of {model.label!r}{of} is not pinned")
    if manifest.get("limit") is not None:
        gaps.append(f"only the first {manifest['limit']} prompts of each set were asked")
    missing = [
        source
        for source in (study.prompts.harmful, study.prompts.benign, *_attack_sources(study))
        if source is not None and source not in _inner(manifest, "data_sha256")
    ]
    gaps += [f"no digest of {source!r} is recorded" for source in missing]
    return gaps
