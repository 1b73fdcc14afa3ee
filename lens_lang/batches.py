"""Rows of tokens beside each other, ready for a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class TokenBatch:
    """Rows of tokens of one language, ready for a model.

    Attributes:
        tokens: Token ids; padding holds 0.
        mask: True at the positions that statistics count: real tokens, and BOS only if the
            corpora say so.
        language: The language of every row.
        attention_mask: True at everything but padding; None when there is no padding.
        documents: For each row the document it comes from, or its own number if it is packed.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    language: str
    attention_mask: Bool[Tensor, "batch pos"] | None
    documents: Int[Tensor, "batch"]


def padded_batch(
    rows: Sequence[Int[Tensor, "_"]],
    *,
    language: str,
    numbers: Sequence[int],
    bos_id: int | None,
    count_bos: bool = False,
    padding_side: Literal["left", "right"] = "right",
) -> TokenBatch:
    """Lay rows of tokens beside each other, BOS in front, padded to the longest.

    Args:
        rows: Token ids of each row.
        language: Of all rows.
        numbers: The document that each row comes from.
        bos_id: Put in front of every row; None puts nothing there.
        count_bos: Whether statistics count BOS.
        padding_side: Where shorter rows are padded.
    """
    bos = int(bos_id is not None)
    longest = max(len(row) for row in rows) + bos
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    attended = torch.zeros_like(mask)
    for place, row in enumerate(rows):
        first = 0 if padding_side == "right" else longest - len(row) - bos
        last = first + bos + len(row)
        tokens[place, first + bos : last] = row
        attended[place, first:last] = True
        mask[place, first + bos : last] = True
        if bos_id is not None:
            tokens[place, first] = bos_id
            mask[place, first] = count_bos
    padded = None if bool(attended.all()) else attended
    return TokenBatch(tokens, mask, language, padded, torch.tensor(list(numbers)))
