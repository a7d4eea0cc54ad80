"""Runs a plan in this process, stage by stage. The ledger says what is done already; results are written last."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tamperdose.files import remove, write_json
from tamperdose.judges import describe_judge
from tamperdose.run.arms import Session, open_model, run_arm, run_base
from tamperdose.run.audit import AUDIT_FILE, audit_run
from tamperdose.run.draws import base_draws, count_stages, dose_draws
from tamperdose.run.equivalence import read_equivalence
from tamperdose.run.ladder import arm_doses
from tamperdose.run.ledger import Ledger, locked, sweep
from tamperdose.run.manifest import check_folder, record_answers, write_manifest
from tamperdose.run.plan import Plan
from tamperdose.run.progress import Reporter
from tamperdose.run.results import write_results
from tamperdose.run.stages import Readers


def run_plan(plan: Plan, run_dir: Path, *, reporter: Reporter, study_path: Path | None = None) -> Path:
    """Run everything in a plan that is not done, then write the results; returns the path of `metrics.csv`.

    Raises:
        RunError: The folder holds another study, is in use or cannot be written; a stage failed.
        JudgeError: A judge's key is not set.
    """
    with begun(plan, run_dir, reporter=reporter, study_path=study_path) as session:
        for model in plan.models:
            with closing(open_model(session, model)) as backend:
                run_base(session, model, backend)
                for arm in model.arms:
                    run_arm(session, model, arm, backend)
        return finish(session)


@contextmanager
def begun(plan: Plan, run_dir: Path, *, reporter: Reporter, study_path: Path | None) -> Iterator[Session]:
    """Hold a run's folder while the block runs, once it is known to be this study's; raises as `run_plan`."""
    with locked(run_dir):
        check_folder(run_dir, plan.study.name)
        sweep(run_dir)
        session = Session(plan, run_dir, Ledger(run_dir / "ledger"), reporter, Readers(plan.study.judges))
        n_stages = count_stages(session.plan, session.ledger)
        if n_stages > 1:
            # Judging comes last: a key that is not set is to be missed before the hours of training.
            for judge in plan.study.judges:
                describe_judge(judge)
        # An earlier audit must not vouch for what is half written, nor for a study that was changed since.
        remove(run_dir / AUDIT_FILE)
        write_manifest(run_dir, plan, study_path)
        kept = run_dir / "adapters"
        if not plan.study.keep_adapters and kept.is_dir():
            reporter.say(
                f"tampered weights of an earlier run are kept in {kept}: remove them, or state the reason again"
            )
        reporter.expect(n_stages)
        yield session


def finish(session: Session) -> Path:
    """Write the results of a run whose answers are all there, and audit them; returns the path of `metrics.csv`."""
    plan, run_dir = session.plan, session.run_dir
    # A run that was cut off and went on with other settings has left its tampered weights there.
    session.ledger.discard_all()
    metrics = write_results(plan, session.ledger, run_dir, reporter=session.reporter, readers=session.readers)
    session.ledger.discard_partial()
    record_answers(run_dir, _settings(plan, session.ledger), _equivalence(plan, session.ledger))
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


def _equivalence(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """What came of holding the engine against transformers, by the key of the model; empty where it is the same."""
    found = {model.key: read_equivalence(plan, ledger, model) for model in plan.models}
    return {key: value for key, value in found.items() if value is not None}


def _write_timings(session: Session) -> None:
    """Add this process's seconds to `timings.json`: clock values, outside what a resumed run reproduces."""
    path = session.run_dir / "timings.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = []
    write_json(path, [*(before if isinstance(before, list) else []), session.reporter.timings])
