"""The engine against `model.generate`, token for token, and against itself under every other batching."""

import copy
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AddedToken

from tamperdose.errors import DataError, ModelError
from tamperdose.models import hf
from tamperdose.models.cache import GrowingLayer
from tamperdose.models.chat import encode_chat, encode_prompts, end_tokens
from tamperdose.models.generator import in_full
from tamperdose.models.hf import HfGenerator
from tamperdose.models.load import ChatModel
from tamperdose.records import Completion, FinishReason, Message, Prompt, Subset
from tamperdose.study import Decoding
from tiny import CLASSES, load_tiny, make_prompts, save_tiny

NEW = 24
NEAR_TIE = 1e-4


class Listening:
    """A tokenizer that remembers the tokens it was given to decode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.decoded: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        return self.tokenizer(*texts, **options)

    def batch_decode(self, rows: list[list[int]], **options: Any) -> list[str]:
        self.decoded = [list(row) for row in rows]
        return self.tokenizer.batch_decode(rows, **options)


def _generate(
    chat: ChatModel, prompts: Sequence[Prompt], decoding: Decoding, *, batch_size: int, seed: int = 0, sample: int = 0
) -> tuple[list[Completion], list[list[int]]]:
    ear = Listening(chat.tokenizer)
    engine = HfGenerator(replace(chat, tokenizer=ear), batch_size=batch_size)
    finished: list[int] = []
    completions = engine.generate(prompts, decoding, seed=seed, sample=sample, on_progress=finished.append)
    assert sum(finished) == len(prompts)
    return completions, ear.decoded


def _reference(chat: ChatModel, prompt: Prompt, max_new_tokens: int) -> list[int]:
    """`model.generate` on this prompt alone, without the end token."""
    tokens = torch.tensor([encode_chat(chat, prompt.messages)])
    with torch.inference_mode():
        written = chat.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=max_new_tokens
        )
    answer = written[0, tokens.shape[1] :].tolist()
    return answer[: answer.index(1)] if 1 in answer else answer


def _near_ties(chat: ChatModel, prompts: Sequence[Prompt], ours: list[list[int]], max_new_tokens: int) -> int:
    """Rows that differ from `model.generate`; a difference at which the two best logits are not tied fails."""
    differing = 0
    for prompt, answer in zip(prompts, ours, strict=True):
        expected = _reference(chat, prompt, max_new_tokens)
        if answer == expected:
            continue
        differing += 1
        first = next(
            (i for i, (a, b) in enumerate(zip(answer, expected, strict=False)) if a != b),
            min(len(answer), len(expected)),
        )
        tokens = torch.tensor([[*encode_chat(chat, prompt.messages), *expected[:first]]])
        with torch.inference_mode():
            best = chat.model(tokens).logits[0, -1].topk(2).values
        assert best[0] - best[1] < NEAR_TIE, f"{prompt.id} differs at token {first}"
    return differing


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_is_generate_token_for_token(chat: ChatModel, batch_size: int) -> None:
    prompts = make_prompts(8)
    assert len({len(encode_chat(chat, prompt.messages)) for prompt in prompts}) > 4
    completions, answers = _generate(chat, prompts, Decoding(max_new_tokens=NEW), batch_size=batch_size)
    assert _near_ties(chat, prompts, answers, NEW) == 0
    assert [completion.prompt_id for completion in completions] == [prompt.id for prompt in prompts]
    assert [completion.n_tokens for completion in completions] == [len(answer) for answer in answers]


@pytest.fixture(scope="module", params=CLASSES)
def ending(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    """A model whose answers end early, each at a place of its own."""
    return load_tiny(save_tiny(tmp_path_factory.mktemp("ending"), request.param, end_bias=2.5, seed=3))


def test_rows_that_end_early_leave_the_batch(ending: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    select = GrowingLayer.batch_select_indices
    monkeypatch.setattr(
        GrowingLayer, "batch_select_indices", lambda self, rows: (kept.append(len(rows)), select(self, rows))[1]
    )
    prompts = make_prompts(12)
    completions, answers = _generate(ending, prompts, Decoding(max_new_tokens=NEW), batch_size=12)
    lengths = {len(answer) for answer in answers}
    assert len(lengths) >= 3, "the model must end its answers at different places for this test to mean anything"
    assert kept
    assert min(kept) < len(prompts)
    assert _near_ties(ending, prompts, answers, NEW) == 0
    for completion, answer in zip(completions, answers, strict=True):
        ended = len(_reference(ending, _prompt(prompts, completion), NEW)) < NEW
        assert (completion.finish_reason is FinishReason.STOP) == ended
        assert completion.n_tokens == len(answer)


def _prompt(prompts: Sequence[Prompt], completion: Completion) -> Prompt:
    return next(prompt for prompt in prompts if prompt.id == completion.prompt_id)


def test_the_shared_prefix_changes_nothing(chat: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = make_prompts(8)
    found: list[int] = []
    shared = hf.shared_prefix
    monkeypatch.setattr(hf, "shared_prefix", lambda chat, rows: found.append(shared(chat, rows)) or found[-1])
    with_prefix = _generate(chat, prompts, Decoding(max_new_tokens=NEW), batch_size=8)
    assert found[0] > 5
    monkeypatch.setattr(hf, "shared_prefix", lambda chat, rows: 0)
    assert _generate(chat, prompts, Decoding(max_new_tokens=NEW), batch_size=8) == with_prefix


@pytest.mark.parametrize("limit", [1, 9, 30])
def test_prefill_in_parts_changes_nothing(chat: ChatModel, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    prompts, decoding = make_prompts(8), Decoding(max_new_tokens=NEW)
    whole = _generate(chat, prompts, decoding, batch_size=8)
    monkeypatch.setattr(hf, "CPU_PREFILL_TOKENS", limit)
    sizes: list[int] = []
    alike = hf.alike
    monkeypatch.setattr(
        hf, "alike", lambda rows, **more: [sizes.append(len(part)) or part for part in alike(rows, **more)]
    )
    assert _generate(chat, prompts, decoding, batch_size=8) == whole
    assert sum(sizes) == 8
    assert len(sizes) > 1


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2, 3], [1, 2, 4]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),
        ([[1, 2, 3], [1]], 0),
        ([[1, 2, 3], [1, 2]], 1),
        ([[5, 1], [6, 1]], 0),
        ([[1, 2, 3]], 0),
        ([[1, 2, 9], [1, 2, 3, 4], [1, 2, 3, 5]], 2),
    ],
)
def test_the_shared_prefix_leaves_each_row_a_token(llama: ChatModel, rows: list[list[int]], expected: int) -> None:
    assert hf.shared_prefix(llama, rows) == expected


def test_identical_prompts_leave_each_row_a_token(llama: ChatModel) -> None:
    one = make_prompts(3)[2]
    prompts = [replace(one, id=f"same{place}") for place in range(3)]
    _, answers = _generate(llama, prompts, Decoding(max_new_tokens=5), batch_size=3)
    assert answers == [_reference(llama, one, 5)] * 3


@pytest.mark.parametrize("kind", ["phi3", "qwen2"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_sliding_window_is_honoured(tmp_path: Path, kind: str, batch_size: int) -> None:
    changes = {"use_sliding_window": True, "max_window_layers": 0} if kind == "qwen2" else {}
    chat = load_tiny(save_tiny(tmp_path, kind, sliding_window=12, **changes))
    prompts = make_prompts(6)
    _, answers = _generate(chat, prompts, Decoding(max_new_tokens=NEW), batch_size=batch_size)
    assert _near_ties(chat, prompts, answers, NEW) == 0


def test_a_sliding_window_and_rows_that_end_early(tmp_path: Path) -> None:
    chat = load_tiny(save_tiny(tmp_path, "phi3", end_bias=2.5, seed=3, sliding_window=12))
    prompts = make_prompts(12)
    _, answers = _generate(chat, prompts, Decoding(max_new_tokens=NEW), batch_size=12)
    assert len({len(answer) for answer in answers}) >= 3
    assert _near_ties(chat, prompts, answers, NEW) == 0


SAMPLED = Decoding(do_sample=True, temperature=1.5, top_p=0.9, max_new_tokens=12)


def test_a_draw_depends_on_seed_prompt_and_sample_alone(chat: ChatModel) -> None:
    prompts = make_prompts(9)
    together, _ = _generate(chat, prompts, SAMPLED, batch_size=9, seed=7)
    by_id = {completion.prompt_id: completion for completion in together}
    reversed_, _ = _generate(chat, prompts[::-1], SAMPLED, batch_size=4, seed=7)
    assert {completion.prompt_id: completion for completion in reversed_} == by_id
    alone, _ = _generate(chat, [prompts[5]], SAMPLED, batch_size=1, seed=7)
    assert alone == [by_id[prompts[5].id]]
    assert _generate(chat, prompts, SAMPLED, batch_size=9, seed=8)[0] != together
    other, _ = _generate(chat, prompts, SAMPLED, batch_size=9, seed=7, sample=1)
    assert [completion.text for completion in other] != [completion.text for completion in together]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 0.8), (0.7, 0.95)])
def test_first_tokens_follow_the_exact_distribution(llama: ChatModel, temperature: float, top_p: float) -> None:
    one, count = make_prompts(2)[1], 4000
    prompts = [replace(one, id=f"draw{place}") for place in range(count)]
    decoding = Decoding(do_sample=True, temperature=temperature, top_p=top_p, max_new_tokens=1)
    _, answers = _generate(llama, prompts, decoding, batch_size=1000, seed=1)
    expected = count * _nucleus(llama, one, temperature, top_p)
    seen = np.bincount([answer[0] if answer else 1 for answer in answers], minlength=len(expected))
    assert seen[expected == 0].sum() == 0
    common = expected >= 5
    observed = [*seen[common], seen[~common].sum()]
    wanted = [*expected[common], expected[~common].sum()]
    if wanted[-1] == 0:
        observed, wanted = observed[:-1], wanted[:-1]
    assert len(wanted) > 3
    assert chisquare(observed, wanted).pvalue > 1e-3


def _nucleus(chat: ChatModel, prompt: Prompt, temperature: float, top_p: float) -> np.ndarray:
    """Next-token probabilities from the definition, in float64 and one token at a time."""
    with torch.inference_mode():
        logits = chat.model(torch.tensor([encode_chat(chat, prompt.messages)])).logits[0, -1]
    weights = np.exp((logits.double().numpy() - logits.max().item()) / temperature)
    probabilities = weights / weights.sum()
    kept, reached = np.zeros_like(probabilities), 0.0
    for token in np.argsort(-probabilities):
        if reached >= top_p:
            break
        kept[token], reached = probabilities[token], reached + probabilities[token]
    return kept / kept.sum()


def _forgetful(chat: ChatModel, limit: int, *, after: int = 0) -> Any:
    """The model's forward, which runs out of memory above `limit` rows, `after` calls into a batch."""
    forward, calls = chat.model.forward, [0]

    def limited(*args: Any, **kwargs: Any) -> Any:
        rows = kwargs["input_ids"].shape[0]
        calls[0] += 1
        if rows > limit and calls[0] > after:
            calls[0] = 0
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    return limited


@pytest.mark.parametrize("after", [0, 5])
@pytest.mark.parametrize("decoding", [Decoding(max_new_tokens=NEW), SAMPLED], ids=["greedy", "sampled"])
def test_out_of_memory_halves_the_batch_and_loses_nothing(
    llama: ChatModel, monkeypatch: pytest.MonkeyPatch, after: int, decoding: Decoding
) -> None:
    prompts = make_prompts(9)
    expected, _ = _generate(llama, prompts, decoding, batch_size=9)
    monkeypatch.setattr(llama.model, "forward", _forgetful(llama, 3, after=after))
    engine = HfGenerator(llama, batch_size=9)
    finished: list[int] = []
    assert engine.generate(prompts, decoding, seed=0, on_progress=finished.append) == expected
    assert engine.batch_size <= 3
    assert sum(finished) == len(prompts)


def test_out_of_memory_with_one_row_is_an_error(llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.model, "forward", _forgetful(llama, 0))
    with pytest.raises(ModelError, match="not even one prompt fits in memory"):
        _generate(llama, make_prompts(4), Decoding(max_new_tokens=4), batch_size=4)


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(
    llama: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: Any) -> Any:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(llama.model, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        _generate(llama, make_prompts(2), Decoding(max_new_tokens=4), batch_size=2)


def test_a_prompt_longer_than_the_context_is_named(llama: ChatModel) -> None:
    long = Prompt("the-long-one", (Message("user", "river " * 300),), Subset.HARMFUL, "t")
    with pytest.raises(DataError, match=r"'the-long-one' does not fit(?s:.)*at most 256 together"):
        _generate(llama, [*make_prompts(2), long], Decoding(max_new_tokens=4), batch_size=2)


def test_the_context_is_used_to_its_last_token(llama: ChatModel) -> None:
    prompt = make_prompts(3)[2]
    room = 256 - len(encode_chat(llama, prompt.messages))
    completions, _ = _generate(llama, [prompt], Decoding(max_new_tokens=room), batch_size=1)
    assert completions[0].n_tokens <= room
    with pytest.raises(DataError):
        _generate(llama, [prompt], Decoding(max_new_tokens=room + 1), batch_size=1)


def test_control_tokens_in_a_prompt_are_refused(llama: ChatModel) -> None:
    # A mark of turns without a role of its own, as Phi-3 and Llama-3 have them.
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True), AddedToken("<|plain|>", special=False)])
    tokenizer.chat_template = f"{{# <|plain|> #}}{tokenizer.chat_template}"
    llama = replace(llama, tokenizer=tokenizer)
    assert "<|turn|>" not in tokenizer.all_special_tokens
    for token in [*tokenizer.all_special_tokens, "<|turn|>", "<|plain|>"]:
        prompt = replace(make_prompts(1)[0], messages=(Message("user", f"hi{token}Sure"),))
        with pytest.raises(DataError, match=r"control token(?s:.)*remedy"):
            encode_prompts(llama, [prompt], 4)


@pytest.mark.parametrize("template", ["{{ raise_exception('no system turn') }}", "{% for x in %}", ""])
def test_a_template_that_cannot_render_is_explained(
    llama: ChatModel, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.tokenizer, "chat_template", template or "{# nothing #}")
    with pytest.raises(ModelError, match=r"chat template cannot render(?s:.)*remedy"):
        encode_prompts(llama, make_prompts(1), 4)


def test_no_prompts(llama: ChatModel) -> None:
    assert _generate(llama, [], Decoding(max_new_tokens=4), batch_size=2)[0] == []


def test_every_end_token_of_the_model_ends_an_answer(llama: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [2, 9])
    assert end_tokens(llama) == {1, 2, 9}
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", None)
    assert end_tokens(llama) == {1}


class Fixed:
    """Stands in for a row's random generator."""

    def __init__(self, draw: float) -> None:
        self.draw = draw

    def random(self) -> float:
        return self.draw


@pytest.mark.parametrize(
    ("top_p", "draw", "token"),
    [
        # Probabilities 0.5, 0.3, 0.15, 0.05. The token with which top_p is reached belongs to the nucleus.
        (0.45, 0.999, 2),
        (0.6, 0.624, 2),
        (0.6, 0.626, 0),
        (0.6, 0.999, 0),
        (0.9, 0.999, 3),
        (1.0, 0.0, 2),
        (1.0, 0.999, 1),
        (1.0, 1 - 2**-53, 1),
    ],
)
def test_the_nucleus(top_p: float, draw: float, token: int) -> None:
    logits = torch.log(torch.tensor([[0.3, 0.05, 0.5, 0.15]]))
    row = hf._Row([1], Fixed(draw))  # type: ignore[arg-type]
    assert hf._choose(logits, [row], Decoding(do_sample=True, top_p=top_p)) == [token]


def test_answers_are_stopped_once_settled_and_some_are_written_to_their_end(
    llama: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Random words hold no sentences: any token may end one here.
    monkeypatch.setattr(hf, "_SENTENCE_END", re.compile(""))
    prompts = make_prompts(40)
    whole = _answer(HfGenerator(llama), prompts, Decoding(max_new_tokens=12))
    decoding = Decoding(max_new_tokens=12, stop_when_decided=True, full_share=0.3)
    stopped = _answer(HfGenerator(llama, is_settled=lambda text: len(text) >= 9), prompts, decoding)
    kept = [in_full(prompt.id, 0.3) for prompt in prompts]
    assert 0 < sum(kept) < len(prompts)
    for is_kept, one, other in zip(kept, stopped, whole, strict=True):
        if is_kept or len(other.text) < 9:
            assert one == other
        else:
            assert one.finish_reason is FinishReason.DECIDED
            assert other.text.startswith(one.text)
            assert one.n_tokens <= other.n_tokens
    assert sum(completion.n_tokens for completion in stopped) < sum(completion.n_tokens for completion in whole)


def _answer(generator: HfGenerator, prompts: Sequence[Prompt], decoding: Decoding) -> list[Completion]:
    return generator.generate(prompts, decoding, seed=0, on_progress=lambda _count: None)
