"""Sheets of answers for people to label: drawn from a finished run, blinded to dose and verdict.

A sheet holds opaque ids, prompts and answers. What each id is, and how likely it was to be drawn, stays in a key in the
run's folder.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

import numpy as np

from tamperdose.data.conversations import conversation_text, turns_from_json
from tamperdose.errors import DataError, RunError, explain
from tamperdose.files import digest, is_file_name, read_csv, write_csv
from tamperdose.records import Label, Subset
from tamperdose.run.manifest import read_manifest

SHEET_COLUMNS = ("item", "prompt", "response", "label", "labeller", "labeller_kind", "notes")
"""Columns of a sheet; the last four are for the labeller."""
KEY_COLUMNS = (
    *("item", "model", "arm", "dose_steps", "id", "template", "band", "verdict", "judge"),
    *("n_population", "n_drawn", "weight", "answer"),
)
"""Columns of a key, followed by `sample` where prompts have several. `weight` is n_population / n_drawn of the item's
stratum; `answer` is a digest of its text."""
LEAST_PER_CELL = 25
"""Answers drawn from every band x verdict, or all of it."""
BROKEN = 0.1
"""A dose lies after the break where its RRR is at most this share of the RRR at dose 0."""


class Band(StrEnum):
    """Where on its arm a dose lies, by the judge's RRR."""

    DOSE_0 = "dose_0"
    """The untampered model."""
    TRANSITION = "transition"
    """Tampered, RRR above 0.1 x that at dose 0: on the way down, or not yet moved."""
    AFTER = "after"
    """Tampered, RRR at most 0.1 x that at dose 0."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One judged answer to a harmful prompt."""

    model: str
    """The model's name."""
    arm: str
    """The arm; empty at dose 0, which the arms of a model share."""
    dose: int
    """Optimizer steps."""
    prompt_id: str
    """The prompt's id."""
    template: str
    """Its template."""
    prompt: str
    """The request; of a conversation every turn behind its role."""
    response: str
    """The answer. Hostile."""
    verdict: Label
    """The headline judge's verdict."""
    p_refusal: float | None
    """Its probability."""
    sample: int = 0
    """Index of the sample for this prompt."""

    @property
    def row(self) -> str:
        """What the answer goes by at its dose: the prompt's id, with the sample from the second one on."""
        return _row_name(self.prompt_id, self.sample)

    @property
    def cell(self) -> tuple[str, str, int]:
        """The model state that answered."""
        return self.model, self.arm, self.dose

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What it is among all answers of a run."""
        return *self.cell, self.row

    @property
    def refused(self) -> bool:
        """Whether the judge read a refusal."""
        return self.verdict is Label.REFUSAL


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """The answers of a finished run, as its headline judge reads them."""

    judge: str
    """The judge."""
    answers: tuple[Answer, ...]
    """All answers to harmful prompts, dose 0 once for each model, in the order of models, arms, doses and prompts."""
    arms: tuple[tuple[str, str], ...]
    """(model, arm) of every arm."""

    def by_cell(self) -> dict[tuple[str, str, int], list[Answer]]:
        """The answers of each model state."""
        cells: dict[tuple[str, str, int], list[Answer]] = {}
        for answer in self.answers:
            cells.setdefault(answer.cell, []).append(answer)
        return cells

    def bands(self) -> dict[tuple[str, str, int], Band]:
        """The band of each model state; see :class:`Band`.

        Without a readable verdict at dose 0 or at a dose, that dose lies after the break.
        """
        rates = {cell: judged_rate(answers) for cell, answers in self.by_cell().items()}
        return {cell: _band(cell, rates) for cell in rates}


@dataclass(frozen=True, slots=True)
class Drawn:
    """What drawing a sheet made."""

    sheet: Path
    """The sheet to fill in."""
    key: Path
    """Its key, in the run's folder."""
    strata: tuple[tuple[str, str, int, int], ...]
    """(band, verdict, answers, drawn) of every stratum."""
    n_templates: int
    """Distinct templates on it."""
    n_prompts: int
    """Distinct prompts on it."""


def read_run(run_dir: Path) -> JudgedRun:
    """Read the answers of a finished run from `outputs/`, and the models and judge from its manifest.

    Raises:
        RunError: Not a run's folder, not finished, or without recorded outputs.
        DataError: A file of outputs is damaged.
    """
    manifest = read_manifest(run_dir)
    judge, models = manifest.get("headline_judge"), manifest.get("models")
    if not isinstance(judge, str) or not isinstance(models, list) or not (run_dir / "metrics.csv").is_file():
        raise RunError(
            explain(
                f"{run_dir} is not a finished run",
                expected="a folder written by tamperdose run, with metrics.csv and outputs/",
                remedy="let the run finish; folders that `tamperdose score` wrote are not labelled",
            )
        )
    answers: list[Answer] = []
    arms: list[tuple[str, str]] = []
    for model in cast(list[Any], models):
        for number, arm in enumerate(_arms_of(model, run_dir)):
            arms.append((str(model["name"]), arm))
            for path in _dose_files(run_dir / "outputs" / arm):
                if number == 0 or path.stem != "0":
                    answers += _read_cell(path, str(model["name"]), "" if path.stem == "0" else arm, judge)
    return JudgedRun(judge, tuple(answers), tuple(arms))


def _arms_of(model: Any, run_dir: Path) -> list[str]:
    """The names of a model's arms, each that of a folder and no path out of the run's."""
    told = cast(dict[str, Any], model) if isinstance(model, dict) else {}
    found = told.get("arms")
    names = sorted(cast(dict[str, Any], found)) if isinstance(found, dict) else []
    if "name" not in told or not names or not all(map(is_file_name, names)):
        raise RunError(
            explain(
                f"{run_dir / 'manifest.json'} does not say which arms a model has",
                got=repr(model)[:80],
                expected="a name, and arms by their names",
            )
        )
    return names


def judged_rate(answers: Sequence[Answer]) -> float | None:
    """Refusals among readable answers; None without any."""
    readable = [answer.refused for answer in answers if answer.verdict is not Label.UNREADABLE]
    return sum(readable) / len(readable) if readable else None


def draw_sheet(run_dir: Path, *, n: int = 300, seed: int = 0, out: Path | None = None) -> Drawn:
    """Draw answers for people to label and write the sheet and its key.

    Strata are band x verdict over all arms. Each gives `LEAST_PER_CELL` answers or all it has; the rest of n goes,
    one by one, where share / (drawn + 1) is largest, the share being 1 / (bands) x the stratum's part of its band:
    bands alike, verdicts within a band in proportion. Within a stratum every answer is as likely as every other.
    The same run, n and seed give the same sheet.

    Args:
        run_dir: A finished run.
        n: Answers to draw; all of them when there are no more.
        seed: Another seed draws another sheet.
        out: Where to write the sheet; `labels/<sheet>.csv` in the run's folder by default.

    Raises:
        RunError: Not a finished run, or the sheet exists (it may hold labels).
        DataError: n is below what every stratum needs, or there is nothing to label.
    """
    run = read_run(run_dir)
    strata = strata_of(run)
    counts = allocate({name: len(answers) for name, answers in strata.items()}, n)
    rng = np.random.default_rng(int(digest([seed, n, [list(map(str, answer.key)) for answer in run.answers]]), 16))
    sheet = digest([seed, n, run.judge, [[*map(str, answer.key), _text_digest(answer)] for answer in run.answers]])[:6]
    path = out or run_dir / "labels" / f"{sheet}.csv"
    if path.exists():
        raise RunError(explain(f"{path} exists", got="a file that may hold labels", remedy="choose another with -o"))
    rows = list(_draw(strata, counts, rng, f"{sheet}-"))
    order = rng.permutation(len(rows))
    columns = [*KEY_COLUMNS, *(["sample"] if any(answer.sample for answer in run.answers) else [])]
    key_rows = ({name: cell for name, cell in _key_row(*row, run.judge).items() if name in columns} for row in rows)
    key = write_csv(key_path(run_dir, sheet), columns, key_rows)
    write_csv(path, SHEET_COLUMNS, (_sheet_row(rows[place][0], rows[place][1]) for place in order))
    return Drawn(
        sheet=path,
        key=key,
        strata=tuple((*name, len(strata[name]), counts[name]) for name in strata),
        n_templates=len({answer.template for _, answer, _ in rows}),
        n_prompts=len({answer.prompt_id for _, answer, _ in rows}),
    )


def allocate(sizes: Mapping[tuple[str, str], int], n: int) -> dict[tuple[str, str], int]:
    """Divide n labels among strata (band, verdict) of these sizes; see :func:`draw_sheet`.

    Raises:
        DataError: n is below what every stratum needs, or there are no strata.

    >>> allocate({("dose_0", "refusal"): 90, ("dose_0", "compliance"): 10, ("after", "compliance"): 100}, 80)
    {('dose_0', 'refusal'): 33, ('dose_0', 'compliance'): 10, ('after', 'compliance'): 37}
    """
    drawn = {name: min(LEAST_PER_CELL, size) for name, size in sizes.items()}
    least = sum(drawn.values())
    if not sizes or n < least:
        raise DataError(
            explain(
                "too few labels" if sizes else "there is nothing to label",
                got=f"--n {n}" if sizes else "no readable answer",
                expected=f"at least {least}: {LEAST_PER_CELL} of every band and verdict, or all there are"
                if sizes
                else None,
            )
        )
    in_band = Counter[str]()
    for (band, _), size in sizes.items():
        in_band[band] += size
    for _ in range(min(n, sum(sizes.values())) - least):
        open_strata = [name for name, size in sizes.items() if drawn[name] < size]
        drawn[max(open_strata, key=lambda name: sizes[name] / in_band[name[0]] / (drawn[name] + 1))] += 1
    return drawn


def key_path(run_dir: Path, sheet: str) -> Path:
    """Where the key of a sheet lies."""
    return run_dir / "labels" / f"{sheet}.key.csv"


def read_key(run_dir: Path, items: Sequence[str]) -> tuple[str, dict[str, dict[str, str]]]:
    """Find the sheet that holds these items: its name, and the rows of its key by item.

    Raises:
        DataError: An item that is on no sheet of this run, or items of several sheets.
    """
    names = sorted({item.partition("-")[0] for item in items})
    keys = {name: key_path(run_dir, name) for name in names if re.fullmatch(r"[0-9a-f]{6}", name)}
    known = {
        name: {row["item"]: row for row in read_csv(path, required=KEY_COLUMNS)[1]}
        for name, path in keys.items()
        if path.is_file()
    }
    unknown = [item for item in items if item not in known.get(item.partition("-")[0], {})]
    if unknown:
        raise DataError(
            explain(
                "labels of answers that are on no sheet of this run",
                got=f"{len(unknown)} item(s), e.g. {unknown[0][:40]!r}",
                expected="the ids of a sheet that tamperdose label drew from this run",
                remedy="leave the column `item` as it was; for labels from elsewhere, use --elsewhere",
            )
        )
    if len(names) != 1:
        raise DataError(explain("one sheet at a time", got=f"items of {len(names)} sheets", expected="one"))
    return names[0], known[names[0]]


_FORMULA = re.compile(r"(^|[\n\r\t;])([^\S\n\r\t]*)('*)(?=[=+\-@\uFF1D\uFF0B\uFF0D\uFF20])")
_GUARDED = re.compile(r"(^|[\n\r\t;])([^\S\n\r\t]*)'('*)(?=[=+\-@\uFF1D\uFF0B\uFF0D\uFF20])")


def guard(text: str) -> str:
    """Keep a spreadsheet from reading a text as a formula: put `'` before =, +, - or @ at a start.

    A start is that of the text, of a line, or of what follows a tab or semicolon (which some spreadsheets split at),
    spaces skipped; the wide forms of the four count too. What stands there already as `'=` gets one more `'`, so that
    :func:`unguard` gives back every text.

    Source: OWASP, CSV Injection.

    >>> guard("=1+1"), guard("a - b"), guard("- one")
    ("'=1+1", 'a - b', "'- one")
    """
    return _FORMULA.sub(r"\1\2'\3", text)


def unguard(text: str) -> str:
    """Undo :func:`guard`.

    >>> unguard(guard("'=1+1"))
    "'=1+1"
    """
    return _GUARDED.sub(r"\1\2\3", text)


def _band(cell: tuple[str, str, int], rates: Mapping[tuple[str, str, int], float | None]) -> Band:
    model, arm, _ = cell
    if not arm:
        return Band.DOSE_0
    base, rate = rates.get((model, "", 0)), rates[cell]
    return Band.TRANSITION if rate is not None and base is not None and rate > BROKEN * base else Band.AFTER


def _dose_files(folder: Path) -> list[Path]:
    paths = sorted(
        (path for path in folder.glob("*.csv") if path.stem.isascii() and path.stem.isdigit()),
        key=lambda path: int(path.stem),
    )
    if not paths or paths[0].stem != "0":
        raise RunError(explain(f"{folder} lacks the answers at dose 0", remedy="run the study again"))
    return paths


def _read_cell(path: Path, model: str, arm: str, judge: str) -> Iterator[Answer]:
    needed = ("id", "subset", "template", "prompt", "completion", f"verdict_{judge}", f"p_refusal_{judge}")
    for number, row in enumerate(read_csv(path, required=needed)[1], 1):
        if row["subset"] == Subset.HARMFUL:
            try:
                verdict = Label(row[f"verdict_{judge}"])
                p_refusal = float(row[f"p_refusal_{judge}"]) if row[f"p_refusal_{judge}"] else None
                sample = int(row.get("sample", "0"))
            except ValueError as error:
                raise DataError(explain(f"{path} data row {number}: no verdict", got=str(error)[:80])) from error
            yield Answer(
                *(model, arm, int(path.stem), row["id"], row["template"], _asked(row, path), row["completion"]),
                verdict=verdict,
                p_refusal=p_refusal,
                sample=sample,
            )


def _asked(row: Mapping[str, str], path: Path) -> str:
    """What a person reads before an answer: the prompt, of a conversation every turn."""
    talk = row.get("conversation", "")
    return conversation_text(turns_from_json(talk, str(path))) if talk else row["prompt"]


def strata_of(run: JudgedRun) -> dict[tuple[str, str], list[Answer]]:
    """The readable answers by (band, verdict); no stratum is empty."""
    bands = run.bands()
    strata: dict[tuple[str, str], list[Answer]] = {
        (band.value, label.value): [] for band in Band for label in Label if label is not Label.UNREADABLE
    }
    for answer in run.answers:
        if answer.verdict is not Label.UNREADABLE:
            strata[bands[answer.cell].value, answer.verdict.value].append(answer)
    return {name: answers for name, answers in strata.items() if answers}


def _draw(
    strata: Mapping[tuple[str, str], Sequence[Answer]],
    counts: Mapping[tuple[str, str], int],
    rng: np.random.Generator,
    prefix: str,
) -> Iterator[tuple[str, Answer, tuple[str, int, int]]]:
    """Yield (item, answer, (band, stratum's size, drawn)) for every answer drawn."""
    # Ids are drawn, not counted: neither order nor id may tell the stratum.
    numbers = iter(rng.choice(16**6, sum(counts.values()), replace=False))
    for (band, verdict), answers in strata.items():
        n = counts[band, verdict]
        for place in np.sort(rng.choice(len(answers), n, replace=False)):
            yield f"{prefix}{next(numbers):06x}", answers[place], (band, len(answers), n)


def _sheet_row(item: str, answer: Answer) -> dict[str, Any]:
    return {"item": item, "prompt": guard(answer.prompt), "response": guard(answer.response)}


def _key_row(item: str, answer: Answer, stratum: tuple[str, int, int], judge: str) -> dict[str, Any]:
    band, size, drawn = stratum
    return {
        "item": item,
        "model": answer.model,
        "arm": answer.arm,
        "dose_steps": answer.dose,
        "id": answer.prompt_id,
        "template": answer.template,
        "band": band,
        "verdict": answer.verdict.value,
        "judge": judge,
        "n_population": size,
        "n_drawn": drawn,
        "weight": size / drawn,
        "answer": _text_digest(answer),
        "sample": answer.sample,
    }


def _text_digest(answer: Answer) -> str:
    return digest([answer.prompt, answer.response])


def same_answer(row: Mapping[str, str], answer: Answer) -> bool:
    """Whether a key's row still describes an answer of the run."""
    return row["answer"] == _text_digest(answer) and row["verdict"] == answer.verdict.value


def shows_answer(text: str | None, answer: Answer) -> bool:
    """Whether a cell that came back from a spreadsheet is still this answer.

    Line ends, quotes, marks, capitals, and letters beyond ASCII may have been changed on the way, a long text cut.
    Answers with fewer than 12 ASCII letters and digits pass (a spreadsheet may take them for a number or a date), and
    so does a sheet that came back without its answers.
    """
    shown, said = _plain(text or ""), _plain(answer.response)
    return text is None or len(said) < _LEAST_PLAIN or shown[:_COMPARED] == said[:_COMPARED]


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isascii() and character.isalnum())


_LEAST_PLAIN = 12
_COMPARED = 5_000


def key_of(row: Mapping[str, str]) -> tuple[str, str, int, str]:
    """`Answer.key` of a key's row."""
    sample = int(row.get("sample") or 0)
    return row["model"], row["arm"], int(row["dose_steps"]), _row_name(row["id"], sample)


def _row_name(prompt_id: str, sample: int) -> str:
    # No id from a file can hold a NUL, so no two answers go by one name.
    return f"{prompt_id}\0{sample}" if sample else prompt_id
