"""How much of the residual stream lies in directions that tokens use: token energy.

Wendler et al. (2024), section 3, from the Gram matrix of the token directions instead of from all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.readout import final_scale
from lens_lang.sites import HookedModel


@dataclass(frozen=True, eq=False)
class UnembeddingGram:
    """The token directions of a model, as far as token energy needs them.

    Attributes:
        gram: Sum over items of the outer product of its direction with itself; directions are
            the rows of the unembedding, scaled by the final norm and brought to length 1.
        d_vocab: How many items.
    """

    gram: Float[Tensor, "d_model d_model"]
    d_vocab: int

    @classmethod
    def of_rows(cls, rows: Float[Tensor, "item d_model"]) -> "UnembeddingGram":
        """Build it from the items' directions, of any length."""
        unit = torch.nn.functional.normalize(rows, dim=1)
        return cls(unit.T @ unit, len(rows))


def token_energy(
    gram: UnembeddingGram, resid: Float[Tensor, "*many d_model"]
) -> Float[Tensor, "*many"]:
    """Return how much of each vector lies in directions that tokens use.

    Wendler et al. (2024), section 3: the root mean square of the vector's cosines with all token
    directions, divided by the same mean over the token directions themselves. Computed from
    the directions' Gram matrix, of size d_model, instead of from all of them.

    Args:
        gram: From `unembedding_gram`.
        resid: Vectors of the residual stream.

    Returns:
        1 if a vector is as close to the tokens as they are to each other (in the mean square),
        0 if it is orthogonal to all.

    Examples:
        >>> rows = torch.tensor([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
        >>> token_energy(UnembeddingGram.of_rows(rows), torch.eye(3)).tolist()
        [1.0, 1.0, 0.0]
    """
    matrix = gram.gram.to(resid.device)
    unit = torch.nn.functional.normalize(resid.to(matrix.dtype), dim=-1)
    squares = ((unit @ matrix) * unit).sum(-1).clamp(min=0.0) / gram.d_vocab
    return (squares / (matrix.square().sum() / gram.d_vocab**2)).sqrt()


def unembedding_gram(model: HookedModel) -> UnembeddingGram:
    """Return a model's token directions, without holding a copy of its unembedding.

    How the final norm scales is measured, because architectures store it differently: Gemma as
    a difference from 1. A norm that subtracts the mean does so to the directions as well.

    Args:
        model: The model.
    """
    weight = model.W_U  # type: ignore[attr-defined]
    d_model, d_vocab = weight.shape
    scale, centred = final_scale(model, d_model, weight)
    scale = scale.to(weight.device)  # with a device map, the norm may be elsewhere than W_U
    gram = torch.zeros(d_model, d_model, dtype=torch.float64)
    step = max(1, 2**24 // d_model)
    with torch.inference_mode():
        for start in range(0, d_vocab, step):
            rows = weight[:, start : start + step].T.float() * scale
            rows = rows - rows.mean(1, keepdim=True) if centred else rows
            gram += UnembeddingGram.of_rows(rows).gram.cpu()
    return UnembeddingGram(gram.float(), d_vocab)
