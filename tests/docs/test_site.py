"""The site builds without a warning, asks no other host, and can be searched."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from doc_pages import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loaded = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=[\"']([^\"']+)", page.read_text())
        assert [url for url in loaded if re.match(r"(https?:)?//", url)] == [], page.name


def test_formulas_docstrings_and_doctests_are_readable(site: Path) -> None:
    assert "n_effective = n / (1 + (m − 1) ICC)" in (site / "methods.html").read_text()
    api = (site / "api.html").read_text()
    for name in ("run_study", "open_run", "score", "audit_run", "fit_dose"):
        assert f'id="tamperdose.api.{name}"' in api
    for name in ("records.Estimate", "judges.judge.Judge", "stats.rates.rate", "study.study.Study.seeds"):
        assert f'id="tamperdose.{name}"' in api, name
    assert "<blockquote>" not in api, "a doctest was read as a quotation"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - named by the base class
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_browser_searches_it_and_asks_no_other_host(browser: Any, address: str) -> None:
    asked: list[str] = []
    said: list[str] = []
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{address}/index.html")
    page.goto(f"{address}/methods.html")
    page.fill("input.md-search__input", "bracket")
    page.wait_for_selector(".md-search-result__item a", timeout=30_000)
    assert page.locator(".md-search-result__item").count() >= 2
    page.goto(f"{address}/api.html")
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
