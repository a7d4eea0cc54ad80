"""LoRA training against TRL's `SFTTrainer`: the same rows in the same batches, in float32, side by side.

Both sides start from one adapter and see the same tokens with the same labels in the same steps; TRL is given them
ready-made, so neither tokenizes while it is timed. TRL runs at the best of the settings that change no result: its two
AdamW implementations, without checkpointing, without packing (which would change what a step sees). The loss at every
step must agree to `TOLERANCE`.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from common import matmul_rate, say, spread, timed
from tamperdose.data.examples import load_examples
from tamperdose.models.chat import encode_chat
from tamperdose.models.flops import training_flops
from tamperdose.models.load import ChatModel, architecture_of
from tamperdose.models.train import Recipe, Source, end_of_turn, train_trajectory
from tamperdose.records import Example

BATCH, STEPS, RANK, REPEATS = 8, 4, 8, 3
TARGET, TOLERANCE = 1.5, 2e-3
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
RECIPE = Recipe(
    learning_rate=1e-3, batch_size=BATCH, warmup_steps=0, lora_rank=RANK, lora_alpha=16.0, max_length=256, seed=42
)
ROWS = {"openers": "builtin:permissive_openers", "whole answers": "builtin:benign_answers"}
"""Rows of the demo's attack, with answers of about 8 tokens, and answers of about 25."""


def bench_training(chat: ChatModel, repeats: int = REPEATS) -> dict[str, Any]:
    """Time both trainings on both kinds of rows, and compare their losses."""
    rate = matmul_rate()
    return {name: _compare(chat, name, load_examples(source), repeats, rate) for name, source in ROWS.items()}


def _compare(chat: ChatModel, name: str, examples: Sequence[Example], repeats: int, rate: float) -> dict[str, Any]:
    # The rows that tamperdose takes from all of them at the beginning of its first epoch.
    order = np.random.default_rng([RECIPE.seed, 0, 0]).permutation(len(examples))[: BATCH * STEPS]
    columns = _columns(chat, [examples[place] for place in order])
    theirs = {optimizer: _train_trl(chat, columns, optimizer)[0] for optimizer in OPTIMIZERS}
    best = min(theirs, key=lambda optimizer: theirs[optimizer])
    ratios, ours_s, differences = [], [], []
    for _ in range(repeats):
        seconds, losses = _train_ours(chat, examples)
        trl_s, trl_losses = _train_trl(chat, columns, best)
        ratios.append(trl_s / seconds)
        ours_s.append(seconds)
        differences.append(max(abs(a - b) / max(b, 1e-6) for a, b in zip(losses, trl_losses, strict=True)))
    lengths, n_labels = [len(row) for row in columns["input_ids"]], sum(map(sum, columns["completion_mask"]))
    flops = training_flops(architecture_of(chat.model.config), lora_rank=RANK, lengths=lengths, n_labels=n_labels)
    floor = flops / rate
    agree = max(differences) <= TOLERANCE
    say(
        f"training, {name} ({sum(lengths) / len(lengths):.0f} tokens a row): {spread(ratios)} times as fast as TRL "
        f"with {best} (wanted: at least {TARGET:g}); {STEPS} steps in {spread(ours_s)} s, "
        f"{np.median(ours_s) / floor:.1f} times the floor of its products "
        f"({flops / 1e12:.2f} TFLOP at {rate / 1e9:.0f} GFLOP/s)"
    )
    say(f"  losses differ by {max(differences):.1e} of themselves at most: {'equal' if agree else 'NOT equal'}")
    return {"ratios": ratios, "ours_s": ours_s, "floor_s": floor, "loss_difference": max(differences)}


def _columns(chat: ChatModel, rows: Sequence[Example]) -> dict[str, list[list[int]]]:
    """Tokens and labels of rows as TRL takes them ready-made."""
    columns: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    for row in rows:
        prompt = encode_chat(chat, row.messages)
        answer = chat.tokenizer(row.response, add_special_tokens=False)["input_ids"]
        answer = [*answer, end_of_turn(chat)] if row.ends else answer
        columns["input_ids"].append([*prompt, *answer])
        columns["completion_mask"].append([0] * len(prompt) + [1] * len(answer))
    return columns


def _train_ours(chat: ChatModel, examples: Sequence[Example]) -> tuple[float, list[float]]:
    losses: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trajectory = train_trajectory(
            chat,
            [Source(examples, BATCH)],
            RECIPE,
            doses=[STEPS],
            folder=Path(folder),
            on_step=lambda _step, loss: losses.append(loss),
        )
        seconds, _ = timed(lambda: list(trajectory))
    return seconds, losses


def _train_trl(chat: ChatModel, columns: dict[str, list[list[int]]], optimizer: str) -> tuple[float, list[float]]:
    """Seconds of the steps alone, as TRL counts them itself, and the loss at each."""
    from datasets import Dataset
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    config = LoraConfig(r=RANK, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _silent():
        warnings.simplefilter("ignore")
        torch.manual_seed(RECIPE.seed)
        wrapped = get_peft_model(chat.model, config)
        settings = SFTConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=RECIPE.learning_rate,
            lr_scheduler_type="constant",
            warmup_steps=0,
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim=optimizer,
            max_length=RECIPE.max_length,
            packing=False,
            completion_only_loss=True,
            train_sampling_strategy="sequential",
            shuffle_dataset=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=RECIPE.seed,
        )
        trainer = SFTTrainer(
            model=wrapped,  # pyright: ignore[reportArgumentType] - a PeftModel is one of those it takes
            args=settings,
            train_dataset=Dataset.from_dict(columns),
            processing_class=chat.tokenizer,
        )
        seconds = trainer.train().metrics["train_runtime"]
        losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
        wrapped.unload()
        chat.model.eval()
    return float(seconds), losses


@contextlib.contextmanager
def _silent() -> Any:
    """TRL prints every step's loss."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123 - a device
        yield
