"""What each defence of a model is worth and what it costs: `defences.csv`.

For every defence of a model that is also measured without one: the breaking dose of each attack without and with it and
their ratio, over seeds and data orders; and, at dose 0, what it costs of utility and in over-refusal.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tamperdose.files import digest, write_csv
from tamperdose.records import ESTIMATE_COLUMNS, Estimate, Label, Subset
from tamperdose.run.compare import compare_pairs
from tamperdose.run.measure import Cell, label_rate
from tamperdose.run.plan import ArmPlan, ModelPlan
from tamperdose.run.response import ArmFit, Gates, dose_cells, gate_of
from tamperdose.stats.defences import DefenceDoses, Run, RunPair, compare_doses
from tamperdose.stats.dose import EffectiveDose
from tamperdose.stats.gate import judge_recipe
from tamperdose.stats.paired import Pairs, pair
from tamperdose.stats.utility import UtilityScores, relative_loss

DEFENCES = "defences.csv"
"""One row for each defence, attack, judge and metric; no file where no model is measured with and without one."""
DOSE_METRICS = ("ED50_steps_without", "ED50_steps_with", "ED50_steps_ratio")
"""The metrics of an attack: the breaking dose of the undefended model, of the defended one, and the second over the
first, in times."""
COST_METRICS = ("RRR_without", "RRR_with", "over_refusal_rise", "perplexity_loss", "utility_accuracy_loss")
"""The metrics at dose 0, where no attack is: what the defence is bought with. The last two are relative to the
undefended model, `over_refusal_rise` is a difference of shares; above 0 is worse."""
RECIPE = ("attack", "lora_rank", "n_examples", "learning_rate", "batch_size", "poison_ratio")
"""The columns that name an attack, empty in rows at dose 0."""
DEFENCE_COLUMNS = (
    *("study", "model", "params_b", "defence", *RECIPE, "judge", "metric"),
    *ESTIMATE_COLUMNS,
    *(
        "bracket_low",
        "bracket_high",
        "n_seeds",
        "n_orders",
        "n_pairs",
        "n_longer",
        "n_shorter",
        "n_unclear",
        "gate",
        "why",
    ),
)
"""Columns of `defences.csv`. `gate`: of the ED50 behind a dose, the worst of its runs: a model that is broken is no
model unlocked. `n_pairs` are seeds x data orders, of which the defended model's bracket lies wholly above
the other's in `n_longer`, wholly below in `n_shorter`. `why` says why a value is undefined."""
OTHER_TOKENS = "the checkpoint's tokenizer makes other tokens of the texts"
"""Why a loss of perplexity is undefined."""

_Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Start:
    """A model before any attack, under its defence if it has one."""

    model: ModelPlan
    """Which, with its arms."""
    cells: Mapping[Subset, Cell]
    """Its answers with their verdicts."""
    scores: UtilityScores | None
    """What it can do besides refusing; None where that was not measured."""


def write_defences(
    folder: Path, starts: Sequence[Start], fits: Sequence[ArmFit], *, level: float, gates: Gates | None = None
) -> None:
    """Write `defences.csv`; that of an earlier run that compared defences is removed where none are.

    The same answers give the same bytes.

    Raises:
        RunError: The folder cannot be written.
    """
    rows = list(defence_rows(starts, fits, level=level, gates=gates or {}))
    if rows:
        write_csv(folder / DEFENCES, DEFENCE_COLUMNS, rows)
    else:
        (folder / DEFENCES).unlink(missing_ok=True)


def defence_rows(starts: Sequence[Start], fits: Sequence[ArmFit], *, level: float, gates: Gates) -> Iterator[_Row]:
    """Every defence against the same model without one: doses by attack and judge, then what it costs."""
    by_arm = {(str(fit.first.setting["arm"]), fit.judge): fit for fit in fits}
    for bare in starts:
        if bare.model.spec.defence is not None:
            continue
        for start in starts:
            if start.model.spec.defence is not None and start.model.spec.undefended == bare.model.spec:
                yield from _dose_rows(bare.model, start.model, by_arm, level=level, gates=gates)
                yield from _cost_rows(bare, start, by_arm, level=level)


_Fits = Mapping[tuple[str, str], ArmFit]


def _dose_rows(bare: ModelPlan, defended: ModelPlan, by_arm: _Fits, *, level: float, gates: Gates) -> Iterator[_Row]:
    recipes: dict[str, list[tuple[ArmPlan, ArmPlan]]] = {}
    # The same study attacks both: arm for arm the same attack.
    for then, now in zip(bare.arms, defended.arms, strict=True):
        recipes.setdefault(_recipe(now), []).append((then, now))
    for judge in dict.fromkeys(judge for _, judge in by_arm):
        for arms in recipes.values():
            pairs = {
                _run(now): RunPair(by_arm[then.id, judge].fit.ed50, by_arm[now.id, judge].fit.ed50)
                for then, now in arms
                if (then.id, judge) in by_arm and (now.id, judge) in by_arm
            }
            if pairs:
                first = next(by_arm[now.id, judge] for _, now in arms if (now.id, judge) in by_arm)
                named = _named(first, RECIPE) | {"judge": judge}
                said = _gates([(by_arm.get((a.id, judge)), by_arm.get((b.id, judge))) for a, b in arms], gates)
                for cells, gate in zip(_compared(compare_doses(pairs, level=level)), said, strict=True):
                    yield named | cells | {"gate": gate}


def _recipe(arm: ArmPlan) -> str:
    """What makes an attack, but for its seed and the order of its rows."""
    settings = {name: value for name, value in arm.attack.identity().items() if name not in ("seed", "data_order")}
    return digest([arm.attack.kind, settings, arm.spec.model_dump(mode="json")])


def _run(arm: ArmPlan) -> Run:
    order = arm.attack.identity().get("data_order")
    return arm.attack.seed, None if order is None else int(order)


def _gates(pairs: Sequence[tuple[ArmFit | None, ArmFit | None]], gates: Gates) -> tuple[str, str, str]:
    """What the gate says of the doses without, with, and of both: the worst of the runs; empty where no dose is."""
    sides = [
        [gate for fit in side if fit is not None and (gate := gate_of(fit, gates)) is not None]
        for side in zip(*pairs, strict=True)
    ]
    without, defended, both = (judge_recipe(said).value if said else "" for said in (*sides, [*sides[0], *sides[1]]))
    return without, defended, both


def _compared(found: DefenceDoses) -> Iterator[_Row]:
    doses: tuple[EffectiveDose, ...] = (found.without, found.defended, found.ratio)
    common = {"n_pairs": found.n_pairs, "n_orders": found.n_orders}
    for metric, dose in zip(DOSE_METRICS, doses, strict=True):
        cells = {name: cell for name, cell in dose_cells(dose).items() if name != "fit"}
        counts = {f"n_{name}": count for name, count in asdict(found.tally).items()} if dose is found.ratio else {}
        yield {"metric": metric} | cells | common | counts | {"why": dose.reason}


def _cost_rows(bare: Start, start: Start, by_arm: _Fits, *, level: float) -> Iterator[_Row]:
    first = next((fit for (arm, _), fit in by_arm.items() if arm in {one.id for one in start.model.arms}), None)
    if first is None:
        return
    named = _named(first, ())
    for judge in start.cells[Subset.HARMFUL].verdicts:
        for metric, side in zip(COST_METRICS[:2], (bare, start), strict=True):
            cell = side.cells[Subset.HARMFUL]
            rate = label_rate(cell.verdicts[judge], Label.REFUSAL, cell.prompts, level)
            yield named | {"judge": judge, "metric": metric} | _estimate_cells(rate)
    for judge in start.cells[Subset.BENIGN].verdicts if Subset.BENIGN in start.cells else ():
        pairs = _pairs(bare.cells[Subset.BENIGN], start.cells[Subset.BENIGN], judge)
        rise = compare_pairs(pairs, level).difference
        yield named | {"judge": judge, "metric": COST_METRICS[2]} | _estimate_cells(rise)
    yield from (named | cells for cells in _utility_rows(bare.scores, start.scores, level=level))


def _pairs(before: Cell, after: Cell, judge: str) -> Pairs:
    """Refusals without and with the defence, prompt by prompt."""
    labels = [[verdict.label for verdict in cell.verdicts[judge]] for cell in (before, after)]
    then, now = ([label is Label.REFUSAL for label in each] for each in labels)
    readable = [Label.UNREADABLE not in both for both in zip(*labels, strict=True)]
    return pair(then, now, [prompt.template for prompt in before.prompts], readable=readable)


def _utility_rows(before: UtilityScores | None, after: UtilityScores | None, *, level: float) -> Iterator[_Row]:
    if before is None or after is None:
        return
    if [text.n_tokens for text in before.texts] != [text.n_tokens for text in after.texts]:
        yield {"judge": "", "metric": COST_METRICS[3], "why": OTHER_TOKENS}
    elif before.texts:
        lost = relative_loss(before.texts, after.texts, level=level)
        yield {"judge": "", "metric": COST_METRICS[3]} | _estimate_cells(lost)
    if before.questions:
        lost = relative_loss(before.questions, after.questions, level=level)
        yield {"judge": "", "metric": COST_METRICS[4]} | _estimate_cells(lost)


def _named(fit: ArmFit, recipe: Sequence[str]) -> _Row:
    return {name: fit.first.setting.get(name) for name in ("study", "model", "params_b", "defence", *recipe)}


def _estimate_cells(estimate: Estimate) -> _Row:
    return {**asdict(estimate), "scope": estimate.scope.value}
