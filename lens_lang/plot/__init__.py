"""Figures and views: one function per result, which returns a plotly figure or a `View`.

Languages keep their order, and each keeps its colour across figures. Maps of differences are
centred at 0. Axes carry their units.
"""

from lens_lang.plot.cards import neuron_card
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
from lens_lang.plot.text import (
    attention_patterns,
    lens_tokens,
    token_activations,
    top_contexts,
)
from lens_lang.plot.views import View, circuitsvis_script, save_views

__all__ = [
    "View",
    "attention_patterns",
    "category_contributions",
    "category_effect",
    "circuitsvis_script",
    "depth_profile",
    "generation_matrix",
    "head_attention",
    "language_curve",
    "latent_language",
    "layer_languages",
    "lens_table",
    "lens_tokens",
    "mwork",
    "neuron_card",
    "neurons_per_layer",
    "overlap",
    "perplexity_matrix",
    "save_views",
    "shared_and_right",
    "sharing",
    "spoken_languages",
    "steering_curve",
    "task_matrix",
    "token_activations",
    "token_languages",
    "top_contexts",
]
