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
from lens_lang.plot.generation import generation_matrix, spoken_languages, steering_curve
from lens_lang.plot.layers import (
    head_attention,
    language_curve,
    latent_language,
    layer_languages,
    lens_table,
    token_languages,
)
from lens_lang.plot.neurons import depth_profile, neurons_per_layer, overlap
from lens_lang.plot.tasks import mwork, task_matrix

__all__ = [
    "category_contributions",
    "category_effect",
    "depth_profile",
    "generation_matrix",
    "head_attention",
    "language_curve",
    "latent_language",
    "layer_languages",
    "lens_table",
    "mwork",
    "neurons_per_layer",
    "overlap",
    "perplexity_matrix",
    "shared_and_right",
    "sharing",
    "spoken_languages",
    "steering_curve",
    "task_matrix",
    "token_languages",
]
