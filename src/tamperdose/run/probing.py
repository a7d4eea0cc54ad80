"""What utility and the states inside will take, before anything is loaded: forward passes over known texts."""

from collections.abc import Iterable

from tamperdose.models.flops import CHARACTERS_PER_TOKEN, TEMPLATE_TOKENS, about_tokens, generation_flops
from tamperdose.run.inside import asked_inside
from tamperdose.run.ladder import arm_doses
from tamperdose.run.ledger import Ledger
from tamperdose.run.plan import ModelPlan, Plan
from tamperdose.run.utility import Probes, find_probes, leaves_model
from tamperdose.study import Architecture

MOST_KEY_DOSES = 3
"""Doses above 0 at which an arm is probed, at most: both ends of its bracket and the last."""


def probing_flops(plan: Plan, ledger: Ledger, model: ModelPlan, architecture: Architecture) -> float:
    """Forward passes for utility and for the states inside, of the base and of all arms, at most.

    Texts are predicted at every token; a question is read once and each of its choices after it.
    """
    probes = find_probes(plan, model)
    texts = sum(generation_flops(architecture, n_prompt=1, n_new=length) for length in _text_tokens(probes))
    read_once = texts + _passes(architecture, _other_tokens(probes))
    states = _passes(architecture, _inside_tokens(plan))
    total = read_once + states
    for arm in model.arms:
        n_doses = len(arm_doses(plan, ledger, arm))
        key_doses = min(MOST_KEY_DOSES, n_doses)
        everywhere = plan.study.inside is not None and plan.study.inside.at == "all"
        total += 0.0 if leaves_model(arm) else key_doses * read_once
        total += 0.0 if arm.keeps_best else (n_doses if everywhere else key_doses) * states
    return total


def _text_tokens(probes: Probes | None) -> list[int]:
    return [] if probes is None else [_tokens(len(text.prompt) + len(text.text)) for text in probes.texts]


def _other_tokens(probes: Probes | None) -> list[int]:
    if probes is None:
        return []
    questions = [_tokens(len(question.question) + sum(map(len, question.choices))) for question in probes.questions]
    return [*questions, *(about_tokens(prompt.messages) + probes.kl_tokens for prompt in probes.prompts)]


def _inside_tokens(plan: Plan) -> list[int]:
    asked = asked_inside(plan)
    return [] if asked is None else [about_tokens(prompt.messages) for prompt in asked.prompts]


def _tokens(n_characters: int) -> int:
    return round(n_characters / CHARACTERS_PER_TOKEN) + TEMPLATE_TOKENS


def _passes(architecture: Architecture, lengths: Iterable[int]) -> float:
    return float(sum(generation_flops(architecture, n_prompt=length, n_new=1) for length in lengths))
