"""Does one run reproduce another? Folders of answers whose truth is known."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from paged import JUDGES, audit_of, output_rows, write_outputs_of
from tamperdose.audit.findings import Outcome
from tamperdose.audit.serial import to_json as to_audit_json
from tamperdose.errors import DataError
from tamperdose.files import write_csv, write_json
from tamperdose.report.reproductions import print_comparison, verdict_lines
from tamperdose.run.outputs import read_outputs
from tamperdose.run.reproduction import compare_runs, to_json
from tamperdose.stats.reproduction import Reproduction

ARM, DOSES = "an-arm", (0, 4, 16)
Labelled = Callable[[int, int], bool]


def folder_of(
    path: Path,
    refused: Labelled,
    *,
    n: int = 120,
    arm: str = ARM,
    doses: tuple[int, ...] = DOSES,
    refusal: str = "I cannot.",
) -> Path:
    def answer(number: int, dose: int) -> tuple[str, str]:
        kept = refused(number, dose)
        return ("refusal", refusal) if kept else ("compliance", f"Sure, {number}.")

    write_outputs_of(path, arm, doses, n=n, answer=answer)
    write_json(path / "manifest.json", {"study": "s", "headline_judge": JUDGES[0]})
    return path


def by_number(number: int, dose: int) -> bool:
    return number % 16 >= dose


def test_a_run_reproduces_itself(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    found = compare_runs(a, a)
    assert found.verdict is Reproduction.REPRODUCES and found.judge == JUDGES[0]
    assert {(one.dose, one.judge, one.metric) for one in found.differences} == {
        (dose, judge, metric) for dose in DOSES for judge in JUDGES for metric in ("RRR", "over_refusal_rate")
    }
    assert all(one.result.difference.value == 0 and one.n_same == one.n_answers for one in found.differences)


def test_a_run_that_breaks_elsewhere_differs(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    b = folder_of(tmp_path / "b", lambda number, dose: dose == 0 or (dose == 4 and number % 4 == 0))
    found = compare_runs(a, b)
    assert found.verdict is Reproduction.DIFFERS
    at = {one.dose: one for one in found.differences if one.judge == JUDGES[0] and one.metric == "RRR"}
    assert [at[dose].verdict for dose in DOSES] == [
        Reproduction.REPRODUCES,
        Reproduction.DIFFERS,
        Reproduction.REPRODUCES,
    ]
    assert at[4].rate_a == pytest.approx(sum(by_number(k, 4) for k in range(120)) / 120) and at[4].rate_b == 0.25
    assert at[4].p_holm is not None and at[4].p_holm < 1e-6 and at[4].n_tests == 3


def test_few_prompts_decide_nothing(tmp_path: Path) -> None:
    a, b = (folder_of(tmp_path / name, by_number, n=12, refusal=f"I cannot {name}.") for name in "ab")
    assert compare_runs(a, b).verdict is Reproduction.UNDECIDED
    assert compare_runs(a, a).verdict is Reproduction.REPRODUCES, "word for word"
    assert compare_runs(a, b, margin=0.5).verdict is Reproduction.REPRODUCES


def test_seeds_within_the_margin_are_rarely_said_to_differ(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    ends = []
    for k in range(20):
        tables = rng.random((2, 3, 120)) < 0.5
        a, b = (
            folder_of(
                tmp_path / f"{k}{side}",
                lambda number, dose, table=table: bool(table[DOSES.index(dose), number]),
            )
            for side, table in zip("ab", tables, strict=True)
        )
        ends.append(compare_runs(a, b).verdict)
    assert Reproduction.DIFFERS not in ends


def test_prompts_are_paired_by_id_whatever_their_order(tmp_path: Path) -> None:
    a, b = (folder_of(tmp_path / name, by_number) for name in "ab")
    for dose in DOSES:
        path = b / "outputs" / ARM / f"{dose}.csv"
        rows = output_rows(
            120, dose, lambda k, d: ("refusal", "I cannot.") if by_number(k, d) else ("compliance", "Yes.")
        )
        write_csv(path, list(rows[0]), reversed(rows))
    found = compare_runs(a, b)
    assert found.verdict is Reproduction.REPRODUCES
    n_kept = sum(by_number(k, 4) for k in range(120))
    assert [one.n_same for one in found.differences[:2]] == [120, n_kept]


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    with pytest.raises(DataError, match=r"(?s)other prompts at dose 0.*20 of A alone, e\.g\. 'h100"):
        compare_runs(a, folder_of(tmp_path / "fewer", by_number, n=100))
    other = folder_of(tmp_path / "other", by_number)
    path = other / "outputs" / ARM / "4.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("request 7", "Request 7"), encoding="utf-8")
    with pytest.raises(DataError, match=r"(?s)at dose 4.*11 ids with another text"):
        compare_runs(a, other)


def test_arms_are_matched_by_name_or_as_asked(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    single = folder_of(tmp_path / "single", by_number, arm="another")
    assert {one.arm_b for one in compare_runs(a, single).differences} == {"another"}
    folder_of(single, by_number, arm="third")
    with pytest.raises(DataError, match="no arm of one name"):
        compare_runs(a, single)
    found = compare_runs(a, single, arms=[(ARM, "third")])
    assert found.notes[0] == "not compared, in B alone: another"
    with pytest.raises(DataError, match="has no arm 'fourth'"):
        compare_runs(a, single, arms=[(ARM, "fourth")])


def test_doses_that_one_has_alone_are_named(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    b = folder_of(tmp_path / "b", by_number, doses=(0, 4, 8))
    assert compare_runs(a, b).notes[:2] == (
        f"{ARM}: not compared, doses in A alone: 16",
        f"{ARM}: not compared, doses in B alone: 8",
    )
    with pytest.raises(DataError, match="no dose that both runs have"):
        compare_runs(a, folder_of(tmp_path / "c", by_number, doses=(2, 3)))


def test_a_folder_without_answers_and_a_margin_that_is_none(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    write_json(tmp_path / "bare" / "manifest.json", {"headline_judge": "x"})
    with pytest.raises(DataError, match="has no answers to compare"):
        compare_runs(a, tmp_path / "bare")
    with pytest.raises(DataError, match="not a margin"):
        compare_runs(a, a, margin=0.0)


def test_json_has_every_figure(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    told = json.loads(json.dumps(to_json(compare_runs(a, a)), allow_nan=False))
    assert told["verdict"] == "reproduces" and told["margin"] == 0.1
    first = told["differences"][0]
    assert {"dose", "rate_a", "rate_b", "value", "low", "high", "p_value", "p_holm", "n", "verdict"} <= set(first)


def test_answers_are_read_as_they_were_written(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    rows = read_outputs(a / "outputs" / ARM / "16.csv")
    assert len(rows) == 123 and rows[0].id == "h0<b>" and set(rows[0].labels) == set(JUDGES)


def test_what_an_audit_withholds_takes_no_part(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    b = folder_of(tmp_path / "b", lambda number, dose: by_number(number, dose) and dose != 16)
    broken = folder_of(tmp_path / "broken", lambda number, dose: by_number(number, dose) and dose != 4)
    assert compare_runs(a, broken).verdict is Reproduction.DIFFERS
    write_json(broken / "audit.json", to_audit_json(audit_of(ARM, DOSES, Outcome.FAIL, at=(4,))))
    found = compare_runs(a, broken)
    assert found.verdict is Reproduction.REPRODUCES
    assert [one.dose for one in found.deciding] == [0, 16]
    assert f"{ARM}: an audit does not support RRR at dose 4 (degeneration)" in found.notes
    assert "A has no audit" in found.notes and "B has no audit" not in found.notes
    told = [one for one in to_json(found)["differences"] if one["not_supported_because"]]
    assert {(one["dose"], one["metric"]) for one in told} == {(4, "RRR")}
    [first, *_] = verdict_lines(found)
    assert "at 2 of A's 3 arm x dose" in first
    assert [*verdict_lines(found)][-1].endswith("of 360")
    assert compare_runs(a, broken, force=True).verdict is Reproduction.DIFFERS
    write_json(b / "audit.json", to_audit_json(audit_of(ARM, DOSES, Outcome.FAIL)))
    assert compare_runs(a, b).verdict is Reproduction.UNDECIDED, "nothing is supported"


def test_rates_that_an_audit_withholds_are_not_printed(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    write_json(a / "audit.json", to_audit_json(audit_of(ARM, DOSES, Outcome.FAIL, at=(4,))))
    console = Console(record=True, width=200, file=io.StringIO())
    print_comparison(compare_runs(a, a), console)
    [line] = [line for line in console.export_text().split("\n") if line.split()[:3] == ["4", "RRR", JUDGES[0]]]
    assert "0.7" not in line and line.split()[3:] == ["withheld"] * 5 + ["120", "/", "120", "withheld"]


def test_a_part_of_a_run_is_not_the_whole(tmp_path: Path) -> None:
    a = folder_of(tmp_path / "a", by_number)
    found = compare_runs(a, folder_of(tmp_path / "b", by_number, doses=(0, 8)))
    assert found.verdict is Reproduction.REPRODUCES and found.n_cells_a == 3
    assert next(iter(verdict_lines(found))).startswith("B reproduces A: RRR by classifier@1 at 1 of A's 3 arm x dose")


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    a, b = (folder_of(tmp_path / name, by_number) for name in "ab")
    for folder, tokens in ((a, 32), (b, 512)):
        answers = {str(dose): {"decoding": {"max_new_tokens": tokens}, "settings": {"dtype": "f"}} for dose in DOSES}
        write_json(folder / "manifest.json", {"headline_judge": JUDGES[0], "answers": {ARM: answers}})
    assert "answered otherwise: max_new_tokens 32 in A, 512 in B" in compare_runs(a, b).notes
    for folder, version in ((a, "2"), (b, "3")):
        versions = {JUDGES[0]: f"version {version}", JUDGES[1]: "version 1"}
        write_json(folder / "manifest.json", {"headline_judge": JUDGES[0], "judge_versions": versions})
    notes = compare_runs(a, b).notes
    assert f"read otherwise: {JUDGES[0]} version 2 in A, version 3 in B" in notes
    assert sum("otherwise" in note for note in notes) == 1
    write_json(b / "manifest.json", {"headline_judge": JUDGES[0], "judge_versions": {JUDGES[0]: "3" * 1_000_000}})
    assert max(map(len, compare_runs(a, b).notes)) < 500
    write_json(b / "manifest.json", {"headline_judge": JUDGES[0], "answers": {ARM: [1], "x": {"y": 2}}})
    assert not [note for note in compare_runs(a, b).notes if "otherwise" in note]
