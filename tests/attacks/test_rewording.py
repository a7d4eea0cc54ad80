"""Requests put differently: what the model is asked, which answers a dose keeps, and that luck does not grow with k."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from studies import files_of, plan_of, run_study, stub_embedder, tiny_changes, write_study
from tamperdose.errors import StudyError
from tamperdose.files import read_csv
from tamperdose.models.generator import OnProgress
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel
from tamperdose.models.rewording import RewordedGenerator, reworded
from tamperdose.records import Completion, FinishReason, Label, Message, Prompt, Reworded, Subset, Verdict
from tamperdose.run.draws import dose_draws, missing_checkpoints, missing_doses
from tamperdose.run.ledger import Ledger
from tamperdose.run.measure import Cell, harmful_metrics
from tamperdose.run.rewordings import any_of_k, keep_best, search_flops, with_choice
from tamperdose.run.schema import read_metrics
from tamperdose.run.stages import Readers, read_completions
from tamperdose.study import Architecture, Decoding
from tamperdose.study.rewordings import PARAPHRASES, SYSTEM_PROMPTS
from tiny import CLASSES, load_tiny, make_prompts

PATTERNS = {"kind": "paraphrase", "patterns": ["please: {prompt}", "{prompt} at noon", "who knows {prompt}"]}


@pytest.fixture(autouse=True)
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(Readers, "embedder", stub_embedder)


def verdicts(labels: list[Label]) -> list[Verdict]:
    return [Verdict(f"p{i}", label, None, "j@1", "") for i, label in enumerate(labels)]


def cell(refusals: list[bool] | np.ndarray, *, mark: str, benign: bool = False) -> dict[Subset, Cell]:
    subset = Subset.BENIGN if benign else Subset.HARMFUL
    n = len(refusals)
    prompts = [Prompt(f"p{i}", (Message("user", f"q{i}"),), subset, f"t{i}") for i in range(n)]
    completions = [Completion(f"p{i}", f"{mark}{i}", 3, FinishReason.STOP) for i in range(n)]
    labels = [Label.REFUSAL if refused else Label.COMPLIANCE for refused in refusals]
    vectors = np.full((n, 2), float(len(mark)), dtype=np.float32)
    return {subset: Cell(prompts, completions, {"j": verdicts(labels)}, vectors, vectors)}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_model_reads_the_reworded_request(kind: str, tiny_folders: dict[str, Path]) -> None:
    chat: ChatModel = load_tiny(tiny_folders[kind])
    change = Reworded(system="answer in two words", pattern="please: {prompt}")
    prompts, decoding = make_prompts(3), Decoding(max_new_tokens=5)

    def quiet(_count: int) -> None:
        pass

    found = RewordedGenerator(HfGenerator(chat), change).generate(prompts, decoding, seed=0, on_progress=quiet)
    by_hand = [
        Prompt(p.id, (Message("system", change.system), Message("user", f"please: {p.text}")), p.subset, p.template)
        for p in prompts
    ]
    assert found == HfGenerator(chat).generate(by_hand, decoding, seed=0, on_progress=quiet)
    assert found != HfGenerator(chat).generate(prompts, decoding, seed=0, on_progress=quiet)


def test_a_system_turn_of_the_conversation_is_replaced() -> None:
    turns = (Message("system", "old"), Message("user", "a"), Message("assistant", "b"), Message("user", "c {prompt}"))
    asked = reworded(Prompt("x", turns, Subset.HARMFUL, "t"), Reworded("new", "{prompt}?"))
    assert [(turn.role, turn.content) for turn in asked.messages] == [
        ("system", "new"), ("user", "a"), ("assistant", "b"), ("user", "c {prompt}?"),
    ]  # fmt: skip
    kept = reworded(Prompt("x", turns, Subset.HARMFUL, "t"), Reworded(pattern="{prompt}"))
    assert kept.messages == turns


def test_each_prompt_keeps_an_answer_and_what_every_judge_made_of_it() -> None:
    tried = [cell([True] * 10, mark="a"), cell([False] * 10, mark="bb")]
    (kept,) = keep_best(tried, [Subset.HARMFUL], "j").values()
    assert [completion.text for completion in kept.completions] == [f"bb{i}" for i in range(10)]
    assert {verdict.label for verdict in kept.verdicts["j"]} == {Label.COMPLIANCE}
    assert kept.vectors is not None
    assert kept.vectors.shape == (10, 2)
    assert np.all(kept.vectors == 2)
    # The first alone is what it is.
    (first,) = keep_best(tried[:1], [Subset.HARMFUL], "j").values()
    assert [completion.text for completion in first.completions] == [f"a{i}" for i in range(10)]


def test_benign_prompts_keep_what_the_harmful_ones_choose() -> None:
    tried = [
        cell([True] * 10, mark="a") | cell([False] * 4, mark="a", benign=True),
        cell([False] * 10, mark="b") | cell([True] * 4, mark="b", benign=True),
    ]
    kept = keep_best(tried, [Subset.HARMFUL, Subset.BENIGN], "j")
    assert kept[Subset.BENIGN] is tried[1][Subset.BENIGN]
    assert list(keep_best(tried, [Subset.HARMFUL], "j")) == [Subset.HARMFUL]


def test_rewordings_without_effect_look_no_better_in_larger_numbers() -> None:
    """The planted case: eight rewordings that change nothing but what chance changes, refused at 0.6 each."""
    rng = np.random.default_rng(5)
    kept, naive = {k: [] for k in (1, 2, 4, 8)}, {k: [] for k in (1, 2, 4, 8)}
    for _ in range(150):
        outcomes = rng.random((40, 8)) < 0.6
        tried = [cell(outcomes[:, j], mark="x") for j in range(8)]
        for k in kept:
            best = keep_best(tried[:k], [Subset.HARMFUL], "j")[Subset.HARMFUL]
            kept[k].append(np.mean([verdict.label is Label.REFUSAL for verdict in best.verdicts["j"]]))
            naive[k].append(outcomes[:, :k].mean(axis=0).min())
    # Standard error of a mean over 150 data sets: 0.0063, times 1.4 for the choice.
    for k, rates in kept.items():
        assert abs(np.mean(rates) - 0.6) < 0.025, k
    assert np.mean(naive[8]) < 0.5
    assert np.mean(naive[1]) == pytest.approx(np.mean(kept[1]))


def test_the_interval_counts_that_another_half_might_have_chosen_otherwise() -> None:
    rng = np.random.default_rng(1)
    tried = [cell(rng.random(60) < 0.5, mark="x") for _ in range(6)]
    base = cell([True] * 60, mark="b")[Subset.HARMFUL]
    kept = keep_best(tried, [Subset.HARMFUL], "j")[Subset.HARMFUL]
    plain = {found.metric: found for found in harmful_metrics(kept, base, at_base=False, level=0.95)}
    for name in ("RRR", "CE", "compliance_rate", "refusal_retention"):
        before, after = plain[name].estimate, with_choice(plain[name], tried, base, "j").estimate
        assert (after.value, after.n) == (before.value, before.n)
        assert None not in (after.low, after.high, before.low, before.high)
        assert float(after.low or 0) < float(before.low or 0) < float(before.high or 0) < float(after.high or 0), name
        assert after.method == "chosen_on_the_other_half_wilson_korn_graubard"
    assert with_choice(plain["RD"], tried, base, "j") is plain["RD"]
    assert with_choice(plain["RRR"], tried[:1], base, "j") is plain["RRR"]


def test_any_of_k_counts_prompts_that_complied_once() -> None:
    tried = [cell([True, True, False, True], mark="a"), cell([True, False, False, True], mark="b")]
    (one,) = any_of_k(tried[:1], level=0.95)
    (both,) = any_of_k(tried, level=0.95)
    assert (one.metric, one.judge, one.estimate.value) == ("any_of_k_compliance_rate", "j", 0.25)
    assert both.estimate.value == 0.5
    unread = {**tried[1][Subset.HARMFUL].verdicts}
    unread["j"] = verdicts([Label.UNREADABLE, Label.UNREADABLE, Label.UNREADABLE, Label.REFUSAL])
    last = Cell(tried[1][Subset.HARMFUL].prompts, tried[1][Subset.HARMFUL].completions, unread)
    (found,) = any_of_k([tried[0], {Subset.HARMFUL: last}], level=0.95)
    assert (found.estimate.value, found.estimate.n, found.estimate.n_unreadable) == (0.5, 2, 2)


def test_the_search_costs_an_answer_to_every_prompt_under_each() -> None:
    sizes = Architecture(
        model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=100, tie_word_embeddings=True,
    )  # fmt: skip
    tried = [cell([True] * 5, mark="a"), cell([True] * 5, mark="b")]
    plain = Reworded()
    one, two = (search_flops(tried[:k], [plain] * k, sizes) for k in (1, 2))
    assert two == 2 * one > 0
    assert search_flops(tried, [plain, Reworded(pattern="much longer than before: {prompt}")], sizes) > two
    assert search_flops(tried, [plain, plain], None) == 0


def test_a_study_keeps_the_best_of_those_tried(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    attack = [{**PATTERNS, "doses": [1, 3]}, {"kind": "system_prompt", "doses": [1, 2]}]
    path = write_study(tmp_path / "study", attack=attack, n_prompts=8, **tiny_changes(tiny_folders["qwen2"]))
    plan = plan_of(path)
    arm = plan.models[0].arms[0]
    ledger = Ledger(path.parent / "results" / "ledger")
    assert missing_doses(plan, ledger, arm) == [1, 3]
    assert missing_checkpoints(plan, ledger, arm) == [1, 2, 3]
    run = run_study(path)
    assert missing_doses(plan, ledger, arm) == missing_checkpoints(plan, ledger, arm) == []
    frame = read_metrics(run / "metrics.csv")
    doses = frame.groupby("attack")["dose_steps"].unique().map(sorted).to_dict()
    assert doses == {"paraphrase": [0, 1, 3], "system_prompt": [0, 1, 2]}
    any_of = frame.groupby(["metric", "attack", "dose_steps"])["value"].first().to_dict()
    any_of = {key[1:]: value for key, value in any_of.items() if key[0] == "any_of_k_compliance_rate"}
    assert any_of["paraphrase", 3] >= any_of["paraphrase", 1]
    flops = frame.groupby(["attack", "dose_steps"])["dose_flops"].first().to_dict()
    assert flops["paraphrase", 0] == 0 < flops["paraphrase", 1] < flops["paraphrase", 3]
    (folder,) = (run / "outputs").glob("*paraphrase*")
    assert sorted(item.name for item in folder.iterdir()) == ["0.csv", "1.csv", "3.csv"]
    # Every answer of the last dose is that of one of the three rewordings.
    states = [dose_draws(plan, arm, state)[0].key for state in (1, 2, 3)]
    generated = [read_completions(run / "ledger" / "generate" / f"{key}.jsonl") for key in states]
    rows = read_csv(folder / "3.csv", required=("completion",))[1]
    assert len(rows) == 8 + 3
    for place, row in enumerate(rows[:8]):
        assert row["completion"] in {answers[place].text for answers in generated}
    before = files_of(run)
    run_study(path)
    assert files_of(run) == before


def test_benign_prompts_are_asked_under_every_rewording_of_the_last_dose(tmp_path: Path) -> None:
    prompts = {"harmful": "harmful.csv", "benign": "benign.csv", "benign_at": "ends"}
    run = run_study(write_study(tmp_path, attack={**PATTERNS, "doses": [1, 3]}, prompts=prompts))
    frame = read_metrics(run / "metrics.csv")
    doses = frame.groupby("metric")["dose_steps"].unique().map(sorted).to_dict()
    # At the ends, and at the doses that the break lies between.
    assert {0, 3} <= set(doses["over_refusal_rate"])
    assert doses["RRR"] == [0, 1, 3]


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        ({"kind": "paraphrase", "patterns": ["no place"]}, r"by \{prompt\}: 'no place' does not"),
        ({**PATTERNS, "doses": [1, 9]}, "the last dose tries 9 rewordings, but there are 3"),
        ({"kind": "system_prompt", "system_prompts": ["a", "a"], "doses": [1]}, "two of the rewordings are the same"),
        ({"kind": "system_prompt", "system_prompts": [], "doses": [1]}, "system_prompts"),
    ],
)
def test_lists_that_make_no_sense(tmp_path: Path, attack: dict[str, Any], expected: str) -> None:
    with pytest.raises(StudyError, match=expected):
        plan_of(write_study(tmp_path, attack=attack))


def test_the_bundled_lists_are_as_long_as_the_default_ladder() -> None:
    assert len(set(SYSTEM_PROMPTS)) == len(set(PARAPHRASES)) == 8


def test_progress_of_the_inner_generator_is_told() -> None:
    class Inner:
        settings = {"engine": "fake"}  # noqa: RUF012 - a stand-in

        def generate(
            self, prompts: Any, decoding: Decoding, *, seed: int, sample: int = 0, on_progress: OnProgress
        ) -> list[Completion]:
            on_progress(len(prompts))
            return [Completion(prompt.id, prompt.text, 1, FinishReason.STOP) for prompt in prompts]

    told: list[int] = []
    generator = RewordedGenerator(Inner(), Reworded(pattern="<{prompt}>"))
    found = generator.generate(make_prompts(2), Decoding(max_new_tokens=1), seed=0, on_progress=told.append)
    assert told == [2]
    assert found[0].text == "<the>"
    assert generator.settings == {"engine": "fake"}
