"""Numbers as a page writes them."""

from collections.abc import Mapping

from tamperdose.report.text import UNDEFINED


def number(value: object, form: str = ".3f") -> str:
    """A number, or a dash where it is not defined.

    >>> number(0.5), number(1234567, ".3g")
    ('0.500', '1.23e+06')
    """
    if value is None or value == "":
        return UNDEFINED
    found = float(str(value))
    return UNDEFINED if found != found else format(found, form)


def with_interval(
    row: Mapping[str, object], *names: str, form: str = ".3f", bounds: tuple[str, str] = ("0", "open")
) -> str:
    """A value and its interval: "0.500 [0.400, 0.600]"; an end that nothing bounds is named.

    Args:
        row: Where they stand.
        names: The columns of value, low and high; `value`, `low`, `high` by default.
        form: How a number is written.
        bounds: What stands for a lower and an upper end that is not there, where the other is.

    >>> with_interval({"value": 3.0, "low": None, "high": 4.0}, form=".3g")
    '3 [0, 4]'
    """
    value, low, high = (row.get(name) for name in names or ("value", "low", "high"))
    if number(value) == UNDEFINED:
        return UNDEFINED
    ends = [number(low, form), number(high, form)]
    if ends == [UNDEFINED, UNDEFINED]:
        return number(value, form)
    shown = (bound if end == UNDEFINED else end for end, bound in zip(ends, bounds, strict=True))
    return f"{number(value, form)} [{', '.join(shown)}]"


def count(value: object) -> str:
    """A whole number with its thousands parted, or a dash.

    >>> count(12345)
    '12,345'
    """
    return number(value, ",.0f")


def amount(value: object) -> str:
    """A large number, short: "3.6e+12"; whole ones below a hundred thousand as they are.

    >>> amount(3.6e12), amount(1024)
    ('3.6e+12', '1,024')
    """
    text = number(value, ".3g")
    return count(value) if text != UNDEFINED and abs(float(str(value))) < 1e5 else text
