"""Runs on a Ray cluster of several nodes on this machine: the same bytes as in one process, whatever is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from studies import files_of, plan_of, run_study, tiny_changes, write_study
from tamperdose.errors import RunError
from tamperdose.run.cluster import Cluster, run_on_cluster
from tamperdose.run.progress import Reporter

pytestmark = pytest.mark.usefixtures("stub")

DRIVER = Path(__file__).with_name("clustering.py")
WAIT_S = 600.0


class Nodes:
    """A Ray cluster whose head does no work, with nodes of one core each."""

    def __init__(self) -> None:
        from ray import cluster_utils

        head = {"num_cpus": 0, "object_store_memory": 10**8}
        self._cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        self.address = self._cluster.address

    def have(self, count: int) -> None:
        while len(self.nodes) < count:
            self.nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=10**8, wait=False))
        self._cluster.wait_for_nodes()

    def lose(self, node: Any) -> None:
        self.nodes.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def end(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Nodes()
        try:
            yield cluster
        finally:
            cluster.end()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Scripted; three seeds, whose answers differ."""
    attack = {"kind": "lora", "data": "attack.jsonl", "batch_size": 2, "lora_rank": 2, "doses": [1, 2, 4]}
    return write_study(tmp_path / "study", attack=attack, seeds=[1, 2, 3])


def _start(nodes: Nodes, study: Path, out: Path, *options: str, **asked: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, str(DRIVER), str(study), str(out), "--address", nodes.address, *options]
    environment = os.environ | {"TAMPERDOSE_TEST": json.dumps(asked), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def _end(driver: "subprocess.Popen[str]", code: int = 0) -> tuple[str, str]:
    out, err = driver.communicate(timeout=2 * WAIT_S)
    assert driver.returncode == code, err[-3000:]
    return out, err


def _until(is_so: Callable[[], bool], driver: "subprocess.Popen[str]") -> None:
    end = time.monotonic() + WAIT_S
    while not is_so():
        assert driver.poll() is None, driver.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def _entries(out: Path, stage: str) -> int:
    return len(list((out / "ledger" / stage).glob("*.json")))


def _comparable(folder: Path) -> dict[str, bytes]:
    """Everything of a run but which of two equal files of answers the record of a verdict or vector names."""
    found = files_of(folder)
    return {name: found[name] for name in found if not name.startswith(("ledger/judge", "ledger/embed", "figures"))}


def _check(out: Path, whole: Path, log: Path | None = None) -> None:
    expected, found = _comparable(whole), _comparable(out)
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if expected[name] != found[name]] == []
    assert {path.name for path in whole.rglob("*.npy")} == {path.name for path in out.rglob("*.npy")}
    assert not (out / "failures.json").exists()
    if log is not None:
        # Verdicts and vectors go by the texts alone: two workers may meet the same ones at the same time.
        entries = [entry for entry in log.read_text().splitlines() if not entry.startswith(("judge", "embed"))]
        done = Counter(entries)
        assert len(done) > 10
        assert [entry for entry, times in done.items() if times > 1] == []


def test_one_two_and_four_workers_give_the_same_bytes(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    nodes.have(4)
    whole = run_study(study, out=tmp_path / "whole")
    for count in (1, 2, 4):
        out, log = tmp_path / str(count), tmp_path / f"{count}.log"
        told, said = _end(_start(nodes, study, out, "--workers", str(count), log=str(log), seconds=0.2))
        assert json.loads(told)["metrics"] == str(out / "metrics.csv")
        assert "[8/8] read arm" in said
        assert re.search(r"\[7/8\] .*; 0:\d\d left", said)
        assert min(count, 2) <= len(set(re.findall(r"done in \S+ on ([^\s;]+)", said))) <= count
        _check(out, whole, log)


def test_a_failing_arm_is_recorded_and_the_rest_goes_on(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    nodes.have(2)
    out, arm = tmp_path / "out", "fake-lora-r2-lr0.0002-s2"
    _, said = _end(_start(nodes, study, out, fail="DataError", arm=arm), code=1)
    assert "error: 2 of 8 units failed" in said
    assert not (out / "metrics.csv").exists()
    failed, unread = json.loads((out / "failures.json").read_text())
    assert (failed["unit"], failed["kind"], failed["message"]) == (f"arm {arm}", "DataError", "as planned")
    assert failed["tries"] == 1
    assert (unread["unit"], unread["kind"], unread["tries"]) == (f"read arm {arm}", "needs", 0)
    assert _entries(out, "dose") == 6
    _end(_start(nodes, study, out))
    _check(out, run_study(study, out=tmp_path / "whole"))


@pytest.mark.slow
def test_memory_that_gave_out_is_tried_again(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    nodes.have(2)
    out, log, once = tmp_path / "out", tmp_path / "log", tmp_path / "once"
    arm = "fake-lora-r2-lr0.0002-s2"
    _, said = _end(_start(nodes, study, out, fail="MemoryError", arm=arm, once=str(once), log=str(log)))
    assert f"[again] arm {arm}: failed on" in said
    _check(out, run_study(study, out=tmp_path / "whole"), log)


def test_a_second_driver_is_refused(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    nodes.have(2)
    first = _start(nodes, study, tmp_path / "out", seconds=1.0)
    _until(lambda: (tmp_path / "out" / "manifest.json").exists(), first)
    _, said = _end(_start(nodes, study, tmp_path / "out"), code=1)
    assert "is in use" in said
    first.kill()
    first.communicate()


def test_an_address_where_nothing_listens(study: Path, tmp_path: Path) -> None:
    plan, where = plan_of(study), Cluster("127.0.0.1:9")
    with pytest.raises(RunError, match=r"no Ray cluster at '127\.0\.0\.1:9'"):
        run_on_cluster(plan, tmp_path / "out", cluster=where, reporter=Reporter(quiet=True))


@pytest.mark.slow
def test_no_machine_with_room(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    nodes.have(1)
    _, said = _end(_start(nodes, study, tmp_path / "out", "--set", "resources.cpus=64"), code=1)
    assert "no machine has room for a worker" in said
    assert "expected: 64 CPU cores on one machine" in said


@pytest.mark.slow
def test_a_killed_driver_loses_nothing(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    nodes.have(2)
    out, log = tmp_path / "out", tmp_path / "log"
    driver = _start(nodes, study, out, seconds=0.3, log=str(log))
    _until(lambda: _entries(out, "dose") >= 3, driver)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    # At once: the workers of the first may still be at it.
    _end(_start(nodes, study, out, seconds=0.3, log=str(log)))
    _check(out, run_study(study, out=tmp_path / "whole"), log)


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    """As the system kills a process when memory runs out."""
    nodes.have(2)
    out, log, pids = tmp_path / "out", tmp_path / "log", tmp_path / "pids"
    pids.mkdir()
    driver = _start(nodes, study, out, seconds=0.3, log=str(log), pids=str(pids))
    _until(lambda: _entries(out, "dose") >= 3, driver)
    os.kill(int(next(pids.iterdir()).name), signal.SIGKILL)
    _, said = _end(driver)
    assert "[again]" in said
    _check(out, run_study(study, out=tmp_path / "whole"), log)


@pytest.mark.slow
def test_a_killed_node_loses_nothing(nodes: Nodes, study: Path, tmp_path: Path) -> None:
    nodes.have(2)
    out, log = tmp_path / "out", tmp_path / "log"
    driver = _start(nodes, study, out, "--workers", "2", seconds=0.3, log=str(log))
    _until(lambda: _entries(out, "dose") >= 3, driver)
    for node in nodes.nodes[:-1]:
        nodes.lose(node)
    _, said = _end(driver)
    assert "[again]" in said
    _check(out, run_study(study, out=tmp_path / "whole"), log)


@pytest.mark.slow
def test_tiny_models_on_a_cluster(nodes: Nodes, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Two models, a defence, controls that two arms share, states inside: as in one process."""
    nodes.have(4)
    changes = tiny_changes(tiny_folders["llama"])
    defence = {"harmful": "refusals.jsonl", "benign": "answers.jsonl", "steps": 2, "batch_size": 2, "lora_rank": 2}
    changes["models"] = [
        changes["models"][0] | {"defence": [None, defence]},
        {"id": str(tiny_folders["qwen2"]), "name": "other", "dtype": "float32"},
    ]
    changes["controls"] = {"random_draws": 3, "benign": "answers.jsonl", "max_prompts": 3}
    attack = {"data": "attack.jsonl", "batch_size": 2, "lora_rank": [2, 4], "doses": [1, 3], "learning_rate": 0.05}
    study = write_study(tmp_path / "study", n_prompts=4, attack=attack, **changes)
    whole = run_study(study, out=tmp_path / "whole")
    for count in (1, 4):
        _end(_start(nodes, study, tmp_path / str(count), "--workers", str(count)))
        _check(tmp_path / str(count), whole)
