"""A part of the page, and how it writes a number with its interval."""

from dataclasses import dataclass, field
from typing import Any

from lens_lang.plot.views import View
from lens_lang.sections.cells import Cell


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: Its heading.
        text: Paragraphs under the heading.
        columns: The table's heads; empty for no table.
        rows: The table's cells.
        figures: Figures as JSON for plotly.
        fragments: HTML, already escaped, shown after the table.
        views: Views of circuitsvis, shown after the figures.
        options: How the result came to be: names and values.
        group: Under what it stands in the contents, where others stand there, too.
    """

    title: str
    text: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    fragments: list[str] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)
    group: str = ""


def signed(value: float | int, places: int = 3) -> str:
    """With its sign, unless it is 0 at so many places.

    Examples:
        >>> signed(0.25), signed(-0.0001)
        ('+0.250', '0.000')
    """
    said = f"{value:+.{places}f}"
    return said[1:] if float(said) == 0 else said


def change_with_interval(value: float | int, low: float | int, high: float | int) -> str:
    """Signed, to three places, without an interval that has no ends; empty if not measured."""
    if value != value:  # not measured
        return ""
    ends = f" [{signed(low)}, {signed(high)}]" if low == low else ""
    return Cell(signed(value) + ends, value=value, low=low, high=high)


def share_with_interval(value: Any, ci: Any, *, percent: bool = False) -> str:
    """To two places, with the two ends that ``ci`` holds unless they are NaN; or in %, to one."""
    factor = 100 if percent else 1
    mean, low, high = (factor * float(x) for x in (value, *ci.tolist()))
    said = f"{mean:.1f} %" if percent else f"{mean:.2f}"
    ends = f"[{low:.1f}, {high:.1f}]" if percent else f"[{low:.2f}, {high:.2f}]"
    return Cell(said if low != low else f"{said} {ends}", value=mean, low=low, high=high)


def p_value(p: float | int, *, at_floor: bool = False) -> str:
    """To three places without the leading zero, ``<.001`` below; empty where it was not tested.

    Args:
        p: The p-value.
        at_floor: It is the smallest that the test can give, and gets a dagger.
    """
    if p != p:  # not tested
        return ""
    said = "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0") if p < 1 else "1"
    return Cell(f"{said} †" if at_floor else said, value=p)
