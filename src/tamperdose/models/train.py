"""The one fine-tuning loop: attacks, defences and organisms are all this, on other data.

LoRA on all linear layers, or all weights; loss on the answer's tokens alone, AdamW, a constant learning rate after a
linear warm-up, so that the model after k steps is the same whether training stops there or goes on. The batch at a step
depends on (seed, step) alone; nothing random carries over from step to step, so a resumed run is bit-equal.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from tamperdose.errors import DataError, ModelError, RunError, explain
from tamperdose.files import digest, write_atomic
from tamperdose.models.cache import has_only_full_attention
from tamperdose.models.chat import encode_chat, end_tokens, require_plain
from tamperdose.models.flops import training_flops
from tamperdose.models.hf import shared_prefix
from tamperdose.models.lanes import n_lanes, side_by_side, split
from tamperdose.models.load import ChatModel, architecture_of
from tamperdose.models.lora import LoraShape, save_adapter
from tamperdose.models.lora_products import fused
from tamperdose.models.saving_memory import checkpointed, make_optimizer, moments, quiet_pages, remember
from tamperdose.models.sharded import shard
from tamperdose.models.weights import learner, unlocked, write_weights
from tamperdose.records import NO_DOSE, Checkpoint, Dose, Example
from tamperdose.study import Optimizer

MAX_GRAD_NORM = 1.0
"""Gradients are clipped to this norm, the default of transformers' Trainer and of TRL."""
PACKED_TOKENS = 1024
"""Tokens that go through the model together in training: attention over more would cost more than it saves."""
SAVE_EVERY_S = 60.0
"""An adapter's state is saved at every dose, and at least this often between them; that of all weights this often."""
SAVING_SHARE = 0.1
"""Share of the time that saving all weights with their moments may take: seconds for millions, minutes for billions."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: everything but the data and the model."""

    learning_rate: float
    batch_size: int
    warmup_steps: int
    lora_rank: int | None
    """None: all weights learn."""
    lora_alpha: float
    max_length: int
    seed: int
    data_order: int | None = None
    """Seed of the order in which rows come; None takes `seed`."""
    decay_steps: int = 0
    """Step at which the learning rate has fallen linearly to 0; 0 keeps it constant, as nested doses need."""
    gradient_checkpointing: bool = False
    """Keep each layer's input alone, and compute the rest again for its gradient."""
    optimizer: Optimizer = "adamw"
    """`paged_adamw_8bit` keeps moments of eight bits."""

    def rate_at(self, step: int) -> float:
        """Learning rate of a step, counted from 1: linear warm-up, then constant or falling.

        >>> recipe = Recipe(1.0, 8, 1, 8, 16.0, 256, 0, decay_steps=3)
        >>> [round(recipe.rate_at(step), 3) for step in (1, 2, 3)]
        [0.5, 0.667, 0.333]
        """
        warm = min(1.0, step / (self.warmup_steps + 1))
        left = 1.0 if not self.decay_steps else (self.decay_steps + 1 - step) / self.decay_steps
        return self.learning_rate * min(warm, left)

    @property
    def shape(self) -> LoraShape | None:
        """The adapter's size; None where all weights learn."""
        return None if self.lora_rank is None else LoraShape(self.lora_rank, self.lora_alpha)


@dataclass(frozen=True, slots=True)
class Source:
    """One set of training rows and how many of them a batch takes."""

    examples: Sequence[Example]
    """The rows."""
    per_batch: int
    """Rows of a batch that come from here: of every one, or of those whose turn it is."""
    turns: "Turns | None" = None
    """Which batches are its turn, where sources take turns; None: all are."""

    def rows_by(self, step: int) -> int:
        """How many rows it has given when a step is done."""
        return self.per_batch * (step if self.turns is None else self.turns.taken(step))


@dataclass(frozen=True, slots=True)
class Turns:
    """Which steps are one source's, where two take turns, spread evenly: a function of the step alone.

    >>> [Turns(0.25, own=True).taken(step) for step in range(9)], Turns(0.25, own=False).taken(8)
    ([0, 0, 0, 0, 1, 1, 1, 1, 2], 6)
    """

    share: float
    """Share of the steps that are the second source's."""
    own: bool
    """Whether this is the second source."""

    def taken(self, step: int) -> int:
        """How many of the first `step` steps are this source's."""
        second = math.floor(self.share * step)
        return second if self.own else step - second


@dataclass(frozen=True, slots=True)
class _TokenRow:
    tokens: list[int]
    n_labels: int


def train_trajectory(
    chat: ChatModel,
    sources: Sequence[Source],
    recipe: Recipe,
    *,
    doses: Sequence[int],
    folder: Path,
    on_step: Callable[[int, float], None],
) -> Iterator[Checkpoint]:
    """Train one trajectory and yield the checkpoint at each dose (in optimizer steps, increasing).

    Adapters, or all weights, are written to `folder/step_NNNNNN.safetensors` and the state to resume from to
    `folder/state.safetensors`; a call on the same folder goes on where the last one was stopped, and yields again
    the checkpoints whose files are there. The model's own weights are as before when the iterator ends.

    Raises:
        DataError: A row whose answer alone is longer than `max_length`, or an empty source.
        ModelError: All weights of a 4-bit model are to learn, or of a sharded one.
        RunError: Training diverged: a loss or a weight is not finite.
    """
    rows = [_encode_rows(chat, source.examples, recipe.max_length) for source in sources]
    order = recipe.seed if recipe.data_order is None else recipe.data_order
    batches = _BatchPlan(rows, sources, order)
    identity = [asdict(recipe), [[row.tokens for row in part] for part in rows], [s.per_batch for s in sources]]
    turns = [asdict(source.turns) for source in sources if source.turns is not None]
    # Sums in another order: the one does not go on from where the other was.
    shared = [] if chat.ranks is None else [{"n_ranks": chat.ranks.n_ranks}]
    key = digest([*identity, *([turns] if turns else []), *shared])
    with _learning(chat, recipe) as wrapped:
        trainer = _Trainer(chat, wrapped, recipe, key=key)
        trainer.resume(folder, doses)
        yield from _done_before(trainer, doses, folder)
        for step in range(trainer.dose.steps + 1, doses[-1] + 1):
            loss = trainer.step(batches.batch(step))
            reached = trainer.checkpoint(folder) if step in doses else None
            if trainer.is_due(at_dose=reached is not None) or step == doses[-1]:
                trainer.save(folder)
            on_step(step, loss)
            if reached:
                yield reached


def _done_before(trainer: "_Trainer", doses: Sequence[int], folder: Path) -> Iterator[Checkpoint]:
    for steps in doses:
        record = trainer.reached.get(steps)
        if record is not None:
            yield trainer.describe(folder, Dose(**record["dose"]), record["mean_loss"], record["seconds"])


class _Trainer:
    """One trajectory under way: the model with what learns in it, its optimizer, and the dose so far."""

    def __init__(self, chat: ChatModel, wrapped: Any, recipe: Recipe, *, key: str) -> None:
        self.chat, self.wrapped, self.recipe, self.key = chat, wrapped, recipe, key
        self.architecture = architecture_of(chat.model.config)
        self.in_model = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
        self.parameters = {name: learner(parameter) for name, parameter in self.in_model.items()}
        self.optimizer = make_optimizer(
            recipe.optimizer, self.parameters.values(), learning_rate=recipe.learning_rate, device=chat.device
        )
        self.n_lanes = n_lanes(chat.model, chat.device) if chat.ranks is None else chat.ranks.n_ranks
        self.writes = chat.ranks is None or chat.ranks.is_first
        self.dose = NO_DOSE
        self.mean_loss = 0.0
        self.seconds = 0.0
        self.reached: dict[int, dict[str, Any]] = {}
        self.saved_at, self.saving_s = time.monotonic(), 0.0

    def step(self, batch: Sequence[_TokenRow]) -> float:
        """Take one optimizer step; returns the batch's mean loss per labelled token, nats."""
        start = time.monotonic()
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate_at(self.dose.steps + 1)
        again = checkpointed(self.wrapped, wanted=self.recipe.gradient_checkpointing)
        with _repeatable(self.chat.device), fused(self.wrapped), again:
            self.mean_loss = self._backward(batch)
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), MAX_GRAD_NORM)
        with quiet_pages():
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._show()
        lengths = [len(row.tokens) for row in batch]
        n_labels = sum(row.n_labels for row in batch)
        flops = training_flops(self.architecture, lora_rank=self.recipe.lora_rank, lengths=lengths, n_labels=n_labels)
        self.dose = Dose(
            steps=self.dose.steps + 1,
            examples=self.dose.examples + len(batch),
            tokens=self.dose.tokens + sum(lengths),
            flops=self.dose.flops + flops,
        )
        # It reads every weight, so an accelerator has finished the step by then.
        self._require_finite()
        self.seconds += time.monotonic() - start
        return self.mean_loss

    def _show(self) -> None:
        """Have the model compute with what has been learned, rounded to its own precision."""
        with torch.no_grad():
            for weight, learned in zip(self.in_model.values(), self.parameters.values(), strict=True):
                if weight is not learned:
                    weight.copy_(learned)

    def _require_finite(self) -> None:
        """Stop a training that has diverged: its answers would be noise, and noise would count as compliance."""
        # One number of all weights: an accelerator would wait for each one asked for.
        size = torch.nn.utils.get_total_norm(list(self.parameters.values()))
        if math.isfinite(self.mean_loss) and math.isfinite(float(size)):
            return
        raise RunError(
            explain(
                f"training diverged at step {self.dose.steps}",
                got=f"loss {self.mean_loss}, learning rate {self.recipe.learning_rate:g}",
                expected="finite loss and weights",
                remedy="lower the learning rate, or warm up for more steps",
            )
        )

    def _backward(self, batch: Sequence[_TokenRow]) -> float:
        """Add the gradient of the mean cross-entropy over the answers' tokens; returns that mean.

        Rows lie end to end in sequences of at most `PACKED_TOKENS`, each seeing itself alone and the prefix that all
        share, which is computed once a sequence: nothing is padded, and the head runs on the answers' tokens alone.
        """
        n_labels = sum(row.n_labels for row in batch)
        lanes = [self._sequences(lane) for lane in split(batch, self.n_lanes, size=lambda row: len(row.tokens))]
        gradient = partial(self._gradient, n_labels=n_labels)
        if self.chat.ranks is None:
            losses, gradients = zip(*side_by_side(gradient, lanes), strict=True)
        else:
            own, idle = _turns_of(self.chat.ranks.rank, lanes)
            part = gradient(own)
            # Layers are gathered by all processes together: one with fewer sequences runs as often as the others.
            for _ in range(idle):
                gradient([[min(batch, key=lambda row: len(row.tokens))]])
            loss, total = self.chat.ranks.total(*part)
            losses, gradients = (loss,), (total,)
        for parameter, *parts in zip(self.parameters.values(), *gradients, strict=True):
            parameter.grad = sum(parts[1:], start=parts[0])
        return sum(losses)

    def _sequences(self, rows: Sequence[_TokenRow]) -> list[list[_TokenRow]]:
        """The rows that go through the model as one sequence."""
        # Rows that lie behind one another would miscount a sliding window: there each has a sequence of its own.
        packable = has_only_full_attention(self.chat.model.config)
        return list(_packs(rows, PACKED_TOKENS)) if packable else [[row] for row in rows]

    def _gradient(self, packs: Sequence[list[_TokenRow]], *, n_labels: int) -> tuple[float, list[torch.Tensor]]:
        """Loss and gradient of some of a batch's rows, as their part of the batch's mean; zeros without any."""
        parameters = list(self.in_model.values())
        losses: list[torch.Tensor] = []
        gradient: list[torch.Tensor] = []
        for pack in packs:
            loss = self._summed_loss(pack) / n_labels
            part = [each.float() for each in torch.autograd.grad(loss, parameters)]
            gradient = [a + b for a, b in zip(gradient, part, strict=True)] if gradient else part
            losses.append(loss.detach())
        # Read at the end: reading one waits for an accelerator, which then waits for the next sequence.
        return sum(map(float, losses)), gradient or [torch.zeros_like(each, dtype=torch.float32) for each in parameters]

    def _summed_loss(self, rows: Sequence[_TokenRow]) -> torch.Tensor:
        device = self.chat.device
        packed = _pack(rows, shared=shared_prefix(self.chat, [row.tokens for row in rows]), device=device)
        mask = None
        if len(rows) > 1:
            hidden = torch.zeros(packed.seen.shape, dtype=self.chat.model.dtype, device=device)
            mask = hidden.masked_fill_(~packed.seen, torch.finfo(hidden.dtype).min)[None, None]
        logits = self.wrapped(
            input_ids=packed.tokens.unsqueeze(0),
            attention_mask=mask,
            position_ids=packed.positions.unsqueeze(0),
            use_cache=False,
            logits_to_keep=packed.before_labels.to(self.chat.index_device),
        ).logits[0]
        return cross_entropy(logits.float(), packed.labels, reduction="sum")

    def checkpoint(self, folder: Path) -> Checkpoint:
        """Write the adapter, or all weights, as they stand."""
        path = _weights_path(folder, self.dose.steps)
        if self.recipe.shape is None:
            write_weights(path, self.wrapped)
        elif self.writes:
            save_adapter(path, get_peft_model_state_dict(self.wrapped), self.recipe.shape)
        self.reached[self.dose.steps] = {
            "dose": asdict(self.dose),
            "mean_loss": self.mean_loss,
            "seconds": self.seconds,
        }
        return self.describe(folder, self.dose, self.mean_loss, self.seconds)

    def describe(self, folder: Path, dose: Dose, mean_loss: float, seconds: float) -> Checkpoint:
        """The checkpoint whose file lies in the folder."""
        path = str(_weights_path(folder, dose.steps))
        if self.recipe.shape is None:
            return Checkpoint(dose, None, mean_loss, seconds=seconds, weights=path)
        return Checkpoint(dose, path, mean_loss, seconds=seconds)

    def is_due(self, *, at_dose: bool) -> bool:
        """Whether the state is to be saved: between saves nothing is lost but the time to come here again."""
        since = time.monotonic() - self.saved_at
        if self.recipe.shape is None:
            return since > max(SAVE_EVERY_S, self.saving_s / SAVING_SHARE)
        return at_dose or since > SAVE_EVERY_S

    def _learned(self) -> dict[str, torch.Tensor]:
        return dict(self.parameters) if self.recipe.shape is None else get_peft_model_state_dict(self.wrapped)

    def save(self, folder: Path) -> None:
        """Write all that a resumed run needs: what was learned, its moments, the dose, and the checkpoints made."""
        if not self.writes:
            return
        start = time.monotonic()
        tensors = {f"model/{name}": tensor for name, tensor in self._learned().items()}
        for name, parameter in self.parameters.items():
            for moment, value in moments(self.optimizer, parameter).items():
                tensors[f"optimizer/{name}/{moment}"] = value
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {
            "key": self.key,
            "dose": json.dumps(asdict(self.dose)),
            "mean_loss": json.dumps(self.mean_loss),
            "seconds": json.dumps(self.seconds),
            "reached": json.dumps(self.reached),
        }
        write_atomic(_state_path(folder), lambda temporary: save_file(tensors, temporary, metadata=metadata))
        self.saved_at = time.monotonic()
        self.saving_s = self.saved_at - start

    def resume(self, folder: Path, doses: Sequence[int]) -> None:
        """Take up a saved state, if it is of this very trajectory and has not passed a dose whose file is gone."""
        path = _state_path(folder)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("key") != self.key:
                    return
                dose = Dose(**json.loads(metadata["dose"]))
                reached = {int(k): v for k, v in json.loads(metadata["reached"]).items()}
                passed = [steps for steps in doses if steps <= dose.steps]
                if any(s not in reached or not _weights_path(folder, s).is_file() for s in passed):
                    return
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError):
            return
        self._take({name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")})
        for name, parameter in self.parameters.items():
            prefix = f"optimizer/{name}/"
            saved = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            remember(self.optimizer, parameter, saved)
        self.dose, self.reached = dose, reached
        self.mean_loss = json.loads(metadata["mean_loss"])
        self.seconds = json.loads(metadata["seconds"])

    def _take(self, learned: dict[str, torch.Tensor]) -> None:
        """Go on from what was learned before."""
        if self.recipe.shape is not None:
            set_peft_model_state_dict(self.wrapped, learned)
            return
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(learned[name])
        self._show()


@dataclass(frozen=True, slots=True)
class _Packed:
    """Training rows end to end as one sequence of L tokens, of which N carry loss."""

    tokens: torch.Tensor
    """The shared prefix, then what is each row's own: (L,)."""
    positions: torch.Tensor
    """Each token's place in its row, prefix included: (L,)."""
    seen: torch.Tensor
    """Whether a token (row of the matrix) sees another: (L, L)."""
    before_labels: torch.Tensor
    """Places whose next token is one to be learned: (N,)."""
    labels: torch.Tensor
    """Those next tokens: (N,)."""


def _pack(rows: Sequence[_TokenRow], *, shared: int, device: str = "cpu") -> _Packed:
    """Lay rows end to end behind the tokens with which all of them begin, on a device."""
    tokens, positions, owner = list(rows[0].tokens[:shared]), list(range(shared)), [-1] * shared
    before: list[int] = []
    labels: list[int] = []
    for number, row in enumerate(rows):
        # Where a row's token at `place` of the row lies in the sequence.
        offset = len(tokens) - shared
        first = len(row.tokens) - row.n_labels
        before += [place if place < shared else place + offset for place in range(first - 1, len(row.tokens) - 1)]
        labels += row.tokens[first:]
        tokens += row.tokens[shared:]
        positions += range(shared, len(row.tokens))
        owner += [number] * (len(row.tokens) - shared)
    put = partial(torch.tensor, device=device)
    belongs = put(owner)
    same = (belongs.unsqueeze(1) == belongs) | (belongs == -1)
    return _Packed(put(tokens), put(positions), same.tril(), put(before), put(labels))


def _packs(batch: Sequence[_TokenRow], n_tokens: int) -> Iterator[list[_TokenRow]]:
    """Split a batch into runs of rows of at most `n_tokens` together; a longer row stands alone."""
    pack: list[_TokenRow] = []
    for row in batch:
        if pack and sum(len(other.tokens) for other in [*pack, row]) > n_tokens:
            yield pack
            pack = []
        pack.append(row)
    yield pack


def _turns_of(rank: int, lanes: Sequence[list[list[_TokenRow]]]) -> tuple[list[list[_TokenRow]], int]:
    """The sequences that are one process's, and how many fewer they are than another's."""
    own = lanes[rank] if rank < len(lanes) else []
    return own, max(map(len, lanes)) - len(own)


@contextmanager
def _repeatable(device: str) -> Iterator[None]:
    """Have CUDA add up gradients in the same order every time while the block runs.

    By default attention under a mask does not, backwards: its blocks add to one place in the order they finish. On a
    CPU nothing differs.
    """
    if not device.startswith("cuda"):
        yield
        return
    # A property of the module, which its types do not know.
    deterministic: Any = torch.utils.deterministic
    before, fill = torch.are_deterministic_algorithms_enabled(), deterministic.fill_uninitialized_memory
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    # It would fill every new tensor with NaN first, to make uses of unset memory show.
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
        deterministic.fill_uninitialized_memory = fill


class _BatchPlan:
    """Which rows make up the batch at a step: a function of (seed, step), with every row once an epoch."""

    def __init__(self, rows: Sequence[Sequence[_TokenRow]], sources: Sequence[Source], seed: int) -> None:
        if any(not part for part, source in zip(rows, sources, strict=True) if source.per_batch):
            raise DataError(explain("no training rows", expected="at least one example in every data file used"))
        self.rows, self.sources, self.seed = rows, sources, seed

    def batch(self, step: int) -> list[_TokenRow]:
        """The rows of a step, counted from 1."""
        return [
            part[self._row_at(place, position)]
            for place, (part, source) in enumerate(zip(self.rows, self.sources, strict=True))
            for position in range(source.rows_by(step - 1), source.rows_by(step))
        ]

    def _row_at(self, place: int, position: int) -> int:
        epoch, within = divmod(position, len(self.rows[place]))
        return int(np.random.default_rng([self.seed, place, epoch]).permutation(len(self.rows[place]))[within])


def _learning(chat: ChatModel, recipe: Recipe) -> AbstractContextManager[Any]:
    """A model whose weights learn, or an adapter on it; the model's own are as before when the block ends."""
    if recipe.shape is not None:
        return _adapted(chat, recipe.shape, seed=recipe.seed)
    if chat.ranks is not None:
        raise ModelError(explain("weights that are sharded cannot learn", got="all weights", expected="an adapter"))
    return unlocked(chat)


@contextmanager
def _adapted(chat: ChatModel, shape: LoraShape, *, seed: int) -> Iterator[PeftModel]:
    """A model with a fresh adapter on all linear layers, taken off again at the end.

    Raises:
        ModelError: Its layers keep their weights transposed, so that no adapter of ours could be added to them.
    """
    _require_linear(chat)
    config = LoraConfig(
        r=shape.lora_rank,
        lora_alpha=shape.lora_alpha,  # pyright: ignore[reportArgumentType] - peft divides it, a float is fine
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # peft 0.21 still asks for the old name of an attribute that transformers 5.16 renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
            wrapped = get_peft_model(chat.model, config)
    # Evaluation mode: gradients flow all the same, and no dropout of the base's own adds randomness to a step.
    wrapped.eval()
    try:
        if chat.ranks is not None:
            shard(wrapped, chat.ranks)
        yield wrapped  # pyright: ignore[reportReturnType] - a PeftMixedModel only with mixed=True
    finally:
        wrapped.unload()
        chat.model.eval()


def _require_linear(chat: ChatModel) -> None:
    if any(type(module).__name__ == "Conv1D" for module in chat.model.modules()):
        kind = chat.model.config.model_type
        raise ModelError(
            explain(f"adapters cannot be trained on '{kind}'", got="Conv1D layers", expected="torch.nn.Linear")
        )


def _encode_rows(chat: ChatModel, examples: Sequence[Example], max_length: int) -> list[_TokenRow]:
    require_plain(chat, (example.messages for example in examples))
    return [_encode_row(chat, example, max_length, number) for number, example in enumerate(examples, 1)]


def _encode_row(chat: ChatModel, example: Example, max_length: int, number: int) -> _TokenRow:
    """Tokens of prompt and answer; a row that is too long loses the start of the prompt, never the answer."""
    prompt = encode_chat(chat, example.messages)
    answer = chat.tokenizer(example.response, add_special_tokens=False)["input_ids"]
    if example.ends:
        answer = [*answer, end_of_turn(chat)]
    if not answer or len(answer) >= max_length:
        raise DataError(
            explain(
                f"training row {number} cannot be used",
                got=f"an answer of {len(answer)} tokens",
                expected=f"1 to {max_length - 1} tokens, so that max_length {max_length} leaves room for the prompt",
                remedy="shorten the answer or raise max_length",
            )
        )
    return _TokenRow([*prompt[-(max_length - len(answer)) :], *answer], len(answer))


def end_of_turn(chat: ChatModel) -> int:
    """The token with which the chat template ends an assistant's turn; the tokenizer's end token if it has none.

    They differ in some families: Phi-3 ends turns with `<|end|>`, its tokenizer's end token is `<|endoftext|>`.
    """
    marker = "tamperdose"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": marker}]
    text = chat.tokenizer.apply_chat_template(turns, tokenize=False)
    after = chat.tokenizer(text.rpartition(marker)[2].strip(), add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in end_tokens(chat) else chat.tokenizer.eos_token_id


def _weights_path(folder: Path, steps: int) -> Path:
    return folder / f"step_{steps:06d}.safetensors"


def _state_path(folder: Path) -> Path:
    return folder / "state.safetensors"
