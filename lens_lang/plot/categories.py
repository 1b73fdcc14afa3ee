"""Figures of which neurons languages share, what they contribute, what answers lose with them."""

from typing import TYPE_CHECKING

import torch

from lens_lang.attribute.categories import STATISTICS, CategoryContributions
from lens_lang.detect.sharing import Sharing
from lens_lang.errors import OptionError
from lens_lang.evaluate.categories import EVERY, CategoryEffect
from lens_lang.languages import find_language
from lens_lang.patterns import CATEGORIES
from lens_lang.plot.style import (
    AXIS,
    colour_of,
    figure_class,
    finish_panels,
    heat_map,
    interval_text,
    panels,
    set_style,
)

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LABELS = tuple(category.replace("_", "-") for category in CATEGORIES)


def sharing(found: Sharing) -> "go.Figure":
    """Draw how many neurons of each layer all languages share, some share, one has, none uses.

    Args:
        found: From `lens_lang.sharing`.

    Returns:
        Stacked shares over layers, means over examples. The darker part of each is the neurons
        that are of this kind in every example. Hovering shows intervals, least and most.
    """
    figure = figure_class()()
    layers = [str(layer) for layer in range(found.members.shape[1])]
    examples = len(found.members)
    for kind, label in enumerate(_LABELS):
        same = found.consistent[:, kind]
        rest = found.share[:, kind] - same
        notes = [
            f"{label}, layer {layer}: {100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
            f"<br>least {100 * least:.1f}, most {100 * most:.1f}<br>in every example "
            f"{100 * always:.2f} %"
            for layer, share, (low, high), (least, most), always in zip(
                layers,
                found.share[:, kind].tolist(),
                found.ci[:, kind].tolist(),
                found.range[:, kind].tolist(),
                same.tolist(),
                strict=True,
            )
        ]
        for values, opacity, name, shown in (
            (same, 1.0, f"{label} in every example", False),
            (rest, 0.55, label, True),
        ):
            figure.add_bar(
                x=layers,
                y=(100 * values).tolist(),
                name=name,
                marker={"color": colour_of(kind, label), "opacity": opacity, "line": {"width": 0}},
                customdata=notes,
                hovertemplate="%{customdata}<extra></extra>",
                legendgroup=label,
                showlegend=shown,
            )
    title = f"Neurons by the languages that share them, {examples} example"
    set_style(figure, title + ("s" if examples > 1 else ""), 420)
    figure.update_layout(
        barmode="stack", bargap=0.08, legend={"orientation": "h", "y": -0.2}, margin={"b": 90}
    )
    figure.update_xaxes(title="layer", type="category", gridcolor=AXIS)
    figure.update_yaxes(title="% of the layer's neurons", range=[0, 100], gridcolor=AXIS)
    return figure


def category_contributions(
    contributions: CategoryContributions, *, statistic: str = "top", language: str | None = None
) -> "go.Figure":
    """Draw what the neurons of each kind contribute, layer by layer.

    Args:
        contributions: From `collect_parallel` with ``CategoryContribution()``.
        statistic: ``"top"``: of the neurons of highest contribution in a layer, how many are of
            each kind. ``"sum"``, ``"mean"``, ``"max"`` or ``"min"`` of the contribution scores.
            ``"effective sum"`` and so on: of the effective scores for the answer.
        language: One language; None draws the mean over all.

    Returns:
        A map, kinds by layers, means over examples. Hovering shows every language.

    Raises:
        OptionError: There is no such statistic, or there were no answers.
        LanguageError: The language was not measured.
    """
    measure, _, of = statistic.rpartition(" ")
    if statistic == "top":
        values = contributions.top.double().mean(0) / contributions.top_count
    elif of in STATISTICS and measure in ("", "effective"):
        scores = contributions.effective if measure else contributions.contribution
        if scores is None:
            raise OptionError("There were no answers, so there are no effective scores to draw")
        values = scores.mean(0)[:, :, STATISTICS.index(of)]
    else:
        raise OptionError(
            f"statistic must be top, {', '.join(STATISTICS)}, or effective and one of these, got "
            f"{statistic!r}"
        )
    factor = 100 if statistic == "top" else 1
    unit = "% of the highest" if statistic == "top" else statistic
    values = factor * values
    place = None if language is None else find_language(language, contributions.languages)
    shown = (values.mean(0) if place is None else values[place]).T
    whose = "" if place is None else f", {contributions.languages[place]}"
    figure = heat_map(
        shown,
        list(_LABELS),
        [str(layer) for layer in range(values.shape[1])],
        text=[[_short(x, statistic) for x in row] for row in shown.tolist()],
        hover="%{customdata}<extra></extra>",
        title=f"What the neurons of each kind contribute ({unit}{whose})",
    )
    figure.update_traces(
        customdata=[
            [
                f"{label}, layer {layer}<br>"
                + "<br>".join(
                    f"{lang} {x:.3g}"
                    for lang, x in zip(
                        contributions.languages, values[:, layer, kind].tolist(), strict=True
                    )
                )
                for layer in range(values.shape[1])
            ]
            for kind, label in enumerate(_LABELS)
        ]
    )
    signed = bool((shown < 0).any())
    figure.update_traces(colorscale="RdBu_r" if signed else "Blues", showscale=False)
    if signed:
        bound = float(shown.abs().max())
        figure.update_traces(zmin=-bound, zmax=bound)
    figure.update_xaxes(title="layer")
    figure.update_layout(margin={"l": 110})
    return figure


def _short(value: float, statistic: str) -> str:
    """A share in % to one place, or another statistic to three figures."""
    if statistic != "top":
        return f"{value:.3g}"
    return "<0.1" if 0 < value < 0.05 else f"{value:.1f}"


def category_effect(effect: CategoryEffect) -> "go.Figure":
    """Draw what answers lose without the neurons of each kind, beside as many random ones.

    Args:
        effect: From `lens_lang.category_effect`.

    Returns:
        One panel per kind: the change of the answers' log-probability by language, with 95 %
        intervals, and in grey the mean of the random sets with where one more would lie.
    """
    table = effect.summary()
    figure, places = panels(list(_LABELS))
    drawn = effect.control.shape[1] > 0
    for kind, (category, place) in enumerate(zip(CATEGORIES, places, strict=True)):
        rows = table[table["category"] == category]
        row, column = place
        series = [("these neurons off", "delta", colour_of(kind, _LABELS[kind]))]
        if drawn:
            series.append(("as many random ones", "control", "#8a8f98"))
        for name, key, colour in series:
            low, high = rows[f"{key}_low"], rows[f"{key}_high"]
            figure.add_scatter(
                x=rows["language"].tolist(),
                y=rows[key].tolist(),
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": (high - rows[key]).tolist(),
                    "arrayminus": (rows[key] - low).tolist(),
                },
                mode="markers",
                marker={"color": colour, "size": 9, "symbol": "circle" if key == "delta" else "x"},
                name=name,
                legendgroup=name,
                showlegend=kind == 0,
                customdata=[
                    f"{lang}: {value:+.3f} nats{interval_text(a, b)}"
                    for lang, value, a, b in zip(
                        rows["language"], rows[key], low, high, strict=True
                    )
                ],
                hovertemplate="%{customdata}<extra>" + name + "</extra>",
                row=row,
                col=column,
            )
    figure.add_hline(y=0, line={"color": AXIS, "width": 1})
    title = "Answers' log-probability without the neurons of each kind (nats)"
    finish_panels(figure, f"{title}, {len(effect.names)} examples", len(places))
    figure.update_xaxes(title="", type="category")
    figure.update_yaxes(title="change, nats", col=1)
    return figure


def shared_and_right(effect: CategoryEffect) -> "go.Figure":
    """Draw whether answers are right where more neurons are all-shared.

    Args:
        effect: From `lens_lang.category_effect`.

    Returns:
        One point per language: the share of all-shared neurons in examples that it answers
        rightly, less that in those it answers wrongly, with a 95 % interval.
    """
    table = effect.by_correctness()
    rows = table[table["category"] == "all_shared"]
    figure = figure_class()()
    points = 100 * torch.tensor(rows[["difference", "ci_low", "ci_high"]].to_numpy())
    figure.add_scatter(
        x=[
            f"{lang} ({right}/{right + wrong})"
            for lang, right, wrong in zip(
                rows["language"], rows["n_right"], rows["n_wrong"], strict=True
            )
        ],
        y=points[:, 0].tolist(),
        error_y={
            "type": "data",
            "symmetric": False,
            "array": (points[:, 2] - points[:, 0]).tolist(),
            "arrayminus": (points[:, 0] - points[:, 1]).tolist(),
        },
        mode="markers",
        marker={"color": colour_of(0, EVERY), "size": 9},
        hovertemplate="%{x}: %{y:+.2f} points<extra></extra>",
    )
    figure.add_hline(y=0, line={"color": AXIS, "width": 1})
    set_style(figure, "All-shared neurons: right less wrong answers", 360)
    figure.update_xaxes(title="language (right / all)", type="category", gridcolor=AXIS)
    figure.update_yaxes(title="percentage points", gridcolor=AXIS)
    return figure
