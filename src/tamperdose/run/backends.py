"""What the stages need from a model under test, for each engine: give it refusals, attack it, let it answer."""

import gc
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tamperdose.files import write_atomic, write_text
from tamperdose.models.generator import Generator
from tamperdose.records import Checkpoint, Dose, Opener, Prompt, Reworded
from tamperdose.run.plan import ArmPlan, Data, ModelPlan, served_rank
from tamperdose.run.utility import Probes
from tamperdose.stats.direction_drift import Layout
from tamperdose.stats.utility import UtilityScores
from tamperdose.study import ModelEngine, ModelSpec, SafetyAdapter, ScriptedEngine, Study, TunedDefence, VllmEngine

if TYPE_CHECKING:
    from tamperdose.models.changes import Guard
    from tamperdose.models.load import ModelSource
    from tamperdose.models.utility import BaseReading

OnStep = Callable[[int, float], None]


class Backend(Protocol):
    """A model under test. Loads what it needs when it is first needed."""

    def defend(self, data: Data, *, folder: Path, on_step: OnStep) -> Path | None:
        """Train the study's defence; returns the adapter's file, or None when nothing is to be kept."""
        ...

    def use_defence(self, adapter: Path) -> None:
        """Make the defended model the base of everything that follows."""
        ...

    def attack(self, arm: ArmPlan, data: Data, *, folder: Path, on_step: OnStep) -> Iterator[Checkpoint]:
        """Run an arm's trajectory, yielding the checkpoint at each dose; resumes in `folder`."""
        ...

    def generator(self, checkpoint: Checkpoint | None) -> AbstractContextManager[Generator]:
        """Give the engine for a checkpoint, or for the base; the base is exactly restored afterwards."""
        ...

    def change_size(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """How large a checkpoint's change is; see `tamperdose.models.changes.change_size`."""
        ...

    def utility(self, checkpoint: Checkpoint | None, probes: Probes) -> UtilityScores:
        """What a checkpoint, or the base, can do besides refusing; see `tamperdose.models.utility`."""
        ...

    def look_inside(
        self,
        prompts: Sequence[Prompt],
        layout: Layout,
        *,
        checkpoint: Checkpoint | None,
        base_sums: NDArray[np.float64] | None,
    ) -> dict[str, NDArray[Any]] | None:
        """Read states at a checkpoint, see `tamperdose.models.activations.look_inside`; None where there are none."""
        ...

    def export(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Keep a checkpoint's tampered weights, which the study asked for with a reason."""
        ...

    def compare(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Hold the engine that answers against transformers, where it is another; see `run.equivalence`."""
        ...

    def use_adapters(self, how: str) -> None:
        """Have adapters reach the engine as that comparison has settled."""
        ...

    def close(self) -> None:
        """Give back what is loaded; it loads again when it is needed again."""
        ...


def open_backend(study: Study, plan: ModelPlan) -> Backend:
    """Make the backend of a model; nothing is loaded yet."""
    if isinstance(study.engine, ScriptedEngine):
        return ScriptedBackend(study.engine)
    if isinstance(study.engine, VllmEngine):
        from tamperdose.run.served import VllmBackend

        return VllmBackend(study.engine, plan, max_lora_rank=served_rank(study))
    return HfBackend(study.engine, plan)


class HfBackend:
    """A transformers model, loaded when first used."""

    def __init__(self, engine: ModelEngine, plan: ModelPlan) -> None:
        from tamperdose.models.load import ChatModel

        self.engine, self.plan = engine, plan
        self._chat: ChatModel | None = None
        self._defence: Path | None = None
        self._base_reading: BaseReading | None = None

    @property
    def chat(self):
        """The loaded model, with its defence merged."""
        from tamperdose.models.load import load_model
        from tamperdose.models.lora import merge

        if self._chat is None:
            chat = load_model(
                checked_spec(self.plan.spec),
                self._source(),
                device=self.plan.device,
                dtype=self.plan.dtype,
                n_cards=self.engine.shards(self.plan.spec),
            )
            if self._defence is not None:
                merge(chat.model, self._defence)
            self._chat = chat
        return self._chat

    def defend(self, data: Data, *, folder: Path, on_step: OnStep) -> Path | None:
        """Train refusals in; see `tamperdose.defences.refusal_tuning`."""
        from tamperdose.defences.refusal_tuning import tune_refusals

        defence = self.plan.spec.defence
        if not isinstance(defence, TunedDefence):
            return None
        checkpoint = tune_refusals(
            self.chat,
            defence,
            harmful=data.examples[defence.harmful],
            benign=data.examples[defence.benign],
            folder=folder,
            on_step=on_step,
        )
        return None if checkpoint.adapter is None else Path(checkpoint.adapter)

    def compare(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Transformers answers by itself."""
        return {"passed": True, "adapters": "merged", "tries": []}

    def use_adapters(self, how: str) -> None:
        """They are merged for a while."""

    def close(self) -> None:
        """Let the model go."""
        self._chat = None

    def use_defence(self, adapter: Path) -> None:
        """Merge the defence's adapter for good, now or when the model is loaded; `guard` is added to that."""
        from tamperdose.models.lora import merge

        self._defence = adapter
        if self._chat is not None:
            merge(self._chat.model, adapter)

    @property
    def guard(self) -> "Guard | None":
        """What is added whenever the model is measured: a safety adapter, never while it is attacked."""
        from tamperdose.models.changes import Guard

        defence = self.plan.spec.defence
        if self._defence is None or not isinstance(defence, SafetyAdapter):
            return None
        return Guard(self._defence, defence.strength)

    def attack(self, arm: ArmPlan, data: Data, *, folder: Path, on_step: OnStep) -> Iterator[Checkpoint]:
        """Train what the arm's attack trains, or find what it changes; over several cards where the study says so."""
        if self.engine.shards(self.plan.spec) > 1 and arm.attack.training is not None:
            return self._attack_sharded(arm, folder=folder, on_step=on_step)
        return arm.attack.run(self.chat, arm.rows, doses=arm.saved, folder=folder, on_step=on_step)

    def _attack_sharded(self, arm: ArmPlan, *, folder: Path, on_step: OnStep) -> Iterator[Checkpoint]:
        from tamperdose.run.sharded import SharedAttack, attack_sharded

        # The cards are for the processes now.
        self.close()
        empty_caches()
        shared = SharedAttack(
            checked_spec(self.plan.spec),
            self._source(),
            self.plan.dtype,
            self._defence,
            attack=arm.attack,
            rows=arm.rows,
            doses=arm.saved,
            folder=folder,
        )
        n_ranks = self.engine.shards(self.plan.spec)
        yield from attack_sharded(shared, n_ranks, device=self.plan.device, on_step=on_step)

    def _source(self) -> "ModelSource":
        from tamperdose.errors import ModelError

        if self.plan.source is None:
            raise ModelError(f"{self.plan.spec.id}: no weights were found")
        return self.plan.source

    @contextmanager
    def generator(self, checkpoint: Checkpoint | None) -> Iterator[Generator]:
        """Change the model as the checkpoint says while the block runs."""
        from tamperdose.judges.settled import is_settled
        from tamperdose.models.changes import changed
        from tamperdose.models.hf import HfGenerator
        from tamperdose.models.rewording import RewordedGenerator

        batch_size = None if self.engine.batch_size == "auto" else self.engine.batch_size
        change = None if checkpoint is None else checkpoint.change
        opener = change.tokens if isinstance(change, Opener) else ()
        with changed(self.chat, checkpoint, self.guard):
            generator = HfGenerator(self.chat, batch_size=batch_size, opener=opener, is_settled=is_settled)
            yield RewordedGenerator(generator, change) if isinstance(change, Reworded) else generator

    def change_size(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Measure it on the untampered model."""
        from tamperdose.models.changes import change_size

        return change_size(self.chat, checkpoint)

    def export(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Write an adapter in peft's layout, all weights in that of transformers; without either, nothing."""
        from tamperdose.models.changes import changed
        from tamperdose.models.quiet import quiet

        if checkpoint.adapter is not None:
            _export_adapter(Path(checkpoint.adapter), folder)
        elif checkpoint.weights is not None:
            # Renamed when it is whole: what a kill leaves behind is not taken for it.
            unfinished = folder.with_name(f"{folder.name}.unfinished")
            for old in (unfinished, folder):
                shutil.rmtree(old, ignore_errors=True)
            # Without a safety adapter: who takes the weights leaves it off.
            with changed(self.chat, checkpoint), quiet():
                self.chat.model.save_pretrained(unfinished)
            self.chat.tokenizer.save_pretrained(unfinished)
            unfinished.rename(folder)

    def utility(self, checkpoint: Checkpoint | None, probes: Probes) -> UtilityScores:
        """Change the model as the checkpoint says while it is measured; the base's own answers are read once."""
        from tamperdose.models.changes import changed
        from tamperdose.models.utility import measure_utility, read_base

        base = None
        if checkpoint is not None and probes.prompts:
            if self._base_reading is None:
                with changed(self.chat, None, self.guard):
                    self._base_reading = read_base(self.chat, probes.prompts, probes.kl_tokens)
            base = self._base_reading
        with changed(self.chat, checkpoint, self.guard):
            return measure_utility(self.chat, probes.texts, probes.questions, base)

    def look_inside(
        self,
        prompts: Sequence[Prompt],
        layout: Layout,
        *,
        checkpoint: Checkpoint | None,
        base_sums: NDArray[np.float64] | None,
    ) -> dict[str, NDArray[Any]] | None:
        """Read the states with the checkpoint in place."""
        from tamperdose.models.activations import look_inside

        sums = {"checkpoint": checkpoint, "base_sums": base_sums}
        return look_inside(self.chat, prompts, layout, **sums, guard=self.guard)


class ScriptedBackend:
    """The fake model: nothing is trained, and its refusals fall with the dose as the study says."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine

    def defend(self, data: Data, *, folder: Path, on_step: OnStep) -> Path | None:
        """Nothing to train."""
        return None

    def use_defence(self, adapter: Path) -> None:
        """Nothing to merge."""

    def attack(self, arm: ArmPlan, data: Data, *, folder: Path, on_step: OnStep) -> Iterator[Checkpoint]:
        """Yield checkpoints without weights."""
        batch_size = 0 if arm.attack.training is None else arm.attack.training.batch_size
        for steps in arm.saved:
            on_step(steps, 0.0)
            yield Checkpoint(Dose(steps, steps * batch_size, tokens=0, flops=0), adapter=None)

    def generator(self, checkpoint: Checkpoint | None) -> AbstractContextManager[Generator]:
        """The scripted generator at the checkpoint's dose."""
        from tamperdose.models.scripted import ScriptedGenerator

        steps = 0 if checkpoint is None else checkpoint.dose.steps
        return nullcontext(ScriptedGenerator(self.engine, dose_steps=steps))

    def change_size(self, checkpoint: Checkpoint) -> dict[str, Any] | None:
        """Nothing is changed."""
        return None

    def utility(self, checkpoint: Checkpoint | None, probes: Probes) -> UtilityScores:
        """There is no model to measure."""
        return UtilityScores((), (), ())

    def look_inside(
        self,
        prompts: Sequence[Prompt],
        layout: Layout,
        *,
        checkpoint: Checkpoint | None,
        base_sums: NDArray[np.float64] | None,
    ) -> dict[str, NDArray[Any]] | None:
        """There is nothing inside."""
        return None

    def export(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Nothing to keep."""

    def compare(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """There is nothing to compare."""
        return {"passed": True, "adapters": "merged", "tries": []}

    def use_adapters(self, how: str) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is loaded."""


def empty_caches() -> None:
    """Give back what torch holds without using it, so that another process can have it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def checked_spec(spec: ModelSpec) -> ModelSpec:
    """What is loaded for a model; a hardened checkpoint with the architecture that it must have, where it is known."""
    from tamperdose.models.load import find_architecture

    loaded = spec.loaded
    return loaded if loaded is spec else loaded.model_copy(update={"architecture": find_architecture(spec)})


def export_folder(folder: Path, steps: int) -> Path:
    """Where the tampered weights of a dose are kept, for a study that asks for that with a reason."""
    return folder / f"step_{steps:06d}"


def is_exported(folder: Path) -> bool:
    """Whether the tampered weights of a dose have been kept in `folder`: an adapter's configuration is written last."""
    return any((folder / name).is_file() for name in ("adapter_config.json", "config.json"))


def _export_adapter(source: Path, folder: Path) -> None:
    from tamperdose.models.lora import load_adapter, peft_config

    config = peft_config(load_adapter(source)[1], "all-linear")
    write_atomic(folder / "adapter_model.safetensors", lambda to: _copy(source, to))
    write_text(folder / "adapter_config.json", config)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
