"""The page itself: one HTML file with everything in it, which loads nothing and runs nothing but its own script."""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tamperdose.files import write_text
from tamperdose.report.page import measured, pictures, trust
from tamperdose.report.page.blocks import Section
from tamperdose.report.page.browser import Browsed, browse
from tamperdose.report.page.facts import Facts, read_facts
from tamperdose.report.page.headline import Headline, headline
from tamperdose.report.responses import well_formed
from tamperdose.report.text import printable

REPORT = "report.html"
"""What a page is called in a run's folder."""

# What could end the script element, or a line of it, is written as JSON's own escape.
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template shows."""

    title: str
    """The study."""
    subtitle: str
    """Its models and what all arms share."""
    top: Headline
    """The headline."""
    sections: tuple[Section, ...]
    """The parts, in order."""
    browsed: Browsed
    """The prompts."""
    show_text: bool
    """Whether answers to harmful prompts are in it."""


def write_page(run_dir: Path, out: Path | None = None, *, show_text: bool = False, force: bool = False) -> Path:
    """Write a folder's results as one HTML file and return its path, `report.html` in the folder by default.

    Args:
        run_dir: What `run`, `score` or `audit` wrote.
        out: The file.
        show_text: Include the texts of answers to harmful prompts, behind a banner.
        force: Show numbers that the audit does not support, with a mark.

    Raises:
        DataError: The folder holds nothing to report, or a file of it is damaged.
        RunError: The file cannot be written.
    """
    facts = read_facts(run_dir, force=force, show_text=show_text)
    return write_text(out or run_dir / REPORT, render(make_page(facts)))


def make_page(facts: Facts) -> Page:
    """Gather what a page shows.

    Raises:
        DataError: A file of the run is damaged.
    """
    with well_formed(facts.folder):
        return _made(facts)


def _made(facts: Facts) -> Page:
    models = list(dict.fromkeys(printable(arm.model) for arm in facts.arms))
    named = ", ".join(models[:6]) + (f" and {len(models) - 6} more" if len(models) > 6 else "")
    judge = f"judge {printable(facts.judge)}" if facts.judge else ""
    subtitle = " \N{MIDDLE DOT} ".join(part for part in (named, facts.shared, judge) if part)
    parts = tuple(section for section in _sections(facts) if section.blocks)
    return Page(facts.name, subtitle, headline(facts), parts, browse(facts), facts.show_text)


def render(page: Page) -> str:
    """Write a page as HTML: every text escaped, and a policy that lets nothing run but the page's own script."""
    style, script = (_asset(name).strip() for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("page.html"))
    data = Markup(_json(page.browsed.data))  # noqa: S704 - JSON without <, > and &
    # Both are files of this package, without any text from outside.
    own = {"style": Markup(style), "script": Markup(script)}  # noqa: S704
    text = template.render(page=page, policy=policy, data=data, **own)
    # A lone surrogate has no UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def _sections(facts: Facts) -> Iterator[Section]:
    if facts.arms:
        yield Section("response", "Dose-response", "", (pictures.overview(facts), pictures.split(facts)))
        yield measured.by_dose(facts)
        yield measured.controls(facts)
        yield measured.transitions(facts)
        yield trust.sizes(facts)
        yield trust.judges(facts)
        yield measured.drift(facts)
        yield measured.costs(facts)
        yield measured.categories(facts)
    yield trust.audit(facts)
    if facts.manifest:
        yield trust.provenance(facts)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)


def _asset(name: str) -> str:
    return package_files("tamperdose.report.page").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
