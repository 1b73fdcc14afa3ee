"""Figures of what interventions do."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.plot.style import heat_map, interval_text

if TYPE_CHECKING:
    import plotly.graph_objects as go


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
            f"{name} neurons changed, {lang} read: {delta[i, j]:+.3f} nats/token"
            + interval_text(*ci[i, j].tolist())
            for j, lang in enumerate(matrix.languages)
        ]
        for i, name in enumerate(matrix.interventions)
    ]
    if matrix.n_controls:
        row, notes = _control_row(matrix)
        delta = torch.cat([delta, row[None]])
        labels.append("random control")
        hover.append(notes)
    figure = heat_map(
        delta,
        labels,
        list(matrix.languages),
        text=[["" if x != x else _signed(x) for x in line] for line in delta.tolist()],
        hover="%{customdata}<extra></extra>",
        title="Change of NLL in nats per token",
    )
    bound = float(delta.nan_to_num().abs().max()) or 1.0  # a control may not be measured
    figure.update_traces(
        customdata=hover,
        colorscale="RdBu_r",
        zmin=-bound,
        zmax=bound,
        colorbar={"title": "nats per token"},
        showscale=len(labels) > 3,  # the numbers stand in the cells; a bar needs room
    )
    figure.update_xaxes(title="language read")
    figure.update_yaxes(title="intervention")
    return figure


def _signed(value: float) -> str:
    """To two places, and nothing has no sign."""
    return f"{value:+.2f}" if abs(value) >= 0.005 else "0.00"


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
            f"{lang} read: {values[-1]:+.3f} nats/token{interval_text(low, high)}"
        )
    return torch.stack(values), notes
