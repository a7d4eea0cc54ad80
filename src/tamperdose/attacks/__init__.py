"""Attacks: each turns an untampered model into one trajectory of checkpoints."""

from collections.abc import Mapping, Sequence

from tamperdose.attacks.attack import Attack, TrainingRows
from tamperdose.attacks.direction import DirectionAttack
from tamperdose.attacks.full import full_attacks
from tamperdose.attacks.lora import lora_attacks
from tamperdose.attacks.plugin import PluginAttack
from tamperdose.attacks.prefill import PrefillAttack
from tamperdose.attacks.rewording import RewordingAttack
from tamperdose.records import Example
from tamperdose.study import AttackSpec, DirectionSpec, FullSpec, LoraSpec, PluginSpec, PrefillSpec, RewordingSpec


def build_attacks(
    spec: AttackSpec, seeds: Sequence[int], examples: Mapping[str, Sequence[Example]]
) -> list[tuple[Attack, TrainingRows]]:
    """Every cell of an attack's grid, once for each seed where something in it is random, with what it reads.

    Args:
        spec: The study's attack.
        seeds: The study's seeds.
        examples: Training rows by source as written in the study.
    """
    match spec:
        case LoraSpec():
            return [*lora_attacks(spec, seeds, examples)]
        case FullSpec():
            return [*full_attacks(spec, seeds, examples)]
        case PrefillSpec():
            return [(PrefillAttack(spec.opener, seeds[0]), TrainingRows(()))]
        case RewordingSpec():
            return [(RewordingAttack(spec.rewordings, seeds[0], spec.kind), TrainingRows(()))]
        case PluginSpec():
            return [(PluginAttack(spec.plugin, spec.settings, seeds[0]), TrainingRows(()))]
        case DirectionSpec():
            rows = TrainingRows(examples[spec.harmful], examples[spec.harmless])
            return [(DirectionAttack(spec.n_examples, seed), rows) for seed in seeds]
