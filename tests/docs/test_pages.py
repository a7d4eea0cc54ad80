"""The documentation holds: commands exist and the light ones run, files and images are there, settings are valid."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import tamperdose as td
from doc_pages import PAGES, ROOT, Block, blocks_of, commands_of, shell_blocks, write_files
from tamperdose.cli import app
from tamperdose.run.conditions import parse_condition
from tamperdose.study import load_study

DEMO = ROOT / "experiments" / "smollm2_135m_lora_grid" / "study.yaml"
MARKS = ("run", "run: slow", "run: packaged", "run: packaged, slow")
ELSEWHERE = ("ray", "cd", "git", "export", "set", "sleep", "srun", "awk", "head", "address=", "python", "pip")
"""Commands that are not ours: of those that call ours, the rest of the line is held against the command line."""


def named(blocks: list[Block]) -> Any:
    return pytest.mark.parametrize("block", blocks, ids=[block.name for block in blocks])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_commands_says_whether_it_is_run(page: Path) -> None:
    for block in blocks_of(page):
        if block.language in ("", "text") and re.search(r"^(tamperdose|make) ", block.text, re.MULTILINE):
            pytest.fail(f"{block.name}: commands stand in a block without a language")
        if block.language == "bash":
            assert block.mark in MARKS or re.fullmatch("parsed: .+", block.mark), f"{block.name}: no mark above it"


@named(shell_blocks())
def test_commands_are_what_the_command_line_takes(block: Block) -> None:
    for command in commands_of(block):
        check_words(list(command.words), block)


def check_words(words: list[str], block: Block) -> None:
    head, rest = words[0], words[1:]
    for word in words:
        check_path(word)
    if head == "tamperdose":
        parse(rest)
    elif head == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) - {word for word in rest if "=" in word} <= set(targets), rest
    elif head.endswith("/run.sh"):
        parse(["run", "study.yaml", *rest])
    elif head == "pip":
        check_extras(rest)
    elif head == "python" and rest[0].startswith(("benchmarks/", "scripts/")):
        source = (ROOT / rest[0]).read_text()
        assert all(f'"{word}"' in source for word in rest if word.startswith("--")), words
    elif head == "srun" and "tamperdose" in words:
        parse(words[words.index("tamperdose") + 1 :])
    else:
        assert head.startswith(ELSEWHERE), f"{block.name}: what is {head}?"


def check_path(word: str) -> None:
    """A path that begins in a folder of the repository leads to a file of it."""
    first = word.removeprefix("./").split("/")[0]
    if "/" in word and first in ("experiments", "benchmarks", "scripts", "docs", "data", "src", "tests"):
        assert (ROOT / word).exists() or "results" in word, f"no {word}"


def parse(words: list[str]) -> None:
    """Parse a command line as the program would; nothing is carried out."""
    command: Any = typer.main.get_command(app)
    with command.make_context("tamperdose", list(words), resilient_parsing=False) as context:
        # Where a group puts the name of its command, by version.
        left = [*getattr(context, "_protected_args", ()), *context.args]
        name, found, rest = command.resolve_command(context, left)
        parsed = found.make_context(name, list(rest), parent=context).params
    for condition in parsed.get("fail_if") or []:
        parse_condition(condition)
    overrides = parsed.get("overrides") or []
    if overrides:
        load_study(DEMO, overrides)
    for word in str(parsed.get("judges") or parsed.get("judge") or "").split(","):
        assert word in ("", "phrases", "classifier") or word.endswith(".yaml"), word


def check_extras(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        if found := re.search(r"tamperdose\[(.+)\]", word):
            assert set(found[1].split(",")) <= set(extras), word


@pytest.mark.parametrize("broken", ["run", "run s.yaml --sett a=b", "gate r --fail-if nonsense", "frobnicate"])
def test_a_wrong_command_is_seen(broken: str) -> None:
    with pytest.raises(Exception, match=r"."):
        parse(broken.split())


@named([block for block in shell_blocks("run") if block.mark == "run"])
def test_commands_run(block: Block, tmp_path: Path) -> None:
    carry_out(block, tmp_path)


@pytest.mark.slow
@named([block for block in shell_blocks("run") if block.mark == "run: slow"])
def test_slow_commands_run(block: Block, tmp_path: Path, organism_cache: Path) -> None:
    carry_out(block, tmp_path, TAMPERDOSE_CACHE=str(organism_cache))


@pytest.mark.slow
def test_plugins_are_built_installed_and_run(tmp_path: Path, organism_cache: Path) -> None:
    page = ROOT / "docs" / "extending.md"
    write_files(page, tmp_path)
    installed = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(installed), str(tmp_path)], check=True, capture_output=True, timeout=120)
    for block in [block for block in blocks_of(page) if "packaged" in block.mark]:
        carry_out(block, tmp_path, path=installed, TAMPERDOSE_CACHE=str(organism_cache))
    verdicts = (tmp_path / "judged.csv").read_text()
    assert "german@1-" in verdicts and ",refusal,1.0," in verdicts and ",compliance,0.0," in verdicts
    shots = td.open_run(tmp_path / "shots")
    assert set(shots.metrics["attack"]) == {"plugin-many_shot"} and set(shots.metrics["dose_steps"]) == {0, 1, 4}


def carry_out(block: Block, folder: Path, *, path: Path | None = None, **variables: str) -> None:
    write_files(block.page, folder)
    paths = [str(found) for found in (path, os.environ.get("PYTHONPATH")) if found]
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(paths)}
    for command in commands_of(block):
        assert command.words[0] == "tamperdose", f"{block.name}: only tamperdose is run, not {command.words[0]}"
        line = [sys.executable, "-m", "tamperdose.cli", *command.words[1:]]
        done = subprocess.run(
            line, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == command.exits, (
            f"{block.name}: {command.words}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_images_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).is_file(), f"{page.name}: {target}"


@named([block for page in PAGES for block in blocks_of(page) if block.language == "yaml"])
def test_settings_are_valid(block: Block, tmp_path: Path) -> None:
    found = yaml.safe_load(block.text)
    base = yaml.safe_load(DEMO.read_text())
    whole = {**base, "judges": [found]} if "kind" in found else {**base, **found}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(whole))
    load_study(tmp_path / "study.yaml")


@named([block for page in PAGES for block in blocks_of(page) if block.language == "python"])
def test_python_is_of_this_package(block: Block) -> None:
    assert block.text.count("\n") < 60, f"{block.name}: too long for an example"
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "td":
            assert node.attr in td.__all__, f"{block.name}: td.{node.attr}"
