"""Fast runs: the sentence encoder is a stand-in, the progress silent, the cache a folder of the test's own."""

from pathlib import Path

import pytest

from studies import stub_embedder
from tamperdose.run.stages import Readers


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(folder))
    return folder
