"""What workers declare, and which errors are of the machine."""

from dataclasses import replace
from pathlib import Path

import pytest

from studies import plan_of, tiny_changes, write_study
from tamperdose.errors import DataError, RunError, StudyError
from tamperdose.run.declare import Declared, declare
from tamperdose.run.estimate import estimate_costs
from tamperdose.run.ledger import Ledger
from tamperdose.run.plan import Plan
from tamperdose.run.worker import is_of_the_machine
from tamperdose.study import load_study


@pytest.fixture
def tiny(tmp_path: Path, tiny_folders: dict[str, Path]) -> Path:
    return write_study(tmp_path, **tiny_changes(tiny_folders["llama"]))


def _on_gpu(plan: Plan, device: str = "cuda") -> Plan:
    return replace(plan, models=tuple(replace(model, device=device, dtype="bfloat16") for model in plan.models))


def test_a_scripted_worker_takes_one_core(tmp_path: Path) -> None:
    assert declare(plan_of(write_study(tmp_path))) == Declared(1, 0.0, 0)


def test_a_worker_on_a_cpu_takes_the_memory_of_the_estimate(tiny: Path, tmp_path: Path) -> None:
    plan, ledger = plan_of(tiny), Ledger(tmp_path)
    estimate = estimate_costs(plan, ledger)[0].memory_bytes
    assert estimate is not None
    assert declare(plan) == Declared(1, 0.0, int(estimate))
    stated = plan_of(tiny, "resources={cpus: 4, memory_gb: 2.5}")
    assert declare(stated) == Declared(4, 0.0, 2_500_000_000)


def test_a_worker_on_a_gpu_takes_one_or_the_share_that_the_estimate_is(tiny: Path, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert declare(_on_gpu(plan_of(tiny))) == Declared(1, 1.0, 0)
    assert declare(_on_gpu(plan_of(tiny, "resources={gpus: 0.25}"))).gpus == 0.25
    estimate = estimate_costs(_on_gpu(plan_of(tiny)), ledger)[0].memory_bytes
    assert estimate is not None
    card = 3.3 * estimate / 1e9
    assert declare(_on_gpu(plan_of(tiny, f"resources={{gpu_memory_gb: {card}}}"))).gpus == 0.31
    assert declare(_on_gpu(plan_of(tiny, f"resources={{gpu_memory_gb: {card / 9}}}"))).gpus == 1.0


def test_a_card_by_its_number_is_refused(tiny: Path) -> None:
    with pytest.raises(StudyError, match="names one card"):
        declare(_on_gpu(plan_of(tiny), "cuda:3"))


def test_room_on_a_machine() -> None:
    declared = Declared(cpus=2, gpus=0.3, memory_bytes=10)
    assert declared.slots({"CPU": 8, "GPU": 1, "memory": 100}) == 3
    assert declared.slots({"CPU": 8, "memory": 100}) == 0
    assert declared.slots({"CPU": 1, "GPU": 1, "memory": 100}) == 0
    assert Declared(1, 0.1, 0).slots({"CPU": 99, "GPU": 1}) == 10
    assert str(declared) == "2 CPU cores, 0.3 GPU, 0.0 GB of memory"


def test_resources_are_no_part_of_what_is_measured(tmp_path: Path) -> None:
    path = write_study(tmp_path)
    plain, stated = load_study(path), load_study(path, ["resources.cpus=8"])
    assert stated.resources.cpus == 8
    assert plain.digest == stated.digest
    assert "resources" not in stated.model_dump(mode="json")
    with pytest.raises(StudyError, match="did you mean 'cpus'"):
        load_study(path, ["resources.cpu=8"])


def _caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "is_so"),
    [
        (MemoryError(), True),
        (OSError("stale file handle"), True),
        (RuntimeError("CUDA error: an illegal memory access"), True),
        (type("OutOfMemoryError", (RuntimeError,), {})(), True),
        (_caused_by(RunError("cannot write"), OSError("no space")), True),
        (_caused_by(DataError("no such file"), FileNotFoundError()), False),
        (RunError("too many unreadable"), False),
        (DataError("bad row"), False),
        (RuntimeError("shapes differ"), False),
        (KeyError("bug"), False),
    ],
)
def test_errors_of_the_machine_are_told_from_those_of_the_study(error: Exception, is_so: bool) -> None:
    assert is_of_the_machine(error) is is_so
