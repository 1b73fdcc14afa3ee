"""Which entries of which weights a neuron is made of.

A unit of an MLP is a row of W_gate and of W_up (with its biases) and a column of W_down; a query,
key or value neuron is a row of its projection with its bias; an output neuron is a column of W_O.
Rows and columns as `torch.nn.Linear` has them; some models store the transpose.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import ModelError, SiteError
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
    Site,
    check_layers,
    check_supported,
    is_gated,
    model_name,
)

# What a neuron of a site reads with (rows) and writes with (columns).
_READS = {
    MLP_PRE: ("mlp.gate", "mlp.in"),
    MLP_UP: ("mlp.in",),
    MLP_POST: ("mlp.gate", "mlp.in"),
    ATTN_Q: ("attn.q",),
    ATTN_K: ("attn.k",),
    ATTN_V: ("attn.v",),
}
_WRITES = {MLP_PRE: "mlp.out", MLP_UP: "mlp.out", MLP_POST: "mlp.out", ATTN_Z: "attn.o"}


@dataclass(frozen=True, eq=False)
class WeightSlice:
    """The entries of one weight that some neurons of a layer are made of.

    Attributes:
        name: Of the weight, as TransformerLens spells modules: ``blocks.3.mlp.out.weight``.
        site: Site of the neurons.
        parameter: The weight, or the bias, itself.
        axis: Which of its axes numbers the neurons.
        indices: The neurons.
    """

    name: str
    site: Site
    parameter: torch.nn.Parameter
    axis: int
    indices: Int[Tensor, "chosen"]

    def read(self, tensor: Tensor | None = None) -> Float[Tensor, "*entries"]:
        """Return a copy of the entries, of the weight or of something shaped like it."""
        source = self.parameter.detach() if tensor is None else tensor
        return source.index_select(self.axis, self.indices.to(source.device))

    def write(self, values: Float[Tensor, "*entries"]) -> None:
        """Overwrite the entries, in the weight's own dtype."""
        weight = self.parameter.detach()
        weight.index_copy_(
            self.axis, self.indices.to(weight.device), values.to(weight.device, weight.dtype)
        )


def neuron_weights(model: HookedModel, neurons: NeuronSet) -> list[WeightSlice]:
    """Return the entries of a model's weights that neurons are made of.

    Args:
        model: A raw TransformerBridge.
        neurons: The neurons.

    Returns:
        One slice per weight and bias that has any of them, in the order of sites and layers.

    Raises:
        ModelError: The model is no bridge, or its weights cannot be read as matrices.
        ShapeError: The neurons are for another model.
        SiteError: A site has no weights of its own, such as the residual stream.
    """
    check_supported(model)
    found: list[WeightSlice] = []
    for site, mask in neurons.masks.items():
        if site not in _READS and site not in _WRITES:
            raise SiteError(f"{site.name} is no site of neurons with weights of their own")
        if site == MLP_UP and not is_gated(model):
            raise SiteError(
                f"{model_name(model)} has MLPs without a gate, so it has no site mlp_up: take "
                "mlp_post"
            )
        check_layers(model, site, (mask.shape[0], mask.shape[1]))
        for layer in mask.any(1).nonzero().flatten().tolist():
            found += _slices(model, site, layer, mask[layer].nonzero().flatten())
    return found


def _slices(
    model: HookedModel, site: Site, layer: int, indices: Int[Tensor, "chosen"]
) -> Iterator[WeightSlice]:
    for path in _READS.get(site, ()):
        if (linear := _linear(model, layer, path)) is None:
            continue
        name = f"blocks.{layer}.{path}"
        yield WeightSlice(f"{name}.weight", site, linear.weight, _rows(linear), indices)
        if linear.bias is not None:
            yield WeightSlice(f"{name}.bias", site, linear.bias, 0, indices)
    if site in _WRITES:
        path = _WRITES[site]
        linear = _linear(model, layer, path)
        name = f"blocks.{layer}.{path}.weight"
        yield WeightSlice(name, site, linear.weight, 1 - _rows(linear), indices)


def _linear(model: HookedModel, layer: int, path: str) -> Any:
    """The linear map of `transformers` behind a module of the bridge; None where there is none."""
    part: Any = model.blocks[layer]  # type: ignore[attr-defined]
    for name in path.split("."):
        part = getattr(part, name, None)
    if part is None and path == "mlp.gate":
        return None
    linear = getattr(part, "original_component", None)
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, torch.nn.Parameter) or weight.ndim != 2:
        raise ModelError(
            f"{model_name(model)} has no plain matrix behind {path} in layer {layer}: only raw "
            "TransformerBridge models with unquantised weights have"
        )
    return linear


def _rows(linear: Any) -> int:
    """The axis of the outputs: 0 in a Linear, 1 in the Conv1D of GPT-2."""
    return 0 if isinstance(linear, torch.nn.Linear) else 1


def find_weight(model: HookedModel, name: str) -> torch.nn.Parameter:
    """Return a weight or bias by the name that `WeightSlice` gives it.

    Raises:
        ModelError: The model has no such weight.
    """
    parts = name.split(".")
    if len(parts) == 5 and parts[0] == "blocks" and parts[1].isdecimal():
        blocks: Any = model.blocks  # type: ignore[attr-defined]
        if int(parts[1]) < len(blocks):
            linear = _linear(model, int(parts[1]), ".".join(parts[2:4]))
            weight = getattr(linear, parts[4], None)
            if isinstance(weight, torch.nn.Parameter):
                return weight
    raise ModelError(f"{model_name(model)} has no weight {name!r}: it belongs to another model")
