"""Whether a trajectory's checkpoints fit the disk: said before the hours of training, not in the middle of them."""

import shutil
from pathlib import Path

from tamperdose.errors import RunError, explain
from tamperdose.models.flops import lora_parameters, n_parameters
from tamperdose.models.load import find_architecture
from tamperdose.run.plan import ArmPlan, ModelPlan
from tamperdose.study import Architecture

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight."""


def scratch_bytes(arm: ArmPlan, model: ModelPlan, architecture: Architecture) -> float:
    """Disk that an arm takes while it is measured: its checkpoints, and the state to resume from twice.

    A checkpoint of an adapter is in float32, one of all weights in the model's dtype. The state holds what learns and
    its two moments in float32; a new one is written before the old one goes. 0 where nothing is trained.
    """
    shape = arm.attack.training
    if shape is None:
        return 0.0
    if shape.lora_rank is None:
        n_weights, size = n_parameters(architecture), DTYPE_BYTES[model.dtype]
    else:
        n_weights, size = lora_parameters(architecture, shape.lora_rank), 4
    return float(n_weights) * (size * len(arm.saved) + 2 * 12)


def require_room(arm: ArmPlan, model: ModelPlan, folder: Path) -> None:
    """Refuse a training whose checkpoints would fill the disk.

    Raises:
        RunError: More is needed than is free where `folder` is to lie, what lies there already counted.
    """
    architecture = None if model.source is None else find_architecture(model.spec.loaded)
    if architecture is None:
        return
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed, free = scratch_bytes(arm, model, architecture) - there, free_bytes(folder)
    if needed > free:
        raise RunError(
            explain(
                f"{arm.id}: no room on the disk for its checkpoints",
                got=f"{free / 1e9:.1f} GB free, about {needed / 1e9:.1f} GB needed for {len(arm.saved)} checkpoints",
                remedy="list fewer `doses`, choose a folder on a larger disk with -o DIR, or train an adapter (lora)",
            )
        )


def free_bytes(folder: Path) -> int:
    """What is free on the disk of a folder, which need not be there yet."""
    return shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
