"""The files that say what the project is: cited, contributed to, used for."""

import re
import tomllib

import yaml

import tamperdose as td
from doc_pages import ROOT

CFF_KEYS = {
    *("abstract", "authors", "cff-version", "commit", "contact", "date-released", "doi", "identifiers", "keywords"),
    *("license", "license-url", "message", "preferred-citation", "references", "repository", "repository-artifact"),
    *("repository-code", "title", "type", "url", "version"),
}
"""All keys of the Citation File Format 1.2.0, doi:10.5281/zenodo.5171937."""


def test_the_citation_is_valid_and_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert {"message", "title", "authors"} <= set(cited) <= CFF_KEYS
    assert all(set(author) <= {"name", "website", "email"} and author["name"] for author in cited["authors"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == td.__version__ == project["version"] and cited["license"] == project["license"]
    assert len(set(cited["keywords"])) == len(cited["keywords"])


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    for page in ("CONTRIBUTING.md", "CITATION.cff", "docs/ethics.md", "docs/data_policy.md", "docs/start.md"):
        assert f"({page})" in text, page


def test_the_data_policy_names_every_licence_of_the_bundled_files() -> None:
    policy = (ROOT / "docs" / "data_policy.md").read_text()
    for path in sorted((ROOT / "src/tamperdose/judges").glob("*.json")):
        assert path.name in policy
        for licence in re.findall(r'"licence": "([^"]+)"', path.read_text()):
            assert licence.removeprefix("annotations ") in policy, f"{path.name}: {licence}"


def test_every_page_is_in_the_navigation_once() -> None:
    written = (ROOT / "mkdocs.yml").read_text().partition("nav:\n")[2]
    named = re.findall(r"- (\w+\.md)", written)
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
