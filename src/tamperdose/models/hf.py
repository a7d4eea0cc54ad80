"""Generation with transformers: the reference engine, on a CPU or one GPU.

What it does beyond `model.generate`: the template's common prefix is computed once, prompts go in order of length,
answers that have ended leave the batch at once, and a batch that does not fit memory is halved and tried again.
Greedy tokens are those of `model.generate` (up to ties of rounding: see docs/methods.md).
"""

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from transformers import DynamicCache

from tamperdose.errors import ModelError, explain
from tamperdose.files import digest
from tamperdose.models.cache import growing_cache, has_only_full_attention, joined, repeated, select_rows
from tamperdose.models.chat import encode_prompts, end_tokens
from tamperdose.models.generator import OnProgress, in_full, prompt_rng
from tamperdose.models.lanes import n_lanes, side_by_side, split
from tamperdose.models.load import ChatModel
from tamperdose.models.packed import packed
from tamperdose.records import Completion, FinishReason, Prompt
from tamperdose.study import Decoding

CPU_BATCH = 128
"""Rows per batch on a CPU: beyond it the matrix products gain nothing more."""
GPU_BATCH = 256
"""Rows per batch on a GPU to begin with; halved when memory runs out."""
CPU_PREFILL_TOKENS = 512
"""Tokens of prompts that go through the model together on a CPU: more would leave its caches."""
GPU_PREFILL_TOKENS = 32_768
"""The same on a GPU, where more would take memory and gain nothing."""
_SENTENCE_END = re.compile(r"[.!?]\s|\n")
"""Where in an answer it is worth asking whether its verdict is settled: with its last two tokens a sentence ended."""
COMPACT_SHARE = 0.9
"""Ended rows are dropped once no more than this share of the batch is still going."""


@dataclass(slots=True)
class _Row:
    """One prompt on its way through a batch."""

    tokens: list[int]
    rng: np.random.Generator
    may_stop: bool = False
    """Whether the answer may be ended before the model does, once its verdict is settled."""
    answer: list[int] = field(default_factory=list)
    ended: bool = False
    decided: bool = False
    """Whether it was ended so."""

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended."""
        if self.decided:
            return FinishReason.DECIDED
        return FinishReason.STOP if self.ended else FinishReason.LENGTH


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows of tokens as one batch: a prefix common to all, padding, and what is the row's own."""

    tokens: torch.Tensor
    """What follows the prefix, (rows, columns), padded on the left."""
    mask: torch.Tensor
    """1 for real tokens, the prefix included: (rows, prefix + columns)."""
    positions: torch.Tensor
    """Each token's place in its row, counted from the prefix's start, padding not counted: (rows, columns)."""


def pad_left(rows: Sequence[Sequence[int]], *, shared: int, device: str) -> Padded:
    """Lay out rows whose first `shared` tokens are computed once and elsewhere."""
    width = max(len(row) for row in rows) - shared
    pads = [width - (len(row) - shared) for row in rows]
    tokens = torch.tensor([[0] * pad + list(row[shared:]) for pad, row in zip(pads, rows, strict=True)])
    real = torch.arange(width).unsqueeze(0) >= torch.tensor(pads).unsqueeze(1)
    mask = torch.cat([real.new_ones((len(rows), shared)), real], dim=1).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, shared:]
    return Padded(tokens.to(device), mask.to(device), positions.to(device))


class HfGenerator:
    """Answers prompts with a loaded model."""

    def __init__(
        self,
        chat: ChatModel,
        *,
        batch_size: int | None = None,
        opener: Sequence[int] = (),
        is_settled: Callable[[str], bool] | None = None,
    ) -> None:
        self.chat = chat
        self._is_settled = is_settled
        self._opener = list(opener)
        self.batch_size = batch_size or (CPU_BATCH if chat.device == "cpu" else GPU_BATCH)
        self._prefill_tokens = CPU_PREFILL_TOKENS if chat.device == "cpu" else GPU_PREFILL_TOKENS
        self._end_tokens = end_tokens(chat)
        self.settings = {
            "engine": "hf",
            "dtype": chat.dtype,
            "chat_template": digest(str(getattr(chat.tokenizer, "chat_template", None))),
        }
        """What answers are recorded with, so that an audit can tell whether arms were had alike."""

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, *, seed: int, sample: int = 0, on_progress: OnProgress
    ) -> list[Completion]:
        """Answer each prompt once, in the order given; see `Generator`.

        Raises:
            DataError: A prompt is longer than the model's context leaves room for.
            ModelError: Not even a single row fits memory.
        """
        if not prompts:
            return []
        encoded = encode_prompts(self.chat, prompts, len(self._opener) + decoding.max_new_tokens)
        rows = [
            _Row(
                [*tokens, *self._opener], prompt_rng(seed, prompt.id, sample), may_stop=self._may_stop(prompt, decoding)
            )
            for prompt, tokens in zip(prompts, encoded, strict=True)
        ]
        lanes = split(rows, n_lanes(self.chat.model, self.chat.device), size=lambda row: len(row.tokens))
        told = _one_at_a_time(on_progress)
        with packed(self.chat.model):
            side_by_side(lambda lane: self._decode_all(lane, decoding, told), lanes)
        answers = self.chat.tokenizer.batch_decode([row.answer for row in rows], skip_special_tokens=True)
        return [
            Completion(
                prompt_id=prompt.id,
                text=text,
                n_tokens=len(row.answer),
                finish_reason=row.finish_reason,
                sample=sample,
            )
            for prompt, row, text in zip(prompts, rows, answers, strict=True)
        ]

    def _may_stop(self, prompt: Prompt, decoding: Decoding) -> bool:
        return (
            decoding.stop_when_decided and self._is_settled is not None and not in_full(prompt.id, decoding.full_share)
        )

    def _settles(self, answer: Sequence[int]) -> bool:
        """Whether the last token has ended a sentence, and with it the question how the answer is judged."""
        decode = self.chat.tokenizer.decode
        if self._is_settled is None or not _SENTENCE_END.search(decode(answer[-2:], skip_special_tokens=True)):
            return False
        return self._is_settled(decode(answer, skip_special_tokens=True))

    def greedy_tokens(self, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[tuple[list[int], bool]]:
        """The first tokens of the greedy answers to encoded prompts, and whether each answer ended with them."""
        rows = [_Row(list(tokens), np.random.default_rng(0)) for tokens in prompts]
        with packed(self.chat.model):
            waiting = sorted(rows, key=lambda row: len(row.tokens), reverse=True)
            self._decode_all(waiting, Decoding(max_new_tokens=n_tokens), lambda _count: None)
        return [(row.answer, row.ended) for row in rows]

    def _decode_all(self, waiting: list[_Row], decoding: Decoding, on_progress: OnProgress) -> None:
        """Fill the answers of rows, longest first; the list is used up."""
        while waiting:
            batch = waiting[: self.batch_size]
            if self._decoded(batch, decoding, on_progress):
                del waiting[: len(batch)]
            else:
                self._halve(len(batch))

    def _decoded(self, batch: list[_Row], decoding: Decoding, on_progress: OnProgress) -> bool:
        """Decode a batch; False when memory ran out, with the rows as they were but for spent randomness."""
        states = [row.rng.bit_generator.state for row in batch]
        reported = 0
        try:
            with torch.inference_mode():
                for n_ended in self._decode(batch, decoding):
                    reported += n_ended
                    on_progress(n_ended)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            on_progress(-reported)
            for row, state in zip(batch, states, strict=True):
                row.answer, row.ended, row.decided, row.rng.bit_generator.state = [], False, False, state
            return False
        return True

    def _halve(self, failed: int) -> None:
        if failed == 1:
            raise ModelError(
                explain("not even one prompt fits in memory", remedy="lower max_new_tokens, or use a larger device")
            )
        # Of two lanes that ran out of memory together, one halves what the other has halved.
        self.batch_size = min(self.batch_size, failed // 2)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _decode(self, batch: list[_Row], decoding: Decoding) -> Iterator[int]:
        """Fill each row's answer; yields how many rows ended at each token."""
        model, device = self.chat.model, self.chat.device
        cache, mask, positions, logits = self._prefill(batch)
        active = batch
        for _ in range(decoding.max_new_tokens):
            chosen = _choose(logits, active, decoding)
            ended = 0
            for row, token in zip(active, chosen, strict=True):
                if row.ended:
                    continue
                if token in self._end_tokens:
                    row.ended = True
                    ended += 1
                else:
                    row.answer.append(token)
                    row.decided = row.ended = row.may_stop and self._settles(row.answer)
                    ended += row.ended
            keep = [place for place, row in enumerate(active) if not row.ended]
            at_limit = not keep or len(active[keep[0]].answer) == decoding.max_new_tokens
            yield ended + (len(keep) if at_limit else 0)
            if at_limit:
                return
            if len(keep) <= COMPACT_SHARE * len(active):
                picked = torch.tensor(keep, device=device)
                select_rows(cache, picked)
                mask, positions = mask[picked], positions[picked]
                active = [active[place] for place in keep]
                chosen = [chosen[place] for place in keep]
            mask = torch.cat([mask, mask.new_ones((len(active), 1))], dim=1)
            positions = positions + 1
            output = model(
                input_ids=torch.tensor(chosen, device=device).unsqueeze(1),
                attention_mask=mask,
                position_ids=positions.unsqueeze(1),
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]

    def _prefill(self, batch: list[_Row]) -> tuple[DynamicCache, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the prompts; returns cache, mask (rows, columns), each row's last position, next-token logits."""
        shared = shared_prefix(self.chat, [row.tokens for row in batch])
        # Caches of other kinds than full attention cannot be put together from parts.
        limit = self._prefill_tokens if has_only_full_attention(self.chat.model.config) else None
        prefix = self._prefix(batch[0].tokens[:shared])
        parts = [self._prefill_part(rows, prefix, shared) for rows in alike(batch, shared=shared, limit=limit)]
        width = max(mask.shape[1] for _, mask, _, _ in parts)
        masks = [
            torch.cat([mask[:, :shared], mask.new_zeros((len(mask), width - mask.shape[1])), mask[:, shared:]], dim=1)
            for _, mask, _, _ in parts
        ]
        cache = joined([part[0] for part in parts], shared)
        return cache, torch.cat(masks), torch.cat([part[2] for part in parts]), torch.cat([part[3] for part in parts])

    def _prefix(self, tokens: Sequence[int]) -> DynamicCache | None:
        if not tokens:
            return None
        cache = growing_cache(self.chat.model.config)
        prefix = torch.tensor([tokens], device=self.chat.device)
        self.chat.model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    def _prefill_part(
        self, rows: Sequence[_Row], prefix: DynamicCache | None, shared: int
    ) -> tuple[DynamicCache, torch.Tensor, torch.Tensor, torch.Tensor]:
        model, device = self.chat.model, self.chat.device
        cache = growing_cache(model.config) if prefix is None else repeated(prefix, len(rows))
        padded = pad_left([row.tokens for row in rows], shared=shared, device=device)
        output = model(
            input_ids=padded.tokens,
            attention_mask=padded.mask,
            position_ids=padded.positions,
            past_key_values=cache,
            use_cache=True,
            # A tensor, not a number: a slice would not lie in one piece, and the head would read it slowly.
            logits_to_keep=torch.tensor([-1], device=self.chat.index_device),
        )
        return cache, padded.mask, padded.positions[:, -1], output.logits[:, -1]


def _one_at_a_time(on_progress: OnProgress) -> OnProgress:
    lock = Lock()

    def told(count: int) -> None:
        with lock:
            on_progress(count)

    return told


def alike(rows: Sequence[_Row], *, shared: int, limit: int | None) -> Iterator[Sequence[_Row]]:
    """Split rows, sorted by length, into runs of at most `limit` tokens, padding counted, the shared ones not."""
    start = 0
    while start < len(rows):
        own = max(1, len(rows[start].tokens) - shared)
        n_rows = len(rows) if limit is None else max(1, limit // own)
        yield rows[start : start + n_rows]
        start += n_rows


def shared_prefix(chat: ChatModel, rows: Sequence[Sequence[int]]) -> int:
    """Length of the tokens with which all rows begin, at least one being left to each; 0 where it cannot be used.

    The rows' padding comes after the prefix, so a row's columns are not contiguous: a sliding window would miscount.
    """
    first, last = min(map(list, rows)), max(map(list, rows))
    limit = min(len(row) for row in rows) - 1
    shared = next((i for i in range(limit) if first[i] != last[i]), limit)
    return shared if len(rows) > 1 and has_only_full_attention(chat.model.config) else 0


def _choose(logits: torch.Tensor, rows: Sequence[_Row], decoding: Decoding) -> list[int]:
    """Pick each row's next token from logits (rows, vocabulary): the largest, or one drawn by the row's own rng."""
    if not decoding.do_sample:
        return logits.argmax(dim=-1).tolist()
    probabilities = torch.softmax(logits.float() / decoding.temperature, dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    cumulative = ordered.double().cumsum(dim=-1)
    # Nucleus (Holtzman et al. 2020): the fewest most likely tokens whose probability reaches top_p.
    kept = cumulative - ordered < decoding.top_p
    total = (ordered * kept).double().sum(dim=-1)
    draws = torch.tensor([row.rng.random() for row in rows], dtype=torch.float64, device=logits.device)
    place = (cumulative < (draws * total).unsqueeze(1)).sum(dim=-1)
    place = place.clamp(max=kept.sum(dim=-1) - 1)
    return order.gather(1, place.unsqueeze(1)).squeeze(1).tolist()


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text
