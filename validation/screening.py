"""Section "Screening" of docs/validation.md: answers stopped once `is_settled`, against the same answers whole."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tamperdose.files import read_csv
from tamperdose.judges.phrases import refusal_score
from tamperdose.judges.settled import settled_start
from tamperdose.stats.rates import rate

SETS = {
    "XSTest's labelled answers": ("judge_labels/xstest_refusal_labels_dev.csv", "response"),
    "chatgpt-refusals' labelled answers": ("judge_labels/reuter_refusal_labels_dev.csv", "response"),
    "Phi-3-mini before the attack": ("recorded/phi3_mini_3.8b_generations.csv", "gen_pre"),
    "Phi-3-mini after it": ("recorded/phi3_mini_3.8b_generations.csv", "gen_post"),
    "TinyLlama before the attack": ("recorded/tinyllama_1.1b_generations.csv", "gen_pre"),
    "TinyLlama after it": ("recorded/tinyllama_1.1b_generations.csv", "gen_post"),
}
"""Files of the reference data and their column of answers."""
_N_QUICK = 100


@dataclass(frozen=True, slots=True)
class Tried:
    """What the rule does to one answer."""

    n_words: int
    n_kept: int
    """Words up to where it is stopped; all where it is not."""
    stopped: bool
    changed: bool
    """Whether its start is judged otherwise than the whole."""


def section(*, quick: bool) -> str:
    """Compute the section; `quick` reads the first hundred answers of each set."""
    folder = os.environ.get("TAMPERDOSE_REFERENCE_DATA")
    if not folder:
        return "## Screening\n\nNot computed: TAMPERDOSE_REFERENCE_DATA does not name the recorded answers.\n"
    limit = _N_QUICK if quick else None
    found = {name: list(_tried(Path(folder) / file, column, limit)) for name, (file, column) in SETS.items()}
    everything = [each for tried in found.values() for each in tried]
    lines = [_line(name, tried) for name, tried in (*found.items(), ("together", everything))]
    return "\n".join([_INTRODUCTION, *lines, "", _CAVEAT])


def _tried(path: Path, column: str, limit: int | None) -> Iterator[Tried]:
    _, rows = read_csv(path, required=[column])
    for row in rows[:limit]:
        whole = row[column]
        start = settled_start(whole)
        yield Tried(
            n_words=len(whole.split()),
            n_kept=len((whole if start is None else start).split()),
            stopped=start is not None,
            changed=start is not None and (refusal_score(start)[0] >= 0) != (refusal_score(whole)[0] >= 0),
        )


def _line(name: str, tried: Sequence[Tried]) -> str:
    stopped = [each for each in tried if each.stopped]
    bound = rate([each.changed for each in stopped], [str(place) for place in range(len(stopped))]).high
    kept = sum(each.n_kept for each in tried) / max(1, sum(each.n_words for each in tried))
    cells = [name, str(len(tried)), str(len(stopped)), str(sum(each.changed for each in stopped))]
    cells += ["-" if bound is None else f"{bound:.3f}", f"{kept:.2f}"]
    return f"| {' | '.join(cells)} |"


_INTRODUCTION = """## Screening

`decoding.stop_when_decided` ends an answer once its verdict by `phrases` is taken as settled. Here whole answers are
cut where they would have been stopped, at the end of a sentence, and both are judged. "Upper bound" is that of the 95 %
Wilson interval of the share of stopped answers whose verdict changes, each answer an event of its own; "words" is the
share of all words that would have been written.

| answers | n | stopped | changed | upper bound | words |
|---|---|---|---|---|---|"""
_CAVEAT = (
    "Answers of a set come from few models, and the rule was made with some of them in sight: what holds for another "
    "model is measured in its own run, on the answers that a screening run writes to their end.\n"
)
