"""Our task and scorer in Inspect's own hands, with a model that answers from a list."""

import gc
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai import score as inspect_score
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from inspect_ai.model import Model, ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import SampleScore, Score

from tamperdose.data.prompts import load_prompts
from tamperdose.errors import DataError, JudgeError
from tamperdose.exchange.inspect_tasks import refusal_judge, refusal_rates, refusals
from tamperdose.files import write_csv
from tamperdose.records import Label, Subset
from tamperdose.stats.rates import rate

ROOT = Path(__file__).parents[2]
NO, YES = "I'm sorry, but I can't help with that.", "Sure, first take the lid off and look inside."
MOCKED = """
import sys
from inspect_ai.model import _model
# The mock model counts tokens with a vocabulary that it would fetch.
_model.count_text_tokens = lambda text: len(text.split())
from inspect_ai._cli.main import main
main()
"""
"""`inspect` without a network."""


def model(answer: Callable[[str], str | ModelOutput]) -> Model:
    def reply(turns: list[Any], *_: Any) -> ModelOutput:
        found = answer(turns[-1].text)
        output = ModelOutput.from_content("mockllm", found) if isinstance(found, str) else found
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return output

    return get_model("mockllm/model", custom_outputs=reply, memoize=False)


def run(folder: Path, answer: Callable[[str], str | ModelOutput], task: Any = None, **options: Any) -> EvalLog:
    asked = task or refusals()
    with warnings.catch_warnings():
        # Of Inspect's own making: how it calls tenacity, and streams that it leaves to the garbage collector.
        warnings.simplefilter("ignore")
        (log,) = inspect_eval(asked, model=model(answer), log_dir=str(folder), display="none", **options)
        gc.collect()
    assert log.status == "success", log.error
    return log


def metrics(log: EvalLog) -> dict[str, float]:
    assert log.results is not None
    (score,) = log.results.scores
    return {name: metric.value for name, metric in score.metrics.items()}


def test_the_numbers_are_those_of_our_own_statistics(tmp_path: Path) -> None:
    prompts = load_prompts("builtin:redteam_eval", subset=Subset.HARMFUL)
    refused = {prompt.text: place % 3 > 0 for place, prompt in enumerate(prompts)}
    log = run(tmp_path, lambda text: NO if refused[text] else YES)
    expected = rate([refused[prompt.text] for prompt in prompts], [prompt.template for prompt in prompts])
    found = metrics(log)
    assert expected.low is not None and expected.high is not None and expected.value is not None
    assert [found[name] for name in ("RRR", "RRR_low", "RRR_high")] == [expected.value, expected.low, expected.high]
    assert found["CE"] == pytest.approx(1 - expected.value) and found["CE_high"] == pytest.approx(1 - expected.low)
    assert found["n"] == len(prompts) and found["n_effective"] == expected.n_effective
    assert found["valid_rate"] == found["valid_rate_high"] == 1 and 0.9 < found["valid_rate_low"] < 1


def test_epochs_count_prompts_once_where_they_agree(tmp_path: Path) -> None:
    once = metrics(run(tmp_path, lambda text: NO if len(text) % 2 else YES, limit=40))
    thrice = metrics(run(tmp_path, lambda text: NO if len(text) % 2 else YES, limit=40, epochs=3))
    assert thrice["n"] == 3 * once["n"] and thrice["RRR"] == once["RRR"]
    assert thrice["n_effective"] == pytest.approx(once["n_effective"], rel=0.05)


def test_harmless_prompts_have_a_rate_of_their_own(tmp_path: Path) -> None:
    task = refusals(benign="builtin:benign_eval")
    harmful = {prompt.text for prompt in load_prompts("builtin:redteam_eval", subset=Subset.HARMFUL)}
    found = metrics(run(tmp_path, lambda text: NO if text in harmful else YES, task))
    assert found["RRR"] == 1 and found["over_refusal_rate"] == 0 and found["n_benign"] == 60


def test_what_a_filter_stopped_is_neither_refusal_nor_compliance(tmp_path: Path) -> None:
    stopped = ModelOutput.from_content("mockllm", "", stop_reason="content_filter")
    found = metrics(run(tmp_path, lambda text: stopped.model_copy(deep=True) if len(text) % 2 else NO, limit=20))
    assert found["RRR"] == 1 and found["n"] + found["n_unreadable"] == 20
    assert found["valid_rate"] == found["n"] / 20 and found["valid_rate_low"] < found["valid_rate"] < 1


def test_the_scorer_reads_logs_that_are_there(tmp_path: Path) -> None:
    log = run(tmp_path, lambda _: YES, limit=5)
    again = inspect_score(log, refusal_judge(), action="overwrite", display="none")
    assert metrics(again)["RRR"] == 0
    (score,) = ((again.samples or [])[0].scores or {}).values()
    assert score.value == Label.COMPLIANCE.value and (score.metadata or {})["judge"].startswith("phrases@")


def test_nothing_judged_leaves_rates_undefined() -> None:
    scores = [SampleScore(score=Score(value=Label.UNREADABLE.value), sample_id=str(k)) for k in range(3)]
    compute: Any = refusal_rates()
    found = compute(scores)
    assert "RRR" not in found and found["valid_rate"] == 0 and found["n_unreadable"] == 3
    alone = compute([SampleScore(score=Score(value=Label.REFUSAL.value), sample_id="a")])
    assert alone["RRR"] == 1 and "RRR_low" not in alone, "below n = 2 there is no interval"


def test_own_prompts_and_judges_may_be_named(tmp_path: Path) -> None:
    rows = [
        {"id": "b1", "prompt": "Open the cellar", "template": "t"},
        {"id": "b2", "prompt": "Shut it", "template": "u"},
    ]
    path = write_csv(tmp_path / "mine.csv", ("id", "prompt", "template"), rows)
    log = run(tmp_path, lambda _: NO, refusals(prompts=str(path), max_tokens=9))
    assert [sample.id for sample in log.samples or []] == ["b1", "b2"]
    assert log.plan.config.max_tokens == 9 and log.plan.config.temperature == 0
    with pytest.raises(JudgeError, match="one judge"):
        refusal_judge("phrases,classifier")
    with pytest.raises(JudgeError, match="phrases"):
        refusal_judge("phrase")
    with pytest.raises(DataError, match="redteam_evil"):
        refusals(prompts="builtin:redteam_evil")


def test_the_entry_point_names_the_module() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module = import_module(project["entry-points"]["inspect_ai"]["tamperdose"])
    assert module.refusals is refusals


def test_inspect_eval_runs_the_task_by_its_name(tmp_path: Path) -> None:
    command = ["eval", "tamperdose/refusals", "--model", "mockllm/model", "--limit", "10", "--display", "plain"]
    done = subprocess.run(
        [sys.executable, "-c", MOCKED, *command, "--log-dir", str(tmp_path / "logs")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (info,) = list_eval_logs(str(tmp_path / "logs"))
    log = read_eval_log(info)
    assert log.status == "success" and log.eval.task == "tamperdose/refusals"
    found = metrics(log)
    assert found["RRR"] == 0 and found["n"] == 10 and found["valid_rate"] == 1
    assert "RRR" in done.stdout and "valid_rate_low" in done.stdout
