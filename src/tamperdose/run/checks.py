"""Everything about a study that can be said without loading a model, and how far a run has come."""

from pathlib import Path
from typing import Any

from tamperdose.errors import RunError, explain
from tamperdose.judges import describe_judge
from tamperdose.models.flops import n_parameters
from tamperdose.models.load import cache_dir, require_one_architecture, require_readable_folder
from tamperdose.models.organisms import is_trained, organism_folder, parse_organism, training_seconds
from tamperdose.records import Subset
from tamperdose.run.draws import missing_doses
from tamperdose.run.ladder import arm_doses, is_searched
from tamperdose.run.ledger import Ledger
from tamperdose.run.manifest import read_manifest
from tamperdose.run.plan import ModelPlan, Plan, make_plan, read_data
from tamperdose.run.results import is_finished
from tamperdose.study import load_study

NOT_CHECKED = "not checked"


def run_checks(study_path: Path, overrides: list[str]) -> list[dict[str, str]]:
    """Validate a study and everything it names; returns one line per thing checked, and what could not be.

    Raises:
        TamperdoseError: The first thing that is wrong.
    """
    study = load_study(study_path, overrides)
    data = read_data(study, study_path)
    plan = make_plan(study, data)
    lines = [_line("study", "ok", f"{study.name}, digest {study.digest}")]
    for subset in plan.subsets():
        prompts = data.prompts[subset]
        n_templates = len({prompt.template for prompt in prompts})
        n_talks = sum(len(prompt.messages) > 1 for prompt in prompts)
        talks = f", {n_talks} of them conversations of several turns" if n_talks else ""
        lines.append(_line(f"{subset} prompts", "ok", f"{len(prompts)} in {n_templates} templates{talks}"))
    if Subset.BENIGN not in plan.subsets():
        lines.append(_line("benign prompts", NOT_CHECKED, "none given: over-refusal will not be measured"))
    for source in dict.fromkeys(source for attack in study.attack for source in attack.sources):
        n_rows = len(data.examples[source])
        lines.append(_line("attack data", "ok", f"{n_rows} rows, disjoint from the evaluation prompts"))
    lines += [_line("held-out texts", "ok", f"{len(rows)} of {source}") for source, rows in data.texts.items()]
    lines += [_line("questions", "ok", f"{len(rows)} of {source}") for source, rows in data.questions.items()]
    for judge in study.judges:
        checked, detail = describe_judge(judge)
        lines.append(_line("judge", "ok" if checked else NOT_CHECKED, detail))
    lines += [line for model in plan.models for line in _model_lines(model)]
    return lines


def describe_status(run_dir: Path) -> dict[str, Any]:
    """Say for each arm of a run which doses are done.

    Raises:
        RunError: Not a run's folder, or its study cannot be found any more.
    """
    manifest = read_manifest(run_dir)
    study_path = manifest.get("study_path")
    resolved = run_dir / "study.resolved.yaml"
    if not isinstance(study_path, str) or not resolved.is_file():
        raise RunError(explain(f"{run_dir} has no resolved study", expected="a folder written by tamperdose run"))
    study = load_study(resolved)
    limit = manifest.get("limit")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise RunError(
            explain(f"{run_dir / 'manifest.json'}: 'limit' is not one", got=repr(limit)[:40], expected="1 or more")
        )
    plan = make_plan(study, read_data(study, Path(study_path), limit=limit), limit=limit)
    return {
        "study": study.name,
        "finished": is_finished(plan, run_dir) and not _left(plan, run_dir),
        "arms": _arms(plan, run_dir),
    }


def _arms(plan: Plan, run_dir: Path) -> list[dict[str, Any]]:
    ledger = Ledger(run_dir / "ledger")
    arms: list[dict[str, Any]] = []
    for model in plan.models:
        for arm in model.arms:
            missing = missing_doses(plan, ledger, arm)
            done = [steps for steps in arm_doses(plan, ledger, arm) if steps not in missing]
            searching = not is_searched(plan, ledger, arm)
            arms.append(
                {"arm": arm.id, "model": model.spec.label, "doses_done": done, "doses_left": missing}
                | ({"search": "not ended"} if searching else {})
            )
    return arms


def _left(plan: Plan, run_dir: Path) -> bool:
    return any(arm["doses_left"] or "search" in arm for arm in _arms(plan, run_dir))


def _model_lines(model: ModelPlan) -> list[dict[str, str]]:
    name, weights = f"model {model.spec.label}", model.spec.loaded
    if weights is not model.spec:
        name += f", defence {model.spec.defence_label}"
    if model.source is None:
        return [_line(name, "ok", "scripted: nothing to load")]
    if model.source.kind == "hub":
        revision = weights.revision or "main (not pinned)"
        return [
            _line(name, NOT_CHECKED, f"hub id {weights.id}, revision {revision}: looked up when it is loaded"),
            _line(f"{name}, chat template", NOT_CHECKED, "needs the tokenizer"),
        ]
    if model.source.kind == "organism":
        return [_line(name, "ok", _describe_organism(model.source.location))]
    if model.source.kind == "folder":
        require_readable_folder(Path(model.source.location))
    require_one_architecture(model.spec)
    return [_line(name, "ok", f"{model.source.kind} at {model.source.location}, {model.dtype} on {model.device}")]


def _describe_organism(model_id: str) -> str:
    organism = parse_organism(model_id)
    size = f"organism of {n_parameters(organism.architecture) / 1e6:.2f} M parameters"
    if is_trained(organism, cache_dir()):
        return f"{size} at {organism_folder(organism, cache_dir())}"
    return f"{size}: will be trained when first used, about {training_seconds(organism):.0f} s"


def _line(what: str, state: str, detail: str) -> dict[str, str]:
    return {"check": what, "state": state, "detail": detail}
