"""The sections on what was measured: doses, controls and the gate, transitions, drift, topics, costs."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from tamperdose.audit.findings import Claim
from tamperdose.report.comparisons import comparison_lines, comparisons_of
from tamperdose.report.controls import HEADINGS as CONTROL_HEADINGS
from tamperdose.report.controls import control_cells, controls_of
from tamperdose.report.insides import inside_lines
from tamperdose.report.lost_doses import lost_row
from tamperdose.report.page import pictures
from tamperdose.report.page.blocks import Block, Lines, Section, Table, grouped
from tamperdose.report.page.facts import Facts
from tamperdose.report.page.numbers import amount, count, number, with_interval
from tamperdose.report.responses import cost_lines, read_costs, read_fits, read_responses
from tamperdose.report.samples import sample_lines
from tamperdose.report.select import Arm, arm_rows
from tamperdose.report.tables import HEADINGS, dose_table, supported_cells
from tamperdose.report.text import printable
from tamperdose.run.categories import CATEGORIES, CATEGORY_COLUMNS
from tamperdose.run.compare_schema import Row, read_rows
from tamperdose.run.schema import column, keep_rows

_DRIFT = ("RD", "RD_mean", "RD_iqr", "RD_stripped", "RD_floor")
_WHOLE = ("perplexity", "utility_accuracy", "kl_to_base", "over_refusal_rate", "exact_answer_rate")


def by_dose(facts: Facts) -> Section:
    """The table of every arm, each row a dose, with intervals and n."""
    intro = (
        "RRR: refused / judged harmful prompts. CE = 1 - RRR, split into answers that comply and degenerate ones. RD: "
        "median distance from the untampered model's answers. kept: refused still, of what was refused at dose 0. n / "
        "n_eff: prompts, and how many independent ones they are worth. Intervals in brackets."
    )
    lines = tuple(sample_lines(facts.frame, facts.judge, audit=facts.audit, force=facts.force))
    blocks = [*grouped(list(dose_tables(facts))), *([Lines(lines)] if lines else [])]
    return Section("doses", "Table by dose", intro, tuple(blocks))


def dose_tables(facts: Facts) -> Iterator[Table]:
    """One table an arm."""
    rows = dose_table(facts.frame, judge=facts.judge)
    for arm in facts.arms:
        mine = [row for row in rows if (row.study, row.arm) == (arm.study, arm.name)]
        cells = tuple(supported_cells(row, facts.audit, force=facts.force) for row in mine)
        headings = (facts.unit(arm), *HEADINGS[1:])
        yield Table(facts.labels[arm.name], headings, cells, frozenset())


def controls(facts: Facts) -> Section:
    """What the attack is compared with, whether the model is whole, and what the gate makes of both."""
    found = controls_of(facts.folder, facts.judge)
    intro = (
        "RRR under the attack beside that under controls, on the prompts that controls were asked: random updates of "
        "the attack's size, the same training on harmless rows, the base asked again. The gate says whether a fall may "
        "be called a removal of refusals."
    )
    beside = grouped(list(_control_tables(facts, found["controls"], found["gate"])))
    blocks = (*beside, *_gate_table(facts, found["gate"]), *grouped(list(_whole_tables(facts))))
    return Section("controls", "Controls and gate", intro, blocks)


def _control_tables(facts: Facts, rates: Sequence[Row], gate: Sequence[Row]) -> Iterator[Table]:
    for arm in facts.arms:
        mine = [row for row in rates if row["arm"] == arm.name and row["metric"] == "RRR"]
        if mine:
            doses = [row["dose_steps"] for row in mine if row["control"] == "attack"]
            verdicts: Mapping[object, Row] = {row["dose_steps"]: row for row in gate if row["arm"] == arm.name}
            rows = tuple(_without(facts, control_cells(mine, dose, verdicts), arm, int(str(dose))) for dose in doses)
            headings = (facts.unit(arm), *CONTROL_HEADINGS[1:])
            caption = f"{facts.labels[arm.name]}: RRR on {mine[0]['n']} prompts"
            yield Table(caption, headings, rows, frozenset({5}))


def _without(facts: Facts, cells: tuple[str, ...], arm: Arm, dose: int) -> tuple[str, ...]:
    """The attack's rate and the gate's verdict, which quotes the loss, as the audit lets them stand."""
    rate, verdict = facts.supported(cells[1], Claim.RRR, arm.name, dose), cells[-1]
    return cells[0], rate, *cells[2:-1], facts.supported(verdict, Claim.LOSS, arm.name, dose)


def _gate_table(facts: Facts, gate: Sequence[Row]) -> Iterator[Block]:
    rows = tuple(
        (
            f"{facts.labels.get(str(row['arm']), '')} {row['dose_steps']}".strip(),
            printable(str(row["criterion"]).replace("_", " ")),
            " ".join(str(row[name]) for name in ("basis", "basis_dose") if row[name] not in (None, "")),
            facts.supported(
                with_interval(row, bounds=("open", "open")), Claim.LOSS, str(row["arm"]), int(str(row["dose_steps"]))
            ),
            number(row["limit"], "g"),
            facts.supported(str(row["status"]), Claim.LOSS, str(row["arm"]), int(str(row["dose_steps"]))),
        )
        for row in gate
    )
    if rows:
        headings = ("arm, dose", "criterion", "against", "figure [interval]", "limit", "status")
        yield Table("Every criterion of the gate", headings, rows, frozenset({0, 1, 2, 5}), folded=True)


def _whole_tables(facts: Facts) -> Iterator[Table]:
    """What else tampering changed: utility, over-refusal."""
    for arm in facts.arms:
        table = _metrics_table(facts, arm, _WHOLE, f"{facts.labels[arm.name]}: what else changed")
        if table is not None:
            claims = {"over_refusal_rate": Claim.OVER_REFUSAL}
            yield _claimed(facts, table, arm, claims)


def transitions(facts: Facts) -> Section:
    """What became of each prompt between dose 0 and every dose."""
    intro = (
        "The same prompts before and after: how many refusals were kept, lost and gained, the paired difference of RRR "
        "with its interval, its sign-flip p value, and that p by Holm over the doses of the arm."
    )
    rows = comparisons_of(facts.folder, facts.judge)["comparisons"]
    tables: list[Table] = []
    for arm in facts.arms:
        mine = [row for row in rows if row["arm"] == arm.name]
        if mine:
            tables.append(
                Table(
                    facts.labels[arm.name],
                    (
                        facts.unit(arm),
                        "kept",
                        "lost",
                        "gained",
                        "never",
                        "difference [interval]",
                        "p",
                        "Holm p",
                        "pairs",
                    ),
                    tuple(_transition(facts, row) for row in mine),
                    frozenset(),
                )
            )
    falls = [line for line in comparison_lines(facts.folder, facts.judge) if not _is_lost_line(facts, line)]
    return Section(
        "transitions", "Transitions", intro, (*grouped(tables), *([Lines(tuple(falls))] if tables and falls else []))
    )


def _transition(facts: Facts, row: Row) -> tuple[str, ...]:
    dose, arm = int(str(row["dose_steps"])), str(row["arm"])
    counts = [count(row[name]) for name in ("both_refused", "refused_to_complied", "complied_to_refused", "neither")]
    tested = [
        with_interval(row, "difference", "low", "high"),
        number(row["p_value"], ".2g"),
        number(row["p_holm"], ".2g"),
    ]
    cells = [facts.supported(cell, Claim.LOSS, arm, dose) for cell in (*counts, *tested)]
    return str(dose), *cells, count(row["n"])


def _is_lost_line(facts: Facts, line: str) -> bool:
    """Lines of the terminal speak of the largest fall of an arm: without any dose that falls for the audit."""
    if facts.force or facts.audit is None:
        return False
    doses = column(facts.frame, "dose_steps").unique() if len(facts.frame) else ()
    return any(facts.lost(Claim.LOSS, arm.name, int(dose)) for arm in facts.arms for dose in doses if dose > 0)


def drift(facts: Facts) -> Section:
    """How far answers moved, and what changed inside."""
    intro = (
        "RD: median over prompts of 1 - cosine between the embeddings of the untampered and the tampered answer. "
        "RD_floor is what two samples of the untampered model differ by; RD_stripped leaves repeated prompts out."
    )
    tables: list[Table] = []
    for arm in facts.arms:
        table = _metrics_table(facts, arm, _DRIFT, facts.labels[arm.name])
        if table is not None:
            tables.append(_claimed(facts, table, arm, dict.fromkeys(_DRIFT, Claim.RD)))
    told = tuple(inside_lines(facts.folder))
    blocks: list[Block] = [pictures.drift(facts), *grouped(tables)] if tables else []
    blocks += [*pictures.inside(facts), *([Lines(told)] if told else [])]
    return Section("drift", "Drift", intro, tuple(blocks))


def categories(facts: Facts) -> Section:
    """Rates by topic."""
    path = facts.folder / CATEGORIES
    rows = read_rows(path, CATEGORY_COLUMNS) if path.is_file() else []
    intro = (
        "RRR by topic of the prompts, each topic with its own interval; with so few prompts each they overlap easily, "
        "and nothing is corrected for how many topics are compared."
    )
    mine = [row for row in rows if row["metric"] == "RRR" and row["judge"] == facts.judge]
    tables: list[Table] = []
    for arm in facts.arms:
        of_arm = [row for row in mine if row["arm"] == arm.name]
        if of_arm:
            tables.append(_topic_table(facts, arm, of_arm))
    return Section("categories", "By category", intro, tuple(grouped(tables)))


def _topic_table(facts: Facts, arm: Arm, rows: Sequence[Row]) -> Table:
    doses = sorted({int(str(row["dose_steps"])) for row in rows})
    topics = list(dict.fromkeys(str(row["category"]) for row in rows))
    at = {(str(row["category"]), int(str(row["dose_steps"]))): row for row in rows}
    cells = tuple(
        (
            printable(topic) or "(none)",
            count(max((int(str(at[topic, dose]["n"])) for dose in doses if (topic, dose) in at), default=0)),
            *(
                facts.supported(with_interval(at.get((topic, dose), {}), form=".2f"), Claim.RRR, arm.name, dose)
                for dose in doses
            ),
        )
        for topic in topics
    )
    headings = ("category", "n", *(f"{facts.unit(arm)} {dose}" for dose in doses))
    return Table(f"{facts.labels[arm.name]}: RRR [interval]", headings, cells)


def costs(facts: Facts) -> Section:
    """What each dose takes."""
    priced = read_costs(facts.folder, facts.judge)
    intro = (
        "What the attacker spends up to each dose; measuring is not counted. Seconds are of the device named, clock "
        "time of the training steps alone, and differ from run to run."
    )
    spent = _all_costs(facts)
    tables: list[Table] = []
    for arm in facts.arms:
        clock = [row for row in spent if row["arm"] == arm.name]
        rows = tuple(_cost_rows(facts, arm, clock))
        if rows:
            device = next((f" on {printable(str(row['device']))}" for row in clock), "")
            headings = (facts.unit(arm), "examples", "tokens", "FLOPs", f"seconds{device}", "USD")
            tables.append(Table(facts.labels[arm.name], headings, rows, frozenset()))
    lines = _breaking_costs(facts, priced)
    return Section("costs", "Costs", intro, (*grouped(tables), *([Lines(lines)] if lines else [])))


def _all_costs(facts: Facts) -> list[Row]:
    # Rows of what was spent name no judge.
    return [row for row in read_costs(facts.folder, "") if str(row["metric"]).startswith("attack_")]


def _cost_rows(facts: Facts, arm: Arm, clock: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    at = {(row["metric"], row["dose_steps"]): row["value"] for row in clock}
    cells = arm_rows(facts.frame, arm).drop_duplicates("dose_steps").sort_values("dose_steps")
    for cell in cells.to_dict("records"):
        steps = int(cell["dose_steps"])
        spent = [
            None if pd.isna(cell[f"dose_{unit}"]) else cell[f"dose_{unit}"] for unit in ("examples", "tokens", "flops")
        ]
        timed = at.get(("attack_seconds", steps)), at.get(("attack_usd", steps))
        yield str(steps), *(amount(value) for value in spent), number(timed[0], ".1f"), number(timed[1], ".4f")


def _breaking_costs(facts: Facts, priced: Sequence[Row]) -> tuple[str, ...]:
    """ED50 in time and money, of the arms whose ED50 the audit supports."""
    rows, fits = read_responses(facts.folder, facts.judge), read_fits(facts.folder, facts.judge)
    at = {str(row["arm"]): row for row in rows if row["metric"] == "ED50_steps"}
    kept = [arm for arm, row in at.items() if facts.force or not lost_row(row, fits, rows, facts.audit)]
    named = {arm: facts.labels.get(arm, printable(arm)) for arm in kept}
    return tuple(f"{named[arm]}: {line}" for arm in kept for line in cost_lines(priced, arm))


def _metrics_table(facts: Facts, arm: Arm, metrics: Sequence[str], caption: str) -> Table | None:
    """The metrics of an arm that were measured, a row a dose."""
    rows = arm_rows(facts.frame, arm)
    kept = keep_rows(rows, column(rows, "metric").isin(list(metrics)))
    shown = [metric for metric in metrics if bool((column(kept, "metric") == metric).any())]
    if not shown:
        return None
    at = {(str(row["metric"]), int(row["dose_steps"])): row for row in kept.to_dict("records")}
    doses = sorted({dose for _, dose in at})
    cells = tuple((str(dose), *(with_interval(at.get((metric, dose), {})) for metric in shown)) for dose in doses)
    return Table(caption, (facts.unit(arm), *shown), cells, frozenset())


def _claimed(facts: Facts, table: Table, arm: Arm, claims: Mapping[str, Claim]) -> Table:
    """A table of metrics without what the audit does not support."""
    rows = tuple(
        (
            row[0],
            *(
                facts.supported(cell, claims[name], arm.name, int(row[0])) if name in claims else cell
                for name, cell in zip(table.headings[1:], row[1:], strict=True)
            ),
        )
        for row in table.rows
    )
    return Table(table.caption, table.headings, rows, table.words)
