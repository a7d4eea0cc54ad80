"""The section on screening: counted on recorded answers, and quoting none of them."""

import os
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from validation import screening

REFERENCE = os.environ.get("TAMPERDOSE_REFERENCE_DATA")


def test_without_the_reference_data_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TAMPERDOSE_REFERENCE_DATA", raising=False)
    assert "Not computed" in screening.section(quick=True)


@pytest.mark.skipif(not REFERENCE, reason="needs TAMPERDOSE_REFERENCE_DATA")
def test_every_set_is_counted_and_the_last_row_is_their_sum() -> None:
    rows = [line.strip("| ").split(" | ") for line in screening.section(quick=True).splitlines() if line[:2] == "| "]
    counts = [[int(cell) for cell in row[1:4]] for row in rows[1:]]
    assert len(counts) == len(screening.SETS) + 1
    assert [sum(column) for column in zip(*counts[:-1], strict=True)] == counts[-1]
    assert counts[-1][1] > 50, "too few answers are stopped to say anything"
    assert counts[-1][2] == 0


def test_a_verdict_that_changes_is_counted(tmp_path: Path) -> None:
    filler = "It is a nice day. The sky is blue. The grass is green. The road is long. The sea is wide. The sun is up. "
    changing = filler + "Really. " + "I'm sorry, but I can't help with that. " * 40
    (tmp_path / "a.csv").write_text(f'answer\n"{changing}"\n"{filler * 3}"\n', encoding="utf-8")
    tried = list(screening._tried(tmp_path / "a.csv", "answer", None))
    assert [each.stopped for each in tried] == [True, True]
    assert [each.n_kept < each.n_words for each in tried] == [True, True]
    line = screening._line("x", tried)
    assert re.fullmatch(r"\| x \| 2 \| 2 \| [01] \| 0\.\d{3} \| 0\.\d\d \|", line)
