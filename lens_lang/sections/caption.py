"""What a figure shows, in words: its caption, and its text for those who do not see it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from typing import Any

_NAMED = 12
"""More labels than this are counted, with the first and the last."""


_KINDS = {"heatmap": "map", "bar": "bars"}


@dataclass(frozen=True)
class Caption:
    """What stands under a figure.

    Attributes:
        title: The figure's own.
        text: What its axes, lines and panels are.
        min_width: Pixels below which it can no longer be read.
    """

    title: str
    text: str
    min_width: int


def describe(figure: Mapping[str, Any]) -> Caption:
    """Say what a plotly figure shows.

    Args:
        figure: As ``figure.to_plotly_json()`` or the same from JSON.

    Examples:
        >>> describe({"data": [{"type": "heatmap", "x": ["0", "1"], "y": ["en", "fr", "any"]}],
        ...     "layout": {"title": {"text": "Neurons"}, "xaxis": {"title": {"text": "layer"}},
        ...                "yaxis": {"title": {"text": "language"}}}}).text
        'Map. Rows, language: en, fr, any. Columns, layer: 0, 1.'
    """
    data, layout = figure["data"], figure["layout"]
    maps = [trace for trace in data if trace.get("type") == "heatmap"]
    panels = [note["text"] for note in layout.get("annotations", ()) if note.get("text")]
    same = len(maps) == len(data) and len(panels) < 2
    if maps and same:
        text = _map(maps[0], layout)
    else:
        text = _lines(data, layout)
        if len(panels) > 1:
            text += f" {len(panels)} panels: {_listed(panels)}."
    return Caption(_plain(layout.get("title", {}).get("text", "")), text, _width(data, layout))


def _map(trace: Mapping[str, Any], layout: Mapping[str, Any]) -> str:
    said = "Map."
    for what, axis, labels in (("Rows", "yaxis", "y"), ("Columns", "xaxis", "x")):
        title = _axis(layout, axis)
        said += f" {what}{f', {title}' if title else ''}: {_listed(trace.get(labels) or ())}."
    return said


def _lines(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> str:
    kinds = dict.fromkeys(_kind(trace) for trace in data if trace.get("hoverinfo") != "skip")
    kind = ", ".join(kinds).capitalize()
    names = list(
        dict.fromkeys(
            trace["name"] for trace in data if trace.get("name") and trace.get("showlegend", True)
        )
    )
    said = f"{kind}: {_listed(names)}." if names else f"{kind}."
    for what, letter in (("Across", "x"), ("Up", "y")):
        titles = {_axis(layout, name): None for name in layout if name.startswith(f"{letter}axis")}
        said += "".join(f" {what}: {title}." for title in titles if title)
    return said


def _kind(trace: Mapping[str, Any]) -> str:
    if trace.get("type") in _KINDS:
        return _KINDS[trace["type"]]
    return "lines" if "lines" in trace.get("mode", "lines") else "points with intervals"


def _axis(layout: Mapping[str, Any], name: str) -> str:
    return _plain((layout.get(name, {}).get("title") or {}).get("text") or "")


def _plain(text: str) -> str:
    """Text as the figure shows it, which was escaped for plotly."""
    return unescape(text.replace("<br>", " "))


def _listed(labels: Sequence[Any]) -> str:
    names = [_plain(str(label)) for label in labels]
    if len(names) <= _NAMED:
        return ", ".join(names)
    return f"{names[0]} to {names[-1]} ({len(names)})"


def _width(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> int:
    if layout.get("width"):
        return int(layout["width"])
    beside = {
        tuple(layout[name].get("domain", (0.0, 1.0)))
        for name in layout
        if name.startswith("xaxis") and layout[name].get("visible", True)
    }
    columns = max(1, len(beside))
    widest = max((_trace_width(trace, columns) for trace in data), default=0)
    if (layout.get("legend") or {}).get("orientation") == "h":  # in one row, or it covers the axis
        names = {t["name"] for t in data if t.get("name") and t.get("showlegend", True)}
        widest = max(widest, min(560, 80 + sum(45 + 7 * len(name) for name in names)))
    return max(300, widest, 210 * columns if columns > 1 else 0)


def _trace_width(trace: Mapping[str, Any], panels: int) -> int:
    """Pixels for the names of the rows, and for what is written in each column."""
    if trace.get("type") == "bar" and trace.get("orientation") != "h":
        return 90 + 20 * len(trace.get("x") or ())
    if trace.get("type") != "heatmap":
        names = {x for x in trace.get("x") or () if isinstance(x, str)}
        longest = max((len(name) for name in names), default=0)
        return min(panels * (60 + len(names) * (7 * longest + 6)), 1000) if names else 0
    rows = max((len(str(label)) for label in trace.get("y") or ()), default=0)
    written = max((len(str(x)) for line in trace.get("text") or () for x in line), default=0)
    scale = 90 if trace.get("showscale", True) else 0
    columns = len(trace.get("x") or ()) * min(max(30, 8 + 7 * written), 90)
    return 50 + min(7 * rows, 200) + columns + scale
