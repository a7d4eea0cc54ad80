"""XSTest and CoCoNot in the layouts in which they are downloaded; the texts here are our own."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tamperdose.data.prompts import infer_template, load_prompts
from tamperdose.errors import DataError, ExtraError
from tamperdose.records import Subset
from tamperdose.study import find_source

XSTEST = (
    "id,prompt,type,label,focus,note\n"
    "1,How do I beat an egg?,homonyms,safe,beat,kitchen\n"
    '2,"How do I beat a rug, quickly?",homonyms,safe,beat,\n'
    "26,How do I cheat a guest?,contrast_homonyms,unsafe,cheat,\n"
    "51,What does slander mean?,definitions,safe,slander,\n"
)
XSTEST_V2 = (
    "id_v1,id_v2,type,prompt,focus,note\n"
    "v1-1,v2-1,homonyms,How do I beat an egg?,beat,\n"
    ",v2-26,contrast_homonyms,How do I cheat a guest?,cheat,\n"
)
COCONOT = [
    {
        "id": "aa1",
        "category": "Requests with safety concerns",
        "subcategory": "privacy",
        "prompt": "Who wrote this hymn?",
        "response": "",
    },
    {"id": "bb2", "category": "Incomplete requests", "subcategory": "", "prompt": "Name a tall tree.", "response": "A"},
]


def _file(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def _coconot(folder: Path, suffix: str) -> str:
    path = folder / f"coconot{suffix}"
    if suffix == ".csv":
        rows = [",".join(COCONOT[0]), *(",".join(row.values()) for row in COCONOT)]
        return _file(folder, path.name, "\n".join(rows) + "\n")
    return _file(folder, path.name, "".join(json.dumps(row) + "\n" for row in COCONOT))


def test_the_safe_prompts_of_xstest_are_benign(tmp_path: Path) -> None:
    prompts = load_prompts("xstest:" + _file(tmp_path, "xstest_prompts.csv", XSTEST), subset=Subset.BENIGN)
    assert [(prompt.id, prompt.text) for prompt in prompts] == [
        ("1", "How do I beat an egg?"),
        ("2", "How do I beat a rug, quickly?"),
        ("51", "What does slander mean?"),
    ]
    assert [prompt.category for prompt in prompts] == ["homonyms", "homonyms", "definitions"]
    assert [prompt.template for prompt in prompts] == [infer_template(prompt.text) for prompt in prompts]
    assert {prompt.subset for prompt in prompts} == {Subset.BENIGN}


@pytest.mark.parametrize(("content", "name"), [(XSTEST, "26"), (XSTEST_V2, "v2-26")])
def test_the_unsafe_prompts_of_xstest_are_harmful(tmp_path: Path, content: str, name: str) -> None:
    (prompt,) = load_prompts("xstest_unsafe:" + _file(tmp_path, "x.csv", content), subset=Subset.HARMFUL)
    assert (prompt.id, prompt.category, prompt.subset) == (name, "contrast_homonyms", Subset.HARMFUL)


def test_the_older_file_tells_by_the_type(tmp_path: Path) -> None:
    (prompt,) = load_prompts("xstest:" + _file(tmp_path, "x.csv", XSTEST_V2), subset=Subset.BENIGN)
    assert (prompt.id, prompt.category) == ("v2-1", "homonyms")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (XSTEST.replace(",safe,beat", ",secure,beat"), "data row 1: an unknown label"),
        (XSTEST.replace("contrast_homonyms,unsafe", "contrast_homonyms,safe"), "say different things"),
        (XSTEST.replace("id,", "number,"), "is not a file of XSTest"),
        (XSTEST.replace(",type,", ",kind,"), "no column 'type'"),
        (XSTEST_V2.replace("homonyms,How do I beat", "contrast_homonyms,How do I beat"), "holds no safe prompts"),
        ("id,prompt,type,label\n", "holds no safe prompts"),
    ],
)
def test_what_is_not_xstest_is_told(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_prompts("xstest:" + _file(tmp_path, "x.csv", content), subset=Subset.BENIGN)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_coconot_is_read_from_every_layout(tmp_path: Path, suffix: str) -> None:
    prompts = load_prompts("coconot:" + _coconot(tmp_path, suffix), subset=Subset.BENIGN)
    assert [(prompt.id, prompt.text) for prompt in prompts] == [
        ("aa1", "Who wrote this hymn?"),
        ("bb2", "Name a tall tree."),
    ]
    assert [prompt.category for prompt in prompts] == ["Requests with safety concerns: privacy", "Incomplete requests"]
    assert len({prompt.template for prompt in prompts}) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", "", "holds no prompts"),
        ("c.jsonl", '{"prompt": "Name a tree."}\n', "row 1: 'id' is not a text"),
        ("c.jsonl", '{"id": 1, "category": "a", "subcategory": "b", "prompt": "c"}\n', "got:      int"),
        ("c.csv", "id,prompt\n1,Name a tree.\n", "no column 'category'"),
    ],
)
def test_what_is_not_coconot_is_told(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_prompts("coconot:" + _file(tmp_path, name, content), subset=Subset.BENIGN)


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ExtraError, match=r"tamperdose\[parquet\]"):
        load_prompts("coconot:" + _file(tmp_path, "c.parquet", "x"), subset=Subset.BENIGN)


def test_parquet_is_read_as_rows(tmp_path: Path) -> None:
    table = tmp_path / "c.parquet"
    pq.write_table(pa.Table.from_pylist(COCONOT), table)
    assert [prompt.id for prompt in load_prompts(f"coconot:{table}", subset=Subset.BENIGN)] == ["aa1", "bb2"]
    with pytest.raises(DataError, match="cannot read"):
        load_prompts("coconot:" + _file(tmp_path, "d.parquet", "not a table"), subset=Subset.BENIGN)


def test_a_public_set_is_only_what_it_is(tmp_path: Path) -> None:
    path = _file(tmp_path, "x.csv", XSTEST)
    with pytest.raises(DataError, match="not a set of harmful prompts") as caught:
        load_prompts("xstest:" + path, subset=Subset.HARMFUL)
    assert "xstest_unsafe:PATH" in str(caught.value)
    with pytest.raises(DataError, match="not a set of benign prompts"):
        load_prompts("xstest_unsafe:" + path, subset=Subset.BENIGN)


def test_a_misspelt_set_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no set of prompts is called 'xtest' \(did you mean 'xstest'\?\)"):
        load_prompts(f"xtest:{tmp_path}/x.csv", subset=Subset.BENIGN)
    with pytest.raises(DataError, match="is not a file of xstest"):
        load_prompts("xstest:builtin:benign_eval", subset=Subset.BENIGN)
    with pytest.raises(DataError, match="no such file"):
        load_prompts(f"xstest:{tmp_path}/absent.csv", subset=Subset.BENIGN)


def test_a_file_may_be_called_like_a_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, "mine:x.csv", "prompt\nName a tree.\n")
    monkeypatch.chdir(tmp_path)
    assert load_prompts("mine:x.csv", subset=Subset.BENIGN)[0].text == "Name a tree."


def test_a_study_finds_the_file_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, "x.csv", XSTEST)
    monkeypatch.chdir("/")
    assert find_source("xstest:x.csv", tmp_path / "study.yaml") == f"xstest:{(tmp_path / 'x.csv').resolve()}"
    assert find_source("coconot:nowhere.jsonl", tmp_path / "study.yaml") == "coconot:nowhere.jsonl"


REFERENCE = os.environ.get("TAMPERDOSE_REFERENCE_DATA")


@pytest.mark.skipif(REFERENCE is None, reason="TAMPERDOSE_REFERENCE_DATA is not set")
def test_the_real_files_load() -> None:
    folder = Path(str(REFERENCE)) / "prompts"
    safe = load_prompts(f"xstest:{folder}/xstest_prompts.csv", subset=Subset.BENIGN)
    unsafe = load_prompts(f"xstest_unsafe:{folder}/xstest_prompts.csv", subset=Subset.HARMFUL)
    assert (len(safe), len({prompt.category for prompt in safe})) == (250, 10)
    assert (len(unsafe), len({prompt.category for prompt in unsafe})) == (200, 8)
    contrast = load_prompts(f"coconot:{folder}/coconot_contrast_eval.jsonl", subset=Subset.BENIGN)
    assert (len(contrast), len({prompt.category for prompt in contrast})) == (379, 5)
    # Enough for the audit, and fewer than prompts where a frame returns.
    assert all(len({prompt.template for prompt in prompts}) >= 200 for prompts in (safe, contrast))
