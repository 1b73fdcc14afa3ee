"""From the residual stream to logits: final norm, unembedding, output transform.

The parts are the model's own, in its order, so a readout of the last layer is the model's
prediction, which `check_readout` proves on the model at hand. Whoever reads many positions does
it in chunks of at most 2**26 logits.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import ActivationError, ModelError, SiteError
from lens_lang.sites import (
    RESID_POST,
    FwdHooks,
    HookedModel,
    hooked_names,
    model_name,
    n_layers,
    run_until,
)

CHUNK_LOGITS = 2**26
"""Logits held at once: 256 MiB as float32, whatever the vocabulary, batch and length."""

_TOLERANCE = 1e-4
"""Of the spread of the logits; half precision is compared more loosely."""


def read_logits(
    model: HookedModel, resid: Float[Tensor, "row d_model"], *, norm: bool = True
) -> Float[Tensor, "row d_vocab"]:
    """Return the logits of residual-stream vectors, at least in float32. For many: see `chunks`.

    Args:
        model: The model.
        resid: Vectors of the residual stream, of any layer.
        norm: Apply the final norm first. Without it the vectors are read as they are, as in
            Zhao et al. (2024), figure 1.

    Returns:
        What the model would predict from each vector, soft cap and scales included.
    """
    # Norms of TransformerLens want batch, position and d_model.
    rows = resid[None]
    rows = model.ln_final(rows) if norm else rows  # type: ignore[attr-defined]
    logits = model.unembed(rows)[0]  # type: ignore[attr-defined]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    transform = getattr(getattr(model, "adapter", None), "apply_output_logits_transform", None)
    if callable(transform):  # a bridge: Gemma's cap, Granite's and Cohere's scale
        return transform(logits)
    cap = float(getattr(model.cfg, "output_logits_soft_cap", 0.0) or 0.0)
    return cap * torch.tanh(logits / cap) if cap > 0 else logits


def chunks(model: HookedModel, n_rows: int) -> Iterator[slice]:
    """Yield slices of rows small enough that their logits number no more than `CHUNK_LOGITS`.

    Args:
        model: The model.
        n_rows: Vectors to read.
    """
    step = max(1, CHUNK_LOGITS // int(model.cfg.d_vocab))
    return (slice(start, start + step) for start in range(0, n_rows, step))


def check_readout(model: HookedModel) -> None:
    """Prove that the last layer's readout is the model's own prediction, on two tokens.

    Args:
        model: The model.

    Raises:
        ModelError: They differ, or the parts are missing: something that lens_lang does not know
            stands between the last block and the logits.
        ActivationError: The model gives NaN or infinity.
    """
    device = getattr(model.cfg, "device", None)
    probe = torch.tensor([[0, 1]], device=device)
    seen: list[Tensor] = []

    def keep(resid: Tensor, hook: Any) -> None:
        seen.append(resid)

    run_until(model, probe, readers=[(RESID_POST.at(n_layers(model) - 1), keep)])
    with torch.inference_mode():
        try:
            mine = read_logits(model, seen[0][0]).log_softmax(-1)
        except (AttributeError, RuntimeError) as error:
            raise ModelError(
                f"{model_name(model)} has no final norm and unembedding that can be read alone: "
                f"{error}"
            ) from error
        own = model(probe)[0].float().log_softmax(-1).to(mine.device)
    if not bool(torch.isfinite(own.amax(-1)).all()):
        raise ActivationError(
            f"{model_name(model)} gives NaN or infinite logits on two tokens: its weights are "
            "broken"
        )
    spread = float((own - own.mean(-1, keepdim=True)).abs().max())
    half = seen[0].dtype in (torch.float16, torch.bfloat16)
    worst = float((mine - own).abs().max())
    if not worst <= (100 if half else 1) * _TOLERANCE * max(spread, 1.0):
        raise ModelError(
            f"The last residual stream of {model_name(model)}, read through its final norm and "
            f"unembedding, differs from its own log-probabilities by {worst:.3g} (spread "
            f"{spread:.3g}): this architecture does something more before its logits, so layers "
            "cannot be read this way"
        )


def check_before_readout(model: HookedModel, fwd_hooks: FwdHooks) -> None:
    """Refuse hooks behind the last block: the residual stream is read before they act.

    Args:
        model: The model.
        fwd_hooks: Hooks about to be attached.

    Raises:
        SiteError: One is on the final norm or the unembedding.
    """
    for name in hooked_names(model, fwd_hooks):
        if name.split(".")[0] in ("ln_final", "unembed"):
            raise SiteError(
                f"{name!r} comes after the last block, and the residual stream is read there: the "
                "hook would have no effect. Hook a block instead"
            )


def final_scale(
    model: HookedModel, d_model: int, like: Tensor
) -> tuple[Float[Tensor, "d_model"], bool]:
    """Return what the final norm multiplies by, and whether it subtracts the mean first.

    Measured, because architectures store it differently: Gemma as a difference from 1.

    Args:
        model: The model.
        d_model: Width of the residual stream.
        like: A tensor of the unembedding's dtype and device.
    """
    up = (d_model + 1) // 2
    probe = torch.ones(d_model, dtype=like.dtype, device=like.device)
    probe[up:] = -up / max(d_model - up, 1)  # mean 0
    probe = probe / probe.float().square().mean().sqrt().to(like.dtype)  # length of a norm's output
    with torch.inference_mode():
        norm = model.ln_final  # type: ignore[attr-defined]
        rows = torch.stack([probe, -probe, torch.ones_like(probe)])
        plus, minus, ones = norm(rows[None])[0].float()
    probe = probe.to(plus.device)  # with a device map, the norm may be elsewhere than W_U
    bias = (plus + minus) / 2
    scale = (plus - minus) / 2 / probe.float()
    return scale, bool((ones - bias).norm() < 0.1 * scale.norm())
