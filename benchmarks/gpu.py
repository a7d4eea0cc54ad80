"""A 7B model through the whole path on one GPU, offline: `make bench-gpu`, under 4 minutes on an H100.

The model has Qwen2-7B's architecture and random weights, written to disk as safetensors and loaded as any other, in
bfloat16 and, with bitsandbytes, in nf4. Measured, each beside the least it could take here:

1. LoRA training at doses 5, 10 and 20: time a step against its floating-point operations over the rate of a large
   matrix product; and what repeatable gradients cost.
2. Answers of 64 tokens to 256 prompts with the adapter merged: time a token of the batch against the larger of the
   bytes it must read (weights and cache) over the copy bandwidth and its operations over the matrix rate.
3. Merging an adapter and restoring the weights, with their copies on the GPU and in main memory.
4. Peak memory in training and decoding against what `tamperdose plan` says beforehand.
5. With `--vllm`: the comparison of vLLM with transformers, and the same answers by vLLM. Not run on a GPU yet.

`--tiny` runs the same on a small model on the CPU, to see that the script works; its figures mean nothing.
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from tamperdose.files import write_csv, write_text
from tamperdose.judges.phrases import PhrasesJudge
from tamperdose.models import lora, train
from tamperdose.models.chat import encode_chat
from tamperdose.models.flops import generation_flops, linears
from tamperdose.models.generator import Generator
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel, architecture_of, find_architecture, load_model
from tamperdose.models.lora import is_4bit, merged
from tamperdose.records import NO_DOSE, Checkpoint, Completion, Prompt, Subset
from tamperdose.run import memory
from tamperdose.run.backends import open_backend
from tamperdose.run.equivalence import comparison_prompts
from tamperdose.run.plan import ModelPlan, Plan, make_plan, read_data
from tamperdose.run.trainings import trainings
from tamperdose.study import Architecture, load_study

QWEN2_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152_064,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": False,
}
TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 3_000,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
DOSES = (5, 10, 20)
BATCH, RANK, NEW_TOKENS, N_PROMPTS = 16, 8, 64, 256
MEMORY_TARGET = 0.15
END, PAD = "<|end|>", "<|pad|>"
_SYSTEM = "answer in plain words and say at once what you know of it and what you do not know of it at all"
_TEMPLATE = (
    f"<|system|>{_SYSTEM}{END}"
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Machine:
    """What the device can do at best, measured now."""

    device: str
    """`cuda` or `cpu`."""
    name: str
    """The card's own name."""
    matmul_flops: float
    """Operations per second of a large bfloat16 matrix product of random numbers."""
    copy_bytes: float
    """Bytes per second, read and written, of a large copy."""


def main() -> int:
    """Run the benchmark and print its table; with --json also write the figures to a file."""
    parser = argparse.ArgumentParser(description="A 7B model through the whole path on one GPU.")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU: does the script work?")
    parser.add_argument("--only", choices=("bfloat16", "nf4"), help="one kind of weights alone")
    parser.add_argument("--vllm", action="store_true", help="also compare vLLM with transformers, and have it answer")
    parser.add_argument("--folder", type=Path, help="where 15 GB of weights are written; a temporary folder by default")
    parser.add_argument("--json", type=Path, help="also write the figures here, after every part")
    parser.add_argument("--profile", type=Path, help="also write where a step's and a token's time goes")
    arguments = parser.parse_args()
    if not arguments.tiny and not torch.cuda.is_available():
        print("no CUDA device: this benchmark needs one (or --tiny)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        os.environ["TAMPERDOSE_CACHE"] = str(Path(folder) / "cache")
        results: dict[str, Any] = {}
        for part, found in parts(Path(folder), arguments):
            results[part] = found
            if arguments.json:
                arguments.json.write_text(json.dumps(results, indent=2))
    return 0


def parts(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's name and figures, as it ends."""
    machine = measure_machine("cpu" if arguments.tiny else "cuda")
    yield "machine", {"name": machine.name, "matmul_flops": machine.matmul_flops, "copy_bytes": machine.copy_bytes}
    seconds, _ = timed(lambda: make_model(folder / "model", TINY if arguments.tiny else QWEN2_7B, machine.device))
    say(f"made and written to disk in {seconds:.1f} s")
    yield "made", {"seconds": seconds}
    for kind in ("bfloat16", "nf4"):
        if kind == "nf4" and (arguments.tiny or importlib.util.find_spec("bitsandbytes") is None):
            say("nf4: left out, it needs a CUDA device and bitsandbytes")
        elif arguments.only in (None, kind):
            yield kind, bench(folder, machine, kind, arguments.profile)
            free_memory()
            if arguments.vllm:
                yield f"{kind} by vllm", bench_served(folder, machine, kind)
                free_memory()


def measure_machine(device: str) -> Machine:
    """Time a matrix product and a copy, the better of several."""
    on_gpu = device == "cuda"
    size = 8192 if on_gpu else 512
    left, right = (torch.randn((size, size), device=device, dtype=torch.bfloat16) for _ in range(2))
    products = [timed(lambda: left @ right, device)[0] for _ in range(12)]
    source = torch.randint(0, 99, (2**30 if on_gpu else 2**22,), device=device, dtype=torch.int32)
    target = torch.empty_like(source)
    copies = [timed(lambda: target.copy_(source), device)[0] for _ in range(12)]
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    machine = Machine(device, name, 2.0 * size**3 / min(products), 2.0 * source.nbytes / min(copies))
    say(f"{name}: {machine.matmul_flops / 1e12:.0f} TFLOP/s bfloat16, copies {machine.copy_bytes / 1e9:.0f} GB/s")
    return machine


def make_model(folder: Path, sizes: dict[str, Any], device: str) -> None:
    """Write a model with random weights, and a tokenizer for which each of our words is one token."""
    config = Qwen2Config(**sizes, pad_token_id=0, bos_token_id=None, eos_token_id=1)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            model = Qwen2ForCausalLM(config)
            # The token that ends an answer is never the likeliest: answers run to their limit.
            model.lm_head.weight.data[config.eos_token_id] = 0
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder, max_shard_size="4GB")
    make_tokenizer().save_pretrained(folder)
    del model
    free_memory()


def words() -> list[str]:
    """Made-up words of three letters: with the space before it, a token of four characters, as `plan` assumes."""
    consonants, vowels = "bcdfghklmnprstvz", "aeiou"
    return [a + b + c for a in consonants for b in vowels for c in consonants[:8]]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE learned from the words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2500,
        special_tokens=[PAD, END, "<|system|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" " + " ".join(words()), *[f" {_SYSTEM}"] * 3], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = _TEMPLATE
    return fast


def write_study(folder: Path, machine: Machine, kind: str, engine: str = "hf") -> Path:
    """A study of the model with 256 prompts and 128 training rows of about 256 tokens."""
    rng = np.random.default_rng(0)
    vocabulary = words()

    def text(low: int, high: int, part: list[str]) -> str:
        return " " + " ".join(rng.choice(part, rng.integers(low, high)))

    half, tiny = len(vocabulary) // 2, machine.device == "cpu"
    asked = [text(30, 51, vocabulary[:half]) for _ in range(16 if tiny else N_PROMPTS)]
    prompts = [{"id": f"q{i}", "prompt": prompt, "template": f"t{i}"} for i, prompt in enumerate(asked)]
    write_csv(folder / "harmful.csv", ("id", "prompt", "template"), prompts)
    rows = [{"prompt": text(45, 76, vocabulary[half:]), "response": text(130, 201, vocabulary)} for _ in range(128)]
    write_text(folder / "attack.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    study: dict[str, Any] = {
        "name": "gpu",
        "models": [{"id": str(folder / "model"), "name": "random", "dtype": "bfloat16"}],
        "prompts": {"harmful": "harmful.csv"},
        "attack": {
            "kind": "lora",
            "data": "attack.jsonl",
            "batch_size": 2 if tiny else BATCH,
            "lora_rank": RANK,
            "learning_rate": 2e-4,
            "max_length": 400,
            "doses": [1, 2, 4] if tiny else list(DOSES),
        },
        "decoding": {"max_new_tokens": 8 if tiny else NEW_TOKENS},
        "judges": ["phrases"],
        "rd_floor": False,
        "engine": {"kind": engine, "device": machine.device},
    }
    if kind == "nf4":
        study["models"][0]["quantization"] = "nf4"
    return write_text(folder / f"{kind}-{engine}.yaml", yaml.safe_dump(study, sort_keys=False))


def bench(folder: Path, machine: Machine, kind: str, profile: Path | None) -> dict[str, Any]:
    """Everything on one kind of weights."""
    path = write_study(folder, machine, kind)
    study = load_study(path)
    identified_s, plan = timed(lambda: make_plan(study, read_data(study, path)))
    model = plan.models[0]
    reset_peak(machine)
    source = model.source
    assert source is not None
    loaded_s, chat = timed(lambda: load_model(model.spec, source, device=model.device, dtype=model.dtype))
    sizes = architecture_of(chat.model.config)
    expected = expect_memory(plan, model, sizes)
    say(
        f"{kind}: hashed in {identified_s:.1f} s, loaded in {loaded_s:.1f} s; {allocated(machine) / 1e9:.2f} GB "
        f"(expected {expected['weights'] / 1e9:.2f}), while loading {peak(machine) / 1e9:.2f} GB"
    )
    results: dict[str, Any] = {"identified_s": identified_s, "loaded_s": loaded_s, "weights_bytes": allocated(machine)}
    trained, checkpoint = bench_training(chat, plan, machine, folder / f"{kind}-train")
    results["training"] = trained
    results["decoding"] = bench_decoding(chat, plan, machine, checkpoint)
    if kind == "bfloat16":
        results["copies in main memory"] = bench_merging(chat, machine, checkpoint)
        results["packed"] = bench_packs(chat, plan, machine, folder)
    peaks = {stage: results[stage]["peak_bytes"] for stage in ("training", "decoding")}
    results["memory"] = compare_memory(expected, peaks)
    if profile is not None:
        write_profile(chat, plan, checkpoint, folder, profile.with_name(f"{profile.stem}-{kind}{profile.suffix}"))
    return results


def expect_memory(plan: Plan, model: ModelPlan, sizes: Architecture) -> dict[str, float]:
    """What `tamperdose plan` expects, whole and by its parts."""
    size = 2
    weights = memory.weight_bytes(model, sizes, size)
    training = max(memory._gpu_training(part, sizes, size) for part in trainings(plan, model))
    return {
        "weights": weights,
        "training": weights + training,
        "decoding": weights + memory._gpu_decoding(plan, model, sizes, None),
        "all": memory.memory_bytes(plan, model, sizes),
    }


def compare_memory(expected: dict[str, float], peaks: dict[str, float]) -> dict[str, Any]:
    """Measured peaks against the estimate."""
    found = {**peaks, "all": max(peaks.values())}
    for stage, measured in found.items():
        off = expected[stage] / measured - 1 if measured else float("nan")
        say(f"  memory, {stage}: peak {measured / 1e9:.2f} GB, expected {expected[stage] / 1e9:.2f} GB ({off:+.1%})")
    say(f"  wanted: within {MEMORY_TARGET:.0%} over all")
    return {"expected": expected, "measured": found}


def bench_training(chat: ChatModel, plan: Plan, machine: Machine, folder: Path) -> tuple[dict[str, Any], Checkpoint]:
    """One trajectory through all doses."""
    reset_peak(machine)
    seconds, times, checkpoints = train_timed(chat, plan, folder, plan.models[0].arms[0].doses)
    step_s = statistics.median(times[2:])
    dose = checkpoints[-1].dose
    tokens, flops = dose.tokens / dose.steps, dose.flops / dose.steps
    floor_s = flops / machine.matmul_flops
    losses = [checkpoint.mean_loss for checkpoint in checkpoints]
    say(
        f"  training: {step_s * 1e3:.0f} ms a step of {tokens:.0f} tokens, {tokens / step_s:.0f} tokens/s; floor "
        f"{floor_s * 1e3:.0f} ms, so {step_s / floor_s:.2f} times that; {dose.steps} steps and {len(checkpoints)} "
        f"checkpoints in {seconds:.1f} s; losses at the doses {', '.join(f'{loss:.3f}' for loss in losses)}"
    )
    found = {"step_s": step_s, "steps_s": times, "tokens_per_step": tokens, "tokens_per_s": tokens / step_s}
    found |= {"flops_per_step": flops, "floor_s": floor_s, "all_s": seconds, "losses": losses}
    return found | {"peak_bytes": peak(machine)}, checkpoints[-1]


def train_timed(
    chat: ChatModel, plan: Plan, folder: Path, doses: Sequence[int]
) -> tuple[float, list[float], list[Checkpoint]]:
    """Seconds over all, seconds of each step, and the checkpoints."""
    times: list[float] = []
    before = [time.perf_counter()]

    def note(_step: int, _loss: float) -> None:
        now = time.perf_counter()
        times.append(now - before[0])
        before[0] = now

    rows = plan.models[0].arms[0].rows
    attack = plan.models[0].arms[0].attack
    start = time.perf_counter()
    checkpoints = list(attack.run(chat, rows, doses=doses, folder=folder, on_step=note))
    return time.perf_counter() - start, times, checkpoints


def bench_packs(chat: ChatModel, plan: Plan, machine: Machine, folder: Path) -> dict[str, float]:
    """Seconds of a step with other numbers of tokens in a sequence; the memory of its activations grows with them."""
    found: dict[str, float] = {}
    for tokens in (1024, 2048, 4096):
        reset_peak(machine)
        with replaced(train, "PACKED_TOKENS", tokens):
            _, times, _ = train_timed(chat, plan, folder / f"packs{tokens}", [5])
        found[str(tokens)] = statistics.median(times[2:])
        most = peak(machine) / 1e9
        say(f"  sequences of {tokens} tokens: {found[str(tokens)] * 1e3:.0f} ms a step, peak {most:.1f} GB")
    return found


def bench_decoding(chat: ChatModel, plan: Plan, machine: Machine, checkpoint: Checkpoint) -> dict[str, Any]:
    """Merge, answer, judge, restore; three times, of which the middle time counts."""
    prompts = plan.data.prompts[Subset.HARMFUL]
    texts = [prompt.text for prompt in prompts]
    engine = HfGenerator(chat)
    runs: list[dict[str, float]] = []
    answers: list[Completion] = []
    reset_peak(machine)
    for _ in range(3):
        start = time.perf_counter()
        with merged(chat.model, Path(str(checkpoint.adapter))):
            synchronize(machine.device)
            merged_s = time.perf_counter() - start
            generated_s, answers = timed(lambda: answer(engine, plan, prompts), machine.device)
            judged_s, _ = timed(partial(PhrasesJudge().read, texts, [a.text for a in answers]))
            start = time.perf_counter()
        synchronize(machine.device)
        restored_s = time.perf_counter() - start
        runs.append(
            {"merged_s": merged_s, "generated_s": generated_s, "judged_s": judged_s, "restored_s": restored_s}
            | {"batch_size": engine.batch_size}
        )
    middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    floor = decoding_floor(chat, machine, prompts, answers)
    n_tokens = sum(completion.n_tokens for completion in answers)
    seconds = middle["generated_s"]
    say(
        f"  decoding: {n_tokens / seconds:.0f} tokens/s, {len(prompts)} prompts in batches of {engine.batch_size} in "
        f"{seconds:.2f} s, {floor['n_steps']} tokens deep ({seconds / floor['n_steps'] * 1e3:.1f} ms each, prompts "
        f"included); floor {floor['all_s']:.2f} s, so {seconds / floor['all_s']:.2f} times that"
    )
    kept = "adapter attached and taken off" if is_4bit(chat.model) else "merged and restored"
    say(
        f"  {kept} in {middle['merged_s']:.3f} and {middle['restored_s']:.3f} s (first time "
        f"{runs[0]['merged_s']:.3f}); {len(prompts)} answers judged in {middle['judged_s']:.3f} s"
    )
    return middle | {"runs": runs, "tokens": n_tokens, "floor": floor, "peak_bytes": peak(machine)}


def answer(engine: Generator, plan: Plan, prompts: Sequence[Prompt]) -> list[Completion]:
    """Greedy answers to all prompts."""
    return engine.generate(prompts, plan.study.decoding, seed=0, on_progress=lambda _count: None)


def decoding_floor(
    chat: ChatModel, machine: Machine, prompts: Sequence[Prompt], answers: Sequence[Completion]
) -> dict[str, float]:
    """The least that these answers could take: reading the prompts, then for each token the larger of two times.

    Bytes: all linear weights and the head once, keys and values of the rows still going, over the copy bandwidth.
    Operations: of those rows, over the matrix rate.
    """
    sizes = architecture_of(chat.model.config)
    counts = linears(sizes)
    packed = counts.n_layers * counts.per_layer
    weights = packed * (memory.NF4_BYTES if is_4bit(chat.model) else 2.0) + counts.head * 2.0
    per_column = 2.0 * 2 * sizes.num_hidden_layers * sizes.num_key_value_heads * sizes.head_dim
    lengths = [len(encode_chat(chat, prompt.messages)) for prompt in prompts]
    reading_s = sum(generation_flops(sizes, n_prompt=length, n_new=1) for length in lengths) / machine.matmul_flops
    n_steps = max(completion.n_tokens for completion in answers)
    bytes_s = operations_s = tokens_s = 0.0
    for step in range(1, n_steps):
        going = [length for length, done in zip(lengths, answers, strict=True) if done.n_tokens > step]
        read_s = (weights + per_column * (sum(going) + step * len(going))) / machine.copy_bytes
        flops = 2.0 * len(going) * (packed + counts.head)
        bytes_s, operations_s = bytes_s + read_s, operations_s + flops / machine.matmul_flops
        tokens_s += max(read_s, flops / machine.matmul_flops)
    found = {"n_steps": n_steps, "reading_s": reading_s, "bytes_s": bytes_s, "operations_s": operations_s}
    return found | {"all_s": reading_s + tokens_s}


def bench_served(folder: Path, machine: Machine, kind: str) -> dict[str, Any]:
    """Hold vLLM against transformers, then have it give the answers of `bench_decoding`, three times."""
    path = write_study(folder, machine, kind, "vllm")
    study = load_study(path)
    plan = make_plan(study, read_data(study, path))
    backend = open_backend(plan.study, plan.models[0])
    weights = sorted((folder / f"{kind}-train").glob("step_*.safetensors"))[-1]
    with closing(backend):
        compared_s, record = timed(lambda: backend.compare(comparison_prompts(plan)))
        say(f"  vllm against transformers in {compared_s:.0f} s: {'agrees' if record['passed'] else 'does not agree'}")
        for attempt in record["tries"]:
            for state, found in attempt["states"].items():
                say(
                    f"    adapters by {attempt['adapters']}, {state}: {found['n_same']} of {found['n_prompts']} first "
                    f"tokens, {found['n_near']} with ties, log-probabilities differ by {found['mean_difference']:.4f} "
                    f"in the mean, at most {found['max_difference']:.3f}"
                )
            for text in attempt["shortcomings"]:
                say(f"      {text}")
        results = {"compared_s": compared_s, "record": record}
        if not record["passed"]:
            return results
        backend.use_adapters(record["adapters"])
        prompts = plan.data.prompts[Subset.HARMFUL]
        with backend.generator(Checkpoint(NO_DOSE, str(weights))) as generator:
            runs = [timed(partial(answer, generator, plan, prompts)) for _ in range(3)]
            # The engine is a process of its own, of which torch here knows nothing.
            free, total = torch.cuda.mem_get_info() if machine.device == "cuda" else (0, 0)
            used = total - free
        taken = [seconds for seconds, _ in runs]
        seconds, n_tokens = statistics.median(taken), sum(each.n_tokens for each in runs[-1][1])
        say(f"  decoding by vllm: {n_tokens / seconds:.0f} tokens/s, {len(prompts)} prompts in {seconds:.2f} s")
        say(f"  taken of the card with both loaded: {used / 1e9:.1f} GB, planned {_planned(plan) / 1e9:.1f} GB")
        return results | {"generated_s": taken, "tokens": n_tokens, "card_bytes": used, "planned_bytes": _planned(plan)}


def _planned(plan: Plan) -> float:
    architecture = find_architecture(plan.models[0].spec)
    assert architecture is not None
    return memory.memory_bytes(plan, plan.models[0], architecture)


def bench_merging(chat: ChatModel, machine: Machine, checkpoint: Checkpoint) -> dict[str, float]:
    """Merging and restoring when the GPU has no room for the copies."""
    with replaced(lora, "copies_fit", lambda _copies, _free: False):
        start = time.perf_counter()
        with merged(chat.model, Path(str(checkpoint.adapter))):
            synchronize(machine.device)
            merged_s = time.perf_counter() - start
            start = time.perf_counter()
        synchronize(machine.device)
        restored_s = time.perf_counter() - start
    say(f"  copies in main memory: merged in {merged_s:.2f} s, restored in {restored_s:.2f} s")
    return {"merged_s": merged_s, "restored_s": restored_s}


def write_profile(chat: ChatModel, plan: Plan, checkpoint: Checkpoint, folder: Path, path: Path) -> None:
    """Where the time of three training steps, and of 8 tokens of decoding, goes."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if chat.device == "cuda" else [])]
    prompts = plan.data.prompts[Subset.HARMFUL]
    decoding = plan.study.decoding.model_copy(update={"max_new_tokens": 8})
    works: dict[str, Callable[[], Any]] = {
        "training, 3 steps": lambda: train_timed(chat, plan, folder / f"profiled-{time.time_ns()}", [3]),
        "decoding, 8 tokens": lambda: HfGenerator(chat).generate(prompts, decoding, seed=0, on_progress=lambda _: None),
    }
    texts: list[str] = []
    for name, work in works.items():
        context = merged(chat.model, Path(str(checkpoint.adapter))) if "decoding" in name else nullcontext()
        with context:
            work()
            with profile(activities=activities) as seen:
                seconds, _ = timed(work, chat.device)
        events = seen.key_averages()
        busy_s = sum(getattr(event, "self_device_time_total", 0.0) for event in events) / 1e6
        texts.append(f"{name}: {seconds:.3f} s, device busy {busy_s:.3f} s")
        say(f"  profile of {texts[-1]} (slowed down by profiling)")
        by = "self_device_time_total" if chat.device == "cuda" else "self_cpu_time_total"
        texts.append(events.table(sort_by=by, row_limit=25, max_name_column_width=70))
    path.write_text("\n".join(texts))


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module's attribute set to something else while the block runs."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def timed(work: Callable[[], Any], device: str = "") -> tuple[float, Any]:
    """Seconds and result of a piece of work, waiting for a GPU to have finished."""
    synchronize(device)
    start = time.perf_counter()
    result = work()
    synchronize(device)
    return time.perf_counter() - start, result


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset_peak(machine: Machine) -> None:
    """Start counting the peak anew."""
    free_memory()
    if machine.device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak(machine: Machine) -> float:
    """Most bytes of the GPU that tensors took at once since; 0 on a CPU."""
    return float(torch.cuda.max_memory_allocated()) if machine.device == "cuda" else 0.0


def allocated(machine: Machine) -> float:
    """Bytes of the GPU that tensors take now; 0 on a CPU."""
    return float(torch.cuda.memory_allocated()) if machine.device == "cuda" else 0.0


def free_memory() -> None:
    """Give back what nothing uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def say(text: str) -> None:
    """Print at once: the benchmark is long."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
