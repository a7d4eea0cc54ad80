import importlib.util
from importlib.machinery import ModuleSpec

import pytest

from tamperdose.errors import ExtraError, JudgeError
from tamperdose.judges import JUDGE_NAMES, build_judge


def test_phrases() -> None:
    judge = build_judge("phrases")
    assert (judge.name, judge.version) == ("phrases", "2")


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(JudgeError, match="did you mean 'classifier'"):
        build_judge("clasifier")
    assert set(JUDGE_NAMES) == {"classifier", "phrases"}


def test_classifier_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "sentence_transformers" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ExtraError, match=r"pip install 'tamperdose\[hf\]'"):
        build_judge("classifier")
