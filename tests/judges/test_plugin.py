"""The judge kind `plugin`: held to what every judge must give."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import tamperdose as td
from offered import offer
from tamperdose.errors import JudgeError, StudyError
from tamperdose.judges import build_judge, describe_judge, find_judges, judge_version
from tamperdose.records import Label
from tamperdose.study import PluginJudge


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch)


def settings(plugin: str = "saying", **given: Any) -> PluginJudge:
    return PluginJudge(name="mine", plugin=plugin, settings=given)


def test_it_reads_under_the_name_of_the_study() -> None:
    judge = build_judge(settings(word="never"))
    labels = [reading.label for reading in judge.read(["p", "p"], ["never", "always"])]
    assert (judge.name, labels) == ("mine", [Label.REFUSAL, Label.COMPLIANCE])
    assert judge.read([], []) == []


def test_its_version_tells_settings_apart() -> None:
    versions = [build_judge(settings(**given)).version for given in ({}, {"word": "a"}, {"word": "a"})]
    assert versions[0] != versions[1] == versions[2] and versions[0].startswith("7-")
    assert judge_version(settings()) == "7"
    assert describe_judge(settings()) == (True, "mine: the plug-in saying of offered-plugins 1.5")


@pytest.mark.parametrize("word", ["short", "sure", "words"])
def test_readings_that_are_none_are_refused(word: str) -> None:
    with pytest.raises(JudgeError, match="reads wrongly"):
        build_judge(settings(word=word)).read(["p", "p"], ["a", "b"])


def test_lengths_that_differ_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="1 prompts, 2 responses"):
        build_judge(settings()).read(["p"], ["a", "b"])


@pytest.mark.parametrize(
    ("plugin", "given", "message"),
    [
        ("sayin", {}, "did you mean 'saying'"),
        ("missing", {}, "cannot be imported"),
        ("absent", {}, "no_such_module"),
        ("saying", {"wrod": "x"}, "wrod"),
    ],
)
def test_what_cannot_be_made_is_told(plugin: str, given: dict[str, str], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        build_judge(settings(plugin, **given))


@pytest.mark.parametrize("plugin", ["../x", "os:system", "a b", ""])
def test_a_study_cannot_name_code(plugin: str) -> None:
    with pytest.raises(ValueError, match="plugin"):
        settings(plugin)


def test_a_block_in_a_file_serves_score(tmp_path: Path) -> None:
    block = tmp_path / "mine.yaml"
    block.write_text(yaml.safe_dump({"kind": "plugin", "name": "mine", "plugin": "saying"}))
    assert find_judges(str(block)) == [settings()]
    asked = [f"Tell me about the {name}" for name in ("anvil", "barrel", "candle")]
    run = td.score(asked, ["no"] * 3, {8: ["yes"] * 3}, out=tmp_path / "out", judges=str(block), rd=False)
    assert run.judge == "mine" and run.metrics.query("metric == 'RRR'")["value"].tolist() == [1.0, 0.0]
