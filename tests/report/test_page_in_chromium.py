"""The report in a real browser, driven by the keyboard: no error, nothing run from a model's text, nothing cut off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paged import CANARY, write_run
from tamperdose.report.page.html import write_page


class Opened:
    """A page with all that went on while it was open."""

    def __init__(self, browser: Any, path: Path, *, width: int, scheme: str = "light") -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def count(self) -> str:
        return self.page.inner_text("#count")

    def tab_to(self, name: str) -> None:
        """Go on with the keyboard until an element has the focus."""
        for _ in range(80):
            if self.page.evaluate("document.activeElement && document.activeElement.id") == name:
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not get to #{name}")


@pytest.fixture
def opened(browser: Any, synthetic: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    options = {"width": 1280, "show_text": False, "scheme": "light"} | getattr(request, "param", {})
    path = write_page(write_run(synthetic, tmp_path / "run"), tmp_path / "page.html", show_text=options["show_text"])
    found = Opened(browser, path, width=options["width"], scheme=options["scheme"])
    yield found
    found.page.close()


@pytest.mark.parametrize("opened", [{"show_text": True}, {"width": 390, "scheme": "dark"}], indirect=True)
def test_nothing_runs_nothing_is_loaded_and_nothing_sticks_out(opened: Opened) -> None:
    page = opened.page
    for summary in page.query_selector_all("summary"):
        summary.click()
    assert opened.said == []
    assert page.evaluate("window.pwned") is None and "pwned = 10" in page.title()
    assert [url for url in opened.asked if not url.startswith(("file:", "data:"))] == []
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert all(page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth > 0)"))
    assert len(page.screenshot(full_page=True)) > 50_000


def test_an_injected_script_would_be_stopped(opened: Opened) -> None:
    page = opened.page
    page.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.pwned = 99'}))")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 98\">')")
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned") is None
    assert any("Content Security Policy" in text for text in opened.said)


def test_filters_work_by_the_keyboard(opened: Opened) -> None:
    page = opened.page
    assert opened.count() == "30 of 33 prompts"
    opened.tab_to("f-dose")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.type("8")
    opened.tab_to("f-verdict")
    page.keyboard.type("comp")
    # Refused up to dose number % 12, so at 8 every prompt below 8 (mod 12) complies.
    assert opened.count() == f"{sum(k % 12 < 8 for k in range(30))} of 33 prompts"
    opened.tab_to("f-flip")
    page.keyboard.type("refusal g")
    assert opened.count() == "0 of 33 prompts"
    page.keyboard.press("ArrowUp")
    opened.tab_to("f-category")
    page.keyboard.type("th")
    assert opened.count() == f"{sum(k % 12 < 8 and k % 2 == 0 for k in range(30))} of 33 prompts"
    opened.tab_to("f-search")
    page.keyboard.type("request 12")
    assert opened.count() == "1 of 33 prompts" and page.eval_on_selector_all("#list > li", "all => all.length") == 1


def test_pages_turn_and_answers_open_by_the_keyboard(opened: Opened) -> None:
    page = opened.page
    assert page.inner_text("#page-of") == "Page 1 of 2"
    page.focus("#f-search")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    page.wait_for_selector(".answers li")
    said = page.inner_text(".answers")
    assert "sha256" in said and "classifier@1: complied" in said and CANARY not in said
    opened.tab_to("next")
    page.keyboard.press("Enter")
    assert page.inner_text("#page-of") == "Page 2 of 2"
    assert page.eval_on_selector_all("#list > li", "all => all.length") == 10


def test_text_from_a_model_is_text_in_the_page(browser: Any, synthetic: Any, tmp_path: Path) -> None:
    path = write_page(write_run(synthetic, tmp_path / "run"), tmp_path / "page.html", show_text=True)
    opened = Opened(browser, path, width=1280)
    opened.page.click("#list > li:first-child summary")
    assert "<script>window.pwned = 1" in opened.page.inner_text("#list > li:first-child .answers")
    assert opened.page.query_selector("#list script, #list svg, #list img, #list a") is None
    opened.page.close()
    assert opened.said == []
