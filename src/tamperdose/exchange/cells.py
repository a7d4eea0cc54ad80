"""What of a finished run goes out: its cells with their numbers, and its answers, redacted unless asked otherwise."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from tamperdose.audit.findings import Audit, Claim, withheld
from tamperdose.errors import DataError, explain
from tamperdose.records import Subset
from tamperdose.report.responses import read_json
from tamperdose.report.select import dose_word, headline_judge, list_arms
from tamperdose.run.audit import read_audit
from tamperdose.run.outputs import Judged, dose_files, read_outputs
from tamperdose.run.schema import column, keep_rows, read_metrics

NO_CLAIM = frozenset({"perplexity", "utility_accuracy", "kl_to_base"})
"""Metrics of the model alone: the audit has no check that bears on them."""
_DRIFT = dict.fromkeys(("RD", "RD_mean", "RD_iqr", "RD_stripped", "RD_floor"), Claim.RD)
_CLAIMS = _DRIFT | {"refusal_retention": Claim.LOSS, "over_refusal_rate": Claim.OVER_REFUSAL}
_SETTINGS = ("study", "arm", "model", "defence", "attack", "data_order")
_NUMBERS = ("params_b", "lora_rank", "n_examples", "learning_rate", "batch_size", "poison_ratio", "seed")
_DOSES = ("dose_steps", "dose_examples", "dose_tokens", "dose_flops")


@dataclass(frozen=True, slots=True)
class Source:
    """A finished run's folder, or one that `score` wrote."""

    folder: Path
    """Where it lies."""
    manifest: Mapping[str, Any]
    """Its `manifest.json`."""
    audit: Audit | None
    """Its audit, if it has one."""
    judge: str
    """The headline judge."""
    frame: pd.DataFrame
    """Its metrics, every judge's rows."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm at one dose."""

    arm: str
    """The arm's name."""
    dose: int
    """In the arm's own unit; 0 is the untampered model."""
    setting: Mapping[str, Any]
    """What was done: the settings of the arm and the dose in every unit, those that are known."""
    rows: pd.DataFrame
    """The rows of `metrics.csv` about it, every judge's."""
    answers: tuple[Judged, ...]
    """Its answers with their verdicts, as recorded. Hostile."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What goes out of one answer."""

    text: str | None
    """The answer; None where it is redacted."""
    evidence: Mapping[str, str]
    """What decided it, by judge; empty where the answer is redacted, because it may quote it."""
    n_characters: int
    """Length of the whole answer."""
    sha256: str
    """SHA-256 of the whole answer as UTF-8, 64 hexadecimal digits."""


def read_source(folder: Path) -> Source:
    """Read what a run left.

    Raises:
        DataError: There are no metrics, or a file is damaged.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        raise DataError(
            explain(f"{folder} has no metrics.csv", expected="a folder that `tamperdose run` or `score` finished")
        )
    frame = read_metrics(path)
    if frame.empty:
        raise DataError(explain(f"{path} has no rows", expected="the metrics of a finished run"))
    return Source(folder, read_json(folder / "manifest.json"), read_audit(folder), headline_judge(folder), frame)


def list_cells(source: Source) -> Iterator[Cell]:
    """Every cell of a run with its answers: small models first, doses ascending.

    Raises:
        DataError: A file of answers is damaged, or a cell has none.
    """
    for arm in list_arms(source.frame):
        frame = keep_rows(source.frame, column(source.frame, "arm") == arm.name)
        files = dose_files(source.folder, arm.name)
        for dose in sorted({int(step) for step in column(frame, "dose_steps")}):
            if dose not in files:
                raise DataError(
                    explain(
                        f"{source.folder} has no answers of '{arm.name}' at dose {dose}",
                        expected=f"outputs/{arm.name}/{dose}.csv beside metrics.csv",
                        remedy="run the same command again: it writes them anew",
                    )
                )
            rows = keep_rows(frame, column(frame, "dose_steps") == dose)
            yield Cell(arm.name, dose, settings_of(rows), rows, tuple(read_outputs(files[dose])))


def settings_of(rows: pd.DataFrame) -> dict[str, Any]:
    """What was done in a cell, from its rows: the values that are known, and the unit of its dose."""
    found: dict[str, Any] = {}
    for name in (*_SETTINGS, *_NUMBERS, *_DOSES):
        known = [value for value in column(rows, name) if not pd.isna(value) and value != ""]
        if known:
            found[name] = known[0] if isinstance(known[0], str) else _plain(known[0])
    return found | {"dose_unit": dose_word(found.get("attack", ""))}


def _plain(number: Any) -> int | float:
    value = float(number)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def not_supported(source: Source, metric: str, arm: str, dose: int) -> tuple[str, ...]:
    """Names of the failed checks that leave a metric of a cell without support; empty: it stands."""
    if source.audit is None or metric in NO_CLAIM:
        return ()
    return withheld(source.audit, _CLAIMS.get(metric, Claim.RRR), arm=arm, dose=dose)


def provenance(source: Source, cell: Cell) -> dict[str, Any]:
    """Where a cell's answers come from, as far as the manifest says: model, digests, decoding, engine, judges."""
    models = [item for item in source.manifest.get("models", ()) if isinstance(item, dict)]
    model = next((item for item in models if cell.arm in item.get("arms", {})), {})
    by_arm = source.manifest.get("answers")
    by_dose = by_arm.get(cell.arm, {}) if isinstance(by_arm, dict) else {}
    answers = by_dose.get(str(cell.dose), {}) if isinstance(by_dose, dict) else {}
    found = {
        "model_id": model.get("id"),
        "model_identity": model.get("identity"),
        "quantization": model.get("quantization"),
        "study_digest": source.manifest.get("study_digest"),
        "arm_digest": model.get("arms", {}).get(cell.arm),
        "answers": answers or None,
        "judge_versions": source.manifest.get("judge_versions"),
        "data_sha256": _named(source.manifest.get("data_sha256")),
    }
    return {name: value for name, value in found.items() if value is not None}


def _named(files: Any) -> dict[str, Any] | None:
    """Files by their names alone where their paths are of somebody's machine."""
    if not isinstance(files, dict):
        return None
    return {Path(name).name if Path(name).is_absolute() else name: value for name, value in files.items()}


def show(answer: Judged, *, show_text: bool) -> Shown:
    """What goes out of an answer: those to harmful prompts are redacted unless `show_text`."""
    raw = answer.text.encode("utf-8", "surrogatepass")
    digest, length = hashlib.sha256(raw).hexdigest(), len(answer.text)
    if answer.subset is Subset.HARMFUL and not show_text:
        return Shown(None, {}, length, digest)
    return Shown(answer.text, answer.evidence, length, digest)
