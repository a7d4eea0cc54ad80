"""What a study will cost before anything is loaded: FLOPs, memory, time and disk, each a stated approximation."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tamperdose.models.flops import (
    about_tokens,
    generation_flops,
    n_parameters,
    training_flops,
)
from tamperdose.models.load import find_architecture
from tamperdose.models.organisms import training_seconds
from tamperdose.records import Subset
from tamperdose.run.controls import arm_states, base_states, benign_arm, control_prompts, most_states
from tamperdose.run.costs import SECONDS_PER_HOUR
from tamperdose.run.draws import base_draws, dose_draws, missing_doses, untrained
from tamperdose.run.ladder import arm_checkpoints, arm_doses, is_searched
from tamperdose.run.ledger import Ledger
from tamperdose.run.memory import device_bytes, memory_bytes, physical_bytes
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan
from tamperdose.run.probing import probing_flops
from tamperdose.run.room import free_bytes, scratch_bytes
from tamperdose.run.trainings import Training, attack_training, defence_training, mean_row
from tamperdose.stats.power import detectable_fall
from tamperdose.stats.rates import rate
from tamperdose.study import COMPARED_ORDERS, COMPARED_SEEDS, Architecture, TrainingSpec, TunedDefence

ANSWER_SHARE = 0.7
"""Share of max_new_tokens that an answer takes on average, about: refusals end early."""
EFFICIENCY = 0.5
"""Share of the measured matrix-product rate that training and generation reach, about."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one model of a study takes from start to end."""

    model: str
    """Its name."""
    params_b: float | None
    """Parameters in billions; None when its architecture is not known without loading it."""
    training_flops: float | None
    """Defence and all trajectories; of each its last dose, since the doses before it lie on the way."""
    generation_flops: float | None
    """All answers; those of the base once, whatever the number of arms."""
    remaining_share: float
    """Share of the answers still to be generated, in [0, 1]."""
    memory_bytes: float | None
    """Peak memory of the device (on a CPU: of the process)."""
    disk_bytes: float | None
    """Ledger and outputs; while training, also adapters and optimizer state."""
    seconds: float | None
    """Time still to go on this machine; None where its speed is not known."""
    base_training_s: float | None = None
    """Of that, for training an organism that is not in the cache yet; None for every other model."""
    usd: float | None = None
    """Of the time still to go, at the study's price of a device-hour; None without one, or without a time."""
    from_scratch_flops: float | None = None
    """Training and answers if nothing were shared: each dose of each arm trained from step 0, with answers of the base
    of its own. The defence, the samples behind RD_floor and the controls are as planned in both."""
    probing_flops: float | None = None
    """Forward passes for utility and the states inside, at most; in the time, in neither number above."""
    further_flops: float | None = None
    """At most, for the answers at the doses that searches may still add; they are in no other number here."""


def estimate_costs(plan: Plan, ledger: Ledger) -> list[Cost]:
    """Estimate every model of a plan."""
    return [_estimate(plan, model, ledger) for model in plan.models]


def _estimate(plan: Plan, model: ModelPlan, ledger: Ledger) -> Cost:
    architecture = None if model.source is None else find_architecture(model.spec.loaded)
    share = _remaining_share(plan, model, ledger)
    if architecture is None:
        return Cost(model.spec.label, None, None, None, share, None, None, None)
    ladders = [arm_doses(plan, ledger, arm) for arm in model.arms]
    asked = [arm_checkpoints(plan, ledger, arm) for arm in model.arms]
    controls = control_costs(plan, model, architecture, ladders)
    probing = probing_flops(plan, ledger, model, architecture)
    training = _training_flops(plan, model, architecture) + controls.training_flops
    answers = _answer_flops(plan, architecture)
    generating = _generation_flops(plan, asked, answers) + controls.generation_flops
    rate = _matmul_rate(model.device, model.dtype)
    organism = untrained(model) if share else None
    first = None if organism is None else training_seconds(organism)
    seconds = None if rate is None else (first or 0.0) + share * (training + generating + probing) / (EFFICIENCY * rate)
    price = plan.study.price_per_device_hour
    return Cost(
        model=model.spec.label,
        params_b=n_parameters(architecture) / 1e9,
        training_flops=training,
        generation_flops=generating,
        probing_flops=probing,
        remaining_share=share,
        memory_bytes=memory_bytes(plan, model, architecture),
        disk_bytes=_disk_bytes(plan, model, architecture),
        seconds=seconds,
        base_training_s=first,
        usd=None if price is None or seconds is None else price * seconds / SECONDS_PER_HOUR,
        from_scratch_flops=_from_scratch_flops(plan, model, architecture, ladders=ladders, answers=answers),
        further_flops=sum(further_doses(plan, ledger, arm) for arm in model.arms) * _state_flops(plan, answers, 1),
    )


def _remaining_share(plan: Plan, model: ModelPlan, ledger: Ledger) -> float:
    draws = base_draws(plan, model)
    for arm in model.arms:
        draws += [draw for steps in arm_checkpoints(plan, ledger, arm) for draw in dose_draws(plan, arm, steps)]
        draws += [state.generation for state in arm_states(plan, ledger, model, arm)]
    draws += [state.generation for state in base_states(plan, model)]
    return sum(ledger.find("generate", draw.key) is None for draw in draws) / len(draws)


@dataclass(frozen=True, slots=True)
class ControlCost:
    """What the controls of one model take, all its arms together."""

    n_states: int
    """States of the model that answer the control prompts, at most: the doses are settled while it runs."""
    training_flops: float
    """For the arms that train on harmless rows."""
    generation_flops: float
    """For their answers."""


def control_costs(
    plan: Plan, model: ModelPlan, architecture: Architecture, ladders: Sequence[Sequence[int]]
) -> ControlCost:
    """What controls take, at most."""
    counts = [most_states(plan, model, arm, doses) for arm, doses in zip(model.arms, ladders, strict=True)]
    n_states = len(base_states(plan, model)) + sum(counts)
    benign = [
        benign_arm(plan, model, arm, doses[-1:]) for arm, doses in zip(model.arms, map(tuple, ladders), strict=True)
    ]
    # One training serves all arms that differ in nothing that it knows.
    trained = {arm.key: arm.doses[-1] * arm_step_flops(arm, architecture) for arm in benign if arm is not None}
    n_new = max(1, round(ANSWER_SHARE * plan.study.decoding.max_new_tokens))
    once = sum(
        generation_flops(architecture, n_prompt=about_tokens(prompt.messages), n_new=n_new)
        for prompt in control_prompts(plan)
    )
    return ControlCost(n_states, sum(trained.values()), float(n_states * once))


def _training_flops(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    attacks = sum(arm.doses[-1] * arm_step_flops(arm, architecture) for arm in model.arms)
    return attacks + _defence_flops(plan, model, architecture)


def arm_step_flops(arm: ArmPlan, architecture: Architecture) -> float:
    """What one optimizer step of an arm takes; 0 where it trains nothing."""
    training = attack_training(arm)
    return 0.0 if training is None else _step_flops(training, architecture)


def _defence_flops(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    training = defence_training(plan, model)
    steps = model.spec.defence.steps if isinstance(model.spec.defence, TunedDefence) else 0
    return 0.0 if training is None else steps * _step_flops(training, architecture)


def _step_flops(training: Training, architecture: Architecture) -> float:
    length, answer = mean_row(training)
    lengths, n_labels = [round(length)] * training.batch_size, max(1, round(answer)) * training.batch_size
    return float(training_flops(architecture, lora_rank=training.lora_rank, lengths=lengths, n_labels=n_labels))


def _generation_flops(plan: Plan, ladders: Sequence[Sequence[int]], answers: Mapping[Subset, float]) -> float:
    states = [0, *(steps for doses in ladders for steps in doses)]
    return sum(_state_flops(plan, answers, steps) for steps in states) + _floor_flops(plan, answers)


def _from_scratch_flops(
    plan: Plan,
    model: ModelPlan,
    architecture: Architecture,
    *,
    ladders: Sequence[Sequence[int]],
    answers: Mapping[Subset, float],
) -> float:
    """As if no two doses were points on one trajectory and no two had one base; see `Cost`."""
    controls = control_costs(plan, model, architecture, ladders)
    total = _defence_flops(plan, model, architecture) + _floor_flops(plan, answers)
    # Controls are no doses: they are counted as planned in both.
    total += controls.training_flops + controls.generation_flops
    for arm, doses in zip(model.arms, ladders, strict=True):
        step = arm_step_flops(arm, architecture)
        total += sum(
            steps * step + _state_flops(plan, answers, 0) + _state_flops(plan, answers, steps) for steps in doses
        )
    return total


def _answer_flops(plan: Plan, architecture: Architecture) -> dict[Subset, float]:
    """What it takes to answer each prompt of a subset once."""
    n_new = max(1, round(ANSWER_SHARE * plan.study.decoding.max_new_tokens))
    return {
        subset: float(
            sum(
                generation_flops(architecture, n_prompt=about_tokens(prompt.messages), n_new=n_new)
                for prompt in plan.data.prompts[subset]
            )
        )
        for subset in plan.subsets()
    }


def _state_flops(plan: Plan, answers: Mapping[Subset, float], steps: int) -> float:
    """All answers of one model state."""
    return plan.study.decoding.n_samples * sum(answers[subset] for subset in plan.subsets_at(steps))


def _floor_flops(plan: Plan, answers: Mapping[Subset, float]) -> float:
    return 2 * answers[Subset.HARMFUL] if plan.study.rd_floor else 0.0


def _disk_bytes(plan: Plan, model: ModelPlan, architecture: Architecture) -> float:
    n_states = 1 + sum(len(arm.saved if arm.keeps_best else arm.doses) for arm in model.arms)
    n_answers = plan.study.decoding.n_samples * sum(len(plan.data.prompts[subset]) for subset in plan.subsets())
    per_answer = 4 * plan.study.decoding.max_new_tokens * 3 + 2 * 384 * 4 + 1000
    saved = max((scratch_bytes(arm, model, architecture) for arm in model.arms), default=0.0)
    return n_states * n_answers * per_answer + saved


def _matmul_rate(device: str, dtype: str) -> float | None:
    """Floating-point operations per second of a large matrix product, measured now; None without the device."""
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return None
    size = 4096 if device.startswith("cuda") else 768
    matrix = torch.ones((size, size), device=device, dtype=getattr(torch, dtype))
    repeats, seconds = 0, 0.0
    start = time.monotonic()
    while seconds < 0.3:
        product = matrix @ matrix
        repeats += 1
        # Reading one number waits for an accelerator to finish.
        float(product[0, 0])
        seconds = time.monotonic() - start
    return 2.0 * size**3 * repeats / seconds


def describe_detectable(plan: Plan) -> dict[str, Any]:
    """The smallest fall of RRR the harmful prompts can show over an arm's ladder, as plain values."""
    prompts = plan.data.prompts[Subset.HARMFUL]
    sizes = sorted(Counter(prompt.template for prompt in prompts).values())
    n_tests, level = max(len(attack.doses) for attack in plan.study.attack), plan.study.level
    found = asdict(detectable_fall(sizes, n_tests=n_tests, level=level))
    at_zero = detectable_fall(sizes, icc=0.0, n_tests=n_tests, level=level)
    return found | {"fall_at_icc_0": None if found["n"] == found["n_templates"] else at_zero.fall}


def further_doses(plan: Plan, ledger: Ledger, arm: ArmPlan) -> int:
    """How many doses a search may still add to those of an arm, at most; 0 without one, or where it has ended."""
    search = arm.search
    if search is None or is_searched(plan, ledger, arm):
        return 0
    return min(search.max_doses, len(arm.saved)) - len(arm.doses)


def describe_saving(costs: Sequence[Cost]) -> dict[str, float] | None:
    """What nested doses and shared bases save; None where nothing is shared, or a model's cost is not known."""
    planned = scratch = 0.0
    for cost in costs:
        if cost.training_flops is None or cost.generation_flops is None or cost.from_scratch_flops is None:
            return None
        planned += cost.training_flops + cost.generation_flops
        scratch += cost.from_scratch_flops
    # One dose of one arm of each model is the same work either way, in another order of addition.
    if scratch <= planned * (1 + 1e-9):
        return None
    return {"planned_flops": planned, "from_scratch_flops": scratch, "share": planned / scratch}


def describe_room(plan: Plan, ledger: Ledger, costs: Sequence[Cost]) -> list[str]:
    """Which models need more memory or disk than there is here, each in a sentence with what to do."""
    told: list[str] = []
    free = free_bytes(ledger.root)
    for model, cost in zip(plan.models, costs, strict=True):
        memory = physical_bytes() if model.device == "cpu" else device_bytes(model.device)
        kinds = sorted({arm.attack.kind for arm in model.arms if learns_all(arm)})
        instead = f"; {', '.join(kinds)} trains all weights, lora few" if kinds else ""
        if memory is not None and cost.memory_bytes is not None and cost.memory_bytes > memory:
            told.append(f"{cost.model}: about {_gb(cost.memory_bytes)} of memory, {_gb(memory)} here{instead}")
        if cost.disk_bytes is not None and cost.disk_bytes > free:
            remedy = "list fewer doses, or choose a larger disk with -o DIR"
            told.append(f"{cost.model}: about {_gb(cost.disk_bytes)} of disk, {_gb(free)} free: {remedy}{instead}")
    return told


def learns_all(arm: ArmPlan) -> bool:
    """Whether an arm trains all weights."""
    return arm.attack.training is not None and arm.attack.training.lora_rank is None


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:.1f} GB"


def describe_search(plan: Plan, ledger: Ledger, costs: Sequence[Cost]) -> dict[str, Any] | None:
    """How many doses searches may still add, and what their answers take at most; None without a search."""
    if not any(arm.search for model in plan.models for arm in model.arms):
        return None
    further = [further_doses(plan, ledger, arm) for model in plan.models for arm in model.arms]
    known = [cost.further_flops for cost in costs if cost.further_flops is not None]
    return {
        "further_doses": sum(further),
        "further_doses_per_arm": max(further),
        "n_arms": sum(count > 0 for count in further),
        "included_in_costs": False,
        "further_flops": sum(known) if len(known) == len(costs) else None,
    }


def describe_controls(plan: Plan, ledger: Ledger) -> dict[str, Any] | None:
    """What controls will be measured, at most; they are in the estimates. None where there are none."""
    if plan.controls is None:
        return None
    counts = [
        most_states(plan, model, arm, arm_doses(plan, ledger, arm)) for model in plan.models for arm in model.arms
    ]
    return {
        "n_states": sum(counts) + sum(len(base_states(plan, model)) for model in plan.models),
        "n_prompts": len(control_prompts(plan)),
        "random_draws": plan.controls.random_draws,
        "benign": plan.controls.benign,
        "gate_out_of_reach": list(_out_of_reach(plan)),
    }


def _out_of_reach(plan: Plan) -> Iterator[str]:
    """What keeps the gate from being passed whatever the model does: sets with too few templates."""
    limits, level = plan.study.gate, plan.study.level
    asked = {
        "degeneration": (Subset.HARMFUL, limits.degeneration),
        "over_refusal_rise": (Subset.BENIGN, limits.over_refusal_rise),
    }
    for name, (subset, limit) in asked.items():
        templates = [prompt.template for prompt in plan.data.prompts.get(subset, ())]
        high = rate([0.0] * len(templates), templates, level=level).high if templates else None
        if high is not None and high > limit:
            yield (
                f"{name} of 0 in {len(set(templates))} templates of {subset} prompts may be {high:.2f}, "
                f"the limit is {limit:g}"
            )


def describe_plan(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """Everything `tamperdose plan` shows, as plain values."""
    costs = estimate_costs(plan, ledger)
    return {
        "study": plan.study.name,
        "prompts": {subset.value: len(plan.data.prompts[subset]) for subset in plan.subsets()},
        "arms": [
            {
                "arm": arm.id,
                "model": model.spec.label,
                "doses": list(arm_doses(plan, ledger, arm)),
                "doses_done": done,
            }
            for model in plan.models
            for arm, done in zip(model.arms, _doses_done(plan, model, ledger), strict=True)
        ],
        "costs": [asdict(cost) for cost in costs],
        "saving": describe_saving(costs),
        "search": describe_search(plan, ledger, costs),
        "short_of": describe_room(plan, ledger, costs),
        "controls": describe_controls(plan, ledger),
        "defences": describe_defences(plan),
        "detectable": describe_detectable(plan),
    }


def describe_defences(plan: Plan) -> dict[str, Any] | None:
    """The defences that are compared on one model, and over which seeds and orders; None where none are."""
    study = plan.study
    compared = {
        spec.label: [each.defence_label for each in study.models if each.undefended == spec.undefended]
        for spec in study.models
    }
    compared = {label: names for label, names in compared.items() if len(names) > 1}
    orders = {order for attack in study.attack if isinstance(attack, TrainingSpec) for order in attack.data_order}
    if not compared:
        return None
    return {
        "models": compared,
        "seeds": list(study.seeds),
        "data_orders": sorted(order for order in orders if order is not None),
        "by_default": study.seeds == COMPARED_SEEDS and orders <= set(COMPARED_ORDERS),
    }


def _doses_done(plan: Plan, model: ModelPlan, ledger: Ledger) -> list[list[int]]:
    missing = [set(missing_doses(plan, ledger, arm)) for arm in model.arms]
    return [
        [steps for steps in arm_doses(plan, ledger, arm) if steps not in left]
        for arm, left in zip(model.arms, missing, strict=True)
    ]
