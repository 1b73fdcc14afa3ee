"""What to sum over the tokens of a language, and what came out: firing and mean activation.

`lens_lang.collect` runs a model and fills the sums that a spec asks for. A *result* is frozen data
with one row per language. Sums add, so results of two halves of a corpus, of two machines or of
two days are joined with ``+``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, TypeVar, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.errors import LanguageError, OptionError, ShapeError
from lens_lang.languages import distinct_languages, find_language
from lens_lang.saved import Saved
from lens_lang.sites import (
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    RESID_POST,
    HookedModel,
    Site,
    gate_activation,
    is_gated,
)
from lens_lang.specs import Reading, Sums

Space = Literal["gate", "product", "up", "residual"]
"""Which value: of an MLP neuron act(gate), act(gate) * up, or up; or the residual stream."""


@dataclass(frozen=True, eq=False)
class Frequency(Saved):
    """How often each neuron fired on the text of each language.

    Attributes:
        languages: Names of the first axis.
        count: Number of tokens at which the neuron fired.
        n_tokens: Number of tokens of each language.
        site: Where firing was read.
        threshold: A neuron fires where its activation is above this, strictly.
        provenance: Model, corpora and versions, as JSON values.

    Examples:
        >>> from lens_lang.sites import MLP_PRE
        >>> freq = Frequency(
        ...     languages=("en", "fr"), count=torch.tensor([[[3]], [[1]]]),
        ...     n_tokens=torch.tensor([4, 4]), site=MLP_PRE)
        >>> (freq + freq).probability.flatten().tolist()
        [0.75, 0.25]
    """

    languages: tuple[str, ...]
    count: Int[Tensor, "lang layer neuron"]
    n_tokens: Int[Tensor, "lang"]
    site: Site = MLP_PRE
    threshold: float = 0.0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    _same: ClassVar[tuple[str, ...]] = ("languages", "site", "threshold")
    _summed: ClassVar[tuple[str, ...]] = ("count", "n_tokens")

    def __post_init__(self) -> None:
        check_axes(self.languages, self.n_tokens, self.count)
        if bool((self.count < 0).any()) or bool((self.count > self.n_tokens[:, None, None]).any()):
            raise ShapeError("A count must lie between 0 and the number of tokens of its language")

    @property
    def probability(self) -> Float[Tensor, "lang layer neuron"]:
        """Share of the tokens at which the neuron fired, float64."""
        return self.count.double() / self.n_tokens.double()[:, None, None]

    def __getitem__(self, lang: str) -> Float[Tensor, "layer neuron"]:
        return self.probability[find_language(lang, self.languages)]

    def __repr__(self) -> str:
        return f"Frequency({self.site.name} > {self.threshold:g}, {_sizes(self, self.count)})"

    def __add__(self, other: "Frequency") -> "Frequency":
        return added(self, other)


@dataclass(frozen=True)
class ActivationFrequency:
    """Count the tokens at which each neuron fires (Tang et al. 2024).

    Attributes:
        site: Where to read. `MLP_PRE`, the default, has the sign of the activation function's
            output on gated and plain MLPs alike; ``MLP_POST`` has not, on gated ones.
        threshold: A neuron fires where its value is above this, strictly.
    """

    site: Site = MLP_PRE
    threshold: float = 0.0

    def bind(self, model: HookedModel) -> "_BoundFrequency":  # noqa: ARG002
        """Fit the spec to a model."""
        return _BoundFrequency(self)


class _BoundFrequency:
    document_tokens = None

    def __init__(self, spec: ActivationFrequency) -> None:
        self.spec = spec
        self.sites = (spec.site,)

    def update(self, sums: Sums, reading: Reading) -> None:
        fires: Bool[Tensor, "token neuron"] = reading.tokens(self.spec.site) > self.spec.threshold
        # int32 halves the time of the sum, and no batch has two thousand million tokens
        sums.add("count", reading.layer, fires.sum(0, dtype=torch.int32))

    def result(
        self, sums: Mapping[str, Mapping[str, Tensor]], n_tokens: Mapping[str, int]
    ) -> Frequency:
        return Frequency(
            languages=tuple(sums),
            count=torch.stack([language["count"] for language in sums.values()]),
            n_tokens=torch.tensor(list(n_tokens.values())),
            site=self.spec.site,
            threshold=self.spec.threshold,
        )


@dataclass(frozen=True, eq=False)
class Activations(Saved):
    """Sums of a neuron's value and of its square over the tokens of each language.

    ``activations["fr"]`` is the mean of each neuron on French, ready for `replace` and `steer`.

    Attributes:
        languages: Names of the first axis.
        sum: Sum over all tokens, float64.
        sum_sq: Sum of squares over all tokens, float64.
        n_tokens: Number of tokens of each language.
        space: Which value: ``gate`` is act(gate), ``product`` is act(gate) * up, ``up`` is up;
            ``residual`` is the residual stream after each block, whose axis of neurons is
            d_model.
        provenance: Model, corpora and versions, as JSON values.

    Examples:
        >>> act = Activations(
        ...     languages=("en",), sum=torch.tensor([[[6.0]]]).double(),
        ...     sum_sq=torch.tensor([[[20.0]]]).double(), n_tokens=torch.tensor([2]))
        >>> act["en"].item(), act.std.item()
        (3.0, 1.0)
    """

    languages: tuple[str, ...]
    sum: Float[Tensor, "lang layer neuron"]
    sum_sq: Float[Tensor, "lang layer neuron"]
    n_tokens: Int[Tensor, "lang"]
    space: Space = "gate"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    _same: ClassVar[tuple[str, ...]] = ("languages", "space")
    _summed: ClassVar[tuple[str, ...]] = ("sum", "sum_sq", "n_tokens")

    def __post_init__(self) -> None:
        check_axes(self.languages, self.n_tokens, self.sum, self.sum_sq)

    @property
    def mean(self) -> Float[Tensor, "lang layer neuron"]:
        """Mean over all tokens, those at which the neuron does not fire included."""
        return self.sum / self.n_tokens[:, None, None]

    @property
    def std(self) -> Float[Tensor, "lang layer neuron"]:
        """Standard deviation over all tokens (of the population, not of a sample)."""
        variance = self.sum_sq / self.n_tokens[:, None, None] - self.mean.square()
        return variance.clamp(min=0).sqrt()

    def __getitem__(self, lang: str) -> Float[Tensor, "layer neuron"]:
        return self.mean[find_language(lang, self.languages)]

    def __repr__(self) -> str:
        return f"Activations({self.space}, {_sizes(self, self.sum)})"

    def __add__(self, other: "Activations") -> "Activations":
        return added(self, other)


@dataclass(frozen=True)
class MeanActivation:
    """Sum each neuron's value and its square: the mean that steering sets neurons to.

    On an MLP without a gate, act(pre) *is* the input of the down-projection; the result then
    says ``product``, so that whoever uses it needs no up-projection.

    Attributes:
        space: ``gate`` sums act(gate), as in Tang et al. (2024); ``product`` the input of the
            down-projection; ``up`` the up-projection; ``residual`` the residual stream after
            each block, for `lens_lang.shift`.
    """

    space: Space = "gate"

    def __post_init__(self) -> None:
        known = get_args(Space)
        if self.space not in known:
            raise OptionError(f"space must be one of {', '.join(known)}, got {self.space!r}")

    def bind(self, model: HookedModel) -> "_BoundMean":
        """Fit the spec to a model: find out how it activates its gates."""
        if self.space == "up":
            return _BoundMean("up", MLP_UP, None)
        if self.space == "residual":
            return _BoundMean("residual", RESID_POST, None)
        if self.space == "product" or not is_gated(model):
            return _BoundMean("product", MLP_POST, None)
        return _BoundMean("gate", MLP_PRE, gate_activation(model))


class _BoundMean:
    document_tokens = None

    def __init__(self, space: Space, site: Site, activation: Any) -> None:
        self.space, self.activation = space, activation
        self.sites = (site,)

    def update(self, sums: Sums, reading: Reading) -> None:
        value = reading.tokens(self.sites[0]).float()
        if self.activation is not None:
            value = self.activation(value)
        sums.add("sum", reading.layer, value.sum(0))
        sums.add("sum_sq", reading.layer, value.square().sum(0))

    def result(
        self, sums: Mapping[str, Mapping[str, Tensor]], n_tokens: Mapping[str, int]
    ) -> Activations:
        return Activations(
            languages=tuple(sums),
            sum=torch.stack([language["sum"] for language in sums.values()]),
            sum_sq=torch.stack([language["sum_sq"] for language in sums.values()]),
            n_tokens=torch.tensor(list(n_tokens.values())),
            space=self.space,
        )


@runtime_checkable
class Summed(Protocol):
    """A result whose sums add: what `added` works on."""

    _same: ClassVar[tuple[str, ...]]
    _summed: ClassVar[tuple[str, ...]]

    @property
    def languages(self) -> tuple[str, ...]:
        """Names of the first axis of every sum."""
        ...

    @property
    def n_tokens(self) -> Tensor:
        """Tokens of each language."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where it comes from."""
        ...


AnyResult = TypeVar("AnyResult", bound=Summed)


def check_result(given: object, kind: type, *, taken_by: str) -> None:
    """Refuse another result than the one that is needed: they are easily swapped.

    Args:
        given: What was given.
        kind: `Frequency` or `Activations`.
        taken_by: Who needs it.

    Raises:
        OptionError: It is something else.
    """
    if not isinstance(given, kind):
        spec = {Frequency: "ActivationFrequency", Activations: "MeanActivation"}[kind]
        raise OptionError(
            f"{taken_by} takes {kind.__name__}, which collect(model, corpora, {spec}()) gives, "
            f"got {type(given).__name__}"
        )


def check_axes(languages: Sequence[str], n_tokens: Tensor, *tensors: Tensor) -> None:
    """Refuse sums whose axes do not fit their languages, or languages without a token."""
    distinct_languages(languages)
    for tensor in (n_tokens, *tensors):
        if len(tensor) != len(languages):
            raise ShapeError(
                f"{len(languages)} languages ({', '.join(languages)}) need as many rows, got a "
                f"tensor of shape {tuple(tensor.shape)}"
            )
    for tensor in tensors:
        if tensor.shape != tensors[0].shape:
            raise ShapeError(
                f"Sums of shapes {tuple(tensors[0].shape)} and {tuple(tensor.shape)} do not go "
                "together"
            )
    if bool((n_tokens <= 0).any()):
        empty = [lang for lang, n in zip(languages, n_tokens.tolist(), strict=True) if n <= 0]
        raise LanguageError(f"No token was counted for {', '.join(empty)}")


def _sizes(result: Summed, sums: Tensor) -> str:
    tokens = zip(result.languages, result.n_tokens.tolist(), strict=True)
    n_layers, n_neurons = sums.shape[1:]
    counted = ", ".join(f"{lang} {n:,}" for lang, n in tokens)
    return f"{n_layers} layers of {n_neurons}; tokens: {counted}"


def _fields(result: Summed) -> dict[str, Any]:
    return {name: getattr(result, name) for name in (*result._same, *result._summed)}


def added(mine: AnyResult, theirs: AnyResult) -> AnyResult:
    """Join two results that measure the same thing; languages may differ in order, not in set."""
    if not isinstance(theirs, type(mine)):
        return NotImplemented
    for name in mine._same:
        left, right = getattr(mine, name), getattr(theirs, name)
        if name == "languages":
            left, right = set(left), set(right)
        if left != right:
            raise ShapeError(
                f"Cannot add two results of {type(mine).__name__} that differ in {name}: "
                f"{getattr(mine, name)} and {getattr(theirs, name)}"
            )
    values = _fields(mine)
    order = [theirs.languages.index(lang) for lang in mine.languages]
    for name in mine._summed:
        left, right = getattr(mine, name), getattr(theirs, name)
        if left.shape != right.shape:
            raise ShapeError(
                f"Cannot add {type(mine).__name__} of shape {tuple(left.shape)} and of "
                f"{tuple(right.shape)}: they were made with different models"
            )
        values[name] = left + right[order]
    provenance = joined_provenance(mine.provenance, theirs.provenance)
    return type(mine)(**values, provenance=provenance)  # type: ignore[call-arg]


def joined_provenance(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Keep what two provenances agree on, and list both where they differ.

    Raises:
        ShapeError: They say that two models were measured, or one under other hooks. Models are
            told apart by their weights; by their names where weights are not recorded.
    """
    _check_one_model(mine, theirs)
    joined: dict[str, Any] = {}
    for key in {**mine, **theirs}:
        left, right = mine.get(key), theirs.get(key)
        if left == right:
            joined[key] = left
        else:
            both = [*(left if isinstance(left, list) else [left])]
            both += right if isinstance(right, list) else [right]
            joined[key] = both
    return joined


def _check_one_model(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    known = mine.keys() & theirs.keys()
    which = "weights" if "weights" in known else "model"
    for key, what in ((which, "models"), ("fwd_hooks", "hooks")):
        if key in known and mine[key] != theirs[key]:
            both = " and ".join(_told(each, key) for each in (mine, theirs))
            raise ShapeError(f"Cannot add what was measured on different {what}: {both}")


def _told(provenance: Mapping[str, Any], key: str) -> str:
    if key == "weights":
        return f"{provenance.get('model')} (weights {provenance[key]})"
    return str(provenance[key] or "none")
