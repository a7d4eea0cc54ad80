"""What a run's `scaling.json` says, in lines for a terminal: slopes over sizes, claims, and the worst attacker."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tamperdose.report.marginals import factor_name, show_level
from tamperdose.report.text import printable

_Told = Mapping[str, Any]


def scaling_lines(told: _Told) -> list[str]:
    """The scaling of ED50 with size, the claims, learning rates, costs and the worst attacker, about a line each."""
    recipes = told.get("recipes", [])
    lines: list[str] = []
    for name, recipe in zip(different_settings([each["recipe"] for each in recipes]), recipes, strict=True):
        lines += [f"{name}: {line}" if name else line for line in _recipe_lines(recipe)]
    single = told.get("one_size", [])
    for name, recipe in zip(different_settings([each["recipe"] for each in single]), single, strict=True):
        lines += [f"{name}: {line}" if name else line for line in _claim_lines(recipe)]
    for entry in told.get("learning_rates", []):
        lines += _rate_lines(entry)
    lines += _share_lines(told.get("cost", []))
    worst = told.get("worst_case", [])
    names = different_settings([{"defence": entry["defence"]} for entry in worst])
    lines += [_worst_text(entry, _defence_text(entry, name)) for name, entry in zip(names, worst, strict=True)]
    return [printable(line) for line in lines]


def different_settings(settings: Sequence[_Told]) -> list[str]:
    """Name each of several settings by what it does not share with the others; empty where they are alike.

    >>> different_settings([{"learning_rate": 1e-3, "defence": "none"}, {"learning_rate": 2e-3, "defence": "none"}])
    ['learning rate 0.001', 'learning rate 0.002']
    """
    keys = dict.fromkeys(key for each in settings for key in each)
    varied = [key for key in keys if len({_shown(each.get(key)) for each in settings}) > 1]
    return [", ".join(f"{factor_name(key)} {_shown(each.get(key))}" for key in varied) for each in settings]


def n_censored(found: _Told) -> int:
    """How many sizes the meta-regression leaves out because an arm of theirs is censored."""
    return max(0, found["censored"]["n_sizes"] - found["meta"]["n_sizes"])


def line_fit(found: _Told) -> _Told:
    """The fit that speaks for all sizes: the censored one where the meta-regression leaves a size out."""
    return found["censored"] if n_censored(found) and found["censored"]["slope"]["value"] is not None else found["meta"]


def slope_text(fit: _Told) -> str:
    """A slope with its interval, or why there is none: "slope 0.10 [-0.02, 0.22]"."""
    slope = fit["slope"]
    if slope["value"] is None:
        return str(fit["reason"]) or "no slope"
    if slope["low"] is None and slope["high"] is None:
        return f"slope {slope['value']:.2f}"
    low, high = ("open" if slope[end] is None else f"{slope[end]:.2f}" for end in ("low", "high"))
    return f"slope {slope['value']:.2f} [{low}, {high}]"


def _recipe_lines(recipe: _Told) -> Iterator[str]:
    units = {unit: found for unit, found in recipe["scaling"].items() if found["censored"]["n_sizes"] > 1}
    gates = recipe.get("gates", {})
    if gates and set(gates) != {"passed"}:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in gates.items())
        yield f"gate at the ED50 behind the lines below: {counts}"
    for unit, found in units.items():
        n_out = n_censored(found)
        out = f"; {n_out} size{'' if n_out == 1 else 's'} left out of the line: censored" if n_out else ""
        yield f"ED50 in {unit} by size: {_line_text(found['meta'])}{out}"
        if n_out:
            yield f"ED50 in {unit} by size, censored arms by their bounds: {_line_text(found['censored'])}"
    yield from _prediction_lines(units)
    if "steps" in units:
        yield from _left_out_lines(units["steps"])
    yield from _claim_lines(recipe)


def _claim_lines(recipe: _Told) -> Iterator[str]:
    for claim in recipe["claims"]:
        yield f"claim {claim['number']}: {claim['answer']}: {claim['reason']}"


def _line_text(fit: _Told) -> str:
    if fit["slope"]["value"] is None:
        return slope_text(fit)
    cautions = f" ({'; '.join(fit['cautions'])})" if fit["cautions"] else ""
    null = f"; {fit['slope']['null']:g} if size does not matter"
    return f"{slope_text(fit)} decades per decade over {fit['n_sizes']} sizes{null}{cautions}"


def _prediction_lines(units: Mapping[str, _Told]) -> Iterator[str]:
    """Sizes that were not run, each with the prediction in every unit."""
    said: dict[float, list[str]] = {}
    for unit, found in units.items():
        for at in line_fit(found)["predictions"]:
            said.setdefault(at["n_parameters"], []).append(f"{at['value']:.3g} {unit}{_predicted(at)}")
    for size, parts in said.items():
        yield f"ED50 predicted for a model of {size:.3g} parameters, which was not run: {'; '.join(parts)}"


def _predicted(at: _Told) -> str:
    low, high = at["predict_low"], at["predict_high"]
    if low is None and high is None:
        return " (no interval)"
    return f" [{'0' if low is None else f'{low:.3g}'}, {'open' if high is None else f'{high:.3g}'}]"


def _left_out_lines(found: _Told) -> Iterator[str]:
    judged = [size for size in found["leave_one_out"] if size["inside"] is not None]
    if not judged:
        return
    outside = [f"{size['n_parameters']:.3g}" for size in judged if not size["inside"]]
    level = f"{100 * found['meta']['slope']['level']:g} %"
    named = f"; outside: {', '.join(outside)} parameters" if outside else ""
    n_inside = len(judged) - len(outside)
    yield f"each size predicted from the others: {n_inside} of {len(judged)} inside the {level} interval{named}"


def _rate_lines(entry: _Told) -> Iterator[str]:
    found, settings = entry["comparison"], entry["recipe"]
    rates = ", ".join(_shown(rate) for rate in settings["learning_rate"])
    best = found["note"] if found["best"] is None else f"{_brief(found['best'])} ({found['note']}{_edges(found)})"
    yield (
        f"ED50 in steps by size, learning rate {_shown(found['fixed_learning_rate'])} (the first listed) for every "
        f"size: {_brief(found['fixed'])}; the best of {rates} for each size: {best}"
    )


def _brief(found: _Told) -> str:
    """The slope that speaks for all sizes, and whether it took bounds for it."""
    n_out = n_censored(found)
    bounds = f", {n_out} of the sizes censored" if n_out else ""
    return f"{slope_text(line_fit(found))}{bounds}"


def _edges(found: _Told) -> str:
    at_edge = [f"{each['n_parameters']:.3g}" for each in found["chosen"] if each["at_edge"]]
    return f"; the best is the smallest or largest tried at {', '.join(at_edge)} parameters" if at_edge else ""


def _share_lines(shares: Sequence[_Told]) -> Iterator[str]:
    for model in dict.fromkeys(each["model"] for each in shares):
        mine = [each for each in shares if each["model"] == model]
        values = sorted(each["value"] for each in mine if each["value"] is not None)
        n_none = len(mine) - len(values)
        ends = "" if not values else f"{values[0]:.2g}" + (f" to {values[-1]:.2g}" if len(values) > 1 else "")
        none = f"{n_none} of {len(mine)} arms censored or undefined" if n_none else ""
        said = "; ".join(part for part in (ends, none) if part)
        yield f"{model}: operations up to ED50 as a share of those of pretraining: {said}"


def _defence_text(entry: _Told, name: str) -> str:
    """The defence where there is one, or where it tells two entries apart."""
    shown = _shown(entry["defence"])
    return f", defence {shown}" if name or shown != "none" else ""


def _worst_text(entry: _Told, defence: str) -> str:
    doses = "; ".join(_worst_at(dose) for dose in entry["doses"]) or "none, since they have no dose in common"
    return (
        f"{entry['model']}{defence}: worst of {len(entry['candidates'])} attacks, chosen and reported on different "
        f"prompts (on the same ones): RRR {doses}"
    )


def _worst_at(dose: _Told) -> str:
    found = dose["estimate"]
    if found["value"] is None:
        return f"none at {dose['steps']} steps, {dose['reason']}"
    ends = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['value']:.3f}{ends} ({dose['naive']['value']:.3f}) at {dose['steps']} steps"


def _shown(value: object) -> str:
    return "none" if value is None else show_level(str(value))
