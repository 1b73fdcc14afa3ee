"""Switching neurons off, scaling them, setting them, adding to them: as TransformerLens hooks.

Every function returns a plain list of (hook point's name, hook function), which goes into
``model.hooks(fwd_hooks=...)`` or ``model.run_with_hooks(..., fwd_hooks=...)`` and is joined with
anybody else's hooks by ``+``. The hook functions return new tensors, know their layer, and never
look at positions unless told to.

In a gated MLP, act(gate) has no hook point of its own. Zeroing and scaling it is the same as
zeroing and scaling the product act(gate) * up; *setting* it to c and *adding* c to it is not, but
is writing c * up, and adding c * up, to the product. That is what ``space="gate"`` does, with a
second hook that takes note of the up-projection.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import OptionError, ShapeError, SiteError
from lens_lang.neurons import LanguageNeurons, NeuronSet, draw_others
from lens_lang.positions import Positions, acts_on, check_positions
from lens_lang.sites import MLP_POST, MLP_UP, FwdHooks, HookFn, Site
from lens_lang.stats import Activations, check_result
from lens_lang.vectors import VectorEdit

Hooks = list[tuple[str, HookFn]]
"""What every function here returns."""

EditSpace = Literal["gate", "product"]
"""Whether a value stands for act(gate), or for what goes into the down-projection."""

Values = Float[Tensor, "layer neuron"] | Float[Tensor, "layer 1"] | float | int
"""One value per neuron of the model, per layer, or one for all."""

_NAMED = 8
"""So many neurons an edit names, with their values; of more it says how many they are."""


@dataclass(frozen=True, eq=False)
class UpProjection:
    """A hook function that takes note of a layer's up-projection for the edit that follows it."""

    layer: int
    held: list[Tensor] = field(default_factory=list, repr=False)

    def __call__(self, values: Tensor, hook: Any = None) -> None:
        """Keep the tensor until the edit takes it."""
        self.held[:] = [values]

    def take(self) -> Tensor:
        """Return the tensor of this forward pass, and forget it."""
        if not self.held:
            raise SiteError(
                f"The up-projection of layer {self.layer} was not seen before its neurons were "
                "set in gate space: this MLP has no gate (use space='product', which there is "
                "the same), or only part of the hooks were attached"
            )
        return self.held.pop()


@dataclass(frozen=True, eq=False)
class NeuronEdit:
    """A hook function that changes chosen neurons of one layer, and says which.

    Attributes:
        site: The site of the neurons.
        layer: Their layer.
        indices: Which neurons of the layer.
        width: How many neurons the layer has.
        kind: ``scale`` multiplies by the value, ``set`` writes it, ``add`` adds it.
        values: One value per chosen neuron.
        positions: Where the edit applies.
        up: Where the value is in gate space, the note of the up-projection.
    """

    site: Site
    layer: int
    indices: Int[Tensor, "chosen"]
    width: int
    kind: Literal["scale", "set", "add"]
    values: Float[Tensor, "chosen"]
    positions: Positions = "all"
    up: UpProjection | None = None

    def __call__(self, activations: Tensor, hook: Any = None) -> Tensor | None:
        """Return the activations with the chosen neurons changed; the input is left alone."""
        flat = activations.flatten(2)
        if flat.shape[-1] != self.width:
            raise ShapeError(
                f"These neurons are for a model with {self.width} neurons in a layer at "
                f"{self.site.name}, but layer {self.layer} has {flat.shape[-1]}: they belong to "
                "another model"
            )
        up = None if self.up is None else self.up.take()
        if not acts_on(flat, self.positions):
            return None
        indices = self.indices.to(flat.device)
        values = self.values.to(flat.device, flat.dtype)
        if self.kind == "set" and up is None:
            changed = values.expand(*flat.shape[:2], -1)
        else:
            amount = values if up is None else values * up.index_select(-1, indices)
            old = flat.index_select(-1, indices)
            changed = {"scale": old * values, "add": old + amount, "set": amount}[self.kind]
        return flat.index_copy(-1, indices, changed).view_as(activations)

    def with_neurons(self, indices: Int[Tensor, "chosen"]) -> "NeuronEdit":
        """Return the same edit on as many other neurons of the layer."""
        return dataclasses.replace(self, indices=indices)

    def __repr__(self) -> str:
        said = f"{self.kind} {len(self.indices)} of {self.site.name} layer {self.layer}"
        if len(self.indices) <= _NAMED:
            both = zip(self.indices.tolist(), self.values.tolist(), strict=True)
            said += f" ({', '.join(f'{index}: {value:g}' for index, value in both)})"
        return said + ("" if self.positions == "all" else f", {self.positions} tokens only")


def ablate(neurons: NeuronSet, *, positions: Positions = "all") -> Hooks:
    """Switch neurons off: set them to 0 at every token.

    For a gated MLP this is the same as setting act(gate) to 0, the deactivation of Tang et al.
    (2024); for queries, keys and values the same as zeroing the neuron's column of
    the projection and its bias.

    Args:
        neurons: Which neurons. None of them gives no hooks.
        positions: ``"all"``; or, while generating with a key-value cache, only the ``"prompt"``
            (anything longer than one token) or only ``"new"`` tokens.

    Returns:
        TransformerLens hooks.

    Examples:
        >>> some = NeuronSet({MLP_POST: torch.eye(2, 4, dtype=torch.bool)})
        >>> [name for name, _ in ablate(some)]
        ['blocks.0.mlp.hook_post', 'blocks.1.mlp.hook_post']
        >>> ablate(some)[0][1](torch.ones(1, 1, 4))
        tensor([[[0., 1., 1., 1.]]])
    """
    # Written, not multiplied: infinity times 0 would be NaN.
    return _edits(neurons, "set", 0.0, positions)


def scale(neurons: NeuronSet, factor: Values, *, positions: Positions = "all") -> Hooks:
    """Multiply neurons by a factor: below 1 damps them, above 1 makes them louder.

    Args:
        neurons: Which neurons.
        factor: One for all, or one per neuron of the model.
        positions: See `ablate`.

    Returns:
        TransformerLens hooks.
    """
    return _edits(neurons, "scale", factor, positions)


def replace(
    neurons: NeuronSet,
    values: Values,
    *,
    space: EditSpace = "gate",
    positions: Positions = "all",
) -> Hooks:
    """Set neurons to fixed values at every token.

    Args:
        neurons: Which neurons.
        values: For example ``mean["fr"]``; one value per neuron of the model, or one for all.
        space: ``"gate"``: the value is that of act(gate), so that value * up goes into the
            down-projection. ``"product"``: the value goes there itself. Only in gated MLPs do
            they differ; elsewhere ``"product"`` is the one to use.
        positions: See `ablate`.

    Returns:
        TransformerLens hooks: in gate space, two for every layer.
    """
    return _edits(neurons, "set", values, positions, space)


def add(
    neurons: NeuronSet,
    values: Values,
    *,
    space: EditSpace = "gate",
    positions: Positions = "all",
) -> Hooks:
    """Add fixed values to neurons at every token.

    Args:
        neurons: Which neurons.
        values: What to add; one value per neuron of the model, or one for all.
        space: ``"gate"``: add to act(gate), which adds value * up to what goes into the
            down-projection. ``"product"``: add to that itself.
        positions: See `ablate`.

    Returns:
        TransformerLens hooks.
    """
    return _edits(neurons, "add", values, positions, space)


def steer(
    neurons: LanguageNeurons,
    *,
    source: str,
    target: str,
    mean: Activations,
    strength: float = 1.0,
    how: Literal["replace", "add"] = "replace",
    positions: Positions = "all",
) -> Hooks:
    """Turn a model from one language to another, as Tang et al. (2024) do.

    Switches the source language's neurons off and sets the target language's to their mean
    activation on target-language text, or adds that mean to what they are. A neuron of both
    languages is the target's.

    Args:
        neurons: The neurons of the languages.
        source: Language to leave.
        target: Language to speak.
        mean: Mean activations, in gate or product space.
        strength: Factor on the mean.
        how: ``"replace"`` the target neurons' values, as in the paper, or ``"add"`` to them.
        positions: See `ablate`.

    Returns:
        TransformerLens hooks.

    Raises:
        LanguageError: A language is not among the neurons', or not among the means'.
        OptionError: The means are of the up-projection or the residual stream, or `how` is
            another word.
    """
    if how not in ("replace", "add"):
        raise OptionError(f"how must be replace or add, got {how!r}")
    check_result(mean, Activations, taken_by="steer")
    if mean.space not in ("gate", "product"):
        what = {"up": "the up-projection", "residual": "the residual stream"}[mean.space]
        raise OptionError(
            f"Steering sets neurons to their mean activation, but these are means of {what}: "
            "collect MeanActivation() or MeanActivation(space='product')"
        )
    off = neurons[source] - neurons[target]
    values = (mean[target] * strength).float()
    space: EditSpace = "gate" if mean.space == "gate" else "product"
    write = replace if how == "replace" else add
    on = write(neurons[target], values, space=space, positions=positions)
    return ablate(off, positions=positions) + on


def matched_control(fwd_hooks: FwdHooks, *, generator: torch.Generator) -> Hooks:
    """Return the same interventions on as many other neurons of the same layers, at random.

    Values that belong to a neuron stay with its place in the list, so the random neurons are
    set to values that other neurons have: the control for "which neurons", not for "which
    values". The control of a vector (`lens_lang.shift`) is as long a vector in a
    random direction, the same in all its layers.

    Args:
        fwd_hooks: Hooks made by this module.
        generator: Source of randomness.

    Returns:
        The control's hooks.

    Raises:
        OptionError: A hook is not of this module, so nobody can say what would match it.
        ShapeError: A layer has too few other neurons.
    """
    controls: Hooks = []
    named = [(name, hook) for name, hook in fwd_hooks if isinstance(name, str)]
    if len(named) < len(fwd_hooks):
        raise OptionError(
            "A hook is placed by a filter function, so it has no matched control: place it by name"
        )
    # Two edits of the same layer (as in `steer`) must not draw each other's neurons.
    taken: dict[tuple[str, int], Tensor] = {}
    edits = [(name, edit) for name, edit in named if isinstance(edit, NeuronEdit)]
    for name, edit in edits:
        mask = taken.setdefault((name, edit.width), torch.zeros(edit.width, dtype=torch.bool))
        mask[edit.indices] = True
    notes: dict[int, UpProjection] = {}
    directions: dict[int, Tensor] = {}
    for name, hook in named:
        if isinstance(hook, UpProjection):
            notes[id(hook)] = UpProjection(hook.layer)
            controls.append((name, notes[id(hook)]))
        elif isinstance(hook, NeuronEdit):
            mask = taken[name, hook.width]
            drawn = draw_others(
                mask, len(hook.indices), generator=generator, site=hook.site, layer=hook.layer
            )
            mask[drawn] = True
            edit = hook.with_neurons(drawn)
            if hook.up is not None:
                edit = dataclasses.replace(edit, up=notes[id(hook.up)])
            controls.append((name, edit))
        elif isinstance(hook, VectorEdit):
            # One direction for all layers: differences of languages point the same way in each.
            size = len(hook.vector)
            if size not in directions:
                directions[size] = torch.randn(size, generator=generator)
            controls.append((name, hook.along(directions[size])))
        else:
            raise OptionError(
                f"The hook at {name!r} was not made by lens_lang, so it has no matched control: "
                "use controls=0, or leave it out"
            )
    return controls


def describe_hooks(fwd_hooks: FwdHooks) -> list[str]:
    """Say what hooks do, site by site, for a result's provenance.

    Args:
        fwd_hooks: Hooks; those that lens_lang did not make are counted.

    Returns:
        Such as ``"set 72 neurons of mlp_post to 0"``; empty for no hooks.

    Examples:
        >>> some = NeuronSet({MLP_POST: torch.eye(2, 4, dtype=torch.bool)})
        >>> describe_hooks([*ablate(some), *scale(some, 0.5)])
        ['set 2 neurons of mlp_post to 0', 'scale 2 neurons of mlp_post by 0.5']
    """
    neurons: dict[tuple[str, str, str], int] = {}
    said: list[str] = []
    strange = 0
    for _, hook in fwd_hooks:
        if isinstance(hook, NeuronEdit):
            key = (hook.kind, hook.site.name, _amount(hook))
            neurons[key] = neurons.get(key, 0) + len(hook.indices)
        elif isinstance(hook, VectorEdit):
            said.append(repr(hook))
        elif not isinstance(hook, UpProjection):
            strange += 1
    if strange:
        said.append(f"{strange} hook{'' if strange == 1 else 's'} not made by lens_lang")
    edits = []
    for (kind, site, amount), count in neurons.items():
        many = f"{count} neuron{'' if count == 1 else 's'} of {site}"
        word = {"set": "to", "scale": "by"}.get(kind)
        edits.append(f"{kind} {many} {word} {amount}" if word else f"add {amount} to {many}")
    return edits + said


def _amount(edit: NeuronEdit) -> str:
    """The value that all its neurons have, or that each has its own; and of what it is."""
    found = sorted(set(edit.values.tolist()))
    said = f"{found[0]:g}" if len(found) == 1 else "a value of its own for each"
    return f"{said} (as act(gate))" if edit.up is not None else said


def _edits(
    neurons: NeuronSet,
    kind: Literal["scale", "set", "add"],
    values: Values,
    positions: Positions,
    space: EditSpace = "product",
) -> Hooks:
    if not isinstance(neurons, NeuronSet):
        raise OptionError(
            f"Interventions take a NeuronSet, got {type(neurons).__name__}: choose a language, "
            "as in ablate(neurons['fr'])"
        )
    check_positions(positions)
    if space not in ("gate", "product"):
        raise OptionError(f"space must be gate or product, got {space!r}")
    hooks: Hooks = []
    for site, mask in neurons.masks.items():
        chosen_values = _per_neuron(values, site, mask)
        for layer in mask.any(1).nonzero().flatten().tolist():
            indices = mask[layer].nonzero().flatten()
            up = None
            if space == "gate" and site == MLP_POST:
                up = UpProjection(layer)
                hooks.append((MLP_UP.at(layer), up))
            edit = NeuronEdit(
                site=site,
                layer=layer,
                indices=indices,
                width=mask.shape[1],
                kind=kind,
                values=chosen_values[layer, indices],
                positions=positions,
                up=up,
            )
            hooks.append((site.at(layer), edit))
    return hooks


def _per_neuron(values: Values, site: Site, mask: Tensor) -> Float[Tensor, "layer neuron"]:
    tensor = torch.as_tensor(values, dtype=torch.float32).detach().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise OptionError("The values to intervene with contain NaN or infinity")
    if tensor.ndim not in (0, 2) or (
        tensor.ndim == 2 and tensor.shape not in (mask.shape, (mask.shape[0], 1))
    ):
        raise ShapeError(
            f"The values must be one number, or one per layer and neuron {tuple(mask.shape)} as "
            f"the neurons at {site.name}, got shape {tuple(tensor.shape)}"
        )
    return tensor.expand(mask.shape)
