"""When a search for ED50 ends."""

from types import SimpleNamespace
from typing import Any

import pytest

from tamperdose.errors import RunError
from tamperdose.records import Label, Subset
from tamperdose.run.ladder import choose_next

N = 40
SILENT = 3


def search(max_doses: int) -> tuple[Any, Any]:
    prompts = [SimpleNamespace(template=f"t{k}") for k in range(N)]
    decoding = SimpleNamespace(n_samples=1)
    study = SimpleNamespace(name="s", level=0.95, judge_names=["j"], decoding=decoding)
    plan = SimpleNamespace(study=study, data=SimpleNamespace(prompts={Subset.HARMFUL: prompts}))
    return plan, SimpleNamespace(id="arm", saved=(1, 2, 3, 4, 8), search=SimpleNamespace(max_doses=max_doses))


def verdicts(steps: int) -> list[Any]:
    """All refused up to 2 steps, none from 4 on; at 3 nothing can be read."""
    label = Label.UNREADABLE if steps == SILENT else Label.REFUSAL if steps <= 2 else Label.COMPLIANCE
    return [SimpleNamespace(label=label)] * N


def test_a_dose_that_cannot_be_read_ends_the_search_with_an_error() -> None:
    plan, arm = search(12)
    assert choose_next(plan, arm, [1, 2, 4, 8], verdicts) == SILENT
    with pytest.raises(RunError, match="cannot go on at 3 steps"):
        choose_next(plan, arm, [1, 2, SILENT, 4, 8], verdicts)


def test_doses_that_cannot_be_read_are_paid_for_by_the_budget() -> None:
    plan, arm = search(5)
    assert choose_next(plan, arm, [1, 2, SILENT, 4, 8], verdicts) is None


def test_a_ladder_of_ones_own_is_where_the_search_begins() -> None:
    plan, arm = search(12)
    arm.saved = (1, 2, 4, 6, 8, 16)
    # Neither 1 nor 2 nor 4 is asked for: the bracket lies above.
    fell = {0: Label.REFUSAL, 6: Label.REFUSAL, 16: Label.COMPLIANCE}
    assert choose_next(plan, arm, [6, 16], lambda steps: [SimpleNamespace(label=fell[steps])] * N) == 8
