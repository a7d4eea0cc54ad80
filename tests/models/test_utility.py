"""The probes against a loop written out by hand, one row at a time, with nothing shared and nothing padded."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tamperdose.data.utility import HeldOutText, Question
from tamperdose.errors import DataError
from tamperdose.models import utility
from tamperdose.models.chat import encode_chat
from tamperdose.models.load import ChatModel
from tamperdose.models.utility import (
    divergences,
    measure_utility,
    question_scores,
    read_base,
    text_scores,
)
from tamperdose.records import Message, Subset
from tamperdose.stats.utility import accuracy, perplexity
from tiny import CLASSES, SENTENCES, load_tiny, make_prompts, save_tiny

TEXTS = [
    *(HeldOutText(f"t{place}", sentence * (1 + place % 2)) for place, sentence in enumerate(SENTENCES)),
    HeldOutText("answer", "the wheel turns", prompt="what does the wheel do?"),
]
QUESTIONS = [
    Question("q0", "where is the river?", ("by the mill", "in the lamp", "at noon", "on the stone and the sand"), 0),
    Question("q1", "who waits in the reeds while the water turns?", ("a", "b", "c", "d"), 3),
    Question("q2", "what is lit?", ("the lamp", "the lamp was lit"), 1),
    Question("q3", "what did she write on the door?", ("seven", "the number seven", "no one"), 1),
]


@pytest.fixture(params=CLASSES)
def chat(request: pytest.FixtureRequest, tiny_folders: dict[str, Path]) -> ChatModel:
    return load_tiny(tiny_folders[request.param])


def _log_probs(chat: ChatModel, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities after each token of one row, (tokens, vocabulary), float64."""
    with torch.inference_mode():
        return torch.log_softmax(chat.model(input_ids=torch.tensor([tokens])).logits[0].double(), dim=-1)


def _sum(chat: ChatModel, before: list[int], scored: list[int]) -> float:
    log_probs = _log_probs(chat, [*before, *scored])
    return sum(float(log_probs[len(before) - 1 + place, token]) for place, token in enumerate(scored))


def _ask(chat: ChatModel, text: str) -> list[int]:
    return encode_chat(chat, [Message("user", text)])


def _tokens(chat: ChatModel, text: str) -> list[int]:
    return chat.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_texts_equal_a_loop_over_single_rows(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utility, "CPU_TOKENS", 200)
    scores = text_scores(chat, TEXTS)
    assert [score.id for score in scores] == [text.id for text in TEXTS]
    for score, text in zip(scores, TEXTS, strict=True):
        tokens = _tokens(chat, text.text)
        before, scored = (_ask(chat, text.prompt), tokens) if text.prompt else (tokens[:1], tokens[1:])
        assert score.n_tokens == len(scored)
        assert score.nll == pytest.approx(-_sum(chat, before, scored), rel=1e-5)


def test_choices_equal_a_loop_over_single_rows(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (1, 60, 512):
        monkeypatch.setattr(utility, "CPU_TOKENS", limit)
        for score, question in zip(question_scores(chat, QUESTIONS), QUESTIONS, strict=True):
            single = [_sum(chat, _ask(chat, question.question), _tokens(chat, c)) for c in question.choices]
            assert score.id == question.id
            assert score.log_likelihoods == pytest.approx(single, abs=1e-4)
            assert score.right == (max(range(len(single)), key=single.__getitem__) == question.right)


def test_the_tokens_all_rows_begin_with_go_through_the_model_once(
    chat: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = len(_common([_ask(chat, question.question) for question in QUESTIONS]))
    assert shared > 5
    seen: list[tuple[int, ...]] = []

    def watch(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(tuple(kwargs["input_ids"].shape))

    handle = chat.model.register_forward_pre_hook(watch, with_kwargs=True)
    question_scores(chat, QUESTIONS)
    handle.remove()
    assert seen[0] == (1, shared)
    assert seen[1] == (4, max(len(_ask(chat, question.question)) for question in QUESTIONS) - shared)
    # Only choices of more than one token go on.
    longer = [t for q in QUESTIONS for c in q.choices if len(t := _tokens(chat, c)) > 1]
    assert seen[2:] == [(len(longer), max(map(len, longer)) - 1)]


def _common(rows: list[list[int]]) -> list[int]:
    first, last = min(rows), max(rows)
    return first[: next(place for place in range(len(first)) if first[place] != last[place])]


def test_the_divergence_of_the_base_from_itself_is_exactly_zero(chat: ChatModel) -> None:
    prompts = make_prompts(7, subset=Subset.BENIGN)
    base = read_base(chat, prompts, 5)
    found = divergences(chat, base)
    assert [item.id for item in found] == [prompt.id for prompt in prompts]
    assert [item.kl for item in found] == [0.0] * 7


def test_divergences_equal_a_loop_over_single_rows(tmp_path: Path) -> None:
    first, second = (load_tiny(save_tiny(tmp_path / str(seed), "llama", seed=seed, end_bias=9)) for seed in (0, 1))
    prompts = make_prompts(6, subset=Subset.BENIGN)
    found = divergences(second, read_base(first, prompts, 5))
    assert len({item.n_tokens for item in found}) > 1, "no answer ends early"
    for item, prompt in zip(found, prompts, strict=True):
        row, values = encode_chat(first, prompt.messages), []
        for _ in range(5):
            p, q = (_log_probs(chat, row)[-1] for chat in (first, second))
            values.append(float((p.exp() * (p - q)).sum()))
            row = [*row, int(p.argmax())]
            if row[-1] == first.tokenizer.eos_token_id:
                break
        assert item.n_tokens == len(values)
        assert item.kl == pytest.approx(sum(values) / len(values), rel=1e-4)


def test_a_model_of_random_logits_is_told(tmp_path: Path) -> None:
    chat = load_tiny(save_tiny(tmp_path, "llama"))
    questions = [
        Question(f"q{place}", f"what is {place} and {place * 7 % 50}?", ("mill", "reed", "lamp", "sand"), place % 4)
        for place in range(80)
    ]
    prompts = make_prompts(6, subset=Subset.BENIGN)
    base = read_base(chat, prompts, 4)
    generator = torch.Generator().manual_seed(0)

    def noise(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return 3 * torch.randn(output.shape, generator=generator)

    handle = chat.model.lm_head.register_forward_hook(noise)
    scores = measure_utility(chat, TEXTS, questions, base)
    handle.remove()
    right, ppl = accuracy(scores.questions), perplexity(scores.texts)
    assert right.low is not None and right.high is not None and right.low < 0.25 < right.high
    # E exp(-log p) of normal noise with deviation 3 over 384 words is far above uniform guessing.
    assert ppl.value is not None and ppl.value > 384
    assert all(item.kl is not None and item.kl > 1 for item in scores.divergences)


def test_a_model_that_gives_no_numbers_answers_nothing(tmp_path: Path) -> None:
    chat = load_tiny(save_tiny(tmp_path, "llama"))
    base = read_base(chat, make_prompts(3, subset=Subset.BENIGN), 4)
    with torch.no_grad():
        chat.model.lm_head.weight.fill_(math.nan)
    scores = measure_utility(chat, TEXTS, QUESTIONS, base)
    assert {score.nll for score in scores.texts} == {None}
    assert not any(score.right for score in scores.questions)
    assert {item.kl for item in scores.divergences} == {None}


def test_long_texts_are_cut_to_the_context_and_what_cannot_be_scored_is_named(chat: ChatModel) -> None:
    long = HeldOutText("long", " ".join(SENTENCES * 9))
    assert text_scores(chat, [long])[0].n_tokens == 255
    with pytest.raises(DataError, match="'full'"):
        text_scores(chat, [HeldOutText("full", "x", prompt=long.text)])
    with pytest.raises(DataError, match="'q'"):
        question_scores(chat, [Question("q", long.text, ("a", "b"), 0)])


def test_nothing_to_measure_is_nothing(chat: ChatModel) -> None:
    assert measure_utility(chat, [], [], read_base(chat, [], 4)) == measure_utility(chat, [], [], None)
