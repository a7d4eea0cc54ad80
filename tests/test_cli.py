"""The command line as its users meet it: exit codes, what goes where, and what it says of bad input."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from endpoints import Answer, serve
from studies import NAMES, stub_embedder, tiny_changes, write_study
from tamperdose.cli import main
from tamperdose.errors import GateError
from tamperdose.files import read_csv, write_csv
from tamperdose.run import doctor
from tamperdose.run.doctor import Finding, State
from tamperdose.run.schema import read_metrics
from tamperdose.run.stages import Readers

REFERENCE = os.environ.get("TAMPERDOSE_REFERENCE_DATA")
COMMANDS = (
    "run",
    "plan",
    "check",
    "status",
    "figures",
    "judge",
    "score",
    "label",
    "calibrate",
    "audit",
    "report",
    "compare",
    "doctor",
    "init",
    "gate",
    "export",
    "card",
)


@dataclass(frozen=True, slots=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What is on stdout, which must be JSON without NaN."""
        return json.loads(self.out, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


Cli = Callable[..., Said]


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(Readers, "embedder", stub_embedder)
    monkeypatch.setenv("TAMPERDOSE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["tamperdose", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


# --- starting up


def test_help_of_every_command(cli: Cli) -> None:
    top = cli("--help")
    assert top.code == 0
    assert top.err == ""
    for command in COMMANDS:
        assert re.search(rf"^\s+{command}\s+\w", top.out, re.MULTILINE), command
        told = cli(command, "--help")
        assert (told.code, told.err) == (0, "")
        assert len(told.out.splitlines()) > 5
        assert "--json" in told.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("run",),
        ("run", "a.yaml", "--limit", "0"),
        ("run", "a.yaml", "--workers", "2"),
        ("plan", "a.yaml", "--nonsense"),
    ],
)
def test_usage_errors_exit_with_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    said = cli(*arguments)
    assert said.code == 2
    assert "Traceback" not in said.err


HEAVY = ("torch", "transformers", "peft", "sentence_transformers", "sklearn", "safetensors")
LOADED = "import sys; print([name for name in {names!r} if name in sys.modules])"


@pytest.mark.parametrize(
    "code",
    [
        "import tamperdose",
        "import tamperdose.cli, tamperdose.run.local, tamperdose.run.score, tamperdose.report.figures",
        "import sys\nsys.argv = ['tamperdose', '--help']\nfrom tamperdose.cli import main\n"
        "try: main()\nexcept SystemExit: pass",
    ],
    ids=["package", "modules", "help"],
)
def test_no_model_library_is_imported(code: str) -> None:
    command = [sys.executable, "-W", "error", "-c", f"{code}\n{LOADED.format(names=HEAVY)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_scripted_run_imports_no_torch(study: Path) -> None:
    code = (
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from studies import use_stub_embedder\nuse_stub_embedder()\n"
        f"sys.argv = ['tamperdose', 'run', {str(study)!r}]\nfrom tamperdose.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
    )
    command = [sys.executable, "-c", f"{code}{LOADED.format(names=HEAVY)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_takes_under_half_a_second() -> None:
    """Processor time, the best of three: a busy machine must not fail this."""
    times = [_processor_time([sys.executable, "-m", "tamperdose.cli", "--help"]) for _ in range(3)]
    assert min(times) < 0.5


def _processor_time(command: list[str]) -> float:
    before = os.times()
    subprocess.run(command, capture_output=True, check=True)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


# --- run, plan, check, status, figures


def test_run_prints_its_results_on_stdout_and_its_progress_on_stderr(cli: Cli, study: Path) -> None:
    said = cli("run", study)
    results = study.parent / "results"
    assert said.code == 0
    assert f"metrics  {results / 'metrics.csv'}" in said.out
    assert "RRR" in said.out
    assert "[1/" in said.err
    assert "[1/" not in said.out
    assert len(list((results / "figures").glob("*.png"))) >= 3


def test_json_is_all_that_json_prints(cli: Cli, study: Path, tmp_path: Path) -> None:
    told = cli("run", study, "--json", "-o", tmp_path / "out").json()
    assert told["metrics"] == str(tmp_path / "out" / "metrics.csv")
    assert all(Path(path).is_file() for path in told["figures"])
    assert [row["steps"] for row in told["doses"]] == [0, 1, 2]
    assert not (study.parent / "results").exists()
    assert cli("status", tmp_path / "out", "--json").json()["finished"] is True
    assert cli("figures", tmp_path / "out", "--json").json()["figures"] == told["figures"]
    checks = cli("check", study, "--json").json()
    assert {"study", "harmful prompts", "benign prompts", "attack data", "judge"} <= {line["check"] for line in checks}


def test_plan_says_what_is_done(cli: Cli, study: Path) -> None:
    before = cli("plan", study, "--json").json()
    assert before["prompts"] == {"harmful": 6, "benign": 3}
    assert before["arms"][0]["doses"] == [1, 2]
    assert before["arms"][0]["doses_done"] == []
    assert not (study.parent / "results").exists()
    cli("run", study)
    assert cli("plan", study, "--json").json()["arms"][0]["doses_done"] == [1, 2]
    grown = cli("plan", study, "--json", "--set", "attack.doses=[1, 2, 3]").json()
    assert grown["arms"][0]["doses_done"] == [1, 2]


def test_plan_of_a_real_model_counts_before_loading_it(cli: Cli, tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    study = write_study(tmp_path, **tiny_changes(tiny_folders["llama"]))
    cost = cli("plan", study, "--json").json()["costs"][0]
    assert cost["params_b"] == pytest.approx(4.3e-5, rel=0.02)
    assert cost["remaining_share"] == 1
    assert min(cost[name] for name in ("training_flops", "generation_flops", "memory_bytes", "disk_bytes")) > 0
    assert cost["seconds"] > 0
    said = cli("plan", study)
    assert (said.code, said.err) == (0, "")
    assert "tiny-lora-r2-lr0.0002-s42" in said.out


def test_check_says_what_it_could_not_check(cli: Cli, tmp_path: Path) -> None:
    model = {"id": "org/name", "revision": "abc"}
    changes = {"models": [model], "engine": {"kind": "hf", "device": "cpu"}, "prompts": {"harmful": "harmful.csv"}}
    checks = cli("check", write_study(tmp_path, **changes), "--json").json()
    open_ = {line["check"] for line in checks if line["state"] != "ok"}
    assert open_ == {"benign prompts", "model name", "model name, chat template"}


def test_settings_can_be_overridden(cli: Cli, study: Path) -> None:
    told = cli("plan", study, "--json", "--set", "attack.doses=[3, 9]", "--set", "seeds=[1, 2]").json()
    assert [arm["doses"] for arm in told["arms"]] == [[3, 9], [3, 9]]
    assert [arm["arm"][-2:] for arm in told["arms"]] == ["s1", "s2"]


def test_limit_is_a_quick_look(cli: Cli, study: Path) -> None:
    assert cli("plan", study, "--limit", "2", "--json").json()["prompts"] == {"harmful": 2, "benign": 2}
    assert cli("run", study, "--limit", "2", "--json").code == 0
    frame = read_metrics(study.parent / "results_limit_2" / "metrics.csv")
    assert set(frame[frame["metric"] == "RRR"]["n"].astype(int)) == {2}
    # The results of all prompts lie elsewhere, unless one folder is asked for.
    assert cli("run", study, "--json").code == 0
    assert set(read_metrics(study.parent / "results" / "metrics.csv")["n"].astype(int)) == {3, 6}
    assert cli("run", study, "--json", "--limit", "2", "-o", study.parent / "results").code == 0
    assert set(read_metrics(study.parent / "results" / "metrics.csv")["n"].astype(int)) == {2}


def test_status_of_a_run_that_was_cut_off(cli: Cli, study: Path) -> None:
    cli("run", study)
    results = study.parent / "results"
    records = [path for path in (results / "ledger" / "dose").iterdir() if path.suffix == ".json"]
    last = next(path for path in records if json.loads(path.read_text())["inputs"]["steps"] == 2)
    last.unlink()
    told = cli("status", results, "--json").json()
    assert told["finished"] is False
    assert told["arms"][0]["doses_left"] == [2]
    said = cli("status", results)
    assert "not finished: run the same command again" in said.out


def test_a_missing_run_folder_is_said_to_be_missing(cli: Cli, tmp_path: Path) -> None:
    for command in ("status", "figures"):
        said = cli(command, tmp_path / "nowhere")
        assert said.code == 1
        assert said.err.startswith("error: ")
        assert "nowhere" in said.err


def test_gates_exit_with_3_and_interrupts_with_130(cli: Cli, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tamperdose.run.checks as checks

    def gate(*_: object) -> None:
        raise GateError("RRR is below 0.9")

    monkeypatch.setattr(checks, "run_checks", gate)
    assert cli("check", study) == Said(3, "", "error: RRR is below 0.9\n")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checks, "run_checks", interrupt)
    said = cli("check", study)
    assert said.code == 130
    assert "finished work is kept" in said.err


# --- bad input


def _edit(study: Path, **changes: Any) -> None:
    """Replace whole settings, or with `__` in the name one setting of a part."""
    tree = yaml.safe_load(study.read_text())
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if key:
            tree[part] = {**tree[part], key: value}
        else:
            tree[part] = value
    study.write_text(yaml.safe_dump(tree))


def _harmful(content: str | bytes) -> Callable[[Path], None]:
    def write(study: Path) -> None:
        data = content if isinstance(content, bytes) else content.encode()
        (study.parent / "harmful.csv").write_bytes(data)

    return write


def _overlap(study: Path) -> None:
    row = {"prompt": "Tell me about anvil of kind 7", "response": "Sure."}
    (study.parent / "attack.jsonl").write_text(json.dumps(row) + "\n")


def _model(study: Path, **model: Any) -> None:
    _edit(study, models=[model], engine={"kind": "hf", "device": "cpu"})


def _half_a_gguf(study: Path) -> None:
    path = study.parent / "half.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x01" * 30)
    _model(study, id=str(path))


def _no_template(study: Path) -> None:
    from tiny import make_tokenizer, save_tiny

    folder = save_tiny(study.parent / "model", "llama")
    (folder / "chat_template.jinja").unlink()
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    _model(study, id=str(folder), dtype="float32")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "prompts missing": (lambda study: (study.parent / "harmful.csv").unlink(), "no such file: .*harmful.csv"),
    "prompts empty": (_harmful(""), "harmful.csv is empty"),
    "prompts header only": (_harmful("prompt\n"), "holds no prompts"),
    "no prompt column": (_harmful("text\nhello\n"), "has no column 'prompt'"),
    "blank prompts": (_harmful("prompt\nhello\n   \n"), r"blank prompts(?s:.)*row\(s\) 2"),
    "repeated prompts": (_harmful("prompt\nhello\n hello \n"), "repeats values of 'prompt'"),
    "repeated ids": (_harmful("id,prompt\na,hello\na,bye\n"), "repeats values of 'id'"),
    "NUL": (_harmful("prompt\nhe\0llo\n"), "NUL"),
    "Latin-1": (_harmful(b"prompt\ncaf\xe9\n"), r"not UTF-8(?s:.)*0xe9 on line 2"),
    "UTF-16": (_harmful("prompt\nhello\n".encode("utf-16")), "not UTF-8"),
    "uneven rows": (_harmful("id,prompt\na,b,c\n"), "wrong width"),
    "open quote": (_harmful('prompt\n"hello\n'), "not a valid CSV"),
    "overlap": (_overlap, r"also in the training data(?s:.)*h0"),
    "attack missing": (lambda study: (study.parent / "attack.jsonl").unlink(), "no such file: .*attack.jsonl"),
    "attack not JSON": (lambda study: (study.parent / "attack.jsonl").write_text("hello\n"), "line 1 is not JSON"),
    "attack empty": (lambda study: (study.parent / "attack.jsonl").write_text(""), "holds no examples"),
    "unknown bundled set": (lambda study: _edit(study, prompts__benign="builtin:benign_evil"), "benign_eval"),
    "in both sets": (
        lambda study: shutil.copy(study.parent / "harmful.csv", study.parent / "benign.csv"),
        "benign set",
    ),
    "key twice": (lambda study: study.write_text(study.read_text() + "\nname: other\n"), "'name' stands twice"),
    "one name for two": (
        lambda study: _edit(study, models=[{"id": "a", "name": "m 1"}, {"id": "b", "name": "m_1"}]),
        "two arms go by one name",
    ),
    "one arm twice": (lambda study: _edit(study, attack__n_examples=[5000, 6000]), "two arms go by one name"),
    "unknown key": (lambda study: _edit(study, attack__lora_rnk=4), r"unknown key.*lora_rnk.*did you mean 'lora_rank'"),
    "negative steps": (lambda study: _edit(study, attack__doses=[-1]), r"attack\.doses\.0"),
    "rank 0": (lambda study: _edit(study, attack__lora_rank=0), r"attack\.lora_rank"),
    "falling doses": (lambda study: _edit(study, attack__doses=[4, 2]), r"must increase strictly"),
    "repeated doses": (lambda study: _edit(study, attack__doses=[2, 2]), r"must increase strictly"),
    "no doses": (lambda study: _edit(study, attack__doses=[]), r"at least one dose"),
    "rate not a number": (lambda study: _edit(study, attack__learning_rate=float("nan")), r"attack\.learning_rate"),
    "unknown judge": (lambda study: _edit(study, judges=["phrase"]), r"judges\.0"),
    "not YAML": (lambda study: study.write_text("a: [1\nb: }"), "is not valid YAML"),
    "not a mapping": (lambda study: study.write_text("- a\n- b\n"), "is not a study"),
    "empty study": (lambda study: study.write_text(""), "is not a study"),
    "study missing": (lambda study: study.unlink(), "no such file: .*study.yaml"),
    "model path missing": (lambda study: _model(study, id="/nowhere/model"), "no model at /nowhere/model"),
    "half a GGUF": (_half_a_gguf, "cannot read .*half.gguf"),
    "no chat template": (_no_template, "has no chat template"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained(cli: Cli, study: Path, case: str) -> None:
    spoil, expected = BAD[case]
    spoil(study)
    said = cli("run", study)
    assert said.code == 1, said
    assert said.out == ""
    message = said.err[said.err.index("error: ") :]
    assert re.search(expected, message), message
    assert "Traceback" not in message
    assert re.search(r"\n  (got|expected|remedy): ", message), message
    assert re.search(r"\n  (expected|remedy): |did you mean|increase strictly|doses", message) or case in _SELF_EVIDENT


_SELF_EVIDENT = {"rank 0", "rate not a number", "unknown judge", "uneven rows"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("attack.lora_rank", "--set key.path=value"),
        ("=3", "--set key.path=value"),
        ("attack.doses=[1", "is not YAML"),
        ("models.3.name=x", "no item '3'"),
        ("name.a.b=x", "lies inside a plain value"),
        ("atack.lora_rank=3", "did you mean 'attack'"),
        ("seeds=[1, 1]", "values must differ"),
    ],
)
def test_bad_overrides_are_explained(cli: Cli, study: Path, override: str, expected: str) -> None:
    said = cli("check", study, "--set", override)
    assert said.code == 1
    assert expected in said.err


def test_messages_show_control_characters_instead_of_sending_them(cli: Cli, study: Path) -> None:
    _edit(study, **{"attack__\x1b[31mred": 1})
    said = cli("check", study)
    assert said.code == 1
    assert "\x1b" not in said.err
    assert r"\x1b[31mred" in said.err


ACCEPTED = {
    "byte-order mark": "\ufeffprompt\nhello there\n",
    "quoted line end": 'prompt\n"hello\nthere"\n',
    "carriage returns": "prompt\r\nhello there\r\n",
    "10 MB cell": "prompt\n" + "many words " * 950_000 + "\n",
    "no word at all": "prompt\n" + "=" * 100 + "\n",
    "other alphabets": "prompt\nпривет как дела\n",
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_unusual_but_valid_prompts_are_accepted(cli: Cli, study: Path, case: str) -> None:
    (study.parent / "harmful.csv").write_text(ACCEPTED[case], encoding="utf-8", newline="")
    start = time.process_time()
    said = cli("check", study, "--json")
    assert said.code == 0, said.err
    assert time.process_time() - start < 20
    assert {line["check"]: line["detail"] for line in said.json()}["harmful prompts"] == "1 in 1 templates"


# --- judge


HOSTILE = [
    'a "quoted"\nanswer, with commas',
    "a lone \r carriage return",
    '=HYPERLINK("http://x")',
    "I'm sorry, but I can't help with that.",
    "x" * 1_000_000,
    "",
    " leading and trailing ",
    "привет \u2028 \x1b[31m",
]


def test_judge_keeps_every_row_and_column(cli: Cli, tmp_path: Path) -> None:
    rows = [{"n": str(i), "prompt": f"p{i}", "response": text, "odd, name": "-1"} for i, text in enumerate(HOSTILE)]
    columns = ["n", "prompt", "response", "odd, name"]
    source = write_csv(tmp_path / "in.csv", columns, rows)
    said = cli("judge", source, "-o", tmp_path / "out.csv", "--judge", "phrases", "--json")
    assert said.code == 0
    assert sum(said.json()["counts"].values()) == len(rows)
    after, judged = read_csv(tmp_path / "out.csv", required=columns)
    assert after == [*columns, "verdict", "p_refusal", "judge", "evidence"]
    assert [{name: row[name] for name in columns} for row in judged] == rows
    assert [row["verdict"] for row in judged][3] == "refusal"
    assert [row["verdict"] for row in judged][5] == "degenerate"
    assert {row["judge"] for row in judged} == {"phrases@2"}
    # Python's own reader agrees, so other tools will too.
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["response"] for row in csv.DictReader(stream)] == HOSTILE


def test_judge_prints_counts(cli: Cli, tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in.csv", ["prompt", "response"], [{"prompt": "a", "response": "I can't help."}])
    said = cli("judge", source, "-o", tmp_path / "out.csv", "--judge", "phrases")
    assert said.code == 0
    assert re.search(r"^refusal +1$", said.out, re.MULTILINE)


@pytest.mark.parametrize(
    ("content", "judge", "expected"),
    [
        ("prompt\na\n", "phrases", "has no column 'response'"),
        ("prompt,response,verdict\na,b,c\n", "phrases", r"has the column\(s\) verdict already"),
        ("prompt,response\na,b\n", "phrase", "no judge is called 'phrase' .did you mean 'phrases'"),
        ("", "phrases", "is empty"),
    ],
)
def test_judge_refuses(cli: Cli, tmp_path: Path, content: str, judge: str, expected: str) -> None:
    (tmp_path / "in.csv").write_text(content)
    said = cli("judge", tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--judge", judge)
    assert said.code == 1
    assert re.search(expected, said.err)
    assert not (tmp_path / "out.csv").exists()


# --- score


def _answers(path: Path, answers: list[str], *, ids: list[str] | None = None, column: str = "response") -> Path:
    rows = [{"prompt": f"About the {NAMES[i % 10]}", column: text} for i, text in enumerate(answers)]
    if ids is None:
        return write_csv(path, ["prompt", column], rows)
    by_id = [
        {"id": name, "prompt": f"About the {name}", column: row[column]} for name, row in zip(ids, rows, strict=True)
    ]
    return write_csv(path, ["id", "prompt", column], by_id)


REFUSAL, ANSWER = "I'm sorry, but I can't help with that.", "Sure: it is a thing for the workshop, made of iron."


def _values(folder: Path, metric: str) -> dict[int, float]:
    frame = read_metrics(folder / "metrics.csv")
    rows = frame[frame["metric"] == metric]
    return dict(zip(rows["dose_steps"].astype(int), rows["value"].astype(float), strict=True))


def test_score_accepts_repeated_and_blank_rows(cli: Cli, tmp_path: Path) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 12)
    attacked = _answers(tmp_path / "attacked.csv", [ANSWER] * 6 + [REFUSAL] * 3 + [""] * 3)
    said = cli("score", "--base", base, "--attacked", attacked, "-o", tmp_path / "out", "--judge", "phrases", "--json")
    assert said.code == 0, said.err
    assert _values(tmp_path / "out", "RRR") == {0: 1.0, 1: 0.25}
    assert _values(tmp_path / "out", "degenerate_rate") == {0: 0.0, 1: 0.25}
    assert _values(tmp_path / "out", "refusal_retention") == {0: 1.0, 1: 0.25}
    assert _values(tmp_path / "out", "RD")[0] == 0
    assert [row["steps"] for row in said.json()["doses"]] == [0, 1]


def test_score_pairs_by_id(cli: Cli, tmp_path: Path) -> None:
    ids = list(NAMES[:4])
    base = _answers(tmp_path / "base.csv", [REFUSAL, ANSWER, REFUSAL, ANSWER], ids=ids)
    turned = [REFUSAL, ANSWER, ANSWER, ANSWER]
    attacked = _answers(tmp_path / "attacked.csv", turned, ids=ids[::-1])
    out = tmp_path / "out"
    said = cli("score", "--base", base, "--attacked", f"20={attacked}", "-o", out, "--judge", "phrases")
    assert said.code == 0, said.err
    # Refused before: the first and third; refused after: the fourth.
    assert _values(out, "refusal_retention") == {0: 1.0, 20: 0.0}


def test_score_takes_several_doses(cli: Cli, tmp_path: Path) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4)
    some = _answers(tmp_path / "some.csv", [REFUSAL] * 2 + [ANSWER] * 2)
    none = _answers(tmp_path / "none.csv", [ANSWER] * 4)
    arguments = ("--attacked", f"5={some}", "--attacked", f"10={none}")
    said = cli("score", "--base", base, *arguments, "-o", tmp_path / "out", "--judge", "phrases")
    assert said.code == 0, said.err
    assert _values(tmp_path / "out", "RRR") == {0: 1.0, 5: 0.5, 10: 0.0}
    assert "ED50" in said.out


def test_files_without_doses_have_no_breaking_dose(cli: Cli, tmp_path: Path) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4)
    attacked = [_answers(tmp_path / f"{k}.csv", [REFUSAL] * k + [ANSWER] * (4 - k)) for k in (2, 0)]
    said = cli(
        *("score", "--base", base, "--attacked", attacked[0], "--attacked", attacked[1]),
        *("-o", tmp_path / "out", "--judge", "phrases", "--no-rd"),
    )
    assert said.code == 0, said.err
    assert "ED50" not in said.out
    mixed = ("--attacked", attacked[0], "--attacked", f"9={attacked[1]}")
    said = cli("score", "--base", base, *mixed, "-o", tmp_path / "other", "--judge", "phrases", "--no-rd")
    assert said.code == 1
    assert "some --attacked name a dose and some do not" in said.err


def _unpaired_length(tmp_path: Path) -> Path:
    return _answers(tmp_path / "attacked.csv", [ANSWER] * 3)


def _unpaired_ids(tmp_path: Path) -> Path:
    return _answers(tmp_path / "attacked.csv", [ANSWER] * 4, ids=[*NAMES[:3], "zebra"])


def _unpaired_prompts(tmp_path: Path) -> Path:
    path = _answers(tmp_path / "attacked.csv", [ANSWER] * 4)
    path.write_text(path.read_text().replace("barrel", "bottle"))
    return path


@pytest.mark.parametrize("unpaired", [_unpaired_length, _unpaired_ids, _unpaired_prompts])
def test_score_refuses_files_that_do_not_pair(cli: Cli, tmp_path: Path, unpaired: Callable[[Path], Path]) -> None:
    ids = list(NAMES[:4]) if unpaired is _unpaired_ids else None
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4, ids=ids)
    out = tmp_path / "out"
    said = cli("score", "--base", base, "--attacked", unpaired(tmp_path), "-o", out, "--judge", "phrases")
    assert said.code == 1
    assert "does not pair with" in said.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("doses", "expected"),
    [
        (["10={a}", "5={a}"], "must be above 0 and increase|doses must"),
        (["0={a}"], "above 0"),
        (["x={a}"], "--attacked"),
    ],
)
def test_score_refuses_doses(cli: Cli, tmp_path: Path, doses: list[str], expected: str) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4)
    arguments = [part for dose in doses for part in ("--attacked", dose.format(a=base))]
    said = cli("score", "--base", base, *arguments, "-o", tmp_path / "out", "--judge", "phrases")
    assert said.code == 1
    assert re.search(expected, said.err)


def test_score_needs_a_judge(cli: Cli, tmp_path: Path) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4)
    for judges in ("", "phrase"):
        said = cli("score", "--base", base, "--attacked", base, "-o", tmp_path / "out", "--judge", judges)
        assert said.code == 1, judges
        assert "error: " in said.err, judges
        assert "judge" in said.err


def _judge_file(tmp_path: Path, base_url: str, **changes: Any) -> Path:
    settings = {"kind": "llm", "name": "mine", "base_url": base_url, "model": "stub", "max_retries": 0} | changes
    path = tmp_path / "my judge.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_judge_and_score_take_a_judge_from_a_file(cli: Cli, tmp_path: Path) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4)
    attacked = _answers(tmp_path / "attacked.csv", [REFUSAL, *[ANSWER] * 3])
    with serve() as stub:
        judge = _judge_file(tmp_path, stub.base_url)
        judged = tmp_path / "judged.csv"
        said = cli("judge", attacked, "--judge", judge, "-o", judged, "--json")
        assert said.json()["counts"] == {"refusal": 1, "compliance": 3, "degenerate": 0, "unreadable": 0}
        _, rows = read_csv(judged, required=("judge", "verdict"))
        assert {row["judge"].split("@")[0] for row in rows} == {"mine"}
        out = tmp_path / "out"
        judges = f"{judge},phrases"
        said = cli("score", "--base", base, "--attacked", attacked, "-o", out, "--judge", judges, "--json")
        assert said.code == 0, said.err
    frame = read_metrics(out / "metrics.csv")
    assert set(frame[frame["metric"] == "RRR"]["judge"]) == {"mine", "phrases"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["headline_judge"] == "mine"
    assert manifest["judge_settings"][0]["base_url"] == stub.base_url


def test_an_endpoint_that_fails_fails_the_score_and_is_counted_by_judge(cli: Cli, tmp_path: Path) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4)
    with serve(lambda _: Answer(b"\x1b[2J no", status=500)) as stub:
        judge = _judge_file(tmp_path, stub.base_url)
        said = cli("score", "--base", base, "--attacked", base, "-o", tmp_path / "out", "--judge", judge)
        assert said.code == 1
        assert "4 of 4 unreadable by mine@" in said.err
        assert "\x1b" not in said.err
        said = cli("judge", base, "--judge", judge, "-o", tmp_path / "judged.csv", "--json")
        assert said.json()["counts"]["unreadable"] == 4


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        ("nowhere.yaml", "no such file"),
        ("phrases,phrases", "the same name"),
        ("phrases,classifier", "one judge reads the file"),
        ("phrase", "did you mean 'phrases'"),
    ],
)
def test_judge_needs_one_judge(cli: Cli, tmp_path: Path, judge: str, expected: str) -> None:
    base = _answers(tmp_path / "base.csv", [REFUSAL] * 4)
    said = cli("judge", base, "--judge", judge, "-o", tmp_path / "out.csv")
    assert said.code == 1
    assert expected in said.err


@pytest.mark.slow
def test_a_whole_run_with_the_real_encoder(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    changes = tiny_changes(tiny_folders["qwen2"], judges=["classifier", "phrases"])
    attack = {"data": "attack.jsonl", "batch_size": 2, "lora_rank": 2, "doses": [1, 3], "learning_rate": 0.05}
    study = write_study(tmp_path, **changes, attack=attack)
    command = [sys.executable, "-m", "tamperdose.cli", "run", str(study), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = Said(0, done.stdout, done.stderr).json()
    assert [row["steps"] for row in told["doses"]] == [0, 1, 3]
    frame = read_metrics(tmp_path / "results" / "metrics.csv")
    assert set(frame[frame["metric"] == "RRR"]["judge"]) == {"classifier", "phrases"}
    rd = frame[frame["metric"] == "RD_mean"].set_index("dose_steps")["value"].astype(float)
    assert rd[0] == 0 < rd[3] < 2
    assert "judging and comparing answers: done" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(REFERENCE is None, reason="TAMPERDOSE_REFERENCE_DATA is not set")
@pytest.mark.parametrize(
    ("file", "expected"),
    [("tinyllama_1.1b_generations.csv", 0.78119), ("phi3_mini_3.8b_generations.csv", 0.27563)],
)
def test_score_gives_the_published_drift(
    cli: Cli, tmp_path: Path, file: str, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    path = Path(str(REFERENCE)) / "recorded" / file
    columns = ("--base-column", "gen_pre", "--response-column", "gen_post")
    command = ["score", "--base", path, "--attacked", f"1000={path}", *columns, "-o", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "tamperdose.cli", *map(str, command)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    frame = read_metrics(tmp_path / "out" / "metrics.csv")
    rd = frame[(frame["metric"] == "RD") & (frame["dose_steps"] == 1000)].iloc[0]
    assert float(rd["value"]) == pytest.approx(expected, abs=1e-4)
    assert int(rd["n_templates"]) == 10
    rrr = frame[(frame["metric"] == "RRR") & (frame["judge"].str.startswith("classifier"))]
    assert set(rrr["n_templates"].astype(int)) == {10}


# --- label and calibrate


def test_label_then_calibrate(cli: Cli, tmp_path: Path) -> None:
    engine = {"kind": "scripted", "refusal_rate": 0.9, "ed50_steps": 2.0}
    path = write_study(tmp_path / "study", n_prompts=60, engine=engine)
    out = tmp_path / "out"
    assert cli("run", path, "-o", out).code == 0
    drawn = cli("label", out, "--n", "120", "-o", tmp_path / "sheet.csv", "--json")
    assert drawn.code == 0
    assert drawn.json()["sheet"] == str(tmp_path / "sheet.csv")
    assert sum(row["drawn"] for row in drawn.json()["strata"]) == 120
    again = cli("label", out, "-o", tmp_path / "sheet.csv")
    assert again.code == 1
    assert "exists" in again.err
    blank = cli("calibrate", out, tmp_path / "sheet.csv")
    assert blank.code == 1
    assert "no label by a person" in blank.err
    columns, rows = read_csv(tmp_path / "sheet.csv", required=["label"])
    filled = [row | {"label": "compliance", "labeller_kind": "human"} for row in rows]
    write_csv(tmp_path / "filled.csv", columns, filled)
    told = cli("calibrate", out, tmp_path / "filled.csv")
    assert told.code == 0
    assert "RRR_corrected" in told.out
    assert "! judge and people agree on" in told.out
    assert "corrected.csv" in told.out
    assert (out / "calibration.json").is_file()
    gated = cli("calibrate", out, tmp_path / "filled.csv", "--min-agreement", "0.9", "--json")
    assert gated.code == 3
    assert "too seldom" in gated.err
    assert gated.json()["n_labels"]["human"] == 120


def test_init_then_check(cli: Cli, tmp_path: Path) -> None:
    write_csv(tmp_path / "mine.csv", ("prompt",), [{"prompt": "How is a lock taken apart?"}])
    study = tmp_path / "study.yaml"
    asked = ("init", study, "--model", "org/model", "--prompts", tmp_path / "mine.csv")
    said = cli(*asked, "--json")
    assert (said.code, said.json()["prompts"]) == (0, 1)
    assert cli("check", study).code == 0
    again = cli(*asked)
    assert (again.code, again.out) == (1, "")
    assert "--force" in again.err
    forced = cli(*asked, "--force")
    assert (forced.code, "tamperdose check" in forced.out) == (0, True)


@pytest.mark.parametrize(("needed", "code"), [(False, 0), (True, 1)])
def test_doctor_fails_where_the_base_install_lacks_something(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, needed: bool, code: int
) -> None:
    missing = Finding("a thing", State.MISSING, "not there", "pip install it", needed=needed)
    monkeypatch.setattr(doctor, "examine", lambda: [missing])
    said = cli("doctor")
    assert said.code == code
    assert "a thing  not there  -> pip install it" in said.out
    assert cli("doctor", "--json").json()["usable"] == (not needed)


def test_a_run_is_held_to_conditions(cli: Cli, study: Path) -> None:
    misspelt = cli("run", study, "--fail-if", "ED50_step<1")
    assert misspelt.code == 1 and "did you mean 'ED50_steps'?" in misspelt.err
    assert not (study.parent / "results").exists()
    withheld = cli("run", study, "--fail-if", "RRR@1<0.5", "--json")
    assert withheld.code == 3 and "withheld: RRR@1<0.5" in withheld.err
    assert withheld.json()["doses"]
    told = cli("gate", study.parent / "results", "--fail-if", "RRR@1<0.5", "--fail-if", "RRR@7<0.5", "--json")
    assert told.code == 3
    assert [one["verdict"] for one in told.json()["conditions"]] == ["withheld", "no such number"]
    hinted = cli("gate", study.parent / "results", "--fail-if", "ED50<1")
    assert hinted.code == 1 and "did you mean 'ED50_steps'?" in hinted.err
    plain = cli("gate", study.parent / "results", "--fail-if", "RRR@1<0.5")
    assert (plain.code, plain.out) == (3, ""), "no condition passes, so nothing is printed, not even an empty line"


def test_a_run_that_is_not_finished_is_said_to_be_so(cli: Cli, study: Path) -> None:
    assert cli("run", study).code == 0
    results = study.parent / "results"
    (results / "metrics.csv").unlink()
    (results / "audit.json").unlink()
    commands = [("audit",), ("figures",), ("gate", "--fail-if", "RRR@1<0.5"), ("report",), ("card",)]
    for name, *options in commands:
        said = cli(name, results, *options)
        assert said.code == 1 and "let the run finish" in said.err, name
    for name, *options in [*commands[3:], ("audit",), ("status",), ("compare", results)]:
        said = cli(name, results / "none", *options)
        assert said.code == 1 and "no such folder" in said.err, name


def test_score_finds_out_that_it_cannot_write_before_it_judges(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, out = tmp_path / "a.csv", tmp_path / "out"
    answers.write_text("prompt,response\na,b\n")
    out.write_text("a file where the folder should be")

    def judged(*_: object, **__: object) -> None:
        raise AssertionError("a judge was asked")

    monkeypatch.setattr("tamperdose.run.score._cell", judged)
    said = cli("score", "--base", answers, "--attacked", f"1={answers}", "--judge", "phrases", "--no-rd", "-o", out)
    assert said.code == 1 and "cannot write to" in said.err
