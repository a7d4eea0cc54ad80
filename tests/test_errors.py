import pickle

import pytest

from tamperdose import errors
from tamperdose.errors import (
    DataError,
    ExtraError,
    GateError,
    JudgeError,
    ModelError,
    RunError,
    StudyError,
    TamperdoseError,
    explain,
    nearest,
)

KINDS = [StudyError, DataError, ModelError, JudgeError, RunError, ExtraError, GateError]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_a_process_boundary(kind: type[TamperdoseError]) -> None:
    error = pickle.loads(pickle.dumps(kind(explain("what", got="a", remedy="b"))))
    assert type(error) is kind
    assert str(error) == "what\n  got:      a\n  remedy:   b"


def test_every_kind_is_one_of_ours() -> None:
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert found == {TamperdoseError, *KINDS}


def test_parts_that_are_not_known_are_left_out() -> None:
    assert explain("what") == "what"
    assert explain("what", expected="x").splitlines() == ["what", "  expected: x"]


def test_an_empty_part_is_still_said() -> None:
    assert explain("what", got="").splitlines()[1].strip() == "got:"


@pytest.mark.parametrize(
    ("name", "expected"),
    [("seed", " (did you mean 'seeds'?)"), ("zzz", ""), ("", ""), ("learning_rat", " (did you mean 'learning_rate'?)")],
)
def test_nearest(name: str, expected: str) -> None:
    assert nearest(name, ["seeds", "learning_rate"]) == expected
    assert nearest(name, []) == ""
