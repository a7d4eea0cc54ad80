"""Plans, checks and status as text for a terminal."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from tamperdose.report.text import printable
from tamperdose.run.starter import Started


def print_plan(described: Mapping[str, Any]) -> None:
    """Print arms and doses, then what each model will cost."""
    console = _console()
    prompts = ", ".join(f"{count} {subset}" for subset, count in described["prompts"].items())
    console.print(f"study {described['study']}: {prompts} prompts", markup=False)
    arms = Table("arm", "doses, optimizer steps", "done", box=None, pad_edge=False)
    for arm in described["arms"]:
        done = f"{len(arm['doses_done'])} of {len(arm['doses'])}"
        arms.add_row(printable(arm["arm"]), " ".join(map(str, arm["doses"])), done)
    console.print(arms)
    columns = (
        "model",
        "parameters",
        "training FLOPs",
        "generation FLOPs",
        "probing FLOPs",
        "memory",
        "disk",
        "time left here",
        "USD",
    )
    costs = Table(*columns, box=None, pad_edge=False)
    for cost in described["costs"]:
        costs.add_row(
            printable(cost["model"]),
            _scaled(cost["params_b"], "{:.3g} B"),
            _scaled(cost["training_flops"], "{:.2g}"),
            _scaled(cost["generation_flops"], "{:.2g}"),
            _scaled(cost["probing_flops"], "{:.2g}"),
            _bytes(cost["memory_bytes"]),
            _bytes(cost["disk_bytes"]),
            "-" if cost["seconds"] is None else _duration(cost["seconds"]),
            _scaled(cost["usd"], "{:.2g}"),
        )
    console.print(costs)
    for cost in described["costs"]:
        if cost["base_training_s"] is not None:
            about = _duration(cost["base_training_s"])
            console.print(printable(f"{cost['model']} is not in the cache: it will be trained first, about {about}"))
    for line in (
        saving_line(described["saving"]),
        search_line(described["search"]),
        control_line(described["controls"]),
        defences_line(described["defences"]),
        cluster_line(described.get("cluster")),
    ):
        if line:
            console.print(line, markup=False, soft_wrap=True)
    for line in described["short_of"]:
        console.print(printable(f"not enough room: {line}"), markup=False, soft_wrap=True)
    console.print(detectable_line(described["detectable"]), markup=False, soft_wrap=True)
    console.print("Estimates: from text lengths and the device's measured matrix-product rate; '-' is not known.")


def print_cards(lines: Sequence[Mapping[str, Any]]) -> None:
    """Print what arms take on cards that are not here; arms of a model that take the same share a line."""
    table = Table("model", "arms", "card", "memory", "fits", "hours an arm", "USD an arm", box=None, pad_edge=False)
    alike: dict[tuple[Any, ...], int] = {}
    for line in lines:
        seen = (line["model"], line["card"], _bytes(line["memory_bytes"]), line["fits"], line["remedy"])
        seen = (*seen, f"{line['seconds'] / 3600:.2g}", f"{line['usd']:.2g}")
        alike[seen] = alike.get(seen, 0) + 1
    for (model, card, memory, fits, remedy, hours, usd), count in alike.items():
        said = "yes" if fits else "no setting here" if remedy == "none" else f"with {remedy}"
        table.add_row(printable(model), str(count), card, memory, said, hours, usd)
    console = _console()
    console.print(table)
    console.print(
        "On these cards: training, answers and controls, by one card each or as many as a model is split over, from "
        "data sheets and the speeds of Qwen2-7B on an H200; not tried on others. Prices assumed unless the study "
        "states price_per_device_hour.",
        soft_wrap=True,
    )


def saving_line(saving: Mapping[str, float] | None) -> str:
    """Say what nested doses and shared bases save; empty where there is nothing to say.

    >>> saving_line({"planned_flops": 3.1e15, "from_scratch_flops": 9.8e15, "share": 3.1 / 9.8})
    'shared bases and nested doses: 3.1e15 of 9.8e15 FLOPs (32 %)'
    """
    if saving is None:
        return ""
    planned, scratch = (_flops(saving[name]) for name in ("planned_flops", "from_scratch_flops"))
    return f"shared bases and nested doses: {planned} of {scratch} FLOPs ({100 * saving['share']:.0f} %)"


def search_line(search: Mapping[str, Any] | None) -> str:
    """Say how many doses searches may add, and that the estimates leave them out; empty without a search.

    >>> search_line({"further_doses": 0, "further_doses_per_arm": 0, "n_arms": 0, "further_flops": 0.0})
    'search for ED50: ended in every arm; the doses it chose are in the estimates'
    """
    if search is None:
        return ""
    if not search["further_doses"]:
        return "search for ED50: ended in every arm; the doses it chose are in the estimates"
    arms = f"{search['n_arms']} arm{'' if search['n_arms'] == 1 else 's'}"
    flops = search["further_flops"]
    answers = "" if flops is None else f": answers of at most {_flops(flops)} FLOPs"
    return (
        f"search for ED50: at most {search['further_doses_per_arm']} further doses in an arm, "
        f"{search['further_doses']} in {arms}, not in the estimates{answers}; no further training"
    )


def control_line(controls: Mapping[str, Any] | None) -> str:
    """Say what the attacks will be compared with; empty where they are not.

    >>> control_line({"n_states": 13, "n_prompts": 60, "random_draws": 5, "benign": "builtin:benign_train"})
    'controls: at most 13 model states x 60 prompts (none; random x 5; benign), in the estimates'
    """
    if controls is None:
        return ""
    kinds = ["none"]
    kinds += [f"random x {controls['random_draws']}"] if controls["random_draws"] else []
    kinds += ["benign"] if controls["benign"] else []
    states = f"{controls['n_states']} model states x {controls['n_prompts']} prompts"
    told = f"controls: at most {states} ({'; '.join(kinds)}), in the estimates"
    reasons = controls.get("gate_out_of_reach", ())
    return told + (f"\nthe gate cannot be passed: {'; '.join(reasons)}" if reasons else "")


def defences_line(defences: Mapping[str, Any] | None) -> str:
    """Say which defences are compared, and over how many attacks each; empty where none are.

    >>> told = {"models": {"m": ["none", "tuned"]}, "seeds": [1, 2, 3], "data_orders": [1, 2], "by_default": True}
    >>> defences_line(told)
    'defences of m: none, tuned; each under seeds 1, 2, 3 x data orders 1, 2 (the default of a comparison)'
    """
    if defences is None:
        return ""
    models = "; ".join(f"defences of {name}: {', '.join(each)}" for name, each in defences["models"].items())
    seeds, orders = (", ".join(map(str, defences[name])) for name in ("seeds", "data_orders"))
    over = f"seeds {seeds}" + (f" x data orders {orders}" if orders else "")
    default = " (the default of a comparison)" if defences["by_default"] else ""
    return printable(f"{models}; each under {over}{default}")


def cluster_line(cluster: Mapping[str, Any] | None) -> str:
    """Say in how many units a cluster would do it, and what a worker takes; empty where it cannot.

    >>> cluster_line({"units": {"base": 1, "arm": 6, "read": 7}, "worker": {"cpus": 2, "gpus": 0.5, "memory_bytes": 0}})
    'with --executor ray: 1 base, 6 arm, 7 read units; a worker takes 2 CPU, 0.5 GPU'
    """
    if cluster is None:
        return ""
    units = ", ".join(f"{count} {part}" for part, count in cluster["units"].items())
    worker = cluster["worker"]
    takes = [f"{worker['cpus']} CPU"]
    takes += [f"{worker['gpus']:g} GPU"] if worker["gpus"] else []
    takes += [f"{_bytes(worker['memory_bytes'])} of memory"] if worker["memory_bytes"] else []
    return f"with --executor ray: {units} units; a worker takes {', '.join(takes)}"


def detectable_line(found: Mapping[str, Any]) -> str:
    """Say in one line what fall of RRR the harmful prompts can show.

    >>> common = {"n_tests": 8, "n": 100, "n_templates": 10, "icc": 0.3, "power": 0.8, "level": 0.95}
    >>> detectable_line({"fall": None, "reason": "too few templates", "fall_at_icc_0": None, **common})
    'smallest fall of RRR this set can show: none (100 prompts in 10 templates: too few templates)'
    """
    head, of = "smallest fall of RRR this set can show:", f"{found['n']} prompts in {found['n_templates']} templates"
    if found["fall"] is None:
        return f"{head} none ({of}: {found['reason']})"
    least = "" if found["fall_at_icc_0"] is None else f"; {found['fall_at_icc_0']:.2f} at ICC 0"
    return (
        f"{head} {found['fall']:.2f} (power {found['power']:.0%}, {1 - found['level']:.0%} two-sided, Holm over "
        f"{found['n_tests']} doses; {of}, ICC {found['icc']:g} assumed{least})"
    )


def print_checks(checks: Sequence[Mapping[str, str]]) -> None:
    """Print one line per check."""
    table = Table("check", "state", "detail", box=None, pad_edge=False)
    for line in checks:
        table.add_row(printable(line["check"]), line["state"], printable(line["detail"]))
    _console().print(table)


def print_started(started: Started) -> None:
    """Print what a new study file holds, and what to do with it."""
    held = f"{started.n_prompts} prompts in {started.n_templates} templates, {started.n_examples} rows to attack with"
    path = shlex.quote(printable(str(started.study)))
    lines = [f"{path}: {held}", *(f"  tamperdose {command} {path}" for command in ("check", "plan", "run"))]
    for line in lines:
        _console().print(line, markup=False, soft_wrap=True)


def print_status(described: Mapping[str, Any]) -> None:
    """Print each arm's doses done and left."""
    console = _console()
    state = "finished" if described["finished"] else "not finished: run the same command again to go on"
    console.print(f"study {described['study']}: {state}", markup=False)
    table = Table("arm", "doses done", "doses left", box=None, pad_edge=False)
    for arm in described["arms"]:
        done, left = (" ".join(map(str, arm[name])) or "none" for name in ("doses_done", "doses_left"))
        table.add_row(printable(arm["arm"]), done, left)
    console.print(table)


def _console() -> Console:
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=160)


def _scaled(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _flops(value: float) -> str:
    return f"{value:.2g}".replace("e+0", "e").replace("e+", "e")


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
