"""XSTest and CoCoNot as they are downloaded. Nothing of either is shipped: a study names the user's own copy."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tamperdose.data.rows import PromptRow, single_turn
from tamperdose.errors import DataError, explain
from tamperdose.extras import require
from tamperdose.files import read_csv, read_jsonl

XSTEST_LABELS = ("safe", "unsafe")
"""The column `label` of XSTest."""
CONTRAST = "contrast_"
"""What the types of XSTest's unsafe prompts begin with."""
_COCONOT_COLUMNS = ("id", "category", "subcategory", "prompt")


def read_xstest(path: Path, *, unsafe: bool) -> list[PromptRow]:
    """The safe or the unsafe prompts of XSTest, in file order; the category is the prompt's type.

    Prompts of a type are as unlike as those of a category of one's own set: templates are inferred as for those.

    Read are `xstest_prompts.csv` (`id, prompt, type, label, focus, note`) and the older `xstest_v2_prompts.csv`
    (`id_v1, id_v2, type, prompt, focus, note`), in which a type that begins with `contrast_` means unsafe. Where both
    are there, label and type must say the same.

    Raises:
        DataError: The file cannot be read, lacks a column, has another label, or holds no prompt of that kind.

    Source: Röttger et al. (2024), XSTest, arXiv:2308.01263; files of github.com/paul-rottger/exaggerated-safety.
    """
    columns, rows = read_csv(path, required=("prompt", "type"))
    id_column = next((name for name in ("id", "id_v2") if name in columns), None)
    if id_column is None:
        raise DataError(
            explain(
                f"{path} is not a file of XSTest",
                got=f"the columns {', '.join(columns[:12])}",
                expected="id, prompt, type, label, focus, note; or id_v1, id_v2, type, prompt, focus, note",
                remedy="name a file of your own without `xstest:`",
            )
        )
    found = [
        single_turn(row["prompt"], name=row[id_column], category=row["type"])
        for number, row in enumerate(rows, 1)
        if _is_unsafe(row, f"{path} data row {number}") == unsafe
    ]
    if not found:
        kind = XSTEST_LABELS[unsafe]
        raise DataError(explain(f"{path} holds no {kind} prompts", got=f"{len(rows)} rows, none of them {kind}"))
    return found


def _is_unsafe(row: dict[str, str], where: str) -> bool:
    by_type = row["type"].strip().startswith(CONTRAST)
    if "label" not in row:
        return by_type
    label = row["label"].strip().lower()
    if label not in XSTEST_LABELS:
        raise DataError(explain(f"{where}: an unknown label", got=repr(label[:40]), expected="safe or unsafe"))
    if (label == "unsafe") != by_type:
        raise DataError(
            explain(
                f"{where}: type and label say different things",
                got=f"type {row['type'][:40]!r}, label '{label}'",
                expected=f"types that begin with '{CONTRAST}' unsafe, all others safe",
            )
        )
    return by_type


def read_coconot(path: Path) -> list[PromptRow]:
    """The prompts of a CoCoNot file, in file order; category `CATEGORY: SUBCATEGORY`, templates inferred.

    Read are JSONL, CSV and Parquet with the columns `id, category, subcategory, prompt`; `response` and others are
    ignored. It is meant for the contrast set, whose requests should be complied with (`coconot_contrast_eval.jsonl`,
    or `contrast/test-*.parquet` of the hub): nothing in the rows of the original set, which should not be, says so.

    Raises:
        DataError: The file cannot be read, lacks a column, holds no prompt or a cell that is no text; Parquet without
            pyarrow.

    Source: Brahman, Kumar et al. (2024), The Art of Saying No, arXiv:2407.12043; github.com/allenai/noncompliance.
    """
    rows = _table(path)
    if not rows:
        raise DataError(explain(f"{path} holds no prompts", expected="at least one row"))
    return [_coconot_row(row, f"{path} row {number}") for number, row in enumerate(rows, 1)]


def _coconot_row(row: dict[str, Any], where: str) -> PromptRow:
    wrong = [name for name in _COCONOT_COLUMNS if not isinstance(row.get(name), str)]
    if wrong:
        got = f"{type(row[wrong[0]]).__name__}" if wrong[0] in row else f"the columns {', '.join(map(str, row))[:200]}"
        raise DataError(
            explain(
                f"{where}: '{wrong[0]}' is not a text",
                got=got,
                expected=f"the columns {', '.join(_COCONOT_COLUMNS)} of CoCoNot",
                remedy="name a file of your own without `coconot:`",
            )
        )
    kind = ": ".join(part.strip() for part in (row["category"], row["subcategory"]) if part.strip())
    return single_turn(row["prompt"], name=row["id"], category=kind)


def _table(path: Path) -> Sequence[dict[str, Any]]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _read_parquet(path)
    if suffix == ".csv":
        return read_csv(path, required=_COCONOT_COLUMNS)[1]
    return [record for _, record in read_jsonl(path)]


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    require(str(path), "pyarrow", extra="parquet", instead="export the table as CSV or JSONL")
    # Untyped: the package ships no stubs.
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        return parquet.read_table(path).to_pylist()
    except (OSError, ValueError) as error:
        raise DataError(explain(f"cannot read {path}", got=str(error)[:200], expected="a Parquet file")) from error
