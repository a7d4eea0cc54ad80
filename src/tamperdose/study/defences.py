"""The defences of a study: what is done to a model before the attack, or whenever it is measured."""

import math
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Discriminator, Field, Tag, model_validator

from tamperdose.study.parts import Frozen, PositiveFloat, PositiveInt, Seed, Source

DefenceName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,40}$")]


class TunedDefence(Frozen):
    """LoRA fine-tuning towards refusals before the attack; merged, the result is what the attack starts from.

    The learning rate falls linearly to 0 after its warm-up: only the last step is used.
    """

    name: DefenceName = ""
    """What it is called in tables; its kind when empty. Two of one kind on one model need names."""
    harmful: Source = "builtin:refusals"
    """Examples of harmful requests and refusals."""
    benign: Source = "builtin:benign_answers"
    """Examples of benign requests and answers, mixed in so that the model still answers them."""
    benign_target: Literal["data", "model"] = "model"
    """What benign rows are trained towards: the data's own answers, or the first words of what the untampered
    model itself answers, so that only the harmful rows pull it away from where it was."""
    benign_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of benign rows: in every batch, or with `mixing: steps` over all batches."""
    mixing: Literal["batch", "steps"] = "batch"
    """`batch`: every batch holds rows of both kinds. `steps`: whole batches of one kind take turns, spread evenly."""
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
    def n_benign(self) -> int:
        """Benign rows of every batch that holds both kinds."""
        return round(self.benign_ratio * self.batch_size)

    @property
    def sources(self) -> tuple[str, ...]:
        """The data files it reads."""
        return self.harmful, self.benign

    def identity(self) -> dict[str, Any]:
        """All that its result depends on, for a digest; a batch of both kinds goes without saying."""
        left_out = {"mixing"} if self.mixing == "batch" else set[str]()
        return self.model_dump(mode="json", exclude=left_out)

    @model_validator(mode="after")
    def _both_kinds(self) -> Self:
        by_steps = self.mixing == "steps"
        whole, unit = (self.steps, "steps") if by_steps else (self.batch_size, "rows")
        n_benign = math.floor(self.steps * self.benign_ratio) if by_steps else self.n_benign
        if n_benign == whole or (self.benign_ratio > 0 and n_benign == 0):
            kind = "harmful" if n_benign else "benign"
            where, larger = ("", "more steps") if by_steps else (" in a batch", "a larger batch_size")
            raise ValueError(
                f"benign_ratio {self.benign_ratio} of {whole} {unit} leaves no {kind} one{where}: "
                f"use {larger}, or a ratio nearer a half"
            )
        return self


class RefusalTuning(TunedDefence):
    """Refusals trained in; the result is dose 0."""

    kind: Literal["refusal_tuning"] = "refusal_tuning"

    @property
    def label(self) -> str:
        """The name shown in tables."""
        return self.name or self.kind


class SafetyAdapter(TunedDefence):
    """Refusals trained in, and the same adapter added once more whenever the model is measured.

    With W the model's weights, A the adapter's update and D the attack's, the attack trains on W + A, and what
    answers, at dose 0 and at every other, is W + A + D + strength A. It protects who serves a model that others
    fine-tune there and keeps its weights; whoever has the weights leaves it off. Source: safety re-alignment by task
    arithmetic, RESTA, Bhardwaj et al. 2024, arXiv:2402.11746, whose safety vector is that of a model made unsafe,
    with the sign turned round; ours is trained towards refusals.
    """

    kind: Literal["safety_adapter"]
    strength: Annotated[PositiveFloat, Field(le=100)] = 1.0
    """How many times the adapter's update is added once more."""

    @property
    def label(self) -> str:
        """The name shown in tables."""
        return self.name or self.kind


class HardenedCheckpoint(Frozen):
    """Weights that somebody has hardened (TAR, RepNoise, circuit breakers), loaded in place of the model's own.

    They must be of the model's architecture. Everything else, attack, prompts and decoding, is the model's.
    """

    kind: Literal["checkpoint"]
    id: Annotated[str, Field(min_length=1)]
    """A hub id, a local folder or GGUF file, as a model's own."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; pin a commit for a number that must be reproduced."""
    name: DefenceName = ""
    """What it is called in tables; its kind when empty. Two of one kind on one model need names."""

    @property
    def label(self) -> str:
        """The name shown in tables."""
        return self.name or self.kind

    @property
    def sources(self) -> tuple[str, ...]:
        """It reads no training data."""
        return ()

    def identity(self) -> dict[str, Any]:
        """What it does beside the weights, which are named by their own digest."""
        return {"kind": self.kind}


def _defence_tag(value: Any) -> str | None:
    if isinstance(value, dict):
        kind = cast(dict[str, Any], value).get("kind", "refusal_tuning")
        return kind if kind in DEFENCE_KINDS else None
    return getattr(value, "kind", None)


DEFENCE_KINDS = ("refusal_tuning", "safety_adapter", "checkpoint")
"""What may stand as a defence's `kind`."""
DefenceSpec = Annotated[
    Annotated[RefusalTuning, Tag("refusal_tuning")]
    | Annotated[SafetyAdapter, Tag("safety_adapter")]
    | Annotated[HardenedCheckpoint, Tag("checkpoint")],
    Discriminator(
        _defence_tag,
        custom_error_type="defence_kind",
        custom_error_message=f"a defence's kind is one of {', '.join(DEFENCE_KINDS)}",
    ),
]
"""A defence as a study describes it."""
