"""Sets of neurons, by language: what every detector returns and every intervention takes.

A `NeuronSet` is a mask per site; it unites, intersects and subtracts. `LanguageNeurons` names
one set per language and remembers how they were found.
"""

import hashlib
from collections.abc import ItemsView, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_lang.errors import OptionError, ShapeError, SiteError, StorageError
from lens_lang.languages import distinct_languages, find_language
from lens_lang.sites import Site, find_site
from lens_lang.storage import read_tensors, versions, write_tensors

if TYPE_CHECKING:
    import pandas as pd

Neuron = tuple[Site, int, int]
"""One neuron: its site, layer and index."""


@dataclass(frozen=True, eq=False)
class NeuronSet:
    """A set of neurons at one or several sites of one model.

    Attributes:
        masks: Bool[layer neuron] per site, True for members. Kept on the CPU and never changed.

    Examples:
        >>> from lens_lang.sites import MLP_POST
        >>> some = NeuronSet({MLP_POST: torch.eye(2, 4, dtype=torch.bool)})
        >>> len(some), (0, 0) in some, (0, 1) in some, len(~some)
        (2, True, False, 6)
    """

    masks: Mapping[Site, Bool[Tensor, "layer neuron"]]

    def __post_init__(self) -> None:
        for site, mask in self.masks.items():
            if mask.ndim != 2 or mask.dtype != torch.bool:
                raise ShapeError(
                    f"The mask of {site.name} must be Bool[layer neuron], got {mask.dtype} with "
                    f"shape {tuple(mask.shape)}"
                )
        owned = {site: mask.detach().cpu().clone() for site, mask in self.masks.items()}
        object.__setattr__(self, "masks", MappingProxyType(owned))

    @classmethod
    def from_indices(
        cls, indices: Int[Tensor, "n 2"], *, site: Site, shape: tuple[int, int]
    ) -> "NeuronSet":
        """Build a set from (layer, index) pairs.

        Args:
            indices: One row per neuron: its layer and its index.
            site: The site they live at.
            shape: Number of layers, and of neurons per layer.

        Raises:
            ShapeError: A pair lies outside `shape`.

        Examples:
            >>> from lens_lang.sites import MLP_POST
            >>> NeuronSet.from_indices(torch.tensor([[1, 2]]), site=MLP_POST, shape=(2, 4))
            NeuronSet(1 neuron: mlp_post 1 of 2 x 4)
        """
        indices, limit = indices.cpu(), torch.tensor(shape)
        if indices.numel() and bool(((indices < 0) | (indices >= limit)).any()):
            worst = tuple(indices[((indices < 0) | (indices >= limit)).any(1)][0].tolist())
            raise ShapeError(f"Neuron (layer, index) {worst} lies outside {shape} at {site.name}")
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[indices[:, 0].long(), indices[:, 1].long()] = True
        return cls({site: mask})

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that this set speaks of, empty ones included."""
        return tuple(self.masks)

    def indices(self, site: Site) -> Int[Tensor, "n 2"]:
        """Return the members at one site as (layer, index) pairs, sorted.

        Raises:
            SiteError: The set does not speak of that site.
        """
        return self._mask(site).nonzero()

    @property
    def site(self) -> Site:
        """The one site that has members.

        Raises:
            OptionError: There is none, or there are several.
        """
        held = [site for site, mask in self.masks.items() if bool(mask.any())]
        if len(held) != 1:
            if not held:
                raise OptionError("Neurons of one site are needed, and this set is empty")
            names = " and ".join(site.name for site in held)
            raise OptionError(
                f"Neurons of one site are needed, got {names}: give NeuronSet({{site: "
                "neurons.masks[site]})"
            )
        return held[0]

    @property
    def digest(self) -> str:
        """Fingerprint: equal only for equal sets."""
        digest = hashlib.sha256()
        for site in sorted(self.masks, key=lambda each: each.name):
            mask = self.masks[site]
            digest.update(f"{site.name} {tuple(mask.shape)}".encode())
            digest.update(mask.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def per_layer(self, site: Site) -> Int[Tensor, "layer"]:
        """Return how many members each layer has at one site."""
        return self._mask(site).sum(1)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per neuron: site, layer, neuron."""
        import pandas as pd

        rows = [(site.name, layer, index) for site, layer, index in self]
        frame = pd.DataFrame(rows, columns=["site", "layer", "neuron"])
        return frame.astype({"layer": "int64", "neuron": "int64"})

    def __len__(self) -> int:
        return sum(int(mask.sum()) for mask in self.masks.values())

    def __iter__(self) -> Iterator[Neuron]:
        for site in self.masks:
            for layer, index in self.indices(site).tolist():
                yield site, layer, index

    def __contains__(self, neuron: tuple[Any, ...]) -> bool:
        if len(neuron) == 2 and len(self.masks) == 1:
            neuron = (*self.masks, *neuron)
        if len(neuron) != 3:
            raise OptionError(
                "A neuron is (site, layer, index), or (layer, index) in a set of one site; got "
                f"{neuron!r}"
            )
        site, layer, index = neuron
        mask = self.masks.get(site)
        if mask is None:
            return False
        inside = 0 <= layer < mask.shape[0] and 0 <= index < mask.shape[1]
        return inside and bool(mask[layer, index])

    def __or__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, torch.logical_or)

    def __and__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, torch.logical_and)

    def __xor__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, torch.logical_xor)

    def __sub__(self, other: "NeuronSet") -> "NeuronSet":
        return self._combined(other, lambda mine, theirs: mine & ~theirs)

    def __invert__(self) -> "NeuronSet":
        return NeuronSet({site: ~mask for site, mask in self.masks.items()})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NeuronSet):
            return NotImplemented
        return self.masks.keys() == other.masks.keys() and all(
            torch.equal(mask, other.masks[site]) for site, mask in self.masks.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        sites = ", ".join(
            f"{site.name} {int(mask.sum())} of {mask.shape[0]} x {mask.shape[1]}"
            for site, mask in self.masks.items()
        )
        return f"NeuronSet({len(self)} neuron{'' if len(self) == 1 else 's'}: {sites})"

    def _mask(self, site: Site) -> Bool[Tensor, "layer neuron"]:
        if site not in self.masks:
            held = ", ".join(site.name for site in self.masks) or "no site"
            raise SiteError(f"This set has neurons at {held}, not at {site.name}")
        return self.masks[site]

    def _combined(self, other: "NeuronSet", rule: Any) -> "NeuronSet":
        masks = {}
        for site in {**self.masks, **other.masks}:
            mine, theirs = self.masks.get(site), other.masks.get(site)
            present = mine if mine is not None else theirs
            assert present is not None  # the site came from one of the two
            mine = torch.zeros_like(present) if mine is None else mine
            theirs = torch.zeros_like(present) if theirs is None else theirs
            if mine.shape != theirs.shape:
                raise ShapeError(
                    f"Cannot combine neurons of {tuple(mine.shape)} and of {tuple(theirs.shape)} "
                    f"(layers, neurons) at {site.name}: they belong to different models"
                )
            masks[site] = rule(mine, theirs)
        return NeuronSet(masks)


@dataclass(frozen=True, eq=False)
class LanguageNeurons(Mapping[str, NeuronSet]):
    """The neurons of each language, and how they were found.

    A mapping from language to `NeuronSet`, in the order of the languages. A language can be
    asked for under any of its names: ``neurons["French"]`` is ``neurons["fr"]``.

    Attributes:
        sets: The neurons of each language. A neuron may belong to several.
        provenance: Model, method, options, corpora and versions, as JSON values.
    """

    sets: Mapping[str, NeuronSet]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        distinct_languages(self.sets)
        shapes = [{s: m.shape for s, m in neurons.masks.items()} for neurons in self.sets.values()]
        if any(shape != shapes[0] for shape in shapes):
            raise ShapeError("The languages' neurons differ in sites or sizes: not of one model")
        object.__setattr__(self, "sets", MappingProxyType(dict(self.sets)))

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(self.sets)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that the sets speak of."""
        return next(iter(self.sets.values())).sites

    def __getitem__(self, lang: str) -> NeuronSet:
        return self.sets[self.languages[find_language(lang, self.languages)]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sets)

    def __len__(self) -> int:
        return len(self.sets)

    def items(self) -> ItemsView[str, NeuronSet]:
        """Return pairs of language and neurons."""
        return self.sets.items()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LanguageNeurons):
            return NotImplemented
        return self.languages == other.languages and all(
            mine == other[lang] for lang, mine in self.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        counts = ", ".join(f"{lang} {len(neurons)}" for lang, neurons in self.items())
        method = self.provenance.get("method", "neurons")
        return f"LanguageNeurons({method}: {counts}; {len(self.union())} distinct)"

    def union(self) -> NeuronSet:
        """Return the neurons of any language."""
        first, *rest = self.sets.values()
        for neurons in rest:
            first = first | neurons
        return first

    def membership(self) -> dict[int, int]:
        """Return how many neurons serve exactly 1, 2, ... languages."""
        total = {
            site: torch.stack([neurons.masks[site].int() for neurons in self.sets.values()]).sum(0)
            for site in self.sites
        }
        return {
            n: sum(int((counts == n).sum()) for counts in total.values())
            for n in range(1, len(self) + 1)
        }

    def overlap(
        self, measure: Literal["count", "jaccard", "containment", "expected"] = "jaccard"
    ) -> "pd.DataFrame":
        """Compare every language's neurons with every other's.

        Args:
            measure: ``count``: neurons in common. ``jaccard``: in common, of those in either.
                ``containment``: in common, of the column language's own. ``expected``: the
                number in common if both sets were drawn at random, site by site (the mean of
                the hypergeometric distribution), to compare ``count`` with.

        Returns:
            Languages by languages.

        Raises:
            OptionError: The measure is unknown.
        """
        import pandas as pd

        if measure not in ("count", "jaccard", "containment", "expected"):
            raise OptionError(
                f"measure must be count, jaccard, containment or expected, got {measure!r}"
            )
        names = list(self.languages)
        table = pd.DataFrame(0.0, index=names, columns=names)
        for row, mine in self.items():
            for column, theirs in self.items():
                both = len(mine & theirs)
                whole = {
                    "count": 1,
                    "jaccard": len(mine) + len(theirs) - both,
                    "containment": len(theirs),
                }
                table.loc[row, column] = (
                    _expected_overlap(mine, theirs)
                    if measure == "expected"
                    else both / whole[measure]
                    if whole[measure]
                    else float("nan")
                )
        return table

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per language and neuron: language, site, layer, neuron."""
        import pandas as pd

        frames = []
        for lang, neurons in self.items():
            frame = neurons.to_frame()
            frame.insert(0, "language", lang)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def save(self, path: str | Path) -> None:
        """Write the sets and their provenance to one safetensors file.

        Raises:
            StorageError: The file cannot be written.
        """
        tensors, shapes = {}, {}
        for site in self.sites:
            shapes[site.name] = list(next(iter(self.sets.values())).masks[site].shape)
            for position, neurons in enumerate(self.sets.values()):
                tensors[f"{site.name}.{position}"] = neurons.indices(site).to(torch.int32)
        header = {
            "languages": list(self.languages),
            "shapes": shapes,
            "provenance": {**self.provenance, "saved_with": versions()},
        }
        write_tensors(path, type(self).__name__, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "LanguageNeurons":
        """Read what `save` wrote.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            sets = {}
            for position, lang in enumerate(distinct_languages(header["languages"])):
                masks: dict[Site, Tensor] = {}
                for name, shape in header["shapes"].items():
                    one = NeuronSet.from_indices(
                        tensors[f"{name}.{position}"].long(),
                        site=find_site(name),
                        shape=(int(shape[0]), int(shape[1])),
                    )
                    masks.update(one.masks)
                sets[str(lang)] = NeuronSet(masks)
            provenance = dict(header["provenance"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(f"{path} is damaged: {error}") from error
        provenance.pop("saved_with", None)
        return cls(sets, provenance)

    def with_provenance(self, more: Mapping[str, Any]) -> "LanguageNeurons":
        """Return the same sets, with more said about where they come from."""
        return replace(self, provenance={**self.provenance, **more})


def random_like(
    neurons: NeuronSet, *, generator: torch.Generator, exclude: NeuronSet | None = None
) -> NeuronSet:
    """Draw as many neurons per site and layer as a set has, from outside it: its control.

    Whatever a set does, a control that does as much says that it is the number of neurons, or
    their layers, that matters and not which they are.

    Args:
        neurons: The set to match.
        generator: Source of randomness; the same state gives the same neurons.
        exclude: Neurons not to draw; None leaves out `neurons` itself.

    Returns:
        A set with the same number of members in every layer of every site.

    Raises:
        ShapeError: A layer has too few neurons outside the excluded ones.

    Examples:
        >>> from lens_lang.sites import MLP_POST
        >>> some = NeuronSet({MLP_POST: torch.eye(2, 8, dtype=torch.bool)})
        >>> random_like(some, generator=torch.Generator().manual_seed(0)).per_layer(MLP_POST)
        tensor([1, 1])
    """
    masks = {}
    for site, mask in neurons.masks.items():
        outside = mask if exclude is None else exclude.masks.get(site, torch.zeros_like(mask))
        drawn = torch.zeros_like(mask)
        for layer, wanted in enumerate(mask.sum(1).tolist()):
            others = draw_others(
                outside[layer], wanted, generator=generator, site=site, layer=layer
            )
            drawn[layer, others] = True
        masks[site] = drawn
    return NeuronSet(masks)


def draw_others(
    taken: Bool[Tensor, "neuron"],
    wanted: int,
    *,
    generator: torch.Generator,
    site: Site,
    layer: int,
) -> Int[Tensor, "wanted"]:
    """Draw neurons of one layer at random from outside those that are taken.

    Args:
        taken: True for neurons not to draw.
        wanted: How many to draw.
        generator: Source of randomness.
        site: Their site, for the error message.
        layer: Their layer, for the error message.

    Returns:
        The indices of those drawn, sorted.

    Raises:
        ShapeError: Too few are left.
    """
    free = (~taken).nonzero().flatten()
    if len(free) < wanted:
        raise ShapeError(
            f"Layer {layer} of {site.name} has {len(free)} neurons outside the set, too few to "
            f"match its {wanted} members with others"
        )
    return free[torch.randperm(len(free), generator=generator)[:wanted]].sort().values


def _expected_overlap(mine: NeuronSet, theirs: NeuronSet) -> float:
    return sum(
        int(mask.sum()) * int(theirs.masks[site].sum()) / mask.numel()
        for site, mask in mine.masks.items()
    )
