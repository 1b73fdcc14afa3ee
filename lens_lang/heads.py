"""What attention heads look at in each language, and whole heads as sets of neurons.

A head is switched like any neurons: its `d_head` values at ``hook_z`` are what it writes. So
`ablate`, `perplexity_matrix` and the rest take `head_set` as they take a detector's neurons.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import ActivationError, OptionError, ShapeError
from lens_lang.neurons import NeuronSet
from lens_lang.saved import Saved
from lens_lang.sites import ATTN_PATTERN, ATTN_Z, HookedModel, Site, n_layers, site_width
from lens_lang.specs import Reading, Sums
from lens_lang.stats import added, check_axes
from lens_lang.vocabulary import VocabularyLanguages

if TYPE_CHECKING:
    import pandas as pd

_MEASURES = ("first", "previous", "itself", "entropy")
_OWN = "own_language"


@dataclass(frozen=True, eq=False)
class HeadAttention(Saved):
    """What each head looks at, on average over the tokens of each language.

    Attributes:
        languages: Names of the first axis.
        measures: Names of the second: attention to the ``first`` position (BOS, where there is
            one), to the ``previous`` and to the token ``itself``, the ``entropy`` of the
            pattern in bits, and attention to tokens of the text's ``own_language``.
        sum: Sums over all tokens, float64.
        n_tokens: Number of tokens of each language.
        provenance: Model, corpora and versions, as JSON values.

    Examples:
        >>> attention = HeadAttention(
        ...     ("en",), ("first",), torch.tensor([[[[1.0]]]]).double(), torch.tensor([4]))
        >>> attention["first"].item()
        0.25
    """

    languages: tuple[str, ...]
    measures: tuple[str, ...]
    sum: Float[Tensor, "lang measure layer head"]
    n_tokens: Int[Tensor, "lang"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    _same: ClassVar[tuple[str, ...]] = ("languages", "measures")
    _summed: ClassVar[tuple[str, ...]] = ("sum", "n_tokens")

    def __post_init__(self) -> None:
        check_axes(self.languages, self.n_tokens, self.sum)
        if self.sum.shape[1] != len(self.measures):
            raise ShapeError(
                f"{len(self.measures)} measures need as many rows, got {self.sum.shape[1]}"
            )

    def __getitem__(self, measure: str) -> Float[Tensor, "lang layer head"]:
        """Return the mean of one measure.

        Raises:
            OptionError: It was not measured.
        """
        if measure not in self.measures:
            raise OptionError(
                f"{measure!r} was not measured; {', '.join(self.measures)} were"
                + (" (give HeadPattern a vocabulary)" if measure == _OWN else "")
            )
        place = self.measures.index(measure)
        return self.sum[:, place] / self.n_tokens.double()[:, None, None]

    def __repr__(self) -> str:
        _, _, layers, heads = self.sum.shape
        tokens = zip(self.languages, self.n_tokens.tolist(), strict=True)
        counted = ", ".join(f"{lang} {n:,}" for lang, n in tokens)
        return f"HeadAttention({layers} layers of {heads} heads; tokens: {counted})"

    def __add__(self, other: "HeadAttention") -> "HeadAttention":
        return added(self, other)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per language, layer and head, a column per measure."""
        import pandas as pd

        means = {measure: self[measure].tolist() for measure in self.measures}
        _, _, layers, heads = self.sum.shape
        return pd.DataFrame(
            [
                {
                    "language": lang,
                    "layer": layer,
                    "head": head,
                    **{name: values[place][layer][head] for name, values in means.items()},
                }
                for place, lang in enumerate(self.languages)
                for layer in range(layers)
                for head in range(heads)
            ]
        )


@dataclass(frozen=True, eq=False)
class HeadPattern:
    """Sum what each head looks at: a spec for `lens_lang.collect`.

    Attributes:
        vocabulary: Which language each token belongs to, for ``own_language``; None leaves that
            out. Attention to a token counts by the token's share of the text's language, which
            must be among the vocabulary's (else `collect` raises LanguageError).
    """

    vocabulary: VocabularyLanguages | None = None

    def bind(self, model: HookedModel) -> "_BoundPattern":
        """Fit the spec to a model.

        Raises:
            ShapeError: The vocabulary was made for another model.
        """
        size = int(model.cfg.d_vocab)
        return _BoundPattern(None if self.vocabulary is None else self.vocabulary.padded(size))


class _BoundPattern:
    document_tokens = None
    sites: tuple[Site, ...] = (ATTN_PATTERN,)

    def __init__(self, vocabulary: VocabularyLanguages | None) -> None:
        self.vocabulary = vocabulary

    def update(self, sums: Sums, reading: Reading) -> None:
        pattern: Float[Tensor, "batch head query key"] = reading.values[ATTN_PATTERN].float()
        counts = reading.mask.to(pattern.device)[:, None, :]
        queries = torch.arange(pattern.shape[2], device=pattern.device)
        looks = {
            "first": pattern[..., 0],
            # the first position has none before it
            "previous": torch.where(
                queries > 0, pattern[..., queries, (queries - 1).clamp(min=0)], 0.0
            ),
            "itself": pattern[..., queries, queries],
            # row by row, so that no second tensor of the pattern's size exists
            "entropy": torch.stack([torch.special.entr(each).sum(-1) for each in pattern])
            / math.log(2),
        }
        if self.vocabulary is not None:
            assert reading.token_ids is not None  # collect always gives them
            share = self.vocabulary.of(reading.language)[reading.token_ids]
            own = share.masked_fill(~reading.mask, 0.0).to(pattern.device)  # no BOS, no padding
            looks[_OWN] = torch.einsum("bhqk,bk->bhq", pattern, own)
        rows = torch.stack([torch.where(counts, e, 0.0).sum((0, 2)) for e in looks.values()])
        if not bool(torch.isfinite(rows).all()):
            raise ActivationError(
                f"Attention patterns of layer {reading.layer} are NaN on text of "
                f"{reading.language!r}"
            )
        sums.add("sum", reading.layer, rows)

    def result(
        self, sums: Mapping[str, Mapping[str, Tensor]], n_tokens: Mapping[str, int]
    ) -> HeadAttention:
        measures = _MEASURES if self.vocabulary is None else (*_MEASURES, _OWN)
        stacked = torch.stack([language["sum"] for language in sums.values()])
        return HeadAttention(
            languages=tuple(sums),
            measures=measures,
            sum=stacked.movedim(1, 2),  # layers were stacked first
            n_tokens=torch.tensor(list(n_tokens.values())),
        )


def head_set(model: HookedModel, heads: Iterable[tuple[int, int]]) -> NeuronSet:
    """Return whole attention heads as a set of neurons.

    Args:
        model: The model.
        heads: (layer, head) pairs.

    Returns:
        All `d_head` neurons of each head at ``hook_z``: ablating them takes the head's output
        away and leaves its pattern.

    Raises:
        OptionError: The model has no such layer or head.
    """
    layers, count, width = n_layers(model), int(model.cfg.n_heads), int(model.cfg.d_head)
    mask = torch.zeros(layers, site_width(model, ATTN_Z), dtype=torch.bool)
    for layer, head in heads:
        if not (0 <= layer < layers and 0 <= head < count):
            raise OptionError(
                f"There is no head {head} in layer {layer}: this model has {layers} layers of "
                f"{count} heads"
            )
        mask[layer, head * width : (head + 1) * width] = True
    return NeuronSet({ATTN_Z: mask})


def random_heads(model: HookedModel, heads: NeuronSet, *, generator: torch.Generator) -> NeuronSet:
    """Draw as many other heads in each layer: the control for a set of heads.

    `random_like` would draw single neurons from all heads, which is another question.

    Args:
        model: The model.
        heads: From `head_set`.
        generator: Source of randomness.

    Returns:
        As many heads of every layer, none of them in the set.

    Raises:
        OptionError: The set holds a part of a head, or leaves too few others in a layer.
    """
    count, width = int(model.cfg.n_heads), int(model.cfg.d_head)
    chosen: list[tuple[int, int]] = []
    if heads.sites != (ATTN_Z,):
        raise OptionError("These neurons are not whole heads: make them with head_set")
    members = heads.masks[ATTN_Z].view(-1, count, width)
    if bool((members.any(2) != members.all(2)).any()):
        raise OptionError("These neurons are not whole heads: make them with head_set")
    for layer, taken in enumerate(members.all(2)):
        free = (~taken).nonzero().flatten()
        wanted = int(taken.sum())
        if wanted > len(free):
            raise OptionError(
                f"Layer {layer} has {wanted} of {count} heads in the set, so there are not as "
                "many others to draw"
            )
        order = torch.randperm(len(free), generator=generator)[:wanted]
        chosen += [(layer, int(free[place])) for place in order]
    return head_set(model, chosen)
