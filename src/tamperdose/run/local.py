"""Runs a plan in this process, stage by stage. The ledger says what is done already; results are written last."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tamperdose.files import digest, write_json
from tamperdose.judges import describe_judge
from tamperdose.models.load import cache_dir
from tamperdose.models.organisms import Organism, is_trained, parse_organism, train_organism
from tamperdose.records import Checkpoint, Subset, Verdict
from tamperdose.run.audit import audit_run
from tamperdose.run.backends import Backend, export_folder, is_exported, open_backend
from tamperdose.run.controls import (
    REGROUPED,
    Control,
    ControlState,
    Regrouped,
    arm_states,
    base_states,
    benign_arm,
    control_doses,
    control_prompts,
    count_states,
    file_sizes,
    lacks_sizes,
    missing_states,
    write_random,
)
from tamperdose.run.inside import measure_base, measure_dose, missing_inside
from tamperdose.run.key_doses import headline_verdicts, settle_key_doses, subsets_asked, wants_key_doses
from tamperdose.run.ladder import arm_checkpoints, arm_doses, choose_next, file_ladder, is_searched
from tamperdose.run.ledger import Ledger, locked, stage_key, sweep
from tamperdose.run.manifest import check_folder, record_answers, write_manifest
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key
from tamperdose.run.progress import Reporter
from tamperdose.run.results import write_results
from tamperdose.run.room import require_room
from tamperdose.run.stages import Draw, Readers, file_defence, file_dose, generate, read_dose
from tamperdose.run.utility import file_scores, find_probes, missing_utility, utility_inputs
from tamperdose.study import Decoding, TunedDefence


@dataclass(frozen=True, slots=True)
class Session:
    """A run under way."""

    plan: Plan
    """What is to be done."""
    run_dir: Path
    """Where the results go."""
    ledger: Ledger
    """What is done."""
    reporter: Reporter
    """Says how far it is."""
    readers: Readers
    """Judges and sentence encoder, each loaded when first needed."""


def run_plan(plan: Plan, run_dir: Path, *, reporter: Reporter, study_path: Path | None = None) -> Path:
    """Run everything in a plan that is not done, then write the results; returns the path of `metrics.csv`.

    Raises:
        RunError: The folder holds another study, is in use or cannot be written; a stage failed.
        JudgeError: A judge's key is not set.
    """
    with locked(run_dir):
        check_folder(run_dir, plan.study.name)
        sweep(run_dir)
        session = Session(plan, run_dir, Ledger(run_dir / "ledger"), reporter, Readers(plan.study.judges))
        n_stages = count_stages(session.plan, session.ledger)
        if n_stages > 1:
            # Judging comes last: a key that is not set is to be missed before the hours of training.
            for judge in plan.study.judges:
                describe_judge(judge)
        write_manifest(run_dir, plan, study_path)
        reporter.expect(n_stages)
        for model in plan.models:
            _run_model(session, model)
        # A run that was cut off and went on with other settings has left its tampered weights there.
        session.ledger.discard_all()
        metrics = write_results(plan, session.ledger, run_dir, reporter=reporter, readers=session.readers)
        session.ledger.discard_partial()
        record_answers(run_dir, _settings(plan, session.ledger))
        audit_run(run_dir)
        _write_timings(session)
    return metrics


def _settings(plan: Plan, ledger: Ledger) -> dict[str, dict[str, Any]]:
    """How the answers to the harmful prompts were had, by arm and dose, as the ledger recorded it then."""
    found: dict[str, dict[str, Any]] = {}
    for model in plan.models:
        for arm in model.arms:
            draws = {0: base_draws(plan, model)[0]} | {
                steps: dose_draws(plan, arm, steps)[0] for steps in arm_doses(plan, ledger, arm)
            }
            records = {steps: ledger.record("generate", draw.key) or {} for steps, draw in draws.items()}
            found[arm.id] = {str(steps): record.get("inputs", {}) for steps, record in records.items()}
    return found


def count_stages(plan: Plan, ledger: Ledger) -> int:
    """How many stages with progress of their own a run would go through now; judging at the end is one."""
    return 1 + sum(count_model_stages(plan, ledger, model) for model in plan.models)


def count_model_stages(plan: Plan, ledger: Ledger, model: ModelPlan) -> int:
    """The stages of one model; an organism whose answers are all there need not be trained for them."""
    count = sum(not _done(ledger, draw) for draw in base_draws(plan, model))
    count += isinstance(model.spec.defence, TunedDefence) and ledger.find("defend", model.key) is None
    count += len(missing_states(ledger, base_states(plan, model))) + len(missing_utility(plan, ledger, model))
    for arm in model.arms:
        missing, later = missing_checkpoints(plan, ledger, arm), _n_later(plan, ledger, model, arm)
        count += bool(missing or later) + sum(len(list(_missing(plan, ledger, arm, steps))) for steps in missing)
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


def _late_draws(plan: Plan, ledger: Ledger, arm: ArmPlan) -> list[Draw]:
    """Answers to benign prompts that are missing at the key doses, once these are settled."""
    if not wants_key_doses(plan):
        return []
    early = {draw.key for steps in arm_doses(plan, ledger, arm) for draw in dose_draws(plan, arm, steps)}
    draws = [draw for steps in arm_doses(plan, ledger, arm) for draw in _asked_draws(plan, ledger, arm, steps)]
    return [draw for draw in draws if draw.key not in early and not _done(ledger, draw)]


def _asked_draws(plan: Plan, ledger: Ledger, arm: ArmPlan, steps: int) -> list[Draw]:
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
        if read_dose(ledger, arm, steps) is None or any(True for _ in _missing(plan, ledger, arm, steps))
    ]


def _missing(plan: Plan, ledger: Ledger, arm: ArmPlan, steps: int) -> Iterator[Draw]:
    return (draw for draw in dose_draws(plan, arm, steps) if not _done(ledger, draw))


def _done(ledger: Ledger, draw: Draw) -> bool:
    return ledger.find("generate", draw.key) is not None


def _run_model(session: Session, model: ModelPlan) -> None:
    _train_base(session, model)
    backend = open_backend(session.plan.study, model)
    _defend(session, model, backend)
    for draw in base_draws(session.plan, model):
        _generate(session, draw, backend, where=f"{model.spec.label}: dose 0")
    for state in missing_states(session.ledger, base_states(session.plan, model)):
        _control(session, state, backend, where=model.spec.label)
    if missing_utility(session.plan, session.ledger, model):
        _probe(session, model, backend)
    for arm in model.arms:
        _run_arm(session, model, arm, backend)
        _run_controls(session, model, arm, backend)


def _train_base(session: Session, model: ModelPlan) -> None:
    """Train an organism that is not in the cache; other models have their weights already."""
    organism = untrained(model)
    if organism is None or not count_model_stages(session.plan, session.ledger, model):
        return
    name = f"{model.spec.label}: base training, steps at most"
    with session.reporter.timed(name, organism.max_steps) as advance:
        train_organism(organism, cache_dir(), on_step=lambda _step, _loss: advance(1))


def _defend(session: Session, model: ModelPlan, backend: Backend) -> None:
    defence, ledger = model.spec.defence, session.ledger
    if not isinstance(defence, TunedDefence):
        return
    adapter = ledger.find("defend", model.key)
    if adapter is None:
        folder = ledger.scratch("defend", model.key)
        with session.reporter.timed(f"{model.spec.label}: defence {defence.label}, steps", defence.steps) as advance:
            trained = backend.defend(session.plan.data, folder=folder, on_step=lambda _step, _loss: advance(1))
        adapter = None if trained is None else file_defence(ledger, model.key, trained)
        ledger.discard("defend", model.key)
    if adapter is not None:
        backend.use_defence(adapter)


def _run_arm(session: Session, model: ModelPlan, arm: ArmPlan, backend: Backend) -> None:
    plan, ledger = session.plan, session.ledger
    # Under the key, too: the id names what differs within a study, not the data or the batch size.
    keep_in = session.run_dir / "adapters" / arm.id / arm.key if plan.study.keep_adapters else None
    missing = missing_checkpoints(plan, ledger, arm)
    exported = {} if keep_in is None or arm.attack.training is None else _export_folders(session, arm, keep_in)
    kept = all(map(is_exported, exported.values()))
    if not missing and is_searched(plan, ledger, arm):
        _settle(session, model, arm)
    later = _n_later(plan, ledger, model, arm) > 0 or lacks_sizes(plan, ledger, arm)
    if missing or later or not kept or not is_searched(plan, ledger, arm):
        checkpoints = _attack(session, arm, backend)
        for steps in missing:
            _measure(session, arm, backend, checkpoints[steps])
        if not is_searched(plan, ledger, arm):
            _search(session, model, arm, backend, checkpoints)
        _settle(session, model, arm)
        _measure_late(session, arm, backend, checkpoints)
        for steps in missing_utility(plan, ledger, model, arm):
            _probe(session, model, backend, arm=arm, checkpoint=checkpoints[steps])
        _look_inside(session, model, arm, backend, checkpoints)
        if exported and keep_in is not None:
            # A search has chosen further doses meanwhile.
            for steps, folder in _export_folders(session, arm, keep_in).items():
                if not is_exported(folder):
                    backend.export(checkpoints[steps], folder)
    # Tampered weights go once they are measured; after a kill, here on the next run.
    ledger.discard("attack", arm.key)


def _export_folders(session: Session, arm: ArmPlan, keep_in: Path) -> dict[int, Path]:
    """Where the tampered weights of each dose are kept."""
    return {steps: export_folder(keep_in, steps) for steps in arm_doses(session.plan, session.ledger, arm)}


def _settle(session: Session, model: ModelPlan, arm: ArmPlan) -> None:
    """Have the headline judge settle an arm's key doses, where anything is measured at them alone."""
    if wants_key_doses(session.plan):
        expected = _n_after_settling(session, model, arm)
        settle_key_doses(session.plan, session.ledger, session.readers, model, arm)
        session.reporter.stages += _n_after_settling(session, model, arm) - expected


def _n_after_settling(session: Session, model: ModelPlan, arm: ArmPlan) -> int:
    plan, ledger = session.plan, session.ledger
    return count_states(plan, ledger, model, arm) + _n_later(plan, ledger, model, arm)


def _n_later(plan: Plan, ledger: Ledger, model: ModelPlan, arm: ArmPlan) -> int:
    """How much is still to be measured of an arm's own weights once its doses are answered, as far as can be told."""
    n_inside = int(bool(missing_inside(plan, ledger, model, arm)))
    return len(_late_draws(plan, ledger, arm)) + len(missing_utility(plan, ledger, model, arm)) + n_inside


def _measure_late(session: Session, arm: ArmPlan, backend: Backend, checkpoints: Mapping[int, Checkpoint]) -> None:
    """What is wanted at the key doses alone, or was not recorded when the doses were measured."""
    plan, ledger = session.plan, session.ledger
    late = {draw.key for draw in _late_draws(plan, ledger, arm)}
    for steps in arm_doses(plan, ledger, arm):
        _file_sizes(session, arm, backend, checkpoints[steps])
        for draw in _asked_draws(plan, ledger, arm, steps) if late else ():
            where = f"{arm.id}: dose {steps}"
            _generate(session, draw, backend, where=where, checkpoint=checkpoints[steps])


def _file_sizes(session: Session, arm: ArmPlan, backend: Backend, checkpoint: Checkpoint) -> None:
    known = session.ledger.find("sizes", checkpoint_key(arm, checkpoint.dose.steps))
    if session.plan.controls is not None and known is None:
        sizes = backend.change_size(checkpoint)
        if sizes is not None:
            file_sizes(session.ledger, arm, checkpoint, sizes)


def _run_controls(session: Session, model: ModelPlan, arm: ArmPlan, backend: Backend) -> None:
    """Measure what an arm is compared with. Its own weights are gone by now."""
    plan, ledger = session.plan, session.ledger
    states = missing_states(ledger, arm_states(plan, ledger, model, arm))
    trained: dict[int, Checkpoint] = {}
    doses = control_doses(plan, ledger, arm) or ()
    benign = benign_arm(plan, model, arm, doses)
    if benign is not None and any(state.control is Control.BENIGN for state in states):
        trained = _train_control(session, benign, backend)
    for state in states:
        _control(session, state, backend, where=arm.id, arm=arm, trained=trained)
    if benign is not None:
        ledger.discard("attack", benign.key)


def _train_control(session: Session, benign: ArmPlan, backend: Backend) -> dict[int, Checkpoint]:
    folder = session.ledger.scratch("attack", benign.key)
    with session.reporter.timed(f"{benign.id}, steps", benign.saved[-1]) as advance:
        steps = backend.attack(benign, session.plan.data, folder=folder, on_step=lambda _step, _loss: advance(1))
        return {checkpoint.dose.steps: checkpoint for checkpoint in steps}


def _control(
    session: Session,
    state: ControlState,
    backend: Backend,
    *,
    where: str,
    arm: ArmPlan | None = None,
    trained: Mapping[int, Checkpoint] | None = None,
) -> None:
    """Have a model under a control answer the control prompts."""
    ledger, prompts = session.ledger, control_prompts(session.plan)
    checkpoint = (trained or {})[state.steps] if state.control is Control.BENIGN else None
    scratch = ledger.scratch("control", state.origin)
    if arm is not None and state.draw:
        checkpoint = write_random(ledger, arm, state, scratch)
    at = f" at dose {state.steps}" if state.steps else ""
    name = f"{where}: control {state.control}{f' {state.draw}' if state.draw else ''}{at}, harmful prompts"
    with session.reporter.timed(name, len(prompts)) as advance, backend.generator(checkpoint) as generator:
        asked = Regrouped(generator, REGROUPED) if state.control is Control.NONE else generator
        generate(ledger, state.generation, asked, prompts, on_progress=advance)
    ledger.discard("control", state.origin)


def _measure(session: Session, arm: ArmPlan, backend: Backend, checkpoint: Checkpoint) -> None:
    """Record what a checkpoint cost, and have the model at it answer what it has not yet."""
    steps = checkpoint.dose.steps
    if read_dose(session.ledger, arm, steps) is None:
        file_dose(session.ledger, arm, checkpoint)
    _file_sizes(session, arm, backend, checkpoint)
    for draw in dose_draws(session.plan, arm, steps):
        _generate(session, draw, backend, where=f"{arm.id}: dose {steps}", checkpoint=checkpoint)


def _look_inside(
    session: Session, model: ModelPlan, arm: ArmPlan, backend: Backend, checkpoints: Mapping[int, Checkpoint]
) -> None:
    """Read the states of the untampered model and of the checkpoints at the doses wanted."""
    plan, ledger = session.plan, session.ledger
    missing = missing_inside(plan, ledger, model, arm)
    if missing:
        with session.reporter.timed(f"{arm.id}: states inside, doses", len(missing)) as advance:
            measure_base(plan, ledger, model, backend)
            for steps in missing:
                measure_dose(plan, ledger, arm, backend, checkpoints[steps])
                advance(1)


def _search(
    session: Session, model: ModelPlan, arm: ArmPlan, backend: Backend, checkpoints: Mapping[int, Checkpoint]
) -> None:
    """Measure further doses where the search wants them, by the verdicts so far."""
    plan, ledger = session.plan, session.ledger

    def verdicts(steps: int) -> list[Verdict]:
        return headline_verdicts(plan, ledger, session.readers, model=model, arm=arm, steps=steps)

    doses = list(arm.doses)
    while (steps := choose_next(plan, arm, doses, verdicts)) is not None:
        session.reporter.stages += sum(1 for _ in _missing(plan, ledger, arm, steps))
        _measure(session, arm, backend, checkpoints[steps])
        doses = sorted([*doses, steps])
    file_ladder(plan, ledger, arm, doses)


def _attack(session: Session, arm: ArmPlan, backend: Backend) -> dict[int, Checkpoint]:
    folder = session.ledger.scratch("attack", arm.key)
    require_room(arm, next(model for model in session.plan.models if arm in model.arms), folder)
    checkpoints: dict[int, Checkpoint] = {}
    with session.reporter.timed(f"{arm.id}: attack, steps", arm.doses[-1]) as advance:
        steps = backend.attack(arm, session.plan.data, folder=folder, on_step=lambda _step, _loss: advance(1))
        for checkpoint in steps:
            if checkpoint.dose.steps in arm.doses and read_dose(session.ledger, arm, checkpoint.dose.steps) is None:
                file_dose(session.ledger, arm, checkpoint)
            checkpoints[checkpoint.dose.steps] = checkpoint
    return checkpoints


def _generate(
    session: Session, draw: Draw, backend: Backend, *, where: str, checkpoint: Checkpoint | None = None
) -> None:
    if _done(session.ledger, draw):
        return
    plan = session.plan
    prompts = plan.data.prompts[draw.subset]
    kind = _kind(plan, draw)
    with (
        session.reporter.timed(f"{where}, {kind}", len(prompts)) as advance,
        backend.generator(checkpoint) as generator,
    ):
        generate(session.ledger, draw, generator, prompts, on_progress=advance)


def _kind(plan: Plan, draw: Draw) -> str:
    if draw.decoding != plan.study.decoding:
        return f"sample {draw.sample} at T = {draw.decoding.temperature:g}"
    n_samples = plan.study.decoding.n_samples
    return f"{draw.subset.value} prompts" + (f", sample {draw.sample + 1} of {n_samples}" if n_samples > 1 else "")


def _probe(
    session: Session,
    model: ModelPlan,
    backend: Backend,
    *,
    arm: ArmPlan | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Measure the utility of the base, or of a checkpoint of an arm."""
    probes = find_probes(session.plan, model)
    if probes is None:
        return
    steps = 0 if checkpoint is None else checkpoint.dose.steps
    inputs = utility_inputs(model, probes, arm, steps)
    n_items = len(probes.texts) + len(probes.questions)
    with session.reporter.timed(f"{arm.id if arm else model.spec.label}: dose {steps}, utility", n_items) as advance:
        file_scores(session.ledger, stage_key("utility", inputs), backend.utility(checkpoint, probes), inputs)
        advance(n_items)


def _write_timings(session: Session) -> None:
    """Add this process's seconds to `timings.json`: clock values, outside what a resumed run reproduces."""
    path = session.run_dir / "timings.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = []
    write_json(path, [*(before if isinstance(before, list) else []), session.reporter.timings])
