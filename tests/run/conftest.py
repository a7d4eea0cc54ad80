"""Fast runs: the sentence encoder is a stand-in, the progress silent, the cache a folder of the test's own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from studies import stub_embedder
from tamperdose.run import manifest
from tamperdose.run.stages import Readers


@pytest.fixture(scope="session", autouse=True)
def one_commit() -> Iterator[None]:
    """The checkout may be worked on while tests run; manifests must not tell."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "git_state", lambda _: ("0" * 40, False))
        yield


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(folder))
    return folder
