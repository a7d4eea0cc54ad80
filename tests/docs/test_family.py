"""The example that tries a model family, on families that the rest of the tests do not build."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from doc_pages import ROOT, write_files
from studies import stub_embedder
from tamperdose.errors import ModelError
from tamperdose.run.stages import Readers


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(tmp_path / "cache"))
    write_files(ROOT / "docs" / "extending.md", tmp_path)
    spec = importlib.util.spec_from_file_location("family", tmp_path / "family.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "family", module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("family", ["mistral", "qwen3", "olmo2", "gemma2", "gpt_neox"])
def test_a_family_goes_through(example: Any, tmp_path: Path, family: str) -> None:
    run = example.try_family(family, tmp_path)
    assert set(run.metrics["dose_steps"]) == {0, 1, 2}
    assert "perplexity" in set(run.metrics["metric"])
    assert "refusal_direction_drift" in (run.folder / "inside.csv").read_text()
    assert "random_adapter" in (run.folder / "controls.csv").read_text()


@pytest.mark.slow
def test_a_family_of_another_kind_is_told(example: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gpt2"):
        example.try_family("gpt2", tmp_path)
