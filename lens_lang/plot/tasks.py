"""Figures of how well tasks are solved, with and without languages' neurons."""

import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import TaskMatrix
from lens_lang.plot.style import (
    AXIS,
    COLOURS,
    NO_LANGUAGE,
    beside,
    colour_of,
    finish_panels,
    panels,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

LOG_PROBABILITY = "log_probability"
"""The metric that all tasks have, and that has no floor."""

_BAND = "rgba(128,128,128,0.35)"

_KINDS: dict[str, dict[str, Any]] = {
    "own": {"color": COLOURS[0], "symbol": "circle"},
    "random": {"color": NO_LANGUAGE, "symbol": "x"},
}

_Row = dict[Hashable, Any]


def unit(metric: str) -> str:
    """Return what a metric is called on an axis.

    Args:
        metric: One of `TaskMatrix.metrics`.
    """
    return {
        LOG_PROBABILITY: "log-probability (nats per token)",
        "rouge_l": "ROUGE-L",
        "f1": "F1",
    }.get(metric, metric.replace("_", " "))


def task_matrix(matrix: TaskMatrix, *, metric: str | None = None) -> "go.Figure":
    """Draw how well a task is solved in each language, without and with each intervention.

    Args:
        matrix: The measurement.
        metric: One of its metrics; None takes the task's main one.

    Returns:
        One panel per intervention: each language's score before (hollow) and under it, with 95 %
        intervals; crosses are the mean under random controls, on a grey band where one more
        would lie.

    Raises:
        OptionError: The metric was not measured.
    """
    name = metric or matrix.metrics[0]
    rows = matrix.to_frame(metric).to_dict("records")
    before = {row["language"]: row for row in rows if row["intervention"] == "none"}
    figure, places = panels(list(matrix.interventions) or ["without intervention"])
    for number, place in enumerate(places):
        mine = (
            [row for row in rows if row["intervention"] == matrix.interventions[number]]
            if matrix.interventions
            else []
        )
        tested = [row["language"] for row in mine if row["language"] in before] or list(before)
        _marks(
            figure,
            [before[lang] for lang in tested],
            "before",
            {"color": NO_LANGUAGE, "symbol": "circle-open", "size": 9},
            place=place,
            in_legend=number == 0,
        )
        controls = [row for row in mine if row["control"] == row["control"]]
        _controls(figure, controls, before, place=place, in_legend=number == 0)
        _marks(
            figure,
            mine,
            "under the intervention",
            {"color": colour_of(0, ""), "symbol": "circle", "size": 9},
            place=place,
            in_legend=number == 0,
        )
    called = unit(name)
    finish_panels(figure, f"{matrix.task}: {called} by language", len(places))
    figure.update_layout(scattermode="group", scattergap=0.55)
    figure.update_xaxes(
        title="", type="category", categoryorder="array", categoryarray=list(matrix.languages)
    )
    axis = "nats per token" if name == LOG_PROBABILITY else called
    figure.update_yaxes(title=axis, col=1)
    figure.update_yaxes(range=_range(rows, before, from_zero=name != LOG_PROBABILITY))
    return figure


def mwork(result: MWork, *, metric: str | None = None) -> "go.Figure":
    """Draw whether English is spared when other languages lose their neurons of a region.

    Args:
        result: From `lens_lang.mwork`.
        metric: As in `MWork.to_frame`; None takes each task's main one.

    Returns:
        One panel per task: for each setting the change of English less that of the others, above
        0 if English is spared, with 95 % intervals; in grey the same with random neurons.
        Hovering shows the row of the paper's table.

    Raises:
        OptionError: The metric was not measured.
    """
    rows = result.to_frame(metric).to_dict("records")
    tasks = list(result.matrices)
    units = {row["task"]: row["metric"] for row in rows}
    figure, places = panels([f"{task} ({unit(units[task])})" for task in tasks])
    shown: set[str] = set()
    for task, (row, column) in zip(tasks, places, strict=True):
        for kind, mark in _KINDS.items():
            mine = [each for each in rows if (each["task"], each["neurons"]) == (task, kind)]
            if not mine:
                continue
            figure.add_scatter(
                x=[each["off"] for each in mine],
                y=[each["delta"] for each in mine],
                error_y=_bars(mine, "delta"),
                mode="markers",
                marker={"size": 9, **mark},
                name=f"{kind} neurons",
                legendgroup=kind,
                offsetgroup=kind,
                showlegend=kind not in shown,
                customdata=[_paper_row(each) for each in mine],
                hovertemplate="%{customdata}<extra></extra>",
                row=row,
                col=column,
            )
            shown.add(kind)
    figure.add_hline(y=0, line={"color": AXIS, "width": 1})
    finish_panels(figure, "Change of English less change of the others", len(places))
    figure.update_layout(scattermode="group", scattergap=0.55)
    figure.update_xaxes(title="", type="category")
    for number, task in enumerate(tasks):
        at = places[number]
        order = list(result.settings[task])
        figure.update_xaxes(categoryorder="array", categoryarray=order, row=at[0], col=at[1])
        if number >= len(tasks) - beside(len(tasks)):
            figure.update_xaxes(title="switched off", row=at[0], col=at[1])
        figure.update_yaxes(
            range=_padded([row for row in rows if row["task"] == task]), row=at[0], col=at[1]
        )
    # Each panel has its own unit.
    figure.update_yaxes(matches=None, showticklabels=True)
    figure.update_yaxes(title="Δ", col=1)
    return figure


def _padded(rows: list[_Row]) -> tuple[float, float]:
    """A panel's range, with 0 in it and space for the marks at its ends."""
    ends = [0.0, *(row[key] for row in rows for key in ("delta", "delta_low", "delta_high"))]
    known = [end for end in ends if end == end]
    low, high = min(known), max(known)
    space = 0.08 * (high - low) or 0.1
    return low - space, high + space


def _bars(rows: list[_Row], key: str) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [row[f"{key}_high"] - row[key] for row in rows],
        "arrayminus": [row[key] - row[f"{key}_low"] for row in rows],
    }


def _marks(
    figure: "go.Figure",
    rows: list[_Row],
    name: str,
    marker: dict[str, Any],
    *,
    place: tuple[int, int],
    in_legend: bool,
) -> None:
    """One mark per language, at its score."""
    figure.add_scatter(
        x=[row["language"] for row in rows],
        y=[row["score"] for row in rows],
        error_y={**_bars(rows, "score"), "thickness": 1.5, "width": 3},
        mode="markers",
        marker=marker,
        name=name,
        legendgroup=name,
        offsetgroup=name,
        showlegend=in_legend,
        customdata=[_task_note(row) for row in rows],
        hovertemplate="%{customdata}<extra></extra>",
        row=place[0],
        col=place[1],
    )


def _controls(
    figure: "go.Figure",
    rows: list[_Row],
    before: dict[str, _Row],
    *,
    place: tuple[int, int],
    in_legend: bool,
) -> None:
    """Scores under random controls: their mean, on where one more would lie."""
    if not rows:
        return
    level = [before[row["language"]]["score"] for row in rows]
    figure.add_scatter(
        x=[row["language"] for row in rows],
        y=[start + row["control"] for start, row in zip(level, rows, strict=True)],
        error_y={**_bars(rows, "control"), "color": _BAND, "thickness": 9, "width": 0},
        mode="markers",
        marker={"color": NO_LANGUAGE, "symbol": "x", "size": 7},
        name="random control, and where one more would lie",
        legendgroup="control",
        offsetgroup="under the intervention",
        showlegend=in_legend,
        customdata=[
            f"{row['language']}, random control: {row['control']:+.3f}"
            + _ends(row["control_low"], row["control_high"])
            for row in rows
        ],
        hovertemplate="%{customdata}<extra></extra>",
        row=place[0],
        col=place[1],
    )


def _range(
    rows: list[_Row], before: dict[str, _Row], *, from_zero: bool
) -> tuple[float, float] | None:
    """One range for all panels; marks in groups would always have 0 in it."""
    ends = [0.0] if from_zero else []
    for row in rows:
        start = before[row["language"]]["score"] if row["language"] in before else math.nan
        ends += [row[key] for key in ("score", "score_low", "score_high")]
        ends += [start + row[key] for key in ("control", "control_low", "control_high")]
    known = [end for end in ends if end == end]
    if not known:
        return None
    low, high = min(known), max(known)
    space = 0.06 * (high - low) or 0.1
    return (low if from_zero and low == 0 else low - space), high + space


def _task_note(row: _Row) -> str:
    lines = [
        f"{row['language']}, {row['intervention']}: {row['score']:.3f} "
        f"[{row['score_low']:.3f}, {row['score_high']:.3f}], {row['items']} items"
    ]
    if row["intervention"] != "none":
        lines.append(f"change {row['change']:+.3f}" + _ends(row["change_low"], row["change_high"]))
        if row["control"] == row["control"]:
            lines.append(
                f"random control {row['control']:+.3f}"
                + _ends(row["control_low"], row["control_high"])
            )
        if row["p_holm"] == row["p_holm"]:
            lines.append(f"p (Holm) {row['p_holm']:.3g}")
    return "<br>".join(lines)


def _paper_row(row: _Row) -> str:
    lines = [
        f"{row['task']}, {row['off']} off, {row['neurons']} neurons",
        f"English {row['english']:.3f}, others {row['others']:.3f}",
    ]
    for name, key in (("ΔEnglish", "d_english"), ("Δothers", "d_others"), ("Δ", "delta")):
        lines.append(f"{name} {row[key]:+.3f}" + _ends(row[f"{key}_low"], row[f"{key}_high"]))
    if row["p_holm"] == row["p_holm"]:
        lines.append(f"p (Holm): Δ {row['p_holm']:.3g}, Δothers {row['p_others_holm']:.3g}")
    return "<br>".join(lines)


def _ends(low: float, high: float) -> str:
    return f" [{low:+.3f}, {high:+.3f}]" if low == low else ""
