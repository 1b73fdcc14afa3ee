"""Figure of one neuron's card."""

from html import escape
from typing import TYPE_CHECKING

from lens_lang.attribute.card import NeuronCard
from lens_lang.attribute.markup import change_text, visible
from lens_lang.attribute.promotion import Item
from lens_lang.plot.style import AXIS, NO_LANGUAGE, colour_of, figure_class, set_style
from lens_lang.signs import Sign
from lens_lang.vocabulary import OTHER

if TYPE_CHECKING:
    import plotly.graph_objects as go

_FIRING, _LAYERS, _EFFECT, _ITEMS = (1, 1), (1, 2), (2, 1), (2, 2)
_SIGNS: dict[Sign, str] = {
    "positive": "where it fires it is above 0",
    "negative": "where it fires it is below 0",
    "either": "where it fires it is now above 0, now below",
    "unknown": "its sign where it fires is not known",
}
_LONGEST = 16
"""Letters of a vocabulary item that fit beside its bar."""


def neuron_card(card: NeuronCard) -> "go.Figure":
    """Draw what is known of one neuron.

    Args:
        card: The card.

    Returns:
        Four panels: on which share of each language's tokens the neuron fires; how many neurons
        each language has in each layer, with the neuron's layer framed; what each language loses
        without the neuron, with 95 % intervals, beside random neurons of its layer; and the
        vocabulary items that it promotes where its activation is positive, to the right, and where
        it is negative, to the left. A panel says where nothing was measured.
    """
    figure_class()
    from plotly.subplots import make_subplots

    drawn = max((each.controls for each in card.effect), default=0)
    figure = make_subplots(
        rows=2,
        cols=2,
        row_heights=[0.4, 0.6],
        subplot_titles=[
            "Tokens at which it fires (%)",
            f"Neurons per layer; framed: layer {card.layer}",
            "Change of NLL without it (nats per token)",
            f"Promotes; right: activation above 0, left: below<br>{_SIGNS[card.sign]}",
        ],
        vertical_spacing=0.16,
        horizontal_spacing=0.17,
    )
    _draw_firing(figure, card)
    _draw_layers(figure, card)
    _draw_effect(figure, card, drawn)
    _draw_items(figure, card)
    model = escape(visible(str(card.provenance.get("model", "a model"))), quote=False)
    set_style(figure, f"Neuron {card.name} of {model}", 720)
    figure.update_annotations(font_size=13)
    figure.update_layout(
        showlegend=bool(drawn),
        legend={"orientation": "h", "x": 0, "y": -0.12, "yanchor": "top"},
        margin={"t": 90, "b": 90},
    )
    return figure


def _draw_firing(figure: "go.Figure", card: NeuronCard) -> None:
    if not card.firing:
        _say_not_measured(figure, _FIRING)
        return
    values = [100 * x for x in card.firing.values()]
    row, column = _FIRING
    figure.add_bar(
        x=[_plain(lang) for lang in card.firing],
        y=values,
        marker_color=[_colour(card, lang) for lang in card.firing],
        customdata=[
            f"{card.firing_tokens[lang]:,} tokens" if lang in card.firing_tokens else "tokens"
            for lang in card.firing
        ],
        hovertemplate="%{x}: fires at %{y:.2f} % of %{customdata}<extra></extra>",
        name="firing",
        showlegend=False,
        row=row,
        col=column,
    )
    figure.update_xaxes(type="category", showgrid=False, row=row, col=column)
    figure.update_yaxes(gridcolor=AXIS, rangemode="tozero", row=row, col=column)


def _draw_layers(figure: "go.Figure", card: NeuronCard) -> None:
    per_layer = card.neighbourhood.per_layer
    if not per_layer:
        _say_not_measured(figure, _LAYERS)
        return
    counts = [list(each) for each in per_layer.values()]
    row, column = _LAYERS
    figure.add_heatmap(
        z=[[n**0.5 for n in each] for each in counts],  # or one layer hides the others
        x=list(range(len(counts[0]))),
        y=[_plain(lang) for lang in per_layer],
        customdata=counts,
        hovertemplate="%{y}, layer %{x}: %{customdata} neurons<extra></extra>",
        colorscale="Blues",
        showscale=False,
        xgap=1,
        ygap=1,
        name="neurons",
        row=row,
        col=column,
    )
    figure.add_shape(
        type="rect",
        x0=card.layer - 0.5,
        x1=card.layer + 0.5,
        y0=-0.5,
        y1=len(counts) - 0.5,
        line={"color": "#D55E00", "width": 2.5},
        row=row,
        col=column,
    )
    figure.update_xaxes(title="layer", row=row, col=column)
    figure.update_yaxes(type="category", autorange="reversed", row=row, col=column)


def _draw_effect(figure: "go.Figure", card: NeuronCard, drawn: int) -> None:
    if not card.effect:
        _say_not_measured(figure, _EFFECT)
        return
    row, column = _EFFECT
    places = list(range(len(card.effect)))
    figure.add_scatter(
        x=[place - 0.16 for place in places],
        y=[each.delta_nll for each in card.effect],
        error_y={
            "array": [_reach(each.ci_high, each.delta_nll) for each in card.effect],
            "arrayminus": [_reach(each.delta_nll, each.ci_low) for each in card.effect],
            "color": NO_LANGUAGE,
            "thickness": 1.5,
        },
        mode="markers",
        marker={"color": [_colour(card, each.language) for each in card.effect], "size": 9},
        customdata=[
            f"{_plain(each.language)} without it: "
            f"{change_text(each.delta_nll, each.ci_low, each.ci_high)} nats/token, "
            f"{each.tokens:,} tokens"
            for each in card.effect
        ],
        hovertemplate="%{customdata}<extra></extra>",
        name="without it",
        row=row,
        col=column,
    )
    beside = [
        (place, each, each.control)
        for place, each in zip(places, card.effect, strict=True)
        if each.control is not None
    ]
    if beside:
        figure.add_scatter(
            x=[place + 0.16 for place, _, _ in beside],
            y=[control for _, _, control in beside],
            error_y={
                "array": [_reach(each.control_high, control) for _, each, control in beside],
                "arrayminus": [_reach(control, each.control_low) for _, each, control in beside],
                "color": NO_LANGUAGE,
                "thickness": 1,
            },
            mode="markers",
            marker={"color": NO_LANGUAGE, "size": 8, "symbol": "diamond-open"},
            customdata=[
                f"{_plain(each.language)} without a random neuron of the layer: "
                f"{change_text(control, each.control_low, each.control_high)} nats/token"
                for _, each, control in beside
            ],
            hovertemplate="%{customdata}<extra></extra>",
            name=f"without a random neuron of its layer ({drawn} drawn)",
            row=row,
            col=column,
        )
    figure.update_xaxes(
        tickvals=places,
        ticktext=[_plain(each.language) for each in card.effect],
        gridcolor=AXIS,
        zeroline=False,
        row=row,
        col=column,
    )
    figure.update_yaxes(
        gridcolor=AXIS, zerolinecolor=AXIS, exponentformat="none", row=row, col=column
    )


def _draw_items(figure: "go.Figure", card: NeuronCard) -> None:
    row, column = _ITEMS
    items = [*card.promoted, *card.suppressed]
    places = list(range(len(items)))
    figure.add_bar(
        x=[item.score for item in items],
        y=places,
        orientation="h",
        marker_color=[_colour(card, item.language) for item in items],
        customdata=[f"{_plain(repr(item.text))} ({_plain(item.language)})" for item in items],
        hovertemplate="%{customdata}: %{x:+.3f}<extra></extra>",
        name="items",
        showlegend=False,
        row=row,
        col=column,
    )
    figure.update_xaxes(
        title="score at activation 1", gridcolor=AXIS, zerolinecolor=AXIS, row=row, col=column
    )
    figure.update_yaxes(
        tickvals=places,
        ticktext=[_tick(item) for item in items],
        autorange="reversed",
        tickfont={"size": 11},
        row=row,
        col=column,
    )


def _say_not_measured(figure: "go.Figure", place: tuple[int, int]) -> None:
    row, column = place
    figure.add_scatter(
        x=[0],
        y=[0],
        mode="text",
        text=["not measured"],
        hoverinfo="skip",
        showlegend=False,
        row=row,
        col=column,
    )
    figure.update_xaxes(visible=False, row=row, col=column)
    figure.update_yaxes(visible=False, row=row, col=column)


def _languages(card: NeuronCard) -> list[str]:
    """In one order, so that a language has one colour in all panels."""
    named = [
        *card.firing,
        *card.neighbourhood.per_layer,
        *(each.language for each in card.effect),
        *card.promoted_languages,
    ]
    return list(dict.fromkeys(lang for lang in named if lang != OTHER))


def _colour(card: NeuronCard, label: str) -> str:
    known = _languages(card)
    return colour_of(known.index(label) if label in known else len(known), label)


def _plain(text: str) -> str:
    """Text as plotly shows it, which reads tags."""
    return escape(visible(text), quote=False)


def _tick(item: Item) -> str:
    """The item, cut, and its language if it has one: colour is not to be the only sign."""
    shown = repr(item.text)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}\u2026"
    return _plain(shown if item.language == OTHER else f"{shown} ({item.language})")


def _reach(high: float | None, low: float | None) -> float:
    """Length of an interval's arm; none where it was not measured."""
    return 0.0 if high is None or low is None else high - low
