"""The errors tamperdose raises on purpose.

Each takes one string (so that it survives pickling between processes) which says what is wrong,
what was found, what was expected and how to mend it. Build that string with :func:`explain`.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class TamperdoseError(Exception):
    """Base of every error a user can mend. The command line prints it without a traceback and exits with 1."""


class StudyError(TamperdoseError):
    """The study file, or an override of it, is not valid."""


class DataError(TamperdoseError):
    """A file of prompts, examples, answers or results cannot be used as it is."""


class ModelError(TamperdoseError):
    """A model, tokenizer or adapter cannot be loaded or used."""


class JudgeError(TamperdoseError):
    """A judge cannot be built, or its shipped parameters are not usable."""


class RunError(TamperdoseError):
    """A run's folder cannot be written, read or resumed."""


class ExtraError(TamperdoseError):
    """A package is needed that only an extra brings, and it is not installed."""


class GateError(TamperdoseError):
    """A gate that was asked for is not met. The command line exits with 3."""


def explain(what: str, *, got: str | None = None, expected: str | None = None, remedy: str | None = None) -> str:
    """Compose a message of what is wrong, what was found, what was expected and how to mend it.

    >>> print(explain("no column 'prompt'", got="columns 'text'", expected="'prompt'", remedy="rename the column"))
    no column 'prompt'
      got:      columns 'text'
      expected: 'prompt'
      remedy:   rename the column
    """
    parts = (("got", got), ("expected", expected), ("remedy", remedy))
    return "\n".join([what, *(f"  {label + ':':<9} {text}" for label, text in parts if text is not None)])


def nearest(name: str, valid: Iterable[str]) -> str:
    """Name the valid word closest to `name`, as a phrase to append to a message; empty when none is close.

    >>> nearest("lora_rnk", ["lora_rank", "seeds"])
    " (did you mean 'lora_rank'?)"
    """
    match = get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""


def visible(text: str) -> str:
    r"""Show control characters instead of sending them to a terminal: messages may quote hostile files.

    >>> visible("a\x1b[31m\nb")
    'a\\x1b[31m\nb'
    """
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
