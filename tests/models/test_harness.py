"""lm-eval is optional: what is told without it, and what it is handed where it is there (a stand-in here)."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tamperdose.errors import ExtraError
from tamperdose.models.harness import harness_results
from tiny import load_tiny


def test_without_the_package_the_extra_is_named(tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ExtraError, match=r"pip install 'tamperdose\[lmeval\]'"):
        harness_results(load_tiny(tiny_folders["llama"]), ["arc_easy"])


def test_the_loaded_model_is_handed_over(tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def evaluate(**options: Any) -> dict[str, Any]:
        seen.update(options)
        return {"results": {"arc_easy": {"acc,none": 0.5}}}

    package, inner = ModuleType("lm_eval"), ModuleType("lm_eval.models.huggingface")
    package.__spec__ = importlib.machinery.ModuleSpec("lm_eval", None)
    package.simple_evaluate = evaluate  # type: ignore[attr-defined]
    inner.HFLM = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", package)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", inner)
    chat = load_tiny(tiny_folders["llama"])
    assert harness_results(chat, ["arc_easy"], limit=3) == {"arc_easy": {"acc,none": 0.5}}
    assert seen["model"]["pretrained"] is chat.model
    assert (seen["tasks"], seen["limit"]) == (["arc_easy"], 3)
