"""The stages of one model and of each of its arms, in their order: what every executor calls, here or on a cluster.

What is done already is in the ledger, and each stage skips it.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from tamperdose.errors import TamperdoseError, explain
from tamperdose.models.load import cache_dir
from tamperdose.models.organisms import train_organism
from tamperdose.records import Checkpoint, Verdict
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
from tamperdose.run.draws import (
    asked_draws,
    base_draws,
    count_later,
    count_model_stages,
    dose_draws,
    is_done,
    late_draws,
    missing_checkpoints,
    missing_draws,
    untrained,
)
from tamperdose.run.equivalence import settle_equivalence
from tamperdose.run.inside import measure_base, measure_dose, missing_inside
from tamperdose.run.key_doses import headline_verdicts, settle_key_doses, wants_key_doses
from tamperdose.run.ladder import arm_doses, choose_next, file_ladder, is_searched
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.plan import ArmPlan, ModelPlan, Plan, checkpoint_key
from tamperdose.run.progress import Reporter
from tamperdose.run.room import require_room
from tamperdose.run.stages import Draw, Readers, file_defence, file_dose, generate, read_dose
from tamperdose.run.utility import file_scores, find_probes, missing_utility, utility_inputs
from tamperdose.study import TunedDefence


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


def open_model(session: Session, model: ModelPlan) -> Backend:
    """Give a model with its defence, each trained first where it is not there yet; weights are loaded when needed."""
    _train_base(session, model)
    backend = open_backend(session.plan.study, model)
    _defend(session, model, backend)
    return backend


def run_base(session: Session, model: ModelPlan, backend: Backend) -> None:
    """Measure the untampered model: answers, controls, utility."""
    settle_equivalence(session.plan, session.ledger, model, backend, session.reporter)
    for draw in base_draws(session.plan, model):
        _generate(session, draw, backend, where=f"{model.spec.label}: dose 0")
    for state in missing_states(session.ledger, base_states(session.plan, model)):
        _control(session, state, backend, where=model.spec.label)
    if missing_utility(session.plan, session.ledger, model):
        _probe(session, model, backend)


def run_arm(session: Session, model: ModelPlan, arm: ArmPlan, backend: Backend) -> None:
    """Run an arm and measure it at its doses, and what it is compared with; the base is measured already."""
    # What a driver that was killed has left behind may still be at work on the arm.
    with session.ledger.held("attack", arm.key):
        settle_equivalence(session.plan, session.ledger, model, backend, session.reporter)
        _run_trajectory(session, model, arm, backend)
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
    ledger, defence = session.ledger, model.spec.defence
    if not isinstance(defence, TunedDefence):
        return
    adapter = ledger.find("defend", model.key)
    if adapter is None:
        with ledger.held("defend", model.key):
            adapter = ledger.find("defend", model.key) or _train_defence(session, model, backend, steps=defence.steps)
    if adapter is not None:
        backend.use_defence(adapter)


def _train_defence(session: Session, model: ModelPlan, backend: Backend, *, steps: int) -> Path | None:
    ledger, folder = session.ledger, session.ledger.scratch("defend", model.key)
    name = f"{model.spec.label}: defence {model.spec.defence_label}, steps"
    with session.reporter.timed(name, steps) as advance:
        trained = backend.defend(session.plan.data, folder=folder, on_step=lambda _step, _loss: advance(1))
    adapter = None if trained is None else file_defence(ledger, model.key, trained)
    ledger.discard("defend", model.key)
    return adapter


def _run_trajectory(session: Session, model: ModelPlan, arm: ArmPlan, backend: Backend) -> None:
    plan, ledger = session.plan, session.ledger
    # Under the key, too: the id names what differs within a study, not the data or the batch size.
    keep_in = session.run_dir / "adapters" / arm.id / arm.key if plan.study.keep_adapters else None
    missing = missing_checkpoints(plan, ledger, arm)
    exported = {} if keep_in is None or arm.attack.training is None else _export_folders(session, arm, keep_in)
    kept = all(map(is_exported, exported.values()))
    if not missing and is_searched(plan, ledger, arm):
        _settle(session, model, arm)
    later = count_later(plan, ledger, model, arm) > 0 or lacks_sizes(plan, ledger, arm)
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
    return count_states(plan, ledger, model, arm) + count_later(plan, ledger, model, arm)


def _measure_late(session: Session, arm: ArmPlan, backend: Backend, checkpoints: Mapping[int, Checkpoint]) -> None:
    """What is wanted at the key doses alone, or was not recorded when the doses were measured."""
    plan, ledger = session.plan, session.ledger
    late = {draw.key for draw in late_draws(plan, ledger, arm)}
    for steps in arm_doses(plan, ledger, arm):
        _file_sizes(session, arm, backend, checkpoints[steps])
        for draw in asked_draws(plan, ledger, arm, steps) if late else ():
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
    benign = benign_arm(plan, model, arm, control_doses(plan, ledger, arm) or ())
    # Arms that differ in nothing that this training knows share it: one of them has it made, the others wait.
    with nullcontext() if benign is None else ledger.held("attack", benign.key):
        states = missing_states(ledger, arm_states(plan, ledger, model, arm))
        trained: dict[int, Checkpoint] = {}
        if benign is not None and any(state.control is Control.BENIGN for state in states):
            trained = _train_control(session, benign, backend)
        for state in states:
            _control(session, state, backend, where=arm.id, arm=arm, trained=trained)
        if benign is not None:
            ledger.discard("attack", benign.key)


def _train_control(session: Session, benign: ArmPlan, backend: Backend) -> dict[int, Checkpoint]:
    folder = session.ledger.scratch("attack", benign.key)
    try:
        with session.reporter.timed(f"{benign.id}, steps", benign.saved[-1]) as advance:
            steps = backend.attack(benign, session.plan.data, folder=folder, on_step=lambda _step, _loss: advance(1))
            return {checkpoint.dose.steps: checkpoint for checkpoint in steps}
    except TamperdoseError as error:
        raise type(error)(
            explain(
                f"the training on harmless rows that stands beside the attack failed ({benign.id})",
                got=str(error),
                remedy="name other rows under controls.benign, or null for none, and run the same command again: "
                "everything that was measured is kept",
            )
        ) from error


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
        session.reporter.stages += sum(1 for _ in missing_draws(plan, ledger, arm, steps))
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
    if is_done(session.ledger, draw):
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
