"""Which unit comes next, and what becomes of one that fails: without a cluster."""

from pathlib import Path

import pytest

from studies import plan_of, write_study
from tamperdose.run.schedule import NEEDS, Board
from tamperdose.run.units import Outcome, Part, Unit, make_units

HOSTS = {"one", "two"}


@pytest.fixture
def units(tmp_path: Path) -> list[Unit]:
    """Two models with two arms each."""
    models = [{"id": "fake", "name": "small"}, {"id": "fake", "name": "large"}]
    return make_units(plan_of(write_study(tmp_path, models=models, seeds=[1, 2])))


def _take(board: Board, host: str = "one", loaded: int | None = None, held: tuple[int, ...] = ()) -> Unit | None:
    return board.take(host, loaded, hosts=HOSTS, held=held)


def _done(unit: Unit, seconds: float = 1.0) -> Outcome:
    return Outcome(unit.id, seconds)


def test_units_of_a_plan(units: list[Unit]) -> None:
    assert len({unit.id for unit in units}) == len(units) == 2 * (2 + 2 * 2)
    assert [unit.part for unit in units[:6]] == [Part.BASE, Part.READ, Part.ARM, Part.READ, Part.ARM, Part.READ]
    assert units[1].needs == units[2].needs == (units[0].id,)
    assert units[3].needs == (units[2].id,)


def test_bases_then_arms_of_the_loaded_model_then_reading(units: list[Unit]) -> None:
    board = Board(units, retries=0)
    bases = [_take(board), _take(board)]
    assert [unit and unit.model for unit in bases] == [0, 1]
    assert _take(board) is None
    for unit in bases:
        assert unit is not None
        board.settle(unit, _done(unit))
    taken = [_take(board, loaded=1, held=(1,)) for _ in range(4)]
    assert [unit and unit.part for unit in taken] == [Part.ARM] * 4
    assert [unit and unit.model for unit in taken] == [1, 1, 0, 0]
    reading = _take(board, loaded=1)
    assert reading is not None and reading.part is Part.READ


def test_a_model_that_nobody_holds_is_loaded_next(units: list[Unit]) -> None:
    board = Board(units, retries=0)
    for unit in [_take(board), _take(board)]:
        assert unit is not None
        board.settle(unit, _done(unit))
    unit = _take(board, held=(0,))
    assert unit is not None and unit.model == 1


def test_what_was_lost_goes_to_another_machine_and_is_given_up_in_the_end(units: list[Unit]) -> None:
    board = Board(units[:3], retries=2)
    unit = _take(board)
    assert unit is not None
    lost = Outcome(unit.id, 1.0, "ActorDiedError", "gone", lost=True)
    assert not board.settle(unit, lost)
    assert _take(board, "one") is None
    assert board.take("one", None, hosts={"one"}, held=()) is unit
    assert not board.settle(unit, lost)
    assert _take(board, "two") is unit
    assert board.settle(unit, lost)
    first, *others = board.failures
    assert (first.unit, first.kind, first.tries, first.hosts) == (unit.id, "ActorDiedError", 3, ("one", "one", "two"))
    assert [failure.kind for failure in others] == [NEEDS, NEEDS]
    assert (board.n_left, board.n_ended) == (0, 3)


def test_an_error_of_the_study_is_not_tried_again(units: list[Unit]) -> None:
    board = Board(units, retries=5)
    unit = _take(board)
    assert unit is not None
    assert board.settle(unit, Outcome(unit.id, 1.0, "DataError", "bad row"))
    assert len(board.failures) == 6
    assert board.n_left == 6


def test_a_unit_may_wait_for_another_that_fails() -> None:
    board = Board([Unit("a", Part.BASE, 0), Unit("b", Part.BASE, 1, after=("a",))], retries=0)
    first = _take(board)
    assert first is not None and _take(board) is None
    board.settle(first, Outcome("a", 1.0, "ModelError", "no"))
    second = _take(board)
    assert second is not None and second.id == "b"


def test_time_left_is_that_of_units_like_those_that_are_done(units: list[Unit]) -> None:
    board = Board(units, retries=0)
    assert board.seconds_left(2) is None
    unit = _take(board)
    assert unit is not None
    board.settle(unit, _done(unit, 10.0))
    # Nothing is known of arms and reading: they are taken to be like what is.
    assert board.seconds_left(2) == pytest.approx(11 * 10 / 2)
    assert board.seconds_left(0) is None
    arm = next(unit for unit in [_take(board), _take(board)] if unit is not None and unit.part is Part.ARM)
    board.settle(arm, _done(arm, 100.0))
    assert board.seconds_left(1) == pytest.approx(1 * 10 + 3 * 100 + 6 * 55)
