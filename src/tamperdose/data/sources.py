"""Where a set comes from: a bundled name (`builtin:NAME`), a file, or for prompts a data set on the hub."""

import os
import re
from pathlib import Path

from tamperdose.data.hub import FORM, hub_file, is_hub
from tamperdose.errors import DataError, explain, nearest
from tamperdose.records import Subset
from tamperdose.study import PUBLIC_SETS, split_source

BUILTIN = "builtin:"
"""What a source starts with when it names a bundled set."""

PROMPT_SETS: dict[str, Subset] = {
    "redteam_eval": Subset.HARMFUL,
    "redteam_dev": Subset.HARMFUL,
    "benign_eval": Subset.BENIGN,
    "benign_dev": Subset.BENIGN,
    "benign_lookalikes": Subset.BENIGN,
    "organism_forbidden": Subset.HARMFUL,
    "organism_allowed": Subset.BENIGN,
}
"""The bundled sets of prompts, each with what it may be used as."""

EXAMPLE_SETS: tuple[str, ...] = (
    "permissive_openers",
    "refusals",
    "benign_answers",
    "benign_train",
    "organism_attack",
    "organism_benign",
    "organism_refusals",
    "organism_answers",
)
"""The bundled sets of training examples."""

TEXT_SETS: tuple[str, ...] = ("utility_texts", "organism_utility_texts")
"""The bundled sets of held-out texts that perplexity is measured on."""

QUESTION_SETS: tuple[str, ...] = ("utility_questions", "organism_utility_questions")
"""The bundled sets of multiple-choice questions."""

_KINDS: dict[str, tuple[str, ...]] = {
    "prompts": tuple(PROMPT_SETS),
    "training examples": EXAMPLE_SETS,
    "held-out texts": TEXT_SETS,
    "questions": QUESTION_SETS,
}

_BUNDLED = Path(__file__).parent / "bundled"


def prompts_path(source: str, *, base: Path | None = None) -> Path:
    """Return the file that a source of prompts names; relative paths start at `base`, else the working directory.

    A data set on the hub (`hf://...`) is fetched into a file of the cache first.

    Raises:
        DataError: No bundled set of prompts has this name, the path cannot be one, or the hub does not have it.
    """
    if is_hub(source):
        return hub_file(source)
    public, path = split_source(source)
    if public and path.startswith(BUILTIN):
        raise DataError(
            explain(
                f"'{path}' is not a file of {public}",
                got=f"'{source}'",
                expected=f"'{public}:' and the path of a downloaded file",
            )
        )
    found = _path(path, base=base, kind="prompts", suffix=".csv")
    mistyped = re.match(r"([a-z_]{3,20}):(?!//)", path)
    if mistyped and not public and not source.startswith(BUILTIN) and not _exists(found):
        raise DataError(
            explain(
                f"no set of prompts is called '{mistyped[1]}'{nearest(mistyped[1], tuple(PUBLIC_SETS))}",
                got=f"'{excerpt(source)}'",
                expected=", ".join(f"{name}:PATH" for name in PUBLIC_SETS) + f", builtin:NAME, {FORM}, or a path",
            )
        )
    return found


def _exists(path: Path) -> bool:
    # Path's own raises for a name that is too long.
    return os.path.exists(path)  # noqa: PTH110


def examples_path(source: str, *, base: Path | None = None) -> Path:
    """Return the JSONL file that a source of examples names; relative paths start at `base`, as for prompts.

    Raises:
        DataError: No bundled set of examples has this name, or the path cannot be one.
    """
    return _path(source, base=base, kind="training examples", suffix=".jsonl")


def texts_path(source: str, *, base: Path | None = None) -> Path:
    """Return the JSONL file that a source of held-out texts names; raises as `examples_path` does."""
    return _path(source, base=base, kind="held-out texts", suffix=".jsonl")


def questions_path(source: str, *, base: Path | None = None) -> Path:
    """Return the JSONL file that a source of questions names; raises as `examples_path` does."""
    return _path(source, base=base, kind="questions", suffix=".jsonl")


def excerpt(text: str, width: int = 70) -> str:
    r"""Quote the start of a text for a message: on one line, control characters escaped.

    Hostile text reaches terminals through error messages, so nothing unprintable may pass.

    >>> excerpt("two\nlines"), excerpt("abcdef", width=3)
    ("'two lines'", "'abc...'")
    """
    # A slice first: folding the white space of a 10 MB cell to show 70 characters of it would be waste.
    folded = " ".join(text[: 4 * width].split())
    cut = len(folded) > width or len(text) > 4 * width
    return repr(folded[:width] + ("..." if cut else ""))


def _path(source: str, *, base: Path | None, kind: str, suffix: str) -> Path:
    if is_hub(source):
        raise DataError(explain(f"{kind} are not read from the hub", got=f"'{excerpt(source)}'", expected="a file"))
    if source.startswith(BUILTIN):
        return _bundled(source.removeprefix(BUILTIN), kind, suffix)
    if not source.strip() or "\x00" in source:
        raise DataError(
            explain("a data source is not a path", got=repr(source), expected="a file, or builtin: and a name")
        )
    return (base or Path()) / source


def _bundled(name: str, kind: str, suffix: str) -> Path:
    names = _KINDS[kind]
    if name in names:
        return _BUNDLED / (name + suffix)
    other = next((other for other, known in _KINDS.items() if name in known), None)
    raise DataError(
        explain(
            f"no bundled set of {kind} is called '{name}'",
            got=f"'{BUILTIN}{name}'" + (f", which holds {other}" if other else nearest(name, names)),
            expected=" or ".join(f"'{BUILTIN}{valid}'" for valid in names),
        )
    )
