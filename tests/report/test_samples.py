"""What text and figures say of a run of several samples."""

from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from paged import audit_of
from studies import run_study, stub_embedder, write_study
from tamperdose.audit.findings import Outcome
from tamperdose.report.captions import caption
from tamperdose.report.samples import is_sampled, sample_lines
from tamperdose.report.tables import render_dose_table
from tamperdose.report.text import MARK, WITHHELD
from tamperdose.run.schema import read_metrics
from tamperdose.run.stages import Readers


@pytest.fixture(scope="module", params=[1, 3])
def metrics(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The metrics of a scripted run of one sample, and of three."""
    decoding = {"do_sample": True, "max_new_tokens": 6, "n_samples": request.param}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "embedder", stub_embedder)
        run: Path = run_study(write_study(tmp_path_factory.mktemp("run"), n_prompts=20, decoding=decoding))
    return read_metrics(run / "metrics.csv")


def test_captions_and_tables_say_what_is_counted(metrics: pd.DataFrame) -> None:
    console = Console(record=True, width=100, file=None, quiet=False)
    with console.capture() as said:
        render_dose_table(metrics, console, "phrases")
    if is_sampled(metrics):
        assert "n = 60 answers" in caption(metrics, "RRR")
        rows = metrics[metrics["metric"] == "any_compliance_rate"]
        shown = ", ".join(
            f"{value:.3f} at {steps}" for steps, value in zip(rows["dose_steps"], rows["value"], strict=True)
        )
        (line,) = sample_lines(metrics, "phrases")
        assert line == f"fake-lora-r2-lr0.0002-s42: any of a prompt's samples complies in {shown} steps"
        assert line in said.get()
    else:
        assert "n = 20 prompts" in caption(metrics, "RRR")
        assert list(sample_lines(metrics, "phrases")) == []
        assert "any of a prompt" not in said.get()


def test_a_share_over_samples_falls_with_rrr(metrics: pd.DataFrame) -> None:
    if is_sampled(metrics):
        arm = str(metrics["arm"].iloc[0])
        audit = audit_of(arm, (0, 1, 2), Outcome.FAIL, at=(1,))
        [line], [forced] = (list(sample_lines(metrics, "phrases", audit=audit, force=force)) for force in (False, True))
        assert f"{WITHHELD} at 1, " in line and line.count(WITHHELD) == 1
        assert f" {MARK} at 1, " in forced and WITHHELD not in forced
