"""Refusal tuning: LoRA fine-tuning on refusals of harmful requests, mixed with answers to benign ones.

The mix keeps the model answering what it should: refusals alone teach it to refuse everything (Bianchi et al.
2024, arXiv:2309.07875, on exaggerated safety). By default the benign targets are the first words of the model's own
answers (Yang et al. 2024, arXiv:2402.13669, on self-distillation): they cost it little, so the few steps go into
telling the two kinds of request apart. The two kinds share every batch, or take turns at whole batches. The safety
adapter is trained here too.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tamperdose.models.load import ChatModel
from tamperdose.records import Checkpoint, Example, FinishReason, Prompt, Subset
from tamperdose.study import Decoding, TunedDefence, default_alpha

OWN_ANSWER_TOKENS = 12
"""Tokens of the model's own answers to train towards: whether it answers or refuses is settled in the first few."""


def tune_refusals(
    chat: ChatModel,
    defence: TunedDefence,
    *,
    harmful: Sequence[Example],
    benign: Sequence[Example],
    folder: Path,
    on_step: Callable[[int, float], None],
) -> Checkpoint:
    """Train the defence's adapter and return its only checkpoint; resumes in `folder`."""
    # Here, not above: planning and checking a study must not load torch.
    from tamperdose.models.train import Recipe, Source, Turns, train_trajectory

    if defence.benign_target == "model":
        benign = own_answers(chat, benign)
    recipe = Recipe(
        learning_rate=defence.learning_rate,
        batch_size=defence.batch_size,
        warmup_steps=defence.warmup_steps,
        lora_rank=defence.lora_rank,
        lora_alpha=default_alpha(defence.lora_alpha, defence.lora_rank),
        max_length=defence.max_length,
        seed=defence.seed,
        decay_steps=defence.steps,
    )
    if defence.mixing == "steps":
        size, share = defence.batch_size, defence.benign_ratio
        sources = [Source(harmful, size, Turns(share, own=False)), Source(benign, size, Turns(share, own=True))]
    else:
        sources = [Source(harmful, defence.batch_size - defence.n_benign), Source(benign, defence.n_benign)]
    return list(train_trajectory(chat, sources, recipe, doses=[defence.steps], folder=folder, on_step=on_step))[-1]


def own_answers(chat: ChatModel, examples: Sequence[Example]) -> list[Example]:
    """The same rows with the first words of the model's own greedy answers as targets."""
    from tamperdose.models.hf import HfGenerator

    prompts = [
        Prompt(id=str(place), messages=example.messages, subset=Subset.BENIGN, template=str(place))
        for place, example in enumerate(examples)
    ]
    decoding = Decoding(max_new_tokens=OWN_ANSWER_TOKENS)
    answers = HfGenerator(chat).generate(prompts, decoding, seed=0, on_progress=lambda _count: None)
    return [
        replace(example, response=answer.text, ends=answer.finish_reason is FinishReason.STOP)
        for example, answer in zip(examples, answers, strict=True)
        if answer.text.strip()
    ]
