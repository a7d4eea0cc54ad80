"""A stand-in for vLLM's offline interface, backed by transformers and peft, so that the truth is known.

It takes what vLLM 0.32 takes and keeps its traps: adapters are cached by their number, of a rank above `max_lora_rank`
none is served, and an engine without `enable_lora` refuses a request for one. Defects are switched on by the test.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass
class Fake:
    """What the stand-in has seen, and what is wrong with it."""

    started: list[dict[str, Any]] = field(default_factory=list)
    """The arguments of every engine."""
    stopped: int = 0
    numbers: list[int] = field(default_factory=list)
    """The number of every request's adapter."""
    asked: list[tuple[list[list[int]], list[Any]]] = field(default_factory=list)
    """Rows and parameters of every call."""
    ignores_adapters: bool = False
    forgets_adapters: bool = False
    """Adapters act on what is read, and are left off from an answer's second token on."""
    noise: float = 0.0
    """Added to log-probabilities, in turn up and down."""
    shift: int = 0
    """Added to the greedy token in every `shift`-th row."""
    loses: int = 0
    """Outputs left out at the end."""
    finish: str | None = None
    """Why every answer ends."""


@dataclass
class SamplingParams:
    """The parameters that are used here; another is a TypeError, as with vLLM."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    max_tokens: int = 16
    prompt_logprobs: int | None = None
    logprobs: int | None = None
    detokenize: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


OPTIONS = {
    "model",
    "revision",
    "tokenizer_revision",
    "trust_remote_code",
    "dtype",
    "tensor_parallel_size",
    "gpu_memory_utilization",
    "enforce_eager",
    "enable_prefix_caching",
    "generation_config",
    "seed",
    "max_model_len",
    "load_format",
    "quantization",
    "enable_lora",
    "max_loras",
    "max_cpu_loras",
    "max_lora_rank",
}


class LLM:
    """The class `LLM` of a stand-in: `fake` is given to a subclass of it by `install`."""

    fake: Fake

    def __init__(self, **options: Any) -> None:
        unknown = set(options) - OPTIONS
        if unknown or options.get("max_lora_rank", 1) not in RANKS:
            raise ValueError(f"unknown arguments {unknown}, or rank {options.get('max_lora_rank')}")
        self.fake.started.append(options)
        self.options = options
        self.model = AutoModelForCausalLM.from_pretrained(
            options["model"], dtype=getattr(torch, options["dtype"]), use_safetensors=True
        ).eval()
        self.adapters: dict[int, Any] = {}
        core = SimpleNamespace(shutdown=self._shutdown)
        self.llm_engine = SimpleNamespace(engine_core=core)

    def _shutdown(self) -> None:
        self.fake.stopped += 1
        del self.model

    def generate(
        self,
        prompts: Sequence[Any],
        sampling_params: Any = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
    ) -> list[Any]:
        rows = [prompt["prompt_token_ids"] for prompt in prompts]
        params = sampling_params if isinstance(sampling_params, list) else [sampling_params] * len(rows)
        assert len(params) == len(rows)
        self.fake.asked.append((rows, params))
        model = self._with(lora_request)
        with torch.no_grad():
            outputs = self._answer(model, rows, params)
        return outputs[: len(outputs) - self.fake.loses]

    def _with(self, request: Any) -> Any:
        if request is None:
            return self.model
        if not self.options.get("enable_lora"):
            raise ValueError("LoRA is not enabled")
        self.fake.numbers.append(request.lora_int_id)
        if request.lora_int_id not in self.adapters:
            config = json.loads((Path(request.lora_path) / "adapter_config.json").read_text())
            assert isinstance(config["target_modules"], list)
            if config["r"] > self.options["max_lora_rank"]:
                raise ValueError(f"LoRA rank {config['r']} is greater than max_lora_rank")
            again = AutoModelForCausalLM.from_pretrained(
                self.options["model"], dtype=getattr(torch, self.options["dtype"])
            )
            self.adapters[request.lora_int_id] = PeftModel.from_pretrained(again, request.lora_path).eval()
        return self.model if self.fake.ignores_adapters else self.adapters[request.lora_int_id]

    def _answer(self, model: Any, rows: list[list[int]], params: list[SamplingParams]) -> list[Any]:
        rngs = [None if each.seed is None else torch.Generator().manual_seed(each.seed) for each in params]
        tokens: list[list[int]] = [[] for _ in rows]
        said: list[list[Any]] = [[] for _ in rows]
        left = list(range(len(rows)))
        while left:
            forgets = self.fake.forgets_adapters and tokens[left[0]]
            logits = _logits(self.model if forgets else model, [[*rows[k], *tokens[k]] for k in left])
            for k, row in zip(left, logits, strict=True):
                tokens[k].append(_next(row[len(rows[k]) + len(tokens[k]) - 1], params[k], rngs[k]))
                if self.fake.shift and k % self.fake.shift == 0:
                    tokens[k][-1] = (tokens[k][-1] + 1) % row.shape[1]
                scores = row[len(rows[k]) + len(tokens[k]) - 2].log_softmax(-1)
                said[k].append({tokens[k][-1]: SimpleNamespace(logprob=float(scores[tokens[k][-1]]), rank=None)})
            left = [k for k in left if not self._ended(tokens[k], params[k]) and len(tokens[k]) < params[k].max_tokens]
        scored = _logits(model, rows) if params[0].prompt_logprobs is not None else None
        return [
            SimpleNamespace(
                prompt_token_ids=list(row),
                prompt_logprobs=None if scored is None else self._scored(scored[k], row),
                outputs=[
                    SimpleNamespace(
                        token_ids=tokens[k],
                        logprobs=None if params[k].logprobs is None else said[k],
                        finish_reason=self._reason(tokens[k], params[k]),
                    )
                ],
                finished=True,
            )
            for k, row in enumerate(rows)
        ]

    def _ended(self, tokens: list[int], params: SamplingParams) -> bool:
        return tokens[-1] in {*(params.stop_token_ids or ()), self.model.config.eos_token_id}

    def _reason(self, tokens: list[int], params: SamplingParams) -> str:
        return self.fake.finish or ("stop" if self._ended(tokens, params) else "length")

    def _scored(self, logits: torch.Tensor, row: list[int]) -> list[Any]:
        scores = logits.log_softmax(-1)
        off = [self.fake.noise * (-1) ** k for k in range(len(row))]
        return [None] + [
            {row[k]: SimpleNamespace(logprob=float(scores[k - 1, row[k]]) + off[k], rank=None)}
            for k in range(1, len(row))
        ]


def _logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Of every row, (rows, columns, vocabulary): what stands behind a row's end is not seen by what stands before."""
    width = max(map(len, rows))
    return model(input_ids=torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])).logits.float()


def _next(logits: torch.Tensor, params: SamplingParams, rng: torch.Generator | None) -> int:
    if params.temperature == 0:
        return int(logits.argmax())
    probabilities = (logits / params.temperature).softmax(-1)
    ordered, order = probabilities.sort(descending=True)
    ordered[ordered.cumsum(0) - ordered >= params.top_p] = 0
    return int(order[torch.multinomial(ordered, 1, generator=rng)])


def install(patch: pytest.MonkeyPatch, **defects: Any) -> Fake:
    """Have `import vllm` find a stand-in while the patch holds."""
    fake = Fake(**defects)
    made = {name: ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request", "vllm_bnb_plugin")}
    for name, module in made.items():
        module.__spec__ = ModuleSpec(name, None)
        patch.setitem(sys.modules, name, module)
    root: Any = made["vllm"]
    root.LLM, root.SamplingParams = type("LLM", (LLM,), {"fake": fake}), SamplingParams
    request: Any = made["vllm.lora.request"]
    request.LoRARequest = LoRARequest
    return fake
