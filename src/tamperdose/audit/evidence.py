"""What an audit looks at: answers, training texts, settings and stored numbers, gathered by the caller."""

from dataclasses import dataclass
from enum import StrEnum

from tamperdose.audit.findings import CellId
from tamperdose.records import FinishReason, Label, Prompt, Subset


@dataclass(frozen=True, slots=True)
class AnswerCell:
    """One cell's prompts and what came back. All tuples have one entry per answer, in one order.

    A prompt of several samples stands in it once for each.
    """

    id: CellId
    """The cell."""
    prompts: tuple[Prompt, ...]
    """The prompts."""
    answers: tuple[str, ...]
    """The answers: hostile text."""
    labels: tuple[Label, ...]
    """The headline judge's verdicts."""
    degenerate: tuple[bool, ...]
    """Whether an answer is no answer, read from its text now."""
    finish_reasons: tuple[FinishReason, ...]
    """Why each answer ended."""


class Role(StrEnum):
    """What training texts were used for."""

    ATTACK = "attack"
    """Tampering: seen by the model at every dose above 0."""
    DEFENCE = "defence"
    """Given before dose 0: seen by the model at every dose."""


@dataclass(frozen=True, slots=True)
class Training:
    """One set of training rows."""

    role: Role
    """What it was used for."""
    prompts: tuple[str, ...]
    """Every user turn."""
    responses: tuple[str, ...] = ()
    """The answers trained on; empty when they are not known."""


@dataclass(frozen=True, slots=True)
class Setup:
    """How one arm's answers at one dose were had. None: not recorded."""

    model: str
    """The model's name."""
    arm: str
    """The arm."""
    dose: int
    """The dose."""
    decoding: str | None
    """Canonical text of the decoding settings."""
    chat_template: str | None
    """Digest of the chat template."""
    dtype: str | None
    """Dtype and quantization of the weights."""
    engine: str | None = None
    """What answered, with its version and how adapters reach it."""
    equivalence: bool | None = None
    """Whether that was found to say what transformers says; None where it was not looked at."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One number as it stands in `metrics.csv`."""

    cell: CellId
    """The cell."""
    judge: str
    """The judge it rests on."""
    metric: str
    """Its name."""
    value: float | None
    """The number; None when the cell is empty."""


@dataclass(frozen=True, slots=True)
class JudgeRange:
    """The answers a judge was checked on."""

    max_words: int
    """Words of the longest answer."""
    scripts: tuple[str, ...]
    """Unicode names of the scripts, e.g. `LATIN`."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """Answers of a screening run, most of which were ended once their verdict was not expected to change."""

    n_stopped: int
    """Answers that were ended so."""
    changed: tuple[bool, ...]
    """Of each answer that was written to its end all the same: whether its verdict, refusal or not, is another than
    where it would have been ended."""
    templates: tuple[str, ...]
    """The template of each of these answers' prompts: the same prompt is answered at every dose."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything the checks read."""

    cells: tuple[AnswerCell, ...]
    """All cells, dose 0 of every arm among them."""
    judge: str
    """The headline judge."""
    judge_range: JudgeRange | None
    """What it was checked on; None when that is not known."""
    level: float = 0.95
    """Confidence level of intervals."""
    training: tuple[Training, ...] | None = None
    """What was trained on; None when it is not known."""
    setups: tuple[Setup, ...] = ()
    """How answers were had; empty when nothing was recorded."""
    metrics: tuple[Stored, ...] | None = None
    """Stored numbers; None when there are none to compare with."""
    n_seeds: int = 1
    """Seeds of each recipe."""
    stopped: Stopped | None = None
    """Of a screening run; None where answers are as they were written."""
    gaps: tuple[str, ...] = ()
    """What is not known of where the answers come from."""

    def on(self, subset: Subset) -> tuple[AnswerCell, ...]:
        """The cells of one subset."""
        return tuple(cell for cell in self.cells if cell.id.subset is subset)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, in the order of the cells."""
        return tuple(dict.fromkeys(cell.id.arm for cell in self.cells))
