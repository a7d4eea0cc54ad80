"""`export`, `card` and `score` as their users meet them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from exchanged import CANARY
from tamperdose.cli import main
from tamperdose.files import write_csv
from tamperdose.run import doctor
from tamperdose.run.schema import read_metrics

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tamperdose", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_export_prints_what_it_wrote(cli: Cli, run: Path, tmp_path: Path) -> None:
    code, out, _ = cli("export", run, "--format", "inspect", "--json")
    files = json.loads(out)["files"]
    assert code == 0 and len(files) == 6 and all(Path(name).suffix == ".eval" for name in files)
    code, out, _ = cli("export", run, "--format", "parquet", "-o", tmp_path / "p")
    assert code == 0 and str(tmp_path / "p" / "metrics.parquet") in out.splitlines()


def test_export_asks_for_a_format_and_for_force_where_it_means_something(cli: Cli, run: Path, tmp_path: Path) -> None:
    assert cli("export", run)[0] == 2
    code, _, err = cli("export", run, "--format", "parquet", "--force")
    assert code == 2 and "--force" in err
    code, _, err = cli("export", tmp_path / "none", "--format", "inspect")
    assert code == 1 and err.startswith("error: ") and "metrics.csv" in err


def test_card_goes_to_stdout_or_to_a_file(cli: Cli, hostile: Path, tmp_path: Path) -> None:
    code, out, err = cli("card", hostile)
    assert (code, err) == (0, "") and out.startswith("---\ntags:") and CANARY not in out
    code, told, _ = cli("card", hostile, "-o", tmp_path / "card.md")
    assert code == 0 and told.strip() == str(tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == out
    assert json.loads(cli("card", hostile, "--json")[1])["card"] == out


def test_score_takes_logs_and_tables_and_audits_them(cli: Cli, run: Path, tmp_path: Path) -> None:
    arm = min(path.name for path in (run / "outputs").iterdir())
    cli("export", run, "--format", "inspect", "--show-text", "-o", tmp_path / "logs")
    logs = {dose: tmp_path / "logs" / f"{arm}_{dose}.eval" for dose in (0, 1, 2)}
    named = ("--base", logs[0], "--attacked", f"1={logs[1]}", "--attacked", f"2={logs[2]}")
    code, _, err = cli("score", *named, "-o", tmp_path / "scored", "--judge", "phrases", "--no-rd", "--json")
    assert code == 0, err
    assert set(read_metrics(tmp_path / "scored" / "metrics.csv")["dose_steps"]) == {0, 1, 2}
    assert (tmp_path / "scored" / "audit.json").is_file()
    assert cli("audit", *named, "-o", tmp_path / "audited")[0] in (0, 3)
    rows = {"prompt": [f"Tell me about thing {word}" for word in ("one", "two", "three")]}
    for name, answer in (("a", "I can't help with that."), ("b", "Sure, it is made of wood.")):
        pq.write_table(pa.table(rows | {"said": [f"{answer} {k}" for k in range(3)]}), tmp_path / f"{name}.parquet")
    tables = ("--base", tmp_path / "a.parquet", "--attacked", f"5={tmp_path / 'b.parquet'}")
    code, _, err = cli(
        "score", *tables, "-o", tmp_path / "t", "--judge", "phrases", "--no-rd", "--response-column", "said", "--json"
    )
    assert code == 0, err
    code, _, err = cli("score", *tables, "-o", tmp_path / "u", "--judge", "phrases", "--no-rd")
    assert code == 1 and "no column 'response'" in err
    write_csv(tmp_path / "c.csv", ("prompt", "said"), [{"prompt": "a", "said": "b"}])
    tables = ("--base", tmp_path / "c.csv", "--attacked", f"5={tmp_path / 'c.csv'}")
    code, _, err = cli("score", *tables, "-o", tmp_path / "u", "--judge", "phrases", "--no-rd")
    assert code == 1 and "no column 'response'" in err and "--response-column" in err


def test_redacted_logs_are_not_scored(cli: Cli, run: Path, tmp_path: Path) -> None:
    arm = min(path.name for path in (run / "outputs").iterdir())
    cli("export", run, "--format", "inspect")
    base, after = (run / "inspect" / f"{arm}_{dose}.eval" for dose in (0, 2))
    code, _, err = cli("score", "--base", base, "--attacked", f"2={after}", "-o", tmp_path / "scored")
    assert code == 1 and "are redacted" in err and "--show-text" in err


def test_doctor_looks_at_the_extras() -> None:
    names = {finding.name: finding for finding in doctor.package_findings("tamperdose")}
    assert {"extra inspect", "extra parquet", "extra hub"} <= set(names)
    assert names["extra inspect"].state is doctor.State.OK
