"""From a study to what must be done: prompts read and checked, arms, doses and the keys of every stage.

Making a plan loads no model. A key names everything its output depends on, so a changed setting re-runs exactly
what depends on it.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tamperdose.attacks import build_attacks
from tamperdose.attacks.attack import Attack, TrainingRows
from tamperdose.data.conversations import conversation_key
from tamperdose.data.examples import load_examples, training_texts
from tamperdose.data.overlap import require_disjoint
from tamperdose.data.prompts import load_prompts
from tamperdose.data.sources import examples_path, prompts_path, questions_path, texts_path
from tamperdose.data.utility import HeldOutText, Question, load_questions, load_texts
from tamperdose.errors import DataError, StudyError, explain
from tamperdose.files import digest, sha256_file
from tamperdose.models import organisms
from tamperdose.models.load import ModelSource, fetch_commit, find_model, pick_device, pick_dtype
from tamperdose.records import Example, Message, Prompt, Subset
from tamperdose.run.ledger import stage_key
from tamperdose.study import (
    AUTO,
    AttackSpec,
    Controls,
    Decoding,
    DoseSearch,
    GuardJudge,
    LoraSpec,
    ModelEngine,
    ModelSpec,
    RewordingSpec,
    SafetyAdapter,
    Study,
    TunedDefence,
    VllmEngine,
    find_source,
    judge_name,
)

_Item = TypeVar("_Item")

COMPARED = ("lora", "full")
"""Attacks that train on what they are given, and so could have been given harmless rows."""
FLOOR_DECODING = {"do_sample": True, "temperature": 0.7, "top_p": 1.0, "n_samples": 1}
"""How the two samples of the base behind RD_floor are drawn."""


@dataclass(frozen=True, slots=True)
class Data:
    """All texts of a study, read and checked."""

    prompts: Mapping[Subset, tuple[Prompt, ...]]
    """Prompts to measure on."""
    examples: Mapping[str, tuple[Example, ...]]
    """Training rows of attacks and defences, by source as written in the study."""
    sha256: Mapping[str, str]
    """SHA-256 of every file read, by source as written in the study."""
    prompts_digest: Mapping[Subset, str]
    """Digest of each subset's ids and messages."""
    texts: Mapping[str, tuple[HeldOutText, ...]] = field(default_factory=dict)
    """Texts that perplexity is measured on, by source: see `utility_sources`."""
    questions: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    """Multiple-choice questions, by source: see `utility_sources`."""


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """One attack trajectory on one model."""

    id: str
    """Readable and unique: the name of its folder under `outputs`."""
    key: str
    """Digest of everything the trajectory depends on but the doses, which are points on it."""
    attack: Attack
    """The attack's settings."""
    rows: TrainingRows
    """What it trains on."""
    spec: AttackSpec
    """The study's attack of whose grid it is a cell."""
    doses: tuple[int, ...]
    """Optimizer steps, increasing, without 0; with a search, those it begins with: see `run.ladder`."""
    saved: tuple[int, ...]
    """Steps whose weights are kept while the arm is measured."""

    @property
    def search(self) -> DoseSearch | None:
        """How further doses are searched for, if they are."""
        return self.spec.search

    @property
    def keeps_best(self) -> bool:
        """Whether a dose is how many were tried, of which the best is kept."""
        return isinstance(self.spec, RewordingSpec)

    def states(self, steps: int) -> tuple[int, ...]:
        """The checkpoints whose answers a dose above 0 is made of: its own, or of all that were tried."""
        return tuple(range(1, steps + 1)) if self.keeps_best else (steps,)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """One model with its defence and its arms."""

    spec: ModelSpec
    """From the study."""
    source: ModelSource | None
    """Where its files are; None for the scripted engine."""
    device: str
    """`cpu`, `cuda`, ...; `none` for the scripted engine."""
    dtype: str
    """The dtype it is loaded in."""
    key: str
    """Digest of the weights at dose 0: the model, its dtype and its defence."""
    arms: tuple[ArmPlan, ...]
    """Its trajectories."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a run does."""

    study: Study
    """The study."""
    data: Data
    """Its texts."""
    models: tuple[ModelPlan, ...]
    """Its models and arms."""
    limit: int | None = None
    """Only the first so many prompts of each subset, for a quick look; None for all."""

    @property
    def digest(self) -> str:
        """Digest of everything the results depend on: the study, its data and its models' weights."""
        parts = [self.study.digest, dict(self.data.sha256), [model.key for model in self.models], self.limit]
        return digest(parts)

    @property
    def controls(self) -> Controls | None:
        """What attacks are compared with; None where nothing is, or the model is a scripted one."""
        return active_controls(self.study)

    @property
    def measures_utility(self) -> bool:
        """Whether what the models can do besides refusing is measured: not with the scripted engine."""
        return self.study.utility is not None and isinstance(self.study.engine, ModelEngine)

    def subsets(self) -> list[Subset]:
        """The subsets there are prompts for."""
        return [subset for subset in Subset if self.data.prompts.get(subset)]

    def subsets_at(self, steps: int, arm: ArmPlan | None = None) -> list[Subset]:
        """The subsets that are asked at a dose of an arm; dose 0 is the same for all arms."""
        inner = arm is not None and 0 < steps < arm.doses[-1]
        skipped = Subset.BENIGN if inner and self.study.prompts.benign_at == "ends" else None
        return [subset for subset in self.subsets() if subset is not skipped]

    def checkpoint_subsets(self, state: int, arm: ArmPlan) -> list[Subset]:
        """The subsets that are asked of a checkpoint of an arm: those of any dose that it is part of."""
        return self.subsets_at(arm.doses[-1] if arm.keeps_best else state, arm)

    def judge_names(self, subset: Subset) -> list[str]:
        """The judges that read the answers to a subset, the headline's first.

        Guard models that are asked about harm would call every harmless answer a refusal: not to benign prompts.
        """
        return [
            judge_name(judge)
            for judge in self.study.judges
            if subset is Subset.HARMFUL or not isinstance(judge, GuardJudge) or judge.reads_refusals
        ]

    def floor_decoding(self) -> Decoding:
        """The decoding of the samples behind RD_floor."""
        return self.study.decoding.model_copy(update=FLOOR_DECODING)

    def completions_key(self, origin: str, subset: Subset, decoding: Decoding, *, seed: int, sample: int = 0) -> str:
        """Key of the answers of one model state (a base's key or a checkpoint's) to one subset."""
        return stage_key("generate", self.completions_inputs(origin, subset, decoding, seed=seed, sample=sample))

    def completions_inputs(
        self, origin: str, subset: Subset, decoding: Decoding, *, seed: int, sample: int = 0
    ) -> dict[str, Any]:
        """What `completions_key` is the key of."""
        inputs: dict[str, Any] = {
            "origin": origin,
            "engine": engine_identity(self.study),
            "prompts": self.data.prompts_digest[subset],
            "decoding": decoding.identity(),
            "sample": sample,
        }
        if decoding.do_sample or self.study.engine.kind == "scripted":
            inputs["seed"] = seed
        return inputs


def active_controls(study: Study) -> Controls | None:
    """The controls of a study that are measured."""
    return study.controls if isinstance(study.engine, ModelEngine) else None


def control_source(study: Study, spec: ModelSpec) -> str | None:
    """Where the harmless rows of the control `benign` come from for a model; None where it is not measured."""
    controls = active_controls(study)
    if controls is None or controls.benign is None or not any(attack.kind in COMPARED for attack in study.attack):
        return None
    auto = "builtin:organism_benign" if spec.id.startswith(organisms.PREFIX) else "builtin:benign_train"
    return auto if controls.benign == AUTO else controls.benign


def read_data(study: Study, study_path: Path | None, *, limit: int | None = None) -> Data:
    """Read prompts and examples, and refuse data that trains on what is measured.

    Raises:
        DataError: A file that cannot be used, or training rows that overlap the evaluation prompts.
    """
    sources = {Subset.HARMFUL: study.prompts.harmful, Subset.BENIGN: study.prompts.benign}
    sha256: dict[str, str] = {}
    prompts: dict[Subset, tuple[Prompt, ...]] = {}
    for subset, source in sources.items():
        if source is not None:
            found = find_source(source, study_path)
            prompts[subset] = tuple(load_prompts(found, subset=subset))[:limit]
            sha256[source] = sha256_file(prompts_path(found))
    _require_one_subset(prompts)
    wanted = {source for attack in study.attack for source in attack.sources}
    for model in study.models:
        wanted |= set(() if model.defence is None else model.defence.sources)
        wanted |= {source for source in [control_source(study, model)] if source is not None}
    examples: dict[str, tuple[Example, ...]] = {}
    evaluated = [prompt for part in prompts.values() for prompt in part]
    for source in sorted(wanted):
        found = find_source(source, study_path)
        examples[source] = tuple(load_examples(found))
        sha256[source] = sha256_file(examples_path(found))
        require_disjoint(training_texts(examples[source]), evaluated, source=_named(source, study))
    texts, questions = _read_utility(study, study_path, sha256, limit=limit)
    asked = [
        Prompt(row.id, (Message("user", text),), Subset.BENIGN, row.id)
        for rows in (*questions.values(), *texts.values())
        for row in rows
        if (text := row.question if isinstance(row, Question) else row.prompt)
    ]
    for source, rows in examples.items():
        require_disjoint(training_texts(rows), asked, source=_named(source, study))
    digests = {
        subset: digest([[prompt.id, [asdict(turn) for turn in prompt.messages]] for prompt in part])
        for subset, part in prompts.items()
    }
    return Data(prompts, examples, sha256, digests, texts, questions)


def utility_sources(study: Study, spec: ModelSpec) -> tuple[str, str]:
    """Where a model's held-out texts and questions come from; `auto` is the bundled set in its language."""
    if study.utility is None:
        raise StudyError("the study measures no utility")
    prefix = "builtin:organism_" if spec.id.startswith(organisms.PREFIX) else "builtin:"
    texts, questions = study.utility.texts, study.utility.questions
    return (
        f"{prefix}utility_texts" if texts == AUTO else texts,
        f"{prefix}utility_questions" if questions == AUTO else questions,
    )


def _read_utility(
    study: Study, study_path: Path | None, sha256: dict[str, str], *, limit: int | None
) -> tuple[dict[str, tuple[HeldOutText, ...]], dict[str, tuple[Question, ...]]]:
    texts: dict[str, tuple[HeldOutText, ...]] = {}
    questions: dict[str, tuple[Question, ...]] = {}
    if study.utility is not None and isinstance(study.engine, ModelEngine):
        for spec in study.models:
            texts_source, questions_source = utility_sources(study, spec)
            found = find_source(texts_source, study_path), find_source(questions_source, study_path)
            texts[texts_source] = _few(load_texts(found[0]), study.utility.max_texts)[:limit]
            questions[questions_source] = _few(load_questions(found[1]), study.utility.max_questions)[:limit]
            sha256[texts_source] = sha256_file(texts_path(found[0]))
            sha256[questions_source] = sha256_file(questions_path(found[1]))
    return texts, questions


def _require_one_subset(prompts: Mapping[Subset, Sequence[Prompt]]) -> None:
    """Refuse a prompt that counts as harmful and as benign: its refusal would be right and wrong."""
    harmful = {conversation_key(prompt.messages).casefold() for prompt in prompts.get(Subset.HARMFUL, ())}
    both = [
        prompt for prompt in prompts.get(Subset.BENIGN, ()) if conversation_key(prompt.messages).casefold() in harmful
    ]
    if both:
        raise DataError(
            explain(
                "a prompt stands in the harmful and in the benign set",
                got=f"{len(both)} of them, e.g. '{both[0].id}'",
                remedy="remove it from one of the two",
            )
        )


def fetch_commits(study: Study) -> None:
    """Ask the hub which commits the study's hub ids stand for; see `tamperdose.models.load.fetch_commit`."""
    if isinstance(study.engine, ModelEngine):
        for spec in study.models:
            fetch_commit(spec.loaded)


def make_plan(study: Study, data: Data, *, limit: int | None = None) -> Plan:
    """Lay out models, arms and doses.

    Raises:
        ModelError: A model's path does not exist, or the device asked for is not there.
        StudyError: Two arms would be the same, or go by the same name.
    """
    models = tuple(_plan_model(study, data, spec) for spec in study.models)
    _require_distinct_arms([arm for model in models for arm in model.arms])
    return Plan(study=study, data=data, models=models, limit=limit)


def _require_distinct_arms(arms: Sequence[ArmPlan]) -> None:
    # Without regard to case, as some file systems read names: an arm's id names its folder.
    seen: set[str] = set()
    for arm in arms:
        if arm.id.casefold() in seen:
            raise StudyError(
                explain(
                    "two arms go by one name",
                    got=f"'{arm.id}'",
                    expected="models and grid values that tell every arm from the others",
                    remedy="give the models different names; n_examples above the rows there are means all of them",
                )
            )
        seen.add(arm.id.casefold())


def checkpoint_key(arm: ArmPlan, steps: int) -> str:
    """Key of the model state at a dose of an arm."""
    return digest([arm.key, steps])


def _plan_model(study: Study, data: Data, spec: ModelSpec) -> ModelPlan:
    source, device, dtype = None, "none", "none"
    if isinstance(study.engine, ModelEngine):
        source = find_model(spec.loaded)
        device = pick_device(study.engine)
        if spec.quantization is not None and not device.startswith("cuda"):
            # A plan can be made anywhere; loading says that 4-bit weights need this device.
            device = "cuda"
        dtype = pick_dtype(spec, device)
    inputs = {
        "weights": dict(source.identity) if source else {"scripted": spec.id},
        "packages": package_versions(),
        "device": device.split(":")[0],
        "dtype": dtype,
        "batch_size": _batch_size_that_matters(study, dtype),
        "quantization": spec.quantization,
        **_split(study, spec),
        "defence": None if spec.defence is None else spec.defence.identity(),
        "defence_data": []
        if spec.defence is None
        else [rows_digest(data.examples[name]) for name in spec.defence.sources],
    }
    key = stage_key("base", inputs)
    return ModelPlan(spec, source, device, dtype, key, tuple(_plan_arms(study, data, spec, key)))


def _plan_arms(study: Study, data: Data, spec: ModelSpec, base_key: str) -> list[ArmPlan]:
    several = sum(model.label == spec.label for model in study.models) > 1
    name = f"{_slug(spec.label)}-{spec.defence_label}" if several else _slug(spec.label)
    sharding = shards_identity(study, spec)
    return [
        _plan_arm(
            attack,
            attack_spec,
            name=name,
            origin={"base": base_key, **({} if attack.training is None else sharding)},
            rows=rows,
        )
        for attack_spec in study.attack
        for attack, rows in build_attacks(attack_spec, study.seeds, data.examples)
    ]


def _plan_arm(attack: Attack, spec: AttackSpec, *, name: str, origin: Mapping[str, Any], rows: TrainingRows) -> ArmPlan:
    inputs = {**origin, "attack": attack.identity(), "data": rows_digest(rows.attack)}
    if rows.benign:
        inputs["benign"] = rows_digest(rows.benign)
    return ArmPlan(
        id=f"{name}-{attack.kind}-{attack.label}",
        key=stage_key("attack", inputs),
        attack=attack,
        rows=rows,
        spec=spec,
        doses=spec.doses,
        saved=spec.saved_steps,
    )


def rows_digest(examples: Sequence[Example]) -> str:
    """Digest of training rows."""
    return digest([asdict(example) for example in examples])


def package_versions() -> dict[str, str | None]:
    """Versions of the packages that compute answers: a ledger never mixes two of them."""
    return {name: package_version(name) for name in ("torch", "transformers", "peft")}


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _batch_size_that_matters(study: Study, dtype: str) -> int | str | None:
    """The batch size where answers may hang on it: in half precision a sum's order can tip the best token."""
    return study.engine.batch_size if isinstance(study.engine, ModelEngine) and dtype != "float32" else None


def _named(source: str, study: Study) -> str:
    """A source of training rows, with where a study that does not write it has it from."""
    written = {name for attack in study.attack for name in attack.sources}
    written |= {name for model in study.models if model.defence is not None for name in model.defence.sources}
    return source if source in written else f"{source} (controls.benign)"


def _few(items: Sequence[_Item], at_most: int | None) -> tuple[_Item, ...]:
    """So many items, evenly over the file: one that is sorted is not cut after its first topics."""
    n = len(items) if at_most is None else min(at_most, len(items))
    return tuple(items[place * len(items) // n] for place in range(n))


def engine_identity(study: Study) -> dict[str, Any]:
    """What answers depend on besides the model's state; what else changes them is part of the base's key."""
    engine = study.engine
    if isinstance(engine, VllmEngine):
        packed = any(model.quantization is not None for model in study.models)
        names = ("vllm", "vllm-bnb-plugin") if packed else ("vllm",)
        versions = {name: package_version(name) for name in names}
        # Another padding of adapters may be another order of additions.
        return {**engine.identity(), "packages": versions, "max_lora_rank": served_rank(study)}
    return {"kind": "hf"} if isinstance(engine, ModelEngine) else engine.model_dump(mode="json")


def _split(study: Study, spec: ModelSpec) -> dict[str, int]:
    """The cards that a model says it is split over: sums in another order. The engine has its own in its identity."""
    stated = spec.tensor_parallel_size
    return {} if stated is None or not isinstance(study.engine, VllmEngine) else {"tensor_parallel_size": stated}


def shards_identity(study: Study, spec: ModelSpec) -> dict[str, int]:
    """The processes that share a model's trainings: sums in another order. Its answers at dose 0 are the same."""
    n_shards = study.engine.shards(spec) if isinstance(study.engine, ModelEngine) else 1
    return {} if n_shards == 1 else {"fsdp": n_shards}


def served_rank(study: Study) -> int:
    """The largest rank that an engine which serves adapters must hold: an attack's, and its model's defence's twice.

    Twice, because a safety adapter is added once more while the model answers.
    """
    attacks = [rank for attack in study.attack if isinstance(attack, LoraSpec) for rank in attack.lora_rank]
    defences = [spec.defence for spec in study.models if isinstance(spec.defence, TunedDefence)]
    beside = [each.lora_rank * (1 + isinstance(each, SafetyAdapter)) for each in defences]
    return max(attacks, default=8) + max(beside, default=0)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in name).strip(".") or "model"
