"""Finding TransformerLens's weights in the tensors of `transformers`.

TransformerLens works on the Hugging Face model itself, but it takes fused projections (queries,
keys and values in one matrix) apart, some of them as copies. Where a part is in a fused tensor is
found by comparing: the rows that equal TransformerLens's part are that part.
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_lang.errors import ModelError
from lens_lang.neurons import NeuronSet
from lens_lang.sites import (
    ATTN_K,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    HookedModel,
    is_gated,
    model_name,
    n_layers,
    site_width,
)
from lens_lang.weights import WeightSlice, neuron_weights

Place = tuple[torch.device, int, torch.Size, tuple[int, ...]]
"""Where in memory a tensor is, and how it is laid out: equal for a weight under all its names."""


@dataclass(frozen=True, eq=False)
class Home:
    """Where the outputs of one of TransformerLens's weights are in a tensor of `transformers`."""

    key: str
    axis: int
    rows: Int[Tensor, "output"]


def place_of(tensor: Tensor) -> Place:
    """Return where in memory a tensor is."""
    return (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())


def switching_weights(model: HookedModel, neurons: NeuronSet) -> list[WeightSlice]:
    """Return the weights that carry what the hook points of the neurons show, and nothing more.

    What a neuron reads with makes its pre-activation, its up-projection or its query; what it
    writes with carries its activation and the weighted values.

    Args:
        model: The bridge.
        neurons: The neurons.
    """
    modules = {
        MLP_PRE: "mlp.gate" if is_gated(model) else "mlp.in",
        MLP_UP: "mlp.in",
        MLP_POST: "mlp.out",
        ATTN_Q: "attn.q",
        ATTN_K: "attn.k",
        ATTN_V: "attn.v",
        ATTN_Z: "attn.o",
    }
    return [
        piece
        for piece in neuron_weights(model, neurons)
        if f".{modules[piece.site]}." in piece.name
    ]


def find_homes(model: Any, tensors: dict[str, Tensor]) -> dict[Place, Home]:
    """Find the weights of TransformerLens that are parts of a fused one of `transformers`.

    Args:
        model: The bridge.
        tensors: The tensors of the Hugging Face model, by its own names.

    Raises:
        ModelError: A weight of the model is in none of the tensors, so it would not be exported.
    """
    places = {place_of(tensor) for tensor in tensors.values()}
    loose = {
        name: parameter
        for name, parameter in model.named_parameters()
        if place_of(parameter) not in places
    }
    homes: dict[Place, Home] = {}
    if any(parameter.ndim > 1 for parameter in loose.values()):
        for parts in _projections(model):
            if any(place_of(part.parameter) not in places for part in parts):
                homes |= _find_fused(model, tensors, parts)
    for name, parameter in loose.items():
        # TransformerLens gives zero biases to projections that have none, such as the unembedding.
        if place_of(parameter) not in homes and bool(parameter.detach().any()):
            shown = name.replace("._original_component", "")
            raise ModelError(
                f"Cannot export {model_name(model)}: {shown} exists only in TransformerLens, and "
                "exporting would lose it"
            )
    return homes


def _projections(model: HookedModel) -> list[list[WeightSlice]]:
    """The weights and biases of projections that may be fused, those of a layer together."""
    sites = [ATTN_Q, ATTN_K, ATTN_V, *([MLP_PRE, MLP_UP] if is_gated(model) else [])]
    layers = n_layers(model)
    everything = NeuronSet(
        {site: torch.ones(layers, site_width(model, site), dtype=torch.bool) for site in sites}
    )
    together: dict[tuple[str, str], list[WeightSlice]] = defaultdict(list)
    for piece in switching_weights(model, everything):
        _, layer, room, *_ = piece.name.split(".")
        together[layer, room].append(piece)
    return list(together.values())


def _find_fused(
    model: HookedModel, tensors: dict[str, Tensor], parts: list[WeightSlice]
) -> dict[Place, Home]:
    """Find the one tensor and the one order of its outputs in which the parts are all there."""
    _, layer, room, *_ = parts[0].name.split(".")
    where = f"{room} of layer {layer}"
    weights = [part for part in parts if part.parameter.ndim > 1]
    biases = {part.name.removesuffix(".bias"): part for part in parts if part.parameter.ndim == 1}
    sizes = [len(part.indices) for part in weights]
    found: list[dict[Place, Home]] = []
    for key, tensor in tensors.items():
        if f".{layer}." not in key or tensor.ndim != 2:
            continue
        fused_bias = key.removesuffix("weight") + "bias"
        for axis in (0, 1):  # of the outputs: GPT-2 keeps its weights as (in, out)
            if tensor.shape[axis] != sum(sizes):
                continue
            for layout in _layouts(sizes, int(model.cfg.d_head)):
                homes: dict[Place, Home] = {}
                for part, rows in zip(weights, layout, strict=True):
                    homes[place_of(part.parameter)] = Home(key, axis, rows)
                    bias = biases.get(part.name.removesuffix(".weight"))
                    if bias is not None and fused_bias in tensors:
                        homes[place_of(bias.parameter)] = Home(fused_bias, 0, rows)
                if all(_is_at(part, homes, tensors) for part in parts):
                    found.append(homes)
    if len(found) == 1:
        return found[0]
    if found:
        raise ModelError(
            f"Cannot export {model_name(model)}: the {where} is fused in the Hugging Face model, "
            "and so uniform (such as all zeros) that the place of a neuron in it cannot be told"
        )
    names = ", ".join(part.name.removesuffix(".weight").split(".")[-1] for part in weights)
    raise ModelError(
        f"Cannot export {model_name(model)}: TransformerLens holds copies of {names} in the "
        f"{where}, and the Hugging Face model has no fused weight that equals them. They were "
        "changed after loading, and exporting would lose the change: change the Hugging Face model "
        "instead, before lens_lang.models.bridge(...)"
    )


def _layouts(sizes: list[int], d_head: int) -> list[tuple[Tensor, ...]]:
    """The orders in which a fused projection can have its parts: where each output of each is."""
    every = torch.arange(sum(sizes))
    layouts = [tuple(torch.split(every, sizes))]  # one after the other
    if len(sizes) == 3 and sizes[1] % d_head == 0:
        # One key-value head after the other: its queries, its key, its value.
        heads = every.view(sizes[1] // d_head, -1, d_head)
        grouped = (heads[:, :-2], heads[:, -2], heads[:, -1])
        rows = tuple(part.flatten() for part in grouped)
        # With one key-value head, the two are the same.
        if not all(torch.equal(*pair) for pair in zip(rows, layouts[0], strict=True)):
            layouts.append(rows)
    return layouts


def _is_at(part: WeightSlice, homes: dict[Place, Home], tensors: dict[str, Tensor]) -> bool:
    values = part.parameter.detach()
    home = homes.get(place_of(part.parameter))
    if home is None:  # a bias that the fused projection has not
        return not bool(values.any())
    fused = tensors[home.key]
    rows = fused.index_select(home.axis, home.rows.to(fused.device))
    if home.axis == 1:
        rows = rows.T
    return (
        rows.dtype == values.dtype
        and rows.shape == values.shape
        and torch.equal(rows, values.to(rows.device))
    )
