import importlib.util
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"

Main = Callable[[Sequence[str]], int]


def main_of(name: str) -> Main:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_make_figs_runs_as_a_command_on_the_experiments(synthetic: Any, here: Path) -> None:
    synthetic.run(synthetic.rows(synthetic.arm("m"), (0, 1)), here / "experiments/one/results")
    synthetic.run(synthetic.rows(synthetic.arm("k", study="two"), (0, 1)), here / "experiments/two/results")
    command = [sys.executable, "-W", "error", str(SCRIPTS / "make_figs.py")]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for path in ("metrics/demo.csv", "metrics/two.csv", "metrics/combined_results_standardized.csv"):
        assert (here / "results" / path).is_file()
    assert (here / "results/figures/RRR_compare.png").is_file()
    assert (here / "experiments/two/results/figures/dose_response.png").is_file()


def test_make_figs_takes_folders_and_can_leave_them_untouched(synthetic: Any, here: Path) -> None:
    folder = synthetic.run(synthetic.rows(synthetic.arm("m"), (0, 1)), here / "r")
    assert main_of("make_figs")([str(folder), str(folder), "--out", "o", "--combined-only"]) == 0
    assert not (folder / "figures").exists() and (here / "o/figures/CE_compare.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "no finished run"), (["absent"], "no such file: absent")],
)
def test_make_figs_error_exits(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main_of("make_figs")(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (here / "results").exists()


@pytest.mark.parametrize("name", ["make_figs", "make_figs_from_combined"])
def test_wrong_usage_exits_with_2(name: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main_of(name)(["--nonsense"])
    assert caught.value.code == 2


def test_make_figs_from_combined_draws_the_default_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = here / "results/metrics/combined_results_standardized.csv"
    table.parent.mkdir(parents=True)
    table.write_text("Model,Steps,RRR,CE,RD\nQwen2-7B,0,0.13,0.87,0\nQwen2-7B,500,0,1,0.5794\n")
    assert main_of("make_figs_from_combined")([]) == 0
    names = ["RRR_compare.png", "CE_compare.png", "RD_compare.png"]
    assert [Path(line).name for line in capsys.readouterr().out.split()] == names
    assert all((here / "results/figures" / name).is_file() for name in names)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("Model,Steps,RRR,CE,RD_median\nm,0,1,0,0\n", "no column 'RD'"),
        ("Model,Steps,RRR,CE,RD,X\nm,0,1,0,0,0\n", "unknown column(s) 'X'"),
        ("Steps,Model,RRR,CE,RD\n0,m,1,0,0\n", "another order"),
        ("Model,Steps,RRR,CE,RD\nm,0,0.9,0.32,0\n", "CE is not 1 - RRR"),
        ("", "is empty"),
    ],
)
def test_make_figs_from_combined_never_guesses(
    here: Path, capsys: pytest.CaptureFixture[str], table: str, message: str
) -> None:
    (here / "c.csv").write_text(table)
    assert main_of("make_figs_from_combined")(["c.csv", "--out", "figs"]) == 1
    assert message in capsys.readouterr().err
    assert not (here / "figs").exists()
