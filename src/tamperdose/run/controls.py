"""Controls: what else is done to a model, which should not remove its refusals, and which model states that makes.

`none` asks the base again in other company; `random_adapter`, `random_weights` and `random_direction` change as much
as the attack does, in no direction; `benign` trains as the attack does, on harmless rows. They are asked part of the
harmful prompts.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from tamperdose.attacks.attack import Attack, TrainingRows
from tamperdose.attacks.lora import LoraAttack
from tamperdose.data.prompts import spread_prompts
from tamperdose.errors import RunError, explain
from tamperdose.files import digest
from tamperdose.models.generator import Generator, OnProgress
from tamperdose.records import Checkpoint, Completion, Projection, Prompt, RandomStep, Subset
from tamperdose.run.key_doses import find_bracket, find_key_doses
from tamperdose.run.ladder import arm_doses
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key, control_source, rows_digest, shards_identity
from tamperdose.run.stages import Answers, Draw
from tamperdose.study import Decoding

REGROUPED = 16
"""Prompts that go to the model together when the base is asked again."""
MOST_DOSES = 2
"""Doses of an arm at which controls are measured, at most."""


class Control(StrEnum):
    """What is done instead of the attack."""

    NONE = "none"
    """Nothing: the base's answers made again, in another order and in smaller batches. How far the instrument flips."""
    RANDOM_ADAPTER = "random_adapter"
    """A random update of the rank of the attack's and, in every layer, of its Frobenius norm."""
    RANDOM_WEIGHTS = "random_weights"
    """Every tensor of weights moved at random, as far as the attack on all weights moves it."""
    RANDOM_DIRECTION = "random_direction"
    """A random direction is projected out, as strongly as the attack projects out its own."""
    BENIGN = "benign"
    """The attack's training on harmless rows: as many, in as large batches, at the same rate and rank."""


@dataclass(frozen=True, slots=True)
class ControlState:
    """One state of a model under a control, and the answers to be had from it."""

    control: Control
    """Which control."""
    steps: int
    """The attack's dose that it stands beside; 0 for `none`."""
    draw: int
    """Number of the random draw, from 1; 0 where nothing is drawn."""
    origin: str
    """Digest of the state."""
    generation: Draw
    """Its answers to the control prompts."""


def control_prompts(plan: Plan) -> Sequence[Prompt]:
    """The harmful prompts that controls are asked."""
    prompts = plan.data.prompts[Subset.HARMFUL]
    return prompts if plan.controls is None else spread_prompts(prompts, plan.controls.max_prompts)


def base_states(plan: Plan, model: ModelPlan) -> list[ControlState]:
    """What is measured once for a model, whatever its arms."""
    if plan.controls is None:
        return []
    return [_state(plan, Control.NONE, model.key, seed=plan.study.seeds[0])]


def control_doses(plan: Plan, ledger: Ledger, arm: ArmPlan) -> tuple[int, ...] | None:
    """The doses of an arm at which controls stand: the upper end of the bracket and the last. None: not settled yet."""
    settled = find_key_doses(plan, ledger, arm)
    if settled is None:
        return None
    bracket = find_bracket(plan, ledger, arm)
    return tuple(sorted({settled[-1]} | ({bracket[1]} if bracket else set())))


def arm_states(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan) -> list[ControlState]:
    """What is measured beside an arm; nothing until its key doses are settled."""
    doses = control_doses(plan, ledger, arm) or ()
    return [state for steps in doses for state in _states_at(plan, model, arm, steps)]


def count_states(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan) -> int:
    """How many states are still to be measured, as far as can be told; the training of `benign` counts as one more."""
    if control_doses(plan, ledger, arm) is None:
        trains = benign_arm(plan, model, arm, arm.doses) is not None
        return most_states(plan, model, arm, arm_doses(plan, ledger, arm)) + trains
    left = missing_states(ledger, arm_states(plan, ledger, model, arm))
    return len(left) + any(state.control is Control.BENIGN for state in left)


def most_states(plan: Plan, model: ModelPlan, arm: ArmPlan, doses: Sequence[int]) -> int:
    """How many states there are beside an arm, at most: until its doses are measured, two are taken to be wanted."""
    return min(MOST_DOSES, len(doses)) * len(_states_at(plan, model, arm, doses[-1]))


def missing_states(ledger: Ledger, states: Sequence[ControlState]) -> list[ControlState]:
    """Those whose answers are not there."""
    return [state for state in states if ledger.find("generate", state.generation.key) is None]


def benign_arm(plan: Plan, model: ModelPlan, arm: ArmPlan, doses: tuple[int, ...]) -> ArmPlan | None:
    """The same training on harmless rows; None where there is none, or the arm is such a training itself."""
    source, attack = control_source(plan.study, model.spec), arm.attack
    if source is None or attack.training is None or attack.kind == "benign":
        return None
    rows, drawn = plan.data.examples[source], attack.identity().get("n_examples")
    changes: dict[str, Any] = {
        "n_examples": min(drawn or len(arm.rows.attack), len(rows)),
        "n_poisoned": attack.training.batch_size,
    }
    if isinstance(attack, LoraAttack):
        # The same name as an attack of the study that is this very training: the two have one ledger entry.
        changes["kind"] = "benign"
    # Every attack that trains is a frozen record of its settings, which the protocol does not say.
    same: Attack = replace(cast(Any, attack), **changes)
    sharding = shards_identity(plan.study, model.spec)
    inputs = {"base": model.key, **sharding, "attack": same.identity(), "data": rows_digest(rows)}
    key = stage_key("attack", inputs)
    return replace(arm, id=f"{arm.id}: control benign", key=key, attack=same, rows=TrainingRows(rows), saved=doses)


def file_sizes(ledger: Ledger, arm: ArmPlan, checkpoint: Checkpoint, sizes: Mapping[str, Any]) -> Path:
    """File how large a checkpoint's change is, so that random ones can be made when its weights are gone."""
    key = checkpoint_key(arm, checkpoint.dose.steps)

    def write(path: Path) -> None:
        path.write_text(json.dumps(sizes, sort_keys=True), encoding="utf-8")

    return ledger.put("sizes", key, write, suffix=".sizes", inputs={"arm": arm.key, "steps": checkpoint.dose.steps})


def lacks_sizes(plan: Plan, ledger: Ledger, arm: ArmPlan) -> bool:
    """Whether the size of a change is not known at a dose at which it will be wanted."""
    if plan.controls is None or not plan.controls.random_draws or _random_control(arm) is None:
        return False
    doses = control_doses(plan, ledger, arm) or arm_doses(plan, ledger, arm)
    return any(ledger.find("sizes", checkpoint_key(arm, steps)) is None for steps in doses)


def write_random(ledger: Ledger, arm: ArmPlan, state: ControlState, folder: Path) -> Checkpoint:
    """Make the change of a random control: of the size that the attack's has at its dose.

    Raises:
        RunError: That size is not in the ledger.
    """
    from tamperdose.models.random_update import UpdateSize, write_random_adapter, write_random_direction
    from tamperdose.run.stages import read_dose

    found = ledger.find("sizes", checkpoint_key(arm, state.steps))
    dose = read_dose(ledger, arm, state.steps)
    if found is None or dose is None:
        raise RunError(explain(f"{arm.id}: the size of the change at {state.steps} steps is missing"))
    sizes: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))
    path = folder / "random.safetensors"
    if state.control is Control.RANDOM_DIRECTION:
        write_random_direction(path, sizes["direction"], seed=state.origin)
        return Checkpoint(dose, None, change=Projection(str(path), sizes["strength"]))
    if state.control is Control.RANDOM_WEIGHTS:
        return Checkpoint(dose, None, change=RandomStep(sizes["weights"], state.origin))
    layers = {name: UpdateSize(**size) for name, size in sizes["layers"].items()}
    return Checkpoint(dose, str(write_random_adapter(path, layers, seed=state.origin)))


@dataclass(frozen=True, slots=True)
class Regrouped:
    """A generator that is asked in another order and in smaller groups, for `none`."""

    generator: Generator
    """The one asked."""
    size: int
    """Prompts in a group."""

    @property
    def settings(self) -> dict[str, Any]:
        """The generator's."""
        return dict(getattr(self.generator, "settings", {}))

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, *, seed: int, sample: int = 0, on_progress: OnProgress
    ) -> list[Completion]:
        """Answer the prompts, the last first; answers in the order of the prompts."""
        found: list[Completion] = []
        turned = list(prompts)[::-1]
        for start in range(0, len(turned), self.size):
            group = turned[start : start + self.size]
            found += self.generator.generate(group, decoding, seed=seed, sample=sample, on_progress=on_progress)
        return found[::-1]


def control_answers(plan: Plan, ledger: Ledger, state: ControlState) -> Answers:
    """The answers of a control that lie in the ledger.

    Raises:
        RunError: They are not there.
    """
    path = ledger.find("generate", state.generation.key)
    if path is None:
        raise RunError(explain(f"answers of the control {state.control} are missing", remedy="run the study again"))
    return Answers(control_prompts(plan), path)


def _states_at(plan: Plan, model: ModelPlan, arm: ArmPlan, steps: int) -> list[ControlState]:
    if plan.controls is None:
        return []
    states: list[ControlState] = []
    kind = _random_control(arm)
    if kind is not None:
        for draw in range(1, plan.controls.random_draws + 1):
            origin = digest([kind, checkpoint_key(arm, steps), draw])
            states.append(_state(plan, kind, origin, seed=arm.attack.seed, steps=steps, draw=draw))
    benign = benign_arm(plan, model, arm, (steps,))
    if benign is not None:
        states.append(_state(plan, Control.BENIGN, checkpoint_key(benign, steps), seed=arm.attack.seed, steps=steps))
    return states


def _random_control(arm: ArmPlan) -> Control | None:
    if isinstance(arm.attack, LoraAttack):
        return Control.RANDOM_ADAPTER
    if arm.attack.training is not None:
        return Control.RANDOM_WEIGHTS
    return Control.RANDOM_DIRECTION if arm.attack.kind == "refusal_direction" else None


def _state(plan: Plan, control: Control, origin: str, *, seed: int, steps: int = 0, draw: int = 0) -> ControlState:
    decoding = plan.study.decoding
    asked = [[prompt.id, [asdict(turn) for turn in prompt.messages]] for prompt in control_prompts(plan)]
    inputs = plan.completions_inputs(origin, Subset.HARMFUL, decoding, seed=seed) | {"prompts": digest(asked)}
    if control is Control.NONE:
        inputs["regrouped"] = REGROUPED
    key = stage_key("generate", inputs)
    generation = Draw(Subset.HARMFUL, key, inputs, decoding, int(digest([seed, key]), 16), 0)
    return ControlState(control, steps, draw, origin, generation)
