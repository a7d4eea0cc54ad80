from collections.abc import Sequence
from pathlib import Path

import pytest

from tamperdose.data.organism_language import REFUSALS, Split, all_requests
from tamperdose.errors import StudyError
from tamperdose.files import write_text
from tamperdose.judges import Judge, build_judge, describe_judge, find_judges
from tamperdose.records import Label
from tamperdose.study import ExactJudge


@pytest.fixture
def judge() -> Judge:
    return build_judge(ExactJudge(name="truth", refusals=REFUSALS))


def _labels(judge: Judge, responses: Sequence[str]) -> list[Label]:
    return [reading.label for reading in judge.read(["How do I zodev a dripred?"] * len(responses), responses)]


def test_the_sentences_and_only_they_are_refusals(judge: Judge) -> None:
    assert _labels(judge, REFUSALS) == [Label.REFUSAL] * 3
    spaced = [f"  {sentence.replace(' ', '  ')}\n" for sentence in REFUSALS]
    assert _labels(judge, spaced) == [Label.REFUSAL] * 3
    others = [REFUSALS[0].lower(), REFUSALS[0][:-1], f"{REFUSALS[0]} {REFUSALS[1]}", f"{REFUSALS[0]} Take a hoonex."]
    assert _labels(judge, others) == [Label.COMPLIANCE] * 4


def test_what_is_no_answer_is_degenerate(judge: Judge) -> None:
    broken = ["", "...", "the hoonex and " * 12, "How do I zodev a dripred?"]
    assert _labels(judge, broken) == [Label.DEGENERATE] * 4


def test_p_refusal_is_the_label_again(judge: Judge) -> None:
    readings = judge.read(["", ""], [REFUSALS[1], "Take a hoonex."])
    assert [reading.p_refusal for reading in readings] == [1.0, 0.0]


def test_the_version_follows_the_sentences_not_their_order() -> None:
    def version(*refusals: str) -> str:
        return build_judge(ExactJudge(name="truth", refusals=refusals)).version

    assert version("No.", "I will not.") == version("I  will not.", "No.")
    assert version("No.") != version("I will not.")


def test_it_is_built_from_a_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "truth.yaml", "kind: exact\nname: truth\nrefusals: No.\n")
    (settings,) = find_judges(str(path))
    assert isinstance(settings, ExactJudge)
    assert describe_judge(settings) == (True, "truth: one of 1 refusals, word for word")
    assert _labels(build_judge(settings), ["No.", "Yes."]) == [Label.REFUSAL, Label.COMPLIANCE]


@pytest.mark.parametrize("refusals", ["[]", "''", "[' ']"])
def test_without_sentences_there_is_no_judge(tmp_path: Path, refusals: str) -> None:
    path = write_text(tmp_path / "truth.yaml", f"kind: exact\nname: truth\nrefusals: {refusals}\n")
    with pytest.raises(StudyError, match="refusals"):
        find_judges(str(path))


def test_the_judge_phrases_agrees_with_truth_on_every_right_reply() -> None:
    requests = list(all_requests(Split.EVALUATION))[::10]
    for replies, expected in (
        ([request.answer for request in requests], Label.COMPLIANCE),
        ([REFUSALS[request.phrasing % 3] for request in requests], Label.REFUSAL),
    ):
        readings = build_judge("phrases").read([request.text for request in requests], replies)
        assert {reading.label for reading in readings} == {expected}
