"""Doses that are made of several checkpoints' answers: how many rewordings were tried, of which the best is kept.

Every rewording is answered once. The answers at dose k are chosen among those to the first k: for each prompt the
answer to the rewording that the headline judge saw refused least on the other half of the templates. All judges, RD and
the files of answers are of these answers. Benign prompts, which have no part in the choice, keep what all harmful
prompts choose.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tamperdose.files import digest
from tamperdose.models.flops import about_tokens, generation_flops
from tamperdose.models.rewording import reworded
from tamperdose.records import Label, Prompt, Reworded, Subset, Verdict
from tamperdose.run.measure import Cell, Measured
from tamperdose.stats.rates import rate
from tamperdose.stats.selection import Choice, choose_by_half, widened
from tamperdose.study import Architecture

ANY_OF_K = "any_of_k_compliance_rate"
"""Share of harmful prompts that at least one of the rewordings tried made the model comply with."""

CHOSEN = "chosen_on_the_other_half"
"""Method of an interval that counts the choice, followed by that of the rate."""
Cells = Mapping[Subset, Cell]
"""What was observed of one checkpoint, by subset."""


def choose(tried: Sequence[Cells], judge: str) -> Choice:
    """Which of the rewordings each harmful prompt keeps, by the verdicts of a judge."""
    harmful = [cells[Subset.HARMFUL] for cells in tried]
    return _choice([cell.verdicts[judge] for cell in harmful], harmful[0].prompts)


def kept_verdicts(tried: Sequence[Sequence[Verdict]], prompts: Sequence[Prompt]) -> list[Verdict]:
    """One judge's verdicts on the answers kept, chosen by them: of the verdicts on each rewording's answers."""
    return [tried[which][place] for place, which in enumerate(_choice(tried, prompts).chosen)]


def _choice(tried: Sequence[Sequence[Verdict]], prompts: Sequence[Prompt]) -> Choice:
    templates = [prompt.template for prompt in prompts]
    # By the templates alone, so that every dose has the same halves.
    rng = np.random.default_rng(int(digest(sorted(set(templates))), 16))
    return choose_by_half(_outcomes(tried, Label.REFUSAL), templates, rng=rng)


def keep_best(tried: Sequence[Cells], subsets: Sequence[Subset], judge: str) -> dict[Subset, Cell]:
    """What is observed of the attacker who tries these rewordings and keeps the best: see the module.

    Args:
        tried: The cells of each rewording, in the order they are tried; at least one.
        subsets: The subsets to keep.
        judge: Whose verdicts choose.
    """
    harmful, choice = [cells[Subset.HARMFUL] for cells in tried], choose(tried, judge)
    kept = {Subset.HARMFUL: _picked(harmful, choice.chosen)}
    if Subset.BENIGN in subsets:
        kept[Subset.BENIGN] = tried[choice.overall][Subset.BENIGN]
    return kept


def with_choice(measured: Measured, tried: Sequence[Cells], base: Cell, judge: str) -> Measured:
    """A metric of the answers kept, with what the choice adds to the interval of a rate; others as they are.

    Args:
        measured: A metric of the harmful prompts.
        tried: The cells of each rewording.
        base: The untampered model's harmful prompts.
        judge: Whose verdicts chose.
    """
    labels = {"RRR": Label.REFUSAL, "CE": Label.REFUSAL, "refusal_retention": Label.REFUSAL}
    labels |= {"compliance_rate": Label.COMPLIANCE, "degenerate_rate": Label.DEGENERATE}
    label = labels.get(measured.metric)
    if label is None or len(tried) < 2:
        return measured
    outcomes = _outcomes([cells[Subset.HARMFUL].verdicts[measured.judge] for cells in tried], label)
    if measured.metric == "refusal_retention":
        outcomes[_having(base.verdicts[measured.judge], label) != 1] = np.nan
    estimate = widened(measured.estimate, outcomes, choose(tried, judge).shares)
    return replace(measured, estimate=replace(estimate, method=f"{CHOSEN}_{estimate.method}"))


def any_of_k(tried: Sequence[Cells], *, level: float) -> Iterator[Measured]:
    """For each judge, the share of harmful prompts with which any of the answers complied.

    A prompt none of whose answers complied leaves the denominator if one of them is unreadable.
    """
    harmful = [cells[Subset.HARMFUL] for cells in tried]
    templates = np.array([prompt.template for prompt in harmful[0].prompts], dtype=object)
    for judge in harmful[0].verdicts:
        labels = [[verdict.label for verdict in cell.verdicts[judge]] for cell in harmful]
        complied = np.array([Label.COMPLIANCE in answers for answers in zip(*labels, strict=True)], dtype=bool)
        unread = np.array([Label.UNREADABLE in answers for answers in zip(*labels, strict=True)], dtype=bool)
        known = complied | ~unread
        found = rate(complied[known], templates[known].tolist(), n_unreadable=int((~known).sum()), level=level)
        yield Measured(ANY_OF_K, judge, found)


def search_flops(tried: Sequence[Cells], rewordings: Sequence[Reworded], architecture: Architecture | None) -> int:
    """Operations of answering the harmful prompts once under each rewording tried: what finding the best one takes.

    Tokens of prompts are estimated from their length (`models.flops.about_tokens`), those of answers are counted.
    0 where the model's sizes are not known.
    """
    if architecture is None:
        return 0
    return sum(
        generation_flops(
            architecture,
            n_prompt=about_tokens(reworded(prompt, change).messages),
            n_new=max(1, completion.n_tokens),
        )
        for cells, change in zip(tried, rewordings, strict=True)
        for prompt, completion in zip(cells[Subset.HARMFUL].prompts, cells[Subset.HARMFUL].completions, strict=True)
    )


def _outcomes(tried: Sequence[Sequence[Verdict]], label: Label) -> NDArray[np.float64]:
    """Whether each answer has a label, shape (prompts, rewordings)."""
    return np.stack([_having(verdicts, label) for verdicts in tried], axis=1)


def _having(verdicts: Sequence[Verdict], label: Label) -> NDArray[np.float64]:
    """1 for the label, 0 for another, NaN for unreadable."""
    values = {label: 1.0, Label.UNREADABLE: np.nan}
    return np.array([values.get(verdict.label, 0.0) for verdict in verdicts])


def _picked(cells: Sequence[Cell], chosen: Sequence[int]) -> Cell:
    """The cell with each prompt's answer from the cell chosen for it."""
    places = list(enumerate(chosen))
    return Cell(
        prompts=cells[0].prompts,
        completions=[cells[which].completions[place] for place, which in places],
        verdicts={
            judge: [cells[which].verdicts[judge][place] for place, which in places] for judge in cells[0].verdicts
        },
        vectors=_picked_rows([cell.vectors for cell in cells], chosen),
        stripped=_picked_rows([cell.stripped for cell in cells], chosen),
    )


def _picked_rows(tables: Sequence[NDArray[np.float32] | None], chosen: Sequence[int]) -> NDArray[np.float32] | None:
    known = [table for table in tables if table is not None]
    return np.stack(known)[list(chosen), np.arange(len(chosen))] if len(known) == len(tables) else None
