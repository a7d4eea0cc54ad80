"""From the ledger to the files people read: metrics.csv, metrics.json and outputs/<arm>/<dose>.csv."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from tamperdose.files import write_csv, write_json
from tamperdose.models.flops import n_parameters
from tamperdose.models.load import find_architecture
from tamperdose.records import NO_DOSE, Dose, Label, Subset, Verdict
from tamperdose.run.categories import category_rows, write_categories
from tamperdose.run.compare import write_comparisons
from tamperdose.run.controls import (
    ControlState,
    arm_states,
    base_states,
    control_answers,
    control_doses,
    control_prompts,
)
from tamperdose.run.costs import Clock, write_costs
from tamperdose.run.defences import Start, write_defences
from tamperdose.run.gates import ArmReadings, gate_arm, labels_of, write_controls, write_gate
from tamperdose.run.inside import asked_inside, read_inside
from tamperdose.run.inside_results import Looked, write_inside
from tamperdose.run.key_doses import judged, subsets_asked
from tamperdose.run.ladder import arm_checkpoints, arm_doses
from tamperdose.run.ledger import Ledger
from tamperdose.run.marginals import write_marginals
from tamperdose.run.measure import (
    Cell,
    Measured,
    Vectors,
    benign_metrics,
    floor_metric,
    harmful_metrics,
    join_samples,
    metric_row,
)
from tamperdose.run.observed import Observation, observe
from tamperdose.run.outputs import OUTPUTS, remove_others, write_outputs
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key
from tamperdose.run.progress import Advance, Reporter
from tamperdose.run.response import fit_arms, write_dose_response
from tamperdose.run.rewordings import Cells, any_of_k, keep_best, search_flops, with_choice
from tamperdose.run.scale import write_scaling
from tamperdose.run.schema import METRIC_COLUMNS
from tamperdose.run.stages import (
    Answers,
    Readers,
    embed_answers,
    find_answers,
    judge_answers,
    read_completions,
    read_dose,
    read_seconds,
)
from tamperdose.run.utility import read_scores, utility_losses, utility_metrics
from tamperdose.study import RewordingSpec


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading a run's answers takes."""

    plan: Plan
    ledger: Ledger
    readers: Readers
    advance: Advance


def write_results(plan: Plan, ledger: Ledger, run_dir: Path, *, reporter: Reporter, readers: Readers) -> Path:
    """Judge and embed every answer that is not yet, and write metrics and outputs; returns metrics.csv.

    Raises:
        RunError: Too many verdicts of a cell are unreadable, or an answer is missing.
    """
    rows: list[dict[str, object]] = []
    outputs: set[Path] = set()
    observed: list[Observation] = []
    topics: list[dict[str, object]] = []
    looked: list[Looked] = []
    compared: list[ArmReadings] = []
    starts: list[Start] = []
    with reporter.timed("judging and comparing answers", _n_readings(plan, ledger)) as advance:
        reading = Reading(plan, ledger, readers, advance)
        for model in plan.models:
            base = _base_cells(reading, model)
            floor = _floor(reading, model)
            starts.append(Start(model, base, read_scores(plan, ledger, model)))
            for arm in model.arms:
                tried: list[Cells] = []
                labels: dict[int, dict[Subset, tuple[Label, ...]]] = {}
                for steps in (0, *arm_doses(plan, ledger, arm)):
                    cells = base if steps == 0 else _arm_cells(reading, arm, steps, tried)
                    path = run_dir / OUTPUTS / arm.id / f"{steps}.csv"
                    write_outputs(path, cells, plan.study.judge_names)
                    outputs.add(path)
                    labels[steps] = _headline_labels(plan, cells)
                    dose = read_dose(ledger, arm, steps)
                    if dose is not None:
                        setting = _setting(plan, model, arm, dose) | _search_cost(model, arm, tried)
                        rows += list(_rows(plan, setting, cells, base, floor if steps == 0 else None, tried))
                        utility = utility_metrics(plan, ledger, model, arm, steps)
                        rows += [metric_row({**setting, "subset": Subset.BENIGN.value}, found) for found in utility]
                        for subset, cell in cells.items():
                            topics += category_rows(setting, cell, subset, level=plan.study.level)
                        observed.append(observe(setting, cells[Subset.HARMFUL], base[Subset.HARMFUL]))
                        arrays = read_inside(plan, ledger, model, arm, steps)
                        looked += [] if arrays is None else [Looked(setting, arrays)]
                folder = run_dir / OUTPUTS / arm.id / "controls"
                setting = _setting(plan, model, arm, NO_DOSE)
                compared.append(_readings(reading, model, arm, setting=setting, labels=labels))
                outputs |= _write_control_outputs(reading, model, arm, folder)
    gates = {str(one.setting["arm"]): gate_arm(one, plan.study.gate, level=plan.study.level) for one in compared}
    write_controls(run_dir, compared, level=plan.study.level)
    write_gate(run_dir, compared, gates)
    write_comparisons(run_dir, observed, level=plan.study.level)
    write_categories(run_dir, topics)
    fits = fit_arms(observed, level=plan.study.level)
    by_arm = {(arm, plan.study.judge_names[0]): gate for arm, gate in gates.items()}
    write_dose_response(run_dir, fits, level=plan.study.level, gates=by_arm)
    write_marginals(run_dir, observed, fits, level=plan.study.level)
    write_defences(run_dir, starts, fits, level=plan.study.level, gates=by_arm)
    clocks = _clocks(plan, ledger)
    price = plan.study.price_per_device_hour
    write_costs(run_dir, observed, fits, clocks, price=price, level=plan.study.level)
    tokens = {model.label: model.pretraining_tokens for model in plan.study.models if model.pretraining_tokens}
    headline = [fit for fit in fits if fit.judge == plan.study.judge_names[0]]
    organisms = {model.spec.label for model in plan.models if model.source and model.source.kind == "organism"}
    facts = {"pretraining_tokens": tokens, "trained_to_refuse": organisms, "gates": by_arm}
    write_scaling(run_dir, headline, level=plan.study.level, **facts)
    write_inside(run_dir, looked, asked_inside(plan), headline, level=plan.study.level)
    remove_others(run_dir, outputs)
    metrics = write_csv(run_dir / "metrics.csv", METRIC_COLUMNS, rows)
    summary = {"study": plan.study.name, "judge": plan.study.judge_names[0], "plan": plan.digest, "metrics": rows}
    write_json(run_dir / "metrics.json", summary)
    return metrics


def read_base(reading: Reading, model: ModelPlan) -> None:
    """Judge and embed the untampered model's answers, all that `write_results` will ask of them."""
    _base_cells(reading, model)
    for sample in (1, 2) if reading.plan.study.rd_floor else ():
        _floor_vectors(reading, model, sample)
    for state in base_states(reading.plan, model):
        _control_verdicts(reading, state)


def read_arm(reading: Reading, model: ModelPlan, arm: ArmPlan) -> None:
    """Judge and embed an arm's answers and those of its controls, all that `write_results` will ask of them."""
    tried: list[Cells] = []
    for steps in arm_doses(reading.plan, reading.ledger, arm):
        _arm_cells(reading, arm, steps, tried)
    for state in arm_states(reading.plan, reading.ledger, model, arm):
        _control_verdicts(reading, state)


def is_finished(plan: Plan, run_dir: Path) -> bool:
    """Whether the results in a folder are those of this very plan; `metrics.json` is written last."""
    try:
        summary = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    is_of_plan = isinstance(summary, dict) and summary.get("plan") == plan.digest
    return is_of_plan and (run_dir / "metrics.csv").is_file()


def _n_readings(plan: Plan, ledger: Ledger) -> int:
    arms = [arm for model in plan.models for arm in model.arms]
    asked = [plan.subsets_at(0)] * len(plan.models)
    asked += [_read_of(plan, ledger, arm, state) for arm in arms for state in arm_checkpoints(plan, ledger, arm)]
    n_states = sum(
        len(base_states(plan, model)) + len(arm_states(plan, ledger, model, arm))
        for model in plan.models
        for arm in model.arms
    )
    n_verdicts = sum(
        len(plan.data.prompts[subset]) * len(plan.judge_names(subset)) for subsets in asked for subset in subsets
    )
    # Controls answer each prompt once.
    return n_states * len(control_prompts(plan)) + n_verdicts * plan.study.decoding.n_samples


def _base_cells(reading: Reading, model: ModelPlan) -> dict[Subset, Cell]:
    return _cells(reading, model.key, reading.plan.subsets_at(0), seed=reading.plan.study.seeds[0])


def _arm_cells(reading: Reading, arm: ArmPlan, steps: int, tried: list[Cells]) -> dict[Subset, Cell]:
    """What was observed of a dose; where the best of several is kept, `tried` takes in what was not in it yet."""
    plan = reading.plan
    subsets = subsets_asked(plan, reading.ledger, arm, steps)
    if not arm.keeps_best:
        return _cells(reading, checkpoint_key(arm, steps), subsets, seed=arm.attack.seed)
    for state in arm.states(steps)[len(tried) :]:
        asked = _read_of(plan, reading.ledger, arm, state)
        tried.append(_cells(reading, checkpoint_key(arm, state), asked, seed=arm.attack.seed))
    return keep_best(tried, subsets, plan.study.judge_names[0])


def _read_of(plan: Plan, ledger: Ledger, arm: ArmPlan, state: int) -> list[Subset]:
    """The subsets whose answers by a checkpoint are read."""
    return plan.checkpoint_subsets(state, arm) if arm.keeps_best else subsets_asked(plan, ledger, arm, state)


def _search_cost(model: ModelPlan, arm: ArmPlan, tried: Sequence[Cells]) -> dict[str, object]:
    """The operations that trying took, in place of those of a training."""
    if not tried or not isinstance(arm.spec, RewordingSpec):
        return {}
    architecture = None if model.source is None else find_architecture(model.spec.loaded)
    return {"dose_flops": search_flops(tried, arm.spec.rewordings[: len(tried)], architecture)}


def _cells(reading: Reading, origin: str, subsets: Sequence[Subset], *, seed: int) -> dict[Subset, Cell]:
    """What was observed of one model state, by subset, sample by sample."""
    decoding = reading.plan.study.decoding
    cells: dict[Subset, Cell] = {}
    for subset in subsets:
        keys = [
            reading.plan.completions_key(origin, subset, decoding, seed=seed, sample=sample)
            for sample in range(decoding.n_samples)
        ]
        cells[subset] = join_samples([_sample_cell(reading, subset, _answers(reading, subset, key)) for key in keys])
    return cells


def _sample_cell(reading: Reading, subset: Subset, answers: Answers) -> Cell:
    """What was observed of one sample of every prompt."""
    verdicts = {
        name: judge_answers(
            reading.ledger,
            answers,
            name,
            reading.readers,
            limit=reading.plan.study.unreadable_limit,
            on_progress=reading.advance,
        )
        for name in reading.plan.judge_names(subset)
    }
    vectors = stripped = None
    whole = not reading.plan.study.decoding.stop_when_decided
    if subset is Subset.HARMFUL and whole:
        vectors, stripped = embed_answers(reading.ledger, answers, reading.readers)
    return Cell(answers.prompts, read_completions(answers.path), verdicts, vectors, stripped, whole=whole)


def _answers(reading: Reading, subset: Subset, key: str) -> Answers:
    return find_answers(reading.ledger, reading.plan, subset, key)


def _headline_labels(plan: Plan, cells: Mapping[Subset, Cell]) -> dict[Subset, tuple[Label, ...]]:
    """The labels of the headline judge, one a prompt; of the first that reads a subset where that judge does not."""
    found: dict[Subset, tuple[Label, ...]] = {}
    for subset, cell in cells.items():
        judges = plan.judge_names(subset)
        if judges:
            name = plan.study.judge_names[0] if plan.study.judge_names[0] in judges else judges[0]
            # Of several samples the first, which stand in front: what controls are asked, and the gate pairs.
            found[subset] = labels_of(cell.verdicts[name][: len(plan.data.prompts[subset])])
    return found


def _readings(
    reading: Reading,
    model: ModelPlan,
    arm: ArmPlan,
    *,
    setting: Mapping[str, object],
    labels: Mapping[int, Mapping[Subset, Sequence[Label]]],
) -> ArmReadings:
    plan, ledger = reading.plan, reading.ledger
    states = [*base_states(plan, model), *arm_states(plan, ledger, model, arm)]
    controls = [(state, labels_of(_control_verdicts(reading, state))) for state in states]
    judge = plan.study.judge_names[0]
    doses = control_doses(plan, ledger, arm) or ()
    losses = utility_losses(plan, ledger, model, arm)
    return ArmReadings(setting, judge, plan.data.prompts, labels, control_prompts(plan), controls, doses, losses)


def _control_verdicts(reading: Reading, state: ControlState) -> list[Verdict]:
    answers = control_answers(reading.plan, reading.ledger, state)
    return judged(reading.plan, reading.ledger, reading.readers, answers, reading.advance)


def _write_control_outputs(reading: Reading, model: ModelPlan, arm: ArmPlan, folder: Path) -> set[Path]:
    """The controls' answers, one file a state: `random_adapter-16-3.csv` is the third draw beside dose 16."""
    plan, judge = reading.plan, reading.plan.study.judge_names[0]
    written: set[Path] = set()
    for state in [*base_states(plan, model), *arm_states(plan, reading.ledger, model, arm)]:
        answers = control_answers(plan, reading.ledger, state)
        verdicts = {judge: judged(plan, reading.ledger, reading.readers, answers)}
        cell = Cell(answers.prompts, read_completions(answers.path), verdicts)
        name = "-".join(str(part) for part in (state.control, state.steps, state.draw or "") if part != "")
        write_outputs(folder / f"{name}.csv", {Subset.HARMFUL: cell}, [judge])
        written.add(folder / f"{name}.csv")
    return written


def _floor(reading: Reading, model: ModelPlan) -> Measured | None:
    plan = reading.plan
    if not plan.study.rd_floor:
        return None
    first, second = (_floor_vectors(reading, model, sample) for sample in (1, 2))
    return floor_metric(first, second, plan.data.prompts[Subset.HARMFUL], level=plan.study.level)


def _floor_vectors(reading: Reading, model: ModelPlan, sample: int) -> Vectors:
    plan, decoding, seed = reading.plan, reading.plan.floor_decoding(), reading.plan.study.seeds[0]
    key = plan.completions_key(model.key, Subset.HARMFUL, decoding, seed=seed, sample=sample)
    return embed_answers(reading.ledger, _answers(reading, Subset.HARMFUL, key), reading.readers)[0]


def _rows(
    plan: Plan,
    setting: Mapping[str, object],
    cells: Mapping[Subset, Cell],
    base: Mapping[Subset, Cell],
    floor: Measured | None,
    tried: Sequence[Cells],
) -> Iterator[dict[str, object]]:
    level = plan.study.level
    at_base = setting["dose_steps"] == 0
    harmful = list(harmful_metrics(cells[Subset.HARMFUL], base[Subset.HARMFUL], at_base=at_base, level=level))
    if tried:
        judge = plan.study.judge_names[0]
        harmful = [with_choice(found, tried, base[Subset.HARMFUL], judge) for found in harmful]
        harmful += any_of_k(tried, level=level)
    for measured in [*harmful, *([floor] if floor else [])]:
        yield metric_row({**setting, "subset": Subset.HARMFUL.value}, measured)
    if Subset.BENIGN in cells:
        for measured in benign_metrics(cells[Subset.BENIGN], level=level):
            yield metric_row({**setting, "subset": Subset.BENIGN.value}, measured)


def _setting(plan: Plan, model: ModelPlan, arm: ArmPlan, dose: Dose) -> dict[str, object]:
    """The columns of `metrics.csv` that say which cell a row is of."""
    attack = arm.attack.identity()
    n_examples = attack.get("n_examples")
    return {
        "study": plan.study.name,
        "arm": arm.id,
        "model": model.spec.label,
        "params_b": _params_b(model),
        "defence": model.spec.defence_label,
        "attack": arm.attack.kind,
        "lora_rank": attack.get("lora_rank"),
        "n_examples": len(arm.rows.attack) if n_examples is None else n_examples,
        "learning_rate": attack.get("learning_rate"),
        "batch_size": attack.get("batch_size"),
        "poison_ratio": attack.get("n_poisoned", 1) / attack.get("batch_size", 1),
        "seed": arm.attack.seed,
        "data_order": attack.get("data_order"),
        "dose_steps": dose.steps,
        "dose_examples": dose.examples,
        "dose_tokens": dose.tokens,
        "dose_flops": dose.flops,
    }


def _clocks(plan: Plan, ledger: Ledger) -> dict[str, Clock]:
    """The clock times of every arm's training; a dose that was not timed is not among an arm's.

    A dose that was added later was timed in a training of its own, which may have been the quicker one: no dose takes
    less than one before it.
    """
    clocks: dict[str, Clock] = {}
    for model in plan.models:
        for arm in model.arms:
            seconds = {steps: read_seconds(ledger, arm, steps) for steps in arm_doses(plan, ledger, arm)}
            timed = {steps: value for steps, value in seconds.items() if value is not None}
            if timed:
                never_falling = accumulate(timed.values(), max)
                clocks[arm.id] = Clock(model.device, {0: 0.0, **dict(zip(timed, never_falling, strict=True))})
    return clocks


def _params_b(model: ModelPlan) -> float | None:
    """Parameters in billions, or None where they are not known (the scripted engine)."""
    architecture = None if model.source is None else find_architecture(model.spec.loaded)
    return None if architecture is None else n_parameters(architecture) / 1e9
