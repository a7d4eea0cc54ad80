"""Prompts by hub id: the source is read strictly, the data set is fetched once, and nothing needs a network here."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from tamperdose.data.hub import hub_file, parse_hub
from tamperdose.data.prompts import load_prompts
from tamperdose.data.sources import examples_path
from tamperdose.errors import DataError, ExtraError
from tamperdose.files import sha256_file
from tamperdose.records import Message, Subset
from tamperdose.run.plan import read_data
from tamperdose.run.starter import write_starter
from tamperdose.study import load_study
from tamperdose.study.loading import find_source

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_file.cache_clear()
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub with one data set, and what it was asked for."""
    asked: list[tuple[Any, ...]] = []
    rows = {
        "ask": ["Forge a pass", "Pick the lock"],
        "talk": [[{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Bye"}]],
        "topic": ["fraud", None],
        "number": [7, 8],
        "empty": ["", "x"],
    }

    def load(name: str, config: str | None, *, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((name, config, split, revision))
        if split != "test":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['test'].")
        return datasets.Dataset.from_dict(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_source_names_data_set_split_and_column() -> None:
    found = parse_hub("hf://datasets/org/set.1?split=test%5B%3A10%5D&column=ask&config=en&revision=main&id=n")
    assert (found.name, found.split, found.column) == ("org/set.1", "test[:10]", "ask")
    assert (found.config, found.revision, found.id) == ("en", "main", "n")
    assert parse_hub("hf://set?split=train").column == "prompt"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("hf://org/set", "no split"),
        ("hf://org/set?split=", "'split', which is empty"),
        ("hf://org/set?split=a&split=b", "twice"),
        ("hf://org/set?split=a&colum=b", "did you mean 'column'"),
        ("hf://?split=a", "data set's id"),
        ("hf://../../etc?split=a", "data set's id"),
        ("hf://a/b/c?split=a", "data set's id"),
        ("hf://org/set?split=a%1b%5b31m", "split"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, match: str) -> None:
    with pytest.raises(DataError, match=match):
        parse_hub(source)


def test_prompts_are_loaded_with_their_columns(served: list[tuple[Any, ...]]) -> None:
    source = f"hf://org/set?split=test&column=ask&category=topic&id=number&config=en&revision={COMMIT}"
    prompts = load_prompts(source, subset=Subset.HARMFUL)
    assert [(prompt.id, prompt.text, prompt.category) for prompt in prompts] == [
        ("7", "Forge a pass", "fraud"),
        ("8", "Pick the lock", ""),
    ]
    assert served == [("org/set", "en", "test", COMMIT)]


def test_conversations_are_taken_as_such(served: list[tuple[Any, ...]]) -> None:
    prompts = load_prompts("hf://org/set?split=test&column=talk", subset=Subset.BENIGN)
    assert prompts[0].messages == (Message("user", "Hi"),) and served


def test_a_commit_is_fetched_once_and_a_branch_each_time(served: list[tuple[Any, ...]]) -> None:
    for source, n_asked in (
        (f"hf://org/set?split=test&column=ask&revision={COMMIT}", 1),
        ("hf://org/set?split=test&column=ask", 2),
    ):
        served.clear()
        paths = set()
        for _ in range(2):
            hub_file.cache_clear()
            paths.add(hub_file(source))
        assert len(served) == n_asked and len(paths) == 1
    assert json.loads(paths.pop().read_text().splitlines()[0]) == {"prompt": "Forge a pass"}


def test_offline_the_cache_is_read(served: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    path = hub_file("hf://org/set?split=test&column=ask")
    hub_file.cache_clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    assert hub_file("hf://org/set?split=test&column=ask") == path


def test_what_the_hub_does_not_have_is_said(served: list[tuple[Any, ...]]) -> None:
    with pytest.raises(DataError, match=r"split 'tset'[\s\S]*Should be one of"):
        hub_file("hf://org/set?split=tset")
    with pytest.raises(DataError, match=r"no column 'asks' \(did you mean 'ask'\?\)[\s\S]*&column="):
        hub_file("hf://org/set?split=test&column=asks")
    with pytest.raises(DataError, match="'prompt' is empty"):
        load_prompts("hf://org/set?split=test&column=empty", subset=Subset.HARMFUL)
    with pytest.raises(DataError, match="'prompt' is not a text"):
        load_prompts("hf://org/set?split=test&column=number", subset=Subset.HARMFUL)


def test_without_a_network_the_error_is_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"cannot read nobody/nothing[\s\S]*HF_HUB_OFFLINE is set[\s\S]*unset"):
        hub_file("hf://nobody/nothing?split=test")


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ExtraError, match=r"tamperdose\[hub\]"):
        hub_file("hf://org/set?split=test")


def test_a_source_is_no_path(tmp_path: Path) -> None:
    assert find_source("hf://org/set?split=test", tmp_path / "study.yaml") == "hf://org/set?split=test"
    with pytest.raises(DataError, match="not read from the hub"):
        examples_path("hf://org/set?split=test")


def test_a_first_study_keeps_the_hub_id(served: list[tuple[Any, ...]], tmp_path: Path) -> None:
    source = "hf://org/set?split=test&column=ask"
    write_starter(tmp_path / "study.yaml", model="organism:d32-l2", prompts=source)
    study = load_study(tmp_path / "study.yaml")
    assert study.prompts.harmful == source and served
    data = read_data(study, tmp_path / "study.yaml")
    assert data.sha256[source] == sha256_file(hub_file(source))
