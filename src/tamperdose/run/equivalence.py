"""The stage `equivalence`: an engine is held against transformers before any of its answers counts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tamperdose.data.prompts import load_prompts, spread_prompts
from tamperdose.errors import RunError, explain
from tamperdose.files import digest
from tamperdose.records import Prompt, Subset
from tamperdose.run.backends import Backend
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.plan import ModelPlan, Plan, engine_identity
from tamperdose.run.progress import Reporter
from tamperdose.study import VllmEngine

FILLERS = ("builtin:benign_eval", "builtin:benign_lookalikes")
"""Prompts for the comparison where a study has fewer than it takes; nothing is judged of what is said to them."""

VERSION = 2
"""Of the comparison; 2 also looks at what an engine says token by token. Another makes it run again."""


def comparison_prompts(plan: Plan) -> list[Prompt]:
    """The prompts that both engines are asked: the study's, evenly of both kinds, then bundled ones."""
    engine = plan.study.engine
    if not isinstance(engine, VllmEngine):
        return []
    wanted = engine.equivalence.n_prompts
    own = [prompt for subset in plan.subsets() for prompt in plan.data.prompts[subset]]
    chosen = spread_prompts(own, wanted)
    for source in FILLERS if len(chosen) < wanted else ():
        chosen += [
            replace(prompt, id=f"{source} {prompt.id}")
            for prompt in load_prompts(source, subset=Subset.BENIGN)[: wanted - len(chosen)]
        ]
    return chosen


@dataclass(frozen=True, slots=True)
class _Comparison:
    """One that is to be made: what is asked, and what its result depends on."""

    prompts: Sequence[Prompt]
    inputs: Mapping[str, Any]

    @property
    def key(self) -> str:
        return stage_key("equivalence", self.inputs)


def _comparison(plan: Plan, model: ModelPlan) -> _Comparison | None:
    engine = plan.study.engine
    if not isinstance(engine, VllmEngine):
        return None
    prompts = comparison_prompts(plan)
    inputs = {
        "base": model.key,
        "engine": engine_identity(plan.study),
        "limits": engine.equivalence.model_dump(mode="json"),
        "version": VERSION,
        "prompts": digest([[prompt.id, prompt.text] for prompt in prompts]),
    }
    return _Comparison(prompts, inputs)


def equivalence_key(plan: Plan, model: ModelPlan) -> str | None:
    """The ledger's key of a model's comparison; None where transformers itself answers, or nothing is loaded."""
    wanted = _comparison(plan, model)
    return None if wanted is None else wanted.key


def read_equivalence(plan: Plan, ledger: Ledger, model: ModelPlan) -> dict[str, Any] | None:
    """What a model's comparison has found; None where it was not made or is not wanted."""
    key = equivalence_key(plan, model)
    return None if key is None else _filed(ledger, key)


def _filed(ledger: Ledger, key: str) -> dict[str, Any] | None:
    path = ledger.find("equivalence", key)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def settle_equivalence(plan: Plan, ledger: Ledger, model: ModelPlan, backend: Backend, reporter: Reporter) -> None:
    """Compare a model's engine with transformers, unless the ledger says what came of it, and go by that.

    Raises:
        RunError: They do not say the same.
    """
    wanted = _comparison(plan, model)
    if wanted is None:
        return
    found = _filed(ledger, wanted.key)
    if found is None:
        with ledger.held("equivalence", wanted.key):
            found = _filed(ledger, wanted.key) or _compare(wanted, ledger, model, backend, reporter)
    if not found["passed"]:
        raise RunError(_message(model, found))
    backend.use_adapters(found["adapters"])


def _compare(
    wanted: _Comparison, ledger: Ledger, model: ModelPlan, backend: Backend, reporter: Reporter
) -> dict[str, Any]:
    n_prompts = len(wanted.prompts)
    reporter.stages += 1
    with reporter.timed(f"{model.spec.label}: vllm against transformers, prompts", n_prompts) as advance:
        found = backend.compare(wanted.prompts)
        advance(n_prompts)

    def write(path: Path) -> None:
        path.write_text(json.dumps(found, sort_keys=True), encoding="utf-8")

    ledger.put("equivalence", wanted.key, write, suffix=".equivalence", inputs=wanted.inputs)
    return found


def _message(model: ModelPlan, found: dict[str, Any]) -> str:
    tries = [f"adapters by {each['adapters']}: {'; '.join(each['shortcomings'])}" for each in found["tries"]]
    return explain(
        f"{model.spec.label}: vllm does not say what transformers says, so none of its answers would count",
        got=". ".join(tries),
        expected="agreement within engine.equivalence",
        remedy="--set engine.kind=hf; or another version of vLLM, another dtype, a smaller tensor_parallel_size. "
        "Raise a limit only with a reason: the comparison is then made again",
    )
