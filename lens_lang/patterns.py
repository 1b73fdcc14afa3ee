"""In how many languages of an example a neuron fires: what to sum, and what came out.

Wang et al. (2024), section 3: at the last token of a prompt a neuron fires or not in each of the
prompt's translations. All-shared neurons fire in all of them, partial-shared in some, specific ones
in exactly one, non-activated in none. Every example divides the neurons anew; what is kept are
sums over examples, and for each example how many neurons of a layer are of which kind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Integer, UInt8
from torch import Tensor

from lens_lang.errors import LanguageError, OptionError, ShapeError
from lens_lang.languages import distinct_languages
from lens_lang.saved import Saved
from lens_lang.sites import (
    MLP_POST,
    MLP_PRE,
    HookedModel,
    Site,
    flat_neurons,
    gate_activation,
    is_gated,
)
from lens_lang.specs import Examples, Reading, Sums
from lens_lang.stats import joined_provenance

CATEGORIES = ("all_shared", "partial_shared", "specific", "non_activated")
"""The kinds of neurons, in the order of every axis ``category``."""

FiringSpace = Literal["gate", "product"]
"""What must be above the threshold: act(gate), or what goes into the down-projection."""

_EXAMPLES_AT_ONCE = 255
"""Examples, and languages, that are counted in a byte."""

Where = Literal["last", "mean", "any"]
"""The last token, the mean over tokens, or any token."""


def categories(fires: Bool[Tensor, "lang *neurons"]) -> Bool[Tensor, "category *neurons"]:
    """Return of which kind each neuron is, from the languages in which it fires.

    Args:
        fires: Whether each neuron fires in each translation of one example.

    Returns:
        One mask per category of `CATEGORIES`; every neuron is in exactly one.

    Raises:
        LanguageError: There are fewer than two languages.

    Examples:
        >>> fires = torch.tensor([[True, False, True, True], [True, False, False, True],
        ...                       [True, False, False, False]])
        >>> [CATEGORIES[kind] for kind in categories(fires).int().argmax(0).tolist()]
        ['all_shared', 'non_activated', 'specific', 'partial_shared']
    """
    _check_languages(len(fires))
    return of_counts(counted(fires), len(fires))


def of_counts(
    languages: Integer[Tensor, "*neurons"], total: int
) -> Bool[Tensor, "category *neurons"]:
    """Return of which kind each neuron is, from the number of languages in which it fires."""
    return torch.stack(
        [languages == total, (languages > 1) & (languages < total), languages == 1, languages == 0]
    )


def counted(fires: Bool[Tensor, "lang *neurons"]) -> UInt8[Tensor, "*neurons"]:
    """Return in how many languages each neuron fires, as bytes.

    Bytes added to bytes, one language after the other: a sum of booleans goes through int64 and
    takes many times as long.
    """
    total = torch.zeros_like(fires[0], dtype=torch.uint8)
    for each in fires:
        total += each.view(torch.uint8)
    return total


@dataclass(frozen=True, eq=False)
class SharingPatterns(Saved):
    """Over examples: in how many languages, and in which, each neuron fired.

    Attributes:
        languages: Names of the axis ``lang``.
        names: The examples'.
        thresholds: A neuron fires where its activation is above this, strictly.
        firing: Examples in which it fired in each language.
        only: Examples in which it fired in this language and no other.
        exactly: Examples in which it fired in exactly 0, 1, ... languages.
        members: For each example, how many neurons of each layer are of which kind.
        space: Which activation was compared.
        position: At which token.
        provenance: Model, examples and versions, as JSON values.
    """

    languages: tuple[str, ...]
    names: tuple[str, ...]
    thresholds: tuple[float, ...]
    firing: Int[Tensor, "threshold lang layer neuron"]
    only: Int[Tensor, "threshold lang layer neuron"]
    exactly: Int[Tensor, "threshold count layer neuron"]
    members: Int[Tensor, "threshold example layer category"]
    space: FiringSpace = "gate"
    position: Where = "last"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_languages(len(distinct_languages(self.languages)))
        levels, langs = len(self.thresholds), len(self.languages)
        layers, neurons = self.firing.shape[-2:]
        expected = {
            "firing": (levels, langs, layers, neurons),
            "only": (levels, langs, layers, neurons),
            "exactly": (levels, langs + 1, layers, neurons),
            "members": (levels, len(self.names), layers, len(CATEGORIES)),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise ShapeError(
                    f"{name} must be {shape} for {levels} thresholds, {langs} languages and "
                    f"{len(self.names)} examples, got {found}"
                )
        if len(set(self.names)) < len(self.names):
            raise OptionError("Two examples have the same name")

    @classmethod
    def from_activations(
        cls,
        activations: Float[Tensor, "example lang layer neuron"],
        languages: Sequence[str],
        *,
        threshold: float | int | Sequence[float | int] = 0.0,
        names: Sequence[str] | None = None,
    ) -> "SharingPatterns":
        """Build patterns by hand, without a model.

        Args:
            activations: One per example, language and neuron.
            languages: Names of the second axis.
            threshold: One or several.
            names: Of the examples; None numbers them.

        Examples:
            >>> acts = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, -1.0]]]])
            >>> SharingPatterns.from_activations(acts, ("en", "fr", "de")).members.tolist()
            [[[[1, 0, 0, 1]]]]
        """
        number, _, layers, _ = activations.shape
        called = tuple(map(str, range(number))) if names is None else tuple(names)
        levels = levels_of(threshold)
        _check_languages(len(languages))
        sums = Sums()
        for some in torch.split(torch.arange(number), _EXAMPLES_AT_ONCE):
            for layer in range(layers):
                _add(sums, layer, activations[some, :, layer], levels, some, number)
        return _result(sums.stacked(), Examples(tuple(languages), called), levels, "gate", "last")

    @property
    def n_examples(self) -> int:
        """How many examples were read."""
        return len(self.names)

    def __add__(self, other: "SharingPatterns") -> "SharingPatterns":
        """Join the patterns of other examples, measured in the same way."""
        if not isinstance(other, SharingPatterns):
            return NotImplemented
        for name in ("languages", "thresholds", "space", "position"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ShapeError(
                    f"Cannot add patterns that differ in {name}: {mine!r} and {theirs!r}"
                )
        if self.firing.shape != other.firing.shape:
            raise ShapeError(
                f"Cannot add patterns of {tuple(self.firing.shape[-2:])} and of "
                f"{tuple(other.firing.shape[-2:])} (layers, neurons): they are of different models"
            )
        twice = sorted(set(self.names) & set(other.names))
        if twice:
            raise OptionError(f"Example {twice[0]!r} is in both patterns, and would count twice")
        return SharingPatterns(
            self.languages,
            (*self.names, *other.names),
            self.thresholds,
            self.firing + other.firing,
            self.only + other.only,
            self.exactly + other.exactly,
            torch.cat([self.members, other.members], dim=1),
            self.space,
            self.position,
            joined_provenance(self.provenance, other.provenance),
        )

    def __repr__(self) -> str:
        layers, neurons = self.firing.shape[-2:]
        levels = ", ".join(f"{level:g}" for level in self.thresholds)
        return (
            f"SharingPatterns({self.n_examples} examples in {', '.join(self.languages)}; "
            f"{layers} layers of {neurons}; {self.space} above {levels}, {self.position})"
        )

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file, in half the space: no count exceeds the examples.

        Raises:
            StorageError: The file cannot be written.
        """
        small = {name: getattr(self, name).to(torch.int32) for name in _COUNTS}
        Saved.save(replace(self, **small), path)

    @classmethod
    def load(cls, path: str | Path) -> "SharingPatterns":
        """Read what `save` wrote.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        small = super().load(path)
        return replace(small, **{name: getattr(small, name).long() for name in _COUNTS})


_COUNTS = ("firing", "only", "exactly", "members")


@dataclass(frozen=True)
class SharingPattern:
    """Count, for `collect_parallel`, in how many languages of an example each neuron fires.

    Attributes:
        threshold: A neuron fires where its activation is above this, strictly. Several are
            counted in the same pass: ``(0.0, 0.1, 0.2)``.
        position: ``"last"``: at the last token, as in Wang et al. (2024). ``"mean"``: on average
            over the tokens. ``"any"``: at any token.
        space: ``"gate"``: act(gate), whose sign is that of LAPE's firing; for an MLP without gate
            the two are the same. ``"product"``: what goes into the down-projection.
    """

    threshold: float | int | tuple[float | int, ...] = 0.0
    position: Where = "last"
    space: FiringSpace = "gate"

    def __post_init__(self) -> None:
        levels_of(self.threshold)
        if self.position not in ("last", "mean", "any"):
            raise OptionError(f"position must be last, mean or any, got {self.position!r}")
        if self.space not in ("gate", "product"):
            raise OptionError(f"space must be gate or product, got {self.space!r}")

    def bind_examples(self, model: HookedModel, examples: Examples) -> "_BoundPattern":
        """Fit the spec to a model, and to the examples."""
        return _BoundPattern(self, Firing.of(model, self.space), examples)


@dataclass(frozen=True, eq=False)
class Firing:
    """How a neuron's activation is read, whose comparison with a threshold is its firing.

    Attributes:
        site: Where it is read.
        activation: What is applied to what is read there; None for nothing.
    """

    site: Site
    activation: Any = None

    @classmethod
    def of(cls, model: HookedModel, space: FiringSpace = "gate") -> "Firing":
        """Find out how a model activates its neurons."""
        if space == "product" or not is_gated(model):
            return cls(MLP_POST)
        return cls(MLP_PRE, gate_activation(model))

    def values(self, read: Tensor) -> Tensor:
        """Return activations in float32, from what was read."""
        read = read if read.dtype == torch.float64 else read.float()
        return read if self.activation is None else self.activation(read)


def one_level(threshold: Any) -> float:
    """Return a threshold as a number.

    Raises:
        OptionError: It is no number, or several.
    """
    (level, *more) = levels_of(threshold)
    if more:
        raise OptionError(f"threshold must be one number here, got {threshold!r}")
    return level


def last_tokens(reading: Reading) -> Int[Tensor, "batch"]:
    """Return the place of the last token that counts, of every row."""
    places = torch.arange(reading.mask.shape[1]).expand_as(reading.mask)
    return places.masked_fill(~reading.mask, -1).amax(1)


def at_last_token(reading: Reading, site: Site) -> Float[Tensor, "batch neuron"]:
    """Return what a site holds at the last token of every row, heads flattened."""
    values = flat_neurons(reading.values[site], site)
    places = last_tokens(reading).to(values.device)
    return values[torch.arange(len(values), device=values.device), places]


class _BoundPattern:
    def __init__(self, spec: SharingPattern, firing: Firing, examples: Examples) -> None:
        self.spec, self.firing, self.examples = spec, firing, examples
        self.sites = (firing.site,)
        self.levels = levels_of(spec.threshold)

    def update(self, sums: Sums, reading: Reading) -> None:
        """Add one layer of a batch."""
        acts = self._activations(reading)
        acts = acts.view(-1, len(self.examples.languages), acts.shape[-1])
        assert reading.documents is not None  # `collect_parallel` says which example a row is
        numbers = reading.documents[:: len(self.examples.languages)]
        for some in torch.split(torch.arange(len(numbers)), _EXAMPLES_AT_ONCE):
            chosen = acts[some.to(acts.device)]
            _add(sums, reading.layer, chosen, self.levels, numbers[some], len(self.examples.names))

    def _activations(self, reading: Reading) -> Float[Tensor, "row neuron"]:
        site = self.firing.site
        if self.spec.position == "last":
            return self.firing.values(at_last_token(reading, site))
        values = self.firing.values(flat_neurons(reading.values[site], site))
        counts = reading.mask.to(values.device)[..., None]
        if self.spec.position == "mean":
            return (values * counts).sum(1) / counts.sum(1)
        return values.masked_fill(~counts, -torch.inf).amax(1)

    def result(self, sums: Mapping[str, Tensor]) -> SharingPatterns:
        return _result(sums, self.examples, self.levels, self.spec.space, self.spec.position)


def _add(
    sums: Sums,
    layer: int,
    acts: Float[Tensor, "example lang neuron"],
    levels: Sequence[float],
    numbers: Int[Tensor, "example"],
    total: int,
) -> None:
    """Add one layer of some examples, of `total` in all."""
    n_langs = acts.shape[1]
    for place, level in enumerate(levels):
        fires = acts > level
        in_languages = counted(fires.transpose(0, 1))
        only = fires & (in_languages == 1)[:, None]
        kinds = of_counts(in_languages, n_langs)
        members = torch.zeros(total, len(CATEGORIES), dtype=torch.int64, device=acts.device)
        members[numbers.to(acts.device)] = kinds.sum(-1).T
        exactly = torch.stack([counted(in_languages == n) for n in range(n_langs + 1)])
        sums.add(f"firing.{place}", layer, counted(fires))
        sums.add(f"only.{place}", layer, counted(only))
        sums.add(f"exactly.{place}", layer, exactly)
        sums.add(f"members.{place}", layer, members)


def _result(
    sums: Mapping[str, Tensor],
    examples: Examples,
    levels: tuple[float, ...],
    space: FiringSpace,
    position: Where,
) -> SharingPatterns:
    def stacked(name: str) -> Tensor:
        """Layers come first in the sums."""
        return torch.stack([sums[f"{name}.{place}"] for place in range(len(levels))]).transpose(
            1, 2
        )

    return SharingPatterns(
        languages=examples.languages,
        names=examples.names,
        thresholds=levels,
        firing=stacked("firing"),
        only=stacked("only"),
        exactly=stacked("exactly"),
        members=stacked("members"),
        space=space,
        position=position,
    )


def levels_of(threshold: Any) -> tuple[float, ...]:
    """Return one threshold, or several, as numbers.

    Raises:
        OptionError: They are no numbers, or one is given twice.
    """
    levels = threshold if isinstance(threshold, tuple | list) else (threshold,)
    if not levels or not all(
        isinstance(x, int | float) and not isinstance(x, bool) and x == x for x in levels
    ):
        raise OptionError(f"threshold must be a number, or several, got {threshold!r}")
    if len(set(levels)) < len(levels):
        raise OptionError(f"A threshold is given twice: {threshold!r}")
    return tuple(float(x) for x in levels)


def _check_languages(number: int) -> None:
    if number > _EXAMPLES_AT_ONCE:
        raise LanguageError(
            f"At most {_EXAMPLES_AT_ONCE} languages can be told apart, got {number}"
        )
    if number < 2:
        raise LanguageError(
            "Sharing is between languages: at least 2 are needed, for with one every neuron that "
            f"fires would be all-shared and specific at once; got {number}"
        )
