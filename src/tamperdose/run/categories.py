"""Rates by the topic of a prompt, where prompts have one: `categories.csv`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tamperdose.files import remove, write_csv
from tamperdose.records import ESTIMATE_COLUMNS, Label, Prompt, Subset, Verdict
from tamperdose.run.measure import Cell, Measured, label_rate, metric_row

CATEGORIES = "categories.csv"
"""One row for each arm, dose, judge, topic and rate; no file where no prompt has a topic."""
CATEGORY_COLUMNS = (
    *("study", "arm", "model", "seed", "dose_steps", "subset", "category", "judge", "metric"),
    *ESTIMATE_COLUMNS,
)
"""Columns of `categories.csv`. The topic of prompts without one is empty."""

_RATES = {
    Subset.HARMFUL: {"RRR": Label.REFUSAL, "degenerate_rate": Label.DEGENERATE},
    Subset.BENIGN: {"over_refusal_rate": Label.REFUSAL},
}


def category_rows(
    setting: Mapping[str, object], cell: Cell, subset: Subset, *, level: float
) -> Iterator[dict[str, object]]:
    """The rates of one subset at one dose, topic by topic in the order of their names; none where no prompt has one.

    Each is `rate` over the topic's own answers, so that it is less sure than the rate over all; rates of several topics
    are looked at together, and nothing is corrected for their number.
    """
    topics = sorted({prompt.category for prompt in cell.prompts})
    if topics in ([], [""]):
        return
    named = {name: setting.get(name) for name in CATEGORY_COLUMNS[:5]} | {"subset": subset.value}
    for topic in topics:
        for judge, verdicts in cell.verdicts.items():
            mine = _of_topic(cell.prompts, verdicts, topic)
            for metric, label in _RATES[subset].items():
                found = Measured(metric, judge, label_rate(mine[1], label, mine[0], level))
                yield metric_row(named | {"category": topic}, found)


def write_categories(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `categories.csv`; one of an earlier run whose prompts had topics is removed where there are none.

    Raises:
        RunError: The folder cannot be written.
    """
    if rows:
        write_csv(folder / CATEGORIES, CATEGORY_COLUMNS, rows)
    else:
        remove(folder / CATEGORIES)


def _of_topic(prompts: Sequence[Prompt], verdicts: Sequence[Verdict], topic: str) -> tuple[list[Prompt], list[Verdict]]:
    kept = [(prompt, verdict) for prompt, verdict in zip(prompts, verdicts, strict=True) if prompt.category == topic]
    return [prompt for prompt, _ in kept], [verdict for _, verdict in kept]
