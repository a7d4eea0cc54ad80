"""Load prompts from a CSV file, and infer which of them are one template with other fillings."""

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tamperdose.data.sources import BUILTIN, PROMPT_SETS, excerpt, prompts_path
from tamperdose.errors import DataError, explain
from tamperdose.files import read_csv
from tamperdose.records import Message, Prompt, Subset

_SHOWN = 5

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
    """Load the prompts of a bundled set or of a CSV file, in file order.

    The column `prompt` is required and kept exactly as written. Optional columns: `id` (default: `p` and the row
    number, from `p0001`), `category`, `template` (default: :func:`infer_template`) and `answer` (the right answer,
    where it is known: see `exact_answer_rate`), each also where a cell is empty. Other columns are ignored. A row
    number counts data rows from 1, the header and blank lines left out.

    Args:
        source: `builtin:redteam_eval`, `builtin:benign_eval`, or the path of a CSV file.
        subset: What the prompts are; a bundled set can only be loaded as what it is.
        base: The folder that a relative path starts from; the working directory by default.

    Raises:
        DataError: The file is missing, not UTF-8, not a CSV, or holds NUL bytes; it has no row or no column
            `prompt`; a prompt is blank; two prompts are equal but for white space; two rows have one id.
    """
    _require_subset(source, subset)
    path = prompts_path(source, base=base)
    _, rows = read_csv(path, required=("prompt",))
    if not rows:
        raise DataError(explain(f"{path} holds no prompts", got="a header only", expected="at least one row"))
    texts = [row["prompt"] for row in rows]
    ids = [row.get("id", "").strip() or f"p{number:04d}" for number, row in enumerate(rows, 1)]
    _reject_blank(path, texts)
    _reject_repeats(path, "prompt", [" ".join(text.split()) for text in texts])
    _reject_repeats(path, "id", ids)
    return [
        Prompt(
            id=prompt_id,
            messages=(Message("user", text),),
            subset=subset,
            template=row.get("template", "").strip() or infer_template(text),
            category=row.get("category", "").strip(),
            answer=row.get("answer", "").strip(),
        )
        for prompt_id, text, row in zip(ids, texts, rows, strict=True)
    ]


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
    actual = PROMPT_SETS.get(source.removeprefix(BUILTIN)) if source.startswith(BUILTIN) else None
    if actual is not None and actual is not subset:
        raise DataError(
            explain(
                f"'{source}' is not a set of {subset} prompts",
                got=f"a set of {actual} prompts",
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
