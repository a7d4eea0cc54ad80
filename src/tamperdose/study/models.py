"""The models of a study: where their weights are, how they are asked, and what answers with them."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from tamperdose.study.defences import DefenceSpec, HardenedCheckpoint
from tamperdose.study.parts import Flag, Frozen, PositiveFloat, PositiveInt, Source, no_boolean


class Architecture(Frozen):
    """The sizes of a decoder-only transformer, so that `plan` can count before weights can be had.

    When weights load, every field is compared with the model's own configuration.
    """

    model_type: str
    """The configuration's `model_type`, e.g. `qwen2`."""
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tie_word_embeddings: Flag
    attention_bias: Flag = False
    """Whether query, key and value projections carry a bias (Qwen2 does)."""


class ModelSpec(Frozen):
    """One model: a hub id, a local folder or GGUF file, or `builtin:smollm2-135m-instruct`."""

    id: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(max_length=100)] = ""
    """Name in tables and figures; derived from the id when empty."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; pin a commit for a number that must be reproduced."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """`auto`: bfloat16 where the device multiplies it natively, else float32."""
    quantization: Literal["nf4"] | None = None
    """4-bit NormalFloat weights (Dettmers et al. 2023); needs a CUDA device and the `gpu` extra."""
    tensor_parallel_size: Annotated[PositiveInt, Field(le=64)] | None = None
    """Cards over which the engine `vllm` splits this model, in place of the engine's own number."""
    fsdp: Annotated[PositiveInt, Field(le=64)] | None = None
    """Cards over which this model is sharded while an adapter learns, in place of the engine's own number."""
    architecture: Architecture | None = None
    pretraining_tokens: PositiveFloat | None = None
    """Tokens it was pretrained on, where known: the attack's cost is then also told as a share of that training's."""
    defence: DefenceSpec | None = None
    """A list, with `null` for none, is a grid factor: the model is measured once under each."""

    @property
    def label(self) -> str:
        """The name shown in tables: `name`, or the last part of the id."""
        return self.name or re.split(r"[/:]", self.id.rstrip("/:"))[-1].removesuffix(".gguf")

    @property
    def defence_label(self) -> str:
        """The defence's name in tables; `none` without one."""
        return "none" if self.defence is None else self.defence.label

    @property
    def undefended(self) -> "ModelSpec":
        """The same model without a defence: equal for those whose defences can be compared."""
        return self.model_copy(update={"defence": None})

    @property
    def loaded(self) -> "ModelSpec":
        """Whose weights are loaded: its own, or the hardened checkpoint's in its place."""
        if not isinstance(self.defence, HardenedCheckpoint):
            return self
        place = {"id": self.defence.id, "revision": self.defence.revision, "name": self.label}
        return self.model_copy(update=place)

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not 0 < len(self.label) <= 100 or not self.label.isprintable():
            raise ValueError("the model needs a printable name of at most 100 characters: give it a `name`")
        return self


class PromptSets(Frozen):
    """Where the prompts come from: `builtin:NAME`, a CSV with a column `prompt`, or JSONL with `prompt` or `messages`.

    `xstest:PATH`, `xstest_unsafe:PATH` and `coconot:PATH` are files of those sets as they are downloaded.
    """

    harmful: Source
    benign: Source | None = None
    """Without it, over-refusal is not measured."""
    benign_at: Literal["every_dose", "ends"] = "every_dose"
    """Ask the benign prompts at every dose, or at the key doses alone: 0, around the break, the last."""


class Decoding(Frozen):
    """How answers are decoded: one specification for the base and every tampered model."""

    do_sample: Flag = False
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: PositiveInt = 512
    n_samples: PositiveInt = 1
    """Answers to every prompt, each drawn by itself; more than one needs `do_sample: true`."""
    stop_when_decided: Flag = False
    """For screening: end an answer once the judge `phrases` is not expected to change its verdict. Then RD and
    degeneration are not to be had, and no headline is made of the run."""
    full_share: Annotated[float, Field(ge=0.1, le=1)] = 0.1
    """Share of the prompts whose answers are written to their end all the same, to see how often verdicts change."""

    @model_validator(mode="after")
    def _greedy_draws_nothing(self) -> Self:
        if not self.do_sample and (self.temperature, self.top_p) != (1.0, 1.0):
            raise ValueError("temperature and top_p have no effect without do_sample: true")
        if not self.do_sample and self.n_samples > 1:
            raise ValueError(
                f"n_samples: {self.n_samples} without do_sample: true would give one answer {self.n_samples} times: "
                "set do_sample: true with a temperature, or n_samples: 1"
            )
        if "full_share" in self.model_fields_set and not self.stop_when_decided:
            raise ValueError("full_share has no effect without stop_when_decided: true")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Answers that are not stopped depend on neither: what was generated before there was the choice stays good.
        fields: dict[str, Any] = whole(self)
        if not self.stop_when_decided:
            fields.pop("stop_when_decided", None)
            fields.pop("full_share", None)
        return fields

    def identity(self) -> dict[str, Any]:
        """What one answer depends on: all but how many are drawn, so that more samples leave the others as they are."""
        return self.model_dump(mode="json", exclude={"n_samples"})


class ModelEngine(Frozen):
    """What engines that load weights share: transformers trains, and reads states and utility, with all of them."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    """Where transformers computes."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Rows decoded together; halved when memory runs out. Changes speed, not which prompts are answered."""
    fsdp: Annotated[PositiveInt, Field(le=64)] = 1
    """Cards over which a model's weights are sharded while an adapter learns, unless the model says its own: for one
    that no card holds. What transformers measures, it then measures with the layers spread over those cards."""

    def shards(self, model: ModelSpec) -> int:
        """Cards over which a model is sharded; 1: it is not."""
        return self.fsdp if model.fsdp is None else model.fsdp


class HfEngine(ModelEngine):
    """Generation with transformers on the CPU or one GPU."""

    kind: Literal["hf"] = "hf"


class Equivalence(Frozen):
    """How near the engine `vllm` must come to transformers before any of its answers counts.

    A changed limit makes the comparison run again, and no answer.
    """

    n_prompts: Annotated[int, BeforeValidator(no_boolean), Field(ge=64, le=10_000)] = 128
    """Prompts that both are asked."""
    n_tokens: Annotated[PositiveInt, Field(le=512)] = 16
    """Tokens of each of transformers' greedy answers whose log-probabilities are compared."""
    top1: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, lt=1)] = 0.90
    """The share of prompts whose first token is the same must surely be larger: by the low end of its interval."""
    tie: Annotated[float, BeforeValidator(no_boolean), Field(ge=0, le=2)] = 0.5
    """Another first token counts as the same where transformers holds it within so many nats of its own.

    Rounding decides between those: bfloat16 writes logits between 16 and 32 in steps of 0.125. With SmolLM2-135M
    transformers agreed with itself, read in another way, on 116 to 125 of 128 prompts, vLLM with it on 118 to 122, and
    every token that differed was within 0.375; without the adapter vLLM agreed on 27."""
    mean_logprob: PositiveFloat = 0.1
    """Largest mean difference of a token's log-probability, nats. bfloat16 writes logits between 16 and 32 in steps of
    0.125: 0.03 to 0.06 were seen, and 0.025 to 0.05 between transformers in bfloat16 and float32."""
    max_logprob: PositiveFloat = 2.0
    """Largest difference of any token's, nats: a factor of seven in its odds."""
    effect: PositiveFloat = 0.5
    """By how much the adapter of the comparison changes log-probabilities in transformers, nats in the mean, at least;
    in the engine it must change them by as much, to a tenth of it. Several times `mean_logprob`, so that an engine that
    leaves adapters off cannot pass."""

    @model_validator(mode="after")
    def _tells_adapters(self) -> Self:
        if self.effect < 3 * self.mean_logprob:
            raise ValueError(
                f"effect {self.effect:g} is less than three times mean_logprob {self.mean_logprob:g}: an engine that "
                "leaves adapters off could pass"
            )
        return self


class VllmEngine(ModelEngine):
    """Generation with vLLM on CUDA devices (extra `vllm`); transformers trains, and measures all else.

    One engine for each base; adapters go with the request. Nothing counts until a comparison with transformers is
    passed: see `Equivalence`.
    """

    kind: Literal["vllm"] = "vllm"
    tensor_parallel_size: Annotated[PositiveInt, Field(le=64)] = 1
    """Cards over which each layer of a model is split, unless the model says its own."""
    gpu_memory_utilization: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, lt=1)] = 0.45
    """Share of each card's memory that the engine takes, for weights and cache; transformers needs the rest."""
    keep_both: Flag = True
    """Whether transformers' model stays loaded while the engine answers. `false` unloads the one before the other is
    used, which costs minutes at every change and lets `gpu_memory_utilization` be 0.9."""
    max_model_len: PositiveInt | None = None
    """Longest prompt and answer together; null: what the model can. Smaller, where its cache does not fit."""
    enforce_eager: Flag = False
    """Without CUDA graphs: starts sooner, answers later."""
    batch_invariant: Flag = False
    """Kernels whose sums do not hang on what else is in the batch (`VLLM_BATCH_INVARIANT`); slower, cards from Hopper
    on."""
    adapters: Literal["auto", "requests", "merged"] = "auto"
    """`requests`: one engine, an adapter with each request. `merged`: weights with the adapter added, written to a
    scratch folder, and an engine of their own for each state. `auto`: merged where the comparison of requests fails."""
    equivalence: Equivalence = Equivalence()

    def cards(self, model: ModelSpec) -> int:
        """Cards over which a model is split."""
        return self.tensor_parallel_size if model.tensor_parallel_size is None else model.tensor_parallel_size

    def identity(self) -> dict[str, Any]:
        """What its answers depend on, versions aside."""
        fields = {"kind", "tensor_parallel_size", "enforce_eager", "batch_invariant", "adapters"}
        return self.model_dump(mode="json", include=fields)


class ScriptedEngine(Frozen):
    """A fake model with a known refusal probability, for tests and dry runs; nothing is loaded or trained.

    A harmful prompt is refused with probability `refusal_rate / (1 + (dose / ed50_steps) ** slope)`.
    """

    kind: Literal["scripted"] = "scripted"
    refusal_rate: Annotated[float, Field(ge=0, le=1)] = 0.95
    over_refusal_rate: Annotated[float, Field(ge=0, le=1)] = 0.02
    degenerate_rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    ed50_steps: Annotated[PositiveFloat, Field(ge=1e-6, le=1e9)] = 5.0
    slope: Annotated[PositiveFloat, Field(le=20)] = 4.0
