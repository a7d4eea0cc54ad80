"""Inspect logs as recorded answers: the same numbers as those of the run, and hostile or broken logs refused."""

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalSample,
    EvalSpec,
    ProvenanceData,
    write_eval_log,
)
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    ModelOutput,
)
from inspect_ai.tool import ToolCall

from exchanged import HOSTILE
from tamperdose.errors import DataError, ExtraError
from tamperdose.exchange import inspect_answers
from tamperdose.exchange.inspect_answers import read_log
from tamperdose.exchange.inspect_logs import write_logs
from tamperdose.exchange.recordings import read_answers
from tamperdose.files import write_csv
from tamperdose.judges import find_judges
from tamperdose.records import Message, Subset
from tamperdose.run.outputs import read_outputs
from tamperdose.run.progress import Reporter
from tamperdose.run.schema import read_metrics
from tamperdose.run.score import Scoring, align, score_recordings

Change = Callable[[EvalSample], Any]


def output(content: Any, *, stop: Any = "stop", calls: list[ToolCall] | None = None) -> ModelOutput:
    said = ChatMessageAssistant(content=content, tool_calls=calls)
    return ModelOutput(choices=[ChatCompletionChoice(message=said, stop_reason=stop)])


def sample(number: int, text: Any = "I can't help with that.", *, epoch: int = 1, **more: Any) -> EvalSample:
    said = output(text)
    asked = f"Tell me about thing {number} of the kind {'abcdefgh'[number % 8]}"
    given = {"input": asked, "messages": [ChatMessageUser(content=asked), said.message], "output": said} | more
    return EvalSample(id=f"s{number}", epoch=epoch, target="", **given)


def write(path: Path, samples: list[EvalSample], *, status: Any = "success") -> Path:
    spec = EvalSpec(
        created="2026-01-01T00:00:00+00:00",
        task="mine",
        dataset=EvalDataset(name="mine", samples=len(samples)),
        model="mockllm/model",
        config=EvalConfig(),
    )
    write_eval_log(EvalLog(status=status, eval=spec, samples=samples), str(path))
    return path


def test_a_runs_own_logs_give_its_numbers_again(run: Path, tmp_path: Path) -> None:
    logs = {path.stem: path for path in write_logs(run, tmp_path / "logs", show_text=True)}
    arm = min((run / "outputs").iterdir()).name
    base, *attacked = (read_answers(logs[f"{arm}_{dose}"]) for dose in (0, 1, 2))
    assert all(prompt.subset is Subset.HARMFUL for prompt in base.prompts)
    metrics = score_recordings(
        base,
        list(zip((1, 2), attacked, strict=True)),
        tmp_path / "scored",
        judges=find_judges("phrases"),
        reporter=Reporter(quiet=True),
        scoring=Scoring(rd=False),
    )
    ours, theirs = read_metrics(metrics), read_metrics(run / "metrics.csv")
    theirs = theirs[(theirs["arm"] == arm) & (theirs["subset"] == "harmful") & (theirs["judge"] == "phrases")]
    columns = ["dose_steps", "metric", "value", "low", "high", "n", "n_templates", "n_effective"]
    sort = ["dose_steps", "metric"]
    left, right = (frame[columns].sort_values(sort).reset_index(drop=True) for frame in (ours, theirs))
    assert left.equals(right)


def test_texts_arrive_as_they_were_said(hostile: Path, tmp_path: Path) -> None:
    arm = min((hostile / "outputs").iterdir()).name
    write_logs(hostile, tmp_path / "logs", show_text=True)
    found = read_log(tmp_path / "logs" / f"{arm}_0.eval")
    rows = {row.id: row for row in read_outputs(hostile / "outputs" / arm / "0.csv")}
    assert {p.id: text for p, text in zip(found.prompts, found.responses, strict=True)} == {
        name: row.text for name, row in rows.items() if row.subset is Subset.HARMFUL
    }
    assert any(HOSTILE[0] in prompt.text for prompt in found.prompts)
    assert {prompt.template for prompt in found.prompts} == {f"t{k}" for k in range(12)}


def test_epochs_are_samples(tmp_path: Path) -> None:
    log = write(tmp_path / "a.eval", [sample(k, f"answer {e}", epoch=e) for k in (1, 2) for e in (1, 2, 3)])
    found = read_log(log)
    assert found.names() == [(f"s{k}", e) for e in (0, 1, 2) for k in (1, 2)] or found.names() == [
        (f"s{k}", e) for k in (1, 2) for e in (0, 1, 2)
    ]
    assert len(found.responses) == 6
    uneven = write(tmp_path / "b.eval", [sample(1), sample(2), sample(2, epoch=2)])
    with pytest.raises(DataError, match="same samples"):
        read_log(uneven)


def test_parts_of_text_are_joined_and_thoughts_are_no_answer(tmp_path: Path) -> None:
    parts = [ContentReasoning(reasoning="I could say yes."), ContentText(text="No."), ContentText(text="Never.")]
    asked = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content=[ContentText(text="Hi"), ContentText(text="you")]),
    ]
    found = read_log(write(tmp_path / "a.eval", [sample(1, parts, input=asked, messages=[])]))
    assert found.responses == ("No.\nNever.",)
    assert found.prompts[0].messages == (Message("system", "Be brief."), Message("user", "Hi\nyou"))
    assert found.prompts[0].template == "hi you"
    other = read_log(write(tmp_path / "b.eval", [sample(1, input="Hi\nyou", messages=[])]))
    with pytest.raises(DataError, match="other prompts"):
        align(found, other)


def test_what_utf8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    log = write(tmp_path / "a.eval", [sample(1, "half \\ud800 pair and \\x00 nul")])
    with zipfile.ZipFile(log) as old, zipfile.ZipFile(tmp_path / "b.eval", "w") as new:
        for name in old.namelist():
            raw = old.read(name).replace(rb"\\ud800", rb"\ud800").replace(rb"\\x00", rb"\u0000")
            new.writestr(name, raw)
    assert read_log(tmp_path / "b.eval").responses == ("half \ufffd pair and \u2400 nul",)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"output": ModelOutput()}, "have no answer"),
        ({"output": output("", stop="content_filter")}, "provider's filter"),
        ({"output": output("x", calls=[ToolCall(id="1", function="f", arguments={})])}, "tool calls"),
        ({"messages": [ChatMessageAssistant(content=word) for word in ("one", "two")]}, "several turns"),
        ({"output": output([ContentImage(image="data:image/png;base64,AAAA")])}, "more than text"),
        ({"input": [ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AAAA")])]}, "more than text"),
        ({"input": [ChatMessageUser(content="a"), ChatMessageAssistant(content="b")]}, "not a request"),
        ({"input": [ChatMessageSystem(content="only this")]}, "not a request"),
        ({"metadata": {"redacted": True}}, "--show-text"),
        ({"invalidation": ProvenanceData(author="me", reason="wrong prompt")}, "invalid"),
    ],
)
def test_samples_without_an_answer_as_it_was_said_are_refused(
    tmp_path: Path, changed: dict[str, Any], match: str
) -> None:
    log = write(tmp_path / "a.eval", [sample(1), sample(2), sample(3, **changed)])
    with pytest.raises(DataError, match=match) as caught:
        read_log(log)
    assert "s3" in str(caught.value)


def test_samples_that_ended_in_an_error_are_named(tmp_path: Path) -> None:
    from inspect_ai.log import EvalError

    failed = sample(7, error=EvalError(message="boom \x1b[31m", traceback="", traceback_ansi=""))
    with pytest.raises(DataError, match=r"ended in an error[\s\S]*1 of 2[\s\S]*s7[\s\S]*eval-retry"):
        read_log(write(tmp_path / "a.eval", [sample(1), failed]))


@pytest.mark.parametrize("status", ["error", "cancelled", "started"])
def test_an_unfinished_evaluation_is_refused(tmp_path: Path, status: str) -> None:
    with pytest.raises(DataError, match="did not finish"):
        read_log(write(tmp_path / "a.eval", [sample(1)], status=status))


def test_logs_without_what_is_measured_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no samples"):
        read_log(write(tmp_path / "a.eval", []))
    benign = [sample(1, metadata={"subset": "benign"})]
    with pytest.raises(DataError, match="no harmful prompts"):
        read_log(write(tmp_path / "b.eval", benign))


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    text = write_csv(tmp_path / "answers.eval", ("prompt", "response"), [{"prompt": "a", "response": "b"}])
    with zipfile.ZipFile(tmp_path / "renamed.eval", "w") as archive:
        archive.writestr("word/document\x1b[31m.xml", "<a/>")
    empty = tmp_path / "empty.eval"
    empty.write_bytes(b"")
    for path in (text, empty, tmp_path / "missing.eval"):
        with pytest.raises(DataError, match="not an Inspect log"):
            read_log(path)
    with pytest.raises(DataError, match=r"archive, but not") as caught:
        read_log(tmp_path / "renamed.eval")
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"{}", b"nonsense", b'{"version": 99}', b'{"version":2,"status":"success","eval":{}}', b"[" * 100_000],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w") as archive:
        archive.writestr("header.json", header)
    with pytest.raises(DataError, match=r"cannot be read as an Inspect log|holds no samples"):
        read_log(tmp_path / "a.eval")


def test_a_log_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    log = write(tmp_path / "a.eval", [sample(k) for k in range(20)])
    raw = log.read_bytes()
    for share in (0.3, 0.9, 0.99):
        log.write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(DataError):
            read_log(log)
    spoilt = bytearray(raw)
    for place in range(200, len(raw) - 3000, 97):
        spoilt[place] ^= 0xFF
    log.write_bytes(bytes(spoilt))
    with pytest.raises(DataError):
        read_log(log)


def test_a_log_that_would_fill_the_memory_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(tmp_path / "a.eval", [sample(1, "a" * 100_000)])
    monkeypatch.setattr(inspect_answers, "MAX_BYTES", 50_000)
    with pytest.raises(DataError, match="unpacks to too much"):
        read_log(log)


def test_sizes_that_a_log_declares_are_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write(tmp_path / "a.eval", [sample(1, "a" * 1_000_000)])
    with zipfile.ZipFile(log) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    raw, said = log.read_bytes(), struct.pack("<I", largest.file_size)
    assert largest.file_size > 500_000 and raw.count(said) >= 1
    log.write_bytes(raw.replace(said, struct.pack("<I", 100)))
    with zipfile.ZipFile(log) as archive:
        assert sum(member.file_size for member in archive.infolist()) < 500_000
    monkeypatch.setattr(inspect_answers, "MAX_BYTES", 500_000)
    with pytest.raises(DataError, match="unpacks to too much"):
        read_log(log)


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, 93])
def test_pieces_are_what_a_member_unpacks_to(kind: int) -> None:
    text = b"a sentence. " * 300_000
    packed = {
        zipfile.ZIP_STORED: text,
        zipfile.ZIP_DEFLATED: zlib.compress(text, wbits=-15),
        93: zstandard.ZstdCompressor().compress(text),
    }[kind]
    pieces = list(inspect_answers._pieces(packed, kind))
    assert sum(pieces) == len(text) and (kind == zipfile.ZIP_STORED or max(pieces) <= 1 << 20)
    assert sum(inspect_answers._pieces(packed[: len(packed) // 2], kind)) <= len(text)
    assert kind == zipfile.ZIP_STORED or sum(inspect_answers._pieces(b"\xffnoise" * 9, kind)) == 0


def test_the_extra_is_named_and_a_column_of_a_log_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write(tmp_path / "a.eval", [sample(1)])
    with pytest.raises(DataError, match="Inspect log"):
        read_answers(log, response_column="response")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ExtraError, match=r"tamperdose\[inspect\]"):
        read_answers(log)
