import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tamperdose.errors import RunError
from tamperdose.run.ledger import Ledger, locked, stage_key


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger")


def _put(ledger: Ledger, key: str = "k", text: str = "payload") -> Path:
    return ledger.put("stage", key, lambda path: path.write_text(text) and None, suffix=".txt", inputs={"a": 1})


def test_what_was_put_is_found(ledger: Ledger) -> None:
    assert ledger.find("stage", "k") is None
    path = _put(ledger)
    assert ledger.find("stage", "k") == path
    assert path.read_text() == "payload"
    assert ledger.find("stage", "other") is None
    assert ledger.find("other", "k") is None
    record = ledger.record("stage", "k")
    assert record is not None
    assert record["inputs"] == {"a": 1}


@pytest.mark.parametrize("damage", ["payload", "more", "fewer", "", None])
def test_a_payload_that_is_not_the_recorded_one_is_not_found(ledger: Ledger, damage: str | None) -> None:
    path = _put(ledger)
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage)
    assert (ledger.find("stage", "k") is None) == (damage != "payload")
    assert ledger.record("stage", "k") is not None
    assert ledger.find("stage", "k") is not None or _put(ledger) == ledger.find("stage", "k")


@pytest.mark.parametrize("record", ["", "{", "[]", "null", '{"key": "another"}', "{}"])
def test_a_payload_without_a_sound_record_is_not_found(ledger: Ledger, record: str) -> None:
    path = _put(ledger)
    path.with_name("k.json").write_text(record)
    assert ledger.find("stage", "k") is None


@pytest.mark.parametrize("missing", ["payload", "sha256"])
def test_a_record_without_its_fields_is_not_found(ledger: Ledger, missing: str) -> None:
    record_path = _put(ledger).with_name("k.json")
    record = json.loads(record_path.read_text())
    del record[missing]
    record_path.write_text(json.dumps(record))
    assert ledger.find("stage", "k") is None


def test_a_record_cannot_lead_out_of_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("payload")
    record_path = _put(ledger).with_name("k.json")
    record = json.loads(record_path.read_text()) | {"payload": "../../outside.txt"}
    record_path.write_text(json.dumps(record))
    assert ledger.find("stage", "k") is None


def test_the_record_is_written_last(ledger: Ledger) -> None:
    seen: list[bool] = []

    def write(path: Path) -> None:
        path.write_text("x")
        seen.append(ledger.record("stage", "k") is None)

    ledger.put("stage", "k", write, suffix=".txt", inputs={})
    assert seen == [True]


def test_a_writer_that_fails_leaves_nothing(ledger: Ledger) -> None:
    _put(ledger, "done")

    def write(path: Path) -> None:
        path.write_text("half")
        raise ValueError("broken off")

    with pytest.raises(ValueError, match="broken off"):
        ledger.put("stage", "k", write, suffix=".txt", inputs={})
    assert ledger.find("stage", "k") is None
    assert {path.name for path in (ledger.root / "stage").iterdir()} == {"done.txt", "done.json"}


def test_keys_differ_by_stage_and_inputs() -> None:
    keys = [stage_key("a", {"x": 1}), stage_key("b", {"x": 1}), stage_key("a", {"x": 2}), stage_key("a", {"y": 1})]
    assert len(set(keys)) == 4
    assert stage_key("a", {"x": 1, "y": 2}) == stage_key("a", {"y": 2, "x": 1})


def test_work_in_progress_is_discarded(ledger: Ledger) -> None:
    folder = ledger.scratch("attack", "k")
    folder.mkdir(parents=True)
    (folder / "weights").write_text("x")
    ledger.discard("attack", "other")
    assert folder.exists()
    ledger.discard("attack", "k")
    assert not folder.exists()
    ledger.discard("attack", "k")


HOLD = """
import sys, time
from pathlib import Path
from tamperdose.run.ledger import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_is_gone(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is in use(?s:.)*-o DIR"), locked(tmp_path):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot write to .*file/run(?s:.)*-o DIR"), locked(tmp_path / "file" / "run"):
        pass


def test_processes_can_be_started_while_the_lock_is_held(tmp_path: Path) -> None:
    """The lock is the driver's: a worker it starts must not keep it once the driver is done."""
    with locked(tmp_path):
        worker = multiprocessing.get_context("spawn").Process(target=print)
        worker.start()
    worker.join()
    with locked(tmp_path):
        pass
