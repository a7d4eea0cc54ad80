"""Whether one run reproduces another, as text for a terminal."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tamperdose.report.text import UNDEFINED, WITHHELD, printable
from tamperdose.run.reproduction import Comparison, Difference
from tamperdose.stats.reproduction import Reproduction

_SAID = {
    Reproduction.REPRODUCES: "B reproduces A",
    Reproduction.DIFFERS: "B differs from A",
    Reproduction.UNDECIDED: "undecided whether B reproduces A",
}


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print every difference, then the verdict and what it rests on."""
    wide = Console(highlight=False, markup=False)
    console = console or (wide if wide.is_terminal else Console(highlight=False, markup=False, width=130))
    for arm in dict.fromkeys((one.arm_a, one.arm_b) for one in comparison.differences):
        mine = [one for one in comparison.differences if (one.arm_a, one.arm_b) == arm]
        name = arm[0] if arm[0] == arm[1] else f"{arm[0]} | {arm[1]}"
        console.print(_table(printable(name), mine))
    for line in [*map(printable, comparison.notes), *verdict_lines(comparison)]:
        console.print(line, soft_wrap=True)


def verdict_lines(comparison: Comparison) -> Iterator[str]:
    """The verdict with its margin, and the doses that decide it."""
    deciding, n_cells = comparison.deciding, comparison.n_cells_a
    of = f"{len(deciding)} of A's {n_cells}" if len(deciding) < n_cells else f"{len(deciding)}"
    yield (
        f"{_SAID[comparison.verdict]}: RRR by {printable(comparison.judge)} at {of} arm x dose, margin "
        f"{comparison.margin:g}, {100 * comparison.level:g} % intervals"
    )
    for verdict in (Reproduction.DIFFERS, Reproduction.UNDECIDED):
        places = [f"dose {one.dose}" for one in deciding if one.verdict is verdict]
        if places:
            yield f"  {verdict}: {', '.join(dict.fromkeys(places))}"
    # Texts are the same or not, whatever an audit says of rates.
    harmful = [one for one in comparison.differences if one.judge == comparison.judge and one.metric == "RRR"]
    n_same, n = (sum(getattr(one, name) for one in harmful) for name in ("n_same", "n_answers"))
    yield f"  answers to harmful prompts that are the same text: {n_same} of {n}"


def _table(title: str, rows: Sequence[Difference]) -> Table:
    table = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("dose", "metric", "judge", "A", "B", "B - A [interval]", "p", "Holm p", "same text", "B"):
        table.add_column(heading, justify="left" if heading in ("metric", "judge") else "right", overflow="fold")
    for one in rows:
        table.add_row(*map(Text, _cells(one)))
    return table


def _cells(one: Difference) -> tuple[str, ...]:
    found = one.result.difference
    ends = f" [{found.low:.3f}, {found.high:.3f}]" if found.low is not None and found.high is not None else ""
    numbers = (
        _text(one.rate_a),
        _text(one.rate_b),
        f"{_text(found.value)}{ends}",
        _text(one.result.p_value, ".2g"),
        _text(one.p_holm, ".2g"),
    )
    shown = (WITHHELD,) * len(numbers) if one.lost else numbers
    same = f"{one.n_same} / {one.n_answers}"
    return str(one.dose), one.metric, printable(one.judge), *shown, same, WITHHELD if one.lost else one.verdict.value


def _text(value: float | None, form: str = ".3f") -> str:
    return UNDEFINED if value is None else format(value, form)
