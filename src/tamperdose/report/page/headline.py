"""What a run says in a sentence, and the few figures beside it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tamperdose.audit.findings import Audit, Claim, Outcome
from tamperdose.records import Scope
from tamperdose.report.controls import controls_of
from tamperdose.report.lost_doses import lost_row
from tamperdose.report.page.blocks import Table
from tamperdose.report.page.facts import Facts
from tamperdose.report.page.numbers import number
from tamperdose.report.responses import dose_text, read_fits, read_responses, why_undefined
from tamperdose.report.select import Arm
from tamperdose.report.tables import DoseRow, dose_table
from tamperdose.report.text import MARK, UNDEFINED, WITHHELD, printable
from tamperdose.run.compare_schema import Row
from tamperdose.stats.gate import Gate

_SPEAKS = {Scope.TRAJECTORY.value: "for this trajectory", Scope.ATTACK.value: "for the attack"}
_NUMBER = ".3g"
_AT_ED50 = "gate at ED50"
"""What the gate said of ED50: at the last dose it may say something else."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the headline."""

    name: str
    """What it is."""
    value: str
    """The figure."""
    note: str
    """Its interval, or what it speaks for."""


@dataclass(frozen=True, slots=True)
class Badge:
    """One state of the headline."""

    name: str
    """What it is the state of."""
    state: str
    """The state, in words."""
    tone: str
    """`good`, `caution`, `bad` or `plain`."""


@dataclass(frozen=True, slots=True)
class Headline:
    """The top of a page."""

    sentence: str
    """What was found, with the state of audit and gate."""
    badges: tuple[Badge, ...]
    """The states again, to be seen."""
    tiles: tuple[Tile, ...]
    """The figures."""
    arms: Table | None
    """Every arm in a row, where there are several."""
    doubts: tuple[str, ...]
    """What the audit warns of or fails, and why the gate ended as it did."""


@dataclass(frozen=True, slots=True)
class _Told:
    """What the headline says of one arm; texts that the audit takes are withheld already."""

    arm: Arm
    label: str
    unit: str
    ed50: str
    between: str
    interval: str
    censored: str
    supported: bool
    value: float | None
    refused: tuple[str, str]
    last: int
    utility: str
    gate: str
    n: str


def headline(facts: Facts) -> Headline:
    """Say what a run found."""
    told = list(_arms(facts))
    badges = (_audit_badge(facts.audit), *_gate_badges(told), *_text_badges(facts))
    doubts = (*_audit_doubts(facts), *_gate_doubts(facts, told))
    if not told:
        return Headline(f"{audit_words(facts.audit)}; nothing was measured here", badges, (), None, doubts)
    parts = _one(told[0]) if len(told) == 1 else _several(told)
    sentence = "; ".join([*parts, audit_words(facts.audit), *_gate_words(told)])
    return Headline(sentence, badges, tuple(_tiles(facts, told)), _table(told), doubts)


def _arms(facts: Facts) -> Iterator[_Told]:
    if not facts.arms:
        return
    rows = [row for row in read_responses(facts.folder, facts.judge) if row["metric"] == "ED50_steps"]
    fits, doses = read_fits(facts.folder, facts.judge), dose_table(facts.frame, judge=facts.judge)
    losses = _utility(facts)
    for arm in facts.arms:
        mine = [row for row in doses if (row.study, row.arm) == (arm.study, arm.name)]
        fit = next((fit for fit in fits if fit.get("arm") == arm.name), None)
        row = next((row for row in rows if row["arm"] == arm.name), None)
        lost = () if row is None else lost_row(row, fits, rows, facts.audit)
        yield _tell(facts, arm, mine, (row, fit, lost), losses.get(arm.name, ""))


def _tell(
    facts: Facts,
    arm: Arm,
    doses: Sequence[DoseRow],
    broken: tuple[Row | None, Mapping[str, Any] | None, tuple[str, ...]],
    utility: str,
) -> _Told:
    row, fit, lost = broken
    unit, withheld = facts.unit(arm), bool(lost) and not facts.force
    mark = f" {MARK}" if lost and facts.force else ""
    ends = [_refused(facts, doses, place) for place in (0, -1)]
    between, value, censored = "", None, ""
    if row is None:
        text = "no ED50 was fitted"
    elif withheld:
        text = f"ED50 {WITHHELD} ({printable(', '.join(lost))})"
    elif row["censored"] == "undefined":
        text = dose_text(row, "" if fit is None else why_undefined(fit, "ED50"))
    else:
        text, between = _broken(row, unit)
        value, censored = None if row["value"] is None else float(str(row["value"])), str(row["censored"])
    interval = "" if row is None or withheld or row["censored"] == "undefined" else _interval(row)
    gate = "" if row is None or withheld else str(row["gate"])
    return _Told(
        *(arm, facts.labels[arm.name], unit, text + mark, between + (mark if between else ""), interval, censored),
        *(not withheld, value, (ends[0], ends[1]), doses[-1].steps, utility, gate, _n(doses)),
    )


def _broken(row: Row, unit: str) -> tuple[str, str]:
    """ED50 as the headline says it, and as a tile does."""
    low, high = number(row["bracket_low"], _NUMBER), number(row["bracket_high"], _NUMBER)
    speaks = _SPEAKS.get(str(row["scope"]), "")
    if row["censored"] == "right":
        return f"ED50 above {low} {unit} {speaks}", f"> {low} {unit}"
    if row["censored"] == "left":
        return f"ED50 below {high} {unit} {speaks}", f"< {high} {unit}"
    return f"ED50 between {low} and {high} {unit} {speaks}", f"{number(row['value'], _NUMBER)} {unit}"


def _interval(row: Row) -> str:
    low, high = row["low"], row["high"]
    if low is None and high is None:
        return "no interval"
    ends = (
        f"[{number(low, _NUMBER) if low is not None else '0'}, {number(high, _NUMBER) if high is not None else 'open'}]"
    )
    return f"{100 * float(str(row['level'])):g} % {ends}"


def _refused(facts: Facts, doses: Sequence[DoseRow], place: int) -> str:
    row = doses[place]
    return facts.supported(number(row.rrr, ".2f"), Claim.RRR, row.arm, row.steps)


def _n(doses: Sequence[DoseRow]) -> str:
    known = [row.n for row in doses if row.n == row.n]
    return number(max(known), ".0f") if known else UNDEFINED


def _utility(facts: Facts) -> dict[str, str]:
    """The change of utility at the last dose of each arm where the gate has its loss."""
    found: dict[str, str] = {}
    for row in controls_of(facts.folder, facts.judge)["gate"]:
        if row["criterion"] == "utility_loss" and row["value"] is not None:
            change = -100 * float(str(row["value"]))
            lost = facts.lost(Claim.LOSS, str(row["arm"]), int(str(row["dose_steps"]))) and not facts.force
            found[str(row["arm"])] = (
                WITHHELD if lost else f"{change:+.0f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")
            )
    return found


def _one(told: _Told) -> Iterator[str]:
    yield told.ed50
    yield f"refusals {told.refused[0]} \N{RIGHTWARDS ARROW} {told.refused[1]}"
    if told.utility:
        yield f"utility {told.utility}"


def _several(told: Sequence[_Told]) -> Iterator[str]:
    models, kinds = len({each.arm.model for each in told}), {each.unit for each in told}
    yield f"{len(told)} arms of {models} model{'s' if models > 1 else ''}"
    known = [each for each in told if each.value is not None and not each.censored]
    if known and len(kinds) == 1:
        low, high = (number(end(each.value for each in known if each.value is not None), _NUMBER) for end in (min, max))
        yield f"ED50 {low} to {high} {known[0].unit} in the {len(known)} that break"
    elif known:
        yield f"{len(known)} break within the doses measured"
    bounds = Counter(each.censored or ("" if each.supported else WITHHELD) for each in told)
    words = {"right": "beyond the last dose", "left": "before the first", WITHHELD: WITHHELD}
    yield from (f"{bounds[key]} {word}" for key, word in words.items() if bounds[key])
    ends = [[float(each.refused[place]) for each in told if _plain(each.refused[place])] for place in (0, 1)]
    if all(ends):
        first, last = (_range(end) for end in ends)
        yield f"refusals {first} \N{RIGHTWARDS ARROW} {last}"


def _plain(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low}\N{EN DASH}{high}"


def _tiles(facts: Facts, told: Sequence[_Told]) -> Iterator[Tile]:
    if len(told) > 1:
        yield Tile("arms", str(len(told)), facts.shared)
        yield from _common_tiles(told)
    else:
        (one,) = told
        yield Tile("ED50", one.between or (WITHHELD if not one.supported else UNDEFINED), one.interval)
        rows = dose_table(facts.frame, judge=facts.judge)
        note = f"refused at dose 0, and at {one.last} {one.unit}"
        yield Tile("RRR", f"{one.refused[0]} \N{RIGHTWARDS ARROW} {one.refused[1]}", note)
        drift = facts.supported(number(rows[-1].rd, ".2f"), Claim.RD, one.arm.name, one.last)
        if drift != UNDEFINED:
            yield Tile("RD", drift, "median distance of answers at the last dose")
        if one.utility:
            yield Tile("utility", one.utility, "worse of perplexity and accuracy, last dose measured")
    yield Tile("prompts", max((each.n for each in told), key=len), _templates(facts))


def _common_tiles(told: Sequence[_Told]) -> Iterator[Tile]:
    """Breaking doses and refusals over several arms."""
    known = [each.value for each in told if each.value is not None and not each.censored]
    if known and len({each.unit for each in told}) == 1:
        ends = (number(end(known), _NUMBER) for end in (min, max))
        yield Tile("ED50", f"{_joined(ends)} {told[0].unit}", f"lowest and highest of {len(known)} arms that break")
    ends = [[float(each.refused[place]) for each in told if _plain(each.refused[place])] for place in (0, 1)]
    if all(ends):
        first, last = (_range(end) for end in ends)
        yield Tile("RRR", f"{first} \N{RIGHTWARDS ARROW} {last}", "refused at dose 0, and at the last dose")


def _joined(ends: Iterable[str]) -> str:
    return "\N{EN DASH}".join(dict.fromkeys(ends))


def _templates(facts: Facts) -> str:
    known = facts.frame.loc[facts.frame["metric"] == "RRR", "n_templates"].dropna()
    return f"harmful, {int(known.max())} templates" if len(known) else "harmful"


def _table(told: Sequence[_Told]) -> Table | None:
    if len(told) < 2:
        return None
    rows = tuple(
        (
            each.label,
            each.between or each.ed50,
            each.interval or UNDEFINED,
            *each.refused,
            each.utility or UNDEFINED,
            each.gate.replace("_", " ") or UNDEFINED,
        )
        for each in told
    )
    headings = ("arm", "ED50", "interval", "RRR at dose 0", "RRR at the last", "utility", _AT_ED50)
    return Table("Every arm", headings, rows, frozenset({0, 6}), folded=len(told) > 20)


def audit_words(audit: Audit | None) -> str:
    """How an audit ended, in a few words: "audit: 1 warning"."""
    if audit is None:
        return "audit: none"
    failed, warned = audit.ended(Outcome.FAIL), audit.ended(Outcome.WARN)
    if failed:
        return f"audit: {len(failed)} failed ({', '.join(check.name for check in failed)})"
    if warned:
        return f"audit: {len(warned)} warning{'s' if len(warned) > 1 else ''}"
    return "audit: passed" if audit.outcome is Outcome.PASS else "audit: nothing could be assessed"


def _audit_badge(audit: Audit | None) -> Badge:
    tones = {Outcome.FAIL: "bad", Outcome.WARN: "caution", Outcome.PASS: "good"}
    state = audit_words(audit).removeprefix("audit: ")
    return Badge("audit", state, "caution" if audit is None else tones.get(audit.outcome, "plain"))


def _gate_words(told: Sequence[_Told]) -> Iterator[str]:
    ends = Counter(each.gate.replace("_", " ") for each in told if each.gate)
    if len(told) == 1:
        yield from (f"{_AT_ED50}: {end}" for end in ends)
    elif ends:
        yield f"{_AT_ED50}: {', '.join(f'{count} {end}' for end, count in ends.most_common())}"


def _gate_badges(told: Sequence[_Told]) -> Iterator[Badge]:
    ends = {each.gate for each in told if each.gate}
    tone = "good" if ends == {Gate.PASSED.value} else "bad" if Gate.BROKEN.value in ends else "caution"
    yield from (Badge(_AT_ED50, words.removeprefix(f"{_AT_ED50}: "), tone) for words in _gate_words(told))


def _text_badges(facts: Facts) -> Iterator[Badge]:
    if facts.arms:
        shown = "shown" if facts.show_text else "redacted"
        yield Badge("answers to harmful prompts", shown, "bad" if facts.show_text else "plain")
    if facts.force:
        yield Badge("unsupported numbers", f"shown, marked {MARK}", "bad")


def _audit_doubts(facts: Facts) -> Iterator[str]:
    if facts.audit is None:
        yield "There is no audit of these numbers: run tamperdose audit."
        return
    for outcome, word in ((Outcome.FAIL, "Failed"), (Outcome.WARN, "Warning")):
        for check in facts.audit.ended(outcome):
            yield f"{word}: {check.name.replace('_', ' ')}: {printable(check.evidence)}"


def _gate_doubts(facts: Facts, told: Sequence[_Told]) -> Iterator[str]:
    """Why the gate ended as it did at the last dose of a single arm."""
    if len(told) != 1:
        return
    rows = controls_of(facts.folder, facts.judge)["gate"]
    last = next((row for row in rows if row["dose_steps"] == told[0].last), None)
    # What it says quotes the loss.
    if last is not None and (facts.force or not facts.lost(Claim.LOSS, told[0].arm.name, told[0].last)):
        yield f"Gate at {told[0].last} {told[0].unit}: {last['verdict']}: {printable(str(last['why']))}"
