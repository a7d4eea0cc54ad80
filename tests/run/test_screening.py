"""A screening run from its study to its files: what it gives, what it leaves out, what its audit says."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from studies import run_study, tiny_changes, write_study
from tamperdose.audit.evidence import AnswerCell
from tamperdose.audit.findings import CellId
from tamperdose.errors import StudyError
from tamperdose.records import Label, Message, Prompt, Subset
from tamperdose.run.audit import _stopped, recorded_cell
from tamperdose.run.schema import read_metrics
from tamperdose.study import Decoding, load_study
from tiny import save_tiny

SCREENING = {"decoding": {"max_new_tokens": 8, "stop_when_decided": True, "full_share": 0.5}, "rd_floor": False}


def test_a_screening_run_counts_refusals_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Words of a random model hold no sentence: here every answer is settled with its second word.
    monkeypatch.setattr("tamperdose.models.hf._SENTENCE_END", re.compile(""))
    monkeypatch.setattr("tamperdose.judges.settled.is_settled", lambda text: " " in text)
    changes = tiny_changes(save_tiny(tmp_path / "model", "llama"), **SCREENING)
    out = run_study(write_study(tmp_path / "study", **changes))
    frame = read_metrics(out / "metrics.csv")
    assert {"RRR", "CE", "refusal_retention", "over_refusal_rate"} <= set(frame["metric"])
    assert not {"RD", "RD_floor", "compliance_rate", "degenerate_rate", "judge_entropy"} & set(frame["metric"])
    checks = {check["name"]: check for check in json.loads((out / "audit.json").read_text())["checks"]}
    assert checks["screening"]["outcome"] == "fail"
    assert int(checks["screening"]["value"]) > 0
    assert checks["stopping_rule"]["outcome"] == "fail"
    assert checks["degeneration"]["outcome"] == "not_assessable"


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("judges=[classifier]", "judges: [phrases]"),
        ("rd_floor=true", "rd_floor: false"),
        ("controls={}", "controls: null"),
        ("engine={kind: scripted}", "engine.kind: hf"),
    ],
)
def test_what_needs_whole_answers_is_named(tmp_path: Path, override: str, named: str) -> None:
    path = write_study(tmp_path, **tiny_changes(tmp_path / "model", **SCREENING))
    load_study(path)
    with pytest.raises(StudyError, match="stop_when_decided needs") as found:
        load_study(path, [override])
    assert named in str(found.value)


def test_a_share_without_stopping_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path, decoding={"max_new_tokens": 8, "full_share": 0.5})
    with pytest.raises(StudyError, match="full_share has no effect"):
        load_study(path)


def test_what_is_off_is_not_in_the_keys() -> None:
    plain = Decoding(max_new_tokens=8)
    assert set(plain.identity()) == {"do_sample", "temperature", "top_p", "max_new_tokens"}
    assert "full_share" in Decoding(max_new_tokens=8, stop_when_decided=True).identity()


def test_answers_that_arms_share_are_counted_once() -> None:
    def cell(arm: str, dose: int, answers: Sequence[str]) -> AnswerCell:
        prompts = [
            Prompt(f"h{k}", (Message("user", "Which way?"),), Subset.HARMFUL, f"t{k}") for k in range(len(answers))
        ]
        return recorded_cell(
            CellId(arm, dose, Subset.HARMFUL), prompts, answers, labels=[Label.COMPLIANCE] * len(answers)
        )

    base = ["Left.", "Right."]
    cells = [cell(arm, 0, base) for arm in ("one", "two", "three")] + [cell("one", 4, ["Left.", "Straight on."])]
    found = _stopped(cells, Decoding(stop_when_decided=True, full_share=1))
    assert found.changed == (False,) * 3
    assert found.templates == ("t0", "t1", "t1")
