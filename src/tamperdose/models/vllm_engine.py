"""Generation with vLLM: one engine for each base, adapters with the request. The extra `vllm`.

Written against the interface of vLLM 0.32 (`LLM`, `SamplingParams`, `LoRARequest`). Tokens go in and come out; the chat
template and the tokenizer are ours, as with transformers, so that both engines are asked the same.
"""

import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tamperdose.errors import ModelError, explain
from tamperdose.extras import require
from tamperdose.files import digest, write_text
from tamperdose.models.chat import encode_prompts, end_tokens
from tamperdose.models.generator import OnProgress
from tamperdose.models.load import ChatModel
from tamperdose.models.lora import peft_config, save_adapter, stack_adapters
from tamperdose.records import Completion, FinishReason, Prompt
from tamperdose.stats.equivalence import Reading
from tamperdose.study import Decoding, VllmEngine

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank`."""
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
"""The variable that chooses kernels whose sums do not hang on the batch."""

# vLLM caches adapters by their number and does not look whether a number comes back with other weights.
_NUMBERS = count(1)


@dataclass(frozen=True, slots=True)
class Weights:
    """What an engine loads."""

    location: str
    """A folder with safetensors, or a hub id."""
    revision: str | None
    """The hub id's commit."""
    dtype: str
    """The dtype it computes in."""
    quantization: str | None
    """`nf4`, or None."""
    n_cards: int = 1
    """Cards over which they are split."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running engine in one state of the model: the base, or with an adapter."""

    llm: Any
    """A `vllm.LLM`."""
    lora: Any = None
    """A `LoRARequest`; None for the weights as they were loaded."""


def allowed_rank(rank: int) -> int:
    """The smallest `max_lora_rank` that vLLM takes and that holds a rank.

    Raises:
        ModelError: There is none.

    >>> allowed_rank(8), allowed_rank(24)
    (8, 32)
    """
    for allowed in LORA_RANKS:
        if rank <= allowed:
            return allowed
    raise ModelError(
        explain(
            f"vLLM serves no adapter of rank {rank}",
            expected=f"at most {LORA_RANKS[-1]}, the ranks of a trained defence and of the attack added up",
            remedy="lower lora_rank, or use engine.adapters: merged",
        )
    )


def engine_options(weights: Weights, engine: VllmEngine, *, max_lora_rank: int | None) -> dict[str, Any]:
    """The arguments of `vllm.LLM`; without a rank, an engine that takes no adapters."""
    options: dict[str, Any] = {
        "model": weights.location,
        "revision": weights.revision,
        "tokenizer_revision": weights.revision,
        "trust_remote_code": False,
        "dtype": weights.dtype,
        "tensor_parallel_size": weights.n_cards,
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": True,
        # Its own defaults would come from the model's generation_config.json: penalties, temperatures.
        "generation_config": "vllm",
        "seed": 0,
    }
    if engine.max_model_len is not None:
        options["max_model_len"] = engine.max_model_len
    if weights.quantization is None:
        options["load_format"] = "safetensors"
    else:
        # vllm-bnb-plugin packs into nf4 with double quantization, as transformers does, and sets its own load format.
        options["quantization"] = "bitsandbytes"
    if max_lora_rank is not None:
        options |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": max_lora_rank}
    return options


@contextmanager
def running(weights: Weights, engine: VllmEngine, *, max_lora_rank: int | None) -> Iterator[Any]:
    """A `vllm.LLM` while the block runs; its memory is given back afterwards.

    Raises:
        ExtraError: vLLM is not installed.
        ModelError: It does not start.
    """
    llm = start(weights, engine, max_lora_rank=max_lora_rank)
    try:
        yield llm
    finally:
        stop(llm)


def start(weights: Weights, engine: VllmEngine, *, max_lora_rank: int | None) -> Any:
    """Start an engine; see `running`."""
    require_vllm(weights.quantization)
    # Read when vllm is imported, and by the processes that it starts.
    os.environ[BATCH_INVARIANT] = str(int(engine.batch_invariant))
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    options = engine_options(weights, engine, max_lora_rank=max_lora_rank)
    try:
        return LLM(**options)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        raise ModelError(
            explain(
                f"vLLM does not start for {weights.location}",
                got=f"{type(error).__name__}: {str(error).strip()[:400]}",
                remedy="for want of memory: another engine.gpu_memory_utilization, engine.max_model_len, "
                "engine.keep_both: false or a larger engine.tensor_parallel_size; else engine: {kind: hf}",
            )
        ) from error


def stop(llm: Any) -> None:
    """End an engine and give its memory back."""
    core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
    if core is not None:
        core.shutdown()
    del llm, core
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def require_vllm(quantization: str | None = None) -> None:
    """Say what is missing where vLLM, or its plugin for 4-bit weights, is not installed.

    Raises:
        ExtraError: It is not.
    """
    wanted = ["vllm"] + (["vllm_bnb_plugin"] if quantization is not None else [])
    require("the engine vllm (Linux, CUDA)", *wanted, extra="vllm", instead="--set engine.kind=hf")


def write_peft(parts: Sequence[tuple[Path, float]], folder: Path) -> Path:
    """Write adapters, added up with their strengths, as one in peft's layout, which vLLM reads."""
    tensors, shape = stack_adapters(parts)
    # vLLM takes the end of each name as a module of its own: a list, where peft itself would take `all-linear`.
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    save_adapter(folder / "adapter_model.safetensors", tensors, shape)
    write_text(folder / "adapter_config.json", peft_config(shape, modules))
    return folder


def lora_request(folder: Path) -> Any:
    """A request's adapter, under a number and a name that this process has not used and will not use again."""
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    number = next(_NUMBERS)
    return LoRARequest(f"tamperdose-{os.getpid()}-{number}", number, str(folder))


class VllmGenerator:
    """Answers prompts with a running engine."""

    def __init__(
        self, served: Served, shell: ChatModel, *, settings: Mapping[str, Any], opener: Sequence[int] = ()
    ) -> None:
        self._served, self._shell, self._opener = served, shell, list(opener)
        self._end_tokens = end_tokens(shell)
        self.settings = {
            "engine": "vllm",
            "dtype": shell.dtype,
            "chat_template": digest(str(getattr(shell.tokenizer, "chat_template", None))),
            **settings,
        }
        """What answers are recorded with, so that an audit can tell whether arms were had alike."""

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, *, seed: int, sample: int = 0, on_progress: OnProgress
    ) -> list[Completion]:
        """Answer each prompt once, in the order given; see `Generator`.

        Raises:
            DataError: A prompt is longer than the model's context leaves room for.
            ModelError: The engine did not answer every prompt once, or stopped for a reason that is none.
        """
        if not prompts:
            return []
        encoded = encode_prompts(self._shell, prompts, len(self._opener) + decoding.max_new_tokens)
        rows = [[*tokens, *self._opener] for tokens in encoded]
        seeds = [request_seed(seed, prompt.id, sample) for prompt in prompts]
        outputs = ask(self._served, rows, [_sampling(decoding, each, self._end_tokens) for each in seeds])
        answers = [self._answer(output, decoding.max_new_tokens) for output in outputs]
        on_progress(len(prompts))
        texts = self._shell.tokenizer.batch_decode([tokens for tokens, _ in answers], skip_special_tokens=True)
        return [
            Completion(
                prompt_id=prompt.id,
                text=text,
                n_tokens=len(tokens),
                finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
                sample=sample,
            )
            for prompt, (tokens, ended), text in zip(prompts, answers, texts, strict=True)
        ]

    def _answer(self, output: Any, max_new_tokens: int) -> tuple[list[int], bool]:
        """An answer's tokens without the end token, and whether it ended by itself."""
        (found,) = output.outputs
        tokens, reason = list(found.token_ids), found.finish_reason
        ended = reason == "stop" and bool(tokens) and tokens[-1] in self._end_tokens
        if not ended and not (reason == "length" and len(tokens) == max_new_tokens):
            raise ModelError(
                explain(
                    "vLLM ended an answer for no reason that is known",
                    got=f"finish_reason {reason!r} after {len(tokens)} of {max_new_tokens} tokens",
                    expected="an end token, or the last token allowed",
                    remedy="look into its log; answers that were cut off are not counted",
                )
            )
        return (tokens[:-1] if ended else tokens), ended


def request_seed(seed: int, prompt_id: str, sample: int) -> int:
    """The seed of one request: whatever else is generated beside it, and the same for every state of the model.

    >>> request_seed(1, "a", 0) == request_seed(1, "a", 0) != request_seed(1, "a", 1)
    True
    """
    # torch's generators take 63 bits.
    return int(digest([seed, prompt_id, sample]), 16) >> 1


def _sampling(decoding: Decoding, seed: int, ends: frozenset[int]) -> Any:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    drawn = {"temperature": decoding.temperature, "top_p": decoding.top_p, "seed": seed}
    return SamplingParams(
        n=1,
        max_tokens=decoding.max_new_tokens,
        stop_token_ids=sorted(ends),
        detokenize=False,
        **(drawn if decoding.do_sample else {"temperature": 0.0}),
    )


def ask(served: Served, rows: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
    """One output for each row of tokens, in their order.

    Raises:
        ModelError: There are more or fewer, or one is of another row, or unfinished; or the engine fails.
    """
    prompts = [{"prompt_token_ids": list(row)} for row in rows]
    try:
        outputs = list(served.llm.generate(prompts, list(params), use_tqdm=False, lora_request=served.lora))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ModelError(
            explain(
                "vLLM failed while it answered",
                got=f"{type(error).__name__}: {str(error).strip()[:400]}",
                remedy="look into its log; where it does not take an adapter, engine.adapters: merged",
            )
        ) from error
    wrong = [
        place
        for place, (row, output) in enumerate(zip(rows, outputs, strict=False))
        if list(output.prompt_token_ids) != list(row) or len(output.outputs) != 1 or not output.finished
    ]
    if len(outputs) != len(rows) or wrong:
        raise ModelError(
            explain(
                "vLLM did not answer every prompt once",
                got=f"{len(outputs)} outputs for {len(rows)} prompts, {len(wrong)} of them unfinished or of another",
                remedy="run the same command again: nothing of this stage was kept",
            )
        )
    return outputs


def read_served(
    served: Served, rows: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], *, n_own: int = 0
) -> Reading:
    """What an engine says of prompts and of given continuations of them, and of `n_own` tokens that it says itself.

    Given texts are read at once, answers are said token by token: other kernels, perhaps as captured graphs, that may
    leave an adapter off where reading does not. So what it says itself is given to it again.

    Raises:
        ModelError: It does not answer every prompt, or leaves out a token's log-probability.
    """
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    greedy = SamplingParams(n=1, max_tokens=max(1, n_own), temperature=0.0, detokenize=False, logprobs=1)
    answers = [output.outputs[0] for output in ask(served, rows, [greedy] * len(rows))]
    first = tuple(int(answer.token_ids[0]) for answer in answers)
    logprobs = _read_given(served, rows, continuations)
    if not n_own:
        return Reading(first, logprobs)
    given = _read_given(served, rows, [answer.token_ids for answer in answers])
    said = [
        [_logprob(answer.token_ids, answer.logprobs, place) for place in range(len(answer.token_ids))]
        for answer in answers
    ]
    own = tuple(tuple(zip(one, other, strict=True)) for one, other in zip(said, given, strict=True))
    return Reading(first, logprobs, own=own)


def _read_given(
    served: Served, rows: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> tuple[tuple[float, ...], ...]:
    """The log-probability of each token of continuations that are there from the start."""
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    forced = SamplingParams(n=1, max_tokens=1, temperature=0.0, detokenize=False, prompt_logprobs=1)
    whole = [[*row, *continuation] for row, continuation in zip(rows, continuations, strict=True)]
    return tuple(
        tuple(_logprob(full, output.prompt_logprobs, place) for place in range(len(row), len(full)))
        for row, full, output in zip(rows, whole, ask(served, whole, [forced] * len(whole)), strict=True)
    )


def _logprob(tokens: Sequence[int], listed: Any, place: int) -> float:
    found = listed[place] if listed and place < len(listed) else None
    if not found or tokens[place] not in found:
        raise ModelError(explain("vLLM left out a token's log-probability", got=f"token {place} of {len(tokens)}"))
    return float(found[tokens[place]].logprob)
