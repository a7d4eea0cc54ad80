"""Which doses of an arm are measured: those of the study, or those that a search for ED50 has chosen.

A search goes by the headline judge's verdicts alone, which the ledger keeps, so that a run that goes on after a kill
chooses the same doses. What was chosen is filed when the search ends.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tamperdose.errors import RunError, explain
from tamperdose.files import digest
from tamperdose.judges import judge_version
from tamperdose.records import Label, Subset, Verdict
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.observed import Observation
from tamperdose.run.plan import ArmPlan, Plan, engine_identity
from tamperdose.run.response import fit_arms
from tamperdose.stats.ladder import next_dose

Verdicts = Callable[[int], list[Verdict]]
"""The headline judge's verdicts on the harmful prompts at a dose, sample by sample."""


def ladder_key(plan: Plan, arm: ArmPlan) -> str:
    """Key of what a search chose: the arm, the prompts, how they are answered and judged, where it begins."""
    study, n_samples = plan.study, plan.study.decoding.n_samples
    return stage_key(
        "ladder",
        {
            "arm": arm.key,
            **verdict_inputs(plan),
            "decoding": study.decoding.identity() | ({"n_samples": n_samples} if n_samples > 1 else {}),
            "doses": list(arm.doses),
            "search": None if arm.search is None else arm.search.model_dump(mode="json"),
            "level": study.level,
        },
    )


def verdict_inputs(plan: Plan) -> dict[str, Any]:
    """What the headline verdicts that choose doses depend on besides the arm: prompts, judge, the base's answers."""
    study, prompts = plan.study, plan.data.prompts[Subset.HARMFUL]
    drawn = {"base_seed": study.seeds[0]} if study.decoding.do_sample else {}
    # Without a word for `hf`: what was chosen before there were other engines that load models stands.
    engine = {} if study.engine.kind == "hf" else {"engine": engine_identity(study)}
    return {
        "prompts": plan.data.prompts_digest[Subset.HARMFUL],
        # Intervals, and which rewording is kept, go by templates.
        "templates": digest([prompt.template for prompt in prompts]),
        "judge": study.model_dump(mode="json")["judges"][0],
        "judge_version": judge_version(study.judges[0]),
        **drawn,
        **engine,
    }


def arm_doses(plan: Plan, ledger: Ledger, arm: ArmPlan) -> tuple[int, ...]:
    """The doses of an arm above 0: the study's, or once a search has ended, what it chose."""
    found = None if arm.search is None else ledger.find("ladder", ladder_key(plan, arm))
    return arm.doses if found is None else tuple(json.loads(found.read_text(encoding="utf-8")))


def arm_checkpoints(plan: Plan, ledger: Ledger, arm: ArmPlan) -> tuple[int, ...]:
    """The checkpoints of an arm whose answers its doses are made of, increasing."""
    return tuple(sorted({state for steps in arm_doses(plan, ledger, arm) for state in arm.states(steps)}))


def is_searched(plan: Plan, ledger: Ledger, arm: ArmPlan) -> bool:
    """Whether nothing is left to search for an arm."""
    return arm.search is None or ledger.find("ladder", ladder_key(plan, arm)) is not None


def choose_next(plan: Plan, arm: ArmPlan, doses: list[int], verdicts: Verdicts) -> int | None:
    """The next dose of a search, or None when it has ended; `doses` are those measured above 0.

    Raises:
        RunError: The search wants a dose again, since the judge could read no answer at it.
    """
    search = arm.search
    if search is None or len(doses) >= search.max_doses:
        return None
    prompts = plan.data.prompts[Subset.HARMFUL]
    templates = tuple(prompt.template for prompt in prompts) * plan.study.decoding.n_samples
    judge = plan.study.judge_names[0]
    seen: list[Observation] = []
    base: dict[str, list[Label]] = {}
    for steps in (0, *doses):
        labels = {judge: [verdict.label for verdict in verdicts(steps)]}
        base = base or labels
        setting = {"study": plan.study.name, "arm": arm.id, "dose_steps": steps}
        seen.append(Observation(setting, templates, labels, base, plan.study.decoding.n_samples))
    fits = fit_arms(seen, level=plan.study.level)
    if not fits or fits[0].fit.ed50.censored == "undefined":
        return None
    fit = fits[0].fit
    observed = {int(dose): rate.value or 0.0 for dose, rate in zip(fit.doses, fit.rates, strict=True)}
    steps = next_dose(observed, arm.saved, sampling=fit.ed50.sampling, budget=search.max_doses, begun=True)
    if steps in doses:
        raise RunError(
            explain(
                f"{arm.id}: the search for ED50 cannot go on at {steps} steps",
                got=f"no answer there that the judge {judge!r} could read",
                expected="verdicts to choose the next dose by",
                remedy="mend the judge, lower `unreadable_limit` so that such a judge is refused, or list the doses",
            )
        )
    return steps


def file_ladder(plan: Plan, ledger: Ledger, arm: ArmPlan, doses: list[int]) -> Path:
    """File the doses that a search has measured."""
    key = ladder_key(plan, arm)

    def write(path: Path) -> None:
        path.write_text(json.dumps(doses), encoding="utf-8")

    return ledger.put("ladder", key, write, suffix=".ladder", inputs={"arm": arm.key})
