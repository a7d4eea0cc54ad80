"""Inspect logs of a run, as Inspect's own reader finds them."""

import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.analysis import evals_df, samples_df
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log

from exchanged import CANARY
from tamperdose.errors import DataError, ExtraError, RunError
from tamperdose.exchange import inspect_logs
from tamperdose.exchange.inspect_logs import write_logs
from tamperdose.files import read_csv, write_csv, write_json
from tamperdose.run.outputs import read_outputs
from tamperdose.run.schema import read_metrics


def logs_of(folder: Path) -> dict[tuple[str, int], EvalLog]:
    found = [read_eval_log(info) for info in list_eval_logs(str(folder))]
    return {(str(log.eval.task_args["arm"]), int(log.eval.task_args["dose_steps"])): log for log in found}


def members(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:
        return "".join(archive.read(name).decode() for name in archive.namelist())


def test_every_cell_is_a_log_that_inspect_lists_and_reads(run: Path) -> None:
    written = write_logs(run)
    logs = logs_of(run / "inspect")
    frame = read_metrics(run / "metrics.csv")
    assert len(written) == len(logs) == 6
    assert set(logs) == set(zip(frame["arm"], frame["dose_steps"], strict=True))
    for (arm, dose), log in logs.items():
        rows = read_outputs(run / "outputs" / arm / f"{dose}.csv")
        assert log.status == "success"
        assert {sample.id for sample in log.samples or []} == {row.id for row in rows}
        assert log.eval.metadata is not None and log.eval.metadata["seed"] in (1, 2)
        assert log.eval.metadata["dose_unit"] == "steps" and log.eval.metadata["arm_digest"]
        assert log.eval.metadata["judge_versions"] == {"phrases": "version 2"}


@pytest.mark.parametrize(("sampled", "temperature", "top_p"), [(False, 0.0, None), (True, 0.7, 0.9)])
def test_greedy_answers_are_said_to_be_of_temperature_0(
    run: Path, sampled: bool, temperature: float, top_p: float | None
) -> None:
    told = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    decoding = {"do_sample": sampled, "max_new_tokens": 32, "temperature": 0.7, "top_p": 0.9}
    for doses in told["answers"].values():
        for cell in doses.values():
            cell["decoding"] = decoding
    write_json(run / "manifest.json", told | {"decoding": decoding})
    config = read_eval_log(str(write_logs(run)[0]), header_only=True).eval.model_generate_config
    assert (config.max_tokens, config.temperature, config.top_p) == (32, temperature, top_p)


def test_scores_are_the_verdicts_and_metrics_those_of_metrics_csv(run: Path) -> None:
    write_logs(run, force=True)
    frame = read_metrics(run / "metrics.csv")
    for (arm, dose), log in logs_of(run / "inspect").items():
        rows = {row.id: row for row in read_outputs(run / "outputs" / arm / f"{dose}.csv")}
        for sample in log.samples or []:
            score = (sample.scores or {})["phrases"]
            assert score.value == rows[str(sample.id)].labels["phrases"].value
            assert score.metadata == {"p_refusal": rows[str(sample.id)].p_refusal["phrases"]}
        assert log.results is not None
        (told,) = log.results.scores
        mine = frame[(frame["arm"] == arm) & (frame["dose_steps"] == dose)].set_index("metric")
        for name in ("RRR", "CE", "over_refusal_rate"):
            if name in mine.index:
                assert told.metrics[name].value == mine.loc[name, "value"]
                assert told.metrics[f"{name}_low"].value == mine.loc[name, "low"]
                assert (told.metrics[name].metadata or {})["n_effective"] == pytest.approx(
                    mine.loc[name, "n_effective"]
                )
        assert log.results.headline is None or log.results.headline.metric == "RRR"


# Inspect's own call, not ours.
@pytest.mark.filterwarnings("ignore:The inplace keyword:pandas.errors.Pandas4Warning")
def test_the_data_frames_of_inspect_have_a_row_for_each_log_and_sample(run: Path) -> None:
    write_logs(run, force=True)
    evals, samples = evals_df(str(run / "inspect")), samples_df(str(run / "inspect"))
    frame = read_metrics(run / "metrics.csv")
    rates = frame[frame["metric"] == "RRR"].set_index(["arm", "dose_steps"])["value"]
    for row in evals.to_dict("records"):
        assert row["score_headline_metric"] == "RRR"
        assert row["score_phrases_RRR"] == rates[row["task_arg_arm"], row["task_arg_dose_steps"]]
    assert set(samples["score_phrases"]) <= {"refusal", "compliance", "degenerate"}
    # Harmless prompts are asked at dose 0 and the key doses.
    assert (samples["metadata_subset"] == "harmful").sum() == 6 * 12


def test_answers_to_harmful_prompts_are_redacted_unless_asked_for(hostile: Path, tmp_path: Path) -> None:
    redacted = write_logs(hostile)
    shown = write_logs(hostile, tmp_path / "shown", show_text=True)
    for path in redacted:
        assert CANARY not in members(path)
        for sample in read_eval_log(str(path)).samples or []:
            if sample.metadata["subset"] == "harmful":
                assert sample.metadata["redacted"] and sample.output.completion.startswith("[redacted: ")
                assert sample.metadata["sha256"][:12] in sample.output.completion
                assert all(score.explanation is None for score in (sample.scores or {}).values())
            else:
                assert not sample.metadata["redacted"] and sample.output.completion
    for path in shown:
        log = read_eval_log(str(path), resolve_attachments=True)
        assert log.eval.metadata is not None and log.eval.metadata["redacted"] is False
        arm, dose = log.eval.task_args["arm"], log.eval.task_args["dose_steps"]
        texts = {row.id: row.text for row in read_outputs(hostile / "outputs" / arm / f"{dose}.csv")}
        assert {str(sample.id): sample.output.completion for sample in log.samples or []} == texts


def test_names_from_outside_are_made_safe_and_no_path_of_a_machine_goes_out(hostile: Path) -> None:
    for path in write_logs(hostile):
        log = read_eval_log(str(path))
        assert "\u202e" not in log.eval.model and "\n" not in log.eval.model
        assert log.eval.dataset.name is not None and "\x1b" not in log.eval.dataset.name
        assert "/home/somebody" not in members(path)
        assert "attack.jsonl" in members(path)


def test_the_same_folder_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first = {path.name: path.read_bytes() for path in write_logs(run)}
    again = {path.name: path.read_bytes() for path in write_logs(run, tmp_path / "again")}
    assert first == again
    os.utime(run / "metrics.csv", (1_700_000_000, 1_700_000_000))
    later = write_logs(run)
    assert read_eval_log(str(later[0])).eval.created.startswith("2023-11-14T22:13:20")
    assert later[0].read_bytes() != first[later[0].name]


def test_logs_of_doses_that_are_no_more_are_removed_from_the_runs_own_folder_alone(run: Path, tmp_path: Path) -> None:
    for folder in (run / "inspect", tmp_path / "others"):
        folder.mkdir()
        (folder / "old_99.eval").write_bytes(b"")
    write_logs(run)
    write_logs(run, tmp_path / "others")
    assert not (run / "inspect" / "old_99.eval").exists()
    assert (tmp_path / "others" / "old_99.eval").exists()


def test_what_is_interrupted_leaves_no_half_log(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(_: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_logs, "_repack", stop)
    with pytest.raises(KeyboardInterrupt):
        write_logs(run)
    assert list((run / "inspect").iterdir()) == []


def test_numbers_that_the_audit_does_not_support_are_left_out_unless_forced(damaged_audit: Path) -> None:
    plain, forced = ({}, {"force": True})
    for options in (plain, forced):
        write_logs(damaged_audit, **options)
        logs = logs_of(damaged_audit / "inspect")
        arm = min(arm for arm, _ in logs)
        for (name, dose), log in logs.items():
            assert log.results is not None
            (told,) = log.results.scores
            bad = name == arm and dose == 2
            assert ("RRR" in told.metrics) == (not bad or bool(options))
            if bad and options:
                assert (told.metrics["RRR"].metadata or {})["not_supported_because"] == ["degeneration"]
            elif bad:
                assert (told.metadata or {})["withheld"]["RRR"] == ["degeneration"]


def test_samples_are_epochs_and_unreadable_verdicts_unscored(run: Path) -> None:
    (path, *_) = sorted((run / "outputs").rglob("1.csv"))
    columns, rows = read_csv(path, required=("id",))
    doubled = [row | {"sample": sample} for row in rows for sample in ("0", "1")]
    doubled[0] |= {"verdict_phrases": "unreadable", "p_refusal_phrases": ""}
    write_csv(path, [*columns, "sample"], doubled)
    write_logs(run)
    log = logs_of(run / "inspect")[path.parent.name, 1]
    assert log.eval.config.epochs == 2
    assert {(sample.id, sample.epoch) for sample in log.samples or []} == {
        (row["id"], epoch) for row in rows for epoch in (1, 2)
    }
    unread = next(s for s in log.samples or [] if (s.id, s.epoch) == (rows[0]["id"], 1))
    assert (unread.scores or {})["phrases"].reason == "grader_failed"
    assert log.results is not None and log.results.scores[0].unscored_samples == 1


def test_a_prompt_id_that_both_subsets_use_is_told_apart(run: Path) -> None:
    (path, *_) = sorted((run / "outputs").rglob("0.csv"))
    columns, rows = read_csv(path, required=("id",))
    for row in rows:
        row["id"] = row["id"].replace("b", "h")
    write_csv(path, columns, rows)
    write_logs(run)
    log = logs_of(run / "inspect")[path.parent.name, 0]
    ids = [str(sample.id) for sample in log.samples or []]
    assert len(ids) == len(set(ids)) == len(rows)
    assert {"harmful:h0", "benign:h0"} <= set(ids)


def test_what_cannot_be_exported_is_said(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no metrics\.csv"):
        write_logs(tmp_path)
    (path, *_) = sorted((run / "outputs").rglob("2.csv"))
    path.unlink()
    with pytest.raises(DataError, match=r"no answers of .* at dose 2"):
        write_logs(run)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ExtraError, match=r"tamperdose\[inspect\]"):
        write_logs(run)


def test_undefined_numbers_are_left_out(run: Path) -> None:
    write_logs(run, force=True)
    for log in logs_of(run / "inspect").values():
        assert log.results is not None
        values: list[Any] = [metric.value for score in log.results.scores for metric in score.metrics.values()]
        assert values and all(math.isfinite(value) for value in values)


@pytest.mark.parametrize("evil", ["../../elsewhere/", "/elsewhere/", "outputs/../"])
def test_no_log_is_written_outside_its_folder(run: Path, tmp_path: Path, evil: str) -> None:
    arm = sorted(path.name for path in (run / "outputs").iterdir())[0]
    named = f"{tmp_path}{evil}{arm}" if evil.startswith("/") else f"{evil}{arm}"
    metrics = run / "metrics.csv"
    metrics.write_text(metrics.read_text(encoding="utf-8").replace(arm, named), encoding="utf-8")
    with pytest.raises(DataError, match="has no answers of"):
        write_logs(run, tmp_path / "deep" / "logs")
    assert not list(tmp_path.rglob(f"{arm}_*.eval"))


def test_a_link_in_the_place_of_the_logs_costs_nobody_a_file(run: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "a.eval").write_text("dear")
    (run / "inspect").symlink_to(tmp_path / "theirs")
    with pytest.raises(RunError, match="is a link"):
        write_logs(run)
    assert (tmp_path / "theirs" / "a.eval").read_text() == "dear"


@pytest.mark.parametrize("told", [["x"], {"decoding": "x"}, {"decoding": {"top_p": {}, "max_new_tokens": 1e308}}])
def test_a_manifest_of_another_shape_is_said(run: Path, told: Any) -> None:
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    arm = sorted(manifest["answers"])[0]
    manifest["answers"][arm]["0"] = told
    write_json(run / "manifest.json", manifest)
    with pytest.raises(DataError, match="is damaged"):
        write_logs(run)
