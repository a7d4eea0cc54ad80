"""Load what utility is measured on: held-out texts and multiple-choice questions, each from a JSON-lines file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tamperdose.data.conversations import read_text_field
from tamperdose.data.sources import excerpt, questions_path, texts_path
from tamperdose.errors import DataError, explain, nearest
from tamperdose.files import digest, read_jsonl

TEXT_KEYS = ("id", "text", "prompt", "category")
QUESTION_KEYS = ("id", "question", "choices", "answer", "category")

_TEXT_FORM = '{"text": ...}, with "prompt" where the text is the answer to one'
_QUESTION_FORM = '{"question": ..., "choices": [..., ...], "answer": one of the choices}'
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class HeldOutText:
    """A text whose tokens a model is to predict."""

    id: str
    """Unique within its file; base and tampered values are paired by it."""
    text: str
    """The text."""
    prompt: str = ""
    """The request that the text answers, put before it under the chat template and not scored; empty: none."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its choices, one of them right."""

    id: str
    """Unique within its file; base and tampered values are paired by it."""
    question: str
    """What is asked, as the user's turn."""
    choices: tuple[str, ...]
    """Two or more answers, all different."""
    right: int
    """Place of the right one among them, from 0."""


def load_texts(source: str, *, base: Path | None = None) -> list[HeldOutText]:
    """Load the held-out texts of a bundled set or of a JSONL file, in file order.

    A line is `{"text"}`, kept exactly as written. Optional keys: `prompt` (the request that the text answers), `id`
    (default: `t` and the row number, from `t0001`) and `category`, which is not used. Other keys are refused.

    Args:
        source: `builtin:` and one of `tamperdose.data.sources.TEXT_SETS`; or a path.
        base: The folder that a relative path starts from; the working directory by default.

    Raises:
        DataError: The file cannot be read or holds no text; a line that is not such an object; a text that is blank or
            cannot be written as UTF-8; two rows with one id or one text.
    """
    path = texts_path(source, base=base)
    rows = [
        HeldOutText(
            id=_id(record, f"t{place:04d}", where),
            text=_text(record, "text", where, form=_TEXT_FORM),
            prompt=_text(record, "prompt", where, form=_TEXT_FORM) if "prompt" in record else "",
        )
        for place, where, record in _records(path, TEXT_KEYS, form=_TEXT_FORM)
    ]
    _reject_repeats(path, "id", [row.id for row in rows])
    _reject_repeats(path, "text", [row.prompt + "\n" + row.text for row in rows])
    return rows


def load_questions(source: str, *, base: Path | None = None) -> list[Question]:
    """Load the questions of a bundled set or of a JSONL file, in file order.

    A line is `{"question", "choices", "answer"}`: two or more different choices, and the right one word for word.
    Optional keys: `id` (default: `q` and the row number, from `q0001`) and `category`, which is not used. Other keys
    are refused.

    Args:
        source: `builtin:` and one of `tamperdose.data.sources.QUESTION_SETS`; or a path.
        base: The folder that a relative path starts from; the working directory by default.

    Raises:
        DataError: The file cannot be read or holds no question; a line that is not such an object; a text that is
            blank or cannot be written as UTF-8; choices that repeat; an answer that is none of them; two rows with one
            id or one question.
    """
    path = questions_path(source, base=base)
    rows = [
        _question(record, f"q{place:04d}", where)
        for place, where, record in _records(path, QUESTION_KEYS, form=_QUESTION_FORM)
    ]
    _reject_repeats(path, "id", [row.id for row in rows])
    _reject_repeats(path, "question", [row.question for row in rows])
    return rows


def texts_digest(rows: Sequence[HeldOutText]) -> str:
    """Digest of everything in the texts that a value can depend on."""
    return digest([[row.id, row.text, row.prompt] for row in rows])


def questions_digest(rows: Sequence[Question]) -> str:
    """Digest of everything in the questions that a value can depend on."""
    return digest([[row.id, row.question, list(row.choices), row.right] for row in rows])


def _records(path: Path, keys: Sequence[str], *, form: str) -> list[tuple[int, str, dict[str, Any]]]:
    """Each row's number from 1, where it stands, and its object; only known keys."""
    records = read_jsonl(path)
    if not records:
        raise DataError(explain(f"{path} holds no rows", got="an empty file", expected=f"lines of {form}"))
    for number, record in records:
        for key in record:
            if key not in keys:
                name = excerpt(key, 30)
                what = f"{path} line {number}: unknown key {name}{nearest(key, keys)}"
                raise DataError(explain(what, expected=", ".join(keys)))
    return [(place, f"{path} line {number}", record) for place, (number, record) in enumerate(records, 1)]


def _question(record: dict[str, Any], default_id: str, where: str) -> Question:
    question = _text(record, "question", where, form=_QUESTION_FORM)
    answer = _text(record, "answer", where, form=_QUESTION_FORM)
    listed: object = record.get("choices")
    if not isinstance(listed, list) or len(cast(list[object], listed)) < 2:
        got = "no choices" if listed is None else excerpt(str(record["choices"]))
        raise DataError(explain(f"{where}: 'choices' is not a list of two or more texts", got=got))
    numbered = {f"choice {place}": choice for place, choice in enumerate(cast(list[object], listed), 1)}
    choices = tuple(_text(numbered, name, where, form=_QUESTION_FORM) for name in numbered)
    if len(set(choices)) != len(choices):
        raise DataError(explain(f"{where}: two choices are the same", got=", ".join(map(excerpt, choices[:_SHOWN]))))
    if answer not in choices:
        raise DataError(
            explain(
                f"{where}: 'answer' is none of the choices",
                got=excerpt(answer),
                expected="one of " + ", ".join(map(excerpt, choices[:_SHOWN])),
                remedy="repeat the right choice word for word; its number or letter will not do",
            )
        )
    return Question(_id(record, default_id, where), question, choices, choices.index(answer))


def _id(record: dict[str, Any], default: str, where: str) -> str:
    return _text(record, "id", where, form="a text").strip() if "id" in record else default


def _text(record: dict[str, Any], key: str, where: str, *, form: str) -> str:
    return read_text_field(record, key, where, forms=form, purpose=form)


def _reject_repeats(path: Path, key: str, values: Sequence[str]) -> None:
    first: dict[str, int] = {}
    for number, value in enumerate(values, 1):
        if value in first:
            raise DataError(
                explain(
                    f"{path} repeats values of '{key}'",
                    got=f"rows {first[value]} and {number}: {excerpt(value)}",
                    expected="each only once: values are paired by id, and a repeated row would count twice",
                    remedy="delete or rename one of the two",
                )
            )
        first[value] = number
