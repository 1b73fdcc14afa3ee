"""A part of the page, and how it writes a number with its interval."""

from dataclasses import dataclass, field
from typing import Any

from lens_lang.plot.views import View


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
    """

    title: str
    text: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    fragments: list[str] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    options: list[tuple[str, str]] = field(default_factory=list)


def change_with_interval(value: float, low: float, high: float) -> str:
    """Signed, to three places; empty where it was not measured."""
    if value != value:  # not measured
        return ""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def share_with_interval(value: Any, ci: Any) -> str:
    """To two places, with the two ends that ``ci`` holds."""
    low, high = ci.tolist()
    return f"{float(value):.2f} [{low:.2f}, {high:.2f}]"


def p_value(p: float) -> str:
    """To three places without the leading zero, ``<.001`` below; empty where it was not tested."""
    if p != p:  # not tested
        return ""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
