"""Digests, atomic writes and careful reads: everything tamperdose does to a file goes through here."""

import codecs
import csv
import errno
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tamperdose.errors import DataError, RunError, explain, nearest

_SHOWN = 300
_UMASK = os.umask(0)
os.umask(_UMASK)

# A cell may hold a whole document; csv's default limit of 128 KiB would reject it.
csv.field_size_limit(2**31 - 1)
_RENAME = "rename the column in the file's first line"
_BINARY = {
    b"PK\x03\x04": (
        "a workbook or an archive",
        "save the sheet as CSV (UTF-8) in the spreadsheet, or unpack the archive",
    ),
    b"PAR1": ("a Parquet table", "write the table as CSV"),
    b"\x1f\x8b": ("compressed with gzip", "unpack it"),
}
"""What files begin with that are no text: what they are, and what helps."""


def cache_dir() -> Path:
    """Folder for what is had once: $TAMPERDOSE_CACHE, else `tamperdose` under the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tamperdose"
    return Path(os.environ.get("TAMPERDOSE_CACHE") or default)


def canonical_json(value: Any) -> str:
    """Serialise to one canonical line: sorted keys, no spaces, no NaN.

    >>> canonical_json({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a value's canonical JSON.

    >>> digest({"a": 1}) == digest({"a": 1}) != digest({"a": 2})
    True
    """
    # JSON from elsewhere may hold lone surrogates, which have no UTF-8.
    return hashlib.sha256(canonical_json(value).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, 64 hexadecimal digits, reading it in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Have `write` fill a temporary file beside `path`, then rename it to `path`.

    A reader, or a run that is killed, sees the old file or the whole new one. The data reach the disk
    before the name does. The temporary file is removed when writing fails. A link is replaced, not followed:
    a folder from elsewhere may hold one to a file that is not its own. A file that others could not read stays so.

    Raises:
        RunError: The disk is full, the folder cannot be written, or `path` is a device or a folder.
    """
    try:
        if path.exists() and not path.is_file():
            raise RunError(explain(f"cannot write {path}", got="not a plain file", expected="the name of a file"))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(_mode(path))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(_disk_message(path, error)) from error
    return path


def _mode(path: Path) -> int:
    """The permissions of a file that is to be replaced, else those that a new one gets."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        found = 0
    return stat.S_IMODE(found) & 0o777 if stat.S_ISREG(found) else 0o666 & ~_UMASK


def remove(path: Path) -> None:
    """Remove a file if it is there.

    Raises:
        RunError: It cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(_disk_message(path, error)) from error


def own_folder(path: Path) -> Path:
    """A folder whose other files may be removed: where a link lies in its place, those are somebody else's.

    Raises:
        RunError: It is a link.
    """
    if path.is_symlink():
        raise RunError(
            explain(
                f"{path} is a link",
                got=f"a link to {path.readlink()}",
                expected="a folder of the run's own: what does not belong in it is removed",
                remedy="put a folder in the link's place, or write elsewhere with -o DIR",
            )
        )
    return path


def is_file_name(name: str) -> bool:
    """Whether a name from elsewhere names something in a folder, and no path that leads out of it.

    >>> [is_file_name(name) for name in ("m-lora-s1", "../m", "/tmp/m", "..", "")]
    [True, False, False, False, False]
    """
    return name not in ("", ".", "..") and not any(mark in name for mark in ("/", os.sep, "\0"))


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text atomically, with the line ends as given."""
    return write_atomic(path, lambda temporary: _dump(temporary, text))


def write_json(path: Path, value: Any) -> Path:
    """Write a value as indented JSON with sorted keys, atomically; NaN is refused."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        # A file name that is not UTF-8 comes as lone surrogates, which only JSON's own escapes can carry.
        text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False)
    return write_text(path, text + "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows under a fixed header, atomically. None becomes an empty cell; floats keep every digit."""
    header = list(columns)
    lines = [header, *([row.get(name) for name in header] for row in rows)]
    return write_text(path, "".join(_csv_line(line) for line in lines))


def read_text(path: Path) -> str:
    """Read a UTF-8 text file, with or without a byte-order mark.

    Raises:
        DataError: The file is missing, is a folder, a workbook or the like, cannot be read, is not UTF-8, or holds
            NUL bytes.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(explain(f"no such file: {path}", remedy="check the path; it is taken as written")) from error
    except OSError as error:
        raise DataError(explain(f"cannot read {path}", got=str(error.strerror), expected="a readable file")) from error
    for start, (what, remedy) in _BINARY.items():
        if raw.startswith(start):
            raise DataError(explain(f"{path} is {what}", expected="UTF-8 text", remedy=remedy))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        encoding = "UTF-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "WINDOWS-1252"
        raise DataError(
            explain(
                f"{path} is not UTF-8",
                got=f"byte 0x{raw[error.start]:02x} on line {line}",
                expected="UTF-8, with or without a byte-order mark",
                remedy=f"convert it, e.g. iconv -f {encoding} -t UTF-8 {path.name}",
            )
        ) from error
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise DataError(
            explain(
                f"{path} holds NUL bytes",
                got=f"a NUL byte on line {line}",
                expected="plain UTF-8 text",
                remedy="the file may be UTF-16 or damaged; export it again as UTF-8",
            )
        )
    return text


def read_csv(
    path: Path, *, required: Sequence[str], separators: str = ",;\t", remedy: str = _RENAME
) -> tuple[list[str], list[dict[str, str]]]:
    """Read a CSV file with a header into its columns and rows; quoted line ends are kept.

    Args:
        path: The file.
        required: Columns it must have.
        separators: What may part the cells. Spreadsheets write `;` where the comma is the decimal mark; of several,
            that counts by which the header has most of the required columns, of equals the first.
        remedy: What helps where a required column is missing.

    Raises:
        DataError: Empty, unreadable, a required or repeated column, or a row of another width.
    """
    text = read_text(path)
    head = text.partition("\n")[0]
    separator = max(separators, key=lambda mark: _n_columns(head, mark, required))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    try:
        table = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(
            explain(f"{path} is not a valid CSV", got=f"{error} near line {reader.line_num}", expected="RFC 4180 CSV")
        ) from error
    if not table:
        raise DataError(explain(f"{path} is empty", expected=f"a CSV with the column(s) {_names(required)}"))
    columns = table[0][1]
    missing = [name for name in required if name not in columns]
    if missing:
        raise DataError(
            explain(
                f"{path} has no column {_names(missing)}{nearest(missing[0], columns)}",
                got=f"the columns {_names(columns)}",
                expected=f"the column(s) {_names(required)}",
                remedy=remedy,
            )
        )
    if len(set(columns)) != len(columns):
        raise DataError(explain(f"{path} repeats a column name", got=_names(columns), expected="unique names"))
    for line, row in table[1:]:
        if len(row) != len(columns):
            raise DataError(
                explain(
                    f"{path} has a row of the wrong width ending on line {line}",
                    got=f"{len(row)} cells",
                    expected=f"{len(columns)} cells, as the header has",
                    remedy="quote cells that contain commas or line ends",
                )
            )
    return columns, [dict(zip(columns, row, strict=True)) for _, row in table[1:]]


def _n_columns(head: str, separator: str, required: Sequence[str]) -> int:
    return len(set(required) & {name.strip('"\r ') for name in head.split(separator)})


def read_jsonl(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read a JSON-lines file of objects into (line number, object) pairs; blank lines are skipped.

    Raises:
        DataError: Unreadable, or a line that is not a JSON object.
    """
    records: list[tuple[int, dict[str, Any]]] = []
    # Only "\n" ends a record: str.splitlines would also cut at U+2028, which JSON strings may contain.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            # ValueError: not JSON, or an integer of more digits than Python converts; RecursionError: nested too deep.
            raise DataError(
                explain(
                    f"{path} line {number} is not JSON",
                    got=str(error),
                    expected='JSON lines: one object on each, such as {"prompt": "...", "response": "..."}',
                )
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                explain(f"{path} line {number}", got=f"a JSON {type(record).__name__}", expected="a JSON object")
            )
        records.append((number, cast(dict[str, Any], record)))
    return records


def _csv_line(cells: Sequence[Any]) -> str:
    """One line of RFC 4180 CSV.

    Not csv.writer: before Python 3.13 it leaves a lone carriage return unquoted, which its reader takes for a line
    end, and a model's answer may hold one.
    """
    # A NUL would make the file unreadable, here and elsewhere; its control picture stands for it.
    texts = ["" if cell is None else str(cell).replace("\x00", "\u2400") for cell in cells]
    # A line of one empty cell would read as a blank line.
    return ",".join(_quoted(text) for text in texts) + "\n" if texts != [""] else '""\n'


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def _dump(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


def _names(names: Iterable[str]) -> str:
    text = ", ".join(f"'{name}'" for name in names)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _disk_message(path: Path, error: OSError) -> str:
    remedies = {
        errno.ENOSPC: "free some space and run the same command again: finished work is kept",
        errno.EDQUOT: "free some of your quota and run the same command again: finished work is kept",
        errno.EROFS: "the file system is read-only: choose another folder with -o DIR",
        errno.EACCES: "make the folder writable, or choose another with -o DIR",
    }
    remedy = remedies.get(error.errno or 0, "choose another folder with -o DIR, then run the same command again")
    return explain(f"cannot write {path}", got=error.strerror or str(error), remedy=remedy)
