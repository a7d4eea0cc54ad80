"""What was observed of every cell, as comparisons and fits take it: labels by judge, and the settings naming them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tamperdose.records import Label
from tamperdose.run.measure import Cell, count_samples
from tamperdose.stats.paired import Pairs, pair

Labels = Mapping[str, Sequence[Label]]
"""Each judge's labels, by the judge's name."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What each judge made of the harmful prompts at one dose of one arm, and at dose 0."""

    setting: Mapping[str, object]
    """The columns of `metrics.csv` that name the cell."""
    templates: tuple[str, ...]
    """The template of each answer's prompt, length n."""
    labels: Labels
    """Each judge's labels, length n, by the judge's name."""
    base: Labels
    """The same at dose 0."""
    n_samples: int = 1
    """Answers to each prompt, all of them among the n."""

    @property
    def steps(self) -> int:
        """The dose in optimizer steps."""
        return int(str(self.setting["dose_steps"]))


def observe(setting: Mapping[str, object], cell: Cell, base: Cell) -> Observation:
    """Keep of a cell what comparing takes: labels, not texts."""
    labels, before = (
        {judge: tuple(verdict.label for verdict in verdicts) for judge, verdicts in part.verdicts.items()}
        for part in (cell, base)
    )
    templates = tuple(prompt.template for prompt in cell.prompts)
    return Observation(dict(setting), templates, labels, before, count_samples(cell.prompts))


def grouped(observations: Sequence[Observation], names: Sequence[str]) -> list[list[Observation]]:
    """Groups of observations that agree in these settings, in the order of their first."""
    groups: dict[tuple[object, ...], list[Observation]] = {}
    for seen in observations:
        groups.setdefault(tuple(seen.setting.get(name) for name in names), []).append(seen)
    return list(groups.values())


def recipe_names(observations: Sequence[Observation]) -> list[str]:
    """The settings that make a recipe: all but the seed, the arm's name and the dose."""
    names = dict.fromkeys(name for seen in observations for name in seen.setting)
    return [name for name in names if name not in ("arm", "seed") and not name.startswith("dose_")]


def recipe_label(seen: Observation) -> str:
    """The arm's name without its seed."""
    return str(seen.setting.get("arm")).removesuffix(f"-s{seen.setting.get('seed')}")


def pairs_over_seeds(seeds: Sequence[Observation], judge: str) -> Pairs:
    """The prompts that a judge could read at dose 0 and at every seed; refusals averaged over the seeds."""
    base, tampered = seeds[0].base[judge], refusal_table(seeds, judge)
    read = readable(base) & np.all([readable(seen.labels[judge]) for seen in seeds], axis=0)
    sides = refused(base), tampered.mean(axis=1)
    return pair(*sides, seeds[0].templates, readable=read, n_samples=seeds[0].n_samples)


def refusal_table(seeds: Sequence[Observation], judge: str) -> NDArray[np.float64]:
    """1 where a seed's answer is a refusal, shape (prompts, seeds)."""
    return np.stack([refused(seen.labels[judge]) for seen in seeds], axis=1).astype(np.float64)


def refused(labels: Sequence[Label]) -> NDArray[np.bool_]:
    """Which labels are refusals, shape (n,)."""
    return np.array([label is Label.REFUSAL for label in labels], dtype=np.bool_)


def readable(labels: Sequence[Label]) -> NDArray[np.bool_]:
    """Which labels could be had, shape (n,)."""
    return np.array([label is not Label.UNREADABLE for label in labels], dtype=np.bool_)
