"""Where a run's numbers come from: the resolved study, versions, commit, and the hashes of its data."""

import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tamperdose import __version__
from tamperdose.errors import RunError, explain
from tamperdose.files import write_json, write_text
from tamperdose.judges import judge_identity
from tamperdose.run.plan import ModelPlan, Plan, package_version
from tamperdose.study import VllmEngine, judge_name

_REMOVE = "remove manifest.json and run the study again: finished stages are kept"

PACKAGES = ("torch", "transformers", "peft", "safetensors", "sentence-transformers", "numpy", "scipy", "statsmodels")
"""Packages whose version may change a number."""


def check_folder(run_dir: Path, study_name: str) -> None:
    """Refuse a folder that holds another study's results.

    Raises:
        RunError: It does, or what it holds cannot be told.
    """
    path = run_dir / "manifest.json"
    if not path.exists():
        _require_empty(run_dir)
        return
    manifest = read_manifest(run_dir)
    if manifest.get("study") != study_name:
        raise RunError(
            explain(
                f"{run_dir} holds another study's results",
                got=f"'{manifest.get('study')}'",
                expected=f"an empty folder, or one of '{study_name}'",
                remedy="choose another folder with -o DIR",
            )
        )


def _require_empty(run_dir: Path) -> None:
    """Refuse a folder with files of somebody else's: results and a sweep of temporary files would go over them."""
    # The resolved study is written just before the manifest: a run may have been cut off between the two.
    ours = {"study.resolved.yaml"}
    foreign = sorted(item.name for item in run_dir.iterdir() if not item.name.startswith(".") and item.name not in ours)
    if foreign and not (run_dir / "ledger").is_dir():
        raise RunError(
            explain(
                f"{run_dir} holds other files",
                got=", ".join(foreign[:5]),
                expected="an empty folder, or one that tamperdose run has written",
                remedy="choose another folder with -o DIR",
            )
        )


def read_manifest(run_dir: Path) -> dict[str, Any]:
    """Read a run's manifest.

    Raises:
        RunError: There is none, or it is damaged.
    """
    path = run_dir / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        got = "no manifest.json" if run_dir.is_dir() else "no such folder"
        raise RunError(
            explain(f"{run_dir} is not a run's folder", got=got, expected="the -o folder of a run")
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(explain(f"cannot read {path}", got=str(error), remedy=_REMOVE)) from error
    if not isinstance(manifest, dict):
        raise RunError(
            explain(f"{path} is not a manifest", got=type(manifest).__name__, expected="a JSON object", remedy=_REMOVE)
        )
    return manifest


def require_finished(run_dir: Path) -> None:
    """Refuse a folder whose metrics are of another plan than its manifest: a run that was changed and not finished.

    Folders that name no plan (those of `score`, and of older versions) pass.

    Raises:
        RunError: They are, or the manifest or `metrics.json` cannot be read.
    """
    planned, path = read_manifest(run_dir).get("plan"), run_dir / "metrics.json"
    if planned is None:
        return
    try:
        measured = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(_unfinished(run_dir, "no metrics.json that can be read")) from error
    if not isinstance(measured, dict) or measured.get("plan") != planned:
        raise RunError(_unfinished(run_dir, "the metrics are of the study as it was before"))


def _unfinished(run_dir: Path, got: str) -> str:
    return explain(f"the run in {run_dir} is not finished", got=got, remedy="run the same command again")


def write_manifest(run_dir: Path, plan: Plan, study_path: Path | None) -> None:
    """Write `study.resolved.yaml` and `manifest.json`; nothing in them comes from the clock."""
    resolved = plan.study.model_dump(mode="json")
    write_text(run_dir / "study.resolved.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True))
    commit, dirty = git_state(Path(__file__).parents[1])
    write_json(
        run_dir / "manifest.json",
        {
            "study": plan.study.name,
            "study_path": None if study_path is None else str(study_path.resolve()),
            "study_digest": plan.study.digest,
            "plan": plan.digest,
            "headline_judge": plan.study.judge_names[0],
            "judges": list(plan.study.judge_names),
            "judge_versions": {judge_name(judge): judge_identity(judge) for judge in plan.study.judges},
            "tamperdose": __version__,
            "git_commit": commit,
            "git_dirty": dirty,
            "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}",
            "packages": {name: package_version(name) for name in packages_of(plan)},
            "data_sha256": dict(plan.data.sha256),
            "n_prompts": {subset.value: len(prompts) for subset, prompts in plan.data.prompts.items()},
            "decoding": plan.study.decoding.model_dump(mode="json"),
            "models": [_model(model) for model in plan.models],
            "limit": plan.limit,
            "keep_adapters": plan.study.keep_adapters,
            "keep_adapters_reason": plan.study.keep_adapters_reason,
        },
    )


def record_answers(run_dir: Path, settings: Mapping[str, Any], equivalence: Mapping[str, Any]) -> None:
    """Add to the manifest how the answers were had (decoding, dtype, chat template, engine), by arm and dose.

    With an engine that is not transformers, also what came of holding it against that, by the key of the model.
    """
    known = {"equivalence": dict(equivalence)} if equivalence else {}
    write_json(run_dir / "manifest.json", read_manifest(run_dir) | {"answers": settings} | known)


def packages_of(plan: Plan) -> list[str]:
    """The packages whose version may change a number of this plan."""
    served = ["vllm", "vllm-bnb-plugin"] if isinstance(plan.study.engine, VllmEngine) else []
    packed = ["bitsandbytes"] if any(model.spec.quantization for model in plan.models) else []
    return [*PACKAGES, *served, *packed]


def git_state(package: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout whose `src/tamperdose` a folder is, and whether anything in it is not committed.

    None for an installed package, even inside somebody else's repository.
    """
    top = _git(package, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() / "src" / "tamperdose" != package.resolve():
        return None, None
    changed = _git(package, "status", "--porcelain", "--untracked-files=no")
    untracked = _git(package, "status", "--porcelain", "--", str(package))
    return _git(package, "rev-parse", "HEAD"), bool(changed or untracked)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _model(model: ModelPlan) -> dict[str, Any]:
    return {
        "name": model.spec.label,
        "id": model.spec.loaded.id,
        "defence": model.spec.defence_label,
        "identity": dict(model.source.identity) if model.source else None,
        "device": model.device.split(":")[0],
        "dtype": model.dtype,
        "quantization": model.spec.quantization,
        "key": model.key,
        "arms": {arm.id: arm.key for arm in model.arms},
    }
