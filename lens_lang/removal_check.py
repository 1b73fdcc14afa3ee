"""Proof on the model itself that the closed forms give what removing a neuron gives.

A batch holds the same few tokens several times. At the input of every block all rows are set back
to the first one; in each other row one neuron is switched off. So one forward pass removes a few
neurons of every site in every layer, from inputs that nothing else has changed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.attention import widened
from lens_lang.errors import ModelError
from lens_lang.sites import (
    ATTN_K,
    ATTN_PATTERN,
    ATTN_Q,
    ATTN_Z,
    MLP_OUT,
    MLP_POST,
    RESID_PRE,
    HookedModel,
    Site,
    flat_neurons,
    model_name,
    n_layers,
    run_until,
)
from lens_lang.specs import Reading

_PROBE_TOKENS = 64
"""Enough for rotations to turn."""
_RANKS = (0.0, 0.1, 0.5)
"""Which neurons are removed: the highest score of a layer, and some farther down."""


def check_removal(
    model: HookedModel,
    score: Callable[[Reading], dict[Site, Tensor]],
    *,
    scored: Sequence[Site],
    reads: Sequence[Site],
    target: Literal["pattern", "output"] = "pattern",
) -> None:
    """Refuse a model whose neurons' importance is not what the closed forms say.

    Scores a few random tokens, removes some neurons of high and of middling score from every
    layer and site, and compares the change.

    Args:
        model: The model.
        score: Scores every neuron of a layer by the closed forms.
        scored: The sites of the scores.
        reads: The sites that `score` needs.
        target: What removing a query or key column changes.

    Raises:
        ModelError: They differ; the message names the layer, the site and both numbers.
    """
    length = min(_PROBE_TOKENS, int(getattr(model.cfg, "n_ctx", None) or _PROBE_TOKENS))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(model.cfg.d_vocab), (1, length), generator=generator)
    closed = _closed_scores(model, score, reads, tokens)
    removed = {}
    for site in scored:
        # Layers may lie on different devices.
        scores = torch.stack([each[site][0].cpu() for each in closed])
        ranked = scores.argsort(dim=1, descending=True)
        ranks = [round(rank * (ranked.shape[1] - 1)) for rank in _RANKS]
        removed[site] = ranked[:, ranks]
    changes = measured_removal(model, tokens, removed, target=target)
    dtype = next(model.parameters()).dtype  # type: ignore[attr-defined]
    half = dtype in (torch.float16, torch.bfloat16)
    relative, absolute = (0.25, 0.05) if half else (1e-2, 1e-4)
    for site in scored:
        for layer, neurons in enumerate(removed[site].tolist()):
            expected = closed[layer][site][0].cpu()
            slack = absolute * float(expected.max())
            for neuron, change in zip(neurons, changes[site][layer].tolist(), strict=True):
                found = float(expected[neuron])
                if not abs(change - found) <= relative * max(change, found) + slack:
                    raise ModelError(
                        f"Removing neuron {neuron} at {site.name} in layer {layer} of "
                        f"{model_name(model)} changes {change:.4g}, but the closed form of PLND "
                        f"says {found:.4g}: this model computes its attention or MLP in a way "
                        f"that is not known here. Leave {site!r} out of sites"
                    )


def _closed_scores(
    model: HookedModel,
    score: Callable[[Reading], dict[Site, Tensor]],
    reads: Sequence[Site],
    tokens: Int[Tensor, "1 pos"],
) -> list[dict[Site, Tensor]]:
    seen: list[dict[Site, Tensor]] = [{} for _ in range(n_layers(model))]

    def keep(values: Tensor, hook: Any, layer: int, site: Site) -> None:
        seen[layer][site] = values

    readers = [
        (site.at(layer), partial(keep, layer=layer, site=site))
        for layer in range(n_layers(model))
        for site in reads
    ]
    run_until(model, tokens, readers=readers)
    everything = torch.ones_like(tokens, dtype=torch.bool)
    return [score(Reading(layer, values, everything)) for layer, values in enumerate(seen)]


def measured_removal(
    model: HookedModel,
    tokens: Int[Tensor, "1 pos"],
    removed: Mapping[Site, Int[Tensor, "layer neuron"]],
    *,
    target: Literal["pattern", "output"] = "pattern",
) -> dict[Site, Float[Tensor, "layer neuron"]]:
    """Remove neurons from a model, one at a time, and return the change of each.

    Args:
        model: The model.
        tokens: One document.
        removed: For each site some neurons of every layer.
        target: What removing a query or key column changes.

    Returns:
        For each site and layer the L2 norm of the change without each of its neurons.
    """
    layers = range(n_layers(model))
    rows: dict[Site, slice] = {}
    n_rows = 1
    for site, neurons in removed.items():
        rows[site] = slice(n_rows, n_rows + neurons.shape[1])
        n_rows += neurons.shape[1]
    changes = {site: torch.zeros(neurons.shape) for site, neurons in removed.items()}

    def same_input(resid: Tensor, hook: Any) -> Tensor:
        return resid[:1].expand_as(resid).clone()

    def switch_off(values: Tensor, hook: Any, site: Site, neurons: list[int]) -> Tensor:
        flat = flat_neurons(values, site).clone()
        for row, neuron in enumerate(neurons, start=rows[site].start):
            flat[row, :, neuron] = 0
        return flat.view_as(values)

    def measure(values: Tensor, hook: Any, site: Site, layer: int, which: list[Site]) -> None:
        change = widened(values) - widened(values[:1])
        if site == ATTN_Z:
            w_o = widened(model.blocks[layer].attn.W_O)  # type: ignore[attr-defined]
            change = torch.einsum("bpnd,ndm->bpm", change, w_o)
        size = torch.linalg.vector_norm(change.flatten(1), dim=1).cpu()
        for removed_at in which:
            changes[removed_at][layer] = size[rows[removed_at]]

    patterned = [s for s in removed if s in (ATTN_Q, ATTN_K) and target == "pattern"]
    mlp = [site for site in removed if site == MLP_POST]
    rest = [site for site in removed if site not in (*patterned, *mlp)]
    hooks = [(RESID_PRE.at(layer), same_input) for layer in layers if layer] + [
        (site.at(layer), partial(switch_off, site=site, neurons=neurons[layer].tolist()))
        for site, neurons in removed.items()
        for layer in layers
    ]
    readers = [
        (site.at(layer), partial(measure, site=site, layer=layer, which=which))
        for site, which in ((ATTN_PATTERN, patterned), (ATTN_Z, rest), (MLP_OUT, mlp))
        if which
        for layer in layers
    ]
    run_until(model, tokens.expand(n_rows, -1), fwd_hooks=hooks, readers=readers)
    return changes
