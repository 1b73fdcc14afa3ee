"""Figures: one function per result, which returns a plotly figure and never shows it.

Languages keep their order, and each keeps its colour across figures. Maps of differences are
centred at 0. Axes carry their units.
"""

from lens_lang.plot.categories import (
    category_contributions,
    category_effect,
    shared_and_right,
    sharing,
)
from lens_lang.plot.effect import perplexity_matrix
from lens_lang.plot.layers import (
    head_attention,
    language_curve,
    latent_language,
    layer_languages,
    lens_table,
    token_languages,
)
from lens_lang.plot.neurons import depth_profile, neurons_per_layer, overlap

__all__ = [
    "category_contributions",
    "category_effect",
    "depth_profile",
    "head_attention",
    "language_curve",
    "latent_language",
    "layer_languages",
    "lens_table",
    "neurons_per_layer",
    "overlap",
    "perplexity_matrix",
    "shared_and_right",
    "sharing",
    "token_languages",
]
