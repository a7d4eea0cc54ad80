"""What the parts of a study are made of: closed records and the kinds of numbers that stand in them."""

from typing import Annotated, Any, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tamperdose.records import Subset


class Frozen(BaseModel):
    """A part of a study: immutable, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def listed(value: Any) -> Any:
    """Read a single value as a grid of one."""
    if isinstance(value, (list, tuple)):
        return cast("list[Any] | tuple[Any, ...]", value)
    return (value,)


def require_distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the values of a grid if no two are equal."""
    if len(set(values)) != len(values):
        raise ValueError(f"values must differ, got {list(values)}")
    return values


def no_boolean(value: Any) -> Any:
    """Refuse true and false where a number is wanted: YAML reads `yes` as one."""
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not true or false")
    return value


PositiveInt = Annotated[int, Field(gt=0, lt=2**31, strict=True)]
PositiveFloat = Annotated[float, BeforeValidator(no_boolean), Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
RankGrid = Annotated[tuple[PositiveInt, ...], BeforeValidator(listed), Field(min_length=1)]
RateGrid = Annotated[tuple[PositiveFloat, ...], BeforeValidator(listed), Field(min_length=1)]
CountGrid = Annotated[tuple[PositiveInt | None, ...], BeforeValidator(listed), Field(min_length=1)]
Share = Annotated[float, BeforeValidator(no_boolean), Field(gt=0, le=1)]
ShareGrid = Annotated[tuple[Share, ...], BeforeValidator(listed), Field(min_length=1)]
OrderGrid = Annotated[tuple[Seed | None, ...], BeforeValidator(listed), Field(min_length=1)]


Source = Annotated[str, Field(min_length=1, max_length=4096)]

PUBLIC_SETS: dict[str, Subset] = {
    "xstest": Subset.BENIGN,
    "xstest_unsafe": Subset.HARMFUL,
    "coconot": Subset.BENIGN,
}
"""Public sets of prompts whose files can be named as `NAME:PATH`, each with what it may be used as."""


def split_source(source: str) -> tuple[str, str]:
    """Part a source into the public set it names, empty where it names none, and the path.

    >>> split_source("xstest:data/xstest_prompts.csv"), split_source("mine.csv")
    (('xstest', 'data/xstest_prompts.csv'), ('', 'mine.csv'))
    """
    name, colon, path = source.partition(":")
    return (name, path) if colon and name in PUBLIC_SETS else ("", source)
