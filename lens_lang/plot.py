"""Figures: one function per result, which returns a plotly figure and never shows it.

Languages keep their order, and each keeps its colour across figures. Maps of differences are
centred at 0. Axes carry their units.
"""

from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import MissingExtraError
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.neurons import LanguageNeurons
from lens_lang.sites import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go

_AXIS = "rgba(128,128,128,0.35)"
_SITE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")  # told apart by all eyes


def _plotly() -> "type[go.Figure]":
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise MissingExtraError("Drawing a figure", "plot") from None
    return go.Figure


def neurons_per_layer(neurons: LanguageNeurons, *, site: Site | None = None) -> "go.Figure":
    """Draw how many neurons each language has in each layer.

    Args:
        neurons: The neurons.
        site: Where; None takes the first site.

    Returns:
        A map, languages by layers; the last row counts distinct neurons.
    """
    site = site or neurons.sites[0]
    rows = [found.per_layer(site) for found in neurons.values()]
    rows.append(neurons.union().per_layer(site))
    counts = torch.stack(rows)
    labels = [*neurons.languages, "any"]
    figure = _heat_map(
        counts.double().sqrt(),  # colours by square root, or one layer hides the others
        labels,
        [str(layer) for layer in range(counts.shape[1])],
        text=[[str(n) if n else "" for n in row] for row in counts.tolist()],
        hover="%{y}, layer %{x}: %{text} neurons<extra></extra>",
        title=f"Neurons per layer at {site.name}",
    )
    figure.update_traces(colorscale="Blues", showscale=False)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="language")
    return figure


def depth_profile(neurons: LanguageNeurons) -> "go.Figure":
    """Draw which share of each layer belongs to a language, for every structure of the model.

    Args:
        neurons: Neurons at one or several sites.

    Returns:
        One line per site: the share of the layer's neurons, averaged over languages; hovering
        shows numbers, and the languages with fewest and most.
    """
    figure = _plotly()()
    for position, site in enumerate(neurons.sites):
        counts = torch.stack([found.per_layer(site) for found in neurons.values()])
        width = neurons.union().masks[site].shape[1]
        least, most = counts.min(0), counts.max(0)
        details = [
            f"{site.name}, layer {layer}: {mean:.1f} of {width} neurons on average<br>"
            f"fewest: {neurons.languages[fewest]} {low}, most: {neurons.languages[highest]} {high}"
            for layer, (mean, low, fewest, high, highest) in enumerate(
                zip(
                    counts.double().mean(0).tolist(),
                    least.values.tolist(),
                    least.indices.tolist(),
                    most.values.tolist(),
                    most.indices.tolist(),
                    strict=True,
                )
            )
        ]
        figure.add_scatter(
            x=list(range(counts.shape[1])),
            y=(100 * counts.double().mean(0) / width).tolist(),
            name=site.name,
            mode="lines+markers",
            line={"color": _SITE_COLOURS[position % len(_SITE_COLOURS)], "width": 2},
            marker={"symbol": position, "size": 8},
            customdata=details,
            hovertemplate="%{customdata}<extra></extra>",
        )
    _set_style(figure, "Share of a layer's neurons per language (mean)", 360)
    figure.update_layout(legend={"orientation": "h", "y": -0.25})
    figure.update_xaxes(title="layer", gridcolor=_AXIS, zeroline=False)
    figure.update_yaxes(title="% of the layer's neurons", gridcolor=_AXIS, rangemode="tozero")
    return figure


def overlap(
    neurons: LanguageNeurons, *, measure: Literal["count", "jaccard", "containment"] = "jaccard"
) -> "go.Figure":
    """Draw how much the languages' neurons overlap.

    Args:
        neurons: The neurons.
        measure: See `LanguageNeurons.overlap`.

    Returns:
        A map, languages by languages. Hovering shows counts beside what chance would give.
    """
    table = neurons.overlap(measure)
    counts, expected = neurons.overlap("count"), neurons.overlap("expected")
    values = torch.tensor(table.to_numpy().copy())
    style = "{:.0f}" if measure == "count" else "{:.2f}"
    shown = values.nan_to_num(0.0)
    shown.fill_diagonal_(0.0)  # a language with itself would set the scale
    names = list(neurons.languages)
    figure = _heat_map(
        shown,
        names,
        names,
        text=[
            ["" if i == j or value != value else style.format(value) for j, value in enumerate(row)]
            for i, row in enumerate(values.tolist())
        ],
        hover="%{customdata}<extra></extra>",
        title=f"Overlap of neurons ({measure})",
    )
    details = [
        [
            f"{row} and {column}: {float(counts.at[row, column]):.0f} in common, "  # type: ignore[arg-type]
            f"{float(expected.at[row, column]):.2f} by chance"  # type: ignore[arg-type]
            for column in names
        ]
        for row in names
    ]
    figure.update_traces(customdata=details, colorscale="Blues", showscale=False)
    figure.update_xaxes(title="language")
    figure.update_yaxes(title="language")
    return figure


def perplexity_matrix(matrix: PerplexityMatrix) -> "go.Figure":
    """Draw what each intervention does to each language, with the controls below.

    Args:
        matrix: The measurement.

    Returns:
        A map of the change in nats per token, red where a language is hurt. The last row is
        the mean of the random controls of the language's own intervention (or of all
        interventions, where none has its name).
    """
    delta, ci = matrix.delta_nll, matrix.ci
    labels = list(matrix.interventions)
    hover = [
        [
            f"{name} neurons changed, {lang} read: {delta[i, j]:+.3f} nats/token "
            f"[{ci[i, j, 0]:+.3f}, {ci[i, j, 1]:+.3f}]"
            for j, lang in enumerate(matrix.languages)
        ]
        for i, name in enumerate(matrix.interventions)
    ]
    if matrix.n_controls:
        row, notes = _control_row(matrix)
        delta = torch.cat([delta, row[None]])
        labels.append("random control")
        hover.append(notes)
    figure = _heat_map(
        delta,
        labels,
        list(matrix.languages),
        text=[["" if x != x else f"{x:+.2f}" for x in line] for line in delta.tolist()],
        hover="%{customdata}<extra></extra>",
        title="Change of NLL in nats per token (row: intervention, column: language read)",
    )
    bound = float(delta.nan_to_num().abs().max()) or 1.0  # a control may not be measured
    figure.update_traces(
        customdata=hover,
        colorscale="RdBu_r",
        zmin=-bound,
        zmax=bound,
        colorbar={"title": "nats per token"},
    )
    figure.update_xaxes(title="language read")
    figure.update_yaxes(title="intervention")
    return figure


def _control_row(matrix: PerplexityMatrix) -> tuple[Float[Tensor, "lang"], list[str]]:
    control, ci = matrix.control, matrix.control_ci
    values, notes = [], []
    for j, lang in enumerate(matrix.languages):
        own = lang in matrix.interventions
        rows = [matrix.interventions.index(lang)] if own else list(range(len(control)))
        values.append(control[rows, j].nanmean())
        low, high = ci[rows, j].nanmean(0).tolist()
        notes.append(
            f"{matrix.n_controls} random sets as large as {lang if own else 'the others'}, "
            f"{lang} read: {values[-1]:+.3f} nats/token [{low:+.3f}, {high:+.3f}]"
        )
    return torch.stack(values), notes


def _heat_map(
    values: Float[Tensor, "row column"],
    rows: list[str],
    columns: list[str],
    *,
    text: list[list[str]],
    hover: str,
    title: str,
) -> "go.Figure":
    """A map with its first row on top, numbers in its cells, and no background of its own."""
    figure_class = _plotly()
    figure = figure_class()
    figure.add_heatmap(
        z=values.tolist(),
        x=columns,
        y=rows,
        text=text,
        texttemplate="%{text}",
        hovertemplate=hover,
        xgap=1,
        ygap=1,
    )
    _set_style(figure, title, 110 + 32 * len(rows))
    # Names of languages and layers are labels, not numbers on a scale.
    figure.update_xaxes(type="category", gridcolor=_AXIS)
    figure.update_yaxes(type="category", autorange="reversed", gridcolor=_AXIS)
    return figure


def _set_style(figure: "go.Figure", title: str, height: int) -> None:
    """What all figures share: no background of their own, so that they fit light and dark."""
    figure.update_layout(
        title=title,
        height=height,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "gray", "activecolor": "gray"},
    )
