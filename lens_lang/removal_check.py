"""Proof on the model itself that the closed forms give what removing a neuron gives.

A batch holds the same few tokens several times. At the input of every block all rows are set back
to the first one; in each other row one neuron is switched off. So one forward pass removes one
neuron of every site in every layer, from inputs that nothing else has changed.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Int
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

_PROBE_TOKENS = 8

Removed = Mapping[Site, Sequence[int]]
"""The neuron removed at each site, one per layer."""


def check_removal(
    model: HookedModel,
    score: Callable[[Reading], dict[Site, Tensor]],
    *,
    scored: Sequence[Site],
    reads: Sequence[Site],
    target: Literal["pattern", "output"] = "pattern",
) -> None:
    """Refuse a model whose neurons' importance is not what the closed forms say.

    Takes the highest score of every layer and site on a few tokens, removes that neuron, and
    compares the change.

    Args:
        model: The model.
        score: Scores every neuron of a layer by the closed forms.
        scored: The sites of the scores.
        reads: The sites that `score` needs.
        target: What removing a query or key column changes.

    Raises:
        ModelError: They differ; the message names the layer, the site and both numbers.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(model.cfg.d_vocab), (1, _PROBE_TOKENS), generator=generator)
    closed = _closed_scores(model, score, reads, tokens)
    removed = {site: [int(scores[site].argmax()) for scores in closed] for site in scored}
    changes = measured_removal(model, tokens, removed, target=target)
    half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)  # type: ignore[attr-defined]
    tolerance = 0.25 if half else 1e-2
    for site in scored:
        for layer, (neuron, change) in enumerate(zip(removed[site], changes[site], strict=True)):
            expected = float(closed[layer][site][0, neuron])
            if not abs(change - expected) <= tolerance * max(change, expected) + 1e-6:
                raise ModelError(
                    f"Removing neuron {neuron} at {site.name} in layer {layer} of "
                    f"{model_name(model)} changes {change:.4g}, but the closed form of PLND says "
                    f"{expected:.4g}: this model computes its attention or MLP in a way that is "
                    f"not known here. Leave {site!r} out of sites"
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
    removed: Removed,
    *,
    target: Literal["pattern", "output"] = "pattern",
) -> dict[Site, list[float]]:
    """Remove one neuron per layer and site from a model, and return the change of each.

    Args:
        model: The model.
        tokens: One document.
        removed: For each site the neuron of every layer.
        target: What removing a query or key column changes.

    Returns:
        For each site the L2 norm of the change in every layer.
    """
    layers = range(n_layers(model))
    rows = {site: row for row, site in enumerate(removed, start=1)}
    changes: dict[Site, list[float]] = {site: [] for site in removed}

    def same_input(resid: Tensor, hook: Any) -> Tensor:
        return resid[:1].expand_as(resid).clone()

    def switch_off(values: Tensor, hook: Any, site: Site, neuron: int) -> Tensor:
        flat = flat_neurons(values, site).clone()
        flat[rows[site], :, neuron] = 0
        return flat.view_as(values)

    def measure(values: Tensor, hook: Any, site: Site, layer: int, which: list[Site]) -> None:
        change = widened(values) - widened(values[:1])
        if site == ATTN_Z:
            w_o = widened(model.blocks[layer].attn.W_O)  # type: ignore[attr-defined]
            change = torch.einsum("bpnd,ndm->bpm", change, w_o)
        for removed_at in which:
            changes[removed_at].append(float(torch.linalg.vector_norm(change[rows[removed_at]])))

    patterned = [s for s in removed if s in (ATTN_Q, ATTN_K) and target == "pattern"]
    mlp = [site for site in removed if site == MLP_POST]
    rest = [site for site in removed if site not in (*patterned, *mlp)]
    hooks = [(RESID_PRE.at(layer), same_input) for layer in layers if layer] + [
        (site.at(layer), partial(switch_off, site=site, neuron=neurons[layer]))
        for site, neurons in removed.items()
        for layer in layers
    ]
    readers = [
        (site.at(layer), partial(measure, site=site, layer=layer, which=which))
        for site, which in ((ATTN_PATTERN, patterned), (ATTN_Z, rest), (MLP_OUT, mlp))
        if which
        for layer in layers
    ]
    run_until(model, tokens.expand(1 + len(removed), -1), fwd_hooks=hooks, readers=readers)
    return changes
