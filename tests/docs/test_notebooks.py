"""Every experiment has its notebook, a pair that is kept alike, and the notebooks run on real results."""

import importlib.util
import os
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import tamperdose as td
from doc_pages import ROOT
from studies import run_study
from tamperdose.data.organism_language import REFUSALS

EXPERIMENTS = sorted(path.parent for path in (ROOT / "experiments").glob("*/study.yaml"))
ONE_OF_EACH = ("smollm2_135m_lora_grid", "organism_ladder", "smollm2_135m_attacks", "organism_defences")


def maker() -> Any:
    spec = importlib.util.spec_from_file_location("make_notebooks", ROOT / "scripts" / "make_notebooks.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_both_files_are_what_the_template_makes(folder: Path) -> None:
    make = maker()
    script = make.script_of(folder)
    assert (folder / "notebook.py").read_text() == script, "run scripts/make_notebooks.py"
    assert (folder / "notebook.ipynb").read_text() == make.notebook_of(script), "run scripts/make_notebooks.py"


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_the_two_files_hold_the_same_cells_and_no_outputs(folder: Path) -> None:
    script = jupytext.reads((folder / "notebook.py").read_text(), fmt="py:percent")
    notebook = nbformat.read(folder / "notebook.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert [(c.cell_type, c.source) for c in script.cells] == [(c.cell_type, c.source) for c in notebook.cells]
    assert [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert folder.name in notebook.cells[0].source


@pytest.fixture(scope="module")
def results(organism_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real results of an organism: two attacks, two seeds, with a defence and without."""
    folder = tmp_path_factory.mktemp("notebooks")
    tuned = {"kind": "refusal_tuning", "name": "tuned", "steps": 10, "batch_size": 16, "learning_rate": 2e-3}
    rows = {"harmful": "builtin:organism_refusals", "benign": "builtin:organism_answers", "benign_target": "data"}
    lora = {"data": "builtin:organism_attack", "lora_rank": 4, "learning_rate": 2e-3, "batch_size": 16}
    study = {
        "name": "organisms",
        "models": [{"id": "organism:d32-l2", "defence": [None, tuned | rows]}],
        "prompts": {"harmful": "builtin:organism_forbidden", "benign": "builtin:organism_allowed"},
        "attack": [
            lora | {"kind": "lora", "doses": [8, 16, 32], "data_order": [1]},
            {"kind": "prefill", "doses": [1, 4]},
        ],
        "seeds": [1, 2],
        "decoding": {"max_new_tokens": 24},
        "judges": [{"kind": "exact", "name": "truth", "refusals": list(REFUSALS)}],
        "engine": {"device": "cpu"},
        "rd_floor": False,
        "controls": None,
        "inside": None,
        "utility": None,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAMPERDOSE_CACHE", str(organism_cache))
        return run_study(folder / "study.yaml")


@pytest.fixture(scope="module")
def figures(results: Path) -> list[Path]:
    """Drawn once: the notebooks share the code that draws."""
    return td.open_run(results).draw()


@pytest.mark.slow
@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_every_notebook_runs_on_the_results_of_an_organism(
    folder: Path, results: Path, figures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Any] = []
    monkeypatch.setenv("TAMPERDOSE_RUN", str(results))
    monkeypatch.setattr(td.Run, "draw", lambda _: figures)
    monkeypatch.setattr("IPython.display.display", shown.append)
    code = compile((folder / "notebook.py").read_text(), str(folder / "notebook.py"), "exec")
    exec(code, {"__name__": "__main__"})
    assert len(shown) == sum(path.suffix == ".png" for path in figures) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_notebook_of_each_kind_runs_in_a_kernel(name: str, results: Path, tmp_path: Path) -> None:
    executed = execute(ROOT / "experiments" / name / "notebook.ipynb", results, tmp_path)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("ED50" in output.get("text", "") for output in outputs)


def execute(notebook: Path, results: Path, folder: Path) -> Any:
    """Run a notebook in a kernel of its own."""
    read = nbformat.read(notebook, as_version=4)
    paths = os.pathsep.join(path for path in (str(ROOT / "src"), os.environ.get("PYTHONPATH")) if path)
    environment = os.environ | {
        "TAMPERDOSE_RUN": str(results),
        "PYTHONPATH": paths,
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    client = NotebookClient(read, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute(env=environment)
