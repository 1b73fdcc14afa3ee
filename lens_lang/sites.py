"""Where neurons live in a TransformerLens model, and proof that the model agrees.

A `Site` is one kind of neuron: a hook point in every layer, with one activation per neuron.
This is the only file that spells hook names. `preflight` runs two tokens through a model and
checks every hook that is about to be used: it exists, it fires exactly once per forward pass,
and it has the width that the model's weights have.

Where a neuron *fires* and where it is *switched* are two sites: in a gated MLP the firing of a
neuron is the sign of its gate (`MLP_PRE`), but it is switched at the input of the
down-projection (`MLP_POST`), whose sign says nothing about firing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.errors import ModelError, OptionError, ShapeError, SiteError, near_misses
from lens_lang.key_values import KeyValues

HookFn = Callable[..., Tensor | None]
"""A TransformerLens hook function: ``hook_fn(tensor, hook=...)``, returning a tensor or None."""

FwdHooks = Sequence[tuple[str | Callable[[str], bool], HookFn]]
"""TransformerLens's own type: pairs of a hook point's name and a function."""


@runtime_checkable
class HookedModel(Protocol):
    """What lens_lang asks of a model: `TransformerBridge` and `HookedTransformer` both fit."""

    cfg: Any

    @property
    def hook_dict(self) -> Mapping[str, Any]:
        """Every hook point by name."""
        ...

    def hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[Any]:
        """Attach hooks for the length of a ``with`` block."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        ...


@dataclass(frozen=True)
class Site:
    """One kind of neuron: a hook point in every layer.

    Attributes:
        name: Short name, used in files and tables.
        hook: Name of the hook point with ``{layer}`` in it.
    """

    name: str
    hook: str

    def at(self, layer: int) -> str:
        """Return the hook point's name in one layer.

        Examples:
            >>> MLP_POST.at(3)
            'blocks.3.mlp.hook_post'
        """
        return self.hook.format(layer=layer)

    def __repr__(self) -> str:
        return self.name.upper()


MLP_PRE = Site("mlp_pre", "blocks.{layer}.mlp.hook_pre")
"""Pre-activation (of the gate, where there is one). A neuron *fires* where this is above 0."""
MLP_UP = Site("mlp_up", "blocks.{layer}.mlp.hook_pre_linear")
"""Up-projection of a gated MLP; absent from plain MLPs."""
MLP_POST = Site("mlp_post", "blocks.{layer}.mlp.hook_post")
"""Input of the down-projection. A neuron is *switched* here."""
ATTN_Q = Site("attn_q", "blocks.{layer}.attn.hook_q")
"""Queries before QK-norm and rotation, heads flattened."""
ATTN_K = Site("attn_k", "blocks.{layer}.attn.hook_k")
"""Keys before QK-norm and rotation, key-value heads flattened."""
ATTN_V = Site("attn_v", "blocks.{layer}.attn.hook_v")
"""Values, key-value heads flattened."""
ATTN_Z = Site("attn_z", "blocks.{layer}.attn.hook_z")
"""Weighted values per query head: the input of the attention's output projection."""
RESID_PRE = Site("resid_pre", "blocks.{layer}.hook_resid_pre")
"""Residual stream before a block."""
RESID_POST = Site("resid_post", "blocks.{layer}.hook_resid_post")
"""Residual stream after a block."""

SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        MLP_PRE,
        MLP_UP,
        MLP_POST,
        ATTN_Q,
        ATTN_K,
        ATTN_V,
        ATTN_Z,
        RESID_PRE,
        RESID_POST,
    )
}
"""Every site by name."""

MLP_OUT = Site("mlp_out", "blocks.{layer}.hook_mlp_out")
"""What the MLP adds to the residual stream: behind its post-norm, where there is one."""
ATTN_PATTERN = Site("attn_pattern", "blocks.{layer}.attn.hook_pattern")
"""Attention pattern, ``batch head query key``."""
ROTARY_COS = Site("rotary_cos", "blocks.{layer}.attn.hook_cos")
"""Cosines of the rotation at each position; only bridges have it."""
ROTARY_SIN = Site("rotary_sin", "blocks.{layer}.attn.hook_sin")
"""Sines of the rotation at each position; only bridges have it."""
POST_NORMALIZED = Site("post_normalized", "blocks.{layer}.ln2_post.hook_normalized")
"""The MLP's output divided by its root mean square, where a norm follows the MLP."""
POST_SCALE = Site("post_scale", "blocks.{layer}.ln2_post.hook_scale")
"""That root mean square."""

_PER_HEAD = (ATTN_Q, ATTN_K, ATTN_V, ATTN_Z)

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": partial(torch.nn.functional.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.nn.functional.relu,
    "relu2": lambda x: torch.nn.functional.relu(x).square(),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


def find_site(name: str) -> Site:
    """Return a site by its name.

    Raises:
        SiteError: No site has that name.

    Examples:
        >>> find_site("mlp_post")
        MLP_POST
    """
    if name not in SITES:
        raise SiteError(f"There is no site {name!r}{near_misses(name, SITES)}")
    return SITES[name]


def has_neurons(site: Site) -> bool:
    """Say whether a site's last axes number neurons; patterns, tables and scales have none.

    Examples:
        >>> has_neurons(MLP_POST), has_neurons(ATTN_PATTERN)
        (True, False)
    """
    return site.name in SITES


def switch_site(site: Site) -> Site:
    """Return the site where a neuron found at `site` is switched.

    Firing is read before the activation function and written after it.

    Examples:
        >>> switch_site(MLP_PRE), switch_site(ATTN_V)
        (MLP_POST, ATTN_V)
    """
    return MLP_POST if site == MLP_PRE else site


def n_layers(model: HookedModel) -> int:
    """Return how many transformer blocks a model has."""
    return int(model.cfg.n_layers)


def is_gated(model: HookedModel) -> bool:
    """Say whether the MLPs multiply an activated gate with an up-projection."""
    return MLP_UP.at(0) in model.hook_dict


def site_width(model: HookedModel, site: Site) -> int:
    """Return how many neurons a site has in each layer, read from the model's weights.

    Args:
        model: The model.
        site: The site.

    Returns:
        Neurons per layer. Head dimensions are flattened, and keys and values are counted in
        key-value heads, not repeated per query head.
    """
    cfg = model.cfg
    if site in (MLP_PRE, MLP_UP, MLP_POST):
        # cfg.d_mlp is wrong for OPT and XGLM on the bridge; only quantised weights, which
        # have no readable matrix, fall back on it.
        try:
            return int(model.blocks[0].mlp.W_out.shape[0])  # type: ignore[attr-defined]
        except NotImplementedError:
            return int(cfg.d_mlp)
    if site in (ATTN_K, ATTN_V):
        kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
        return int(kv_heads) * int(cfg.d_head)
    if site in (ATTN_Q, ATTN_Z):
        return int(cfg.n_heads) * int(cfg.d_head)
    return int(cfg.d_model)


def flat_neurons(values: Tensor, site: Site) -> Float[Tensor, "batch pos neuron"]:
    """Return activations with the heads flattened, so that one axis numbers the neurons.

    Args:
        values: What a hook received: ``batch pos d`` or ``batch pos head d_head``.
        site: Where it was received.

    Returns:
        A view with one axis of neurons.
    """
    return values.flatten(2) if site in _PER_HEAD else values


def check_supported(model: HookedModel) -> None:
    """Refuse models whose neurons do not mean what lens_lang would say they mean.

    Raises:
        ModelError: The model is a mixture of experts, or its weights were processed.
    """
    cfg = model.cfg
    if getattr(cfg, "num_experts", None):
        raise ModelError(
            f"{model_name(model)} is a mixture of experts: its MLP hooks see the block's input "
            "and output or routed tokens, not neurons. Mixtures of experts are not supported yet."
        )
    folded = getattr(model, "_weights_processed", False) or str(
        getattr(cfg, "normalization_type", "")
    ).endswith("Pre")
    if folded:
        raise ModelError(
            f"The weights of {model_name(model)} were processed (layer norms folded, value biases "
            "moved), which changes what switching a neuron does. Load it raw: lens_lang.load_model"
            "(...), or HookedTransformer.from_pretrained_no_processing(...), or "
            "enable_compatibility_mode(no_processing=True)."
        )


def model_name(model: HookedModel) -> str:
    """Return the name that a model's configuration carries."""
    return str(getattr(model.cfg, "model_name", None) or "the model")


def check_hooks(model: HookedModel, fwd_hooks: FwdHooks) -> None:
    """Refuse hook names that a model does not have.

    TransformerLens 3 ignores them in silence, so a misspelt name would look like no effect.

    Args:
        model: The model.
        fwd_hooks: Hooks about to be attached.

    Raises:
        OptionError: These are no hooks.
        SiteError: A name is unknown; the message offers near misses.
    """
    pairs = isinstance(fwd_hooks, Sequence)
    if not (pairs and all(isinstance(hook, Sequence) and len(hook) == 2 for hook in fwd_hooks)):
        raise OptionError(
            "Hooks are a list of (name, function), as lens_lang.ablate(neurons['fr']) gives, got "
            f"{type(fwd_hooks).__name__}"
        )
    for name, _ in fwd_hooks:
        if callable(name) or name in model.hook_dict:  # TransformerLens also takes filters
            continue
        advice = near_misses(name, model.hook_dict)
        if name.endswith("mlp.hook_pre_linear"):
            advice = (
                ": its MLPs have no gate. Use space='product', which on such a model is the same "
                "as gate space"
            )
        raise SiteError(f"{model_name(model)} has no hook point {name!r}{advice}")


def hooked_names(model: HookedModel, fwd_hooks: FwdHooks) -> list[str]:
    """Return the names of the hook points that hooks act on.

    Args:
        model: The model.
        fwd_hooks: Hooks, by name or by TransformerLens's filter functions on names.
    """
    found: list[str] = []
    for name, _ in fwd_hooks:
        found += [each for each in model.hook_dict if name(each)] if callable(name) else [name]
    return found


class _Stop(Exception):
    """Leaves a forward pass as soon as nothing more is needed of it."""


@contextmanager
def _until_stopped(model: HookedModel, fwd_hooks: FwdHooks) -> Iterator[None]:
    """Attach hooks, and let `_Stop` end the forward pass quietly."""
    with model.hooks(fwd_hooks=list(fwd_hooks)), suppress(_Stop):
        yield


def run_until(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    *,
    attention_mask: Bool[Tensor, "batch pos"] | None = None,
    fwd_hooks: FwdHooks = (),
    readers: FwdHooks,
    gradients: bool = False,
    past: KeyValues | None = None,
) -> None:
    """Run a model only as far as the last reader needs.

    The unembedding is half the time and most of the memory of a small multilingual model, and
    ``stop_at_layer=n_layers`` does not skip it on the bridge. The last reader to fire ends the
    pass instead, by an exception that TransformerLens cleans up after on every backend.

    Args:
        model: The model.
        tokens: Token ids.
        attention_mask: False at padding; None when there is none.
        fwd_hooks: Interventions, attached before the readers so that readers see their effect.
        readers: Functions that must each see their hook point once. They return None.
        gradients: Keep what a backward pass needs.
        past: What the model has read of these rows before; it comes to hold these tokens too.
    """
    waiting = len(readers)

    def read(values: Tensor, hook: Any, reader: HookFn) -> None:
        nonlocal waiting
        reader(values, hook=hook)
        waiting -= 1
        if waiting == 0:
            raise _Stop

    wrapped = [(name, partial(read, reader=reader)) for name, reader in readers]
    device = getattr(model.cfg, "device", None)
    tokens = tokens if device is None else tokens.to(device)
    if past is not None:
        real = torch.ones_like(tokens, dtype=torch.bool)
        arguments = past.arguments(
            real if attention_mask is None else attention_mask, tokens.device
        )
    else:
        mask = None if attention_mask is None else attention_mask.to(tokens.device, torch.long)
        arguments = {"attention_mask": mask}
    mode = torch.enable_grad() if gradients else torch.inference_mode()
    with mode, _until_stopped(model, [*fwd_hooks, *wrapped]):
        model(tokens, **arguments)
    if waiting:
        raise SiteError(
            f"{waiting} of {len(readers)} hook points never fired in a forward pass of "
            f"{model_name(model)}; preflight(model, sites) says which"
        )


def preflight(model: HookedModel, sites: Sequence[Site]) -> dict[Site, int]:
    """Check that a model's hook points are what lens_lang takes them for.

    Runs two tokens through the model and checks, for every layer of every site, that the hook
    point exists, fires exactly once, and is as wide as the model's weights say.

    Args:
        model: The model.
        sites: The sites that are about to be used.

    Returns:
        Neurons per layer of each site that has any.

    Raises:
        SiteError: A hook point is missing, silent, fires twice, or has another width.
        ModelError: The model is of a kind that is refused (see `check_supported`).
    """
    check_supported(model)
    if MLP_UP in sites and not is_gated(model):
        raise SiteError(f"{model_name(model)} has MLPs without a gate, so it has no site mlp_up")
    names = {site.at(layer): site for site in sites for layer in range(n_layers(model))}
    check_hooks(model, [(name, _ignore) for name in names])
    shapes: dict[str, list[torch.Size]] = {name: [] for name in names}

    def note(values: Tensor, hook: Any, name: str) -> None:
        shapes[name].append(values.shape)

    probe = torch.tensor([[0, 1]], device=getattr(model.cfg, "device", None))
    hooks = [(name, partial(note, name=name)) for name in names]
    # The whole pass, unlike `run_until`: only so can a second firing be seen.
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        model(probe)
    widths = {site: site_width(model, site) for site in sites if has_neurons(site)}
    for name, site in names.items():
        _check_firing(model, name, shapes[name], widths.get(site))
    return widths


def _ignore(values: Tensor, hook: Any) -> None:
    """A hook that does nothing."""


def _check_firing(
    model: HookedModel, name: str, shapes: list[torch.Size], width: int | None
) -> None:
    if len(shapes) != 1:
        times = f"{len(shapes)} times" if shapes else "never"
        raise SiteError(
            f"{name!r} of {model_name(model)} fires {times} in one forward pass, so what it would "
            "count is wrong; it must fire exactly once"
        )
    found = shapes[0][2:].numel()
    if width is not None and found != width:
        raise SiteError(
            f"{name!r} of {model_name(model)} is {found} wide, but the weights say {width} "
            "neurons: this hook point does not hold the neurons of this layer"
        )


def gate_activation(model: HookedModel) -> Callable[[Tensor], Tensor]:
    """Return the function that a gated MLP applies to its gate, found by measurement.

    TransformerLens has no hook point on ``act(gate)``, and its configuration names a wrong
    function for several architectures. So the candidates are compared with what the model does
    at two tokens: ``act(hook_pre) * hook_pre_linear == hook_post``.

    Args:
        model: A model with gated MLPs.

    Returns:
        The activation function.

    Raises:
        ModelError: No known function fits, or the MLPs have no gate.
    """
    if not is_gated(model):
        raise ModelError(f"{model_name(model)} has no gated MLPs, so there is no gate to activate")
    seen: dict[Site, Tensor] = {}

    def keep(values: Tensor, hook: Any, site: Site) -> None:
        seen[site] = values.float()

    readers = [(site.at(0), partial(keep, site=site)) for site in (MLP_PRE, MLP_UP, MLP_POST)]
    run_until(model, torch.tensor([[0, 1]]), readers=readers)
    size = seen[MLP_POST].norm()
    errors = {
        name: float((function(seen[MLP_PRE]) * seen[MLP_UP] - seen[MLP_POST]).norm() / size)
        for name, function in _ACTIVATIONS.items()
    }
    best = min(errors, key=errors.__getitem__)
    # Rounding of half-precision products stays far below what separates the candidates.
    if not errors[best] < 1e-2:
        raise ModelError(
            f"The gate of {model_name(model)} is activated by none of {', '.join(_ACTIVATIONS)} "
            f"(closest: {best}, {errors[best]:.0%} off); use space='product' instead of gate space"
        )
    return _ACTIVATIONS[best]


def check_layers(
    model: HookedModel, site: Site, shape: tuple[int, int], *, what: str = "neurons"
) -> None:
    """Refuse neurons, values or statistics that were made for another model.

    Args:
        model: The model they are about to be used with.
        site: Their site.
        shape: Their number of layers and of neurons per layer.
        what: What they are, for the message.

    Raises:
        ShapeError: The model has other layers or another width.
    """
    expected = (n_layers(model), site_width(model, site))
    if shape != expected:
        raise ShapeError(
            f"These {what} are for a model with {shape[0]} layers of {shape[1]} at {site.name}, "
            f"but {model_name(model)} has {expected[0]} layers of {expected[1]}: they belong to "
            "another model"
        )
