"""How the breaking dose grows with the model's size, the source study's claims, and the worst attacker over a grid.

Written to `scaling.json`: one entry for each recipe that was run on models of two sizes or more, the first claim for
the others where its doses were measured, one entry for each model that was attacked by several recipes. All of it is by
the headline judge.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamperdose.files import digest, write_json
from tamperdose.records import Estimate
from tamperdose.run.observed import Observation, grouped, pairs_over_seeds, readable, recipe_names, refused
from tamperdose.run.response import ArmFit, Gates, gate_of
from tamperdose.stats.claims import (
    ALPHA,
    COLLAPSE_STEPS,
    LEVEL,
    Answer,
    Claim,
    Retention,
    claim_collapse,
    claim_compute,
    claim_start_and_fall,
    family_level,
)
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.gate import Verdict
from tamperdose.stats.paired import refusal_retention
from tamperdose.stats.rates import rate
from tamperdose.stats.recipes import attack_share, compare_recipes
from tamperdose.stats.scaling import DoseUnit, rate_slope, scaling, to_dict
from tamperdose.stats.selection import worst_case
from tamperdose.stats.sizes import SizePoint

SCALING_JSON = "scaling.json"
"""Scaling fits, claims and worst cases of a run; no file where there is nothing to compare."""
UNITS = (DoseUnit.STEPS, DoseUnit.TOKENS, DoseUnit.FLOPS)
"""What ED50 is counted in when it is set against size."""
FARTHER = 10.0
"""ED50 is predicted for a size so many times the largest of a recipe: what the line says of models not run."""

Floats = NDArray[np.float64]


def write_scaling(
    folder: Path,
    fits: Sequence[ArmFit],
    *,
    level: float,
    pretraining_tokens: Mapping[str, float] | None = None,
    trained_to_refuse: Collection[str] = (),
    gates: Gates | None = None,
) -> None:
    """Write `scaling.json`; a file of an earlier run that had more models is removed.

    Args:
        folder: The run's folder.
        fits: The arms' fits by the headline judge.
        level: Confidence level; that of the claims is theirs (`stats.claims.LEVEL`).
        pretraining_tokens: Tokens that a model was trained on, by its name, where known.
        trained_to_refuse: Names of models that were trained to a given refusal rate, such as organisms.
        gates: The gate at each dose of an arm, by arm and judge.
    """
    gates = gates or {}
    by_recipe = _by_recipe(fits)
    several = [arms for arms in by_recipe if len(_sizes(arms)) > 1]
    recipes = [_recipe(arms, gates, level=level, trained_to_refuse=trained_to_refuse) for arms in several]
    one_size = [entry for arms in by_recipe if len(_sizes(arms)) < 2 and (entry := _one_size(arms, gates))]
    rates = [entry for arms in _by_rate(fits) if (entry := _rates(arms, level=level))]
    worst = [entry for arms in _by_model(fits) if (entry := _worst(arms, level=level))]
    shares = _shares(fits, pretraining_tokens or {})
    path = folder / SCALING_JSON
    if recipes or one_size or worst or shares:
        told = {"level": level, "recipes": recipes, "one_size": one_size, "learning_rates": rates}
        told |= {"worst_case": worst, "cost": shares}
        write_json(path, told)
    else:
        path.unlink(missing_ok=True)


def size_points(arms: Sequence[ArmFit], unit: DoseUnit) -> list[SizePoint]:
    """ED50 of arms in a unit, with the size of each arm's model; arms of unknown size or unit are left out."""
    found: list[SizePoint] = []
    for arm in arms:
        n_parameters, dose = _n_parameters(arm.first), arm.in_unit(arm.fit.ed50, unit)
        if n_parameters is not None and dose is not None:
            found.append(_point(arm.first, n_parameters, dose))
    return found


def _point(seen: Observation, n_parameters: float, dose: EffectiveDose) -> SizePoint:
    low, high = dose.low, dose.high
    bracket = dose.bracket
    if bracket is not None and dose.censored == "right":
        low, high = bracket[0], None
    elif bracket is not None and dose.censored == "left":
        low, high = None, bracket[1]
    closed = None if bracket is None or bracket[1] is None or bracket[0] == 0 else (bracket[0], bracket[1])
    return SizePoint(
        model=f"{seen.setting['model']}",
        n_parameters=n_parameters,
        value=dose.value,
        # An end that lies at 0, or is open, tells no standard error.
        low=low if low is None or low > 0 else None,
        high=high,
        censored=dose.censored,
        seed=None if seen.setting.get("seed") is None else int(str(seen.setting["seed"])),
        bracket=None if dose.censored else closed,
        level=dose.level,
    )


def _n_parameters(seen: Observation) -> float | None:
    billions = seen.setting.get("params_b")
    return None if billions is None else float(str(billions)) * 1e9


def _sizes(arms: Sequence[ArmFit]) -> set[float]:
    return {size for arm in arms if (size := _n_parameters(arm.first)) is not None}


def _by(fits: Sequence[ArmFit], names: Sequence[str]) -> list[list[ArmFit]]:
    by_first = {id(fit.first): fit for fit in fits}
    return [[by_first[id(seen)] for seen in group] for group in grouped([fit.first for fit in fits], names)]


def _by_recipe(fits: Sequence[ArmFit]) -> list[list[ArmFit]]:
    """Arms of one recipe on any model, any seed."""
    names = recipe_names([fit.first for fit in fits])
    return _by(fits, [name for name in names if name not in ("model", "params_b")])


def _by_rate(fits: Sequence[ArmFit]) -> list[list[ArmFit]]:
    """Arms that differ in model, seed and learning rate alone."""
    names = recipe_names([fit.first for fit in fits])
    return _by(fits, [name for name in names if name not in ("model", "params_b", "learning_rate")])


def _by_model(fits: Sequence[ArmFit]) -> list[list[ArmFit]]:
    # A step of one kind of attack is not a step of another.
    return _by(fits, ["study", "model", "defence", "attack"])


def _settings(arms: Sequence[ArmFit]) -> dict[str, Any]:
    names = recipe_names([arm.first for arm in arms])
    return {name: arms[0].first.setting.get(name) for name in names if name not in ("model", "params_b")}


def _recipe(
    arms: Sequence[ArmFit], gates: Gates, *, level: float, trained_to_refuse: Collection[str]
) -> dict[str, Any]:
    points = {unit: size_points(arms, unit) for unit in UNITS}
    claims = _claims(arms, points[DoseUnit.STEPS], trained_to_refuse, gates)
    said = [gate.value for arm in arms if (gate := gate_of(arm, gates)) is not None]
    return {
        "recipe": _settings(arms),
        "judge": arms[0].judge,
        "points": {unit.value: [to_dict(point) for point in found] for unit, found in points.items()},
        "scaling": {
            unit.value: to_dict(scaling(found, unit, at=_farther(found), level=level))
            for unit, found in points.items()
            if found
        },
        "claims": [to_dict(claim) for claim in claims],
        "gates": dict(sorted(Counter(said).items())),
        "pooled": to_dict(_pooled(arms, level=level)),
    }


def _farther(points: Sequence[SizePoint]) -> tuple[float, ...]:
    """The size that is predicted; none without sizes."""
    return tuple([FARTHER * max(point.n_parameters for point in points)] if points else [])


def _one_size(arms: Sequence[ArmFit], gates: Gates) -> dict[str, Any] | None:
    """The first claim for a recipe without sizes to compare; None where none of the claim's doses was measured."""
    if not any(seen.steps in COLLAPSE_STEPS for arm in arms for seen in arm.observations):
        return None
    return {"recipe": _settings(arms), "judge": arms[0].judge, "claims": [to_dict(_collapse(arms, gates))]}


def _claims(
    arms: Sequence[ArmFit], points: Sequence[SizePoint], trained_to_refuse: Collection[str], gates: Gates
) -> list[Claim]:
    fall = scaling(points, DoseUnit.STEPS, level=1 - 2 * ALPHA).decisive
    start, _ = rate_slope(_start_points(arms, level=LEVEL), level=LEVEL)
    fixed = any(
        arm.first.setting.get("defence") not in (None, "none") or arm.first.setting["model"] in trained_to_refuse
        for arm in arms
    )
    return [
        _collapse(arms, gates),
        claim_start_and_fall(start, fall, start_is_fixed=fixed),
        claim_compute(_pooled(arms, level=LEVEL)),
    ]


def _collapse(arms: Sequence[ArmFit], gates: Gates) -> Claim:
    """The first claim. Refusals that are gone because the model is broken do not support it."""
    names = [str(arm.first.setting["arm"]) for arm in arms]
    claim = claim_collapse(_retention(arms, level=LEVEL), arms=names, level=LEVEL)
    broken = [
        f"{arm.first.setting['arm']} at {steps} steps"
        for arm in arms
        for steps, gate in gates.get((str(arm.first.setting["arm"]), arm.judge), {}).items()
        if steps in COLLAPSE_STEPS and gate.verdict in (Verdict.BROKEN, Verdict.NOT_REMOVED)
    ]
    if claim.answer is Answer.SUPPORTED and broken:
        reason = f"the gate does not hold (model broken, or a control loses as much): {', '.join(broken[:3])}"
        return replace(claim, answer=Answer.UNDECIDED, reason=reason)
    return claim


def _start_points(arms: Sequence[ArmFit], *, level: float) -> list[SizePoint]:
    """RRR at dose 0 of each model, once, whatever the number of its arms."""
    found: dict[str, SizePoint] = {}
    for arm in arms:
        n_parameters, seen = _n_parameters(arm.first), arm.first
        if n_parameters is not None:
            name = str(seen.setting["model"])
            read = readable(seen.labels[arm.judge])
            names = [template for template, keep in zip(seen.templates, read, strict=True) if keep]
            start = rate(refused(seen.labels[arm.judge])[read], names, level=level, n_samples=seen.n_samples)
            found[name] = SizePoint(name, n_parameters, start.value, start.low, start.high, level=level)
    return list(found.values())


def _retention(arms: Sequence[ArmFit], *, level: float) -> list[Retention]:
    cells = [(arm, seen) for arm in arms for seen in arm.observations if seen.steps in COLLAPSE_STEPS]
    strict = family_level(max(1, len(cells)), level)

    def kept(arm: ArmFit, seen: Observation, at: float) -> Estimate:
        return refusal_retention(pairs_over_seeds([seen], arm.judge), level=at)

    return [
        Retention(
            arm=str(seen.setting["arm"]),
            dose=seen.steps,
            low=(found := kept(arm, seen, level)).low,
            high=found.high,
            value=found.value,
            family_low=kept(arm, seen, strict).low,
        )
        for arm, seen in cells
    ]


def _pooled(arms: Sequence[ArmFit], *, level: float) -> Any:
    from tamperdose.stats.pooled import pooled_effects

    columns: tuple[list[float], list[float], list[float], list[str]] = ([], [], [], [])
    for arm in arms:
        n_parameters = _n_parameters(arm.first)
        for seen in arm.observations:
            tokens = seen.setting.get("dose_tokens")
            if n_parameters is None or not tokens:
                continue
            read = readable(seen.labels[arm.judge])
            columns[0].extend(refused(seen.labels[arm.judge])[read].astype(float))
            columns[1].extend([n_parameters] * int(read.sum()))
            columns[2].extend([float(str(tokens))] * int(read.sum()))
            columns[3].extend(name for name, keep in zip(seen.templates, read, strict=True) if keep)
    return pooled_effects(columns[0], columns[1], columns[2], templates=columns[3], level=level)


def _rates(arms: Sequence[ArmFit], *, level: float) -> dict[str, Any] | None:
    """One learning rate for every size, the first that the study lists, beside each size's best.

    None with one learning rate or one size.
    """
    by_rate: dict[float, list[ArmFit]] = {}
    for arm in arms:
        by_rate.setdefault(float(str(arm.first.setting.get("learning_rate") or 0)), []).append(arm)
    if len(by_rate) < 2 or len(_sizes(arms)) < 2:
        return None
    points = {learning_rate: size_points(group, DoseUnit.STEPS) for learning_rate, group in by_rate.items()}
    every = [point for group in points.values() for point in group]
    found = compare_recipes(points, next(iter(points)), DoseUnit.STEPS, at=_farther(every), level=level)
    return {"recipe": _settings(arms) | {"learning_rate": sorted(points)}, "comparison": to_dict(found)}


def _worst(arms: Sequence[ArmFit], *, level: float) -> dict[str, Any] | None:
    """The worst attacker on one model, at each dose that all its arms have; None with one recipe."""
    candidates = _by(arms, recipe_names([arm.first for arm in arms]))
    n_seeds = min(len(candidate) for candidate in candidates)
    if len(candidates) < 2:
        return None
    doses = set.intersection(*({seen.steps for seen in arm.observations} for arm in arms)) - {0}
    return {
        "model": arms[0].first.setting.get("model"),
        "defence": arms[0].first.setting.get("defence"),
        "judge": arms[0].judge,
        "candidates": [_settings(candidate) for candidate in candidates],
        "doses": [
            {"steps": steps} | _worst_at([candidate[:n_seeds] for candidate in candidates], steps, level=level)
            for steps in sorted(doses)
        ],
    }


def _worst_at(candidates: Sequence[Sequence[ArmFit]], steps: int, *, level: float) -> dict[str, Any]:
    outcomes = np.stack([np.stack([_column(arm, steps) for arm in arms], axis=1) for arms in candidates], axis=1)
    templates = candidates[0][0].first.templates
    # Seeded by the data, as every interval that is drawn.
    rng = np.random.default_rng(int(digest([np.nan_to_num(outcomes, nan=-1).tolist(), list(templates), steps]), 16))
    return to_dict(worst_case(outcomes, templates, rng=rng, level=level))


def _column(arm: ArmFit, steps: int) -> Floats:
    labels = next(seen.labels[arm.judge] for seen in arm.observations if seen.steps == steps)
    return np.where(readable(labels), refused(labels).astype(np.float64), np.nan)


def _shares(fits: Sequence[ArmFit], pretraining_tokens: Mapping[str, float]) -> list[dict[str, Any]]:
    """ED50 as a share of what the model's pretraining cost, where its tokens are known."""
    found: list[dict[str, Any]] = []
    for arm in fits:
        model, n_parameters = str(arm.first.setting["model"]), _n_parameters(arm.first)
        dose = arm.in_unit(arm.fit.ed50, DoseUnit.FLOPS)
        tokens = pretraining_tokens.get(model)
        if n_parameters is None or dose is None or tokens is None:
            continue
        ends = {"value": dose.value, "low": dose.low, "high": dose.high}
        shares = {name: None if end is None else attack_share(end, n_parameters, tokens) for name, end in ends.items()}
        found.append({"arm": arm.first.setting["arm"], "model": model, "censored": dose.censored} | shares)
    return found
