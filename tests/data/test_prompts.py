import csv
import io
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperdose.data.prompts import infer_template, load_prompts
from tamperdose.errors import DataError
from tamperdose.records import Message, Prompt, Subset


def _file(folder: Path, content: str | bytes, name: str = "prompts.csv") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def _load(folder: Path, content: str | bytes) -> list[Prompt]:
    return load_prompts(_file(folder, content), subset=Subset.HARMFUL)


def _csv(texts: list[str]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([["prompt"], *([text] for text in texts)])
    return stream.getvalue()


def test_only_the_prompt_column_is_needed(tmp_path: Path) -> None:
    prompts = _load(tmp_path, "prompt\nFirst one\nSecond one\n")
    assert prompts == [
        Prompt("p0001", (Message("user", "First one"),), Subset.HARMFUL, "first one", ""),
        Prompt("p0002", (Message("user", "Second one"),), Subset.HARMFUL, "second one", ""),
    ]


def test_all_columns_are_used_in_any_order_and_others_ignored(tmp_path: Path) -> None:
    (prompt,) = _load(tmp_path, "notes,template,category,id,prompt\nx,frame 1,fraud,a7,Do this\n")
    assert (prompt.id, prompt.text, prompt.category, prompt.template) == ("a7", "Do this", "fraud", "frame 1")


def test_empty_cells_fall_back_to_the_row_number_and_the_inferred_template(tmp_path: Path) -> None:
    prompts = _load(tmp_path, "id,template,prompt\na,t,One\n,,Two 2\n")
    assert [(prompt.id, prompt.template) for prompt in prompts] == [("a", "t"), ("p0002", "two #")]


def test_relative_paths_start_at_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, "prompt\nHello\n", "p.csv")
    assert load_prompts("p.csv", subset=Subset.BENIGN, base=tmp_path)[0].subset is Subset.BENIGN
    monkeypatch.chdir(tmp_path)
    assert load_prompts("p.csv", subset=Subset.BENIGN)[0].text == "Hello"


def test_an_absolute_path_ignores_base(tmp_path: Path) -> None:
    source = _file(tmp_path, "prompt\nHello\n")
    assert load_prompts(source, subset=Subset.BENIGN, base=Path("/elsewhere"))[0].text == "Hello"


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert _load(tmp_path, b"\xef\xbb\xbfprompt\r\nCaf\xc3\xa9?\r\n")[0].text == "Café?"


def test_quoted_line_ends_and_commas_are_kept(tmp_path: Path) -> None:
    assert _load(tmp_path, 'prompt\n"one,\n ""two""\r\nthree"\n')[0].text == 'one,\n "two"\r\nthree'


def test_a_ten_megabyte_cell_is_quick(tmp_path: Path) -> None:
    text = "An unclosed [ bracket ' and “ quote 7. " * 260_000
    source = _file(tmp_path, _csv([text]))
    start = time.perf_counter()
    (prompt,) = load_prompts(source, subset=Subset.HARMFUL)
    assert time.perf_counter() - start < 20
    assert len(text) > 10_000_000
    assert prompt.text == text


@given(
    st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")).filter(str.strip),
        min_size=1,
        unique_by=lambda text: " ".join(text.split()),
    )
)
def test_any_text_written_by_csv_comes_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    prompts = _load(tmp_path_factory.mktemp("round_trip"), _csv(texts))
    assert [prompt.text for prompt in prompts] == texts
    assert len({prompt.id for prompt in prompts}) == len(texts)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["is empty", "'prompt'"]),
        ("prompt\n", ["no prompts", "header only"]),
        ("id,text\n1,hello\n", ["no column 'prompt'", "'id', 'text'"]),
        ("prompt,id\none,1\n   ,2\nthree,3\n\t,4\n", ["blank prompts", "2 of 4", "row(s) 2, 4"]),
        ('prompt\none two\nother\n"one  \n two"\n', ["repeats values of 'prompt'", "rows 1 and 3", "'one two'"]),
        ("id,prompt\na,one\nb,two\na,three\n", ["repeats values of 'id'", "rows 1 and 3", "'a'"]),
        ("id,prompt\np0002,one\n,two\n", ["repeats values of 'id'", "rows 1 and 2", "'p0002'"]),
        ("prompt\none\x00two\n", ["NUL", "line 2"]),
        (b"prompt\ncaf\xe9\n", ["not UTF-8", "line 2"]),
        ("prompt\none\n".encode("utf-16"), ["not UTF-8"]),
        ("prompt\none, two\n", ["wrong width", "line 2"]),
        ('prompt\n"never closed\n', ["not a valid CSV"]),
    ],
)
def test_an_unusable_file_is_refused_with_its_reason(tmp_path: Path, content: str | bytes, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        _load(tmp_path, content)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_many_blank_or_repeated_rows_are_counted_not_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row\(s\) 1, 2, 3, 4, 5 and 15 more"):
        _load(tmp_path, _csv([" "] * 20))
    with pytest.raises(DataError, match="rows 1 and 6: 'same'; and 14 more"):
        _load(tmp_path, _csv(["same"] * 20))


def test_hostile_text_reaches_no_terminal_raw(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _load(tmp_path, _csv(["\x1b[2J red"] * 2))
    assert "\x1b" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file: .*absent\.csv"):
        load_prompts("absent.csv", subset=Subset.HARMFUL, base=tmp_path)


@pytest.mark.parametrize("source", ["", "  ", "a\x00b"])
def test_what_cannot_be_a_path_is_refused(source: str) -> None:
    with pytest.raises(DataError, match="not a path"):
        load_prompts(source, subset=Subset.HARMFUL)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        load_prompts(str(tmp_path), subset=Subset.HARMFUL)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("redteam_evl", "did you mean 'redteam_eval'"),
        ("refusals", "training examples"),
        ("../secret", "builtin:benign"),
    ],
)
def test_an_unknown_bundled_name_is_refused(name: str, word: str) -> None:
    with pytest.raises(DataError, match="no bundled set of prompts") as caught:
        load_prompts(f"builtin:{name}", subset=Subset.HARMFUL)
    assert word in str(caught.value)


def test_a_bundled_set_is_loaded_only_as_what_it_is() -> None:
    with pytest.raises(DataError, match="not a set of harmful prompts"):
        load_prompts("builtin:benign_eval", subset=Subset.HARMFUL)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Write review #12 for the shop", "write  review #3 for the SHOP"),
        ("Send 1,000 letters", "Send 25 letters"),
        ('Spread the story "cows fly"', 'Spread the story "the king is ill"'),
        ("Spread the story “cows fly”", "Spread the story “the king's ill”"),
        ("Call it 'one two' again", "Call it 'don't do it' again"),
        ("Call it ‘one two’ again", "Call it ‘don’t do it’ again"),
        ("Call {name} at [the place]", "Call {other name} at [place]"),
        ("Ask <a neighbour> for money", "Ask <an aunt> for money"),
    ],
)
def test_fillings_of_one_frame_share_a_template(one: str, other: str) -> None:
    assert infer_template(one) == infer_template(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Write a review of the shop", "Write a review of the bank"),
        ("[FRAUD] Do this #1", "[FAKE_NEWS] Do this #1"),
        ("[FRAUD] Do this", "[a town] Do this"),
        ('"Rob the shop"', '"Rob the bank"'),
        ("12", "13"),
        ("It's the dogs' dinner", "It's the cats' dinner"),
        ("if a < b then c > d", "if a < e then c > d"),
    ],
)
def test_other_frames_do_not(one: str, other: str) -> None:
    assert infer_template(one) != infer_template(other)


@given(st.text())
def test_a_template_is_a_fixed_point_of_case_and_white_space(text: str) -> None:
    assert infer_template(f"  {text}\n") == infer_template(text)


@pytest.mark.skipif("TAMPERDOSE_REFERENCE_DATA" not in os.environ, reason="needs the reference data")
@pytest.mark.parametrize("name", ["tinyllama_1.1b", "phi3_mini_3.8b"])
def test_the_source_studys_hundred_prompts_are_ten_templates(name: str) -> None:
    folder = Path(os.environ["TAMPERDOSE_REFERENCE_DATA"])
    prompts = load_prompts(str(folder / "recorded" / f"{name}_generations.csv"), subset=Subset.HARMFUL)
    assert (len(prompts), len({prompt.template for prompt in prompts})) == (100, 10)
