"""Prompts from a data set on the Hugging Face hub: `hf://OWNER/NAME?split=test&column=prompt`.

What is read is kept as a JSON-lines file in the cache folder, which everything after that reads like any other file of
prompts; its digest goes into the manifest. Code that comes with a data set is never run.
"""

import importlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

from tamperdose.errors import DataError, explain, nearest
from tamperdose.extras import require
from tamperdose.files import cache_dir, digest, write_text

HUB = "hf://"
"""What a source starts with when it names a data set on the hub."""
FORM = "hf://OWNER/NAME?split=test&column=prompt"
"""What such a source looks like."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
_COMMIT = re.compile("[0-9a-f]{40}")
_SETTINGS = ("split", "column", "config", "revision", "id", "category", "template")
_OPTIONAL = ("id", "category", "template")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A column of a split of a data set."""

    name: str
    """The data set's id on the hub."""
    split: str
    """The split, such as `test`; slices such as `test[:100]` will do."""
    column: str = "prompt"
    """The column of the requests: texts, or conversations as lists of `role` and `content`."""
    config: str = ""
    """The data set's configuration, where it has several."""
    revision: str = ""
    """A commit, branch or tag; a commit of 40 digits is not asked for again once it is in the cache."""
    id: str = ""
    """The column of ids, if one is to be read."""
    category: str = ""
    """The column of topics, if one is to be read."""
    template: str = ""
    """The column of templates, if one is to be read."""


def is_hub(source: str) -> bool:
    """Whether a source of prompts names a data set on the hub.

    >>> is_hub("hf://walledai/XSTest?split=test"), is_hub("mine.csv")
    (True, False)
    """
    return source.startswith(HUB)


def parse_hub(source: str) -> HubSource:
    """Read `hf://OWNER/NAME?split=S&column=C`, with `config`, `revision`, `id`, `category`, `template` where given.

    Raises:
        DataError: It does not look like that.

    >>> parse_hub("hf://walledai/XSTest?split=test&column=prompt").split
    'test'
    """
    name, _, query = source.removeprefix(HUB).partition("?")
    name = name.removeprefix("datasets/").strip("/")
    if not _NAME.fullmatch(name):
        raise _unreadable(source, f"'{name[:80]}' for the data set's id")
    found: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in _SETTINGS or key in found or not value.strip() or not value.isprintable():
            why = "twice" if key in found else "empty" if key in _SETTINGS else f"unknown{nearest(key, _SETTINGS)}"
            raise _unreadable(source, f"'{key[:40]}', which is {why}")
        found[key] = value
    if "split" not in found:
        raise _unreadable(source, "no split")
    return HubSource(name, **found)


def _unreadable(source: str, got: str) -> DataError:
    return DataError(
        explain(
            f"cannot read the data source '{source[:120]}'",
            got=got,
            expected=f"{FORM}, and where they are needed {', '.join(f'{name}=...' for name in _SETTINGS[2:])}",
        )
    )


@lru_cache(maxsize=32)
def hub_file(source: str) -> Path:
    """The JSON-lines file with the prompts of a data set, read from the hub or, where they are there, from the cache.

    Raises:
        DataError: The source cannot be read, the data set cannot be had, or it has no such split or column.
    """
    wanted = parse_hub(source)
    path = cache_dir() / "hub_prompts" / f"{digest(asdict(wanted))}.jsonl"
    is_pinned = _COMMIT.fullmatch(wanted.revision) is not None
    if path.is_file() and (is_pinned or _is_offline()):
        return path
    lines = [json.dumps(_row(wanted, row), ensure_ascii=True) for row in _rows(wanted)]
    return write_text(path, "".join(f"{line}\n" for line in lines))


def _is_offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _rows(wanted: HubSource) -> Iterable[Mapping[str, Any]]:
    require(f"the hub's {wanted.name}", "datasets", extra="hub", instead="download the file and name its path")
    # Untyped: the package ships no stubs.
    datasets: Any = importlib.import_module("datasets")
    try:
        table: Any = datasets.load_dataset(
            wanted.name, wanted.config or None, split=wanted.split, revision=wanted.revision or None
        )
        names = cast(Sequence[str], table.column_names)
        columns = [wanted.column, *(name for key in _OPTIONAL if (name := getattr(wanted, key)))]
        missing = [name for name in columns if name not in names]
        if not missing:
            # A column alone: others may hold images, which would be decoded.
            return list(table.select_columns(list(dict.fromkeys(columns))))
    # The libraries below raise these for a network that fails, a name, a split or a file that is wrong.
    except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise _unavailable(wanted, error) from error
    raise DataError(
        explain(
            f"{wanted.name} has no column '{missing[0]}'{nearest(missing[0], names)}",
            got=f"the columns {', '.join(names)[:200]}",
            expected="a column of texts or of conversations",
            remedy="name it in the source: &column=NAME",
        )
    )


def _unavailable(wanted: HubSource, error: Exception) -> DataError:
    first = " ".join(str(error).split())[:200]
    offline = _is_offline()
    return DataError(
        explain(
            f"cannot read {wanted.name} (split '{wanted.split}') from the hub",
            got=f"{type(error).__name__}: {first}" + ("; HF_HUB_OFFLINE is set" if offline else ""),
            expected=f"a public data set, or one that `hf auth login` gives access to, as {FORM}",
            remedy="unset HF_HUB_OFFLINE once, so that it is fetched" if offline else "check id, split and config",
        )
    )


def _row(wanted: HubSource, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a file of prompts has it; what is wrong with a text is said when that file is read."""
    value = row[wanted.column]
    told: dict[str, Any] = {"messages" if isinstance(value, list) else "prompt": value}
    for key in _OPTIONAL:
        if getattr(wanted, key):
            cell = row[getattr(wanted, key)]
            told[key] = cell if cell is None or isinstance(cell, str) else str(cell)
    return told
