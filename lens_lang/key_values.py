"""What a model remembers of the tokens it has read: keys and values of every layer.

With them a token costs one position, not a whole prompt. Bridges keep them in a cache of
`transformers`, `HookedTransformer` in one of TransformerLens; both are here the same thing.
"""

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


class KeyValues:
    """The rows that a model has read so far, which grow with every forward pass.

    Attributes:
        real: True where a row has a token, False at its padding, of all that was read.
    """

    def __init__(self, model: Any, n_rows: int) -> None:
        self.real: Bool[Tensor, "row pos"] = torch.zeros(n_rows, 0, dtype=torch.bool)
        self._hf = getattr(model, "original_model", None)
        self._held: Any
        if self._hf is not None:
            from transformers import DynamicCache

            self._held = DynamicCache(config=self._hf.config)
        else:
            from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

            self._held = TransformerLensKeyValueCache.init_cache(
                model.cfg, model.cfg.device, n_rows
            )

    def arguments(self, real: Bool[Tensor, "row new"], device: Any) -> dict[str, Any]:
        """Return what a forward pass on more tokens is to be called with.

        Args:
            real: False where the new tokens are padding.
            device: Of the tokens.
        """
        self.real = torch.cat([self.real, real.cpu()], dim=1)
        if self._hf is None:  # which remembers the mask itself
            return {
                "attention_mask": real.to(device, torch.long),
                "past_kv_cache": self._held,
                "padding_side": "left",
            }
        return {
            "attention_mask": self.real.to(device, torch.long),
            "past_key_values": self._held,
            "use_cache": True,
        }

    def select(self, rows: Int[Tensor, "kept"]) -> None:
        """Go on with some of the rows, in this order; a row may be taken several times.

        Args:
            rows: Numbers of rows.
        """
        self.real = self.real[rows]
        with torch.inference_mode():
            if self._hf is not None:
                self._held.batch_select_indices(rows)
                return
            for entry in self._held.entries:
                here = rows.to(entry.past_keys.device)
                entry.past_keys = entry.past_keys[here]
                entry.past_values = entry.past_values[here]
            mask = self._held.previous_attention_mask
            self._held.previous_attention_mask = mask[rows.to(mask.device)]
