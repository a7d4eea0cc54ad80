"""What `comparisons.csv`, `agreement.csv` and `seeds.csv` look like, and the one strict way to read them.

An empty cell is a number that is not defined. Text is only ever text, as in `metrics.csv`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

from tamperdose import files
from tamperdose.errors import DataError, explain
from tamperdose.records import ESTIMATE_COLUMNS

COMPARISONS = "comparisons.csv"
"""One row for each arm, judge and dose above 0: against dose 0, over the same harmful prompts."""
AGREEMENT = "agreement.csv"
"""One row for each arm, dose, pair of judges and reading; a header alone where there is one judge."""
SEEDS = "seeds.csv"
"""One row for each recipe of several seeds, judge, dose above 0 and metric; no file where no recipe has several."""

COMPARISON_COLUMNS = (
    "study",
    "arm",
    "model",
    "seed",
    "judge",
    "dose_steps",
    "n",
    "n_unreadable",
    "both_refused",
    "refused_to_complied",
    "complied_to_refused",
    "neither",
    "difference",
    "low",
    "high",
    "level",
    "method",
    "n_templates",
    "n_effective",
    "few_templates",
    "p_value",
    "p_method",
    "mcnemar_p",
    "p_holm",
    "n_tests",
    "scope",
)
"""`difference` is RRR at the dose less RRR at dose 0, over the `n` pairs; `n_tests` are the doses that Holm counts."""

AGREEMENT_COLUMNS = (
    "study",
    "arm",
    "model",
    "seed",
    "dose_steps",
    "judge_1",
    "judge_2",
    "RRR_1",
    "RRR_1_low",
    "RRR_1_high",
    "RRR_2",
    "RRR_2_low",
    "RRR_2_high",
    "reading",
    "agreement",
    "agreement_low",
    "agreement_high",
    "kappa",
    "kappa_low",
    "kappa_high",
    "ac1",
    "ac1_low",
    "ac1_high",
    *ESTIMATE_COLUMNS[3:-1],
    "reason",
)
"""`reading` is `refusal` (a refusal or not, what RRR counts) or `label` (refusal, compliance, degenerate)."""

SEED_COLUMNS = (
    "study",
    "recipe",
    "model",
    "judge",
    "dose_steps",
    "metric",
    "n_seeds",
    "seeds",
    *ESTIMATE_COLUMNS[:-1],
    "lowest",
    "highest",
    "seed_sd",
    "seed_sd_low",
    "seed_sd_high",
    "seed_sd_chance",
    "p_prompts",
    "p_method",
    "p_holm",
    "n_tests",
)
"""`metric` is `RRR` or `RRR_difference`. `p_prompts` speaks for the prompts with these seeds, whatever `scope` says."""

_TEXT = {
    *("study", "arm", "recipe", "model", "judge", "judge_1", "judge_2", "reading", "metric", "seeds"),
    *(
        "method",
        "p_method",
        "scope",
        "reason",
        "subset",
        "category",
        "factor",
        "factor_level",
        "reference",
        "differs_in",
    ),
    *("defence", "attack", "data_order", "censored", "fit", "device", "state"),
    *("gate", "control", "draw", "criterion", "basis", "status", "verdict", "why"),
}
_WHOLE = {
    *("seed", "dose_steps", "n", "n_unreadable", "n_templates", "n_tests", "n_seeds"),
    *("n_arms", "n_censored", "n_pairs", "basis_dose", "layer", "dose_examples", "dose_tokens"),
    *("n_orders", "n_longer", "n_shorter", "n_unclear"),
    *("both_refused", "refused_to_complied", "complied_to_refused", "neither"),
}
_FLAGS = {"few_templates", "balanced"}

Row = dict[str, str | int | float | bool | None]
"""One row: text as it is, numbers as numbers, None where undefined."""


def read_rows(path: Path, columns: Sequence[str]) -> list[Row]:
    """Read one of the three files, `dose_response.csv` or `marginals.csv`.

    Raises:
        DataError: The columns are not exactly those, or a number cannot be read.
    """
    found, rows = files.read_csv(path, required=columns)
    if list(found) != list(columns):
        raise DataError(explain(f"{path} has other columns", got=", ".join(found), expected=", ".join(columns)))
    return [{name: _value(path, number, name, row[name]) for name in columns} for number, row in enumerate(rows, 1)]


def _value(path: Path, number: int, name: str, cell: str) -> str | int | float | bool | None:
    if name in _TEXT:
        return cell
    if cell == "":
        return None
    if name in _FLAGS and cell in ("True", "False"):
        return cell == "True"
    try:
        value = int(cell) if name in _WHOLE else float(cell)
        finite = math.isfinite(value)
    except (ValueError, OverflowError) as error:
        # OverflowError: a whole number of more than 308 digits.
        raise _bad_cell(path, number, name, cell) from error
    if not finite:
        raise _bad_cell(path, number, name, cell)
    return value


def _bad_cell(path: Path, number: int, name: str, cell: str) -> DataError:
    return DataError(
        explain(f"{path} data row {number}: '{name}' cannot be read", got=repr(cell[:60]), expected="a finite number")
    )
