"""The study file: what is measured. Frozen records that describe; nothing here loads a model or reads data."""

from typing import Annotated, Any, Self, cast

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tamperdose.files import digest
from tamperdose.study.attacks import TRAINING_KINDS, AttackSpec, RewordingSpec
from tamperdose.study.controls import Controls, GateLimits
from tamperdose.study.inside import Inside
from tamperdose.study.judges import JudgeSpec, judge_name
from tamperdose.study.models import Decoding, HfEngine, ModelEngine, ModelSpec, PromptSets, ScriptedEngine, VllmEngine
from tamperdose.study.parts import Flag, Frozen, Seed, listed, no_boolean, require_distinct
from tamperdose.study.resources import Resources
from tamperdose.study.utility import Utility

COMPARED_SEEDS, COMPARED_ORDERS = (1, 2, 3), (1, 2)
"""Seeds and data orders of a comparison of defences unless the study says others: published claims of durability have
flipped with the seed (Qi et al. 2024, arXiv:2412.07097)."""

BEYOND_ADAPTERS = ("full", "refusal_direction")
"""Attacks whose models are no base with an adapter, which is all that the engine `vllm` is given."""


class Study(Frozen):
    """One study: models x attack grid x doses x seeds, prompts, decoding and judges."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    models: Annotated[tuple[ModelSpec, ...], Field(min_length=1)]
    prompts: PromptSets
    attack: Annotated[tuple[AttackSpec, ...], BeforeValidator(listed), Field(min_length=1)]
    """One attack, or a list of them, each with its own grid and doses."""
    seeds: Annotated[tuple[Seed, ...], BeforeValidator(listed), Field(min_length=1)] = (42,)
    """A comparison of defences has three by default: see `COMPARED_SEEDS`."""
    decoding: Decoding = Decoding()
    judges: Annotated[tuple[JudgeSpec, ...], Field(min_length=1)] = ("classifier", "phrases")
    """The first gives the headline."""
    controls: Controls | None = Controls()
    """What every attack is compared with; null for nothing."""
    gate: GateLimits = GateLimits()
    """The limits within which a fall of refusals counts as refusals removed."""
    engine: Annotated[HfEngine | VllmEngine | ScriptedEngine, Field(discriminator="kind")] = HfEngine()
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Confidence level of every interval."""
    unreadable_limit: Annotated[float, Field(ge=0, le=1)] = 0.02
    """A stage whose share of unreadable verdicts is above this fails."""
    rd_floor: Flag = True
    """Also draw two samples of the base at T = 0.7 and report their distance, the noise floor of RD."""
    utility: Utility | None = Utility()
    """What the models can do besides refusing; null: not measured."""
    inside: Inside | None = Inside()
    """How the refusal direction is followed through the layers; null: not at all. It needs benign prompts."""
    price_per_device_hour: Annotated[float, BeforeValidator(no_boolean), Field(gt=0, le=10_000)] | None = None
    """US dollars for an hour of the device that trains; with it `costs.csv` and `plan` speak of money too."""
    resources: Annotated[Resources, Field(exclude=True)] = Resources()
    """What a worker of a cluster takes. Neither in the digest nor in the resolved study: it changes no number."""
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
        each = [_undone(model) for model in cast(list[Any], models)]
        whole = {**whole, "models": [spec for specs in each for spec in specs]}
        return _repeated(whole) if any(len(specs) > 1 for specs in each) else whole

    @field_validator("seeds", "judges")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        require_distinct(tuple(getattr(value, "name", value) for value in values))
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.keep_adapters and not self.keep_adapters_reason.strip():
            raise ValueError("keep_adapters: true needs keep_adapters_reason, which goes into the manifest")
        packed = [model.label for model in self.models if model.quantization is not None]
        if packed and any(attack.kind == "full" for attack in self.attack):
            raise ValueError(
                f"4-bit weights cannot learn, but {packed[0]} has them: leave out `quantization`, or attack: lora alone"
            )
        if self.sharded and (reason := self._unshardable()):
            raise ValueError(f"{self.sharded[0].label} cannot be sharded (fsdp): {reason}")
        served = isinstance(self.engine, VllmEngine)
        if served and (kinds := [attack.kind for attack in self.attack if attack.kind in BEYOND_ADAPTERS]):
            raise ValueError(
                f"the engine vllm serves adapters, and the attack '{kinds[0]}' changes the model otherwise: "
                "give that attack a study of its own with engine: {kind: hf}"
            )
        reworded = [attack.kind for attack in self.attack if isinstance(attack, RewordingSpec)]
        if reworded and self.decoding.n_samples > 1:
            raise ValueError(
                f"decoding.n_samples must be 1 with the attack '{reworded[0]}': the best is chosen of one answer"
            )
        if self.decoding.stop_when_decided and (wanted := self._whole_answers_for()):
            raise ValueError(f"decoding.stop_when_decided needs {', '.join(wanted)}: the rest needs whole answers")
        labels = [(model.label, model.defence_label) for model in self.models]
        if len(set(labels)) != len(labels):
            shown = [" with defence ".join(label) for label in labels]
            raise ValueError(f"models must differ in name, got {shown}: give each model, or each defence, a `name`")
        return self

    @property
    def sharded(self) -> list[ModelSpec]:
        """The models whose weights are sharded over several cards while an adapter learns."""
        engine = self.engine
        return [each for each in self.models if engine.shards(each) > 1] if isinstance(engine, ModelEngine) else []

    def _unshardable(self) -> str:
        """Why models cannot be sharded as the study wants it; empty where they can."""
        if any(model.quantization is not None for model in self.sharded):
            return "4-bit weights do not come in shards; one card holds four times as many of them"
        if kinds := [attack.kind for attack in self.attack if attack.kind == "full"]:
            return f"the attack '{kinds[0]}' trains all weights, and those that are sharded are frozen: attack: lora"
        device = self.engine.device if isinstance(self.engine, ModelEngine) else ""
        # One card by its number, or an accelerator of which there is one.
        if device == "mps" or ":" in device:
            return f"engine.device is {device}; it needs cuda, and takes the first cards, or cpu"
        return ""

    def _whole_answers_for(self) -> list[str]:
        """What a study would have to say so that nothing in it needs answers written to their end."""
        needs = {
            "judges: [phrases]": self.judges != ("phrases",),
            "rd_floor: false": self.rd_floor,
            "controls: null": self.controls is not None,
            "engine.kind: hf": self.engine.kind != "hf",
        }
        return [setting for setting, is_missing in needs.items() if is_missing]

    @property
    def judge_names(self) -> tuple[str, ...]:
        """What the judges are called, the headline's first."""
        return tuple(judge_name(judge) for judge in self.judges)

    @property
    def digest(self) -> str:
        """Digest of the resolved study."""
        return digest(self.model_dump(mode="json"))


def _repeated(whole: dict[str, Any]) -> dict[str, Any]:
    """A comparison of defences with seeds and data orders, where the study says none."""
    if "seeds" not in whole:
        whole = {**whole, "seeds": list(COMPARED_SEEDS)}
    attack = whole.get("attack")
    attacks = [_ordered(spec) for spec in listed(attack)]
    return {**whole, "attack": attacks if isinstance(attack, (list, tuple)) else attacks[0]}


def _ordered(attack: Any) -> Any:
    if not isinstance(attack, dict):
        return attack
    spec = cast(dict[str, Any], attack)
    trains = spec.get("kind", "lora") in TRAINING_KINDS and "data_order" not in spec
    return {**spec, "data_order": list(COMPARED_ORDERS)} if trains else spec


def _undone(model: Any) -> list[Any]:
    """A model with a list of defences as several models with one each."""
    if isinstance(model, dict) and isinstance(defences := cast(dict[str, Any], model).get("defence"), list):
        return [{**cast(dict[str, Any], model), "defence": defence} for defence in cast(list[Any], defences)]
    return [model]
