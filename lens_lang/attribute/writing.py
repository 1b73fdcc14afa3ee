"""What MLP neurons write into the residual stream, and what tokens read from it.

A neuron writes its activation times its row of W_out. Where a norm follows the MLP (Gemma 2 and 3,
OLMo 2), that row is multiplied by the norm's gain, and the sum over neurons is divided by its root
mean square at that token; both are taken along, so that what the neurons write adds up to what the
MLP adds to the residual stream.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.attention import RMSNorm, widened
from lens_lang.errors import ActivationError, ModelError, OptionError, SiteError
from lens_lang.readout import final_scale
from lens_lang.sites import (
    MLP_OUT,
    MLP_POST,
    POST_SCALE,
    FwdHooks,
    HookedModel,
    Site,
    check_hooks,
    hooked_names,
    model_name,
    n_layers,
    run_until,
)

TokenVector = Literal["unembedding", "embedding"]
"""Which vector stands for a token."""


_BEHIND_NEURONS = ("hook_mlp_out", "mlp.hook_out", "mlp.out.hook_out")
_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Writing:
    """What the neurons of one layer write; the weights themselves, no copy of them.

    Attributes:
        matrix: The down-projection, in the model's dtype.
        gain: Of the norm that follows the MLP; None where none does.
        bias: What the MLP adds at activation 0, gain included.
    """

    matrix: Float[Tensor, "neuron d_model"]
    gain: Float[Tensor, "d_model"] | None
    bias: Float[Tensor, "d_model"]

    @property
    def sites(self) -> tuple[Site, ...]:
        """What must be read to know what is written."""
        return (MLP_POST,) if self.gain is None else (MLP_POST, POST_SCALE)

    @property
    def vectors(self) -> Float[Tensor, "neuron d_model"]:
        """What each neuron adds at activation 1, before division by the norm's scale."""
        vectors = widened(self.matrix)
        return vectors if self.gain is None else vectors * self.gain

    def rows(self, indices: Sequence[int]) -> Float[Tensor, "chosen d_model"]:
        """Return what some neurons add at activation 1; only their rows are widened."""
        rows = widened(self.matrix[list(indices)])
        return rows if self.gain is None else rows * self.gain

    @cached_property
    def lengths(self) -> Float[Tensor, "neuron"]:
        """Length of every vector."""
        return self.vectors.norm(dim=1)

    def read_by(self, vectors: Float[Tensor, "row d_model"]) -> Float[Tensor, "row neuron"]:
        """Return the product of vectors with what each neuron writes."""
        vectors = vectors.to(self.matrix.device)
        vectors = vectors if self.gain is None else vectors * self.gain
        return vectors @ widened(self.matrix).T

    def divisor(self, read: Mapping[Site, Tensor]) -> Tensor | float:
        """Return what everything is divided by, from what was read."""
        return 1.0 if self.gain is None else widened(read[POST_SCALE])


def writing(model: HookedModel, layer: int) -> Writing:
    """Read what a layer's neurons write from the model's weights.

    Args:
        model: The model.
        layer: The layer.

    Raises:
        ModelError: The weights are offloaded or quantised and cannot be read.
    """
    block: Any = model.blocks[layer]  # type: ignore[attr-defined]
    if any(each.is_meta for each in block.mlp.parameters()):
        raise ModelError(
            f"The MLP of layer {layer} of {model_name(model)} is offloaded, so what its neurons "
            "write cannot be read: load the model without offloading, for example in bfloat16"
        )
    try:
        matrix = block.mlp.W_out.detach()
    except NotImplementedError as error:
        raise ModelError(
            f"The weights of {model_name(model)} are quantised and cannot be read: load the model "
            "unquantised to know what its neurons write"
        ) from error
    bias = getattr(block.mlp, "b_out", None)
    bias = matrix.new_zeros(matrix.shape[1]) if bias is None else bias.detach()
    if not hasattr(block, "ln2_post"):
        return Writing(matrix, None, widened(bias))
    gain = RMSNorm.of(block.ln2_post, matrix[0]).gain
    return Writing(matrix, gain, widened(bias) * gain)


def check_writing(model: HookedModel, fwd_hooks: FwdHooks = ()) -> list[Writing]:
    """Read what every layer writes, and prove on two tokens that it adds up to the MLP's output.

    Args:
        model: The model.
        fwd_hooks: Interventions under which neurons are about to be read.

    Returns:
        One `Writing` per layer.

    Raises:
        ModelError: In some layer it does not: something that lens_lang does not know stands
            between the neurons and the residual stream.
        ActivationError: The model gives NaN or infinity.
        SiteError: A hook changes what the MLP adds, behind its neurons.
    """
    for name in hooked_names(model, fwd_hooks):
        if name.endswith(_BEHIND_NEURONS) or ".ln2_post." in name:
            raise SiteError(
                f"A hook on {name!r} changes what the MLP adds behind its neurons, so what they "
                "write no longer adds up: hook the neurons, mlp.hook_post, or the residual stream"
            )
    layers = [writing(model, layer) for layer in range(n_layers(model))]
    seen: dict[tuple[Site, int], Tensor] = {}

    def keep(values: Tensor, hook: Any, site: Site, layer: int) -> None:
        seen[site, layer] = widened(values)

    readers: FwdHooks = [
        (site.at(layer), partial(keep, site=site, layer=layer))
        for layer, each in enumerate(layers)
        for site in (*each.sites, MLP_OUT)
    ]
    check_hooks(model, readers)
    run_until(model, torch.tensor([[0, 1]]), readers=readers)
    for layer, each in enumerate(layers):
        read = {site: seen[site, layer] for site in each.sites}
        written = (read[MLP_POST] @ each.vectors + each.bias) / each.divisor(read)
        whole = seen[MLP_OUT, layer]
        if not bool(torch.isfinite(whole).all()):
            raise ActivationError(
                f"{model_name(model)} produces NaN or infinity in the MLP of layer {layer} on two "
                "tokens: its weights are broken"
            )
        error = float((written - whole).norm() / whole.norm().clamp(min=1e-20))
        # Half precision rounds the sum over thousands of neurons.
        if not error < (0.05 if model.W_U.dtype in _HALF else 1e-3):  # type: ignore[attr-defined]
            raise ModelError(
                f"What the neurons of layer {layer} of {model_name(model)} write differs from what "
                f"its MLP adds by {error:.1%}: something stands between them that lens_lang does "
                "not know, so their contributions cannot be told apart"
            )
    return layers


def token_vectors(
    model: HookedModel,
    tokens: Int[Tensor, "token"] | Sequence[int],
    *,
    vector: TokenVector = "unembedding",
    final_norm: bool = False,
) -> Float[Tensor, "token d_model"]:
    """Return the vectors whose product with the residual stream is a token's score.

    Args:
        model: The model.
        tokens: The tokens.
        vector: ``"unembedding"``: the token's column of W_U, with which the model predicts it.
            ``"embedding"``: its row of W_E, as the released code of Wang et al. (2024) does for
            a model whose two are tied.
        final_norm: Multiply by the final norm's gain and, for a norm that does so, subtract the
            mean; divided by `norm_scale` the products then add up to the logit.

    Raises:
        OptionError: There is no such vector, or no such token.
    """
    if vector not in ("unembedding", "embedding"):
        raise OptionError(f"vector must be unembedding or embedding, got {vector!r}")
    which = torch.as_tensor(tokens)
    weight: Tensor = model.W_U.T if vector == "unembedding" else model.W_E  # type: ignore[attr-defined]
    if which.numel() and not 0 <= int(which.min()) <= int(which.max()) < len(weight):
        raise OptionError(f"A token lies outside the vocabulary of {len(weight)}")
    rows = widened(weight[which.to(weight.device)].detach())
    if final_norm:
        gain, centred = final_scale(model, rows.shape[1], weight)
        rows = rows * gain.to(rows.device, rows.dtype)
        rows = rows - rows.mean(1, keepdim=True) if centred else rows
    return rows


def norm_scale(model: HookedModel, resid: Float[Tensor, "row d_model"]) -> Float[Tensor, "row 1"]:
    """Return what the final norm divides residual-stream vectors by.

    Measured on the norm itself, whatever its epsilon: its answer to a vector, less its answer to
    the negative, is twice the normalised vector times the gain.

    Args:
        model: The model.
        resid: Vectors behind the last block.
    """
    norm: Any = model.ln_final  # type: ignore[attr-defined]
    with torch.inference_mode():
        both = widened(norm(torch.stack([resid, -resid])))
    gain, centred = final_scale(model, resid.shape[1], resid)
    vector = widened(resid)
    vector = vector - vector.mean(1, keepdim=True) if centred else vector
    vector = vector * gain.to(vector.device, vector.dtype)
    return vector.norm(dim=1, keepdim=True) / ((both[0] - both[1]) / 2).norm(dim=1, keepdim=True)
