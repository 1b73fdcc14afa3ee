"""Which checkpoint a result was measured on."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from lens_lang.errors import ModelError
from lens_lang.sites import HookedModel, model_name

_ROW = 1024
"""Numbers that go into one sum."""

_PORTION = {"cpu": 2**16}
"""Numbers read at once, by kind of device: on a CPU, what its cache holds."""
_LARGE_PORTION = 2**22

_INTEGERS = {1: torch.int8, 2: torch.int16}
"""By size in bytes; longer numbers are read as several of 4 bytes."""


def weights_digest(model: HookedModel) -> str:
    """Return a fingerprint of a model's weights, which sees every change of every one.

    Equal for equal weights of equal dtype, on any device and number of threads. Every 1024
    numbers are read as integers and summed, each times an odd number of its own, in whole
    numbers modulo 2**64; the sums are hashed.

    Args:
        model: The model. Weights that `accelerate` has offloaded are fetched, one at a time.

    Raises:
        ModelError: A weight has no values: it is on the meta device, and was not offloaded.
    """
    digest = hashlib.sha256()
    read: dict[int, bytes] = {}
    # Offloading parts weights that are tied, so these are told under both of their names.
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):  # type: ignore[attr-defined]
        if id(parameter) not in read:
            with _in_memory(model, name, parameter) as values:
                sums = _sums(values).cpu().numpy().tobytes()
            read[id(parameter)] = hashlib.sha256(sums).digest()
        about = f"{name} {tuple(parameter.shape)} {parameter.dtype}"
        digest.update(about.encode() + read[id(parameter)])
    return digest.hexdigest()[:16]


def _sums(values: Tensor) -> Int[Tensor, "row"]:
    """Return sums that tell a tensor's numbers and their order."""
    flat = values.detach().reshape(-1)
    numbers = flat.view(_INTEGERS.get(flat.element_size(), torch.int32))
    factors = _factors().to(numbers.device)
    found = []
    for some in torch.split(numbers, _PORTION.get(numbers.device.type, _LARGE_PORTION)):
        whole = torch.nn.functional.pad(some, (0, -len(some) % _ROW))
        found.append((whole.view(len(whole) // _ROW, _ROW) * factors).sum(1))
    return torch.cat(found)


def _factors() -> Int[Tensor, "place"]:
    """Return what the numbers of a row are multiplied by: odd, so that no change is lost.

    Two numbers of at most 32 bits that change places are seen, because no two factors are equal
    in their last 32 bits.
    """
    noise = hashlib.shake_256(b"lens_lang").digest(8 * _ROW)
    return torch.frombuffer(bytearray(noise), dtype=torch.int64) | 1


@contextmanager
def _in_memory(model: HookedModel, name: str, parameter: Tensor) -> Iterator[Tensor]:
    """Give a weight's values, fetching them if they are offloaded."""
    if not parameter.is_meta:
        yield parameter
        return
    from accelerate.utils import align_module_device  # type: ignore[import-untyped]

    owner, _, own_name = name.rpartition(".")
    # A bridge names its weights as the Hugging Face model does.
    root: Any = getattr(model, "original_model", model)
    module = root.get_submodule(owner)
    with align_module_device(module):
        values: Tensor = getattr(module, own_name)
        if values.is_meta:
            raise ModelError(
                f"{name} of {model_name(model)} is on the meta device and has no values: load the "
                "model with its weights"
            )
        yield values
