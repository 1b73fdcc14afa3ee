"""Which sign a neuron's activation has where the neuron fires.

A gated neuron fires where its gate is above 0, and writes act(gate) times up, which has the sign of
up. Where that is below 0, the neuron writes the opposite of its output vector. `FiringSign` counts
both in the pass in which contexts are looked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lens_lang.errors import OptionError, ShapeError, SiteError, near_misses
from lens_lang.neurons import NeuronSet
from lens_lang.saved import Saved
from lens_lang.single_neurons import NeuronName, neuron_place
from lens_lang.sites import MLP_POST, MLP_PRE, HookedModel, check_layers
from lens_lang.specs import Reading, Sums
from lens_lang.stats import added, check_axes

Sign = Literal["positive", "negative", "either", "unknown"]
"""Which sign an activation has where its neuron fires."""

MOSTLY = 0.75
"""An activation has one sign if it has it at no less than this share of the firing tokens."""


@dataclass(frozen=True, eq=False)
class NeuronSigns(Saved):
    """At how many of the tokens at which a neuron fires its activation is above 0.

    Results of two halves of a corpus, of two machines or of two days are joined with ``+``.

    Attributes:
        languages: Names of the first axis.
        neurons: Names of the second axis, such as ``"12.1542"``.
        positive: Tokens at which the neuron fires and its activation is above 0.
        fires: Tokens at which it fires.
        n_tokens: Number of tokens of each language.
        provenance: Model, corpora and versions, as JSON values.

    Examples:
        >>> signs = NeuronSigns(
        ...     languages=("en", "fr"), neurons=("12.1542",), positive=torch.tensor([[1], [0]]),
        ...     fires=torch.tensor([[2], [30]]), n_tokens=torch.tensor([40, 40]))
        >>> (signs + signs).of("12.1542")
        {'en': (2, 4), 'fr': (0, 60)}
    """

    languages: tuple[str, ...]
    neurons: tuple[str, ...]
    positive: Int[Tensor, "lang neuron"]
    fires: Int[Tensor, "lang neuron"]
    n_tokens: Int[Tensor, "lang"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    _same: ClassVar[tuple[str, ...]] = ("languages", "neurons")
    _summed: ClassVar[tuple[str, ...]] = ("positive", "fires", "n_tokens")

    def __post_init__(self) -> None:
        check_axes(self.languages, self.n_tokens, self.positive, self.fires)
        if self.fires.shape[1] != len(self.neurons):
            raise ShapeError(
                f"{len(self.neurons)} neurons need as many columns, got {self.fires.shape[1]}"
            )
        counts = (torch.zeros_like(self.fires), self.positive, self.fires, self.n_tokens[:, None])
        if any(bool((few > many).any()) for few, many in zip(counts, counts[1:], strict=False)):
            raise ShapeError(
                "A neuron cannot be above 0 more often than it fires, nor fire more "
                "often than there are tokens"
            )

    def of(self, neuron: NeuronName) -> dict[str, tuple[int, int]]:
        """Return by language at how many firing tokens it is above 0, and how many there are.

        Args:
            neuron: ``(12, 1542)`` or ``"12.1542"``.

        Raises:
            OptionError: The neuron is not among those that were collected.
        """
        layer, index = neuron_place(neuron)
        name = f"{layer}.{index}"
        if name not in self.neurons:
            raise OptionError(
                f"The sign of neuron {name} was not collected{near_misses(name, self.neurons)}"
            )
        place = self.neurons.index(name)
        both = zip(self.positive[:, place].tolist(), self.fires[:, place].tolist(), strict=True)
        return dict(zip(self.languages, both, strict=True))

    def __repr__(self) -> str:
        tokens = zip(self.languages, self.n_tokens.tolist(), strict=True)
        counted = ", ".join(f"{lang} {n:,}" for lang, n in tokens)
        return f"NeuronSigns({len(self.neurons)} neurons; tokens: {counted})"

    def __add__(self, other: "NeuronSigns") -> "NeuronSigns":
        return added(self, other)


@dataclass(frozen=True, eq=False)
class FiringSign:
    """Count how often neurons are above 0 where they fire: a spec for `lens_lang.collect`.

    A neuron fires where its pre-activation is above 0 (``MLP_PRE``), and its activation is what it
    is switched by (``MLP_POST``). Every document is read in a row of its own, as for `TopContexts`,
    with which it shares a pass.

    Attributes:
        neurons: Neurons of an MLP.
        max_tokens: Longer documents are cut here.
    """

    neurons: NeuronSet
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if not isinstance(self.neurons, NeuronSet):
            raise OptionError(
                f"FiringSign takes a NeuronSet, got {type(self.neurons).__name__}: give "
                "neurons['fr'], or neurons.union() for those of all languages"
            )
        if self.neurons.site not in (MLP_PRE, MLP_POST):
            raise SiteError(
                f"Only neurons of an MLP fire and have a sign, got some of {self.neurons.site.name}"
            )
        if self.max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, got {self.max_tokens}")

    def bind(self, model: HookedModel) -> "_BoundSign":
        """Fit the spec to a model.

        Raises:
            ShapeError: The neurons are of another model.
        """
        site = self.neurons.site
        layers, width = self.neurons.masks[site].shape
        check_layers(model, site, (layers, width))
        return _BoundSign(self)


class _BoundSign:
    sites = (MLP_PRE, MLP_POST)

    def __init__(self, spec: FiringSign) -> None:
        self.document_tokens = spec.max_tokens
        self.chosen = [row.nonzero().flatten() for row in spec.neurons.masks[spec.neurons.site]]
        # layers are stacked, so all have as many slots as the fullest one
        self.slots = max(len(each) for each in self.chosen)

    def update(self, sums: Sums, reading: Reading) -> None:
        before, after = (reading.tokens(site) for site in self.sites)
        chosen = self.chosen[reading.layer].to(before.device)
        fires = before.index_select(1, chosen) > 0
        positive = fires & (after.index_select(1, chosen.to(after.device)) > 0).to(fires.device)
        for name, each in (("fires", fires), ("positive", positive)):
            counts = torch.zeros(self.slots, dtype=torch.int64, device=each.device)
            counts[: len(chosen)] = each.sum(0)
            sums.add(name, reading.layer, counts)

    def result(
        self, sums: Mapping[str, Mapping[str, Tensor]], n_tokens: Mapping[str, int]
    ) -> NeuronSigns:
        return NeuronSigns(
            positive=self._flat([own["positive"] for own in sums.values()]),
            fires=self._flat([own["fires"] for own in sums.values()]),
            languages=tuple(sums),
            neurons=tuple(
                f"{layer}.{index}"
                for layer, each in enumerate(self.chosen)
                for index in each.tolist()
            ),
            n_tokens=torch.tensor(list(n_tokens.values())),
        )

    def _flat(self, counts: list[Tensor]) -> Int[Tensor, "lang neuron"]:
        """Layers and their slots as one axis, without the empty slots."""
        stacked = torch.stack(counts)
        return torch.cat(
            [stacked[:, layer, : len(each)] for layer, each in enumerate(self.chosen)], 1
        )


def share_positive(counts: Mapping[str, tuple[int, int]]) -> float | None:
    """Return the share of all firing tokens at which a neuron is above 0; None without any.

    Args:
        counts: As `NeuronSigns.of` gives them.

    Examples:
        >>> share_positive({"en": (1, 2), "fr": (0, 6)}), share_positive({"en": (0, 0)})
        (0.125, None)
    """
    fires = sum(each for _, each in counts.values())
    return sum(each for each, _ in counts.values()) / fires if fires else None


def usual_sign(counts: Mapping[str, tuple[int, int]]) -> Sign:
    """Say which sign an activation mostly has where its neuron fires.

    Args:
        counts: As `NeuronSigns.of` gives them.

    Returns:
        One of the two if it has it at `MOSTLY` of the firing tokens, all languages together; else
        ``"either"``; without a firing token ``"unknown"``.

    Examples:
        >>> usual_sign({"en": (1, 2), "fr": (0, 6)}), usual_sign({"en": (1, 2)}), usual_sign({})
        ('negative', 'either', 'unknown')
    """
    share = share_positive(counts)
    if share is None:
        return "unknown"
    if share >= MOSTLY:
        return "positive"
    return "negative" if share <= 1 - MOSTLY else "either"
