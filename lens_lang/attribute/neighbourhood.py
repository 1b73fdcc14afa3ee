"""Where a neuron stands: among its language's neurons, and among those that write alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lens_lang.attribute.writing import Writing
from lens_lang.errors import SiteError
from lens_lang.neurons import LanguageNeurons
from lens_lang.sites import MLP_POST, MLP_PRE, HookedModel, Site, check_layers

NEAREST = 5
"""Neurons of the same layer that a neighbourhood names."""


@dataclass(frozen=True)
class Neighbour:
    """A neuron of the same layer that writes alike.

    Attributes:
        index: Its place in the layer.
        cosine: Of the angle between what the two write, -1 to 1.
        languages: The languages it belongs to; empty where no sets were given.
    """

    index: int
    cosine: float
    languages: tuple[str, ...]


@dataclass(frozen=True)
class Neighbourhood:
    """Where a neuron stands in its layer and in the model.

    Attributes:
        layer: The neuron's layer.
        width: How many neurons a layer has.
        nearest: Neurons of the same layer whose output vectors have the highest cosine with its
            own, highest first; of equal ones the lower index first.
        languages: The languages it belongs to; empty where no sets were given.
        per_layer: By language how many neurons lie in each layer; empty where no sets were given.
        method: How the sets were found.
    """

    layer: int
    width: int
    nearest: tuple[Neighbour, ...]
    languages: tuple[str, ...] = ()
    per_layer: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    method: str = ""


def neighbourhoods(
    each: Writing, layer: int, indices: Sequence[int], neurons: LanguageNeurons | None = None
) -> list[Neighbourhood]:
    """Look around neurons of one layer.

    Args:
        each: What the neurons of the layer write.
        layer: The layer.
        indices: The neurons' places in it.
        neurons: The neurons of each language, at the MLP.

    Returns:
        One for each neuron.

    Raises:
        SiteError: `neurons` are of attention only.
    """
    vectors = each.vectors  # widened once: a layer can be large
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-20)
    cosines = (unit[list(indices)] @ unit.T).cpu()
    cosines[torch.arange(len(indices)), list(indices)] = -torch.inf
    # stable: of equal ones the lower index stands first
    order = cosines.sort(dim=1, descending=True, stable=True)
    count = min(NEAREST, len(unit) - 1)
    per_layer, method = {}, ""
    if neurons is not None:
        site = mlp_site(neurons)
        method = str(neurons.provenance.get("method", ""))
        per_layer = {lang: tuple(some.per_layer(site).tolist()) for lang, some in neurons.items()}
    return [
        Neighbourhood(
            layer,
            len(unit),
            tuple(
                Neighbour(place, cosine, _languages(neurons, layer, place))
                for place, cosine in zip(
                    order.indices[row, :count].tolist(),
                    order.values[row, :count].tolist(),
                    strict=True,
                )
            ),
            _languages(neurons, layer, index),
            per_layer,
            method,
        )
        for row, index in enumerate(indices)
    ]


def mlp_site(neurons: LanguageNeurons) -> Site:
    """Return the site at which sets speak of MLP neurons.

    Args:
        neurons: The neurons of each language.

    Raises:
        SiteError: They do not.
    """
    for site in (MLP_POST, MLP_PRE):
        if site in neurons.sites:
            return site
    held = ", ".join(site.name for site in neurons.sites)
    raise SiteError(f"The languages' neurons are at {held}, and this is a neuron of an MLP")


def check_neurons(model: HookedModel, neurons: LanguageNeurons) -> None:
    """Refuse sets that do not speak of this model's MLP neurons.

    Args:
        model: The model.
        neurons: The neurons of each language.

    Raises:
        SiteError: They are of attention only.
        ShapeError: They belong to another model.
    """
    site = mlp_site(neurons)
    layers, width = next(iter(neurons.values())).masks[site].shape
    check_layers(model, site, (layers, width))


def _languages(neurons: LanguageNeurons | None, layer: int, index: int) -> tuple[str, ...]:
    if neurons is None:
        return ()
    site = mlp_site(neurons)
    return tuple(lang for lang, some in neurons.items() if bool(some.masks[site][layer, index]))
