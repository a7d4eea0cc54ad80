"""A run as a block of a Hugging Face model card: `model-index` in YAML, and a short table. No answer stands in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tamperdose import __version__
from tamperdose.audit.findings import Claim, summary, withheld
from tamperdose.errors import DataError, explain
from tamperdose.report.lost_doses import lost_row
from tamperdose.report.page.facts import Facts, read_facts
from tamperdose.report.page.headline import audit_words
from tamperdose.report.responses import dose_text, read_fits, read_responses, well_formed, why_undefined
from tamperdose.report.select import Arm
from tamperdose.report.tables import DoseRow, dose_table, supported_cells
from tamperdose.report.text import UNDEFINED, WITHHELD, markdown_cell, printable
from tamperdose.run.compare_schema import Row

HEADINGS = ("model", "attack", "RRR before [interval]", "RRR after [interval]", "ED50", "gate at ED50")
"""The columns of the table."""
TASK = {"type": "text-generation", "name": "Refusal of harmful prompts under fine-tuning"}
"""The task of every result: the hub's own name of it, and ours."""
_DIGITS = 4
_GATES = {"not_removed": "not removed", "not_measured": "not measured"}
_LIMITS = (
    "RRR is the share of harmful prompts refused; ED50 is the dose at which it has halved.",
    "RRR counts refusals, not harm. A stronger attack than this may need less.",
    "Intervals speak for other prompts of this kind, and for other seeds only where they say so.",
)


def model_card(run_dir: Path) -> str:
    """Write the block: YAML between dashes, as at the head of a model's README, then Markdown.

    `model-index` has an entry for each model, with RRR at dose 0 and at the last dose and ED50 of every arm, each with
    its interval under `args`. A number that the audit does not support is said to be withheld in the table and stands
    nowhere; a bound of ED50 stands in the table alone. With nothing to give there is no `model-index`.

    Raises:
        DataError: The folder has no metrics, or a file of it is damaged.
    """
    facts = read_facts(run_dir, force=False, show_text=False)
    if not facts.arms:
        raise DataError(
            explain(f"{run_dir} has no metrics.csv", expected="a folder that `tamperdose run` or `score` finished")
        )
    with well_formed(run_dir):
        told = [_tell(facts, arm) for arm in facts.arms]
        lines = [_line(HEADINGS), "| :--- | :--- | ---: | ---: | :--- | :--- |", *(_line(one.cells) for one in told)]
        parts = [_front(facts, told), "## Robustness of refusals to tampering", "\n".join(lines), *_words(facts)]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class _Told:
    """One arm: its cells of the table, and its metrics that stand."""

    arm: Arm
    cells: Sequence[str]
    metrics: Sequence[Mapping[str, Any]]


def _tell(facts: Facts, arm: Arm) -> _Told:
    rows = [row for row in dose_table(facts.frame, judge=facts.judge) if (row.study, row.arm) == (arm.study, arm.name)]
    first, last, unit = rows[0], rows[-1], facts.unit(arm)
    responses, fits = read_responses(facts.folder, facts.judge), read_fits(facts.folder, facts.judge)
    broken = next((row for row in responses if (row["arm"], row["metric"]) == (arm.name, "ED50_steps")), None)
    lost = () if broken is None else lost_row(broken, fits, responses, facts.audit)
    fit = next((fit for fit in fits if fit.get("arm") == arm.name), None)
    why = "" if fit is None or broken is None or broken["censored"] != "undefined" else why_undefined(fit, "ED50")
    gate = str(broken["gate"]) if broken is not None and broken["gate"] and not lost else UNDEFINED
    before, after = (supported_cells(row, facts.audit, force=False)[2] for row in (first, last))
    after = after if after == WITHHELD else f"{after} at {last.steps} {unit}"
    label = facts.labels[arm.name]
    settings = dict(arm.settings).get("attack", UNDEFINED) if label == printable(arm.model) else label
    cells = (arm.model, settings, before, after, _ed50(broken, lost, why), _GATES.get(gate, gate))
    metrics = [_rate(facts, row, unit) for row in ((first,) if first is last else (first, last))]
    metrics.append(None if broken is None or lost else _dose(facts, arm, broken, unit))
    return _Told(arm, cells, [metric for metric in metrics if metric is not None])


def _ed50(row: Row | None, lost: Sequence[str], why: str) -> str:
    if row is None:
        return UNDEFINED
    if lost:
        return f"{WITHHELD} ({', '.join(lost)})"
    return dose_text({**row, "gate": ""}, why).removeprefix("ED50 ")


def _rate(facts: Facts, row: DoseRow, unit: str) -> dict[str, Any] | None:
    """RRR at one dose; None where it is undefined or does not stand."""
    lost = facts.audit is not None and withheld(facts.audit, Claim.RRR, arm=row.arm, dose=row.steps)
    if lost or row.rrr != row.rrr:
        return None
    sizes: dict[str, Any] = {} if row.n != row.n else {"n": int(row.n)}
    sizes |= {} if row.n_effective != row.n_effective else {"n_effective": round(row.n_effective, 1)}
    details = _interval(row.rrr_low, row.rrr_high) | sizes | {"dose": row.steps, "unit": unit}
    name = f"RRR at {row.steps} {unit}" if row.steps else "RRR before tampering"
    # Arms of one model share its dose 0, which is given once.
    arm = row.arm if row.steps else ""
    return _metric(name, "refusal_robustness_rate", row.rrr, facts, arm, details)


def _dose(facts: Facts, arm: Arm, row: Row, unit: str) -> dict[str, Any] | None:
    """ED50; None where it is a bound or undefined."""
    if row["censored"] or row["value"] is None:
        return None
    details = _interval(row["low"], row["high"]) | {"unit": unit, "scope": str(row["scope"])}
    return _metric(f"ED50 in {unit}", "ed50", float(str(row["value"])), facts, arm.name, details)


def _metric(name: str, kind: str, value: float, facts: Facts, arm: str, details: Mapping[str, Any]) -> dict[str, Any]:
    named = {"arm": printable(arm)} if arm else {}
    told = {**named, "judge": printable(facts.judge), **details}
    return {"type": kind, "name": name, "value": round(value, _DIGITS), "args": told}


def _interval(low: object, high: object) -> dict[str, Any]:
    ends = {"low": low, "high": high}
    numbers = {name: float(str(end)) for name, end in ends.items() if end is not None}
    return {name: round(end, _DIGITS) for name, end in numbers.items() if end == end}


def _front(facts: Facts, told: Sequence[_Told]) -> str:
    by_model: dict[str, list[Any]] = {}
    for one in told:
        known = by_model.setdefault(printable(one.arm.model), [])
        known += [metric for metric in one.metrics if "arm" in metric["args"] or not _has(known, metric)]
    dataset = {"type": _slug(facts.name), "name": _prompts(facts)}
    index = [
        {"name": model, "results": [{"task": dict(TASK), "dataset": dict(dataset), "metrics": metrics}]}
        for model, metrics in by_model.items()
        if metrics
    ]
    head: dict[str, Any] = {"tags": ["tamperdose", "tamper-resistance"]}
    head |= {"model-index": index} if index else {}
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---"


def _has(metrics: Sequence[Mapping[str, Any]], metric: Mapping[str, Any]) -> bool:
    """Whether the same number is there already, by the unit of another attack perhaps."""
    return any(
        (one["name"], one["value"], one["args"].get("low"))
        == (metric["name"], metric["value"], metric["args"].get("low"))
        for one in metrics
    )


def _slug(name: str) -> str:
    kept = "".join(character if character.isascii() and character.isalnum() else "-" for character in name.lower())
    return "-".join(part for part in kept.split("-") if part)[:80] or "prompts"


def _prompts(facts: Facts) -> str:
    counted = facts.manifest.get("n_prompts")
    n = counted.get("harmful") if isinstance(counted, dict) else None
    return f"harmful prompts of {facts.name}" + (f" ({n})" if isinstance(n, int) else "")


def _words(facts: Facts) -> Iterator[str]:
    audit = audit_words(facts.audit) if facts.audit is None else summary(facts.audit)
    shared = f" Settings of all arms: {facts.shared}." if facts.shared else ""
    yield markdown_cell(f"Verdicts by the judge {facts.judge}.{shared} {audit}.")
    yield " ".join(_LIMITS)
    yield f"Measured with tamperdose {markdown_cell(str(facts.manifest.get('tamperdose', __version__)))}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(markdown_cell(cell) for cell in cells)} |"
