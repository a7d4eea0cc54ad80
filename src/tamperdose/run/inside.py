"""The stage `inside`: what the states at the last prompt token say of the refusal direction, at the doses wanted.

The untampered model's entry keeps the sums of its states by group of templates; a dose's entry keeps inner products
with them and norms. Everything in `inside.csv` is made of these.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamperdose.data.prompts import spread_prompts
from tamperdose.files import digest
from tamperdose.records import Checkpoint, Prompt, Subset
from tamperdose.run.backends import Backend
from tamperdose.run.key_doses import find_key_doses
from tamperdose.run.ladder import arm_doses
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key
from tamperdose.stats.direction_drift import Layout, group_counts, lay_out, products

STAGE = "inside"
"""The stage's name in the ledger."""
MIN_TEMPLATES = 2
"""Of each kind: with fewer, no direction can be tested on templates that it has not seen."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """The prompts whose states are read."""

    prompts: tuple[Prompt, ...]
    """Harmful ones first."""
    layout: Layout
    """Their groups and folds."""

    @property
    def digest(self) -> str:
        """Digest of everything about them that the states and their sums depend on."""
        return digest([[p.id, p.template, p.subset.value, [asdict(turn) for turn in p.messages]] for p in self.prompts])


def asked_inside(plan: Plan) -> Asked | None:
    """The prompts whose states a study reads: at most so many of each kind, spread over templates and over the file.

    None where it reads none: switched off, no model with states, or too few templates of a kind.
    """
    if plan.study.inside is None or plan.study.engine.kind == "scripted":
        return None
    kinds = [spread_prompts(plan.data.prompts.get(subset, ()), plan.study.inside.prompts) for subset in Subset]
    templates = [[prompt.template for prompt in kind] for kind in kinds]
    if min(len(set(names)) for names in templates) < MIN_TEMPLATES:
        return None
    return Asked((*kinds[0], *kinds[1]), lay_out(*templates))


def inside_doses(plan: Plan, ledger: Ledger, arm: ArmPlan) -> tuple[int, ...]:
    """The doses of an arm, above 0, at which its inside is looked at: all, or the key ones once these are settled.

    None of a search over rewordings: the model is the base, and which words it is asked in differs by prompt.
    """
    if asked_inside(plan) is None or plan.study.inside is None or arm.keeps_best:
        return ()
    if plan.study.inside.at == "all":
        return arm_doses(plan, ledger, arm)
    return tuple(steps for steps in find_key_doses(plan, ledger, arm) or () if steps > 0)


def base_key(model: ModelPlan, asked: Asked) -> str:
    """Key of the untampered model's entry."""
    return stage_key(STAGE, {"origin": model.key, "prompts": asked.digest})


def dose_key(model: ModelPlan, arm: ArmPlan, steps: int, asked: Asked) -> str:
    """Key of a dose's entry."""
    return stage_key(STAGE, {"origin": checkpoint_key(arm, steps), "base": base_key(model, asked)})


def missing_inside(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan) -> list[int]:
    """The doses of an arm at which its inside is still to be looked at."""
    asked = asked_inside(plan)
    if asked is None:
        return []
    doses = inside_doses(plan, ledger, arm)
    return [steps for steps in doses if ledger.find(STAGE, dose_key(model, arm, steps, asked)) is None]


def measure_base(plan: Plan, ledger: Ledger, model: ModelPlan, backend: Backend) -> None:
    """File the sums of the untampered model's states, where they are not there yet."""
    asked = asked_inside(plan)
    if asked is None or ledger.find(STAGE, key := base_key(model, asked)) is not None:
        return
    found = backend.look_inside(asked.prompts, asked.layout, checkpoint=None, base_sums=None)
    if found is not None:
        _put(ledger, key, {name: found[name] for name in ("sums", "affinities")}, {"base": model.key})


def measure_dose(plan: Plan, ledger: Ledger, arm: ArmPlan, backend: Backend, checkpoint: Checkpoint) -> None:
    """File what a checkpoint's states say; the untampered model's must be there."""
    asked, model = asked_inside(plan), next(model for model in plan.models if arm in model.arms)
    base = None if asked is None else ledger.find(STAGE, base_key(model, asked))
    if asked is None or base is None:
        return
    from safetensors.numpy import load_file

    sums = load_file(base)["sums"].astype(np.float64)
    found = backend.look_inside(asked.prompts, asked.layout, checkpoint=checkpoint, base_sums=sums)
    if found is not None:
        inner = products(sums, found.pop("sums"), group_counts(asked.layout))
        steps = checkpoint.dose.steps
        inputs = {"arm": arm.key, "steps": steps, "base": base.stem}
        _put(ledger, dose_key(model, arm, steps, asked), found | {"products": inner}, inputs)


def read_inside(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan, steps: int) -> Arrays | None:
    """What was filed of a dose of an arm, or of the untampered model at dose 0; None where nothing was."""
    asked = asked_inside(plan)
    if asked is None:
        return None
    key = base_key(model, asked) if steps == 0 else dose_key(model, arm, steps, asked)
    path = ledger.find(STAGE, key)
    if path is None:
        return None
    from safetensors.numpy import load_file

    return load_file(path)


def _put(ledger: Ledger, key: str, arrays: Mapping[str, NDArray[Any]], inputs: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    # Products are differences of large numbers; the others stand rounding.
    kept = {name: np.ascontiguousarray(rows, _dtype(name)) for name, rows in arrays.items()}
    ledger.put(STAGE, key, lambda path: save_file(kept, path), suffix=".inside", inputs=inputs)


def _dtype(name: str) -> type[np.floating[Any]]:
    return np.float64 if name == "products" else np.float32
