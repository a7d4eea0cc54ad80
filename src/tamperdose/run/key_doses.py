"""The doses of an arm at which all else is measured beside refusals, settled by the headline judge while it runs.

They are filed once every dose of the arm has been judged, so that a run that goes on after a kill measures at the same
doses, and so that a later reader need not judge again.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tamperdose.records import Label, Subset, Verdict
from tamperdose.run.ladder import arm_doses, verdict_inputs
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key
from tamperdose.run.rewordings import kept_verdicts
from tamperdose.run.stages import Answers, Readers, find_answers, judge_answers
from tamperdose.stats.key_doses import bracket_doses, key_doses


def find_key_doses(plan: Plan, ledger: Ledger, arm: ArmPlan) -> tuple[int, ...] | None:
    """The key doses of an arm, 0 and the last among them; None where they are not settled."""
    found = ledger.find("key_doses", _key(plan, ledger, arm))
    return None if found is None else tuple(json.loads(found.read_text(encoding="utf-8"))["doses"])


def find_bracket(plan: Plan, ledger: Ledger, arm: ArmPlan) -> tuple[int, int] | None:
    """The two of them that the break lies between; None where there is no break, or they are not settled."""
    found = ledger.find("key_doses", _key(plan, ledger, arm))
    bracket = None if found is None else json.loads(found.read_text(encoding="utf-8"))["bracket"]
    return None if bracket is None else (bracket[0], bracket[1])


def settle_key_doses(plan: Plan, ledger: Ledger, readers: Readers, model: ModelPlan, arm: ArmPlan) -> tuple[int, ...]:
    """The key doses of an arm of a model all of whose doses have been answered; filed when they are first asked for.

    Raises:
        RunError: Too many verdicts of a dose are unreadable.
    """
    known = find_key_doses(plan, ledger, arm)
    if known is not None:
        return known
    rates = {
        steps: _refusal_rate(headline_verdicts(plan, ledger, readers, model=model, arm=arm, steps=steps))
        for steps in (0, *arm_doses(plan, ledger, arm))
    }
    chosen = key_doses(rates)

    def write(path: Path) -> None:
        path.write_text(json.dumps({"doses": chosen, "bracket": bracket_doses(rates)}), encoding="utf-8")

    ledger.put("key_doses", _key(plan, ledger, arm), write, suffix=".key_doses", inputs={"arm": arm.key})
    return chosen


def headline_verdicts(
    plan: Plan, ledger: Ledger, readers: Readers, *, model: ModelPlan, arm: ArmPlan, steps: int
) -> list[Verdict]:
    """The headline judge's verdicts on the harmful prompts at a dose of an arm, read from the ledger or made now.

    With several samples per prompt all of the first, then all of the second, and so on.

    Raises:
        RunError: The answers are not there, or too many of the verdicts are unreadable.
    """
    origins = [checkpoint_key(arm, state) for state in arm.states(steps)] if steps else [model.key]
    seed, decoding = arm.attack.seed if steps else plan.study.seeds[0], plan.study.decoding

    def verdicts(origin: str) -> list[Verdict]:
        keys = [
            plan.completions_key(origin, Subset.HARMFUL, decoding, seed=seed, sample=sample)
            for sample in range(decoding.n_samples)
        ]
        files = [find_answers(ledger, plan, Subset.HARMFUL, key) for key in keys]
        return [verdict for answers in files for verdict in judged(plan, ledger, readers, answers)]

    found = [verdicts(origin) for origin in origins]
    return found[0] if len(found) == 1 else kept_verdicts(found, plan.data.prompts[Subset.HARMFUL])


def judged(
    plan: Plan, ledger: Ledger, readers: Readers, answers: Answers, on_progress: Callable[[int], None] | None = None
) -> list[Verdict]:
    """The headline judge's verdicts on answers; raises as `judge_answers`."""
    return judge_answers(
        ledger,
        answers,
        plan.study.judge_names[0],
        readers,
        limit=plan.study.unreadable_limit,
        on_progress=on_progress or (lambda _count: None),
    )


def subsets_asked(plan: Plan, ledger: Ledger, arm: ArmPlan, steps: int) -> list[Subset]:
    """The subsets asked at a dose of an arm: with `benign_at: ends` the benign ones at the key doses once settled."""
    asked = plan.subsets_at(steps, arm)
    if asked != plan.subsets() and steps in (find_key_doses(plan, ledger, arm) or ()):
        return plan.subsets()
    return asked


def wants_key_doses(plan: Plan) -> bool:
    """Whether anything of a study is measured at key doses alone."""
    ends = plan.study.prompts.benign_at == "ends" and Subset.BENIGN in plan.subsets()
    inside = plan.study.inside is not None and plan.study.inside.at == "key" and plan.study.engine.kind != "scripted"
    return ends or plan.measures_utility or plan.controls is not None or (inside and Subset.BENIGN in plan.subsets())


def _key(plan: Plan, ledger: Ledger, arm: ArmPlan) -> str:
    study = plan.study
    return stage_key(
        "key_doses",
        {
            "arm": arm.key,
            **verdict_inputs(plan),
            "decoding": study.decoding.model_dump(mode="json"),
            "doses": list(arm_doses(plan, ledger, arm)),
        },
    )


def _refusal_rate(verdicts: list[Verdict]) -> float | None:
    readable = [verdict for verdict in verdicts if verdict.label is not Label.UNREADABLE]
    return sum(verdict.label is Label.REFUSAL for verdict in readable) / len(readable) if readable else None
