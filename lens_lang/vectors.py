"""Steering by vectors: the difference between two languages' mean residual streams, added.

The baseline that interventions on neurons have to be compared with: it needs no neurons at all,
and the literature finds it the stronger way to change a model's language.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import OptionError, ShapeError
from lens_lang.positions import Positions, acts_on, check_positions
from lens_lang.sites import RESID_POST, HookFn
from lens_lang.stats import Activations


@dataclass(frozen=True, eq=False)
class VectorEdit:
    """A hook function that adds a vector to the residual stream after a block.

    Attributes:
        layer: The block.
        vector: What is added at every position.
        positions: Where it is added.
    """

    layer: int
    vector: Float[Tensor, "d_model"]
    positions: Positions = "all"

    def __call__(self, resid: Tensor, hook: Any = None) -> Tensor | None:
        """Return the residual stream with the vector added; the input is left alone."""
        if resid.shape[-1] != len(self.vector):
            raise ShapeError(
                f"A vector of {len(self.vector)} numbers cannot be added to a residual stream of "
                f"{resid.shape[-1]}: it belongs to another model"
            )
        if not acts_on(resid, self.positions):
            return None
        return resid + self.vector.to(resid.device, resid.dtype)

    def along(self, direction: Float[Tensor, "d_model"]) -> "VectorEdit":
        """Return as long a vector in another direction: the control, if that is random.

        Args:
            direction: Of any length.
        """
        length = self.vector.float().norm()
        return dataclasses.replace(self, vector=direction * (length / direction.norm()))

    def __repr__(self) -> str:
        return f"add a vector of length {float(self.vector.norm()):.3g} after layer {self.layer}"


def shift(
    mean: Activations,
    *,
    source: str,
    target: str,
    layers: int | Sequence[int],
    strength: float | int = 1.0,
    positions: Positions = "all",
) -> list[tuple[str, HookFn]]:
    """Turn a model from one language to another along the difference of their means.

    Adds strength * (mean[target] - mean[source]) to the residual stream after each of the layers.

    Args:
        mean: Mean residual stream of each language, from ``MeanActivation(space="residual")``.
        source: Language to leave.
        target: Language to speak.
        layers: After which block, or blocks; each adds its own difference. The literature takes
            one in the middle and tries which.
        strength: Factor on the difference.
        positions: ``"all"``; or, while generating with a key-value cache, only the ``"prompt"``
            or only ``"new"`` tokens.

    Returns:
        TransformerLens hooks.

    Raises:
        LanguageError: A language is not among the means'.
        OptionError: The means are not of the residual stream, the model has no such layer, or the
            strength is not finite.

    Examples:
        >>> import torch
        >>> mean = Activations(("en", "fr"), torch.tensor([[[0.0, 1.0]], [[2.0, 1.0]]]),
        ...                    torch.zeros(2, 1, 2), torch.tensor([1, 1]), "residual")
        >>> (name, hook), = shift(mean, source="en", target="fr", layers=0)
        >>> name, hook(torch.zeros(1, 1, 2)).tolist()
        ('blocks.0.hook_resid_post', [[[2.0, 0.0]]])
    """
    if mean.space != "residual":
        raise OptionError(
            "Vectors are differences of mean residual streams, but these are means in "
            f"{mean.space} space: collect MeanActivation(space='residual')"
        )
    check_positions(positions)
    factor = float(strength)
    if not abs(factor) < float("inf"):
        raise OptionError(f"strength must be a finite number, got {strength}")
    difference = (mean[target] - mean[source]) * factor
    hooks: list[tuple[str, HookFn]] = []
    for layer in [layers] if isinstance(layers, int) else layers:
        if not 0 <= layer < len(difference):
            raise OptionError(f"layers must be between 0 and {len(difference) - 1}, got {layer}")
        edit = VectorEdit(layer, difference[layer].float(), positions)
        hooks.append((RESID_POST.at(layer), edit))
    return hooks
