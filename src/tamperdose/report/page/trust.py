"""The sections on how far the numbers carry: judges, sizes and grids, the audit, and where everything comes from."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tamperdose import __version__
from tamperdose.audit.findings import CheckResult, Claim
from tamperdose.errors import DataError
from tamperdose.files import read_csv, read_text, sha256_file
from tamperdose.report.calibration import METRICS as CORRECTED
from tamperdose.report.comparisons import comparisons_of
from tamperdose.report.defences import defence_lines
from tamperdose.report.marginals import marginal_lines
from tamperdose.report.page import pictures
from tamperdose.report.page.blocks import Block, Code, Lines, Section, Table, grouped
from tamperdose.report.page.facts import Facts
from tamperdose.report.page.numbers import count, with_interval
from tamperdose.report.responses import read_json, response_lines
from tamperdose.report.text import printable
from tamperdose.run.compare_schema import Row
from tamperdose.run.corrected import CORRECTED_COLUMNS

_FILES = (
    *("metrics.csv", "dose_response.csv", "controls.csv", "gate.csv", "comparisons.csv", "agreement.csv", "seeds.csv"),
    *("scaling.json", "inside.csv", "defences.csv", "marginals.csv", "categories.csv", "costs.csv", "corrected.csv"),
    *("calibration.json", "audit.json", "manifest.json", "study.resolved.yaml"),
)
_FACTS = (
    *("study", "study_digest", "tamperdose", "git_commit", "git_dirty", "python", "platform", "headline_judge"),
    *("judges", "n_prompts", "decoding", "limit"),
)


def sizes(facts: Facts) -> Section:
    """Breaking doses over arms, sizes, defences and grids, as the terminal says them."""
    intro = (
        "The breaking dose of every arm with its interval and what that speaks for; over sizes, how it grows; over "
        "defences and factors of a grid, what they change."
    )
    told = response_lines(facts.folder, facts.judge, audit=facts.audit, force=facts.force) if facts.arms else []
    # What a reader of the page has in its own table stands there.
    blocks: list[Block] = [*pictures.fitted(facts), *pictures.sizes(facts), *pictures.others(facts)]
    blocks += [Lines(tuple(_joined(told)))] if told else []
    tables = defence_lines(facts.folder, facts.judge, audit=facts.audit, force=facts.force)
    blocks += [Code("Defences compared", "\n".join(tables))] if tables else []
    factors = [
        line.rsplit(": ", 1)[0] if line.endswith(".csv") else line for line in marginal_lines(facts.folder, facts.judge)
    ]
    blocks += [Lines(tuple(factors))] if factors else []
    return Section("scaling", "Breaking doses and scaling", intro, tuple(blocks))


def _joined(lines: Sequence[str]) -> Iterator[str]:
    """Lines that are set in belong to the one before."""
    said = ""
    for line in lines:
        if line.startswith(" "):
            said += f"; {line.strip()}"
        else:
            if said:
                yield said
            said = line
    if said:
        yield said


def judges(facts: Facts) -> Section:
    """Whether judges agree with each other, and with people where they were asked."""
    intro = (
        "How the headline judge compares with the other judges on the same answers, and with people's labels where "
        "there are any. A rate is only as good as its judge."
    )
    rows = [row for row in comparisons_of(facts.folder, facts.judge)["agreement"] if row["reading"] == "refusal"]
    tables: list[Table] = []
    for arm in facts.arms:
        mine = [row for row in rows if row["arm"] == arm.name]
        if mine:
            cells = tuple(_agreement(facts, row) for row in mine)
            headings = (
                facts.unit(arm),
                "judges",
                "RRR by the first",
                "by the second",
                "agreement",
                "kappa",
                "AC1",
                "n",
            )
            tables.append(Table(facts.labels[arm.name], headings, cells, frozenset({1})))
    return Section("judges", "Judges", intro, (*grouped(tables), *_calibration(facts)))


def _agreement(facts: Facts, row: Row) -> tuple[str, ...]:
    dose, arm = int(str(row["dose_steps"])), str(row["arm"])
    rates = [
        facts.supported(with_interval(row, name, f"{name}_low", f"{name}_high"), Claim.RRR, arm, dose)
        for name in ("RRR_1", "RRR_2")
    ]
    shares = [with_interval(row, name, f"{name}_low", f"{name}_high") for name in ("agreement", "kappa", "ac1")]
    named = f"{printable(str(row['judge_1']))}, {printable(str(row['judge_2']))}"
    return str(dose), named, *rates, *shares, count(row["n"])


def _calibration(facts: Facts) -> Iterator[Block]:
    path, told = facts.folder / "corrected.csv", read_json(facts.folder / "calibration.json")
    if not path.is_file():
        yield Lines(("No labels by people: see tamperdose label and calibrate.",))
        return
    _, rows = read_csv(path, required=CORRECTED_COLUMNS)
    cells = tuple(_corrected(facts, row) for row in rows if row["metric"] in CORRECTED)
    headings = ("arm or band", "dose", "metric", "corrected [interval]", "partial read as", "labels", "rests on")
    yield Table("Corrected by people's labels", headings, cells, frozenset({0, 2, 4, 6}))
    flags = told.get("flags")
    if isinstance(flags, list) and flags:
        yield Lines(tuple(printable(str(flag)) for flag in flags))


def _corrected(facts: Facts, row: Mapping[str, str]) -> tuple[str, ...]:
    arm, dose = row["arm"], row["dose_steps"]
    value = with_interval(row)
    if arm and dose:
        value = facts.supported(value, Claim.RRR, arm, int(dose))
    name = facts.labels.get(arm, printable(arm)) if arm else f"band {printable(row['band'])}"
    partial = row["partial_as"].replace("_", " ")
    return name, dose, row["metric"], value, partial, count(row["n_labels"]), printable(row["reason"])


def audit(facts: Facts) -> Section:
    """Every check of the audit."""
    intro = "What would invalidate the numbers, checked on the recorded answers themselves."
    if facts.audit is None:
        return Section("audit", "Audit", intro, (Lines(("There is none: run tamperdose audit.",)),))
    rows = tuple(
        (
            check.name.replace("_", " "),
            check.outcome.replace("_", " "),
            printable(check.evidence),
            ", ".join(check.claims),
            f"{check.threshold}; remedy: {check.remedy}",
        )
        for check in facts.audit.checks
    )
    table = Table("Checks", ("check", "ended", "found", "bears on", "limit"), rows, frozenset(range(5)))
    return Section("audit", "Audit", intro, (table, *_quotes(facts, facts.audit.checks)))


def _quotes(facts: Facts, checks: Sequence[CheckResult]) -> Iterator[Block]:
    """Excerpts that a check quotes; they may be of answers, so they are texts like these."""
    quotes = [f"{check.name}: {printable(quote)}" for check in checks for quote in check.quotes]
    if quotes and facts.show_text:
        yield Lines(tuple(quotes))
    elif quotes:
        yield Lines((f"{len(quotes)} excerpt{'s' if len(quotes) > 1 else ''} of texts are left out; see audit.json.",))


def provenance(facts: Facts) -> Section:
    """Where the numbers come from, and the commands that make them again."""
    intro = "What made these numbers, and how to make them again."
    rows = tuple((name.replace("_", " "), _shown(facts.manifest[name])) for name in _FACTS if name in facts.manifest)
    rows += tuple(
        (f"seeds of {facts.labels[arm.name]}", seed) for arm in facts.arms if (seed := dict(arm.settings).get("seed"))
    )
    rows += (("page made by tamperdose", __version__),)
    blocks: list[Block] = [Table("Run", ("what", "value"), rows, frozenset({0, 1}))]
    blocks += _models(facts.manifest)
    for title, key, heading in (("Packages", "packages", "version"), ("Data", "data_sha256", "SHA-256")):
        found = facts.manifest.get(key)
        if isinstance(found, dict) and found:
            cells = tuple((printable(_name_of(name, key)), _shown(value)) for name, value in found.items())
            blocks.append(Table(title, ("name", heading), cells, frozenset({0, 1}), folded=True))
    blocks.append(_digests(facts.folder))
    blocks.append(Code("Make them again", commands(facts)))
    resolved = facts.folder / "study.resolved.yaml"
    blocks += [Code("study.resolved.yaml", _lines_of(resolved), folded=True)] if resolved.is_file() else []
    return Section("provenance", "Provenance", intro, tuple(blocks))


def commands(facts: Facts) -> str:
    """The commands that make a run's numbers again, and compare them with these."""
    commit, limit = facts.manifest.get("git_commit"), facts.manifest.get("limit")
    lines = [] if not isinstance(commit, str) else [f"git checkout {printable(commit)} && make setup"]
    if (facts.folder / "study.resolved.yaml").is_file():
        cut = f" --limit {limit}" if isinstance(limit, int) else ""
        lines += [f"tamperdose run study.resolved.yaml -o again/{cut}", "tamperdose compare RUN again/"]
    elif facts.arms:
        lines += [
            "tamperdose score --base BASE.csv --attacked DOSE=ATTACKED.csv -o again/",
            "tamperdose compare RUN again/",
        ]
    return "\n".join([*lines, "tamperdose audit RUN", "tamperdose report RUN"])


def _models(manifest: Mapping[str, Any]) -> Iterator[Table]:
    models = manifest.get("models")
    if isinstance(models, list) and models and all(isinstance(model, dict) for model in models):
        names = ("name", "id", "defence", "identity", "device", "dtype", "quantization", "key")
        rows = tuple(tuple(_shown(model.get(name)) for name in names) for model in models)
        yield Table("Models", names, rows, frozenset(range(len(names))), folded=len(models) > 2)


def _digests(folder: Path) -> Table:
    rows = tuple((name, sha256_file(folder / name)) for name in _FILES if (folder / name).is_file())
    return Table("Files that this page is made from", ("file", "SHA-256"), rows, frozenset({0, 1}), folded=True)


def _name_of(name: str, key: str) -> str:
    """A file by its name alone where its path is of somebody's machine."""
    return Path(name).name if key == "data_sha256" and Path(name).is_absolute() else name


def _lines_of(path: Path) -> str:
    try:
        return "\n".join(printable_line(line) for line in read_text(path).split("\n"))
    except DataError as error:
        return printable(str(error))


def printable_line(line: str) -> str:
    """A line with its indent, and nothing that repaints or reorders it."""
    kept = len(line) - len(line.lstrip(" "))
    return " " * kept + printable(line)


def _shown(value: object) -> str:
    if value is None or value == "":
        return "\N{EN DASH}"
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(key))} {_shown(item)}" for key, item in value.items()) or "\N{EN DASH}"
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else printable(str(value))
