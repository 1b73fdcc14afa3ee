"""What a statistic is to the loop that collects it: a spec, what it is given, what it adds up.

A *spec* says what is read at which sites and how it is summed. `lens_lang.collect` binds it to a
model, gives it a `Reading` of every layer of every batch, and keeps its `Sums`, which add.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.sites import HookedModel, Site, flat_neurons

LARGEST = "largest."
"""How the names of sums begin that are joined by `largest` instead of added."""


class Sums:
    """Running sums by name and layer: int64 for counts, float64 for everything else.

    A sum whose name begins with ``largest.`` (`LARGEST`) holds records instead, ``slot record
    field``: `add` and `merge` join them, and keep as many as there were at first. See `largest`.

    The layers of a sum count from 0 without a gap: `unstacked` knows them by their order only.

    They live where the activations are, so that a model spread over devices never waits for
    the CPU; `stacked` brings them together.
    """

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], Tensor] = {}

    def add(self, name: str, layer: int, value: Tensor) -> None:
        """Add one layer's contribution of one batch to the sum called `name`, or join it."""
        if value.device.type == "mps":  # has no float64
            value = value.cpu()
        value = value.to(torch.float64 if value.is_floating_point() else torch.int64)
        held = self._held.get((name, layer))
        if held is not None:
            held = held.to(value.device)
            both = torch.cat([held, value], 1) if name.startswith(LARGEST) else None
            value = held + value if both is None else largest(both, held.shape[1])
        self._held[name, layer] = value

    def merge(self, other: "Sums") -> None:
        """Add all of another accumulator's sums to this one's."""
        for (name, layer), value in other._held.items():
            self.add(name, layer, value)

    def stacked(self) -> dict[str, Tensor]:
        """Return every sum with its layers stacked along the first axis, on the CPU."""
        names = dict.fromkeys(name for name, _ in self._held)
        return {
            name: torch.stack(
                [self._held[key].cpu() for key in sorted(self._held) if key[0] == name]
            )
            for name in names
        }

    @classmethod
    def unstacked(cls, sums: Mapping[str, Tensor]) -> "Sums":
        """Rebuild an accumulator from what `stacked` returned."""
        self = cls()
        for name, layers in sums.items():
            for layer, value in enumerate(layers):
                self.add(name, layer, value.clone())
        return self


def largest(
    records: Float[Tensor, "slot record field"], count: int, *, keys: int = 3
) -> Float[Tensor, "slot count field"]:
    """Keep the records with the largest first field, the largest first.

    Ties go to the lower second field, then the lower third, and so on: as long as these fields
    tell records apart, the order in which records are joined cannot matter.

    Args:
        records: The candidates of every slot. Minus infinity in the first field is no record.
        count: How many to keep; where there are fewer, the rest is minus infinity, then -1.
        keys: How many fields are compared.

    Examples:
        >>> records = torch.tensor([[[1.0, 7], [3, 5], [3, 2]]])
        >>> largest(records, 2, keys=2).tolist()
        [[[3.0, 2.0], [3.0, 5.0]]]
    """
    order = torch.arange(records.shape[1], device=records.device).expand(records.shape[:2])
    for key in reversed(range(keys)):  # stable: the last key decides least
        values = records[..., key].gather(1, order)
        order = order.gather(1, values.argsort(dim=1, stable=True, descending=key == 0))
    kept = order[:, :count, None].expand(-1, -1, records.shape[2])
    found = records.gather(1, kept)
    missing = found.new_full((len(found), count - found.shape[1], found.shape[2]), -1)
    missing[..., 0] = -torch.inf
    return torch.cat([found, missing], 1)


@dataclass(frozen=True, eq=False)
class Reading:
    """The activations of one layer on one batch, as a spec is given them.

    Attributes:
        layer: The layer.
        values: What each hook received, batch and position first; padding is among them.
        mask: True at the positions that count: no padding, and BOS only if the corpora say so.
        token_ids: What was read; padding holds 0. None where a spec is tried without text.
        language: The language of every row; ``mul`` where rows are of several.
        documents: For each row the document, or the aligned example, that it comes from.
    """

    layer: int
    values: Mapping[Site, Tensor]
    mask: Bool[Tensor, "batch pos"]
    token_ids: Int[Tensor, "batch pos"] | None = None
    language: str = ""
    documents: Int[Tensor, "batch"] | None = None
    _tokens: dict[Site, Tensor] = field(default_factory=dict, repr=False)

    def tokens(self, site: Site) -> Float[Tensor, "token neuron"]:
        """Return the activations at the positions that count, heads flattened.

        Examples:
            >>> from lens_lang.sites import MLP_POST
            >>> reading = Reading(
            ...     0, {MLP_POST: torch.tensor([[[1.0], [2.0]]])}, torch.tensor([[True, False]]))
            >>> reading.tokens(MLP_POST).tolist()
            [[1.0]]
        """
        if site not in self._tokens:
            flat = flat_neurons(self.values[site], site).flatten(0, 1)
            if not bool(self.mask.all()):
                counted = self.mask.flatten().nonzero().flatten()
                flat = flat.index_select(0, counted.to(flat.device))
            self._tokens[site] = flat
        return self._tokens[site]


ResultT = TypeVar("ResultT", covariant=True)


@runtime_checkable
class Spec(Protocol[ResultT]):
    """What `collect` asks of a statistic.

    A spec is a frozen dataclass: its fields are its options, and are recorded with the run.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def bind(self, model: HookedModel) -> "BoundSpec[ResultT]":
        """Fit the spec to a model."""
        ...


@runtime_checkable
class BoundSpec(Protocol[ResultT]):
    """A spec that knows its model: what it reads, how it sums, what it makes of the sums."""

    @property
    def sites(self) -> Sequence[Site]:
        """What `update` must be given."""
        ...

    @property
    def document_tokens(self) -> int | None:
        """None if any rows will do; else every row must be a document, cut at so many tokens."""
        ...

    def update(self, sums: Sums, reading: Reading) -> None:
        """Add one layer of one batch."""
        ...

    def result(
        self, sums: Mapping[str, Mapping[str, Tensor]], n_tokens: Mapping[str, int]
    ) -> ResultT:
        """Make the result from the stacked sums of every language."""
        ...


@dataclass(frozen=True)
class Examples:
    """What a statistic of aligned examples knows of them before it is collected.

    Attributes:
        languages: In which every example is given; rows come in this order, example by example.
        names: One per example.
        answers: For each example, the first token of its answer in each language; empty if the
            examples ask for nothing.
    """

    languages: tuple[str, ...]
    names: tuple[str, ...]
    answers: tuple[tuple[int, ...], ...] = ()


@runtime_checkable
class ParallelSpec(Protocol[ResultT]):
    """What `collect_parallel` asks of a statistic of examples given in several languages."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def bind_examples(self, model: HookedModel, examples: Examples) -> "BoundParallelSpec[ResultT]":
        """Fit the spec to a model and to the examples."""
        ...


@runtime_checkable
class BoundParallelSpec(Protocol[ResultT]):
    """A spec that knows its model and its examples."""

    @property
    def sites(self) -> Sequence[Site]:
        """What `update` must be given."""
        ...

    def update(self, sums: Sums, reading: Reading) -> None:
        """Add one layer of a batch: every language of an example, example after example."""
        ...

    def result(self, sums: Mapping[str, Tensor]) -> ResultT:
        """Make the result from the stacked sums."""
        ...
