"""The study file: what is measured.

A study is one YAML file. `load_study` reads it, applies `--set` overrides, fills defaults and refuses what it does
not know; `Study.model_dump` is the resolved form that is stored beside the results.
"""

from tamperdose.study.attacks import (
    AttackSpec,
    DirectionSpec,
    DoseSearch,
    FullSpec,
    LoraSpec,
    Optimizer,
    PluginSpec,
    PrefillSpec,
    RewordingSpec,
    TrainingSpec,
    default_alpha,
)
from tamperdose.study.controls import Controls, GateLimits
from tamperdose.study.defences import (
    DefenceSpec,
    HardenedCheckpoint,
    RefusalTuning,
    SafetyAdapter,
    TunedDefence,
)
from tamperdose.study.inside import Inside
from tamperdose.study.judges import (
    AnyJudge,
    ExactJudge,
    GuardFamily,
    GuardJudge,
    JudgeName,
    LlmJudge,
    PluginJudge,
    is_local,
    judge_name,
)
from tamperdose.study.loading import (
    find_source,
    load_judge,
    load_study,
)
from tamperdose.study.models import (
    Architecture,
    Decoding,
    Equivalence,
    HfEngine,
    ModelEngine,
    ModelSpec,
    ScriptedEngine,
    VllmEngine,
)
from tamperdose.study.parts import (
    PUBLIC_SETS,
    split_source,
)
from tamperdose.study.resources import Resources
from tamperdose.study.study import (
    COMPARED_ORDERS,
    COMPARED_SEEDS,
    Study,
)
from tamperdose.study.utility import AUTO, Utility

__all__ = [
    "AUTO",
    "COMPARED_ORDERS",
    "COMPARED_SEEDS",
    "PUBLIC_SETS",
    "AnyJudge",
    "Architecture",
    "AttackSpec",
    "Controls",
    "Decoding",
    "DefenceSpec",
    "DirectionSpec",
    "DoseSearch",
    "Equivalence",
    "ExactJudge",
    "FullSpec",
    "GateLimits",
    "GuardFamily",
    "GuardJudge",
    "HardenedCheckpoint",
    "HfEngine",
    "Inside",
    "JudgeName",
    "LlmJudge",
    "LoraSpec",
    "ModelEngine",
    "ModelSpec",
    "Optimizer",
    "PluginJudge",
    "PluginSpec",
    "PrefillSpec",
    "RefusalTuning",
    "Resources",
    "RewordingSpec",
    "SafetyAdapter",
    "ScriptedEngine",
    "Study",
    "TrainingSpec",
    "TunedDefence",
    "Utility",
    "VllmEngine",
    "default_alpha",
    "find_source",
    "is_local",
    "judge_name",
    "load_judge",
    "load_study",
    "split_source",
]
