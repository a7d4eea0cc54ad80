import csv
import errno
import hashlib
import json
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamperdose.errors import DataError, RunError
from tamperdose.files import (
    canonical_json,
    digest,
    read_csv,
    read_jsonl,
    read_text,
    sha256_file,
    write_atomic,
    write_csv,
    write_json,
    write_text,
)

# Text as UTF-8 can hold it, NUL apart; lone surrogates cannot be written at all.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


# --- digests


@given(VALUES)
def test_canonical_json_is_json_on_one_line(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert "\n" not in text


@given(st.dictionaries(TEXT, st.integers(), min_size=2, max_size=5))
def test_digests_do_not_depend_on_order(mapping: dict[str, int]) -> None:
    assert digest(mapping) == digest(dict(reversed(mapping.items())))


def test_digests_tell_values_apart() -> None:
    values: list[Any] = [1, 1.5, "1", [1], {"1": 1}, None, True, "", [], {}, [[1]], "\u00e9", "e\u0301"]
    assert len({digest(value) for value in values}) == len(values)
    assert digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:16]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1, float("-inf")]])
def test_no_digest_of_what_is_not_a_number(value: Any) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(value)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


# --- writing


def test_a_write_is_all_or_nothing(tmp_path: Path) -> None:
    path = write_text(tmp_path / "new" / "folder" / "a.txt", "old")

    def broken(temporary: Path) -> None:
        temporary.write_text("half of the ne")
        raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        write_atomic(path, broken)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    seen: list[str] = []
    write_atomic(path, lambda temporary: seen.append(path.read_text()) or (temporary.write_text("new") and None))
    assert (seen, path.read_text()) == (["old"], "new")


@pytest.mark.parametrize("exists", [True, False])
def test_links_are_replaced_and_devices_left_alone(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "target"
    if exists:
        target.write_text("somebody's")
    (tmp_path / "link").symlink_to(target)
    write_text(tmp_path / "link", "new")
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_text() == "new"
    assert target.exists() == exists and (not exists or target.read_text() == "somebody's")
    for place in (Path("/dev/null"), tmp_path):
        with pytest.raises(RunError, match="not a plain file"):
            write_text(place, "x")


def test_a_nul_byte_does_not_make_a_table_unreadable(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["a"], [{"a": "x\x00y"}])
    assert read_csv(path, required=["a"])[1] == [{"a": "x\u2400y"}]


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"b\xff.csv")
    path = write_json(tmp_path / "a.json", {"name": name})
    assert json.loads(path.read_text())["name"] == name


def test_files_can_be_read_by_others_but_those_that_could_not(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.chmod(0o600)
    write_text(path, "y")
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("y", 0o600)
    # Not those of what a link leads to: its own are no permissions at all.
    (tmp_path / "link").symlink_to(path)
    assert stat.S_IMODE(write_text(tmp_path / "link", "z").stat().st_mode) == 0o644


def test_json_from_elsewhere_has_a_digest() -> None:
    assert digest(["\ud800"]) != digest(["\udc00"])


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "finished work is kept"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EROFS, "choose another folder with -o DIR"),
        (errno.EACCES, "make the folder writable"),
        (errno.EIO, "choose another folder"),
    ],
)
def test_what_the_system_refuses_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(RunError, match=rf"cannot write .*a\.txt\n  got:      {os.strerror(number)}") as caught:
        write_text(tmp_path / "a.txt", "x")
    assert expected in str(caught.value)
    assert list(tmp_path.iterdir()) == []


BIG = """
import resource, signal, sys
from pathlib import Path
from tamperdose.errors import RunError
from tamperdose.files import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    write_text(Path(sys.argv[1]), "x" * 100_000)
except RunError as error:
    print(error)
"""


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """A limit of the system itself, in a process of its own."""
    assert resource.RLIMIT_FSIZE
    write_text(tmp_path / "a.txt", "old")
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path / "a.txt")], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_sorted_indented_and_without_nan(tmp_path: Path) -> None:
    assert write_json(tmp_path / "a.json", {"b": 1, "a": "é"}).read_text() == '{\n  "a": "é",\n  "b": 1\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})


# --- CSV


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_csv_comes_back_as_written(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [{"one": one, "two": two} for one, two in cells]
    write_csv(path, ["one", "two"], rows)
    assert read_csv(path, required=["one"]) == (["one", "two"], rows)
    with path.open(newline="", encoding="utf-8") as stream:
        assert list(csv.DictReader(stream)) == rows


@given(st.lists(TEXT, min_size=1, max_size=5))
def test_one_column_comes_back_too(tmp_path_factory: pytest.TempPathFactory, cells: list[str]) -> None:
    path = write_csv(tmp_path_factory.mktemp("csv") / "a.csv", ["one"], [{"one": cell} for cell in cells])
    assert [row["one"] for row in read_csv(path, required=["one"])[1]] == cells


@given(st.floats(allow_nan=False))
def test_floats_keep_every_digit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = write_csv(tmp_path_factory.mktemp("csv") / "a.csv", ["x"], [{"x": value}])
    assert float(read_csv(path, required=["x"])[1][0]["x"]) == value


def test_none_and_missing_keys_are_empty_cells(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["x", "y"], [{"x": None}, {"y": 0}])
    assert path.read_text() == "x,y\n,\n,0\n"


def test_a_large_cell_is_read(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["x"], [{"x": "a,\n" * 3_000_000}])
    assert len(read_csv(path, required=["x"])[1][0]["x"]) == 9_000_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n1,2\n", r"has no column 'x'\n  got:      the columns 'a', 'b'"),
        (b"x,x\n1,2\n", "repeats a column name"),
        (b"x,y\n1\n", r"wrong width ending on line 2\n  got:      1 cells"),
        (b'x,y\n"1\n2",3\n4,5,6\n', "wrong width ending on line 4"),
        (b'x\n"open\n', "not a valid CSV"),
        (b"x\n\xff\n", r"0xff on line 2(?s:.)*iconv"),
        (b"x\na\x00b\n", r"NUL byte on line 2"),
        ("x\na\n".encode("utf-16"), "not UTF-8"),
        (b"PK\x03\x04\x14\x00\xff", r"is a workbook or an archive(?s:.)*save the sheet as CSV"),
        (b"PAR1\x15\xff", "is a Parquet table"),
        (b"\x1f\x8b\x08\xff", "is compressed with gzip"),
        (b"y;z\n1;2\n", r"has no column 'x'\n  got:      the columns 'y;z'"),
    ],
)
def test_bad_csv(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        read_csv(tmp_path / "a.csv", required=["x"])


def test_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfx,y\r\n\r\n1,2\r\n\r\n")
    assert read_csv(tmp_path / "a.csv", required=["x"]) == (["x", "y"], [{"x": "1", "y": "2"}])


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_cells_are_parted_as_the_header_is(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(f'x{mark}y\n"1{mark}2"{mark}3\n')
    columns, rows = read_csv(tmp_path / "a.csv", required=["x", "y"])
    assert columns == ["x", "y"] and rows[0]["x"] == f"1{mark}2"
    with pytest.raises(DataError, match=r"no column 'z'(?s:.)*the columns 'x', 'y'"):
        read_csv(tmp_path / "a.csv", required=["x", "z"])


def test_a_header_that_several_separators_part_is_read_by_the_comma(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y;z\n1,2\n")
    assert read_csv(tmp_path / "a.csv", required=["x"]) == (["x", "y;z"], [{"x": "1", "y;z": "2"}])


# --- text and JSON lines


def _absent(path: Path) -> None:
    pass


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(("make", "expected"), [(_absent, "no such file"), (_folder, "cannot read")])
def test_unreadable_files(tmp_path: Path, make: Callable[[Path], None], expected: str) -> None:
    make(tmp_path / "a.txt")
    with pytest.raises(DataError, match=expected):
        read_text(tmp_path / "a.txt")


def test_json_lines(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n  \n{"b": "x\u2028y"}\r\n'
    (tmp_path / "a.jsonl").write_text(text, encoding="utf-8", newline="")
    assert read_jsonl(tmp_path / "a.jsonl") == [(1, {"a": 1}), (4, {"b": "x\u2028y"})]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("hello", "line 2 is not JSON"),
        ("[1]", "a JSON list"),
        ('"text"', "a JSON str"),
        ("{" * 3, "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "line 2 is not JSON"),
    ],
)
def test_bad_json_lines(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(DataError, match=expected):
        read_jsonl(tmp_path / "a.jsonl")
