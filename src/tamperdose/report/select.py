"""Choosing from a frame of metrics: its arms, what to call them, and one metric's curve. Nothing is computed."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from tamperdose import files
from tamperdose.audit.findings import Audit, Claim, withheld
from tamperdose.errors import DataError, explain, nearest
from tamperdose.records import Scope, Subset
from tamperdose.report.text import UNDEFINED, printable
from tamperdose.run.schema import column, keep_rows, read_metrics

_FACTORS = {
    "defence": "defence",
    "attack": "attack",
    "lora_rank": "rank",
    "n_examples": "examples",
    "learning_rate": "lr",
    "batch_size": "batch",
    "poison_ratio": "poison",
    "seed": "seed",
    "data_order": "order",
    "scope": "scope",
}

_ONE_PANEL = 6

Audits = Mapping[str, Audit | None]
"""The audit of each study, by the study's name; None where it has none."""

NO_AUDITS: Audits = MappingProxyType({})
"""Where it is not known whether there are audits."""

_CLAIMS = {
    **dict.fromkeys(("RRR", "CE", "compliance_rate", "degenerate_rate"), Claim.RRR),
    "RD": Claim.RD,
    "over_refusal_rate": Claim.OVER_REFUSAL,
}

_BENIGN_METRICS = ("over_refusal_rate",)


@dataclass(frozen=True, slots=True)
class Arm:
    """One attack trajectory, with its settings as short texts."""

    study: str
    """The study's name."""
    name: str
    """The arm's name, unique within its study."""
    model: str
    """The model's id, as recorded: hostile text."""
    params_b: float
    """Billions of parameters; NaN when not recorded."""
    settings: tuple[tuple[str, str], ...]
    """(factor, value) for every factor that is recorded, e.g. `("rank", "8")`."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric of one arm, by dose. The four tuples have equal length; NaN is undefined."""

    steps: tuple[int, ...]
    """Doses in optimizer steps, ascending, no repeats."""
    value: tuple[float, ...]
    """Point estimates."""
    low: tuple[float, ...]
    """Lower ends of the intervals."""
    high: tuple[float, ...]
    """Upper ends of the intervals."""
    unsupported: tuple[bool, ...] = ()
    """Which points the audit leaves without support; empty: none, or not known."""

    @property
    def defined(self) -> bool:
        """Whether any point has a value."""
        return any(not math.isnan(value) for value in self.value)


def load_run(run_dir: Path) -> pd.DataFrame:
    """Read a finished run's `metrics.csv`, reduced to the headline judge that its `manifest.json` names.

    Raises:
        DataError: Either file is missing or not valid, there are no rows, or the judge is not in the file.
    """
    frame = read_metrics(run_dir / "metrics.csv")
    if frame.empty:
        raise DataError(explain(f"{run_dir / 'metrics.csv'} has no rows", expected="the metrics of a finished run"))
    return select_judge(frame, headline_judge(run_dir))


def headline_judge(run_dir: Path) -> str:
    """Return `headline_judge` from a run's `manifest.json`.

    Raises:
        DataError: The file is missing, is not a JSON object, or does not name the judge.
    """
    path = run_dir / "manifest.json"
    try:
        manifest = json.loads(files.read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(explain(f"{path} is not JSON", got=str(error), expected="one JSON object")) from error
    judge = manifest.get("headline_judge") if isinstance(manifest, dict) else None
    if not isinstance(judge, str) or not judge:
        raise DataError(
            explain(
                f"{path} does not name the headline judge",
                got=repr(judge),
                expected="a text under 'headline_judge'",
            )
        )
    return judge


def select_judge(frame: pd.DataFrame, judge: str) -> pd.DataFrame:
    """Keep one judge's rows and the rows that need no judge (RD).

    Raises:
        DataError: No row has that judge.
    """
    judge_column = column(frame, "judge")
    judges = sorted({name for name in judge_column if name})
    if judge not in judges:
        raise DataError(
            explain(
                f"no metric by the judge '{judge}'{nearest(judge, judges)}",
                got=", ".join(judges) or "no judged metric at all",
                expected="one of the judges of the run",
            )
        )
    return keep_rows(frame, (judge_column == judge) | (judge_column == "")).reset_index(drop=True)


def list_arms(frame: pd.DataFrame) -> list[Arm]:
    """List the arms by model size (unknown sizes last), then in the order of the frame.

    Raises:
        DataError: The frame has no rows, or one arm names two models.
    """
    if frame.empty:
        raise DataError(explain("there are no metrics to show", expected="at least one row"))
    arms = [_arm(rows) for _, rows in frame.groupby(["study", "arm"], sort=False)]
    first_seen = {model: k for k, model in reversed(list(enumerate(arm.model for arm in arms)))}
    return sorted(arms, key=lambda arm: (_size(arm), first_seen[arm.model]))


def arm_rows(frame: pd.DataFrame, arm: Arm) -> pd.DataFrame:
    """Return the rows of one arm."""
    return keep_rows(frame, (column(frame, "study") == arm.study) & (column(frame, "arm") == arm.name))


def metric_rows(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric's rows on its own subset: benign prompts for `over_refusal_rate`, harmful for all else."""
    subset = Subset.BENIGN if metric in _BENIGN_METRICS else Subset.HARMFUL
    return keep_rows(frame, (column(frame, "metric") == metric) & (column(frame, "subset") == subset.value))


def curve(frame: pd.DataFrame, arm: Arm, metric: str, audits: Audits = NO_AUDITS) -> Curve:
    """Return one metric of one arm by dose, with what its study's audit says; empty when the frame has none of it.

    Raises:
        DataError: A dose has two values: the frame holds several judges, or the file repeats a row.
    """
    rows = metric_rows(arm_rows(frame, arm), metric).sort_values("dose_steps")
    steps = [int(step) for step in rows["dose_steps"]]
    repeated = [step for step, following in pairwise(steps) if step == following]
    if repeated:
        raise DataError(
            explain(
                f"arm '{printable(arm.name)}' has more than one {metric} at {repeated[0]} steps",
                got=f"judges {', '.join(repr(judge) for judge in column(rows, 'judge').unique())}",
                expected="one value for each dose",
                remedy="select one judge first; else the file repeats rows",
            )
        )
    value, low, high = (tuple(float(x) for x in rows[name]) for name in ("value", "low", "high"))
    audit = audits.get(arm.study)
    claim = _CLAIMS.get(metric)
    if audit is None or claim is None:
        return Curve(tuple(steps), value, low, high)
    lost = tuple(bool(withheld(audit, claim, arm=arm.name, dose=dose)) for dose in steps)
    return Curve(tuple(steps), value, low, high, lost if any(lost) else ())


_TRAINED = ("steps", "optimizer steps")
_DOSE_UNITS = {
    "prefill": ("tokens", "tokens of the opener"),
    "system_prompt": ("prompts", "system prompts tried"),
    "paraphrase": ("wordings", "paraphrases tried"),
    "refusal_direction": ("%", "per cent of the direction projected out"),
}
"""What a dose counts, by the kind of attack that trains nothing: in a word, and on an axis."""


def dose_word(attack: object) -> str:
    """What a dose of an attack counts, in a word.

    >>> dose_word("lora"), dose_word("prefill")
    ('steps', 'tokens')
    """
    return _DOSE_UNITS.get(str(attack), _TRAINED)[0]


def dose_label(attacks: Iterable[object]) -> str:
    """The label of a dose axis that arms of these kinds of attack share; several units are told by `dose_units`.

    >>> dose_label(["lora", "full"])
    'dose, optimizer steps'
    >>> dose_label(["lora", "prefill"])
    'dose, in its own unit'
    """
    units = {_DOSE_UNITS.get(str(attack), _TRAINED)[1] for attack in attacks} or {_TRAINED[1]}
    return "dose, in its own unit" if len(units) > 1 else f"dose, {units.pop()}"


def dose_units(attacks: Iterable[object]) -> str:
    """What a dose counts, for each kind of attack where they differ; whatever is trained counts steps.

    >>> dose_units(["lora", "full", "prefill"])
    'Dose: optimizer steps (lora, full), tokens of the opener (prefill).'
    >>> dose_units(["lora", "full"])
    ''
    """
    kinds: dict[str, list[str]] = {}
    for attack in dict.fromkeys(map(str, attacks)):
        kinds.setdefault(_DOSE_UNITS.get(attack, _TRAINED)[1], []).append(attack)
    said = ", ".join(f"{unit} ({', '.join(each)})" for unit, each in kinds.items())
    return f"Dose: {said}." if len(kinds) > 1 else ""


def choose_facet(arms: Sequence[Arm]) -> str:
    """Choose what the panels of a figure divide: `model`, a setting of 2 to 9 values, or nothing (empty).

    A single arm is named by its panel. Attacks of several kinds on one model have a panel each: a step of one is not a
    step of another. Else up to `_ONE_PANEL` arms share one panel. Beyond, several models get a panel
    each; arms of one model divide by the setting with the fewest values, seeds and orders last: they are repeats.
    """
    if len(arms) == 1:
        return "model"
    if len({arm.model for arm in arms}) == 1 and len({dict(arm.settings).get("attack") for arm in arms}) > 1:
        return "attack"
    if len(arms) <= _ONE_PANEL:
        return ""
    if len({arm.model for arm in arms}) > 1:
        return "model"
    settings = [dict(arm.settings) for arm in arms]
    levels = {name: len({arm.get(name) for arm in settings}) for name in _differing(settings)}
    usable = [name for name, count in levels.items() if 2 <= count <= 9]
    return min(usable, key=lambda name: (name in ("seed", "order"), levels[name]), default="")


def panel_name(arm: Arm, facet: str) -> str:
    """Name the panel an arm belongs to: its model, one setting such as `rank=8`, or empty without a facet."""
    if facet == "model":
        return printable(arm.model)
    return f"{facet}={dict(arm.settings).get(facet, UNDEFINED)}" if facet else ""


def arm_labels(arms: Sequence[Arm], *, facet: str = "") -> list[str]:
    """Name each arm by its model and by those settings in which the given arms differ.

    What `facet` divides by is left out: the panel's title says it. A setting that not all arms record counts as a
    difference. The order of the data is named only where seeds do not tell it. Where labels within one panel
    repeat, the arms' studies, then their own names, are added. Arms that differ in nothing are called by their model.
    """
    factors = [name for name in _differing([dict(arm.settings) for arm in arms]) if name != facet]
    panels = [panel_name(arm, facet) for arm in arms]
    named = facet != "model" and (len({arm.model for arm in arms}) > 1 or not factors)
    labels = [_label(arm, factors, named=named) for arm in arms]
    for extra in ("study", "name"):
        if len(set(zip(panels, labels, strict=True))) < len(labels):
            added = [printable(getattr(arm, extra)) for arm in arms]
            labels = [f"{label} {text}".strip() for label, text in zip(labels, added, strict=True)]
    return labels


def common_settings(arms: Sequence[Arm]) -> str:
    """Name the settings that all arms share, for a caption; empty when there are none.

    The scope stands with the intervals, and an order of the data that all share tells nothing: both are left out.

    >>> arm = Arm("s", "a", "m", 1.0, (("rank", "8"), ("scope", "trajectory")))
    >>> common_settings([arm, arm])
    'rank 8'
    """
    shared = set(arms[0].settings).intersection(*(arm.settings for arm in arms))
    hidden = ("scope", "order")
    return ", ".join(
        f"{name} {text}" for name, text in arms[0].settings if (name, text) in shared and name not in hidden
    )


def _arm(rows: pd.DataFrame) -> Arm:
    first = rows.iloc[0]
    models = column(rows, "model").unique()
    if len(models) > 1:
        raise DataError(
            explain(
                f"arm '{printable(first['arm'])}' of study '{printable(first['study'])}' has more than one model",
                got=", ".join(repr(model) for model in models),
                expected="one model for each arm",
            )
        )
    settings = {label: _setting(rows, column) for column, label in _FACTORS.items()}
    if settings["scope"] == Scope.ATTACK.value and not settings["seed"]:
        settings["seed"] = "all"
    recorded = tuple((label, text) for label, text in settings.items() if text)
    return Arm(str(first["study"]), str(first["arm"]), str(first["model"]), float(first["params_b"]), recorded)


def _setting(rows: pd.DataFrame, column: str) -> str:
    # Rows of dose 0 may leave a setting of the attack empty: the first row that has it speaks for the arm.
    for value in rows[column]:
        if not pd.isna(value) and value != "":
            return f"{value:g}" if isinstance(value, float) else printable(str(value))
    return ""


def _size(arm: Arm) -> float:
    return math.inf if math.isnan(arm.params_b) else arm.params_b


def _differing(settings: Sequence[Mapping[str, str]]) -> list[str]:
    factors = [name for name in _FACTORS.values() if len({arm.get(name) for arm in settings}) > 1]
    if "order" in factors and len(_levels(settings, ("seed", "order"))) == len(_levels(settings, ("seed",))):
        factors.remove("order")
    return factors


def _levels(settings: Sequence[Mapping[str, str]], names: Sequence[str]) -> set[tuple[str | None, ...]]:
    return {tuple(arm.get(name) for name in names) for arm in settings}


def _label(arm: Arm, factors: Sequence[str], *, named: bool) -> str:
    settings = dict(arm.settings)
    parts = [f"{name}={settings[name]}" for name in factors if name in settings]
    return " ".join(([printable(arm.model)] if named else []) + parts)
