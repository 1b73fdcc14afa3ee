"""Which checkpoint a result was measured on."""

import hashlib

import torch

from lens_lang.sites import HookedModel


def weights_digest(model: HookedModel) -> str:
    """Return a fingerprint of a model's weights: a few numbers of every parameter, hashed.

    Tells one checkpoint from another, and float32 from bfloat16; does not see every edit of a
    single weight.

    Args:
        model: The model.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        few = parameter.detach().flatten()[:16].to("cpu", torch.float32)
        digest.update(name.encode() + str(tuple(parameter.shape)).encode())
        digest.update(few.numpy().tobytes())
    return digest.hexdigest()[:16]
