"""The stages: each makes one file in the ledger from others, and does nothing when it is already there."""

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tamperdose.errors import DataError, RunError, explain
from tamperdose.extras import require
from tamperdose.files import digest, read_jsonl, sha256_file, write_atomic
from tamperdose.judges import Judge, Reading, build_judge
from tamperdose.models.generator import Generator, OnProgress
from tamperdose.models.vectors import CachedEmbedder, Embeds
from tamperdose.records import NO_DOSE, Checkpoint, Completion, Dose, FinishReason, Label, Prompt, Subset, Verdict
from tamperdose.run.ledger import Ledger, stage_key
from tamperdose.run.plan import ArmPlan, Plan, checkpoint_key
from tamperdose.study import AnyJudge, Decoding, GuardJudge, LlmJudge, PluginJudge, judge_name

KEPT_AFTER = 64
"""Answers that a slow judge reads before what it made of them is kept: what a kill can cost."""


@dataclass(frozen=True, slots=True)
class Answers:
    """One model state's answers to one subset: where they lie and what they are called."""

    prompts: Sequence[Prompt]
    """The prompts, in the order of the answers."""
    path: Path
    """The ledger's file of completions."""


class Readers:
    """The judges and the sentence encoder of a run, each loaded when first needed and then kept."""

    _embeddings: Path | None = None

    def __init__(self, judges: Sequence[AnyJudge] = ()) -> None:
        self._settings = {judge_name(judge): judge for judge in judges}
        self._judges: dict[str, Judge] = {}
        self._embedder: Embeds | None = None

    def keep_embeddings(self, folder: Path) -> None:
        """From here on keep vectors in a folder by the digests of their texts: no text is embedded twice."""
        self._embeddings, self._embedder = folder, None

    def judge(self, name: str) -> Judge:
        """The judge of that name."""
        if name not in self._judges:
            self._judges[name] = build_judge(self._settings.get(name, name), embedder=self.embedder)
        return self._judges[name]

    def is_slow(self, name: str) -> bool:
        """Whether a judge's readings are dear enough to be kept while it reads."""
        return isinstance(self._settings.get(name), LlmJudge | GuardJudge | PluginJudge)

    def embedder(self) -> Embeds:
        """The sentence encoder behind RD."""
        if self._embedder is None:
            # `score` can do without; a run has both from the same extra.
            require("RD", "torch", "sentence_transformers", extra="hf", instead="score --no-rd")
            from tamperdose.models.embed import load_embedder

            loaded = load_embedder()
            self._embedder = loaded if self._embeddings is None else CachedEmbedder(loaded, self._embeddings)
        return self._embedder


@dataclass(frozen=True, slots=True)
class Draw:
    """One file of completions to be had: a state of the model, a subset, and how to decode."""

    subset: Subset
    """The prompts."""
    key: str
    """The ledger's key of the completions."""
    inputs: Mapping[str, Any]
    """What it is the key of."""
    decoding: Decoding
    """How to decode."""
    seed: int
    """What sampling starts from."""
    sample: int
    """Index of the sample, from 0; the two behind RD_floor are 1 and 2 of their own decoding."""


def generate(
    ledger: Ledger, draw: Draw, generator: Generator, prompts: Sequence[Prompt], *, on_progress: OnProgress
) -> Path:
    """Answer prompts and file the completions under the draw's key."""
    completions = generator.generate(
        prompts, draw.decoding, seed=draw.seed, sample=draw.sample, on_progress=on_progress
    )
    if [completion.prompt_id for completion in completions] != [prompt.id for prompt in prompts]:
        raise RunError(explain("the engine did not answer every prompt once", got=f"{len(completions)} answers"))
    inputs = {**draw.inputs, "settings": dict(getattr(generator, "settings", {}))}
    return ledger.put(
        "generate", draw.key, lambda path: _write_lines(path, completions), suffix=".jsonl", inputs=inputs
    )


def read_completions(path: Path) -> list[Completion]:
    """Read a file of completions."""
    return [
        Completion(**{**record, "finish_reason": FinishReason(record["finish_reason"])})
        for _, record in read_jsonl(path)
    ]


def find_answers(ledger: Ledger, plan: Plan, subset: Subset, key: str) -> Answers:
    """The answers to a subset that lie in the ledger under a key.

    Raises:
        RunError: They are not there.
    """
    path = ledger.find("generate", key)
    if path is None:
        raise RunError(explain(f"answers to the {subset} prompts are missing", remedy="run the study again"))
    return Answers(plan.data.prompts[subset], path)


def judge_answers(
    ledger: Ledger, answers: Answers, name: str, readers: Readers, *, limit: float, on_progress: OnProgress
) -> list[Verdict]:
    """Verdicts of one judge on one file of completions, read from the ledger or made now.

    A file with more unreadable verdicts than the limit is not filed: the next run asks for those again, and for them
    alone where the judge is a slow one.

    Raises:
        RunError: The share of unreadable verdicts is above `limit`.
    """
    version = readers.judge(name).version
    key = stage_key("judge", {"judge": name, "version": version, **_texts_read(answers)})
    path = ledger.find("judge", key)
    if path is None:
        kept = ledger.partial("judge", key) if readers.is_slow(name) else None
        verdicts = _read_with(readers.judge(name), answers, kept, limit=limit)
        inputs = {"judge": f"{name}@{version}", "completions": answers.path.stem}
        path = ledger.put("judge", key, lambda to: _write_lines(to, verdicts), suffix=".jsonl", inputs=inputs)
    on_progress(len(answers.prompts))
    verdicts = _read_verdicts(path)
    require_readable(verdicts, len(verdicts), limit=limit)
    return verdicts


def embed_answers(ledger: Ledger, answers: Answers, readers: Readers) -> tuple[NDArray[np.float32], ...]:
    """Embeddings (n, d) of answers as recorded, and with the prompt's text removed where an answer repeats it."""
    embedder = readers.embedder()
    key = stage_key("embed", {"embedder": embedder.identity, **_texts_read(answers)})
    path = ledger.find("embed", key)
    if path is None:
        completions = read_completions(answers.path)
        texts = [completion.text for completion in completions]
        vectors = embedder.embed([*texts, *strip_prompts(answers.prompts, texts)])
        inputs = {"embedder": embedder.identity, "completions": answers.path.stem}
        path = ledger.put("embed", key, lambda to: _write_array(to, vectors), suffix=".npy", inputs=inputs)
    both = np.load(path, allow_pickle=False)
    return both[: len(both) // 2], both[len(both) // 2 :]


def strip_prompts(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[str]:
    """Answers without their prompts' texts; see `strip_prompt`."""
    return [strip_prompt(prompt.text, text) for prompt, text in zip(prompts, texts, strict=True)]


def strip_prompt(prompt: str, answer: str) -> str:
    """Remove the prompt's text wherever an answer repeats it.

    >>> strip_prompt("Say hi.", "Say hi. Hi!")
    'Hi!'
    """
    return answer.replace(prompt, " ").strip() if prompt.strip() and prompt in answer else answer


def file_defence(ledger: Ledger, key: str, adapter: Path) -> Path:
    """File a defence's adapter: it adds refusals, so it is kept."""
    return ledger.put(
        "defend", key, lambda path: shutil.copyfile(adapter, path) and None, suffix=".safetensors", inputs={"base": key}
    )


def file_dose(ledger: Ledger, arm: ArmPlan, checkpoint: Checkpoint) -> Path:
    """File what a checkpoint cost: its dose in every unit. The weights themselves are not kept."""
    dose, key = checkpoint.dose, checkpoint_key(arm, checkpoint.dose.steps)
    value = {"dose": asdict(dose), "mean_loss": checkpoint.mean_loss}
    inputs = {"arm": arm.key, "steps": dose.steps}
    if checkpoint.seconds is not None and ledger.find("clock", key) is None:
        # An entry of its own: clock values are not the same in a run that was resumed.
        clock = {"seconds": checkpoint.seconds}
        ledger.put("clock", key, lambda to: _dump(to, clock), suffix=".clock", inputs=inputs)
    return ledger.put("dose", key, lambda to: _dump(to, value), suffix=".dose", inputs=inputs)


def read_seconds(ledger: Ledger, arm: ArmPlan, steps: int) -> float | None:
    """The clock time of an arm's training up to a dose; None where it was not taken."""
    if steps == 0:
        return 0.0
    path = ledger.find("clock", checkpoint_key(arm, steps))
    return None if path is None else float(json.loads(path.read_text(encoding="utf-8"))["seconds"])


def read_dose(ledger: Ledger, arm: ArmPlan, steps: int) -> Dose | None:
    """The dose at a checkpoint, or None when the trajectory has not come there yet."""
    if steps == 0:
        return NO_DOSE
    path = ledger.find("dose", checkpoint_key(arm, steps))
    return None if path is None else Dose(**json.loads(path.read_text(encoding="utf-8"))["dose"])


def require_readable(verdicts: Sequence[Verdict], total: int, *, limit: float) -> None:
    """Refuse verdicts when too many are unreadable: more than a share `limit` of `total`, to which they belong.

    Raises:
        RunError: It is; the commonest reasons are named.
    """
    unreadable = [verdict for verdict in verdicts if verdict.label is Label.UNREADABLE]
    if len(unreadable) > limit * total:
        reasons = Counter(verdict.evidence for verdict in unreadable).most_common(3)
        raise RunError(
            explain(
                "too many verdicts could not be had",
                got=f"{len(unreadable)} of {total} unreadable by {verdicts[0].judge}: "
                + "; ".join(f"{count} x {reason or 'no reason given'}" for reason, count in reasons),
                expected=f"at most {limit:.1%}",
                remedy="mend the cause and run the same command again: readable verdicts are kept. "
                "Raise unreadable_limit only with a reason",
            )
        )


def _texts_read(answers: Answers) -> dict[str, str]:
    """What a judge or encoder sees: the completions' bytes and the prompts' texts."""
    return {
        "completions": sha256_file(answers.path),
        "prompts": digest([[prompt.id, prompt.text] for prompt in answers.prompts]),
    }


def _read_with(judge: Judge, answers: Answers, kept: Path | None, *, limit: float) -> list[Verdict]:
    """Read answers; with `kept`, in pieces, each piece's readable verdicts being kept there for a later try.

    Raises:
        RunError: Too many are unreadable; said after the piece that decides it.
    """
    completions = read_completions(answers.path)
    found = {} if kept is None else {(item.prompt_id, item.sample): item for item in _read_kept(kept)}
    left = [place for place, item in enumerate(completions) if (item.prompt_id, item.sample) not in found]
    piece = max(1, len(left)) if kept is None else KEPT_AFTER
    for start in range(0, len(left), piece):
        places = left[start : start + piece]
        texts = [answers.prompts[place].text for place in places]
        readings = judge.read(texts, [completions[place].text for place in places])
        for place, reading in zip(places, readings, strict=True):
            item = completions[place]
            found[item.prompt_id, item.sample] = _verdict(judge, item, reading)
        if kept is not None:
            readable = [verdict for verdict in found.values() if verdict.label is not Label.UNREADABLE]
            write_atomic(kept, lambda to, readable=readable: _write_lines(to, readable))
        require_readable([*found.values()], len(completions), limit=limit)
    return [found[item.prompt_id, item.sample] for item in completions]


def _verdict(judge: Judge, completion: Completion, reading: Reading) -> Verdict:
    return Verdict(
        prompt_id=completion.prompt_id,
        label=reading.label,
        p_refusal=reading.p_refusal,
        judge=f"{judge.name}@{judge.version}",
        evidence=reading.evidence,
        sample=completion.sample,
    )


def _read_verdicts(path: Path) -> list[Verdict]:
    return [Verdict(**{**record, "label": Label(record["label"])}) for _, record in read_jsonl(path)]


def _read_kept(path: Path) -> list[Verdict]:
    """Verdicts of an earlier try; none when there was none, or its file was damaged: they are asked for again."""
    try:
        return _read_verdicts(path) if path.is_file() else []
    except (DataError, KeyError, TypeError, ValueError):
        return []


def _write_lines(path: Path, records: Sequence[Completion] | Sequence[Verdict]) -> None:
    lines = (json.dumps(asdict(record), ensure_ascii=False, sort_keys=True) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8", newline="")


def _write_array(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, sort_keys=True), encoding="utf-8")
