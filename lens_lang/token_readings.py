"""Single texts, token by token: what chosen neurons and chosen heads do at each.

For looking, not for counting: the statistics of `lens_lang.collect` say what a neuron does on
average, these readings show where in a sentence it does it.
"""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.batches import TokenBatch
from lens_lang.corpora import Corpora, check_fits
from lens_lang.errors import ActivationError, OptionError, ShapeError
from lens_lang.languages import find_language
from lens_lang.lens import Prompts, as_corpora
from lens_lang.neurons import NeuronSet
from lens_lang.positions import check_everywhere
from lens_lang.sites import (
    ATTN_PATTERN,
    MLP_POST,
    MLP_PRE,
    FwdHooks,
    Site,
    check_hooks,
    check_layers,
    flat_neurons,
    model_name,
    n_layers,
    preflight,
    run_until,
)
from lens_lang.spelling import show_tokens, token_bytes

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 8


@dataclass(frozen=True, eq=False)
class TokenActivations:
    """The activations of chosen neurons at every token of some texts.

    Attributes:
        languages: The language of each text.
        tokens: Each text's tokens, as text. A character of several tokens stands at its last one,
            and each earlier one has a "·".
        ids: The same as token ids.
        activations: Each text's activations.
        labels: Names of the neurons, ``layer.index``.
        site: Where they were read; None for shares.
        fires: Where each neuron fires; empty where firing has no meaning.

    Examples:
        >>> from lens_lang.sites import MLP_POST
        >>> read = TokenActivations(
        ...     ("fr",), (("Le", " chat"),), (torch.tensor([4, 5]),),
        ...     (torch.tensor([[0.5, -0.1], [2.0, 0.3]]),), ("3.7", "3.9"), MLP_POST,
        ...     (torch.tensor([[True, False], [True, True]]),))
        >>> read.share_firing().activations[0].flatten().tolist()
        [0.5, 1.0]
    """

    languages: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    ids: tuple[Int[Tensor, "_"], ...]
    activations: tuple[Float[Tensor, "_ neuron"], ...]
    labels: tuple[str, ...]
    site: Site | None
    fires: tuple[Bool[Tensor, "_ neuron"], ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        _check_texts(self, self.activations, "neurons", lambda n: (n, len(self.labels)))

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        where = "" if self.site is None else f" at {self.site.name}"
        return f"TokenActivations({len(self)} texts, {len(self.labels)} columns{where})"

    def in_language(self, lang: str) -> "TokenActivations":
        """Return the texts of one language.

        Raises:
            LanguageError: There is none.
        """
        return _in_language(self, lang, "activations", "fires")

    def share_firing(self) -> "TokenActivations":
        """Return, in place of single neurons, the share of them that fire at each token.

        Raises:
            OptionError: These are not neurons of an MLP, so that firing has no meaning.
        """
        if not self.fires:
            raise OptionError(
                "Only neurons of an MLP fire: give token_activations neurons at mlp_post or mlp_pre"
            )
        return TokenActivations(
            self.languages,
            self.tokens,
            self.ids,
            tuple(each.float().mean(1, keepdim=True) for each in self.fires),
            (f"share of {len(self.labels)} firing",),
            None,
        )

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per token: text, language, position, token, a column per neuron."""
        import pandas as pd

        rows = [
            (number, self.languages[number], position, token, *values)
            for number, tokens in enumerate(self.tokens)
            for position, (token, values) in enumerate(
                zip(tokens, self.activations[number].tolist(), strict=True)
            )
        ]
        columns = ["text", "language", "position", "token", *self.labels]
        return pd.DataFrame(rows, columns=columns)


def token_activations(
    model: Any, texts: Prompts, neurons: NeuronSet, *, fwd_hooks: FwdHooks = ()
) -> TokenActivations:
    """Read chosen neurons at every token of some texts.

    Activations are those of the neurons' own site: at ``MLP_POST``, where `lape` has its neurons,
    what a neuron multiplies its output vector with. Firing is read before the activation function.

    Args:
        model: The model. It is run no further than the last layer that has a chosen neuron.
        texts: Texts by language, ``{"fr": ["Le chat", ...]}``, or texts of no stated language, or
            corpora, read one document a text and cut to the length of their rows. BOS is read as
            TransformerLens does for this model, and is not among the tokens unless the corpora
            count it.
        neurons: The neurons, all of one site.
        fwd_hooks: Interventions under which to read.

    Returns:
        Activations by text; `lens_lang.plot.token_activations` shows them.

    Raises:
        OptionError: The neurons are of no site or of several.
        CorpusError: A text is empty, too long for the model, or tokenised for another one.
        LanguageError: A language is unknown, or named twice.
        ShapeError: The neurons are of another model.
        SiteError: A hook point does not exist.
        ModelError: The model is refused.
        ActivationError: NaN or infinity.
    """
    if not isinstance(neurons, NeuronSet):
        raise OptionError(
            f"token_activations takes a NeuronSet, got {type(neurons).__name__}: give "
            "neurons['fr'], or neurons.union() for those of all languages"
        )
    site = neurons.site
    layers, width = neurons.masks[site].shape
    check_layers(model, site, (layers, width))
    of_mlp = site in (MLP_POST, MLP_PRE)
    sites = (site, MLP_PRE) if site == MLP_POST else (site,)
    chosen = {n: row.nonzero().flatten() for n, row in enumerate(neurons.masks[site])}
    chosen = {layer: each for layer, each in chosen.items() if len(each)}
    corpora = _prepared(model, texts, sites, fwd_hooks)

    def pick(values: Tensor, site: Site, layer: int) -> Tensor:
        flat = flat_neurons(values, site)
        return flat[..., chosen[layer].to(flat.device)]

    places = [(each, layer) for layer in chosen for each in sites]
    activations: list[Tensor] = []
    fires: list[Tensor] = []
    ids: list[Tensor] = []
    for batch, kept in _read(model, corpora, places, pick, fwd_hooks=fwd_hooks):
        values = torch.cat([kept[site, layer] for layer in chosen], -1)
        before = torch.cat([kept[sites[-1], layer] for layer in chosen], -1)
        for row, counted in enumerate(batch.mask):
            _check_finite(model, values[row][counted], batch, row)
            activations.append(values[row][counted])
            fires.append(before[row][counted] > 0)
            ids.append(batch.tokens[row][counted])
    return TokenActivations(
        languages=_languages(corpora),
        tokens=_spelled(model, ids),
        ids=tuple(ids),
        activations=tuple(activations),
        labels=tuple(f"{layer}.{index}" for layer, index in neurons.indices(site).tolist()),
        site=site,
        fires=tuple(fires) if of_mlp else (),
    )


@dataclass(frozen=True, eq=False)
class AttentionPatterns:
    """What chosen attention heads look at, from every token of some texts.

    Attributes:
        languages: The language of each text.
        tokens: Each text's tokens as text, BOS among them where there is one: most heads look at
            it when they have nothing to do.
        ids: The same as token ids.
        patterns: Each text's patterns; every row of a query sums to 1.
        labels: Names of the heads, ``layer.head``.

    Examples:
        >>> looks = AttentionPatterns(
        ...     ("en",), (("a", "b"),), (torch.tensor([4, 5]),),
        ...     (torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]),), ("3.1",))
        >>> len(looks), looks.labels
        (1, ('3.1',))
    """

    languages: tuple[str, ...]
    tokens: tuple[tuple[str, ...], ...]
    ids: tuple[Int[Tensor, "_"], ...]
    patterns: tuple[Float[Tensor, "head _ _"], ...]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_texts(self, self.patterns, "heads", lambda n: (len(self.labels), n, n))

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"AttentionPatterns({len(self)} texts, heads {', '.join(self.labels)})"

    def in_language(self, lang: str) -> "AttentionPatterns":
        """Return the texts of one language.

        Raises:
            LanguageError: There is none.
        """
        return _in_language(self, lang, "patterns")


def attention_patterns(
    model: Any, texts: Prompts, heads: Iterable[tuple[int, int]], *, fwd_hooks: FwdHooks = ()
) -> AttentionPatterns:
    """Read the attention patterns of chosen heads on some texts.

    Args:
        model: The model. It is run no further than the last layer that has a chosen head.
        texts: As `token_activations` takes them.
        heads: (layer, head) pairs in a list, in the order to show them.
        fwd_hooks: Interventions under which to read.

    Returns:
        Patterns by text; `lens_lang.plot.attention_patterns` shows them.

    Raises:
        OptionError: There is no such head, none is given, or these are not pairs.
        CorpusError: A text is empty, too long for the model, or tokenised for another one.
        LanguageError: A language is unknown, or named twice.
        SiteError: A hook point does not exist.
        ModelError: The model is refused.
        ActivationError: NaN.
    """
    try:
        chosen = [(operator.index(layer), operator.index(head)) for layer, head in heads]
    except (TypeError, ValueError):
        raise OptionError(
            f"heads are (layer, head) pairs in a list, such as [(5, 0)], got {heads!r}"
        ) from None
    layers, count = n_layers(model), int(model.cfg.n_heads)
    wrong = [each for each in chosen if not (0 <= each[0] < layers and 0 <= each[1] < count)]
    if wrong or not chosen:
        found = f"head {wrong[0][1]} in layer {wrong[0][0]}" if wrong else "no head"
        raise OptionError(
            f"heads are (layer, head) pairs of {layers} layers of {count} heads, got {found}"
        )
    corpora = _prepared(model, texts, (ATTN_PATTERN,), fwd_hooks)
    wanted = {layer: [h for n, h in chosen if n == layer] for layer, _ in chosen}

    def pick(values: Tensor, _: Site, layer: int) -> Tensor:
        return values[:, wanted[layer]]

    patterns: list[Tensor] = []
    ids: list[Tensor] = []
    places = [(ATTN_PATTERN, layer) for layer in wanted]
    for batch, kept in _read(model, corpora, places, pick, fwd_hooks=fwd_hooks):
        stacked = torch.stack(
            [kept[ATTN_PATTERN, n][:, wanted[n].index(head)] for n, head in chosen], 1
        )
        for row in range(len(batch.tokens)):
            real = torch.ones_like(batch.mask[row])
            if batch.attention_mask is not None:
                real = batch.attention_mask[row]
            pattern = stacked[row][:, real][:, :, real]
            _check_finite(model, pattern, batch, row)
            patterns.append(pattern)
            ids.append(batch.tokens[row][real])
    return AttentionPatterns(
        languages=_languages(corpora),
        tokens=_spelled(model, ids),
        ids=tuple(ids),
        patterns=tuple(patterns),
        labels=tuple(f"{layer}.{head}" for layer, head in chosen),
    )


def _prepared(model: Any, texts: Prompts, sites: Sequence[Site], fwd_hooks: FwdHooks) -> Corpora:
    corpora = as_corpora(model, texts)
    preflight(model, sites)
    check_hooks(model, fwd_hooks)
    check_everywhere(fwd_hooks)
    check_fits(corpora, model.cfg)
    return corpora


def _read(
    model: Any,
    corpora: Corpora,
    places: Sequence[tuple[Site, int]],
    pick: Callable[[Tensor, Site, int], Tensor],
    *,
    fwd_hooks: FwdHooks,
) -> Iterator[tuple[TokenBatch, dict[tuple[Site, int], Tensor]]]:
    """Run the text batch by batch; yield each with what was picked of the values at each place."""
    for batch in corpora.batches(_ROWS):
        kept: dict[tuple[Site, int], Tensor] = {}

        def keep(values: Tensor, hook: Any, site: Site, layer: int, kept: Any = kept) -> None:
            kept[site, layer] = pick(values, site, layer).float().cpu()

        run_until(
            model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            fwd_hooks=fwd_hooks,
            readers=[
                (site.at(layer), partial(keep, site=site, layer=layer)) for site, layer in places
            ],
        )
        yield batch, kept


def _check_finite(model: Any, values: Tensor, batch: TokenBatch, row: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise ActivationError(
            f"{model_name(model)} produced NaN or infinity on text {int(batch.documents[row])} of "
            f"{batch.language!r}; half precision often needs bfloat16 or float32 instead of float16"
        )


def _languages(corpora: Corpora) -> tuple[str, ...]:
    return tuple(lang for lang, docs in corpora.documents.items() for _ in range(len(docs)))


def _spelled(model: Any, ids: Sequence[Tensor]) -> tuple[tuple[str, ...], ...]:
    pieces = token_bytes(model, [item for each in ids for item in each.tolist()])
    return tuple(show_tokens([pieces[item] for item in each.tolist()]) for each in ids)


AnyReading = TypeVar("AnyReading", TokenActivations, AttentionPatterns)


def _in_language(read: AnyReading, lang: str, *values: str) -> AnyReading:
    distinct = tuple(dict.fromkeys(read.languages))
    wanted = distinct[find_language(lang, distinct)]
    kept = [number for number, each in enumerate(read.languages) if each == wanted]
    changes: dict[str, Any] = {}
    for name in ("languages", "tokens", "ids", *values):
        by_text = getattr(read, name)
        changes[name] = tuple(by_text[number] for number in kept) if by_text else ()
    return replace(read, **changes)


def _check_texts(
    read: TokenActivations | AttentionPatterns,
    values: Sequence[Tensor],
    columns: str,
    shape: Callable[[int], tuple[int, ...]],
) -> None:
    """Refuse a reading whose texts do not all have tokens and values of one size."""
    counts = [len(each) for each in (read.languages, read.tokens, read.ids, values)]
    if len(set(counts)) > 1 or not read.languages:
        raise ShapeError(
            f"Languages, tokens, ids and values must be as many, got {', '.join(map(str, counts))}"
        )
    for tokens, some in zip(read.tokens, values, strict=True):
        if tuple(some.shape) != shape(len(tokens)):
            raise ShapeError(
                f"A text of {len(tokens)} tokens and {len(read.labels)} {columns} cannot have "
                f"values of shape {tuple(some.shape)}"
            )
