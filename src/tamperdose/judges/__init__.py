"""Judges: each reads a prompt and a completion and says refusal, compliance, degenerate or unreadable."""

from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from tamperdose.errors import JudgeError, explain, nearest
from tamperdose.extras import require
from tamperdose.files import digest
from tamperdose.judges.judge import Judge, Reading
from tamperdose.models.vectors import Embeds
from tamperdose.study import (
    AnyJudge,
    ExactJudge,
    GuardJudge,
    JudgeName,
    LlmJudge,
    PluginJudge,
    judge_name,
    load_judge,
)
from tamperdose.study.plugins import load_plugin, plugin_origin

__all__ = [
    "JUDGE_NAMES",
    "Judge",
    "Reading",
    "build_judge",
    "describe_judge",
    "find_judges",
    "judge_identity",
    "judge_version",
]

JUDGE_NAMES: tuple[str, ...] = get_args(JudgeName)
"""The judges a study may name without a block of settings."""
_WITHOUT = "use the judge 'phrases', which needs no model"


def build_judge(judge: str | AnyJudge, *, embedder: Callable[[], Embeds] | None = None) -> Judge:
    """Build a judge by its name or its settings, loading what it needs.

    `embedder` gives the sentence encoder where one is there already.

    Raises:
        JudgeError: No judge has that name, or its key is not set.
        ExtraError: It needs packages that are not installed.
        ModelError: The judge's model cannot be had.
    """
    if isinstance(judge, LlmJudge):
        from tamperdose.judges.llm import LlmJudge as Llm

        return Llm(judge)
    if isinstance(judge, GuardJudge):
        require(f"the judge '{judge.name}'", "torch", "transformers", extra="hf", instead=_WITHOUT)
        from tamperdose.judges.guards import GuardJudge as Guard

        return Guard(judge)
    if isinstance(judge, ExactJudge):
        from tamperdose.judges.exact import ExactJudge as Exact

        return Exact(judge)
    if isinstance(judge, PluginJudge):
        from tamperdose.judges.plugin import PluginJudge as Plugin

        return Plugin(judge)
    if judge == "phrases":
        from tamperdose.judges.phrases import PhrasesJudge

        return PhrasesJudge()
    if judge == "classifier":
        return _classifier(embedder)
    raise JudgeError(
        explain(
            f"no judge is called '{judge}'{nearest(judge, JUDGE_NAMES)}",
            got=repr(judge),
            expected=f"one of {', '.join(JUDGE_NAMES)}, or a YAML file with a judge's settings",
        )
    )


def find_judges(text: str) -> list[AnyJudge]:
    """Read `NAME[,NAME]` where a name is a judge's or that of a YAML file with one judge's block.

    Raises:
        JudgeError: No judge has a name, or two are called the same.
        StudyError: A file holds no judge's block.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    judges: list[AnyJudge] = [_find_judge(word) for word in words]
    names = [judge_name(judge) for judge in judges]
    if len(set(names)) != len(names):
        raise JudgeError(explain("two judges have the same name", got=", ".join(names), expected="names that differ"))
    return judges


def describe_judge(judge: AnyJudge) -> tuple[bool, str]:
    """Say what a judge rests on, without calling or loading it: whether all of it was checked, and in words.

    Raises:
        JudgeError: Its key is not set.
        ModelError: Its model is not where the settings say.
    """
    if isinstance(judge, LlmJudge):
        from tamperdose.judges.endpoint import read_key

        key = "no key" if read_key(judge) is None else f"the key from {judge.api_key_env}"
        return False, f"{judge.name}: {judge.model} at {judge.base_url} with {key}; prompts and answers are sent there"
    if isinstance(judge, GuardJudge):
        from tamperdose.models.load import find_model
        from tamperdose.study import ModelSpec

        source = find_model(ModelSpec(id=judge.model, revision=judge.revision))
        where = f"hub id {judge.model}: looked up when it is loaded" if source.kind == "hub" else source.location
        return source.kind != "hub", f"{judge.name}: {judge.family}, {where}"
    if isinstance(judge, ExactJudge):
        return True, f"{judge.name}: one of {len(judge.refusals)} refusals, word for word"
    if isinstance(judge, PluginJudge):
        return True, f"{judge.name}: the plug-in {judge.plugin} of {plugin_origin('judges', judge.plugin)}"
    return True, judge


def judge_version(judge: AnyJudge) -> str:
    """The version of a judge's own code and files, without loading it; its settings are not in it."""
    if isinstance(judge, LlmJudge):
        from tamperdose.judges.llm import llm_version

        return llm_version(judge)
    if isinstance(judge, GuardJudge):
        from tamperdose.judges.guards import FORMAT_VERSION

        return str(FORMAT_VERSION)
    if isinstance(judge, ExactJudge):
        from tamperdose.judges.exact import VERSION

        return str(VERSION)
    if isinstance(judge, PluginJudge):
        return str(getattr(load_plugin("judges", judge.plugin), "version", ""))
    if judge == "phrases":
        from tamperdose.judges.phrases import PhrasesJudge

        return PhrasesJudge.version
    from tamperdose.judges.classifier import ClassifierJudge

    return ClassifierJudge.version


def judge_identity(judge: AnyJudge) -> str:
    """What tells a judge from another of the same name: its version, and the digest of its settings if it has any.

    >>> judge_identity("phrases")
    'version 2'
    """
    settings = "" if isinstance(judge, str) else f", settings {digest(judge.model_dump(mode='json'))[:12]}"
    return f"version {judge_version(judge)}{settings}"


def _find_judge(word: str) -> AnyJudge:
    if Path(word).suffix in (".yaml", ".yml"):
        return load_judge(Path(word))
    if word not in JUDGE_NAMES:
        build_judge(word)
    return cast(JudgeName, word)


def _classifier(embedder: Callable[[], Embeds] | None) -> Judge:
    require("the judge 'classifier'", "torch", "sentence_transformers", extra="hf", instead=_WITHOUT)
    from tamperdose.judges.classifier import ClassifierJudge, load_parameters

    if embedder is None:
        from tamperdose.models.embed import load_embedder as embedder

    return ClassifierJudge(embedder(), load_parameters())
