"""Single neurons by their names: ``(12, 1542)`` or ``"12.1542"``, and sets of them."""

import operator
import re
from collections.abc import Iterable
from typing import Any

import torch

from lens_lang.errors import OptionError
from lens_lang.neurons import NeuronSet
from lens_lang.sites import MLP_POST, HookedModel, Site, n_layers, site_width

NeuronName = str | tuple[int, int]
"""One neuron: ``(layer, index)``, or ``"layer.index"``."""


def neuron_place(neuron: NeuronName) -> tuple[int, int]:
    """Return a neuron's layer and index.

    Args:
        neuron: ``(12, 1542)`` or ``"12.1542"``.

    Raises:
        OptionError: It is neither.

    Examples:
        >>> neuron_place("12.1542")
        (12, 1542)
    """
    if isinstance(neuron, str):
        found = re.fullmatch("([0-9]+)[.]([0-9]+)", neuron)
        if found:
            return int(found[1]), int(found[2])
    else:
        try:
            layer, index = map(operator.index, neuron)
            return layer, index
        except (TypeError, ValueError):
            pass
    raise OptionError(
        f"A neuron is (layer, index) or 'layer.index', such as (12, 1542), got {neuron!r}"
    )


def neuron_places(neurons: Iterable[NeuronName]) -> list[tuple[int, int]]:
    """Return the layers and indices of several neurons.

    Args:
        neurons: Such as ``[(12, 1542)]`` or ``["12.1542"]``.

    Raises:
        OptionError: One of them is no neuron, or they are one neuron instead of a list.
    """
    given: list[Any] = list(neurons)
    if isinstance(neurons, str) or any(isinstance(each, int) for each in given):
        raise OptionError(f"Neurons come in a list: write [{neurons!r}]")
    return [neuron_place(each) for each in given]


def neuron_set(
    model: HookedModel, neurons: Iterable[NeuronName], *, site: Site = MLP_POST
) -> NeuronSet:
    """Return single neurons of a model as a set. Whole heads are `lens_lang.head_set`.

    Args:
        model: The model.
        neurons: Such as ``[(12, 1542)]`` or ``["12.1542"]``.
        site: Where the neurons live.

    Raises:
        OptionError: The model has no such layer or neuron, or these are not neurons.
        SiteError: The model has no such site.
    """
    chosen = neuron_places(neurons)
    shape = (n_layers(model), site_width(model, site))
    for layer, index in chosen:
        if not (0 <= layer < shape[0] and 0 <= index < shape[1]):
            raise OptionError(
                f"There is no neuron {layer}.{index} at {site.name}: this model has {shape[0]} "
                f"layers of {shape[1]} neurons"
            )
    pairs = torch.tensor(chosen, dtype=torch.int64).view(-1, 2)
    return NeuronSet.from_indices(pairs, site=site, shape=shape)
