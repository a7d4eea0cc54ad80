import pytest
from matplotlib.figure import Figure

from tamperdose.report.style import dose_axis, dose_text, drawable, line_style
from tamperdose.report.text import markdown_cell, printable, shorten


def ticks(steps: list[int], width: float) -> list[int]:
    axes = Figure(figsize=(width, 2)).subplots()
    dose_axis(axes, steps)
    return [round(tick) for tick in axes.get_xticks()]


def test_wide_axes_label_every_dose() -> None:
    assert ticks([0, 1, 2, 3, 4, 6, 8, 12, 16], 8) == [0, 1, 2, 3, 4, 6, 8, 12, 16]


def test_narrow_axes_keep_zero_first_and_last() -> None:
    few = ticks([0, 1, 2, 3, 4, 6, 8, 12, 16], 1.8)
    assert few[:2] == [0, 1] and few[-1] == 16 and len(few) < 9
    assert 4 in few


def test_without_zero_the_axis_is_logarithmic() -> None:
    axes = Figure().subplots()
    dose_axis(axes, [500, 1000])
    assert axes.get_xscale() == "log" and not axes.texts


def test_forty_styles_differ_without_colour() -> None:
    assert len({(style.marker, style.dash) for style in map(line_style, range(40))}) == 40


@pytest.mark.parametrize(("dose", "text"), [(0, "0"), (9999, "9999"), (15_500, "15.5k"), (2_000_000, "2M")])
def test_dose_text(dose: int, text: str) -> None:
    assert dose_text(dose) == text


def test_drawable_keeps_what_the_font_has() -> None:
    assert drawable("Qwen2_7B é Ω $a$") == "Qwen2_7B é Ω $a$"
    assert drawable("e\u0301") == "é"
    assert drawable("\u5343\n\x00\u6587") == "\ufffd \ufffd"


def test_printable_is_one_line_without_controls() -> None:
    assert printable("a\r\nb\x07\u2066c\ud800") == "a b c"


@pytest.mark.parametrize("width", range(3, 12))
def test_shorten_never_exceeds_its_width(width: int) -> None:
    assert len(shorten("abcdefghij", width)) == min(10, width)


def test_markdown_cell_cannot_leave_its_cell() -> None:
    assert "|" not in markdown_cell("a|b\n|c").replace("\\|", "")
    assert "<" not in markdown_cell("<script>")
