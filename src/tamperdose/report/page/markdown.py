"""The same results as a section for a system card, in Markdown: no answer of a model stands in it."""

from collections.abc import Iterator
from pathlib import Path

from tamperdose.files import write_text
from tamperdose.records import Scope
from tamperdose.report.page import measured, trust
from tamperdose.report.page.blocks import Block, Code, Group, Lines, Section, Table
from tamperdose.report.page.facts import Facts, read_facts
from tamperdose.report.page.headline import Headline, headline
from tamperdose.report.responses import well_formed
from tamperdose.report.text import markdown_cell, printable

REPORT = "report.md"
"""What the section is called in a run's folder."""


def write_markdown(run_dir: Path, out: Path | None = None, *, force: bool = False) -> Path:
    """Write the section and return its path, `report.md` in the folder by default.

    Args:
        run_dir: What `run`, `score` or `audit` wrote.
        out: The file.
        force: Show numbers that the audit does not support, with a mark.

    Raises:
        DataError: The folder holds nothing to report, or a file of it is damaged.
        RunError: The file cannot be written.
    """
    facts = read_facts(run_dir, force=force, show_text=False)
    with well_formed(run_dir):
        text = render(facts)
    return write_text(out or run_dir / REPORT, text)


def render(facts: Facts) -> str:
    """Write a run as a section for a system card.

    Raises:
        DataError: A file of the run is damaged.
    """
    top = headline(facts)
    parts = ["## Robustness of refusals to tampering", f"**{markdown_cell(top.sentence)}.**", *_setting(facts)]
    if top.arms is not None:
        parts.append(_table(top.arms))
    if facts.arms:
        for section in (measured.by_dose(facts), measured.controls(facts), trust.judges(facts)):
            parts += _section(section)
    parts += ["### Limits", "\n".join(f"- {markdown_cell(line)}" for line in _limits(facts, top))]
    if facts.manifest:
        parts += _section(trust.provenance(facts))
    return "\n\n".join(parts) + "\n"


def _setting(facts: Facts) -> Iterator[str]:
    """What was done, in a few sentences."""
    if not facts.arms:
        return
    models = ", ".join(dict.fromkeys(printable(arm.model) for arm in facts.arms))
    shared = f" Settings of all arms: {facts.shared}." if facts.shared else ""
    yield markdown_cell(
        f"{len(facts.arms)} attack trajector{'ies' if len(facts.arms) > 1 else 'y'} on {models}, each measured at a "
        f"ladder of doses; dose 0 is the untampered model. Verdicts by the judge {facts.judge}.{shared}"
    )


def _limits(facts: Facts, top: Headline) -> Iterator[str]:
    yield from top.doubts
    scopes = {dict(arm.settings).get("scope") for arm in facts.arms}
    if scopes == {Scope.TRAJECTORY.value}:
        yield "Intervals speak for these runs on other prompts of this kind, not for other seeds of the attack."
    if facts.arms:
        yield "A dose that broke the refusals is enough; a stronger attack than these may need less."
        yield "RRR counts refusals, not harm: what the model says instead may be useless."


def _section(section: Section) -> Iterator[str]:
    parts = [_block(block) for block in section.blocks]
    if any(parts):
        yield f"### {markdown_cell(section.title)}"
        yield markdown_cell(section.intro)
        yield from (part for part in parts if part)


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return "" if block.folded else _table(block)
    if isinstance(block, Lines):
        return "\n".join(f"- {markdown_cell(item)}" for item in block.items)
    if isinstance(block, Code) and not block.folded:
        # Indented: no fence in a text can end it.
        return f"{markdown_cell(block.caption)}:\n\n" + "\n".join(f"    {line}" for line in block.text.split("\n"))
    if isinstance(block, Group):
        return f"{markdown_cell(block.caption)}: see the HTML report."
    return ""


def _table(table: Table) -> str:
    marks = (":---" if place in table.words else "---:" for place in range(len(table.headings)))
    lines = [map(markdown_cell, table.headings), marks, *(map(markdown_cell, row) for row in table.rows)]
    return f"**{markdown_cell(table.caption)}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
