"""Figures of what layers and heads say, in which language."""

from typing import TYPE_CHECKING

import torch

from lens_lang.curves import LanguageCurve
from lens_lang.errors import OptionError
from lens_lang.heads import HeadAttention
from lens_lang.languages import find_language
from lens_lang.latent import LatentLanguages
from lens_lang.lens import LensTable
from lens_lang.plot.style import (
    NO_LANGUAGE,
    SPOKEN,
    add_note,
    colour_of,
    finish_panels,
    heat_map,
    line_with_band,
    panels,
)
from lens_lang.plot.views import View
from lens_lang.vocabulary import OTHER

if TYPE_CHECKING:
    import plotly.graph_objects as go


def language_curve(curve: LanguageCurve) -> "go.Figure":
    """Draw how much of each layer's prediction belongs to each language.

    Args:
        curve: The measurement; ``curve.story()`` draws English, own and other languages, which
            is easier to read than all at once.

    Returns:
        One panel per language of the prompts, one line per label with its 95 % interval. Layer
        0 are the embeddings.
    """
    change = curve.is_difference
    mean, ci = curve.mean, curve.ci
    if not change:  # a label without any share, such as the own language beside English
        nothing = (mean == 0).all(1)[:, None]
        mean = mean.masked_fill(nothing, float("nan"))
        ci = ci.masked_fill(nothing[..., None], float("nan"))
    figure, places = panels([f"prompts in {lang}" for lang in curve.groups])
    for group, place in enumerate(places):
        for column, label in enumerate(curve.labels):
            line_with_band(
                figure,
                SPOKEN.get(label, label),
                mean[group, :, column],
                ci[group, :, column],
                colour=colour_of(column, label),
                place=place,
                in_legend=group == 0,
            )
    figure.update_yaxes(rangemode="normal" if change else "tozero")
    figure.update_yaxes(title="change" if change else "share", col=1)
    title = "Change of the language of each layer" if change else "Language of each layer"
    finish_panels(figure, f"{title} (logit lens)", len(places))
    return figure


def layer_languages(curve: LanguageCurve, *, prompts: str | None = None) -> "go.Figure":
    """Draw the language of each layer as a map: languages by layers.

    Args:
        curve: The measurement.
        prompts: The prompts of one language; None takes the first.

    Returns:
        A map of shares.

    Raises:
        LanguageError: There are no prompts in that language.
    """
    group = 0 if prompts is None else find_language(prompts, curve.groups)
    values = curve.mean[group].T
    figure = heat_map(
        values,
        [SPOKEN.get(label, label) for label in curve.labels],
        [str(layer) for layer in range(values.shape[1])],
        text=[[f"{100 * x:.0f}" if abs(x) >= 0.05 else "" for x in row] for row in values.tolist()],
        hover="%{y}, layer %{x}: %{z:.3f}<extra></extra>",
        title=f"{'Change of the l' if curve.is_difference else 'L'}anguage of each layer, prompts "
        f"in {curve.groups[group]} (% of the prediction)",
    )
    named = float(values[:-1].abs().max()) if len(values) > 1 else 1.0
    figure.update_traces(showscale=False, zmax=named or 1.0)
    if float(values.abs().max()) > named > 0:
        add_note(figure, f"Colours stop at {100 * named:.0f} %, the most of any named language.")
    if curve.is_difference:
        figure.update_traces(colorscale="RdBu_r", zmin=-(named or 1.0))
    else:
        figure.update_traces(colorscale="Blues", zmin=0)
    figure.update_xaxes(title="layer (0: embeddings)")
    figure.update_yaxes(title="language")
    return figure


def lens_table(table: LensTable) -> "go.Figure":
    """Draw what every layer would say next at every position: the picture of the logit lens.

    Args:
        table: From `lens_lang.lens.lens_table`.

    Returns:
        A map, the last layer on top, with the likeliest item in each cell, coloured by the
        item's language, or grey for none. Hovering shows more items, and the languages of the
        whole prediction. It is as wide as the prompt is long.
    """
    layers, positions, _ = table.share.shape
    labels = [*table.languages, OTHER]
    main = table.top_label[..., 0]
    rows = list(range(layers - 1, -1, -1))
    steps = [
        (edge, colour_of(column, label))
        for column, label in enumerate(labels)
        for edge in (column / len(labels), (column + 1) / len(labels))
    ]
    details = [
        [
            f"layer {layer}, after {table.pieces[pos]!r}:<br>"
            + ", ".join(
                f"{item!r} {probability:.2f}"
                for item, probability in zip(
                    table.top_text[layer][pos],
                    table.probability[layer, pos].tolist(),
                    strict=True,
                )
            )
            + "<br>"
            + ", ".join(
                f"{label} {share:.2f}"
                for label, share in sorted(
                    zip(labels, table.share[layer, pos].tolist(), strict=True),
                    key=lambda each: -each[1],
                )[:4]
            )
            for pos in range(positions)
        ]
        for layer in rows
    ]
    figure = heat_map(
        torch.stack([main[layer] for layer in rows]).double() + 0.5,
        [str(layer) for layer in rows],
        [f"{pos}: {piece}" for pos, piece in enumerate(table.pieces)],
        text=[
            [_short(table.top_text[layer][pos][0]) for pos in range(positions)] for layer in rows
        ],
        hover="%{customdata}<extra></extra>",
        title="What each layer would say next; colour: the language of that item",
    )
    figure.update_traces(
        customdata=details,
        colorscale=steps,
        zmin=0,
        zmax=len(labels),
        textfont={"color": "white", "size": 11},
        colorbar={
            "tickvals": [column + 0.5 for column in range(len(labels))],
            "ticktext": labels,
        },
    )
    figure.update_layout(width=max(700, 240 + 62 * positions))
    figure.update_xaxes(title="token", tickangle=-45)
    figure.update_yaxes(title="layer")
    return figure


def latent_language(latent: LatentLanguages) -> "go.Figure":
    """Draw in which language each layer is about to answer, with entropy and token energy.

    Args:
        latent: The measurement.

    Returns:
        Three panels over layers, lines with 95 % intervals.
    """
    figure, places = panels(["probability of the word", "entropy (bits)", "token energy"])
    for column, label in enumerate(latent.languages):
        line_with_band(
            figure,
            label,
            latent.mean[:, column],
            latent.ci[:, column],
            colour=colour_of(column, label),
            place=places[0],
        )
    for values, ci, name, place in (
        (latent.entropy, latent.entropy_ci, "entropy", places[1]),
        (latent.energy, latent.energy_ci, "energy", places[2]),
    ):
        line_with_band(
            figure, name, values.mean(0), ci, colour=NO_LANGUAGE, place=place, in_legend=False
        )
    figure.update_yaxes(rangemode="tozero")
    prompts = len(latent.probability)
    finish_panels(figure, f"Latent language at the last token of {prompts} prompts", 3)
    return figure


def head_attention(
    attention: HeadAttention, *, measure: str = "entropy", language: str | None = None
) -> "go.Figure":
    """Draw what the heads of a model look at.

    Args:
        attention: The measurement.
        measure: One of its measures.
        language: The language; None draws the mean over all.

    Returns:
        A map, heads by layers.

    Raises:
        OptionError: The measure was not taken.
        LanguageError: The language was not read.
    """
    values = attention[measure]
    row = None if language is None else find_language(language, attention.languages)
    shown = values.mean(0) if row is None else values[row]
    unit = "bits" if measure == "entropy" else "share of attention"
    figure = heat_map(
        shown.T,
        [str(head) for head in range(shown.shape[1])],
        [str(layer) for layer in range(shown.shape[0])],
        text=[[f"{x:.2f}" for x in line] for line in shown.T.tolist()],
        hover="layer %{x}, head %{y}: %{z:.3f}<extra></extra>",
        title=f"Attention heads: {measure} ({unit}), "
        + ("mean over languages" if row is None else str(attention.languages[row])),
    )
    figure.update_traces(colorscale="Blues", showscale=False)
    figure.update_xaxes(title="layer")
    figure.update_yaxes(title="head")
    return figure


def token_languages(table: LensTable, *, layer: int) -> View:
    """Show a prompt's tokens coloured by the language of what one layer would say next.

    Args:
        table: From `lens_lang.lens.lens_table`.
        layer: The layer; 0 are the embeddings, -1 the last.

    Returns:
        A view: a button for each language colours the tokens by its share.

    Raises:
        OptionError: There is no such layer.
    """
    if not -len(table.share) <= layer < len(table.share):
        raise OptionError(f"layer must be below {len(table.share)}, got {layer}")
    return View(
        "ColoredTokensMulti",
        {
            "tokens": list(table.pieces),
            "values": table.share[layer],
            "labels": [*table.languages, OTHER],
        },
        f"Languages of layer {layer if layer >= 0 else layer + len(table.share)}",
    )


def _short(text: str) -> str:
    shown = text.replace("\n", "⏎").strip() or "␣"
    return shown if len(shown) <= 9 else shown[:8] + "…"
