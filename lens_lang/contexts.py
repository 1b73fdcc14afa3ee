"""In which text a neuron is most active: its top contexts, language by language.

A neuron is named by what it answers to. `TopContexts` keeps, for each chosen neuron, the documents
with its highest activation and the tokens around the peak, in the same pass as other statistics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from lens_lang.errors import OptionError, ShapeError
from lens_lang.languages import find_language
from lens_lang.neurons import NeuronSet
from lens_lang.saved import Saved
from lens_lang.single_neurons import NeuronName, neuron_place
from lens_lang.sites import (
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    HookedModel,
    Site,
    check_layers,
    flat_neurons,
)
from lens_lang.specs import LARGEST, Reading, Sums, largest
from lens_lang.spelling import join_tokens, show_tokens, token_bytes
from lens_lang.stats import check_axes, joined_provenance

if TYPE_CHECKING:
    import pandas as pd

_OF_AN_MLP = (MLP_PRE, MLP_UP, MLP_POST)
_RECORDS = f"{LARGEST}contexts"


@dataclass(frozen=True)
class Context:
    """One document in which a neuron is among its most active, around the peak.

    Attributes:
        language: The document's language.
        document: Its number in the corpora, language by language.
        peak: The neuron's highest activation in it.
        tokens: The tokens around the peak, as text. A character of several tokens stands at its
            last one, and each earlier one has a "·".
        values: The neuron's activation at each of them.
        at: The place of the peak among them.
        text: What the tokens say together; if not given, one after the other.
    """

    language: str
    document: int
    peak: float
    tokens: tuple[str, ...]
    values: tuple[float, ...]
    at: int
    text: str = ""

    def __post_init__(self) -> None:
        if not self.text:
            object.__setattr__(self, "text", "".join(self.tokens))


@dataclass(frozen=True, eq=False)
class NeuronContexts(Saved):
    """For each language and neuron, the documents with the neuron's highest activation.

    Parts of one corpus, such as the shares of several machines, are joined with ``+`` and give what
    one pass would have given. Results of other corpora can be joined too; `document` then counts in
    the corpora that the text was in. A context that is in both counts once; `n_tokens` is added
    even so, because nothing tells which text was read twice.

    Attributes:
        languages: Names of the first axis of `peak` and of what is like it.
        neurons: (layer, index) of each neuron, sorted.
        peak: The highest activation in each document, the highest first; minus infinity where
            the corpora had fewer documents.
        document: The document's number.
        position: The peak's place in the document, counted in tokens.
        window: Token ids around the peak; -1 where the document has none.
        values: The neuron's activations there; 0 where the document has none.
        before: How many tokens of the window come before the peak.
        items: The token ids that occur in `window`, sorted.
        spelled: What they spell, end to end, as UTF-8 bytes: contexts are read without the model.
        ends: Where each of them ends in `spelled`.
        site: Where the activations were read.
        n_tokens: Tokens of each language that were read.
        provenance: Model, corpora and versions, as JSON values.

    Examples:
        >>> from lens_lang.sites import MLP_POST
        >>> contexts = NeuronContexts(
        ...     languages=("en",), neurons=torch.tensor([[12, 1542]]),
        ...     peak=torch.tensor([[[3.5]]]), document=torch.tensor([[[7]]]),
        ...     position=torch.tensor([[[2]]]), window=torch.tensor([[[[5, 9, -1]]]]),
        ...     values=torch.tensor([[[[0.5, 3.5, 0.0]]]]), before=1,
        ...     items=torch.tensor([5, 9]), ends=torch.tensor([2, 6]),
        ...     spelled=torch.tensor(list(b" a cat"), dtype=torch.uint8), site=MLP_POST,
        ...     n_tokens=torch.tensor([40]))
        >>> (best,) = contexts.of((12, 1542), "en")
        >>> best.text, best.tokens[best.at], best.peak, best.document
        (' a cat', ' cat', 3.5, 7)
    """

    languages: tuple[str, ...]
    neurons: Int[Tensor, "neuron 2"]
    peak: Float[Tensor, "lang neuron k"]
    document: Int[Tensor, "lang neuron k"]
    position: Int[Tensor, "lang neuron k"]
    window: Int[Tensor, "lang neuron k window"]
    values: Float[Tensor, "lang neuron k window"]
    before: int
    items: Int[Tensor, "item"]
    spelled: UInt8[Tensor, "byte"]
    ends: Int[Tensor, "item"]
    site: Site
    n_tokens: Int[Tensor, "lang"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_axes(self.languages, self.n_tokens, self.peak, self.document, self.position)
        if self.window.shape != self.values.shape or self.window.shape[:3] != self.peak.shape:
            raise ShapeError(
                f"Windows of shapes {tuple(self.window.shape)} and {tuple(self.values.shape)} do "
                f"not go with peaks of shape {tuple(self.peak.shape)}"
            )
        if self.neurons.shape != (self.peak.shape[1], 2):
            raise ShapeError(
                f"{self.peak.shape[1]} neurons need a layer and an index each, got "
                f"{tuple(self.neurons.shape)}"
            )
        if not 0 <= self.before < self.window.shape[3]:
            raise ShapeError(
                f"A window of {self.window.shape[3]} tokens cannot have {self.before} before its "
                "peak"
            )
        ends = [0, *self.ends.tolist()]
        if len(self.ends) != len(self.items) or ends != sorted(ends):
            raise ShapeError(
                f"{len(self.items)} items need an end each, ascending, got {len(self.ends)}"
            )
        if ends[-1] != len(self.spelled):
            raise ShapeError(f"The items end at byte {ends[-1]} of {len(self.spelled)}")

    @property
    def k(self) -> int:
        """How many documents are kept for each neuron and language."""
        return self.peak.shape[2]

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """What each of `items` spells; a piece may be a part of a character."""
        spelled = bytes(self.spelled.tolist())
        return tuple(spelled[a:b] for a, b in pairwise([0, *self.ends.tolist()]))

    def of(self, neuron: NeuronName, lang: str) -> tuple[Context, ...]:
        """Return the documents of one language in which a neuron is most active.

        Args:
            neuron: ``(layer, index)`` or ``"layer.index"``.
            lang: The language, under any of its names.

        Returns:
            At most `k` contexts, the highest peak first. Each is of another document.

        Raises:
            OptionError: The neuron is not among those that were collected, or is not one.
            LanguageError: The language was not collected.
        """
        language = find_language(lang, self.languages)
        place = self._place(neuron_place(neuron))
        found = []
        for rank in range(self.k):
            peak = float(self.peak[language, place, rank])
            if peak == -torch.inf:  # the corpora had no more documents
                break
            ids = self.window[language, place, rank]
            real = ids >= 0
            names = torch.searchsorted(self.items, ids[real]).tolist()
            pieces = [self.pieces[name] for name in names]
            found.append(
                Context(
                    language=self.languages[language],
                    document=int(self.document[language, place, rank]),
                    peak=peak,
                    tokens=show_tokens(pieces),
                    values=tuple(self.values[language, place, rank][real].tolist()),
                    at=int(real[: self.before].sum()),
                    text=join_tokens(pieces),
                )
            )
        return tuple(found)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per context: language, layer, neuron, rank, document, peak, text."""
        import pandas as pd

        rows = [
            (lang, layer, index, rank, each.document, each.peak, each.text)
            for lang in self.languages
            for layer, index in self.neurons.tolist()
            for rank, each in enumerate(self.of((layer, index), lang))
        ]
        columns = ["language", "layer", "neuron", "rank", "document", "peak", "text"]
        return pd.DataFrame(rows, columns=columns)

    def __repr__(self) -> str:
        tokens = zip(self.languages, self.n_tokens.tolist(), strict=True)
        counted = ", ".join(f"{lang} {n:,}" for lang, n in tokens)
        return (
            f"NeuronContexts({len(self.neurons)} neurons at {self.site.name}, the top {self.k} "
            f"documents a language; tokens: {counted})"
        )

    def __add__(self, other: "NeuronContexts") -> "NeuronContexts":
        if not isinstance(other, NeuronContexts):
            return NotImplemented
        self._check_alike(other)
        order = [other.languages.index(lang) for lang in self.languages]
        joined = _union(self._records(), other._records()[order])
        names = {**self._names(), **other._names()}
        return replace(
            self,
            **_fields(joined, {item: names[item] for item in _used(joined)}),
            n_tokens=self.n_tokens + other.n_tokens[order],
            provenance=joined_provenance(self.provenance, other.provenance),
        )

    def _place(self, neuron: tuple[int, int]) -> int:
        found = (self.neurons == torch.tensor(neuron)).all(1).nonzero().flatten().tolist()
        if not found:
            layer, index = neuron
            known = [f"{n}.{i}" for n, i in self.neurons.tolist() if n == layer]
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise OptionError(
                f"Contexts of neuron {layer}.{index} were not collected; of layer {layer}: "
                f"{shown or 'none'}. Give TopContexts a NeuronSet with it"
            )
        return int(found[0])

    def _names(self) -> dict[int, bytes]:
        return dict(zip(self.items.tolist(), self.pieces, strict=True))

    def _records(self) -> Float[Tensor, "lang neuron k field"]:
        heads = [self.peak, self.document, self.position]
        wide = [each[..., None].double() for each in heads]
        return torch.cat([*wide, self.window.double(), self.values.double()], -1)

    def _check_alike(self, other: "NeuronContexts") -> None:
        shapes = tuple(self.window.shape[1:]), tuple(other.window.shape[1:])
        for name, mine, theirs in (
            ("languages", set(self.languages), set(other.languages)),
            ("site", self.site, other.site),
            ("neurons", self.neurons.tolist(), other.neurons.tolist()),
            ("before", self.before, other.before),
            ("shape (neurons, k, window)", *shapes),
        ):
            if mine != theirs:
                told = "" if name == "neurons" else f": {mine} and {theirs}"
                raise ShapeError(f"Cannot join contexts that differ in {name}{told}")


@dataclass(frozen=True, eq=False)
class TopContexts:
    """Keep the documents in which chosen neurons are most active: a spec for `lens_lang.collect`.

    Neurons of an MLP, such as `lape` gives, are read where they fire (``MLP_PRE``), others at their
    own site; the largest signed activation counts. At ``MLP_POST`` a gated neuron's activation is a
    product whose sign says little of firing: read there to see where it adds most of its output
    vector. Every document is read in a row of its own, and gives each neuron one context at most.

    With the defaults, a language takes about 4 kB of memory times the layers with a chosen neuron
    times the neurons of the fullest of these layers; the result, about 2 kB per neuron.

    Attributes:
        neurons: The neurons, all of one site.
        k: Documents to keep for each neuron and language.
        before: Tokens to show before the peak.
        after: Tokens to show after it.
        max_tokens: Longer documents are cut here.
        read_at: Another site of the same neurons at which to read.

    Examples:
        >>> from lens_lang.sites import MLP_POST
        >>> some = NeuronSet({MLP_POST: torch.eye(2, 8, dtype=torch.bool)})
        >>> TopContexts(some, k=3).site, TopContexts(some, read_at=MLP_POST).site
        (MLP_PRE, MLP_POST)
    """

    neurons: NeuronSet
    k: int = 8
    before: int = 16
    after: int = 8
    max_tokens: int = 256
    read_at: Site | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.neurons, NeuronSet):
            raise OptionError(
                f"TopContexts takes a NeuronSet, got {type(self.neurons).__name__}: give "
                "neurons['fr'], or neurons.union() for those of all languages"
            )
        for name, least in (("k", 1), ("before", 0), ("after", 0), ("max_tokens", 1)):
            if getattr(self, name) < least:
                raise OptionError(f"{name} must be at least {least}, got {getattr(self, name)}")
        own = self.neurons.site
        same = _OF_AN_MLP if own in _OF_AN_MLP else (own,)
        if self.site not in same:
            raise OptionError(
                f"read_at must be one of {', '.join(map(repr, same))} for neurons at {own!r}, got "
                f"{self.site!r}"
            )

    @property
    def site(self) -> Site:
        """Where the neurons are read."""
        own = self.neurons.site
        return self.read_at or (MLP_PRE if own == MLP_POST else own)

    def bind(self, model: HookedModel) -> "_BoundContexts":
        """Fit the spec to a model.

        Raises:
            ShapeError: The neurons are of another model.
        """
        own = self.neurons.site
        layers, width = self.neurons.masks[own].shape
        check_layers(model, own, (layers, width))
        return _BoundContexts(self, model)


class _BoundContexts:
    def __init__(self, spec: TopContexts, model: HookedModel) -> None:
        self.spec, self.model = spec, model
        self.site = spec.site
        self.sites = (spec.site,)
        self.document_tokens = spec.max_tokens
        mask = spec.neurons.masks[spec.neurons.site]
        chosen = {layer: row.nonzero().flatten() for layer, row in enumerate(mask)}
        self.chosen = {layer: each for layer, each in chosen.items() if len(each)}
        # layers are stacked, so all have as many slots as the fullest one
        self.slots = max(map(len, self.chosen.values()))
        # sums number their layers from 0: here only those with a chosen neuron
        self.place_of = {layer: place for place, layer in enumerate(self.chosen)}
        self.offsets = torch.arange(-spec.before, spec.after + 1)

    def update(self, sums: Sums, reading: Reading) -> None:
        assert reading.token_ids is not None  # collect always gives them
        assert reading.documents is not None
        if reading.layer not in self.chosen:
            return
        values = flat_neurons(reading.values[self.site], self.site)
        values = values[..., self.chosen[reading.layer].to(values.device)].float()
        if values.device.type == "mps":  # has no float64, which document numbers need
            values = values.cpu()
        device = values.device
        counted = reading.mask.to(device)
        first = counted.int().argmax(1)[:, None]
        last = first + counted.sum(1, keepdim=True) - 1
        peak, at = values.masked_fill(~counted[..., None], -torch.inf).max(1)
        places = at[..., None] + self.offsets.to(device)
        inside = (places >= first[..., None]) & (places <= last[..., None])
        places = places.clamp(0, values.shape[1] - 1)
        rows = torch.arange(len(values), device=device)[:, None, None]
        tokens = reading.token_ids.to(device)[rows, places]
        around = values.mT.gather(2, places)
        numbers = reading.documents.to(device)[:, None].expand_as(at)
        records = torch.cat(
            [
                torch.stack([peak.double(), numbers.double(), (at - first).double()], -1),
                torch.where(inside, tokens, -1).double(),
                torch.where(inside, around, 0.0).double(),
            ],
            -1,
        )
        found = largest(records.movedim(0, 1), self.spec.k)
        held = found.new_full((self.slots, *found.shape[1:]), -1)
        held[..., 0] = -torch.inf
        held[: len(found)] = found
        sums.add(_RECORDS, self.place_of[reading.layer], held)

    def result(
        self, sums: Mapping[str, Mapping[str, Tensor]], n_tokens: Mapping[str, int]
    ) -> NeuronContexts:
        stacked = torch.stack([language[_RECORDS] for language in sums.values()])
        records = torch.cat(
            [stacked[:, self.place_of[n], : len(each)] for n, each in self.chosen.items()], 1
        )
        return NeuronContexts(
            **_fields(records, token_bytes(self.model, _used(records))),
            languages=tuple(sums),
            neurons=self.spec.neurons.indices(self.spec.neurons.site),
            before=self.spec.before,
            site=self.site,
            n_tokens=torch.tensor(list(n_tokens.values())),
        )


def _window(records: Float[Tensor, "lang neuron k field"]) -> int:
    return (records.shape[3] - 3) // 2


def _used(records: Float[Tensor, "lang neuron k field"]) -> list[int]:
    """The token ids that occur, sorted."""
    ids = records[..., 3 : 3 + _window(records)]
    return sorted(set(ids[ids >= 0].long().tolist()))


def _fields(
    records: Float[Tensor, "lang neuron k field"], names: Mapping[int, bytes]
) -> dict[str, Any]:
    """What records say, as the fields of a result."""
    width = _window(records)
    window = records[..., 3 : 3 + width].int()
    pieces = [names[item] for item in sorted(names)]
    return {
        "peak": records[..., 0].float(),
        "document": records[..., 1].long(),
        "position": records[..., 2].long(),
        "window": window,
        "values": records[..., 3 + width :].float().masked_fill(window < 0, 0.0),
        "items": torch.tensor(sorted(names), dtype=torch.int32),
        "spelled": torch.tensor(list(b"".join(pieces)), dtype=torch.uint8),
        "ends": torch.tensor([len(each) for each in pieces], dtype=torch.int64).cumsum(0),
    }


def _union(
    mine: Float[Tensor, "lang neuron k field"], theirs: Float[Tensor, "lang neuron k field"]
) -> Float[Tensor, "lang neuron k field"]:
    """The largest of both; what is in both counts once."""
    n_langs, n_neurons, k, n_fields = mine.shape
    both = torch.cat([mine, theirs], 2).flatten(0, 1)
    # by all fields, because other corpora have documents of the same numbers
    ranked = largest(both, 2 * k, keys=n_fields)
    again = (ranked[:, 1:] == ranked[:, :-1]).all(2)
    ranked[:, 1:].masked_fill_(again[..., None], -1)
    ranked[:, 1:, 0].masked_fill_(again, -torch.inf)
    return largest(ranked, k, keys=n_fields).view(n_langs, n_neurons, k, n_fields)
