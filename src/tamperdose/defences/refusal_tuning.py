"""Refusal tuning: LoRA fine-tuning on refusals of harmful requests, mixed with answers to benign ones.

The mix keeps the model answering what it should: refusals alone teach it to refuse everything (Bianchi et al.
2024, arXiv:2309.07875, on exaggerated safety).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Example
from tamperdose.study import RefusalTuning, default_alpha


def tune_refusals(
    chat: ChatModel,
    defence: RefusalTuning,
    *,
    harmful: Sequence[Example],
    benign: Sequence[Example],
    folder: Path,
    on_step: Callable[[int, float], None],
) -> Checkpoint:
    """Train the defence's adapter and return its only checkpoint; resumes in `folder`."""
    # Here, not above: planning and checking a study must not load torch.
    from tamperdose.models.train import Recipe, Source, train_lora

    n_benign = round(defence.benign_ratio * defence.batch_size)
    recipe = Recipe(
        learning_rate=defence.learning_rate,
        batch_size=defence.batch_size,
        warmup_steps=defence.warmup_steps,
        lora_rank=defence.lora_rank,
        lora_alpha=default_alpha(defence.lora_alpha, defence.lora_rank),
        max_length=defence.max_length,
        seed=defence.seed,
    )
    sources = [Source(harmful, defence.batch_size - n_benign), Source(benign, n_benign)]
    return list(train_lora(chat, sources, recipe, doses=[defence.steps], folder=folder, on_step=on_step))[-1]
