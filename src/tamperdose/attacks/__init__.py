"""Attacks: each turns an untampered model into one trajectory of checkpoints."""

from collections.abc import Mapping, Sequence

from tamperdose.attacks.attack import Attack, TrainingRows
from tamperdose.attacks.lora import lora_attacks
from tamperdose.records import Example
from tamperdose.study import AttackSpec


def build_attacks(
    spec: AttackSpec, seeds: Sequence[int], examples: Mapping[str, Sequence[Example]]
) -> list[tuple[Attack, TrainingRows]]:
    """Every cell of an attack's grid, once for each seed, with what it trains on.

    Args:
        spec: The study's attack.
        seeds: The study's seeds.
        examples: Training rows by source as written in the study.
    """
    return [*lora_attacks(spec, seeds, examples)]
