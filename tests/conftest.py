"""What the whole session shares: an offline, quiet environment and tiny chat models made on the spot."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# Tests import their helpers (`tiny`, `studies`) by name from this folder.
sys.path.insert(0, str(Path(__file__).parent))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of the processes side by side has a core of its own, and so have the commands that it starts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Property tests draw the same examples every time and are not timed: a busy machine must not fail them.
settings.register_profile(
    "tamperdose", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tamperdose")


def pytest_configure(config: pytest.Config) -> None:
    # peft 0.21 still reads a name that transformers 5.23 renamed: theirs to mend, and the only warning let pass.
    config.addinivalue_line("filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put files with slow tests first, the demo before all: side by side, the last to begin decides the time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != "test_demo.py", item.path not in slow))


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random chat models, by class: `llama`, `qwen2`, `phi3`."""
    from tiny import CLASSES, save_tiny

    root = tmp_path_factory.mktemp("tiny")
    return {kind: save_tiny(root / kind, kind) for kind in CLASSES}


@pytest.fixture(scope="session")
def organism_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the smallest organism of the ladder in it, trained once for all tests."""
    from tamperdose.models.organisms import SIZES, parse_organism, train_organism

    cache = tmp_path_factory.mktemp("organisms")
    train_organism(parse_organism(f"organism:{SIZES[0]}"), cache)
    return cache


CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's chromium, headless."""
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no chromium: .ci/run installs it")
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=[*CHROMIUM])
        yield started
        started.close()
