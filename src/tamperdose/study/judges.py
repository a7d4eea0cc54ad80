"""The judges of a study."""

import ipaddress
from typing import Annotated, Any, Literal, Self, cast, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from tamperdose.study.parts import Frozen, PositiveFloat, PositiveInt, listed
from tamperdose.study.plugins import PluginName, PluginSettings

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
        tuple[Annotated[str, Field(min_length=1, pattern=r"\S")], ...], BeforeValidator(listed), Field(min_length=1)
    ]
    """The sentences that are refusals, each a whole answer; white space is folded, nothing else."""


class PluginJudge(Frozen):
    """A judge of another installed package, an entry point of the group `tamperdose.judges`: see docs/extending.md."""

    kind: Literal["plugin"] = "plugin"
    name: JudgeLabel
    """What its verdicts are called in tables and columns."""
    plugin: PluginName
    """The name of the entry point."""
    settings: Annotated[PluginSettings, Field(default_factory=dict)]
    """What it is made with, by keyword."""


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
        return kind if kind in ("llm", "guard", "exact", "plugin") else None
    return getattr(value, "kind", None)


JudgeSpec = Annotated[
    Annotated[JudgeName, Tag("plain")]
    | Annotated[LlmJudge, Tag("llm")]
    | Annotated[GuardJudge, Tag("guard")]
    | Annotated[ExactJudge, Tag("exact")]
    | Annotated[PluginJudge, Tag("plugin")],
    Discriminator(
        _judge_tag,
        custom_error_type="judge_kind",
        custom_error_message="a judge is 'classifier', 'phrases', or a block with kind: llm, guard, exact or plugin",
    ),
]
"""One entry of a study's judges."""


AnyJudge = JudgeName | LlmJudge | GuardJudge | ExactJudge | PluginJudge


def judge_name(judge: AnyJudge) -> str:
    """What a judge is called."""
    return judge if isinstance(judge, str) else judge.name
