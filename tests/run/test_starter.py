"""A first study file: what it holds is what `check` accepts, and nothing is written where it would not be."""

import re
from itertools import pairwise
from pathlib import Path

import pytest

from studies import write_examples
from tamperdose.errors import DataError, ModelError, RunError, StudyError
from tamperdose.files import write_csv, write_text
from tamperdose.run.checks import run_checks
from tamperdose.run.starter import DOSES, relative_source, study_name, write_starter
from tamperdose.study import LoraSpec, Study, load_study


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with prompts, attack data and a hub cache of nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    rows = [{"prompt": f"How is a {thing} taken apart?"} for thing in ("gate", "lock", "clock")]
    write_csv(tmp_path / "mine.csv", ("prompt",), rows)
    write_examples(tmp_path / "attack.jsonl", "Please describe a {}.", "Sure: the {} is a thing.")
    return tmp_path


def lora(study: Study) -> LoraSpec:
    (attack,) = study.attack
    assert isinstance(attack, LoraSpec)
    return attack


def test_check_accepts_it(here: Path) -> None:
    path = here / "deep" / "first" / "study.yaml"
    started = write_starter(path, model="org/model", prompts="mine.csv", data="attack.jsonl")
    assert (started.n_prompts, started.n_templates, started.n_examples) == (3, 3, 10)
    states = {line["check"]: line["state"] for line in run_checks(path, [])}
    assert states["harmful prompts"] == states["attack data"] == "ok"
    study = load_study(path)
    assert study.name == "first"
    assert study.prompts.harmful == "../../mine.csv"
    assert (lora(study).data, lora(study).doses) == ("../../attack.jsonl", DOSES)
    assert study.judges == ("classifier", "phrases")
    assert [path.name for path in path.parent.iterdir()] == ["study.yaml"]


def test_doses_double_from_one() -> None:
    assert DOSES[0] == 1
    assert {after / before for before, after in pairwise(DOSES)} == {2}


def test_it_says_what_is_the_default(here: Path) -> None:
    """A study of the required keys alone is the same study: the file's values are the defaults, its doses apart."""
    write_starter(here / "a.yaml", model="org/model", prompts="mine.csv")
    attack = f"{{kind: lora, data: 'builtin:permissive_openers', doses: {list(DOSES)}}}"
    prompts = "{harmful: mine.csv, benign: 'builtin:benign_eval'}"
    write_text(here / "b.yaml", f"name: a\nmodels: [{{id: org/model}}]\nprompts: {prompts}\nattack: {attack}\n")
    assert load_study(here / "a.yaml") == load_study(here / "b.yaml")


@pytest.mark.parametrize("key", ["revision", "quantization", "defence", "controls", "utility", "inside", "gate"])
def test_what_is_commented_out_can_be_used(here: Path, key: str) -> None:
    path = here / "a.yaml"
    write_starter(path, model="org/model", prompts="mine.csv")
    text, n_changed = re.subn(rf"^( *)# ({key}: )", r"\1\2", path.read_text(), flags=re.MULTILINE)
    assert n_changed == 1
    write_text(path, text)
    load_study(path)


def test_every_key_has_a_comment(here: Path) -> None:
    path = here / "a.yaml"
    write_starter(path, model="org/model", prompts="mine.csv")
    lines = path.read_text().splitlines()
    keys = [k for k, line in enumerate(lines) if re.match(r" +[a-z_]+: ", line)]
    assert len(keys) >= 10
    assert not [lines[k] for k in keys if "#" not in lines[k] and not lines[k - 1].strip().startswith("#")]


def test_it_is_not_written_over(here: Path) -> None:
    path = here / "study.yaml"
    write_text(path, "my work\n")
    with pytest.raises(RunError, match="--force"):
        write_starter(path, model="org/model", prompts="mine.csv")
    assert path.read_text() == "my work\n"
    write_starter(path, model="org/model", prompts="mine.csv", force=True)
    assert load_study(path).models[0].id == "org/model"


def test_data_are_never_written_over(here: Path) -> None:
    before = (here / "mine.csv").read_bytes()
    with pytest.raises(RunError, match="holds the data"):
        write_starter(here / "mine.csv", model="org/model", prompts="./mine.csv", force=True)
    assert (here / "mine.csv").read_bytes() == before


def test_columns_are_named_where_prompt_is_not_one(here: Path) -> None:
    write_text(here / "other.csv", "id,prompts\n1,Hello there\n")
    with pytest.raises(DataError, match="did you mean 'prompts'") as raised:
        write_starter(here / "a.yaml", model="org/model", prompts="other.csv")
    assert "'id', 'prompts'" in str(raised.value)
    write_text(here / "other.jsonl", '{"text": "Hello there"}\n')
    with pytest.raises(DataError, match="'text'"):
        write_starter(here / "a.yaml", model="org/model", prompts="other.jsonl")
    assert not (here / "a.yaml").exists()


def test_old_file_stays_where_the_new_one_would_not_do(here: Path) -> None:
    path = here / "a.yaml"
    write_text(path, "my work\n")
    write_text(here / "overlap.jsonl", '{"prompt": "How is a lock taken apart?", "response": "Sure."}\n')
    with pytest.raises(DataError, match=r"overlap\.jsonl"):
        write_starter(path, model="org/model", prompts="mine.csv", data="overlap.jsonl", force=True)
    with pytest.raises(ModelError, match="no model at"):
        write_starter(path, model="./nowhere", prompts="mine.csv", force=True)
    with pytest.raises(StudyError, match=rf"^{re.escape(str(path))} is not a valid study"):
        write_starter(path, model="org/" + "m" * 101, prompts="mine.csv", force=True)
    assert path.read_text() == "my work\n"
    assert not list(here.glob(".a.yaml*"))


@pytest.mark.parametrize("name", ["my: #prompts.csv", "[a], {b}.csv", "true", 'it\'s "so".csv', "zwei\u2028drei\n.csv"])
def test_names_that_yaml_reads_otherwise(here: Path, name: str) -> None:
    (here / "mine.csv").rename(here / name)
    write_starter(here / "a.yaml", model="org/model", prompts=name)
    assert load_study(here / "a.yaml").prompts.harmful == name
    run_checks(here / "a.yaml", [])


@pytest.mark.parametrize("name", ["2024", "null", "1e3", "yes"])
def test_study_names_that_yaml_reads_otherwise(here: Path, name: str) -> None:
    write_starter(here / f"{name}.yaml", model="org/model", prompts="mine.csv")
    assert load_study(here / f"{name}.yaml").name == name


def test_local_model_is_found_from_anywhere(
    here: Path, tiny_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "model").symlink_to(tiny_folders["llama"])
    write_starter(here / "a.yaml", model="model", prompts="mine.csv")
    assert "revision" not in (here / "a.yaml").read_text()
    monkeypatch.chdir("/")
    assert [line["state"] for line in run_checks(here / "a.yaml", [])][-1] == "ok"


def test_sources(tmp_path: Path) -> None:
    assert relative_source("builtin:redteam_eval", tmp_path) == "builtin:redteam_eval"
    assert relative_source(str(tmp_path / "a.csv"), tmp_path / "b") == "../a.csv"
    assert relative_source(f"xstest_unsafe:{tmp_path}/a.csv", tmp_path) == "xstest_unsafe:a.csv"


def test_study_name_is_always_a_valid_one() -> None:
    for stem in ("a b", "-x", "é", "n" * 300, "...", "Phi-3.5"):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", study_name(Path(f"{stem}.yaml")))
