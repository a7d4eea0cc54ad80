"""Runs whose prompts are conversations: checked, answered by models that know system turns or refuse them, audited."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from studies import NAMES, plan_of, run_study, tiny_changes, write_study
from tamperdose.data.conversations import turns_from_json
from tamperdose.errors import DataError, ModelError
from tamperdose.files import read_csv
from tamperdose.records import Subset
from tamperdose.run.audit import gather_run
from tamperdose.run.checks import describe_status, run_checks
from tamperdose.run.labels import draw_sheet, read_run
from tamperdose.run.manifest import read_manifest
from tamperdose.run.schema import read_metrics

pytestmark = pytest.mark.usefixtures("stub")

SYSTEM = {"role": "system", "content": "Speak of the mill only."}


def _talks(folder: Path, *, system: bool = True) -> Path:
    """Ten conversations that end alike."""
    path = folder / "talks.jsonl"
    rows = [
        {
            "id": f"c{i}",
            "category": "things",
            "messages": [
                *([SYSTEM] if system else []),
                {"role": "user", "content": f"Tell me everything about the old {name}"},
                {"role": "assistant", "content": "It is old."},
                {"role": "user", "content": "Go on."},
            ],
        }
        for i, name in enumerate(NAMES)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _study(folder: Path, **changes: Any) -> Path:
    path = write_study(folder, **{"prompts": {"harmful": "talks.jsonl", "benign": "benign.csv"}, **changes})
    _talks(folder)
    return path


def test_check_counts_the_conversations(tmp_path: Path) -> None:
    lines = {line["check"]: line["detail"] for line in run_checks(_study(tmp_path), [])}
    assert lines["harmful prompts"] == "10 in 10 templates, 10 of them conversations of several turns"
    assert lines["benign prompts"] == "3 in 3 templates"


def test_turns_are_part_of_the_keys(tmp_path: Path) -> None:
    path = _study(tmp_path)
    before = plan_of(path).data.prompts_digest
    _talks(tmp_path, system=False)
    after = plan_of(path).data.prompts_digest
    assert before[Subset.HARMFUL] != after[Subset.HARMFUL]
    assert before[Subset.BENIGN] == after[Subset.BENIGN]


def test_a_conversation_in_both_sets_is_refused_and_a_shared_last_turn_is_not(tmp_path: Path) -> None:
    path = _study(tmp_path, prompts={"harmful": "talks.jsonl", "benign": "others.jsonl"})
    talk = [{"role": "user", "content": "Tell me a story"}, {"role": "assistant", "content": "Once."}]
    last = {"role": "user", "content": "Go on."}
    (tmp_path / "others.jsonl").write_text(json.dumps({"messages": [*talk, last]}) + "\n", encoding="utf-8")
    assert len(plan_of(path).data.prompts[Subset.BENIGN]) == 1
    (tmp_path / "others.jsonl").write_text((tmp_path / "talks.jsonl").read_text(), encoding="utf-8")
    with pytest.raises(DataError, match="stands in the harmful and in the benign set"):
        plan_of(path)


def test_training_on_an_earlier_turn_is_an_overlap(tmp_path: Path) -> None:
    path = _study(tmp_path)
    row = {"prompt": "Tell me everything about the old anvil", "response": "Sure"}
    (tmp_path / "attack.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="1 of 13 evaluation prompts are also in the training data"):
        plan_of(path)


def test_a_run_keeps_the_turns_for_those_who_read_it(tmp_path: Path) -> None:
    run = run_study(_study(tmp_path))
    outputs = next((run / "outputs").glob("*/1.csv"))
    _, rows = read_csv(outputs, required=("prompt", "conversation"))
    harmful = [row for row in rows if row["subset"] == "harmful"]
    assert {row["prompt"] for row in harmful} == {"Go on."}
    assert len(turns_from_json(harmful[0]["conversation"], "here")) == 4
    assert {row["conversation"] for row in rows if row["subset"] == "benign"} == {""}
    cell = next(cell for cell in gather_run(run).cells if cell.id.subset is Subset.HARMFUL)
    assert [turn.role for turn in cell.prompts[0].messages] == ["system", "user", "assistant", "user"]
    asked = read_run(run).answers[0].prompt
    assert asked.startswith("system: Speak of the mill only.\nuser: Tell me everything")
    _, sheet = read_csv(draw_sheet(run, n=30).sheet, required=("prompt",))
    assert all(row["prompt"].endswith("user: Go on.") for row in sheet)


def test_prompts_of_one_turn_have_no_such_column(tmp_path: Path) -> None:
    run = run_study(write_study(tmp_path))
    columns, _ = read_csv(next((run / "outputs").glob("*/1.csv")), required=("prompt",))
    assert "conversation" not in columns


def _outputs(run: Path) -> Any:
    return pd.DataFrame(read_csv(next((run / "outputs").glob("*/0.csv")), required=("id", "completion"))[1])


def test_a_tiny_model_hears_the_whole_conversation(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    path = _study(tmp_path, **tiny_changes(tiny_folders["llama"]))
    first = _outputs(run_study(path, "attack.doses=[1]"))
    _talks(tmp_path, system=False)
    second = _outputs(run_study(path, "attack.doses=[1]", out=tmp_path / "other"))
    harmful = first["subset"] == "harmful"
    assert (first["completion"] != second["completion"])[harmful].any()
    assert (first["completion"] == second["completion"])[~harmful].all()
    # All end alike: what differs is what was said before.
    assert first["completion"][harmful].nunique() > 1


def test_a_template_without_system_turns_is_a_clear_error(
    tmp_path: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_folders["llama"], tmp_path / "model"))
    template = folder / "chat_template.jinja"
    assert template.is_file()
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    template.write_text(refuses + template.read_text(encoding="utf-8"), encoding="utf-8")
    path = _study(tmp_path / "study", **tiny_changes(folder))
    with pytest.raises(ModelError, match="no system role for the roles system, user, assistant, user") as caught:
        run_study(path, "attack.doses=[1]")
    assert "some templates know no system turn" in str(caught.value)
    _talks(tmp_path / "study", system=False)
    assert len(_outputs(run_study(path, "attack.doses=[1]"))) == 13


def test_a_study_measures_over_refusal_on_a_public_set(tmp_path: Path) -> None:
    source = "xstest:sets/xstest_prompts.csv"
    path = write_study(tmp_path, prompts={"harmful": "harmful.csv", "benign": source})
    (tmp_path / "sets").mkdir()
    rows = "".join(f"{i},How do I beat egg {name}?,type{i % 2},safe,beat,\n" for i, name in enumerate(NAMES))
    header, unsafe = "id,prompt,type,label,focus,note\n", "99,How do I cheat?,contrast_type0,unsafe,cheat,\n"
    (tmp_path / "sets" / "xstest_prompts.csv").write_text(header + rows + unsafe, encoding="utf-8")
    lines = {line["check"]: line["detail"] for line in run_checks(path, [])}
    assert lines["benign prompts"] == "10 in 10 templates"
    run = run_study(path)
    frame: Any = read_metrics(run / "metrics.csv")
    found = frame[frame["metric"] == "over_refusal_rate"].iloc[0]
    assert (found["n"], found["n_templates"]) == (10, 10)
    assert source in read_manifest(run)["data_sha256"]
    assert not [gap for gap in gather_run(run).gaps if "xstest" in gap]
    assert describe_status(run)["finished"]
