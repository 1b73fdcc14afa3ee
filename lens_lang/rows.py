"""Switching off other neurons in each row of a batch, as TransformerLens hooks.

An input's own neurons, such as those that fire in all its translations, differ from input to input;
with one mask per row a batch needs one forward pass and not one per input.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_lang.errors import ShapeError
from lens_lang.intervene import Hooks
from lens_lang.sites import MLP_POST, Site


@dataclass(frozen=True, eq=False)
class RowAblation:
    """A hook function that sets each row's own neurons of one layer to 0.

    Attributes:
        site: The site of the neurons.
        layer: Their layer.
        off: For each row, which neurons.
        at: The one token of each row where they are off; None for all.
    """

    site: Site
    layer: int
    off: Bool[Tensor, "row neuron"]
    at: Int[Tensor, "row"] | None = None

    def __call__(self, activations: Tensor, hook: Any = None) -> Tensor:
        """Return the activations with the rows' neurons at 0; the input is left alone."""
        flat = activations.flatten(2)
        if (len(flat), flat.shape[-1]) != tuple(self.off.shape):
            raise ShapeError(
                f"These masks are for {self.off.shape[0]} rows of {self.off.shape[1]} neurons at "
                f"{self.site.name}, but layer {self.layer} got {len(flat)} rows of "
                f"{flat.shape[-1]}"
            )
        off = self.off.to(flat.device)[:, None]
        if self.at is not None:
            places = torch.arange(flat.shape[1], device=flat.device)
            off = off & (places == self.at.to(flat.device)[:, None])[..., None]
        # Written, not multiplied: infinity times 0 would be NaN.
        return flat.masked_fill(off, 0.0).view_as(activations)


def ablate_rows(
    off: Bool[Tensor, "row layer neuron"],
    *,
    site: Site = MLP_POST,
    at: Int[Tensor, "row"] | None = None,
) -> Hooks:
    """Switch off other neurons in each row of a batch.

    Args:
        off: For each row of the batch about to be run, which neurons.
        site: Their site.
        at: The token of each row where they are off; None switches them off at every token.

    Returns:
        TransformerLens hooks, for the layers that have any.

    Raises:
        ShapeError: `at` is not one token per row.

    Examples:
        >>> hooks = ablate_rows(torch.tensor([[[True, False]], [[False, False]]]))
        >>> hooks[0][0], hooks[0][1](torch.ones(2, 1, 2)).tolist()
        ('blocks.0.mlp.hook_post', [[[0.0, 1.0]], [[1.0, 1.0]]])
    """
    if at is not None and len(at) != len(off):
        raise ShapeError(f"at must be one token per row, {len(off)} in all, got {len(at)}")
    return [
        (site.at(layer), RowAblation(site, layer, off[:, layer], at))
        for layer in off.any(2).any(0).nonzero().flatten().tolist()
    ]
