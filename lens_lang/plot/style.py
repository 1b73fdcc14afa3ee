"""What all figures share: colours, maps, panels, lines with their intervals."""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import MissingExtraError
from lens_lang.vocabulary import OTHER

if TYPE_CHECKING:
    import plotly.graph_objects as go

AXIS = "rgba(128,128,128,0.35)"
# told apart by all eyes, as far as that goes
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#B2A100",
    "#44AA99",
    "#332288",
    "#AA4499",
    "#117733",
)
NO_LANGUAGE = "#8a8f98"
SPOKEN = {OTHER: "no language", "others": "other languages"}
"""What columns of a curve are called in a figure, where "others" and "other" would be mixed up."""


def figure_class() -> "type[go.Figure]":
    """Return plotly's figure, or say how to install it."""
    try:
        import plotly.graph_objects as go
    except ImportError:
        raise MissingExtraError("Drawing a figure", "plot") from None
    return go.Figure


def heat_map(
    values: Float[Tensor, "row column"],
    rows: list[str],
    columns: list[str],
    *,
    text: list[list[str]],
    hover: str,
    title: str,
) -> "go.Figure":
    """A map with its first row on top, numbers in its cells, and no background of its own."""
    figure = figure_class()()
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
    set_style(figure, title, 110 + 32 * len(rows))
    # Names of languages and layers are labels, not numbers on a scale.
    figure.update_xaxes(type="category", gridcolor=AXIS)
    figure.update_yaxes(
        type="category", autorange="reversed", gridcolor=AXIS, automargin=True, title_standoff=12
    )
    return figure


def set_style(figure: "go.Figure", title: str, height: int) -> None:
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


def add_note(figure: "go.Figure", note: str) -> None:
    """Keep a sentence with a figure, which the report writes into its caption."""
    figure.update_layout(meta={**(figure.layout.meta or {}), "note": note})


def colour_of(column: int, label: str) -> str:
    """Return the colour of a label by its place; *other* is grey."""
    return NO_LANGUAGE if label in (OTHER, SPOKEN[OTHER]) else COLOURS[column % len(COLOURS)]


def panels(titles: list[str]) -> "tuple[go.Figure, list[tuple[int, int]]]":
    """A figure with up to three panels a row, four in a square, and the place of each."""
    figure_class()
    from plotly.subplots import make_subplots

    columns = beside(len(titles))
    rows = -(-len(titles) // columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=titles,
        shared_yaxes=len(set(titles)) > 3,
        vertical_spacing=min(0.12 if rows < 3 else 0.09, 0.5 / rows),
        horizontal_spacing=0.07,
    )
    return figure, [(n // columns + 1, n % columns + 1) for n in range(len(titles))]


def beside(count: int) -> int:
    """How many of so many panels stand in a row."""
    return 2 if count == 4 else min(3, count)


def finish_panels(figure: "go.Figure", title: str, count: int) -> None:
    """Set the style of a figure made by `panels`, with layers along its axes."""
    columns = beside(count)
    set_style(figure, title, 180 + 230 * -(-count // columns))
    below = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
    figure.update_layout(legend=below, margin={"t": 90, "b": 90})
    figure.update_annotations(font_size=13)
    figure.update_xaxes(gridcolor=AXIS, zeroline=False)
    for panel in range(max(0, count - columns), count):  # the lowest of each column
        figure.update_xaxes(title="layer", row=panel // columns + 1, col=panel % columns + 1)
    figure.update_yaxes(gridcolor=AXIS, zerolinecolor=AXIS)


def line_with_band(
    figure: "go.Figure",
    name: str,
    values: Float[Tensor, "layer"],
    ci: Float[Tensor, "layer 2"],
    *,
    colour: str,
    place: tuple[int, int],
    in_legend: bool = True,
) -> None:
    """A line over layers, on a band between the ends of its interval."""
    layers = list(range(len(values)))
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    row, column = place
    figure.add_scatter(
        x=[*layers, *reversed(layers)],
        y=[*ci[:, 1].tolist(), *reversed(ci[:, 0].tolist())],
        fill="toself",
        fillcolor=f"rgba({red},{green},{blue},0.18)",
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        row=row,
        col=column,
    )
    figure.add_scatter(
        x=layers,
        y=values.tolist(),
        name=name,
        mode="lines",
        line={"color": colour, "width": 2, "dash": "dot" if name == SPOKEN[OTHER] else "solid"},
        legendgroup=name,
        showlegend=in_legend,
        customdata=[
            f"{name}, layer {layer}: {value:.3f}{interval_text(low, high, '.3f')}"
            for layer, value, (low, high) in zip(layers, values.tolist(), ci.tolist(), strict=True)
        ],
        hovertemplate="%{customdata}<extra></extra>",
        row=row,
        col=column,
    )


def interval_text(low: float, high: float, form: str = "+.3f") -> str:
    """Write an interval behind a value.

    Args:
        low: Lower end; NaN where there is no interval.
        high: Upper end.
        form: How numbers are written.

    Examples:
        >>> interval_text(0.5, 1.25, ".2f"), interval_text(float("nan"), float("nan"))
        (' [0.50, 1.25]', '')
    """
    return "" if low != low else f" [{low:{form}}, {high:{form}}]"
