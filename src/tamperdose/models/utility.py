"""What a loaded model can do besides refusing: held-out texts, multiple-choice questions, distance from the base.

Forward passes only. What all rows begin with is computed once, rows of like length go through the model together, and
logits are had only where a token is scored. A row's values do not hang on its company but for rounding.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import DynamicCache

from tamperdose.data.utility import HeldOutText, Question
from tamperdose.errors import DataError, explain
from tamperdose.models.cache import growing_cache, repeated, select_rows
from tamperdose.models.chat import encode_chat, encode_prompts
from tamperdose.models.hf import HfGenerator, Padded, pad_left, shared_prefix
from tamperdose.models.load import ChatModel
from tamperdose.models.packed import packed
from tamperdose.records import Message, Prompt, Subset
from tamperdose.stats.utility import Divergence, QuestionScore, TextScore, UtilityScores

CPU_TOKENS = 512
"""Tokens that go through the model together on a CPU, padding counted: more would leave its caches."""
GPU_TOKENS = 4_096
"""The same on a GPU; their logits take 2.5 GB at 150,000 words in float32."""


@dataclass(frozen=True, slots=True)
class BaseReading:
    """What the base does on some prompts: its own greedy tokens, and its next-token distributions along them."""

    ids: tuple[str, ...]
    """The prompts' ids."""
    rows: tuple[tuple[int, ...], ...]
    """Tokens of each prompt and of the answer, the last of which is only predicted."""
    log_probs: tuple[torch.Tensor, ...]
    """Log-probabilities at the last positions of each row, (positions, vocabulary), float32, in main memory."""


def measure_utility(
    chat: ChatModel, texts: Sequence[HeldOutText], questions: Sequence[Question], base: BaseReading | None
) -> UtilityScores:
    """All probes of a model as it is now; `base` is None for the base itself, whose divergence is 0 by definition."""
    with packed(chat.model):
        return UtilityScores(
            tuple(text_scores(chat, texts)),
            tuple(question_scores(chat, questions)),
            () if base is None else tuple(divergences(chat, base)),
        )


def text_scores(chat: ChatModel, texts: Sequence[HeldOutText]) -> list[TextScore]:
    """Negative log-likelihood of each text, nats, token by token given the tokens before it.

    A text without a prompt is scored from its second token on (from its first where the tokenizer begins texts with a
    token of its own), without a chat template; an answer to a prompt from its first, under the template. A text that
    is longer than the model's context is cut to it.

    Raises:
        DataError: A text of which no token is left to score.
    """
    rows = [_text_row(chat, text) for text in texts]
    scores: dict[int, TextScore] = {}
    with torch.inference_mode():
        for places in _batches(chat, [len(tokens) for tokens, _ in rows]):
            losses = _losses(chat, [rows[place] for place in places])
            for place, nll in zip(places, losses, strict=True):
                tokens, start = rows[place]
                scores[place] = TextScore(texts[place].id, _finite(nll), len(tokens) - start)
    return [scores[place] for place in range(len(texts))]


def question_scores(chat: ChatModel, questions: Sequence[Question]) -> list[QuestionScore]:
    """Log-likelihood of every choice as the beginning of the model's answer, and whether the right one is the largest.

    log P(choice | question) is the sum over the choice's tokens, under the chat template, the end of the answer not
    counted: lm-eval's `acc`, without normalisation by length. So choices should be of like length, as the bundled ones
    are; a normalisation by tokens would favour rare words that are cut into many. Of equal ones the first counts, as
    with numpy's argmax there.

    Raises:
        DataError: A question that does not fit the model's context or holds a control token; a choice without tokens.

    Source: Gao et al., lm-evaluation-harness, doi:10.5281/zenodo.5371628; Brown et al. 2020, arXiv:2005.14165, 2.4.
    """
    choices = [[_choice_tokens(chat, choice, question.id) for choice in question.choices] for question in questions]
    longest = max((len(tokens) for row in choices for tokens in row), default=0)
    asked = [Prompt(q.id, (Message("user", q.question),), Subset.BENIGN, q.id) for q in questions]
    encoded = encode_prompts(chat, asked, longest)
    scores: dict[int, QuestionScore] = {}
    with torch.inference_mode():
        prefix, shared = _prefix(chat, encoded)
        own = [len(tokens) - shared for tokens in encoded]
        # Questions with choices of like length together: all choices of a batch are as wide as the longest.
        widths = [max(map(len, listed)) for listed in choices]
        for places in _batches(chat, own, widths):
            cache, padded, logits = _read(chat, [encoded[place] for place in places], prefix, shared)
            found = _choice_log_likelihoods(chat, cache, padded, logits[:, -1], [choices[place] for place in places])
            for place, values in zip(places, found, strict=True):
                scores[place] = _question_score(questions[place], values)
    return [scores[place] for place in range(len(questions))]


def read_base(chat: ChatModel, prompts: Sequence[Prompt], n_tokens: int) -> BaseReading:
    """Have the base answer prompts greedily, and keep its distributions at the first `n_tokens` positions.

    Position 0 is the last token of the prompt; an answer that ends early has fewer, its end being the last.
    Forward passes on packed weights, as `measure_utility` makes them.
    float32, not fewer digits or the likeliest tokens alone, so that the base's divergence from itself is exactly 0:
    prompts x positions x vocabulary x 4 bytes, 38 MB for 24 x 8 x 49,152.

    Raises:
        DataError: A prompt that does not fit the model's context or holds a control token.
    """
    encoded = encode_prompts(chat, prompts, n_tokens)
    rows: list[tuple[int, ...]] = []
    counts: list[int] = []
    for tokens, (answer, ended) in zip(encoded, HfGenerator(chat).greedy_tokens(encoded, n_tokens), strict=True):
        counts.append(len(answer) + ended)
        rows.append((*tokens, *answer[: counts[-1] - 1]))
    with packed(chat.model):
        found = dict(_distributions(chat, rows, counts))
    log_probs = tuple(found[place].cpu() for place in range(len(rows)))
    return BaseReading(tuple(prompt.id for prompt in prompts), tuple(rows), log_probs)


def divergences(chat: ChatModel, base: BaseReading) -> list[Divergence]:
    """KL(base || model) of the next-token distribution on each prompt, nats: mean over the base's positions.

    KL_t = sum_v p_t(v) (log p_t(v) - log q_t(v)), p the base, q this model, both after the prompt and the base's own
    first t tokens; over the whole vocabulary, at least 0, exactly 0 for the base itself.

    Source: Kullback & Leibler (1951), doi:10.1214/aoms/1177729694; along a greedy answer it is the first term of the
    chain rule for the divergence of whole answers.
    """
    counts = [len(log_probs) for log_probs in base.log_probs]
    found: dict[int, Divergence] = {}
    for place, log_probs in _distributions(chat, base.rows, counts):
        before = base.log_probs[place].to(log_probs.device)
        kl = kl_div(log_probs, before, reduction="none", log_target=True).double().sum(dim=-1).mean()
        value = _finite(float(kl))
        found[place] = Divergence(base.ids[place], None if value is None else max(0.0, value), counts[place])
    return [found[place] for place in range(len(base.rows))]


def _text_row(chat: ChatModel, text: HeldOutText) -> tuple[list[int], int]:
    """A text's tokens with those before it, and the place of the first that is scored."""
    if text.prompt:
        before = encode_chat(chat, [Message("user", text.prompt)])
        tokens = [*before, *chat.tokenizer(text.text, add_special_tokens=False)["input_ids"]]
        start = len(before)
    else:
        tokens, start = list(chat.tokenizer(text.text)["input_ids"]), 1
    room = getattr(chat.model.config, "max_position_embeddings", None)
    tokens = tokens[:room]
    if len(tokens) <= start:
        raise DataError(
            explain(
                f"no token of the text '{text.id}' can be scored",
                got=f"{len(tokens)} tokens, the first {start} of them given, and a context of {room}",
                remedy="use longer texts, or shorter prompts before them",
            )
        )
    return tokens, start


def _losses(chat: ChatModel, rows: Sequence[tuple[list[int], int]]) -> list[float]:
    """Negative log-likelihood of each row's tokens from its start on; padding lies behind, where nothing looks."""
    width, first = max(len(tokens) for tokens, _ in rows), min(start for _, start in rows) - 1
    padded = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens, _ in rows], device=chat.device)
    kept = torch.arange(first, width - 1, device=chat.index_device)
    logits = chat.model(input_ids=padded, use_cache=False, logits_to_keep=kept).logits
    losses = []
    for line, targets, (tokens, start) in zip(logits, padded, rows, strict=True):
        part = line[start - 1 - first : len(tokens) - 1 - first].float()
        chosen = part.gather(1, targets[start : len(tokens)].unsqueeze(1)).squeeze(1)
        losses.append(float((part.logsumexp(dim=-1) - chosen).double().sum()))
    return losses


def _choice_tokens(chat: ChatModel, choice: str, question_id: str) -> list[int]:
    tokens = list(chat.tokenizer(choice, add_special_tokens=False)["input_ids"])
    if not tokens:
        raise DataError(explain(f"a choice of question '{question_id}' has no tokens", got=repr(choice[:60])))
    return tokens


def _choice_log_likelihoods(
    chat: ChatModel,
    cache: DynamicCache,
    padded: Padded,
    logits: torch.Tensor,
    choices: Sequence[Sequence[Sequence[int]]],
) -> list[list[float]]:
    """Log-likelihoods of every question's choices, given the cache and next-token logits of the questions.

    The first token of each comes from `logits`, (questions, vocabulary); the others from one pass over all choices,
    each after its question's columns of the cache.
    """
    owner = [place for place, listed in enumerate(choices) for _ in listed]
    rows = [list(tokens) for listed in choices for tokens in listed]
    first = log_softmax(logits.float(), dim=-1)[owner, [tokens[0] for tokens in rows]].double()
    total = first + _later_log_likelihoods(chat, cache, padded, owner, rows)
    values = iter(total.tolist())
    return [[next(values) for _ in listed] for listed in choices]


def _later_log_likelihoods(
    chat: ChatModel, cache: DynamicCache, padded: Padded, owner: Sequence[int], rows: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Sum over each row's tokens from the second on, float64; 0 for a row of one token."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=chat.device)
    longer = [place for place, tokens in enumerate(rows) if len(tokens) > 1]
    if not longer:
        return total
    width = max(len(rows[place]) for place in longer) - 1
    picked = torch.tensor([owner[place] for place in longer], device=chat.device)
    select_rows(cache, picked)
    filled = [[*rows[place][:-1], *[0] * (width - len(rows[place]) + 1)] for place in longer]
    # What is padded stands last: no real token looks at it.
    mask = torch.cat([padded.mask[picked], padded.mask.new_ones((len(longer), width))], dim=1)
    positions = padded.positions[picked, -1:] + torch.arange(1, width + 1, device=chat.device)
    logits = chat.model(
        input_ids=torch.tensor(filled, device=chat.device),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).logits
    for line, place in zip(logits, longer, strict=True):
        part = line[: len(rows[place]) - 1].float()
        chosen = torch.tensor(rows[place][1:], device=chat.device).unsqueeze(1)
        total[place] = (part.gather(1, chosen).squeeze(1) - part.logsumexp(dim=-1)).double().sum()
    return total


def _question_score(question: Question, values: Sequence[float]) -> QuestionScore:
    known = tuple(map(_finite, values))
    best = max(range(len(values)), key=lambda place: values[place]) if None not in known else None
    return QuestionScore(question.id, best == question.right, known)


def _distributions(
    chat: ChatModel, rows: Sequence[Sequence[int]], counts: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each row's place and its log-probabilities at the last `counts` positions, (positions, vocabulary), float32."""
    with torch.inference_mode():
        prefix, shared = _prefix(chat, rows)
        for places in _batches(chat, [len(row) - shared for row in rows]):
            keep = max(counts[place] for place in places)
            _, _, logits = _read(chat, [rows[place] for place in places], prefix, shared, keep=keep)
            for line, place in zip(logits, places, strict=True):
                yield place, log_softmax(line[-counts[place] :].float(), dim=-1)


def _prefix(chat: ChatModel, rows: Sequence[Sequence[int]]) -> tuple[DynamicCache | None, int]:
    """The cache of the tokens with which all rows begin, and how many there are."""
    shared = shared_prefix(chat, rows) if rows else 0
    if shared == 0:
        return None, 0
    cache = growing_cache(chat.model.config)
    tokens = torch.tensor([list(rows[0][:shared])], device=chat.device)
    chat.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache, shared


def _read(
    chat: ChatModel, rows: Sequence[Sequence[int]], prefix: DynamicCache | None, shared: int, *, keep: int = 1
) -> tuple[DynamicCache, Padded, torch.Tensor]:
    """One pass over rows, padded on the left; their cache, and logits at the last `keep` positions."""
    cache = growing_cache(chat.model.config) if prefix is None else repeated(prefix, len(rows))
    padded = pad_left(rows, shared=shared, device=chat.device)
    output = chat.model(
        input_ids=padded.tokens,
        attention_mask=padded.mask,
        position_ids=padded.positions,
        past_key_values=cache,
        use_cache=True,
        # A tensor, not a number: a slice would not lie in one piece, and the head would read it slowly.
        logits_to_keep=torch.arange(-keep, 0, device=chat.index_device),
    )
    return cache, padded, output.logits


def _batches(chat: ChatModel, sizes: Sequence[int], kinds: Sequence[int] | None = None) -> Iterator[list[int]]:
    """Places of rows in batches, longest first: no more tokens together than the device likes, padding counted.

    Rows of one kind, where kinds are given, come one after the other.
    """
    limit = CPU_TOKENS if chat.device == "cpu" else GPU_TOKENS
    order = sorted(range(len(sizes)), key=lambda place: (0 if kinds is None else -kinds[place], -sizes[place]))
    batch: list[int] = []
    longest = 0
    for place in order:
        longest = max(longest, sizes[place])
        if batch and longest * (len(batch) + 1) > limit:
            yield batch
            batch, longest = [], sizes[place]
        batch.append(place)
    if batch:
        yield batch


def _finite(value: float) -> float | None:
    """The value, or None for NaN and infinity: a model that has broken may give either."""
    return value if math.isfinite(value) else None
