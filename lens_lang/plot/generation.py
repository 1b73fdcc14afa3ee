"""Figures of in which language a model answers, and how well it still writes."""

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch

from lens_lang.errors import OptionError, near_misses
from lens_lang.evaluate.generation import GenerationMatrix, repetition
from lens_lang.evaluate.significance import mean_interval
from lens_lang.evaluate.task_scores import WITHOUT
from lens_lang.identification import UNDETERMINED
from lens_lang.plot.style import (
    AXIS,
    COLOURS,
    NO_LANGUAGE,
    add_note,
    colour_of,
    figure_class,
    heat_map,
    interval_text,
    set_style,
)

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_MANY_ROWS = 16
"""A map with more rows than this has lower ones."""

_MOST_TARGETS = 6
"""More targets than this share one panel."""

_REST = "other languages"

_WITHOUT_LINE = {"color": NO_LANGUAGE, "width": 1, "dash": "dash"}

_Row = dict[Hashable, Any]


def generation_matrix(matrix: GenerationMatrix) -> "go.Figure":
    """Draw how often answers are in the wanted language.

    Args:
        matrix: The measurement.

    Returns:
        A map, interventions by languages of the questions: the share of answers in the target
        of the intervention, or else in the question's own language; empty where none was asked.
        The last row is the mean of all interventions' random controls. Hovering shows intervals,
        tests, and how the answers are written.
    """
    rows = matrix.to_frame().to_dict("records")
    labels, languages = [WITHOUT, *matrix.interventions], list(matrix.groups)
    shares = torch.full((len(labels), len(languages)), torch.nan, dtype=torch.float64)
    notes = [["" for _ in languages] for _ in labels]
    for row in rows:
        place = labels.index(row["intervention"]), languages.index(row["question"])
        shares[place] = row["rate"]
        notes[place[0]][place[1]] = f"{row['question']} asked, {_note(row)}"
    if matrix.n_controls:
        values, told = _control_row(matrix, rows)
        shares = torch.cat([shares, torch.tensor([values], dtype=torch.float64)])
        labels.append("random control")
        notes.append(told)
    figure = heat_map(
        shares,
        labels,
        languages,
        text=[["" if x != x else f"{x:.2f}" for x in line] for line in shares.tolist()],
        hover="%{customdata}<extra></extra>",
        title="Share of answers in the wanted language",
    )
    figure.update_traces(
        customdata=notes,
        colorscale="Blues",
        zmin=0,
        zmax=1,
        colorbar={
            "title": "share",
            "lenmode": "pixels",
            "len": min(220, 32 * len(labels)),
            "y": 1,
            "yanchor": "top",
        },
    )
    figure.update_xaxes(title="language of the question", showgrid=False)
    figure.update_yaxes(
        showgrid=False, title={"text": "intervention", "standoff": 12}, automargin=True, dtick=1
    )
    if len(labels) > _MANY_ROWS:
        figure.update_layout(height=130 + 20 * len(labels), font={"size": 11})
    return figure


def spoken_languages(matrix: GenerationMatrix, *, intervention: str = WITHOUT) -> "go.Figure":
    """Draw which languages the answers are in.

    Args:
        matrix: The measurement.
        intervention: Its name; ``"none"`` draws the answers without any.

    Returns:
        One bar per language of the questions, divided among the languages of the answers. Those
        for which no colour is left are drawn together; answers in none are grey (``und``).

    Raises:
        OptionError: There is no such intervention.
    """
    names = (WITHOUT, *matrix.interventions)
    if intervention not in names:
        raise OptionError(
            f"There is no intervention {intervention!r}{near_misses(intervention, names)}"
        )
    run = names.index(intervention)
    said: dict[str, list[str]] = {lang: [] for lang in matrix.groups}
    for lang, text, spoken in zip(
        matrix.languages, matrix.texts[run], matrix.spoken[run], strict=True
    ):
        if text is not None:
            said[lang].append(spoken)
    asked = [lang for lang, some in said.items() if some]
    colours = _colours(matrix)
    figure = figure_class()()
    for label, colour in colours.items():
        counts = [
            sum((x if x in colours else _REST) == label for x in said[lang]) for lang in asked
        ]
        if not any(counts):
            continue
        figure.add_bar(
            x=asked,
            y=[100 * n / len(said[lang]) for n, lang in zip(counts, asked, strict=True)],
            name=label,
            marker={
                "color": colour,
                "line": {"width": 0},
                "pattern": {"shape": "/" if label == _REST else ""},
            },
            customdata=[
                f"{lang} asked: {n} of {len(said[lang])} answers in "
                + ("no language" if label == UNDETERMINED else label)
                for n, lang in zip(counts, asked, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
        )
    without = "without intervention" if run == 0 else f"under {intervention}"
    set_style(figure, f"Languages of the answers {without}", 380)
    figure.update_layout(barmode="stack", bargap=0.25, showlegend=True)
    figure.update_xaxes(title="language of the question", type="category", gridcolor=AXIS)
    figure.update_yaxes(title="% of the answers", range=[0, 100], gridcolor=AXIS)
    return figure


def steering_curve(matrix: GenerationMatrix) -> "go.Figure":
    """Draw what steering does at each strength: answers in the target language, and babble.

    Args:
        matrix: A measurement with interventions from `lens_lang.steerings`; others are left out.

    Returns:
        Above, the share of answers in the target language, one line per method on its 95 %
        interval, dotted for its random controls; below, the repetition in the answers, which
        shows babble. Dashed grey lines are the answers without intervention. One pair of panels
        per target; more than six targets are drawn as their mean, with an interval over targets.
        Where there is only one strength, methods stand side by side.

    Raises:
        OptionError: No intervention steers.
    """
    table = matrix.summary()
    table = table[table["intervention"].isin(list(matrix.steering))]
    if table.empty:
        raise OptionError("No intervention here steers into a language: see lens_lang.steerings")
    table = table.assign(calm=[_calm(matrix, name) for name in table["intervention"]])
    methods = list(dict.fromkeys(table["method"]))
    number_of_targets = table["target"].nunique()
    pooled = number_of_targets > _MOST_TARGETS
    if pooled:
        table = _over_targets(table)
    table = table.assign(note=[_note(row) for row in table.to_dict("records")])
    targets = list(dict.fromkeys(table["target"]))
    dose = table["strength"].nunique() > 1
    figure, places = _storeys([f"into {target}" for target in targets])
    for target, pair in zip(targets, places, strict=True):
        mine = table[table["target"] == target].sort_values("strength", kind="stable")
        for number, method in enumerate(methods):
            rows = mine[mine["method"] == method]
            if len(rows):
                _draw_method(figure, rows, number, pair, dose=dose)
        for place, key in zip(pair, ("before", "calm"), strict=True):
            figure.add_hline(
                y=float(mine[key].mean()), line=_WITHOUT_LINE, row=place[0], col=place[1]
            )
        if pair[0][1] == 1:
            figure.update_yaxes(title="share in target", row=pair[0][0], col=1)
            figure.update_yaxes(title="repetition", row=pair[1][0], col=1)
    width = max(column for (_, column), _ in places)
    for _, (row, column) in places[-width:]:  # the lowest of each column
        figure.update_xaxes(title="strength" if dose else "method", row=row, col=column)
    add_note(
        figure,
        f"Each mark is the mean over {number_of_targets} target languages; its 95 % interval is "
        "over these languages and says how alike they are. The intervals of single languages are "
        "over questions, and are wider."
        if pooled
        else "Intervals are 95 %, over questions.",
    )
    _add_legend(figure, methods, with_controls=bool(table["control"].notna().any()))
    if dose:
        strengths = sorted(set(table["strength"]))
        wide = strengths[0] > 0 and strengths[-1] >= 8 * strengths[0]
        figure.update_xaxes(
            type="log" if wide else "linear",
            tickvals=strengths,
            ticktext=[f"{x:g}" for x in strengths],
        )
    else:
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=methods)
    return figure


def _control_row(matrix: GenerationMatrix, rows: list[_Row]) -> tuple[list[float], list[str]]:
    values, notes = [], []
    for lang in matrix.groups:
        mine = [
            row["control"]
            for row in rows
            if row["question"] == lang and row["intervention"] != WITHOUT
        ]
        values.append(sum(mine) / len(mine) if mine else float("nan"))
        notes.append(
            f"{lang} asked, {matrix.n_controls} random sets for each of {len(mine)} "
            f"interventions:<br>{values[-1]:.2f} on average, {min(mine):.2f} to {max(mine):.2f}"
            if mine
            else ""
        )
    return values, notes


def _note(row: _Row) -> str:
    """What hovering shows of a row of `GenerationMatrix.to_frame`."""
    lines = [
        f"{row['intervention']}: {row['rate']:.2f} of {row['answers']} answers in "
        f"{'their own language' if row['wanted'] == 'own' else row['wanted']}"
        + interval_text(row["rate_low"], row["rate_high"], ".2f")
    ]
    if row["intervention"] != WITHOUT:
        control = row["control"]
        beside = f", random control {control:.2f}" if control == control else ""
        tested = f", p (Holm) {row['p_holm']:.3g}" if row["p_holm"] == row["p_holm"] else ""
        lines.append(f"before {row['before']:.2f}{beside}{tested}")
    written = [f"repetition {row['repetition']:.2f}"]
    if row["distinct_2"] == row["distinct_2"]:
        written.append(f"distinct-2 {row['distinct_2']:.2f}")
    if row["nll"] == row["nll"]:
        written.append(f"NLL {row['nll']:.2f} nats per token")
    return "<br>".join([*lines, ", ".join(written)])


def _colours(matrix: GenerationMatrix) -> dict[str, str]:
    """Colours of the languages spoken in any run, the questions' first, then the most frequent."""
    heard = [lang for lang in matrix.distribution() if lang != UNDETERMINED]
    labels = [*matrix.groups, *(str(lang) for lang in heard if lang not in matrix.groups)]
    # Those of the questions all have one; beside them only what has one to itself.
    kept = labels[: max(len(COLOURS), len(matrix.groups))]
    found = {label: colour_of(column, label) for column, label in enumerate(kept)}
    return {**found, _REST: NO_LANGUAGE, UNDETERMINED: NO_LANGUAGE}


def _calm(matrix: GenerationMatrix, intervention: str) -> float:
    """Repetition without intervention, in the answers to what was asked under one."""
    run = 1 + matrix.interventions.index(intervention)
    ends = matrix.n_tokens[0].cumsum(0).tolist()
    asked = [
        repetition(matrix.tokens[start:end].tolist())
        for start, end, text in zip([0, *ends], ends, matrix.texts[run], strict=False)
        if text is not None
    ]
    return sum(asked) / max(len(asked), 1)


def _over_targets(table: "pd.DataFrame") -> "pd.DataFrame":
    """Means over the targets, of every method and strength, with an interval over targets."""
    import pandas as pd

    rows = []
    means = ("rate", "before", "control", "repetition", "distinct_2", "nll", "calm")
    for (method, strength), some in table.groupby(["method", "strength"], sort=False):
        low, high = mean_interval(torch.tensor(some["rate"].tolist())).tolist()
        rows.append(
            {
                "intervention": f"{method} x{strength:g}",
                "target": f"{table['target'].nunique()} target languages (mean)",
                "method": method,
                "strength": strength,
                "wanted": "the target",
                "answers": int(some["answers"].sum()),
                "rate_low": low,
                "rate_high": high,
                "p_holm": float("nan"),
                **{key: float(some[key].mean()) for key in means},
            }
        )
    return pd.DataFrame(rows)


_Place = tuple[int, int]


def _storeys(titles: list[str]) -> "tuple[go.Figure, list[tuple[_Place, _Place]]]":
    """Pairs of panels, one above the other, and the places of each pair."""
    figure_class()
    from plotly.subplots import make_subplots

    columns = 2 if len(titles) in (2, 4) else min(3, len(titles))
    blocks = -(-len(titles) // columns)
    over: list[str] = []
    for first in range(0, len(titles), columns):
        block_titles = titles[first : first + columns]
        over += [*block_titles, *[""] * (2 * columns - len(block_titles))]
    figure = make_subplots(
        rows=2 * blocks,
        cols=columns,
        subplot_titles=over,
        row_heights=[0.62, 0.38] * blocks,
        vertical_spacing=0.15 / blocks,
        horizontal_spacing=0.06,
    )
    set_style(figure, "Answers in the target language, and how they repeat", 190 + 330 * blocks)
    figure.update_layout(
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"},
        margin={"t": 90, "b": 90},
    )
    figure.update_annotations(font_size=13)
    figure.update_xaxes(gridcolor=AXIS, zeroline=False)
    figure.update_yaxes(gridcolor=AXIS, zeroline=False, range=[-0.03, 1.03])
    pairs = []
    for number in range(blocks * columns):
        block, column = divmod(number, columns)
        above, below = (2 * block + 1, column + 1), (2 * block + 2, column + 1)
        if number < len(titles):
            pairs.append((above, below))
        else:
            for row, place in (above, below):
                figure.update_xaxes(visible=False, row=row, col=place)
                figure.update_yaxes(visible=False, row=row, col=place)
    return figure, pairs


def _draw_method(
    figure: "go.Figure",
    rows: "pd.DataFrame",
    number: int,
    pair: tuple[_Place, _Place],
    *,
    dose: bool,
) -> None:
    """A method's share on its interval and its controls above, its repetition below."""
    (above, column), (below, _) = pair
    colour = COLOURS[number % len(COLOURS)]
    x = rows["strength"].tolist() if dose else rows["method"].tolist()
    low, high = rows["rate_low"].tolist(), rows["rate_high"].tolist()
    line = len(rows) > 1 and dose
    name = str(rows["method"].iloc[0])
    mark = {"color": colour, "symbol": number, "size": 7}
    if line:
        red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*high, *reversed(low)],
            fill="toself",
            fillcolor=f"rgba({red},{green},{blue},0.18)",
            mode="lines",
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            legendgroup=name,
            row=above,
            col=column,
        )
    for key, row in (("rate", above), ("repetition", below)):
        figure.add_scatter(
            x=x,
            y=rows[key].tolist(),
            error_y=None
            if line or key != "rate"
            else {
                "type": "data",
                "symmetric": False,
                "array": (rows["rate_high"] - rows["rate"]).tolist(),
                "arrayminus": (rows["rate"] - rows["rate_low"]).tolist(),
            },
            mode="lines+markers" if line else "markers",
            line={"color": colour, "width": 2},
            marker=mark,
            name=name,
            legendgroup=name,
            showlegend=False,
            customdata=rows["note"].tolist(),
            hovertemplate="%{customdata}<extra></extra>",
            row=row,
            col=column,
        )
    if bool(rows["control"].notna().any()):
        figure.add_scatter(
            x=x,
            y=rows["control"].tolist(),
            mode="lines" if line else "markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"color": colour, "symbol": "x-thin-open", "size": 8},
            name=f"{name}, random control",
            legendgroup=name,
            showlegend=False,
            hovertemplate=f"{name}, random control: %{{y:.2f}}<extra></extra>",
            row=above,
            col=column,
        )


def _add_legend(figure: "go.Figure", methods: list[str], *, with_controls: bool) -> None:
    """What each line is, once for all panels."""
    entries: list[tuple[str, dict[str, Any], dict[str, Any] | None]] = [
        (
            method,
            {"color": COLOURS[number % len(COLOURS)], "width": 2},
            {"symbol": number, "size": 7, "color": COLOURS[number % len(COLOURS)]},
        )
        for number, method in enumerate(methods)
    ]
    if with_controls:
        entries.append(
            ("its random control", {"color": NO_LANGUAGE, "width": 1, "dash": "dot"}, None)
        )
    entries.append(("without intervention", _WITHOUT_LINE, None))
    for name, line, marker in entries:
        figure.add_scatter(
            x=[None],
            y=[None],
            name=name,
            legendgroup=name,
            mode="lines" if marker is None else "lines+markers",
            line=line,
            marker=marker,
        )
