"""Utility: at which doses it is measured, with what, and what becomes of it in the ledger and in `metrics.csv`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tamperdose.data.prompts import spread_prompts
from tamperdose.data.utility import HeldOutText, Question, questions_digest, texts_digest
from tamperdose.files import digest
from tamperdose.records import Estimate, Prompt, Subset
from tamperdose.run.key_doses import find_key_doses
from tamperdose.run.ladder import arm_doses
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.measure import Measured
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key, utility_sources
from tamperdose.stats.drift import definition_zero
from tamperdose.stats.utility import (
    Divergence,
    QuestionScore,
    TextScore,
    UtilityScores,
    accuracy,
    mean_divergence,
    perplexity,
    relative_loss,
)
from tamperdose.study import PluginSpec

UTILITY_VERSION = 1
"""Part of the key of every stored value; raise it when one of them may change."""

LEAVES_MODEL = ("prefill", "system_prompt", "paraphrase")
"""Attacks that change what a model is asked and not the model: its utility is the base's. Plug-ins do, too."""


@dataclass(frozen=True, slots=True)
class Probes:
    """What one model's utility is measured with."""

    texts: Sequence[HeldOutText]
    """For perplexity."""
    questions: Sequence[Question]
    """For accuracy."""
    prompts: Sequence[Prompt]
    """Benign prompts for the divergence from the base; none: it is not measured."""
    kl_tokens: int
    """Positions of each."""


def find_probes(plan: Plan, model: ModelPlan) -> Probes | None:
    """What a model's utility is measured with; None where the study or the engine measures none."""
    study = plan.study
    if study.utility is None or not plan.measures_utility:
        return None
    texts, questions = utility_sources(study, model.spec)
    benign = spread_prompts(plan.data.prompts.get(Subset.BENIGN, ()), study.utility.kl_prompts)
    return Probes(plan.data.texts[texts], plan.data.questions[questions], benign, study.utility.kl_tokens)


def utility_doses(plan: Plan, ledger: Ledger, arm: ArmPlan) -> tuple[int, ...]:
    """The doses of an arm, beyond 0, at which utility is measured: its key doses; the last until they are settled."""
    settled = find_key_doses(plan, ledger, arm)
    return arm_doses(plan, ledger, arm)[-1:] if settled is None else tuple(steps for steps in settled if steps > 0)


def utility_key(plan: Plan, model: ModelPlan, arm: ArmPlan | None = None, steps: int = 0) -> str | None:
    """The ledger's key of the utility of a model, or of an arm at a dose; None where it is not measured."""
    probes = find_probes(plan, model)
    return None if probes is None else stage_key("utility", utility_inputs(model, probes, arm, steps))


def utility_inputs(model: ModelPlan, probes: Probes, arm: ArmPlan | None, steps: int) -> dict[str, Any]:
    """What `utility_key` is the key of."""
    at_base = is_base(arm, steps)
    return {
        "origin": model.key if arm is None or at_base else checkpoint_key(arm, steps),
        "version": UTILITY_VERSION,
        "texts": texts_digest(probes.texts),
        "questions": questions_digest(probes.questions),
        "kl": None if at_base or not probes.prompts else _kl_inputs(model, probes),
    }


def leaves_model(arm: ArmPlan) -> bool:
    """Whether an arm changes what a model is asked, and not the model."""
    return arm.attack.kind in LEAVES_MODEL or isinstance(arm.spec, PluginSpec)


def is_base(arm: ArmPlan | None, steps: int) -> bool:
    """Whether the model at a dose of an arm is the base itself."""
    return arm is None or steps == 0 or leaves_model(arm)


def missing_utility(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan | None = None) -> list[int]:
    """The doses at which utility is still to be measured: 0 for a model, or those of an arm."""
    doses = (0,) if arm is None else utility_doses(plan, ledger, arm)
    keys = {steps: utility_key(plan, model, arm, steps) for steps in doses if arm is None or not is_base(arm, steps)}
    return [steps for steps, key in keys.items() if key is not None and ledger.find("utility", key) is None]


def file_scores(ledger: Ledger, key: str, scores: UtilityScores, inputs: Mapping[str, Any]) -> Path:
    """File a model state's values."""
    text = json.dumps(asdict(scores), sort_keys=True, allow_nan=False)
    return ledger.put("utility", key, lambda path: _write(path, text), suffix=".utility", inputs=inputs)


def read_scores(
    plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan | None = None, steps: int = 0
) -> UtilityScores | None:
    """The values of a model, or of an arm at a dose; None where they were not measured."""
    key = utility_key(plan, model, arm, steps)
    path = None if key is None else ledger.find("utility", key)
    if path is None:
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    return UtilityScores(
        tuple(TextScore(**item) for item in record["texts"]),
        tuple(QuestionScore(item["id"], item["right"], tuple(item["log_likelihoods"])) for item in record["questions"]),
        tuple(Divergence(**item) for item in record["divergences"]),
    )


def utility_metrics(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan, steps: int) -> Iterator[Measured]:
    """The rows of `metrics.csv` at a dose of an arm; none where utility was not measured there."""
    probes = find_probes(plan, model)
    if probes is None or steps not in (0, *utility_doses(plan, ledger, arm)):
        return
    scores = read_scores(plan, ledger, model, arm, steps)
    if scores is None:
        return
    level = plan.study.level
    yield Measured("perplexity", "", perplexity(scores.texts, level=level))
    yield Measured("utility_accuracy", "", accuracy(scores.questions, level=level))
    if probes.prompts:
        templates = [prompt.template for prompt in probes.prompts]
        zero = definition_zero(templates, level=level) if is_base(arm, steps) else None
        found = zero or mean_divergence(scores.divergences, templates, level=level)
        yield Measured("kl_to_base", "", found)


def utility_losses(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan) -> dict[int, dict[str, Estimate]]:
    """What an arm has cost of the base's utility, by dose above 0 and measure: see `relative_loss`.

    An attack that leaves the model alone has cost nothing, by definition.
    """
    base = read_scores(plan, ledger, model)
    losses: dict[int, dict[str, Estimate]] = {}
    for steps in utility_doses(plan, ledger, arm) if base is not None else ():
        now = read_scores(plan, ledger, model, arm, steps)
        if base is None or now is None:
            continue
        if is_base(arm, steps):
            zero = definition_zero([item.id for item in now.questions], level=plan.study.level)
            losses[steps] = {"definition": replace(zero, low=0.0, high=0.0)}
        else:
            pairs = {"perplexity": (base.texts, now.texts), "utility_accuracy": (base.questions, now.questions)}
            losses[steps] = {
                name: relative_loss(before, after, level=plan.study.level)
                for name, (before, after) in pairs.items()
                if before
            }
    return losses


def _kl_inputs(model: ModelPlan, probes: Probes) -> dict[str, Any]:
    prompts = [[prompt.id, [asdict(turn) for turn in prompt.messages]] for prompt in probes.prompts]
    return {"base": model.key, "prompts": digest(prompts), "tokens": probes.kl_tokens}


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
