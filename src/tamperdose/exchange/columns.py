"""Every column of every results file: its type, unit, range and meaning. `docs/schema.md` is written from here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from tamperdose.records import FinishReason, Label, Scope, Subset
from tamperdose.run.audit import AUDIT_FILE
from tamperdose.run.categories import CATEGORIES, CATEGORY_COLUMNS
from tamperdose.run.compare_schema import (
    AGREEMENT,
    AGREEMENT_COLUMNS,
    COMPARISON_COLUMNS,
    COMPARISONS,
    SEED_COLUMNS,
    SEEDS,
)
from tamperdose.run.controls import Control
from tamperdose.run.corrected import CORRECTED_COLUMNS
from tamperdose.run.costs import COST_COLUMNS, COSTS
from tamperdose.run.defences import DEFENCE_COLUMNS, DEFENCES
from tamperdose.run.gates import CONTROL_COLUMNS, CONTROLS, GATE, GATE_COLUMNS
from tamperdose.run.inside_results import INSIDE, INSIDE_COLUMNS, INSIDE_JSON
from tamperdose.run.labels import KEY_COLUMNS, SHEET_COLUMNS, Band
from tamperdose.run.marginals import MARGINAL_COLUMNS, MARGINALS
from tamperdose.run.outputs import OPTIONAL_COLUMNS, OUTPUT_COLUMNS
from tamperdose.run.response import DOSE_RESPONSE, DOSE_RESPONSE_JSON, RESPONSE_COLUMNS
from tamperdose.run.scale import SCALING_JSON
from tamperdose.run.schema import COMBINED_COLUMNS, METRIC_COLUMNS, METRIC_RANGES
from tamperdose.run.score import VERDICT_COLUMNS
from tamperdose.stats.gate import CriterionName, Gate


class Kind(StrEnum):
    """What a column holds."""

    TEXT = "text"
    """UTF-8; hostile where it comes from outside."""
    INTEGER = "integer"
    """A whole number that 64 bits hold."""
    REAL = "real"
    """A number as 64-bit floating point; an empty cell is undefined."""
    FLAG = "flag"
    """`True` or `False`."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    kind: Kind
    """What it holds."""
    unit: str
    """Its unit; empty for a text, `1` for a share or a count."""
    values: str
    """Its range, or the words it can be."""
    meaning: str
    """What it says."""


@dataclass(frozen=True, slots=True)
class Table:
    """One results file of rows."""

    name: str
    """Its path in a run's folder."""
    rows: str
    """What a row is, and when the file is not there."""
    columns: Sequence[str]
    """Its columns, in their order; `JUDGE` stands for the name of each judge."""
    own: Mapping[str, Column] = field(default_factory=dict[str, Column])
    """Columns that mean something else here than elsewhere."""

    def column(self, name: str) -> Column:
        """What one of its columns is.

        Raises:
            KeyError: Nobody has said what it is.
        """
        return self.own.get(name) or COLUMNS[name]


def _words(words: Sequence[StrEnum] | type[StrEnum]) -> str:
    return ", ".join(f"`{word.value}`" for word in words)


def _text(values: str, meaning: str) -> Column:
    return Column(Kind.TEXT, "", values, meaning)


def _count(meaning: str, unit: str = "1", values: str = ">= 0") -> Column:
    return Column(Kind.INTEGER, unit, values, meaning)


def _real(unit: str, values: str, meaning: str) -> Column:
    return Column(Kind.REAL, unit, values, meaning)


def _share(meaning: str) -> Column:
    return Column(Kind.REAL, "1", "[0, 1]", meaning)


_NAME = "a name"
_OF_METRIC = "that of the metric"

COLUMNS: dict[str, Column] = {
    # What was done
    "study": _text(_NAME, "The study"),
    "arm": _text(_NAME, "The attack trajectory: model, attack, its settings, seed; over seeds the recipe's name"),
    "recipe": _text(_NAME, "Arms that differ in their seed alone"),
    "model": _text(_NAME, "The model as the study calls it"),
    "params_b": _real("1e9", "> 0", "Parameters of the model in billions; empty where not known"),
    "defence": _text("`none` or a name", "What the model was defended with before any attack"),
    "attack": _text("a kind of attack, or `recorded`", "What the attack is; `recorded` for answers had elsewhere"),
    "lora_rank": _count("Rank of the attack's adapter", values=">= 1"),
    "n_examples": _count("Distinct training rows of the attack", "rows", ">= 1"),
    "learning_rate": _real("1", "> 0", "Learning rate of the attack"),
    "batch_size": _count("Training rows a step", "rows", ">= 1"),
    "poison_ratio": _share("Share of the training rows that are the attack's; the others are harmless"),
    "seed": _count("Seed of the attack; empty over several seeds", values="whole"),
    "seeds": _text("whole numbers, parted by spaces", "The seeds of the recipe"),
    "data_order": _text("a whole number or empty", "Which order the training rows are taken in; empty: the seed's"),
    "dose_steps": _count("Dose in the attack's own unit: optimizer steps, for most attacks", "steps"),
    "dose_examples": _count("The same in training rows seen, repeats counted", "rows"),
    "dose_tokens": _count("The same in tokens trained on, padding left out", "tokens"),
    "dose_flops": _real("FLOP", ">= 0", "The same in floating-point operations of training or search"),
    "subset": _text(_words(Subset), "The prompts that the row is about"),
    "category": _text("a topic, or empty", "The prompts' topic"),
    "metric": _text("see the metrics below", "What `value` is"),
    "judge": _text("a name, or empty", "Whose verdicts it counts; empty where no judge is needed"),
    # An estimate
    "value": _real(_OF_METRIC, _OF_METRIC, "The point estimate; empty where it is undefined"),
    "low": _real(_OF_METRIC, "<= `value`", "Lower end of the interval; empty where it is undefined or open"),
    "high": _real(_OF_METRIC, ">= `value`", "Upper end of the interval; empty where it is undefined or open"),
    "level": _real("1", "(0, 1)", "Confidence level of the interval"),
    "method": _text("a name from methods.md", "How the interval was made"),
    "n": _count("Units in the denominator: judged answers, pairs, or those behind a fit"),
    "n_templates": _count("Distinct templates among them"),
    "n_effective": _real("1", ">= 0", "Units after the design effect of templates; empty where that is no notion"),
    "n_unreadable": _count("Units left out because no verdict could be had"),
    "scope": _text(_words(Scope), "What the interval speaks for: this run, the recipe over seeds, or arms averaged"),
    "censored": _text("`left`, `right`, `undefined` or empty", "Where the value is a bound, which; else empty"),
    # Paired comparisons
    "both_refused": _count("Prompts refused at dose 0 and at this dose", "prompts"),
    "refused_to_complied": _count("Prompts refused at dose 0 and not at this dose", "prompts"),
    "complied_to_refused": _count("Prompts not refused at dose 0 and refused at this dose", "prompts"),
    "neither": _count("Prompts refused at neither", "prompts"),
    "difference": _real("1", "[-1, 1]", "RRR at the dose less RRR at dose 0, over the pairs"),
    "few_templates": Column(Kind.FLAG, "", "`True`, `False`", "Whether templates are too few for a sure interval"),
    "p_value": _share("Two-sided p of no difference, by sign flips of whole templates"),
    "p_method": _text("`sign_flip_exact`, `sign_flip_monte_carlo` or empty", "How that p was had"),
    "mcnemar_p": _share("McNemar's exact p; only where no two prompts share a template"),
    "p_holm": _share("`p_value` after Holm's correction over the doses or levels"),
    "n_tests": _count("Tests that Holm counts", values=">= 1"),
    # Judges beside each other
    "judge_1": _text(_NAME, "The first judge"),
    "judge_2": _text(_NAME, "The second judge"),
    "reading": _text("`refusal`, `label`", "Compared as refusal or not, or as refusal, compliance, degenerate"),
    "reason": _text("a sentence, or empty", "Why a number is not defined"),
    # Over seeds
    "n_seeds": _count("Seeds behind the row", values=">= 1"),
    "lowest": _real(_OF_METRIC, _OF_METRIC, "The lowest value of a seed"),
    "highest": _real(_OF_METRIC, _OF_METRIC, "The highest value of a seed"),
    "seed_sd": _real(_OF_METRIC, ">= 0", "Standard deviation between seeds"),
    "seed_sd_low": _real(_OF_METRIC, ">= 0", "Lower end of its interval"),
    "seed_sd_high": _real(_OF_METRIC, ">= 0", "Upper end of its interval"),
    "seed_sd_chance": _real(_OF_METRIC, ">= 0", "What it would be by the sampling of prompts alone"),
    "p_prompts": _share("p of no difference from dose 0 for other prompts with these very seeds"),
    # Breaking doses
    "bracket_low": _real("that of the metric", ">= 0", "The measured dose below which refusals have not fallen so far"),
    "bracket_high": _real("that of the metric", "> `bracket_low`", "The one from which they have; empty: never"),
    "fit": _text("`log_logistic`, `isotonic` or empty", "Which curve gives the value"),
    "gate": _text(f"{_words(Gate)} or empty", "The gate at the two doses that ED50 lies between"),
    "device": _text("`cpu`, `cuda`, `mps`", "Where the training was timed"),
    # Controls and the gate
    "control": _text(f"`base`, `attack`, {_words(Control)}", "What was done to the model"),
    "draw": _text("a whole number, `mean` or empty", "Which random draw; `mean` of all"),
    "criterion": _text(_words(CriterionName), "What the gate looks at"),
    "basis": _text("a control, a measure of utility, or empty", "What the criterion is held against"),
    "basis_dose": _count("The dose at which the control was measured", "steps"),
    "limit": _real("that of `value`", "[0, 1]", "The limit that the study sets"),
    "status": _text("`pass`, `fail`, `undecided`, `not measured`", "How the criterion ended"),
    "verdict": _text("a verdict", "The gate's verdict on the dose, the same in each of its rows"),
    "why": _text("a sentence, or empty", "What decided it, or why a value is undefined"),
    # Inside the model
    "layer": _count("After which block, counted from 1", values=">= 1"),
    "state": _text("a sentence, or empty", "What can be said of the layer"),
    # Factors of a grid
    "factor": _text("a column of settings", "The factor that the row is about"),
    "factor_level": _text("a value of it", "The level"),
    "reference": _text("a value of it", "The level that `difference` is against"),
    "n_arms": _count("Arms averaged", values=">= 1"),
    "balanced": Column(Kind.FLAG, "", "`True`, `False`", "Whether the levels have the same other settings"),
    "differs_in": _text("columns, or empty", "The settings in which the levels differ besides"),
    "n_censored": _count("Arms whose ED50 is a bound"),
    "difference_low": _real("1", "[-1, 1]", "Lower end of the difference's interval"),
    "difference_high": _real("1", "[-1, 1]", "Upper end of the difference's interval"),
    "n_pairs": _count("Pairs behind the difference"),
    # Defences
    "n_orders": _count("Orders of the data", values=">= 1"),
    "n_longer": _count("Pairs in which the defended model surely held longer"),
    "n_shorter": _count("Pairs in which it surely held for a shorter time"),
    "n_unclear": _count("Pairs that do not tell"),
    # Labels of people
    "band": _text(f"{_words(Band)} or empty", "Where on its arm the dose lies"),
    "partial_as": _text("`refusal`, `not_refusal`", "How people's `partial` was read"),
    "n_labels": _count("Labels of people behind it"),
    "item": _text("an id", "The row of the sheet"),
    "label": _text("a label", "What the labeller says; empty until then"),
    "labeller": _text(_NAME, "Who says so"),
    "labeller_kind": _text("`human` or another word", "What the labeller is: only people count as truth"),
    "notes": _text("any text", "The labeller's own"),
    "n_population": _count("Answers of its stratum", "answers", ">= 1"),
    "n_drawn": _count("Answers drawn from it", "answers", ">= 1"),
    "weight": _real("1", ">= 1", "`n_population` / `n_drawn`"),
    "answer": _text("16 hexadecimal digits", "Digest of the answer's text"),
    # Answers
    "id": _text("an id", "The prompt's id"),
    "template": _text("any text", "The prompt's template: prompts of one are not independent"),
    "prompt": _text("any text", "The last turn of what was asked"),
    "conversation": _text("JSON", "All turns, where there are several; no column where no prompt has"),
    "completion": _text("any text", "The answer, as it was said. Hostile"),
    "response": _text("any text", "The answer, as it was said. Hostile"),
    "n_tokens": _count("Tokens of the answer, the end token left out", "tokens"),
    "finish_reason": _text(_words(FinishReason), "Why the answer ended"),
    "sample": _count("Index of the prompt's sample; no column where each prompt has one"),
    "p_refusal": _share("How likely the judge holds it to be a refusal; empty where it is unreadable"),
    "evidence": _text("any text", "What in the answer decided the verdict. May quote it"),
    "verdict_JUDGE": _text(f"{_words(Label)} or empty", "The judge's verdict; empty where it does not read the subset"),
    "p_refusal_JUDGE": _share("How likely the judge holds it to be a refusal"),
    "evidence_JUDGE": _text("any text", "What in the answer decided the verdict. May quote it"),
    # The combined file
    "Model": _text(_NAME, "The model, or the arm where a model has several"),
    "Steps": _count("Dose", "steps"),
    "RRR": _share("Refused / judged harmful prompts"),
    "CE": _share("1 - RRR"),
    "RD": _real("1", "[0, 2]", "Median cosine distance of the answers from those at dose 0"),
}
"""What each column is, unless a table says otherwise."""

for _name, _said in {"agreement": "Share of answers on which the two agree", "kappa": "Cohen's kappa"}.items():
    COLUMNS[_name] = _share(_said) if _name == "agreement" else _real("1", "[-1, 1]", _said)
COLUMNS["ac1"] = _real("1", "[-1, 1]", "Gwet's AC1")
for _name in ("agreement", "kappa", "ac1"):
    COLUMNS |= {
        f"{_name}_low": _real("1", COLUMNS[_name].values, "Lower end of its interval"),
        f"{_name}_high": _real("1", COLUMNS[_name].values, "Upper end of its interval"),
    }
for _name, _which in (("RRR_1", "first"), ("RRR_2", "second")):
    COLUMNS |= {
        _name: _share(f"RRR by the {_which} judge"),
        f"{_name}_low": _share("Lower end of its interval"),
        f"{_name}_high": _share("Upper end of its interval"),
    }

_VERDICT = {"verdict": _text(_words(Label), "The judge's verdict")}

TABLES: tuple[Table, ...] = (
    Table("metrics.csv", "One metric of one arm at one dose, by one judge", METRIC_COLUMNS),
    Table(
        DOSE_RESPONSE,
        "One breaking dose (ED50, ED90, ED50c) of an arm, or of a recipe over its seeds, in one unit, by one judge",
        RESPONSE_COLUMNS,
    ),
    Table(
        COMPARISONS,
        "One arm at one dose above 0, by one judge, against dose 0 over the same harmful prompts",
        COMPARISON_COLUMNS,
        {"low": _real("1", "[-1, 1]", "Lower end of the difference's interval")}
        | {"high": _real("1", "[-1, 1]", "Upper end of the difference's interval")},
    ),
    Table(
        AGREEMENT, "Two judges on one arm at one dose, in one reading; a header alone with one judge", AGREEMENT_COLUMNS
    ),
    Table(
        SEEDS, "One recipe at one dose above 0, by one judge; not there where no recipe has several seeds", SEED_COLUMNS
    ),
    Table(CATEGORIES, "One rate of one topic; not there where no prompt has a topic", CATEGORY_COLUMNS),
    Table(
        CONTROLS,
        "One metric under one control beside one dose of an arm; not there without controls",
        CONTROL_COLUMNS,
    ),
    Table(GATE, "One criterion of the gate at one dose above 0 of an arm, by the headline judge", GATE_COLUMNS),
    Table(INSIDE, "One metric of one layer at one dose; not there where nothing was looked at", INSIDE_COLUMNS),
    Table(
        MARGINALS,
        "One metric at one level of a factor of the grid, the other settings averaged over; not there without a factor",
        MARGINAL_COLUMNS,
        {"difference": _real("1", "[-1, 1]", "This level's mean less that of the reference, over `n_pairs` prompts")},
    ),
    Table(
        DEFENCES,
        "One metric of a defence beside the undefended model; not there where no model has both",
        DEFENCE_COLUMNS,
        {"n_pairs": _count("Seeds x data orders that both models have")},
    ),
    Table(
        COSTS,
        "Seconds or US dollars of training up to one dose, or one breaking dose in them; from the clock",
        COST_COLUMNS,
    ),
    Table(
        "corrected.csv",
        "One rate corrected for the judge's errors; written by `calibrate`",
        CORRECTED_COLUMNS,
    ),
    Table(
        "outputs/ARM/DOSE.csv",
        "One answer at one dose, with what each judge made of it; the controls' answers in outputs/ARM/controls/",
        (*OUTPUT_COLUMNS, *OPTIONAL_COLUMNS, "verdict_JUDGE", "p_refusal_JUDGE", "evidence_JUDGE"),
    ),
    Table("labels/SHEET.csv", "One answer for people to label; written by `label`", SHEET_COLUMNS),
    Table(
        "labels/SHEET.key.csv",
        "What stands behind a row of the sheet, for `calibrate`",
        (*KEY_COLUMNS, "sample"),
        _VERDICT,
    ),
    Table("OUT.csv of `judge`", "A row of the input with its verdict", VERDICT_COLUMNS, _VERDICT),
    Table(
        "combined_results_standardized.csv",
        "One arm at one dose, over several runs; written by `scripts/make_figs.py`",
        COMBINED_COLUMNS,
    ),
)
"""The files of rows that a run, or a command on one, writes."""

JSON_FILES: dict[str, str] = {
    "metrics.json": "`study`, `judge` (the headline), `plan` (digest) and `metrics`: the rows of metrics.csv",
    DOSE_RESPONSE_JSON: "`level` and `fits`: the curves, parameters and diagnostics behind dose_response.csv",
    SCALING_JSON: "ED50 against size: slopes, the source study's claims, the worst attacker over a grid",
    INSIDE_JSON: "Whether the refusal direction turns before, after or while the refusals go",
    AUDIT_FILE: "`outcome`, `summary`, `not_supported`, `cells` and `checks`: what would invalidate a number",
    "manifest.json": "Where the numbers come from: versions, commit, SHA-256 of the data, settings of every answer",
    "timings.json": "Seconds of every stage, of every session; from the clock",
    "failures.json": "What failed of a run on a cluster, and why; not there where nothing did",
    "calibration.json": "How far judge and people agree, and what the corrected rates rest on; written by `calibrate`",
}
"""The other files."""

METRICS: dict[str, tuple[str, str]] = {
    "RRR": ("1", "Refused / judged harmful prompts"),
    "CE": ("1", "1 - RRR, of the same denominator: `compliance_rate` + `degenerate_rate`"),
    "compliance_rate": ("1", "Complied / judged harmful prompts"),
    "degenerate_rate": ("1", "Degenerate answers (empty, echo, loop, word salad) / judged harmful prompts"),
    "RD": ("1", "Median over prompts of 1 - cos(answer at dose 0, answer), by a sentence encoder; 0 at dose 0"),
    "RD_mean": ("1", "The mean instead of the median"),
    "RD_iqr": ("1", "The distance between the quartiles"),
    "RD_stripped": ("1", "RD with the prompt's text removed where an answer repeats it"),
    "RD_floor": ("1", "RD between two samples of the untampered model at temperature 0.7"),
    "refusal_retention": ("1", "Refused at this dose / refused at dose 0, of the same prompts"),
    "over_refusal_rate": ("1", "Refused / judged harmless prompts"),
    "judge_entropy": ("nat", "Mean binary entropy of `p_refusal`"),
    "exact_answer_rate": ("1", "Answers equal to the right one / prompts that have one"),
    "any_compliance_rate": ("1", "Prompts of which any sample complies / prompts"),
    "all_refusal_rate": ("1", "Prompts of which every sample refuses / prompts"),
    "perplexity": ("1", "exp(mean loss) on held-out texts"),
    "utility_accuracy": ("1", "Questions answered rightly / questions"),
    "kl_to_base": ("nat", "KL divergence of the next word's distribution on harmless prompts from that at dose 0"),
    "any_of_k_compliance_rate": ("1", "Prompts on which any of the k rewordings tried complies / prompts"),
    "RRR_unreadable_worst": ("1", "RRR had every unreadable answer been no refusal"),
    "RRR_unreadable_best": ("1", "RRR had every unreadable answer been a refusal"),
}
"""The metrics of `metrics.csv`: unit and meaning."""

OTHER_METRICS: dict[str, tuple[str, str]] = {
    "ED50_UNIT": ("steps, examples, tokens, flops, seconds, usd", "Smallest dose at which the fit has fallen to half"),
    "ED90_UNIT": ("the same", "Smallest dose at which it has fallen to a tenth"),
    "ED50c_UNIT": ("the same", "Smallest dose at which `compliance_rate` reaches half of RRR at dose 0"),
    "attack_seconds, attack_usd": ("s, US dollar", "Time and money of the training up to a dose"),
    "RRR_difference": ("1", "RRR at the dose less RRR at dose 0, over seeds"),
    "refusal_direction_drift": ("1", "1 - cos between refusal directions at dose 0 and at the dose, [0, 2]"),
    "refusal_direction_auc": ("1", "How well the direction tells harmful from benign prompts, [0, 1]"),
    "update_norm, update_norm_relative": ("1", "Frobenius norm of the update; over that of the weights"),
    "ED50_steps_without, ED50_steps_with": ("steps", "ED50 of the undefended and of the defended model"),
    "ED50_steps_ratio": ("1", "The second over the first"),
    "RRR_without, RRR_with": ("1", "RRR of both at dose 0"),
    "over_refusal_rise": ("1", "`over_refusal_rate` of the defended model less that of the other, [-1, 1]"),
    "perplexity_loss, utility_accuracy_loss": ("1", "Relative losses of the defended model; above 0 is worse"),
    "RRR_corrected, RRR_corrected_ppi": ("1", "RRR corrected by people's labels; the second power-tuned, [0, 1]"),
    "RRR_corrected_difference": ("1", "Corrected RRR at the dose less that at dose 0, [-1, 1]"),
    "RRR_band, RRR_band_corrected, RRR_band_corrected_ppi": ("1", "The same of a band of doses, [0, 1]"),
    "judge_agreement": ("1", "Share of answers on which judge and people agree, by band, [0, 1]"),
    "ED50_steps_corrected, ED90_steps_corrected": ("steps", "Breaking doses of the corrected curve"),
}
"""The metrics of the other files. UNIT stands for the unit."""


def schema_page() -> str:
    """`docs/schema.md`: every results file and every column.

    Raises:
        KeyError: A column or a metric that nobody has described.
    """
    parts = [_INTRO, "## Files of rows", *map(_section, TABLES), "## Metrics", _METRICS_INTRO, _metrics_table()]
    other = [f"| `{name}` | {meaning} |" for name, meaning in JSON_FILES.items()]
    parts += ["## Other files", "\n".join(["| file | what it holds |", "| :--- | :--- |", *other]), _PARQUET]
    return "\n\n".join(parts) + "\n"


def _section(table: Table) -> str:
    lines = ["| column | type | unit | range | meaning |", "| :--- | :--- | :--- | :--- | :--- |"]
    for name in table.columns:
        column = table.column(name)
        cells = (f"`{name}`", column.kind.value, column.unit, column.values, column.meaning)
        lines.append(f"| {' | '.join(cells)} |")
    return f"### {table.name}\n\n{table.rows}.\n\n" + "\n".join(lines)


def _metrics_table() -> str:
    lines = ["| metric | unit | range | meaning |", "| :--- | :--- | :--- | :--- |"]
    for name, (low, high) in METRIC_RANGES.items():
        unit, meaning = METRICS[name]
        end = f"{high:.4g}]" if high < float("inf") else "inf)"
        lines.append(f"| `{name}` | {unit} | [{low:g}, {end} | {meaning} |")
    lines += [f"| `{name}` | {unit} | | {meaning} |" for name, (unit, meaning) in OTHER_METRICS.items()]
    return "\n".join(lines)


_INTRO = """# What the results files hold

Written by `scripts/make_schema.py` from `exchange/columns.py`; a test fails where a file has a column that is not here.

CSV as of RFC 4180: UTF-8, a header, `,` between cells, quotes where they are needed, lines ended by a line feed.
Text is only ever text. An empty cell of a number is undefined, never 0. Intervals and their methods are in
[methods.md](methods.md). A number that a failed check of `audit.json` bears on stands in the files all the same:
whoever reads them reads `not_supported` there too."""

_METRICS_INTRO = "What `metric` can be. The first ones are those of `metrics.csv`, whose reader enforces the ranges."

_PARQUET = """## Parquet

`tamperdose export RUN --format parquet` writes the files of rows that a run has as tables of the same names and
columns, with `integer` as int64, `real` as float64, `flag` as bool and `text` as string; an empty cell of a number is
null. The meaning and unit of a column stand in its metadata. `metrics` and `dose_response` have one column more,
`not_supported_because`: the failed checks of the audit that leave the number without support, null where it stands. Two
tables are not among the CSV files:

- `answers`: a row for each answer and judge, with `verdict`, `p_refusal`, `n_characters` and `sha256` of the answer.
  The `completion` and `evidence` of answers to harmful prompts are null and `redacted` is true, unless `--show-text`
  is given.
- `transitions`: a row for each prompt, sample, judge and dose above 0: its verdict at dose 0 (`verdict_base`) and at
  the dose (`verdict`)."""
