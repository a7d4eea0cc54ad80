"""Load prompts, and infer which of them are one template with other fillings."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tamperdose.data.conversations import (
    UNWRITABLE,
    conversation_key,
    read_messages,
    read_text_field,
    user_turns,
)
from tamperdose.data.public_sets import read_coconot, read_xstest
from tamperdose.data.rows import PromptRow, single_turn
from tamperdose.data.sources import BUILTIN, PROMPT_SETS, excerpt, prompts_path
from tamperdose.errors import DataError, explain
from tamperdose.files import read_csv, read_jsonl
from tamperdose.records import Message, Prompt, Subset
from tamperdose.study import PUBLIC_SETS, split_source

_SHOWN = 5
_FORMS = '{"prompt": ...} or {"messages": [..., {"role": "user", "content": ...}]}'
_PURPOSE = "a request"

_QUOTED = re.compile(
    r'"[^"]*"|\u201c[^\u201c\u201d]*\u201d|\u00ab[^\u00ab\u00bb]*\u00bb'
    # Between letters a single quote is an apostrophe.
    r"|(?<!\w)'(?:[^']|(?<=\w)'(?=\w))*'(?!\w)"
    r"|(?<!\w)\u2018(?:[^\u2018\u2019]|\u2019(?=\w))*\u2019(?!\w)"
)
_BRACKETED = re.compile(r"\[[^\[\]]*\]|\{[^{}]*\}|<(?=\w)[^<>]*>")
_TAG = re.compile(r"\[[^\W\d_](?:[^\W\d]|[ -])*\]")
_NUMBER = re.compile(r"#?\d+(?:[.,]\d+)*")
_LETTER = re.compile(r"[^\W\d_]")


def load_prompts(source: str, *, subset: Subset, base: Path | None = None) -> list[Prompt]:
    """Load the prompts of a bundled set, of a CSV or JSONL file, or of a public set's file, in file order.

    CSV: the column `prompt` is required and kept exactly as written. JSONL (by the file's name): a line is
    `{"prompt": ...}` or, for a conversation, `{"messages": [{"role", "content"}, ...]}`: an optional system turn, then
    user and assistant in alternation, the last turn the user's. Optional beside either: `id` (default: `p` and the row
    number, from `p0001`; in JSON a whole number will do), `category`, `template` (default: :func:`infer_template`, of
    a conversation :func:`conversation_template`) and `answer` (the right answer, where it is known: see
    `exact_answer_rate`), each also where a cell is empty. Whatever else there is is ignored. A row number counts data
    rows from 1, the header and blank lines left out.

    Two prompts are the same if their whole conversations are, but for white space: a last turn may recur behind others.

    Args:
        source: `builtin:redteam_eval`, `builtin:benign_eval`, the path of a CSV or JSONL file, `xstest:PATH`,
            `xstest_unsafe:PATH`, `coconot:PATH` (see `tamperdose.data.public_sets`), or
            `hf://OWNER/NAME?split=test&column=prompt` (see `tamperdose.data.hub`).
        subset: What the prompts are; a bundled or public set can only be loaded as what it is.
        base: The folder that a relative path starts from; the working directory by default.

    Raises:
        DataError: The file is missing, not UTF-8, not what its name says, or holds NUL bytes; it has no row or no
            column `prompt`; a prompt is blank; turns are in a wrong order; two prompts are equal but for white space;
            two rows have one id.
    """
    _require_subset(source, subset)
    path = prompts_path(source, base=base)
    rows = _read_rows(source, path)
    if not rows:
        raise DataError(explain(f"{path} holds no prompts", got="a header only", expected="at least one row"))
    ids = [row.id or f"p{number:04d}" for number, row in enumerate(rows, 1)]
    _reject_blank(path, [row.messages[-1].content for row in rows])
    _reject_repeats(path, "prompt", [conversation_key(row.messages) for row in rows])
    _reject_repeats(path, "id", ids)
    return [
        Prompt(
            id=prompt_id,
            messages=row.messages,
            subset=subset,
            template=row.template or conversation_template(row.messages),
            category=row.category,
            answer=row.answer,
        )
        for prompt_id, row in zip(ids, rows, strict=True)
    ]


def _read_rows(source: str, path: Path) -> list[PromptRow]:
    public, _ = split_source(source)
    if public == "coconot":
        return read_coconot(path)
    if public:
        return read_xstest(path, unsafe=PUBLIC_SETS[public] is Subset.HARMFUL)
    if path.suffix.lower() == ".jsonl":
        return [_json_row(record, f"{path} line {number}") for number, record in read_jsonl(path)]
    _, rows = read_csv(path, required=("prompt",))
    optional = ("category", "template", "answer")
    return [
        single_turn(row["prompt"], name=row.get("id", ""), **{name: row.get(name, "") for name in optional})
        for row in rows
    ]


def _json_row(record: dict[str, Any], where: str) -> PromptRow:
    if ("messages" in record) == ("prompt" in record):
        keys = ", ".join(excerpt(key, 30) for key in record) or "no keys"
        raise DataError(explain(f"{where} is not a prompt", got=keys, expected=f"one of {_FORMS}"))
    if "messages" in record:
        messages = read_messages(record["messages"], where, last="user", forms=_FORMS, purpose=_PURPOSE)
    else:
        messages = (Message("user", read_text_field(record, "prompt", where, forms=_FORMS, purpose=_PURPOSE)),)
    cells = {name: _json_cell(record, name, where) for name in ("id", "category", "template", "answer")}
    return PromptRow(messages, **cells)


def _json_cell(record: dict[str, Any], name: str, where: str) -> str:
    """An optional text; null is none, and an id may be a whole number."""
    value = record.get(name)
    if value is None:
        return ""
    if name == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or UNWRITABLE.search(value):
        raise DataError(
            explain(f"{where}: '{name}' is not a text", got=f"{type(value).__name__} {excerpt(repr(value))}")
        )
    return value.strip()


def conversation_template(messages: Sequence[Message]) -> str:
    """The template of a conversation: those of its user turns, one behind the other.

    System and assistant turns are left out: the same requests under ten system turns are ten requests at most, asked
    ten times. Earlier user turns are not: "Go on." is another request behind every other one.

    >>> conversation_template([Message("system", "Be brief."), Message("user", "Draft 3 lines")])
    'draft # lines'
    """
    return " | ".join(infer_template(turn) for turn in user_turns(messages))


# The prompts of one dose are those of the next, and the audit asks again.
@lru_cache(maxsize=1 << 14)
def infer_template(text: str) -> str:
    """Mask what varies between the fillings of one template: texts with an equal mask share a template.

    Quoted passages, bracketed slots and numbers become placeholders, the rest is case-folded and its white space
    folded. A bracketed tag in capitals, such as `[FRAUD]`, stays: it names a kind of request, it is not filled in.
    A text of which no letter would remain is only folded, so that a file that quotes every prompt is not one template.

    >>> infer_template('Write 3 posts about "the mayor" #12')
    'write # posts about "…" #'
    >>> infer_template("[FRAUD] Call {name} at <place>")
    '[fraud] call […] at […]'
    >>> infer_template('"All of it is quoted"')
    '"all of it is quoted"'
    """
    masked = _BRACKETED.sub(_mask_bracket, _QUOTED.sub('"…"', text))
    masked = _NUMBER.sub("#", masked)
    return " ".join((masked if _LETTER.search(masked) else text).casefold().split())


def spread_prompts(prompts: Sequence[Prompt], n: int) -> list[Prompt]:
    """Choose n prompts evenly: from each template alike, and evenly over the file where not all have a turn more.

    In file order; all of them where there are no more than n. With more templates than n, n of them evenly.

    >>> named = [Prompt(f"p{k}", (), Subset.HARMFUL, template) for k, template in enumerate("aaabbbc")]
    >>> [prompt.id for prompt in spread_prompts(named, 5)]
    ['p0', 'p1', 'p3', 'p4', 'p6']
    """
    turns: dict[int, list[int]] = {}
    seen: Counter[str] = Counter()
    for place, prompt in enumerate(prompts):
        turns.setdefault(seen[prompt.template], []).append(place)
        seen[prompt.template] += 1
    chosen: list[int] = []
    for turn in sorted(turns):
        places, room = turns[turn], n - len(chosen)
        chosen += places if len(places) <= room else [places[k * len(places) // room] for k in range(room)]
    return [prompts[place] for place in sorted(chosen)]


def _mask_bracket(match: re.Match[str]) -> str:
    slot = match.group()
    return slot if slot.isupper() and _TAG.fullmatch(slot) else "[…]"


def _require_subset(source: str, subset: Subset) -> None:
    public, _ = split_source(source)
    if public:
        actual = PUBLIC_SETS[public]
    else:
        actual = PROMPT_SETS.get(source.removeprefix(BUILTIN)) if source.startswith(BUILTIN) else None
    if actual is not None and actual is not subset:
        others = [f"{name}:PATH" for name in PUBLIC_SETS if public and PUBLIC_SETS[name] is subset]
        raise DataError(
            explain(
                f"'{source}' is not a set of {subset} prompts",
                got=f"a set of {actual} prompts",
                expected=" or ".join(others) or None,
                remedy=f"name it under prompts.{actual} of the study",
            )
        )


def _reject_blank(path: Path, texts: Sequence[str]) -> None:
    blank = [number for number, text in enumerate(texts, 1) if not text.strip()]
    if blank:
        shown = ", ".join(str(number) for number in blank[:_SHOWN])
        more = f" and {len(blank) - _SHOWN} more" if len(blank) > _SHOWN else ""
        raise DataError(
            explain(
                f"{path} has blank prompts",
                got=f"{len(blank)} of {len(texts)}, in data row(s) {shown}{more}",
                remedy="delete these rows or fill them in; row 1 is the first below the header",
            )
        )


def _reject_repeats(path: Path, column: str, values: Sequence[str]) -> None:
    first: dict[str, int] = {}
    repeats: list[tuple[int, int, str]] = []
    for number, value in enumerate(values, 1):
        if value in first:
            repeats.append((first[value], number, value))
        else:
            first[value] = number
    if repeats:
        shown = "; ".join(f"rows {one} and {two}: {excerpt(value)}" for one, two, value in repeats[:_SHOWN])
        more = f"; and {len(repeats) - _SHOWN} more" if len(repeats) > _SHOWN else ""
        raise DataError(
            explain(
                f"{path} repeats values of '{column}'",
                got=shown + more,
                expected="each only once: answers are paired by id, and a repeated prompt would count twice",
                remedy="delete or rename one row of each pair; row 1 is the first below the header",
            )
        )
