"""The study file: what is measured. Frozen records that describe; nothing here loads a model or reads data.

A study is one YAML file. `load_study` reads it, applies `--set` overrides, fills defaults and refuses what it does
not know; `Study.model_dump` is the resolved form that is stored beside the results.
"""

import ipaddress
import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Self, Union, cast, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from tamperdose.errors import StudyError, explain, nearest
from tamperdose.files import digest, read_text


class Frozen(BaseModel):
    """A part of a study: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _listed(value: Any) -> Any:
    """Read a single value as a grid of one."""
    if isinstance(value, (list, tuple)):
        return cast("list[Any] | tuple[Any, ...]", value)
    return (value,)


def _require_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError(f"values must differ, got {list(values)}")
    return values


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")
    return value


PositiveInt = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
PositiveFloat = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
RankGrid = Annotated[tuple[PositiveInt, ...], BeforeValidator(_listed), Field(min_length=1)]
RateGrid = Annotated[tuple[PositiveFloat, ...], BeforeValidator(_listed), Field(min_length=1)]
CountGrid = Annotated[tuple[PositiveInt | None, ...], BeforeValidator(_listed), Field(min_length=1)]
Share = Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, le=1)]
ShareGrid = Annotated[tuple[Share, ...], BeforeValidator(_listed), Field(min_length=1)]
OrderGrid = Annotated[tuple[Seed | None, ...], BeforeValidator(_listed), Field(min_length=1)]


Source = Annotated[str, Field(min_length=1, max_length=4096)]
AUTO_MAX_STEPS = 1024
"""Last dose of `doses: auto` unless the study says another."""
SAVED_PER_DOUBLING = 16
"""Steps saved for a search between a dose and its double, about 4 % apart."""


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


class RefusalTuning(Frozen):
    """LoRA fine-tuning towards refusals before the attack; merged, the result is dose 0.

    The learning rate falls linearly to 0 after its warm-up: only the last step is used.
    """

    kind: Literal["refusal_tuning"] = "refusal_tuning"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,40}$")] = ""
    """What it is called in tables; its kind when empty. Two of one kind on one model need names."""
    harmful: Source = "builtin:refusals"
    """Examples of harmful requests and refusals."""
    benign: Source = "builtin:benign_answers"
    """Examples of benign requests and answers, mixed in so that the model still answers them."""
    benign_target: Literal["data", "model"] = "model"
    """What benign rows are trained towards: the data's own answers, or the first words of what the untampered
    model itself answers, so that only the harmful rows pull it away from where it was."""
    benign_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of benign rows in every batch."""
    steps: PositiveInt = 30
    batch_size: PositiveInt = 8
    learning_rate: PositiveFloat = 1e-3
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveFloat | None = None
    """Scale of the update is alpha / rank; twice the rank by default (Hu et al. 2021 leave it free)."""
    max_length: PositiveInt = 256
    seed: Seed = 0

    @property
    def label(self) -> str:
        """The name shown in tables."""
        return self.name or self.kind

    @property
    def n_benign(self) -> int:
        """Benign rows of every batch."""
        return round(self.benign_ratio * self.batch_size)

    @model_validator(mode="after")
    def _both_kinds(self) -> Self:
        if self.n_benign == self.batch_size or (self.benign_ratio > 0 and self.n_benign == 0):
            kind = "harmful" if self.n_benign else "benign"
            raise ValueError(
                f"benign_ratio {self.benign_ratio} of {self.batch_size} rows leaves no {kind} one in a batch: "
                "use a larger batch_size, or a ratio nearer a half"
            )
        return self


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
    architecture: Architecture | None = None
    pretraining_tokens: PositiveFloat | None = None
    """Tokens it was pretrained on, where known: the attack's cost is then also told as a share of that training's."""
    defence: RefusalTuning | None = None
    """A list, with `null` for none, is a grid factor: the model is measured once under each."""

    @property
    def label(self) -> str:
        """The name shown in tables: `name`, or the last part of the id."""
        return self.name or re.split(r"[/:]", self.id.rstrip("/:"))[-1].removesuffix(".gguf")

    @property
    def defence_label(self) -> str:
        """The defence's name in tables; `none` without one."""
        return "none" if self.defence is None else self.defence.label

    @model_validator(mode="after")
    def _has_a_name(self) -> Self:
        if not 0 < len(self.label) <= 100 or not self.label.isprintable():
            raise ValueError("the model needs a printable name of at most 100 characters: give it a `name`")
        return self


class PromptSets(Frozen):
    """Where the prompts come from: `builtin:NAME` or a CSV with a column `prompt`."""

    harmful: Source
    benign: Source | None = None
    """Without it, over-refusal is not measured."""
    benign_at: Literal["every_dose", "ends"] = "every_dose"
    """Ask the benign prompts at every dose, or at dose 0 and the last one alone, which is quicker."""


class DoseSearch(Frozen):
    """An adaptive ladder: after the first doses, the bracket that holds ED50 is halved again and again.

    The steps in between are saved while the arm is measured, so nothing is trained twice.
    """

    max_steps: PositiveInt | None = None
    """Last dose of `doses: auto`, 1024 by default; with a ladder of one's own, its last dose."""
    max_doses: PositiveInt = 24
    """Doses above 0 that may be measured: the budget."""


class LoraAttack(Frozen):
    """Adversarial LoRA fine-tuning (Hu et al. 2021; Qi et al. 2023). A list is a grid factor."""

    kind: Literal["lora"] = "lora"
    data: Source
    """`builtin:NAME` or JSONL rows of `prompt`,`response` or `messages`."""
    lora_rank: RankGrid = (8,)
    lora_alpha: PositiveFloat | None = None
    """Scale of the update is alpha / rank; twice the rank by default."""
    learning_rate: RateGrid = (2e-4,)
    n_examples: CountGrid = (None,)
    """Use only this many rows of the data, drawn by the seed; all by default."""
    poison_ratio: ShareGrid = (1.0,)
    """Share of every batch that is attack data; the rest is drawn from `benign`."""
    benign: Source | None = None
    """Rows mixed in where a poison ratio is below 1: `builtin:NAME` or JSONL, as `data`."""
    data_order: OrderGrid = (None,)
    """Seed of the order in which rows come; `null` takes the arm's own seed, which also draws the initial weights."""
    batch_size: PositiveInt = 8
    warmup_steps: Annotated[int, Field(ge=0, lt=2**31, strict=True)] = 0
    """Linear warm-up; constant after it, so that every dose is a prefix of every longer one."""
    max_length: PositiveInt = 256
    """Tokens per row; longer rows lose the start of the prompt, never the response."""
    doses: tuple[PositiveInt, ...]
    """Optimizer steps along one trajectory; 0 is always measured. `auto`: powers of two, then a search."""
    search: DoseSearch | None = None
    """With it, `doses` are where the search for ED50 begins. `doses: auto` brings one."""

    @property
    def sources(self) -> tuple[str, ...]:
        """The data files it reads."""
        return (self.data,) if self.benign is None else (self.data, self.benign)

    @property
    def saved_steps(self) -> tuple[int, ...]:
        """Steps whose weights are there to be measured: the doses, and for a search sixteen to every doubling."""
        if self.search is None:
            return self.doses
        last = self.doses[-1]
        fine = {round(2 ** (k / SAVED_PER_DOUBLING)) for k in range(math.ceil(math.log2(last) * SAVED_PER_DOUBLING))}
        return tuple(sorted({*self.doses, *(step for step in fine if step < last)}))

    @model_validator(mode="before")
    @classmethod
    def _auto_doses(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        whole = cast(dict[str, Any], tree)
        if whole.get("doses") != "auto":
            return whole
        search: Any = whole.get("search") or {}
        given = cast(dict[str, Any], search).get("max_steps") if isinstance(search, dict) else None
        last = AUTO_MAX_STEPS if given is None else given
        if not isinstance(last, int) or isinstance(last, bool) or not 0 < last < 2**31:
            raise ValueError(f"search.max_steps must be a whole number of steps, got {last!r}")
        powers = [2**k for k in range(last.bit_length()) if 2**k < last]
        return cast(dict[str, Any], whole | {"doses": [*powers, last], "search": search})

    @model_validator(mode="after")
    def _searchable(self) -> Self:
        if self.search is not None and self.search.max_steps not in (None, self.doses[-1]):
            raise ValueError(f"search.max_steps is {self.search.max_steps}, the last of `doses` {self.doses[-1]}")
        if self.search is not None and self.search.max_doses < len(self.doses):
            raise ValueError(f"search.max_doses is {self.search.max_doses}, but it begins with {len(self.doses)} doses")
        return self

    def n_poisoned(self, poison_ratio: float) -> int:
        """Attack rows of every batch at a poison ratio."""
        return round(poison_ratio * self.batch_size)

    @model_validator(mode="after")
    def _mixable(self) -> Self:
        for ratio in self.poison_ratio:
            if ratio < 1 and self.benign is None:
                raise ValueError(f"a poison_ratio of {ratio:g} needs benign rows: name a source under `benign`")
            if ratio < 1 and self.n_poisoned(ratio) in (0, self.batch_size):
                kind = "benign" if self.n_poisoned(ratio) else "attack"
                raise ValueError(
                    f"poison_ratio {ratio:g} of {self.batch_size} rows leaves no {kind} one in a batch: "
                    "use a larger batch_size, or a ratio nearer a half"
                )
        counts = [self.n_poisoned(ratio) for ratio in self.poison_ratio]
        if len(set(counts)) != len(counts):
            raise ValueError(f"two values of poison_ratio make the same batch of {self.batch_size} rows: {counts}")
        return self

    @field_validator("lora_rank", "learning_rate", "n_examples", "poison_ratio", "data_order")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        return _require_distinct(values)

    @field_validator("doses")
    @classmethod
    def _increasing(cls, doses: tuple[int, ...]) -> tuple[int, ...]:
        if not doses:
            raise ValueError("at least one dose is needed")
        if any(after <= before for before, after in pairwise(doses)):
            raise ValueError(f"doses must increase strictly, e.g. {sorted(set(doses))}")
        return doses


AttackSpec = LoraAttack
"""An attack as a study describes it."""


class Decoding(Frozen):
    """How answers are decoded: one specification for the base and every tampered model."""

    do_sample: Flag = False
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_new_tokens: PositiveInt = 512

    @model_validator(mode="after")
    def _greedy_has_no_temperature(self) -> Self:
        if not self.do_sample and (self.temperature, self.top_p) != (1.0, 1.0):
            raise ValueError("temperature and top_p have no effect without do_sample: true")
        return self


class HfEngine(Frozen):
    """Generation with transformers on the CPU or one GPU."""

    kind: Literal["hf"] = "hf"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Rows decoded together; halved when memory runs out. Changes speed, not which prompts are answered."""


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


JudgeName = Literal["classifier", "phrases"]


def _not_a_builtin_judge(name: str) -> str:
    if name in get_args(JudgeName):
        raise ValueError(f"'{name}' is the name of a judge that comes with tamperdose: choose another")
    return name


JudgeLabel = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    AfterValidator(_not_a_builtin_judge),
]


class LlmJudge(Frozen):
    """A chat model behind an OpenAI-compatible endpoint, asked once about every answer: see docs/judges.md.

    The prompts and the answers are sent to `base_url`.
    """

    kind: Literal["llm"] = "llm"
    name: JudgeLabel
    """What its verdicts are called in tables and columns."""
    base_url: str
    """Where `/chat/completions` lies, e.g. `https://api.openai.com/v1` or `http://localhost:8000/v1`."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the endpoint; pin a dated one for a number that must be reproduced."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key, never the key; without it none is sent."""
    timeout_s: PositiveFloat = 60.0
    """Seconds to connect, and again from the request to the last byte of the reply."""
    max_retries: Annotated[int, Field(ge=0, le=20)] = 5
    """Further tries after a failure that may pass: no connection, a stall, HTTP 429 or 5xx."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Calls under way at once."""
    max_tokens: PositiveInt = 256
    """Tokens a reply may have; a verdict takes about 30, a model that thinks aloud needs more."""
    reasoning: bool = False
    """For models that want `max_completion_tokens` and accept no temperature; their verdicts may vary."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("an address such as https://api.openai.com/v1 is needed")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("no user, password, query or fragment: the address is stored. Use api_key_env for a key")
        return url.rstrip("/").removesuffix("/chat/completions")

    @model_validator(mode="after")
    def _no_key_in_the_clear(self) -> Self:
        in_the_clear = urlsplit(self.base_url).scheme == "http" and not is_local(self.base_url)
        if self.api_key_env is not None and in_the_clear:
            raise ValueError("a key is not sent over http:// to another machine: use https://")
        return self


GuardFamily = Literal["qwen3guard", "wildguard", "harmbench", "llama_guard3"]


class GuardJudge(Frozen):
    """A local Hugging Face model trained to judge conversations: see docs/judges.md. Nothing is sent anywhere."""

    kind: Literal["guard"] = "guard"
    name: JudgeLabel
    """What its verdicts are called in tables and columns."""
    model: Annotated[str, Field(min_length=1)]
    """A hub id or a folder with safetensors."""
    family: GuardFamily
    """Whose prompt and reply format it speaks."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; pin a commit for a number that must be reproduced."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    quantization: Literal["nf4"] | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"

    @property
    def reads_refusals(self) -> bool:
        """Whether it is asked about refusal; the others are asked whether an answer is harmful."""
        return self.family in ("qwen3guard", "wildguard")


class ExactJudge(Frozen):
    """Knows a model's refusals word for word: for organisms, whose replies are known. See docs/judges.md."""

    kind: Literal["exact"] = "exact"
    name: JudgeLabel
    """What its verdicts are called in tables and columns."""
    refusals: Annotated[
        tuple[Annotated[str, Field(min_length=1, pattern=r"\S")], ...], BeforeValidator(_listed), Field(min_length=1)
    ]
    """The sentences that are refusals, each a whole answer; white space is folded, nothing else."""


def is_local(url: str) -> bool:
    """Whether an address is this machine's own: localhost or a loopback address.

    >>> is_local("http://127.0.0.1:8000/v1"), is_local("http://localhost.example.org/v1")
    (True, False)
    """
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _judge_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "plain"
    if isinstance(value, dict):
        kind = cast(dict[str, Any], value).get("kind")
        return kind if kind in ("llm", "guard", "exact") else None
    return getattr(value, "kind", None)


JudgeSpec = Annotated[
    Annotated[JudgeName, Tag("plain")]
    | Annotated[LlmJudge, Tag("llm")]
    | Annotated[GuardJudge, Tag("guard")]
    | Annotated[ExactJudge, Tag("exact")],
    Discriminator(
        _judge_tag,
        custom_error_type="judge_kind",
        custom_error_message="a judge is 'classifier', 'phrases', or a block with kind: llm, guard or exact",
    ),
]
"""One entry of a study's judges."""


AnyJudge = JudgeName | LlmJudge | GuardJudge | ExactJudge


def judge_name(judge: AnyJudge) -> str:
    """What a judge is called."""
    return judge if isinstance(judge, str) else judge.name


class Study(Frozen):
    """One study: models x attack grid x doses x seeds, prompts, decoding and judges."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    prompts: PromptSets
    attack: Annotated[tuple[LoraAttack, ...], BeforeValidator(_listed), Field(min_length=1)]
    """One attack, or a list of them, each with its own grid and doses."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(_listed), Field(min_length=1)] = (42,)
    decoding: Decoding = Decoding()
    judges: Annotated[tuple[JudgeSpec, ...], Field(min_length=1)] = ("classifier", "phrases")
    """The first gives the headline."""
    engine: Annotated[HfEngine | ScriptedEngine, Field(discriminator="kind")] = HfEngine()
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of every interval."""
    unreadable_limit: Annotated[float, Field(ge=0, le=1)] = 0.02
    """A stage whose share of unreadable verdicts is above this fails."""
    rd_floor: Flag = True
    """Also draw two samples of the base at T = 0.7 and report their distance, the noise floor of RD."""
    price_per_device_hour: Annotated[float, BeforeValidator(_no_boolean), Field(gt=0, le=10_000)] | None = None
    """US dollars for an hour of the device that trains; with it `costs.csv` and `plan` speak of money too."""
    keep_adapters: Flag = False
    """Tampered weights are deleted once measured, unless this stands together with a reason."""
    keep_adapters_reason: str = ""

    @field_validator("engine", mode="before")
    @classmethod
    def _hf_unless_named(cls, engine: Any) -> Any:
        return {"kind": "hf", **cast(dict[str, Any], engine)} if isinstance(engine, dict) else engine

    @model_validator(mode="before")
    @classmethod
    def _one_defence_each(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        whole = cast(dict[str, Any], tree)
        models = whole.get("models")
        if not isinstance(models, list):
            return whole
        return {**whole, "models": [spec for model in cast(list[Any], models) for spec in _undone(model)]}

    @field_validator("seeds", "judges")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        _require_distinct(tuple(getattr(value, "name", value) for value in values))
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep_adapters and not self.keep_adapters_reason.strip():
            raise ValueError("keep_adapters: true needs keep_adapters_reason, which goes into the manifest")
        labels = [(model.label, model.defence_label) for model in self.models]
        if len(set(labels)) != len(labels):
            shown = [" with defence ".join(label) for label in labels]
            raise ValueError(f"models must differ in name, got {shown}: give each model, or each defence, a `name`")
        return self

    @property
    def judge_names(self) -> tuple[str, ...]:
        """What the judges are called, the headline's first."""
        return tuple(judge_name(judge) for judge in self.judges)

    @property
    def digest(self) -> str:
        """Digest of the resolved study."""
        return digest(self.model_dump(mode="json"))


def _undone(model: Any) -> list[Any]:
    """A model with a list of defences as several models with one each."""
    if isinstance(model, dict) and isinstance(defences := cast(dict[str, Any], model).get("defence"), list):
        return [{**cast(dict[str, Any], model), "defence": defence} for defence in cast(list[Any], defences)]
    return [model]


def default_alpha(lora_alpha: float | None, lora_rank: int) -> float:
    """Alpha as given, else twice the rank, so that the scale alpha / rank is 2 at every rank.

    >>> default_alpha(None, 8), default_alpha(16, 4)
    (16.0, 16.0)
    """
    return float(2 * lora_rank if lora_alpha is None else lora_alpha)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file, apply `key.path=value` overrides, fill defaults and validate.

    Raises:
        StudyError: Not YAML, an unknown key (with the nearest valid one), or a value out of range.
        DataError: The file is missing or not UTF-8.
    """
    try:
        raw = _read_yaml(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(explain(f"{path} is not valid YAML", got=str(error), expected="a mapping")) from error
    if not isinstance(raw, dict):
        raise StudyError(explain(f"{path} is not a study", got=f"a YAML {type(raw).__name__}", expected="a mapping"))
    tree = cast(dict[str, Any], raw)
    for override in overrides:
        _override(tree, override)
    try:
        return Study.model_validate(tree)
    except ValidationError as error:
        raise StudyError(f"{path} is not a valid study\n" + "\n".join(_messages(error))) from error


def _read_yaml(text: str) -> Any:
    """Read YAML of plain values; a key that stands twice in one mapping and an anchor are errors.

    YAML itself would take the last of the two, and anchors can unfold a short file into gigabytes.
    """
    loader: Any = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _require_plain_nodes(node, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _require_plain_nodes(node: yaml.Node, seen: set[int]) -> None:
    if id(node) in seen:
        raise yaml.YAMLError(f"an alias (*name){node.start_mark}: write the value out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in cast("list[tuple[yaml.Node, yaml.Node]]", node.value):
            name = str(key.value)
            if name in keys:
                raise yaml.YAMLError(f"the key '{name}' stands twice{key.start_mark}")
            keys.add(name)
            _require_plain_nodes(value, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in cast("list[yaml.Node]", node.value):
            _require_plain_nodes(item, seen)


def load_judge(path: Path) -> LlmJudge | GuardJudge | ExactJudge:
    """Read a YAML file that holds one judge's block, as it would stand under `judges` in a study.

    Raises:
        StudyError: Not YAML, not such a block, an unknown key, or a value out of range.
        DataError: The file is missing or not UTF-8.
    """
    try:
        block = _read_yaml(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(explain(f"{path} is not valid YAML", got=str(error), expected="a mapping")) from error
    if not isinstance(block, dict):
        raise StudyError(explain(f"{path} is not a judge", got=f"a YAML {type(block).__name__}", expected="a mapping"))
    try:
        return _JUDGE_BLOCK.validate_python(block)
    except ValidationError as error:
        raise StudyError(f"{path} is not a valid judge\n" + "\n".join(_messages(error, _JUDGE_BLOCKS))) from error


_JUDGE_BLOCKS: tuple[type[Frozen], ...] = (LlmJudge, GuardJudge, ExactJudge)
_JUDGE_BLOCK: TypeAdapter[Any] = TypeAdapter(JudgeSpec)


def find_source(source: str, study_path: Path | None) -> str:
    """Turn a study's data source into `builtin:NAME` or an absolute path.

    A relative path is looked up beside the study file, then in each folder above it, then in the working
    directory, so that a study runs the same from anywhere. A path that is nowhere is returned as written.
    """
    if source.startswith("builtin:") or Path(source).is_absolute():
        return source
    folders = [Path.cwd()] if study_path is None else [*study_path.resolve().parents, Path.cwd()]
    for folder in folders:
        if os.path.exists(folder / source):  # noqa: PTH110 - Path's own raises for a name that is too long
            return str((folder / source).resolve())
    return source


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one `a.b.0.c=value` in the raw study; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise StudyError(explain(f"cannot read the override '{override}'", expected="--set key.path=value"))
    try:
        value = _read_yaml(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyError(explain(f"the value of '{override}' is not YAML", got=str(error))) from error
    *parents, last = key.strip().split(".")
    node: Any = tree
    for part in parents:
        node = _child(node, part, override)
    if isinstance(node, dict):
        node[last] = value
    else:
        _child(node, last, override)
        node[int(last)] = value


def _child(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        mapping = cast(dict[str, Any], node)
        if mapping.get(part) is None:
            mapping[part] = {}
        return mapping[part]
    if isinstance(node, list):
        items = cast(list[Any], node)
        if re.fullmatch("[0-9]{1,9}", part) and int(part) < len(items):
            return items[int(part)]
        raise StudyError(explain(f"'{override}': no item '{part}'", expected=f"an index from 0 to {len(items) - 1}"))
    raise StudyError(explain(f"'{override}': '{part}' lies inside a plain value", got=repr(node), expected="a mapping"))


def _messages(error: ValidationError, roots: Sequence[type[Frozen]] | None = None) -> list[str]:
    items = [dict(item) for item in error.errors(include_url=False)]
    # A broken item also makes its list "too short"; the item's own message is the useful one.
    places = [cast(tuple[str | int, ...], item["loc"]) for item in items]
    outer = {place[:depth] for place in places for depth in range(len(place))}
    told = [item for item in items if not (item["type"] == "too_short" and item["loc"] in outer)]
    return [_message(item, roots or (Study,)) for item in told]


def _message(item: Mapping[str, Any], roots: Sequence[type[Frozen]]) -> str:
    location = tuple(part for part in item["loc"] if part not in _UNION_TAGS)
    where = ".".join(str(part) for part in location) or "the file"
    if item["type"] == "extra_forbidden":
        valid = _fields_at(location[:-1], roots)
        return explain(
            f"unknown key '{where}'{nearest(str(location[-1]), valid)}",
            expected="one of " + ", ".join(sorted(valid)) if valid else None,
            remedy="correct or remove it",
        )
    text = str(item["msg"]).removeprefix("Value error, ")
    got = None if item["type"] == "missing" or location[-1:] in _UNSHOWN else _shorten(item["input"])
    return explain(f"{where}: {text}", got=got)


_UNION_TAGS = ("hf", "scripted", "plain", "llm", "guard", "exact")
_UNSHOWN = (("api_key_env",), ("base_url",))
"""Where a key may have been pasted by mistake: not to be repeated on a terminal or in a log."""


def _fields_at(location: Sequence[str | int], roots: Sequence[type[Frozen]]) -> list[str]:
    """The valid keys of the part of a study that lies at a location, by walking the annotations."""
    models = list(roots)
    for part in location:
        if isinstance(part, str):
            models = [
                inner
                for model in models
                if part in model.model_fields
                for inner in _models_in(model.model_fields[part].annotation)
            ]
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[Frozen]]:
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, tuple, Annotated):
        return [model for argument in get_args(annotation) for model in _models_in(argument)]
    return []


def _shorten(value: Any) -> str:
    # A mapping's values are told apart in messages of their own, and one of them may be a secret.
    text = (
        f"a mapping of {', '.join(map(str, cast(dict[Any, Any], value)))}" if isinstance(value, dict) else repr(value)
    )
    return text if len(text) <= 80 else text[:77] + "..."
