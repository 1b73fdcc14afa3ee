"""Models that really compute in float64: transformers and TransformerLens step down to float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from conftest import hf_model

from lens_lang.models import bridge


@contextmanager
def in_float64() -> Iterator[None]:
    """Ignore every request to turn float64 into float32, for the length of a block."""
    plain_float, plain_to = torch.Tensor.float, torch.Tensor.to
    plain_softmax = torch.nn.functional.softmax

    def to(self: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if self.dtype == torch.float64:
            args = tuple(a for a in args if a != torch.float32 or not isinstance(a, torch.dtype))
            options = {k: v for k, v in options.items() if v is not torch.float32}
            if not args and not options:
                return self
        return plain_to(self, *args, **options)

    def softmax(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        if x.dtype == torch.float64:
            options.pop("dtype", None)
        return plain_softmax(x, *args, **options)

    with (
        patch.object(
            torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else plain_float(x)
        ),
        patch.object(torch.Tensor, "to", to),
        patch.object(torch.nn.functional, "softmax", softmax),
    ):
        yield


@cache
def tiny64(architecture: str) -> Any:
    """A tiny model in float64. Run it inside `in_float64`."""
    return bridge(hf_model(architecture).double())
