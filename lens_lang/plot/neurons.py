"""Figures of where neurons are and how much they overlap."""

from typing import TYPE_CHECKING, Literal

import torch

from lens_lang.neurons import LanguageNeurons
from lens_lang.plot.style import AXIS, COLOURS, add_note, figure_class, heat_map, set_style
from lens_lang.sites import Site

if TYPE_CHECKING:
    import plotly.graph_objects as go


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
    figure = heat_map(
        counts.double().sqrt(),  # colours by square root, or one layer hides the others
        labels,
        [str(layer) for layer in range(counts.shape[1])],
        text=[[str(n) if n else "" for n in row] for row in counts.tolist()],
        hover="%{y}, layer %{x}: %{text} neurons<extra></extra>",
        title=f"Neurons per layer at {site.name}",
    )
    # of what is drawn and what is written, a download gives the latter
    figure.update_layout(meta={"values": "text"})
    add_note(figure, "Colours are the square root of the count.")
    highest = float(counts.max().sqrt()) or 1.0
    figure.update_traces(colorscale="Blues", showscale=False, zmin=0, zmax=highest)
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
    figure = figure_class()()
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
            line={"color": COLOURS[position % len(COLOURS)], "width": 2},
            marker={"symbol": position, "size": 8},
            customdata=details,
            hovertemplate="%{customdata}<extra></extra>",
        )
    set_style(figure, "Share of a layer's neurons per language (mean)", 360)
    figure.update_layout(legend={"orientation": "h", "y": -0.25})
    figure.update_xaxes(title="layer", gridcolor=AXIS, zeroline=False)
    figure.update_yaxes(title="% of the layer's neurons", gridcolor=AXIS, rangemode="tozero")
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
    figure = heat_map(
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
    highest = float(shown.max()) or 1.0  # no overlap is pale, and not the middle of the scale
    figure.update_traces(
        customdata=details, colorscale="Blues", showscale=False, zmin=0, zmax=highest
    )
    figure.update_xaxes(title="language")
    figure.update_yaxes(title="language")
    return figure
