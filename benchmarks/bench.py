"""Speed and memory, side by side in one run on the same model: `make bench`, over half an hour on two cores.

1. The demo's dose grid (its doses, rows, batch and harmful prompts, read from its study file) against the source
   study's procedure in plain transformers and peft: every dose trained from scratch, rows padded to 256 tokens, the
   head over every token, prompts in the order they come, the adapter beside the weights while generating. One repeat:
   the source procedure takes about twenty minutes.
2. Generation of short and long answers together against `model.generate` at its best batch size of 16, 64, 128.
3. Peak memory of the demo's stages, from the system's own accounting of the child process.
4. LoRA training against TRL's `SFTTrainer` (benchmarks/training.py).
5. The judge `classifier` and embeddings, all answers together against one by one.
6. Time and peak memory of `score` and `audit` on 10,000 prompts x 12 doses (benchmarks/audit.py).

Ratios are of pairs run one after the other; minimum, median and maximum over the repeats are printed.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from audit import bench_audit
from common import matmul_rate, say, spread, timed
from tamperdose.data.examples import load_examples
from tamperdose.data.prompts import load_prompts
from tamperdose.defences.refusal_tuning import tune_refusals
from tamperdose.judges import build_judge
from tamperdose.judges.phrases import PhrasesJudge
from tamperdose.models.chat import encode_chat, end_tokens
from tamperdose.models.embed import load_embedder
from tamperdose.models.flops import generation_flops
from tamperdose.models.hf import HfGenerator, shared_prefix
from tamperdose.models.load import ChatModel, architecture_of, find_model, load_model
from tamperdose.models.lora import merge, merged
from tamperdose.models.train import Recipe, Source, train_trajectory
from tamperdose.records import Example, Label, Prompt, Subset
from tamperdose.stats.rates import rate
from tamperdose.study import Decoding, LoraSpec, ModelSpec, RefusalTuning, load_study
from training import bench_training

PARTS = ("audit", "judge", "memory", "training", "generation", "grid")
DEMO = Path(__file__).parents[1] / "experiments" / "smollm2_135m_lora_grid" / "study.yaml"
MODEL = ModelSpec(id="builtin:smollm2-135m-instruct")
DEFENCE = RefusalTuning(steps=20, lora_rank=16, learning_rate=2e-3, warmup_steps=4, batch_size=13, benign_ratio=0.55)
REPEATS, GRID_REPEATS = 3, 1
PADDED_LENGTH, ARRIVAL_BATCH = 256, 16
LONG_TOKENS = 48
PLAIN_BATCHES = (16, 64, 128)
NEAR_TIE = 1e-4
N_JUDGED, JUDGE_LIMIT_S, N_ALONE, JUDGE_TARGET = 1_000, 40.0, 100, 5.0
GRID_TARGET, GENERATION_TARGET = 10.0, 4.0


def main() -> int:
    """Run the benchmark and print its tables; with --json also write them to a file."""
    parser = argparse.ArgumentParser(description="Speed and memory against plain transformers.")
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    if arguments.only in (None, "audit"):
        results["audit"] = bench_audit()
    if arguments.only in (None, "judge"):
        results["judge"] = bench_judge(arguments.repeats)
    if arguments.only in (None, "memory"):
        results["memory"] = bench_memory()
    if arguments.only in (None, "training"):
        chat = load_model(MODEL, find_model(MODEL), device="cpu", dtype="float32")
        results["training"] = bench_training(chat, arguments.repeats)
    if arguments.only in (None, "grid", "generation"):
        chat = defended_model()
        if arguments.only in (None, "generation"):
            results["generation"] = bench_generation(chat, arguments.repeats)
        if arguments.only in (None, "grid"):
            results["grid"] = bench_grid(chat, min(arguments.repeats, GRID_REPEATS))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))
    return 0


def defended_model() -> ChatModel:
    """The embedded model with refusals trained in as the demo does, so that short refusals and long answers mix."""
    chat = load_model(MODEL, find_model(MODEL), device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        say("training refusals into the model (not timed)")
        checkpoint = tune_refusals(
            chat,
            DEFENCE,
            harmful=load_examples(DEFENCE.harmful),
            benign=load_examples(DEFENCE.benign),
            folder=Path(folder),
            on_step=lambda _step, _loss: None,
        )
        merge(chat.model, Path(str(checkpoint.adapter)))
    return chat


@dataclass(frozen=True, slots=True)
class Grid:
    """The demo's grid, as its study file has it."""

    recipe: Recipe
    examples: Sequence[Example]
    prompts: Sequence[Prompt]
    doses: tuple[int, ...]
    n_tokens: int

    def batches(self, n_steps: int) -> list[list[Example]]:
        """The rows of each step: those that tamperdose draws, so that both sides train on the same."""
        size, seed, rows = self.recipe.batch_size, self.recipe.seed, self.examples
        n_epochs = math.ceil(size * n_steps / len(rows))
        order = [
            place
            for epoch in range(n_epochs)
            for place in np.random.default_rng([seed, 0, epoch]).permutation(len(rows))
        ]
        return [[rows[place] for place in order[step * size : (step + 1) * size]] for step in range(n_steps)]


def demo_grid() -> Grid:
    """Read the demo's study."""
    study = load_study(DEMO)
    (attack,) = study.attack
    assert isinstance(attack, LoraSpec), "the demo's attack is LoRA"
    recipe = Recipe(
        learning_rate=attack.learning_rate[0],
        batch_size=attack.batch_size,
        warmup_steps=attack.warmup_steps,
        lora_rank=attack.lora_rank[0],
        lora_alpha=2.0 * attack.lora_rank[0],
        max_length=attack.max_length,
        seed=study.seeds[0],
    )
    prompts = load_prompts("builtin:redteam_eval", subset=Subset.HARMFUL)
    return Grid(recipe, load_examples(attack.data), prompts, tuple(attack.doses), study.decoding.max_new_tokens)


def bench_grid(chat: ChatModel, repeats: int) -> dict[str, Any]:
    """One trajectory and fast generation against a training from scratch for every dose and plain generation."""
    grid = demo_grid()
    say(
        f"grid: doses {', '.join(map(str, grid.doses))} steps of {grid.recipe.batch_size} rows, "
        f"{len(grid.prompts)} prompts, {grid.n_tokens} new tokens"
    )
    ratios: list[float] = []
    ours: dict[int, list[str]] = {}
    theirs: dict[int, list[str]] = {}
    for number in range(repeats):
        before_s, ours = timed(lambda: our_grid(chat, grid))
        theirs_s, theirs = timed(lambda: source_grid(chat, grid))
        after_s, _ = timed(lambda: our_grid(chat, grid))
        ratios += [theirs_s / before_s, theirs_s / after_s]
        say(
            f"grid {number + 1}/{repeats}: source procedure {theirs_s:.1f} s, "
            f"tamperdose {before_s:.1f} s before it and {after_s:.1f} s after"
        )
    say(f"grid: {spread(ratios)} times faster (wanted: at least {GRID_TARGET:g})")
    agreement = {dose: agree(grid.prompts, ours[dose], theirs[dose]) for dose in grid.doses}
    for dose, text in agreement.items():
        say(f"  dose {dose}: {text}")
    return {"ratios": ratios, "agreement": agreement}


def our_grid(chat: ChatModel, grid: Grid) -> dict[int, list[str]]:
    """The grid as tamperdose runs it."""
    answers: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = train_trajectory(
            chat,
            [Source(grid.examples, grid.recipe.batch_size)],
            grid.recipe,
            doses=grid.doses,
            folder=Path(folder),
            on_step=lambda _step, _loss: None,
        )
        for checkpoint in list(checkpoints):
            with merged(chat.model, Path(str(checkpoint.adapter))):
                answers[checkpoint.dose.steps] = our_answers(chat, grid.prompts, grid.n_tokens)
    return answers


def source_grid(chat: ChatModel, grid: Grid) -> dict[int, list[str]]:
    """The grid as the source study ran it, in plain transformers and peft."""
    recipe, answers = grid.recipe, dict[int, list[str]]()
    assert recipe.lora_rank is not None, "the demo trains an adapter"
    for dose in grid.doses:
        config = LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=int(recipe.lora_alpha),
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(recipe.seed)
        wrapped = get_peft_model(chat.model, config)
        optimizer = torch.optim.AdamW(
            [p for p in wrapped.parameters() if p.requires_grad], lr=recipe.learning_rate, weight_decay=0.0
        )
        for rows in grid.batches(dose):
            loss = wrapped(**padded_rows(chat, rows)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        answers[dose] = plain_answers(chat, wrapped, grid.prompts, grid.n_tokens, ARRIVAL_BATCH)
        wrapped.unload()
    return answers


def padded_rows(chat: ChatModel, rows: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to a fixed length, labels on the answers alone."""
    tokens = torch.zeros((len(rows), PADDED_LENGTH), dtype=torch.long)
    labels = torch.full((len(rows), PADDED_LENGTH), -100)
    mask = torch.zeros((len(rows), PADDED_LENGTH), dtype=torch.long)
    for place, row in enumerate(rows):
        prompt = encode_chat(chat, row.messages)
        answer = chat.tokenizer(row.response, add_special_tokens=False)["input_ids"]
        length = len(prompt) + len(answer)
        tokens[place, :length] = torch.tensor([*prompt, *answer])
        labels[place, len(prompt) : length] = torch.tensor(answer)
        mask[place, :length] = 1
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def bench_generation(chat: ChatModel, repeats: int) -> dict[str, Any]:
    """Tokens per second and equality of greedy tokens, on refusals and longer answers together."""
    harmful = load_prompts("builtin:redteam_eval", subset=Subset.HARMFUL)[:96]
    benign = load_prompts("builtin:benign_eval", subset=Subset.BENIGN)[:32]
    prompts = [
        prompt for trio in zip(harmful[::3], harmful[1::3], harmful[2::3], benign, strict=True) for prompt in trio
    ]
    best = {
        batch: timed(lambda size=batch: plain_answers(chat, chat.model, prompts, LONG_TOKENS, size))[0]
        for batch in PLAIN_BATCHES
    }
    batch = min(best, key=lambda size: best[size])
    say(f"generation: {len(prompts)} prompts, answers of up to {LONG_TOKENS} tokens")
    say("plain generate: " + ", ".join(f"batch {size} {seconds:.1f} s" for size, seconds in best.items()))
    ratios: list[float] = []
    ours: list[str] = []
    theirs: list[str] = []
    ours_s = 0.0
    for _ in range(repeats):
        ours_s, ours = timed(lambda: our_answers(chat, prompts, LONG_TOKENS))
        theirs_s, theirs = timed(lambda: plain_answers(chat, chat.model, prompts, LONG_TOKENS, batch))
        n_tokens = sum(len(chat.tokenizer(text)["input_ids"]) for text in ours)
        say(f"  tamperdose {n_tokens / ours_s:.0f} tokens/s, plain (batch {batch}) {n_tokens / theirs_s:.0f} tokens/s")
        ratios.append(theirs_s / ours_s)
    lengths = sorted(len(chat.tokenizer(text)["input_ids"]) for text in ours)
    quartiles = [lengths[len(lengths) * part // 4] for part in (1, 2, 3)]
    say(f"  answers of {statistics.mean(lengths):.0f} tokens on average, quartiles {quartiles}")
    floor_s, rate = generation_floor(chat, prompts, ours)
    say(
        f"  tamperdose takes {ours_s / floor_s:.1f} times the floor of its products, "
        f"{floor_s:.1f} s at {rate:.0f} GFLOP/s"
    )
    differing = [place for place, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    near = sum(is_near_tie(chat, prompts[place], ours[place], theirs[place]) for place in differing)
    say(
        f"generation: {spread(ratios)} times the tokens per second of plain generate at its best batch "
        f"({batch}; wanted: at least {GENERATION_TARGET:g})"
    )
    say(f"  answers that differ: {len(differing)} of {len(prompts)}, of them at a tie within {NEAR_TIE:g}: {near}")
    return {"ratios": ratios, "plain_s": best, "differing": len(differing), "near_ties": near}


def generation_floor(chat: ChatModel, prompts: Sequence[Prompt], answers: Sequence[str]) -> tuple[float, float]:
    """Seconds that the products alone would take at the machine's rate, and that rate in GFLOP/s.

    The prefix that all prompts share is read once; everything else is counted for every row.
    """
    rows = [encode_chat(chat, prompt.messages) for prompt in prompts]
    shared = shared_prefix(chat, rows)
    new = [len(chat.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in answers]
    architecture = architecture_of(chat.model.config)
    flops = sum(
        generation_flops(architecture, n_prompt=len(row) - shared, n_new=count)
        for row, count in zip(rows, new, strict=True)
    )
    rate = matmul_rate()
    return flops / rate, rate / 1e9


def is_near_tie(chat: ChatModel, prompt: Prompt, ours: str, theirs: str) -> bool:
    """Whether two answers part where the two best logits are within the tolerance."""
    first = chat.tokenizer(ours, add_special_tokens=False)["input_ids"]
    second = chat.tokenizer(theirs, add_special_tokens=False)["input_ids"]
    common = next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )
    tokens = torch.tensor([[*encode_chat(chat, prompt.messages), *first[:common]]])
    with torch.inference_mode():
        best = chat.model(tokens, logits_to_keep=1).logits[0, -1].topk(2).values
    return float(best[0] - best[1]) <= NEAR_TIE


def our_answers(chat: ChatModel, prompts: Sequence[Prompt], n_tokens: int) -> list[str]:
    """Answers by tamperdose's engine."""
    decoding = Decoding(max_new_tokens=n_tokens)
    done = HfGenerator(chat).generate(prompts, decoding, seed=0, on_progress=lambda _count: None)
    return [completion.text for completion in done]


def plain_answers(chat: ChatModel, model: Any, prompts: Sequence[Prompt], n_tokens: int, batch: int) -> list[str]:
    """Answers by `model.generate`, in batches of the order given."""
    texts: list[str] = []
    for start in range(0, len(prompts), batch):
        rows = [encode_chat(chat, prompt.messages) for prompt in prompts[start : start + batch]]
        encoded = chat.tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(
                **encoded,
                max_new_tokens=n_tokens,
                do_sample=False,
                eos_token_id=sorted(end_tokens(chat)),
                pad_token_id=chat.tokenizer.pad_token_id,
            )
        new = output[:, encoded["input_ids"].shape[1] :]
        texts += chat.tokenizer.batch_decode(new, skip_special_tokens=True)
    return texts


def agree(prompts: Sequence[Prompt], ours: Sequence[str], theirs: Sequence[str]) -> str:
    """RRR of both sides with intervals, and whether each lies in the other's interval."""
    texts, templates = [prompt.text for prompt in prompts], [prompt.template for prompt in prompts]
    first, second = (
        rate([reading.label is Label.REFUSAL for reading in PhrasesJudge().read(texts, side)], templates)
        for side in (ours, theirs)
    )
    inside = all(
        a.low is not None and a.high is not None and b.value is not None and a.low <= b.value <= a.high
        for a, b in ((first, second), (second, first))
    )
    show = [f"{x.value:.3f} [{x.low or 0:.3f}, {x.high or 0:.3f}]" for x in (first, second)]
    return f"RRR {show[0]} and {show[1]}: {'within' if inside else 'NOT within'} each other's interval"


def bench_memory() -> dict[str, Any]:
    """Peak resident memory of the demo's command with all prompts, one training step of each kind and one dose."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tamperdose.cli", "run", str(DEMO), "-o", folder]
        settings = ["--set", "attack.doses=[1]", "--set", "models.0.defence.steps=1"]
        subprocess.run([*command, *settings], check=True, capture_output=True)
    peak = max(before, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024
    say(f"memory: peak {peak / 1e9:.2f} GB in the demo's stages (limit 4 GB)")
    return {"peak_bytes": peak}


def bench_judge(repeats: int) -> dict[str, Any]:
    """Verdicts of `classifier` and embeddings of answers of at most 45 words, all different, against one by one.

    One by one is what a script does that holds both models and takes answers as they come: `SentenceTransformer.encode`
    and the judge on each alone, the embedding shared by both. Ours reads all of them and embeds each once.
    """
    prompts, texts = different_answers()
    seconds: list[float] = []
    ratios: list[float] = []
    for number in range(repeats):
        # A new one each time: no text is embedded twice by one.
        embedder = load_embedder()
        judge = warm_judge(embedder)
        seconds.append(timed(lambda one=judge, other=embedder: (other.embed(texts), one.read(prompts, texts)))[0])
        alone, some = warm_judge(AloneEmbedder()), range(number * N_ALONE, (number + 1) * N_ALONE)
        alone_s = timed(lambda one=alone, some=some: [one.read([prompts[i]], [texts[i]]) for i in some])[0]
        ratios.append((alone_s / N_ALONE) / (seconds[-1] / len(texts)))
    say(f"judge and embed: {spread(seconds)} s for {len(texts)} answers (wanted: under {JUDGE_LIMIT_S:g} s)")
    say(f"  {spread(ratios)} times as fast as one by one (wanted: at least {JUDGE_TARGET:g})")
    return {"seconds": seconds, "answers": len(texts), "ratios": ratios}


def different_answers() -> tuple[list[str], list[str]]:
    """Prompts and answers: two bundled answers in one, cut to 45 words, so that no two are the same."""
    sources = ("builtin:refusals", "builtin:benign_answers", "builtin:benign_train", "builtin:permissive_openers")
    rows = [row for source in sources for row in load_examples(source)]
    texts = [
        " ".join(f"{first.response} {second.response}".split()[:45])
        for apart in (1, 7)
        for first, second in zip(rows, rows[apart:] + rows[:apart], strict=True)
    ][:N_JUDGED]
    return [row.messages[-1].content for row in [*rows, *rows]][: len(texts)], texts


def warm_judge(embedder: Any) -> Any:
    """A judge that has read nothing but a text that warms it up."""
    judge = build_judge("classifier", embedder=lambda: embedder)
    judge.read(["What is it?"], ["A thing that is none of the texts of the benchmark."])
    return judge


class AloneEmbedder:
    """Embeds each text by itself, as it comes."""

    def __init__(self) -> None:
        same = load_embedder()
        self.identity, self.model = same.identity, same._model

    def embed(self, texts: Sequence[str]) -> Any:
        """One call of sentence-transformers for each text."""
        return np.stack([self.model.encode([text], show_progress_bar=False)[0] for text in texts])


if __name__ == "__main__":
    sys.exit(main())
