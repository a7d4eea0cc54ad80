"""A model that transformers trains and vLLM answers for, once the two have been found to say the same."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tamperdose.errors import ModelError, explain
from tamperdose.models.equivalence import ADAPTER, compare, read_reference
from tamperdose.models.generator import Generator
from tamperdose.models.load import ChatModel, load_shell, local_files
from tamperdose.models.rewording import RewordedGenerator
from tamperdose.models.vllm_engine import (
    Served,
    VllmGenerator,
    Weights,
    allowed_rank,
    lora_request,
    read_served,
    require_vllm,
    start,
    stop,
    write_peft,
)
from tamperdose.records import Checkpoint, Opener, Prompt, Reworded
from tamperdose.run.backends import HfBackend, checked_spec, empty_caches
from tamperdose.run.plan import ModelPlan, package_version
from tamperdose.stats.equivalence import Reading
from tamperdose.study import VllmEngine

REQUESTS, MERGED = "requests", "merged"
"""How adapters reach the engine."""


class VllmBackend(HfBackend):
    """A transformers model for training, states and utility, and an engine for answers; each loaded when first used."""

    def __init__(self, engine: VllmEngine, plan: ModelPlan, *, max_lora_rank: int) -> None:
        super().__init__(engine, plan)
        self.vllm, self.max_lora_rank = engine, max_lora_rank
        self._llm: Any = None
        self._loaded: tuple[Weights, int | None] | None = None
        self._shell: ChatModel | None = None
        self._adapters: str | None = None

    @property
    def chat(self) -> ChatModel:
        """The loaded model, with its defence merged; the engine makes room for it where both are not to be kept."""
        if self._chat is None and not self.vllm.keep_both:
            self._stop()
        return super().chat

    @property
    def shell(self) -> ChatModel:
        """Tokenizer and configuration."""
        if self._shell is None:
            spec = checked_spec(self.plan.spec)
            self._shell = load_shell(spec, self._source(), device=self.plan.device, dtype=self.plan.dtype)
        return self._shell

    def close(self) -> None:
        """Let the model go and end the engine."""
        super().close()
        self._base_reading = None
        self._stop()

    def use_adapters(self, how: str) -> None:
        """Have adapters reach the engine as the comparison has settled."""
        self._adapters = how

    @contextmanager
    def generator(self, checkpoint: Checkpoint | None) -> Iterator[Generator]:
        """Have the engine serve the checkpoint while the block runs.

        Raises:
            ModelError: The comparison with transformers was not made before.
        """
        if self._adapters is None:
            raise ModelError(explain("vLLM was not compared with transformers", expected="that first"))
        change = None if checkpoint is None else checkpoint.change
        opener = change.tokens if isinstance(change, Opener) else ()
        with self._serving(checkpoint, self._adapters) as served:
            generator = VllmGenerator(served, self.shell, settings=self._settings(), opener=opener)
            yield RewordedGenerator(generator, change) if isinstance(change, Reworded) else generator

    def compare(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Hold the engine against transformers, with adapters by request, merged, or the one after the other.

        Raises:
            ModelError: vLLM is not there or does not start.
        """
        # Before transformers takes its minutes.
        require_vllm(self.plan.spec.quantization)
        limits, tries = self.vllm.equivalence, []
        with TemporaryDirectory() as scratch:
            reference = read_reference(
                self.chat, prompts, limits, rank=self._probe_rank(), folder=Path(scratch), guard=self.guard
            )
            for how in self._ways():
                tries.append({"adapters": how, **compare(reference, self._reader(how), limits)})
                if not tries[-1]["shortcomings"]:
                    break
        passed = not tries[-1]["shortcomings"]
        return {
            "passed": passed,
            "adapters": tries[-1]["adapters"] if passed else None,
            "reference": "transformers",
            "versions": {name: package_version(name) for name in ("vllm", "transformers", "peft", "torch")},
            "n_prompts": len(prompts),
            "n_tokens": sum(map(len, reference.continuations[ADAPTER])),
            "limits": limits.model_dump(mode="json"),
            "adapter": {"rank": self._probe_rank(), "size": reference.size, "effect": reference.effect},
            "tries": tries,
        }

    def _ways(self) -> Sequence[str]:
        """How adapters are tried, in this order: none can be merged into packed weights."""
        if self.vllm.adapters != "auto":
            return (self.vllm.adapters,)
        return (REQUESTS,) if self.plan.spec.quantization is not None else (REQUESTS, MERGED)

    @property
    def _n_cards(self) -> int:
        return self.vllm.cards(self.plan.spec)

    def _probe_rank(self) -> int:
        ranks = [arm.attack.training.lora_rank for arm in self.plan.arms if arm.attack.training is not None]
        return max((rank for rank in ranks if rank is not None), default=8)

    def _settings(self) -> Mapping[str, Any]:
        return {
            "engine_version": package_version("vllm"),
            "adapters": self._adapters,
            "tensor_parallel_size": self._n_cards,
        }

    def _reader(self, how: str) -> Any:
        def read(
            checkpoint: Checkpoint | None,
            rows: Sequence[Sequence[int]],
            continuations: Sequence[Sequence[int]],
            n_own: int,
        ) -> Reading:
            with self._serving(checkpoint, how) as served:
                return read_served(served, rows, continuations, n_own=n_own)

        return read

    @contextmanager
    def _serving(self, checkpoint: Checkpoint | None, how: str) -> Iterator[Served]:
        parts = self._parts(checkpoint)
        if not parts:
            rank = allowed_rank(self.max_lora_rank) if how == REQUESTS else None
            yield Served(self._engine(self._base_weights(), rank))
            return
        # Beside the checkpoint's file: whatever a kill leaves there goes with it.
        adapter = None if checkpoint is None else checkpoint.adapter
        with TemporaryDirectory(dir=None if adapter is None else Path(adapter).parent, prefix="vllm-") as name:
            folder = Path(name)
            if how == REQUESTS:
                request = lora_request(write_peft(parts, folder))
                yield Served(self._engine(self._base_weights(), allowed_rank(self.max_lora_rank)), request)
            else:
                self._write_merged(checkpoint, folder)
                yield Served(self._engine(self._merged_weights(folder), None))
                # Its files are about to go.
                self._stop()

    def _parts(self, checkpoint: Checkpoint | None) -> list[tuple[Path, float]]:
        """What is added to the weights that the engine has loaded, with its strength."""
        defence = [] if self._defence is None else [(self._defence, 1.0)]
        attack = [] if checkpoint is None or checkpoint.adapter is None else [(Path(checkpoint.adapter), 1.0)]
        guard = [] if self.guard is None else [(self.guard.adapter, self.guard.strength)]
        return [*defence, *attack, *guard]

    def _base_weights(self) -> Weights:
        source, spec = self._source(), self.plan.spec
        revision = source.identity.get("commit", spec.loaded.revision) if source.kind == "hub" else None
        return Weights(str(local_files(source)), revision, self.plan.dtype, spec.quantization, self._n_cards)

    def _merged_weights(self, folder: Path) -> Weights:
        return Weights(str(folder), None, self.plan.dtype, None, self._n_cards)

    def _write_merged(self, checkpoint: Checkpoint | None, folder: Path) -> None:
        """Write the weights as transformers has them in a state."""
        from tamperdose.models.changes import changed
        from tamperdose.models.quiet import quiet

        if self.plan.spec.quantization is not None:
            raise ModelError(
                explain(
                    f"{self.plan.spec.label}: an adapter cannot be merged into 4-bit weights",
                    got="engine.adapters: merged",
                    remedy="engine.adapters: requests, or engine: {kind: hf}",
                )
            )
        with changed(self.chat, checkpoint, self.guard), quiet():
            self.chat.model.save_pretrained(folder)
        self.chat.tokenizer.save_pretrained(folder)

    def _engine(self, weights: Weights, max_lora_rank: int | None) -> Any:
        """The one engine that runs, with these weights; another that runs is ended first."""
        if self._loaded != (weights, max_lora_rank):
            self._stop()
            if not self.vllm.keep_both:
                self._chat = None
            # The engine counts what is free when it starts.
            empty_caches()
            self._llm = start(weights, self.vllm, max_lora_rank=max_lora_rank)
            self._loaded = (weights, max_lora_rank)
        return self._llm

    def _stop(self) -> None:
        if self._llm is not None:
            stop(self._llm)
        self._llm, self._loaded = None, None
