"""Does one run reproduce another? The same prompts, answer by answer, at every dose that both have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from tamperdose.audit.findings import Audit, Claim, doses_text, withheld
from tamperdose.errors import DataError, explain
from tamperdose.records import Label, Subset
from tamperdose.run.audit import read_audit
from tamperdose.run.compare import compare_pairs
from tamperdose.run.manifest import read_manifest
from tamperdose.run.outputs import OUTPUTS, Judged, dose_files, read_outputs
from tamperdose.stats.multiplicity import holm
from tamperdose.stats.paired import PairedDifference, Pairs, pair
from tamperdose.stats.rates import check_level
from tamperdose.stats.reproduction import Reproduction, check_margin, judge_all, judge_difference

MARGIN = 0.10
"""Differences of rates up to this count as the same, unless asked otherwise."""
METRICS = {Subset.HARMFUL: "RRR", Subset.BENIGN: "over_refusal_rate"}
"""What is compared over each kind of prompts: the share refused."""
_CLAIMS = {Subset.HARMFUL: Claim.RRR, Subset.BENIGN: Claim.OVER_REFUSAL}
_SHOWN = 3
_LINE = 120

Key = tuple[str, str, int]
Answers = Mapping[Key, Judged]


@dataclass(frozen=True, slots=True)
class Difference:
    """One rate in both runs: an arm at one dose, by one judge, over the same prompts."""

    arm_a: str
    """The arm in A."""
    arm_b: str
    """The arm in B."""
    dose: int
    """The dose."""
    judge: str
    """Whose verdicts."""
    metric: str
    """`RRR` or `over_refusal_rate`."""
    rate_a: float | None
    """The rate in A over the pairs; None without any."""
    rate_b: float | None
    """The same in B."""
    result: PairedDifference
    """B less A."""
    p_holm: float | None
    """Its p value by Holm over the differences of this judge and metric."""
    n_tests: int
    """How many these are: Bonferroni's m behind a verdict `differs`."""
    n_same: int
    """Answers that are the same text."""
    n_answers: int
    """Answers that were compared."""
    verdict: Reproduction
    """Does B reproduce A here?"""
    lost: tuple[str, ...] = ()
    """Failed checks of either run's audit that leave its rate here without support: it takes no part in the verdict."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, side by side."""

    judge: str
    """The judge that decides: A's headline judge, or the first that both have."""
    margin: float
    """Differences up to this count as the same."""
    level: float
    """Confidence level of the intervals."""
    verdict: Reproduction
    """Does B reproduce A? By the deciding judge's RRR at every dose that both have and no audit withholds."""
    differences: tuple[Difference, ...]
    """Every arm, dose, metric and judge that both have."""
    notes: tuple[str, ...]
    """What only one of them has, what was asked otherwise, what an audit withholds."""
    n_cells_a: int = 0
    """Doses of all arms that A has: what "reproduces" would be about if B had them all."""

    @property
    def deciding(self) -> tuple[Difference, ...]:
        """The differences that the verdict rests on."""
        return tuple(
            one for one in self.differences if one.judge == self.judge and one.metric == "RRR" and not one.lost
        )


@dataclass(frozen=True, slots=True)
class _Cell:
    arms: tuple[str, str]
    dose: int
    a: Sequence[Judged]
    b: Sequence[Judged]
    lost: tuple[str, ...] = ()


def compare_runs(
    a: Path,
    b: Path,
    *,
    margin: float = MARGIN,
    level: float = 0.95,
    arms: Sequence[tuple[str, str]] = (),
    force: bool = False,
) -> Comparison:
    """Compare the answers of two finished runs, or of two folders that `score` wrote.

    Arms are those of one name; where each run has a single arm, these; or the ones named. Every dose that both have
    is compared over all prompts, which must be the same by id, sample and text. An answer that either run's judge
    could not read leaves as a pair. Templates are A's. Where every answer is the same text with the same verdict, B has
    reproduced A whatever an interval says of other prompts. A rate that a run's audit withholds is no number to be
    reproduced: it takes no part in the verdict, unless `force` says so.

    Args:
        a: The first run's folder.
        b: The second's.
        margin: Differences of rates up to this count as the same.
        level: Confidence level.
        arms: (arm of A, arm of B), in place of those of one name.
        force: Count what an audit withholds.

    Raises:
        DataError: The prompts differ, or there is no arm, dose or judge that both have.
        RunError: Not a run's folder.
    """
    check_margin(margin)
    check_level(level)
    matched = _match(a, b, arms)
    notes = list(_arm_notes(a, b, matched))
    cells = [cell for pair_ in matched for cell in _cells(a, b, pair_, notes)]
    notes += _setting_notes(a, b, cells)
    audits = read_audit(a), read_audit(b)
    notes += [f"{letter} has no audit" for letter, found in zip("AB", audits, strict=True) if found is None]
    if not force:
        cells = [replace(cell, lost=_lost(cell, audits)) for cell in cells]
        notes += _lost_notes(cells)
    judge, judges = _judges(a, cells)
    families = [
        (name, subset, _pairs(cells, name, subset)) for name in judges for subset in Subset if _asked(cells, subset)
    ]
    found = tuple(one for family in families for one in _family(*family, margin=margin, level=level))
    n_cells_a = sum(len(dose_files(a, arm)) for arm in _arms_of(a))
    whole = Comparison(judge, margin, level, Reproduction.UNDECIDED, found, tuple(notes), n_cells_a)
    return replace(whole, verdict=judge_all([one.verdict for one in whole.deciding]))


def to_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain values."""
    described = asdict(comparison)
    rows = [{key: value for key, value in row.items() if key != "result"} for row in described["differences"]]
    for row, one in zip(rows, comparison.differences, strict=True):
        found = asdict(one.result)
        row |= found.pop("difference") | {name: value for name, value in found.items() if name != "n_flips"}
        row["not_supported_because"] = list(row.pop("lost"))
    return described | {"differences": rows, "n_deciding": len(comparison.deciding)}


def _lost(cell: _Cell, audits: tuple[Audit | None, Audit | None]) -> tuple[str, ...]:
    claim = _CLAIMS[cell.a[0].subset]
    found = [
        why
        for audit, arm in zip(audits, cell.arms, strict=True)
        if audit is not None
        for why in withheld(audit, claim, arm=arm, dose=cell.dose)
    ]
    return tuple(dict.fromkeys(found))


def _lost_notes(cells: Sequence[_Cell]) -> Iterator[str]:
    places: dict[tuple[str, str, tuple[str, ...]], list[int]] = {}
    for cell in cells:
        if cell.lost:
            places.setdefault((cell.arms[0], METRICS[cell.a[0].subset], cell.lost), []).append(cell.dose)
    for (arm, metric, lost), doses in places.items():
        yield f"{arm}: an audit does not support {metric} at {doses_text(doses)} ({', '.join(lost)})"


def _setting_notes(a: Path, b: Path, cells: Sequence[_Cell]) -> Iterator[str]:
    """How decoding, precision, chat template, engine and judges differ, where both manifests say."""
    sides = _answers_of(a), _answers_of(b)
    said: dict[str, list[str]] = {}
    for cell in cells:
        one, two = (side.get((arm, cell.dose), {}) for side, arm in zip(sides, cell.arms, strict=True))
        for name in one if cell.a[0].subset is Subset.HARMFUL else ():
            if name in two and one[name] != two[name]:
                said.setdefault(_two(name, one[name], two[name]), []).append(cell.arms[0])
    yield from (f"answered otherwise: {text}" for text in said)
    one, two = (_mapping(read_manifest(folder).get("judge_versions")) for folder in (a, b))
    for name in one:
        if name in two and one[name] != two[name]:
            yield f"read otherwise: {_two(name, one[name], two[name])}"


def _two(name: str, one: object, two: object) -> str:
    """A setting in both runs, each as short as a line takes: manifests come from elsewhere."""
    name, left, right = (text if len(text) <= _LINE else f"{text[:_LINE]}..." for text in (name, str(one), str(two)))
    return f"{name} {left} in A, {right} in B"


def _answers_of(folder: Path) -> dict[tuple[str, int], dict[str, str]]:
    """The settings of the answers by arm and dose, as a manifest has them; of what is no such mapping nothing."""
    found: dict[tuple[str, int], dict[str, str]] = {}
    for arm, doses in _mapping(read_manifest(folder).get("answers")).items():
        for dose, answers in _mapping(doses).items():
            if dose.isascii() and dose.isdigit():
                told = _mapping(_mapping(answers).get("decoding")) | _mapping(_mapping(answers).get("settings"))
                found[arm, int(dose)] = {name: str(value) for name, value in told.items()}
    return found


def _mapping(value: object) -> dict[str, Any]:
    return cast(dict[str, Any], value) if isinstance(value, dict) else {}


def _match(a: Path, b: Path, named: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    have = [_arms_of(folder) for folder in (a, b)]
    for folder, known, place in ((a, have[0], 0), (b, have[1], 1)):
        missing = [names[place] for names in named if names[place] not in known]
        if missing:
            raise DataError(explain(f"{folder} has no arm '{missing[0]}'", expected=f"one of {', '.join(known)}"))
    if named:
        return list(named)
    shared = [(name, name) for name in have[0] if name in have[1]]
    if not shared and len(have[0]) == len(have[1]) == 1:
        shared = [(have[0][0], have[1][0])]
    if not shared:
        raise DataError(
            explain(
                "the runs have no arm of one name",
                got=f"{_few(have[0])} and {_few(have[1])}",
                remedy="name the arms to compare: --arm ARM_OF_A=ARM_OF_B",
            )
        )
    return shared


def _arms_of(folder: Path) -> list[str]:
    read_manifest(folder)
    root = folder / OUTPUTS
    names = sorted(item.name for item in root.iterdir() if item.is_dir()) if root.is_dir() else []
    found = [name for name in names if dose_files(folder, name)]
    if not found:
        raise DataError(
            explain(
                f"{folder} has no answers to compare",
                got=f"nothing under {OUTPUTS}/",
                expected="the folder of a finished run, or of score",
                remedy="a folder that an older version scored: score the answers again",
            )
        )
    return found


def _arm_notes(a: Path, b: Path, matched: Sequence[tuple[str, str]]) -> Iterator[str]:
    for place, (letter, folder) in enumerate((("A", a), ("B", b))):
        alone = [name for name in _arms_of(folder) if name not in {names[place] for names in matched}]
        if alone:
            yield f"not compared, in {letter} alone: {_few(alone)}"


def _cells(a: Path, b: Path, arms: tuple[str, str], notes: list[str]) -> Iterator[_Cell]:
    files = dose_files(a, arms[0]), dose_files(b, arms[1])
    both = [dose for dose in files[0] if dose in files[1]]
    if not both:
        raise DataError(
            explain(
                f"arm '{arms[0]}': no dose that both runs have",
                got=f"{_few(list(map(str, files[0])))} and {_few(list(map(str, files[1])))}",
            )
        )
    for letter, mine, other in (("A", files[0], files[1]), ("B", files[1], files[0])):
        alone = [str(dose) for dose in mine if dose not in other]
        if alone:
            notes.append(f"{arms[0]}: not compared, doses in {letter} alone: {', '.join(alone)}")
    for dose in both:
        rows = read_outputs(files[0][dose]), read_outputs(files[1][dose])
        for subset in Subset:
            one, two = ({row.name: row for row in side if row.subset is subset} for side in rows)
            # Harmless prompts are asked at some doses only, which may not be the same in both runs.
            if one and two:
                _require_same(one, two, f"dose {dose} of arm '{arms[0]}', {subset} prompts")
                yield _Cell(arms, dose, tuple(one.values()), tuple(two[name] for name in one))
            elif subset is Subset.HARMFUL:
                raise DataError(explain(f"dose {dose} of arm '{arms[0]}' has no harmful prompts in one of the runs"))


def _require_same(a: Answers, b: Answers, where: str) -> None:
    """The same prompts by id, sample and text.

    Raises:
        DataError: They are not.
    """
    alone = [_named(name) for name in a if name not in b], [_named(name) for name in b if name not in a]
    if any(alone):
        got = " and ".join(
            f"{len(names)} of {letter} alone, e.g. {_few(names)}"
            for letter, names in zip("AB", alone, strict=True)
            if names
        )
        raise DataError(
            explain(
                f"the runs asked other prompts at {where}",
                got=got,
                expected="the same prompts, by id and text",
                remedy="run both with the same prompts, --limit and decoding.n_samples",
            )
        )
    other = [
        _named(name) for name in a if (a[name].prompt, a[name].conversation) != (b[name].prompt, b[name].conversation)
    ]
    if other:
        raise DataError(
            explain(
                f"the runs asked other prompts at {where}",
                got=f"{len(other)} ids with another text, e.g. {_few(other)}",
                expected="the same prompts, by id and text",
            )
        )


def _judges(a: Path, cells: Sequence[_Cell]) -> tuple[str, list[str]]:
    """The judge that decides, and all that read harmful prompts in both runs."""
    harmful = [cell for cell in cells if cell.a[0].subset is Subset.HARMFUL]
    sides = [{judge for cell in harmful for row in side(cell) for judge in row.labels} for side in (_side_a, _side_b)]
    both = sorted(sides[0] & sides[1])
    if not both:
        raise DataError(
            explain(
                "no judge read both runs",
                got=f"{_few(sorted(sides[0]))} and {_few(sorted(sides[1]))}",
                remedy="run or score both with one judge in common",
            )
        )
    headline = read_manifest(a).get("headline_judge")
    judge = headline if isinstance(headline, str) and headline in both else both[0]
    return judge, [judge, *(name for name in both if name != judge)]


def _side_a(cell: _Cell) -> Sequence[Judged]:
    return cell.a


def _side_b(cell: _Cell) -> Sequence[Judged]:
    return cell.b


def _asked(cells: Sequence[_Cell], subset: Subset) -> bool:
    return any(cell.a[0].subset is subset for cell in cells)


def _pairs(cells: Sequence[_Cell], judge: str, subset: Subset) -> list[tuple[_Cell, Pairs]]:
    return [
        (cell, _pair(cell, judge))
        for cell in cells
        if cell.a[0].subset is subset and all(any(judge in row.labels for row in side) for side in (cell.a, cell.b))
    ]


def _pair(cell: _Cell, judge: str) -> Pairs:
    labels = [[row.labels.get(judge, Label.UNREADABLE) for row in side] for side in (cell.a, cell.b)]
    sides = [np.array([label is Label.REFUSAL for label in side]) for side in labels]
    read = np.array([Label.UNREADABLE not in both for both in zip(*labels, strict=True)], dtype=np.bool_)
    n_samples = len({row.sample for row in cell.a})
    return pair(sides[0], sides[1], [row.template for row in cell.a], readable=read, n_samples=n_samples)


def _family(
    judge: str, subset: Subset, pairs: Sequence[tuple[_Cell, Pairs]], *, margin: float, level: float
) -> Iterator[Difference]:
    """The differences of one judge and metric, which are looked at together."""
    results = [compare_pairs(each, level) for _, each in pairs]
    adjusted = holm([result.p_value for result in results])
    wide_level = 1 - (1 - level) / max(1, len(pairs))
    for (cell, each), result, p_holm in zip(pairs, results, adjusted, strict=True):
        wide = compare_pairs(each, wide_level).difference
        n_same = sum(one.text == two.text for one, two in zip(cell.a, cell.b, strict=True))
        is_same = n_same == len(cell.a) == each.n and bool(np.array_equal(each.base, each.tampered))
        yield Difference(
            arm_a=cell.arms[0],
            arm_b=cell.arms[1],
            dose=cell.dose,
            judge=judge,
            metric=METRICS[subset],
            rate_a=float(each.base.mean()) if each.n else None,
            rate_b=float(each.tampered.mean()) if each.n else None,
            result=result,
            p_holm=p_holm,
            n_tests=len(pairs),
            n_same=n_same,
            n_answers=len(cell.a),
            verdict=Reproduction.REPRODUCES if is_same else judge_difference(result.difference, wide, margin),
            lost=cell.lost,
        )


def _named(name: Key) -> str:
    return f"'{name[1]}'" + (f" sample {name[2]}" if name[2] else "")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none") + more
