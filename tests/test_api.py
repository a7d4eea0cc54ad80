"""The commands from Python: the same numbers, and nothing loaded before it is needed."""

import subprocess
import sys
from pathlib import Path

import pytest

import tamperdose as td
from studies import run_study as run_by_hand
from studies import stub_embedder, write_study
from tamperdose.errors import DataError, StudyError
from tamperdose.run.stages import Readers


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)


def test_a_scripted_study_runs_opens_and_is_audited(tmp_path: Path) -> None:
    study = write_study(tmp_path)
    run = td.run_study(study, out=tmp_path / "out", overrides=["seeds=[7]"])
    by_hand = run_by_hand(study, "seeds=[7]", out=tmp_path / "other")
    assert (run.folder / "metrics.csv").read_bytes() == (by_hand / "metrics.csv").read_bytes()
    opened = td.open_run(run.folder)
    assert set(opened.metrics["dose_steps"]) == {0, 1, 2}
    assert {row["seed"] for row in opened.dose_response} == {7}
    assert opened.audit == run.audit == td.audit_run(run.folder)


def test_errors_are_those_of_the_commands(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="seeds"):
        td.run_study(write_study(tmp_path), overrides=["sedes=[7]"])
    with pytest.raises(DataError, match=r"no metrics\.csv"):
        td.open_run(tmp_path)


@pytest.mark.parametrize("attacked", [{1: ["b"]}, {0: ["b", "c"]}])
def test_answers_that_do_not_fit_are_refused(tmp_path: Path, attacked: dict[int, list[str]]) -> None:
    with pytest.raises(DataError, match="do not fit"):
        td.score(["p", "q"], ["a", "b"], attacked, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_import_is_light() -> None:
    code = (
        "import sys, tamperdose as td\n"
        "assert callable(td.score) and 'fit_dose' in dir(td) and not hasattr(td, 'nothing')\n"
        "print([name for name in ('torch', 'pandas', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
