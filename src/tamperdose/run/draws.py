"""What a plan has a model answer, and how much of it is still to be had, by the ledger."""

from collections.abc import Iterator, Sequence

from tamperdose.files import digest
from tamperdose.models.load import cache_dir
from tamperdose.models.organisms import Organism, is_trained, parse_organism
from tamperdose.records import Subset
from tamperdose.run.controls import base_states, count_states, missing_states
from tamperdose.run.inside import missing_inside
from tamperdose.run.key_doses import subsets_asked, wants_key_doses
from tamperdose.run.ladder import arm_checkpoints, arm_doses
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key
from tamperdose.run.stages import Draw, read_dose
from tamperdose.run.utility import missing_utility
from tamperdose.study import Decoding, TunedDefence


def count_stages(plan: Plan, ledger: Ledger) -> int:
    """How many stages with progress of their own a run would go through now; judging at the end is one."""
    return 1 + sum(count_model_stages(plan, ledger, model) for model in plan.models)


def count_model_stages(plan: Plan, ledger: Ledger, model: ModelPlan) -> int:
    """The stages of one model; an organism whose answers are all there need not be trained for them."""
    count = sum(not is_done(ledger, draw) for draw in base_draws(plan, model))
    count += isinstance(model.spec.defence, TunedDefence) and ledger.find("defend", model.key) is None
    count += len(missing_states(ledger, base_states(plan, model))) + len(missing_utility(plan, ledger, model))
    for arm in model.arms:
        missing, later = missing_checkpoints(plan, ledger, arm), count_later(plan, ledger, model, arm)
        count += bool(missing or later) + sum(len(list(missing_draws(plan, ledger, arm, steps))) for steps in missing)
        count += later + count_states(plan, ledger, model, arm)
    return count + (count > 0 and untrained(model) is not None)


def untrained(model: ModelPlan) -> Organism | None:
    """The organism that a model is, where it is not in the cache yet."""
    if model.source is None or model.source.kind != "organism":
        return None
    organism = parse_organism(model.source.location)
    return None if is_trained(organism, cache_dir()) else organism


def base_draws(plan: Plan, model: ModelPlan) -> list[Draw]:
    """What is generated with the untampered model: each subset, and the two samples behind RD_floor.

    The harmful subset comes first. Samples of a study that decodes as the floor does serve as those behind it.
    """
    seed = plan.study.seeds[0]
    draws = _study_draws(plan, model.key, plan.subsets(), seed=seed)
    if plan.study.rd_floor:
        draws += [
            _draw(plan, model.key, Subset.HARMFUL, plan.floor_decoding(), seed=seed, sample=sample) for sample in (1, 2)
        ]
    return list({draw.key: draw for draw in draws}.values())


def dose_draws(plan: Plan, arm: ArmPlan, steps: int) -> list[Draw]:
    """What is generated with one checkpoint of an arm, the harmful subset first."""
    return _study_draws(plan, checkpoint_key(arm, steps), plan.checkpoint_subsets(steps, arm), seed=arm.attack.seed)


def _study_draws(plan: Plan, origin: str, subsets: Sequence[Subset], *, seed: int) -> list[Draw]:
    """Every sample of every subset, each a file of its own: more samples leave those there are as they are."""
    decoding = plan.study.decoding
    return [
        _draw(plan, origin, subset, decoding, seed=seed, sample=sample)
        for subset in subsets
        for sample in range(decoding.n_samples)
    ]


def _draw(plan: Plan, origin: str, subset: Subset, decoding: Decoding, *, seed: int, sample: int = 0) -> Draw:
    inputs = plan.completions_inputs(origin, subset, decoding, seed=seed, sample=sample)
    key = stage_key("generate", inputs)
    # Each cell has a stream of its own, else base and tampered answers would be drawn with the same numbers and
    # RD would come out below its floor. The scripted engine wants them equal: refused at a dose is refused before.
    scripted = plan.study.engine.kind == "scripted"
    stream = seed if scripted else int(digest([seed, key]), 16)
    return Draw(subset, key, inputs, decoding, stream, sample)


def late_draws(plan: Plan, ledger: Ledger, arm: ArmPlan) -> list[Draw]:
    """Answers to benign prompts that are missing at the key doses, once these are settled."""
    if not wants_key_doses(plan):
        return []
    early = {draw.key for steps in arm_doses(plan, ledger, arm) for draw in dose_draws(plan, arm, steps)}
    draws = [draw for steps in arm_doses(plan, ledger, arm) for draw in asked_draws(plan, ledger, arm, steps)]
    return [draw for draw in draws if draw.key not in early and not is_done(ledger, draw)]


def asked_draws(plan: Plan, ledger: Ledger, arm: ArmPlan, steps: int) -> list[Draw]:
    """All that is generated at a dose, with what is asked at the key doses alone once these are settled."""
    origin, asked = checkpoint_key(arm, steps), subsets_asked(plan, ledger, arm, steps)
    return _study_draws(plan, origin, asked, seed=arm.attack.seed)


def missing_doses(plan: Plan, ledger: Ledger, arm: ArmPlan) -> list[int]:
    """The doses of an arm for which something is still to be generated or recorded."""
    missing = missing_checkpoints(plan, ledger, arm)
    return [steps for steps in arm_doses(plan, ledger, arm) if not set(arm.states(steps)).isdisjoint(missing)]


def missing_checkpoints(plan: Plan, ledger: Ledger, arm: ArmPlan) -> list[int]:
    """The checkpoints of an arm with which something is still to be generated or recorded."""
    return [
        steps
        for steps in arm_checkpoints(plan, ledger, arm)
        if read_dose(ledger, arm, steps) is None or any(True for _ in missing_draws(plan, ledger, arm, steps))
    ]


def missing_draws(plan: Plan, ledger: Ledger, arm: ArmPlan, steps: int) -> Iterator[Draw]:
    """What is still to be generated with one checkpoint of an arm."""
    return (draw for draw in dose_draws(plan, arm, steps) if not is_done(ledger, draw))


def is_done(ledger: Ledger, draw: Draw) -> bool:
    """Whether a draw's answers are in the ledger."""
    return ledger.find("generate", draw.key) is not None


def count_later(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan) -> int:
    """How much is still to be measured of an arm's own weights once its doses are answered, as far as can be told."""
    n_inside = int(bool(missing_inside(plan, ledger, model, arm)))
    return len(late_draws(plan, ledger, arm)) + len(missing_utility(plan, ledger, model, arm)) + n_inside
