"""Loaded tiny models, one of each class; tests must leave their weights as they were."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tamperdose.models.load import ChatModel
from tiny import CLASSES, load_tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loaded(tiny_folders: dict[str, Path]) -> dict[str, ChatModel]:
    return {kind: load_tiny(folder) for kind, folder in tiny_folders.items()}


@pytest.fixture(params=CLASSES)
def chat(request: pytest.FixtureRequest, loaded: dict[str, ChatModel]) -> ChatModel:
    return loaded[request.param]


@pytest.fixture
def llama(loaded: dict[str, ChatModel]) -> ChatModel:
    return loaded["llama"]
