"""LAPE: language activation probability entropy (Tang et al. 2024, arXiv:2402.16438).

A neuron is a language's own if it fires often on few languages: its activation probabilities,
normalised over languages, have low entropy. The exact selection rule, down to how ties and
order statistics are taken, follows the released script, except where that loses something; the
switches of `LapeVariant` name each choice.
"""

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_lang.errors import OptionError
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import Site, switch_site
from lens_lang.stats import Frequency, check_result
from lens_lang.storage import versions


@dataclass(frozen=True)
class LapeVariant:
    """The choices inside LAPE. The defaults are the released script's, without its losses.

    Attributes:
        pool: Quantiles over the probabilities of ``all`` languages together, or of each
            ``language`` by itself.
        quantile: ``rank``: the k-th smallest, k = round(n * q) half to even, counted from 1.
            ``interpolated``: linear between ranks, as numpy does.
        scope: Take the lowest entropies of the whole ``model``, or of every ``layer``.
        assign: A selected neuron belongs to every language ``above_bar``; or only to its most
            probable one, ``argmax``; or, ``exclusive``, is dropped unless one alone is above.
        numerics: Probabilities in ``float64``, or in ``float32`` as released.
        filtered: ``drop`` neurons that failed the filter even if too few passed it, or ``keep``
            them as released.
    """

    pool: Literal["all", "language"] = "all"
    quantile: Literal["rank", "interpolated"] = "rank"
    scope: Literal["model", "layer"] = "model"
    assign: Literal["above_bar", "argmax", "exclusive"] = "above_bar"
    numerics: Literal["float64", "float32"] = "float64"
    filtered: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        choices = {
            "pool": ("all", "language"),
            "quantile": ("rank", "interpolated"),
            "scope": ("model", "layer"),
            "assign": ("above_bar", "argmax", "exclusive"),
            "numerics": ("float64", "float32"),
            "filtered": ("drop", "keep"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise OptionError(
                    f"{name} must be {' or '.join(allowed)}, got {getattr(self, name)!r}"
                )


RELEASED = LapeVariant(numerics="float32", filtered="keep")
"""The released script's own numerics and losses."""


def activation_entropy(freq: Frequency) -> Float[Tensor, "layer neuron"]:
    """Return the LAPE score: the entropy over languages of a neuron's activation probability.

    p' = p / sum_k p, LAPE = -sum_k p' ln p' (Tang et al. 2024). In nats,
    between 0 (fires on one language only) and ln K. A neuron that never fires scores 0 too,
    which is why `lape` filters before it selects.

    Args:
        freq: Firing counts.

    Returns:
        The score of every neuron, float64.

    Examples:
        >>> freq = Frequency(
        ...     languages=("en", "fr"), count=torch.tensor([[[5, 9]], [[5, 0]]]),
        ...     n_tokens=torch.tensor([10, 10]))
        >>> [round(score, 4) for score in activation_entropy(freq).flatten().tolist()]
        [0.6931, 0.0]
    """
    return entropy_over_languages(freq.probability)


def entropy_over_languages(
    values: Float[Tensor, "lang layer neuron"],
) -> Float[Tensor, "layer neuron"]:
    """Return the entropy, in nats, of values normalised over languages; 0 where all are 0.

    Args:
        values: Not negative.
    """
    share = values / values.sum(0)
    share = torch.where(values.sum(0) > 0, share, torch.zeros_like(share))
    return torch.special.entr(share).sum(0)


def lape(
    freq: Frequency,
    *,
    top: float = 0.01,
    max_entropy: float | None = None,
    filter_quantile: float = 0.95,
    bar_quantile: float = 0.95,
    compat: bool = False,
    variant: LapeVariant | None = None,
) -> LanguageNeurons:
    """Find each language's neurons by the entropy of their activation probabilities.

    The rule of Tang et al. (2024), arXiv:2402.16438: leave out neurons that no language
    activates with a probability above the `filter_quantile` of all probabilities; of the rest
    take the `top` share of *all* neurons by lowest entropy; give each to every language whose
    probability is above the `bar_quantile`. Both comparisons are strict.

    Departures from the released script: every language gets an entry, even an empty one;
    neurons that failed the filter are never selected; probabilities are float64; ties are broken
    by layer, then index. ``compat=True`` takes these back.

    Args:
        freq: Firing counts at one site.
        top: Share of all neurons of the model to select.
        max_entropy: Select by this absolute score instead, in nats; `top` then has no effect.
        filter_quantile: See above.
        bar_quantile: See above.
        compat: Reproduce the released script's losses: float32, filtered neurons kept, and no
            entry for languages after the last one that has a neuron.
        variant: Other choices inside the method; see `LapeVariant`.

    Returns:
        The neurons of each language, at the site where they are switched.

    Raises:
        OptionError: A share or quantile lies outside its range, or fewer than two languages
            are given.

    Examples:
        >>> freq = Frequency(
        ...     languages=("en", "fr"),
        ...     count=torch.tensor([[[50, 1, 30, 0]], [[0, 60, 31, 0]]]),
        ...     n_tokens=torch.tensor([100, 100]))
        >>> lape(freq, top=0.5, filter_quantile=0.5, bar_quantile=0.5)
        LanguageNeurons(lape: en 1, fr 1; 2 distinct)
    """
    check_result(freq, Frequency, taken_by="lape")
    if variant is None:
        variant = RELEASED if compat else LapeVariant()
    probability = freq.probability
    if variant.numerics == "float32":
        probability = freq.count.float() / freq.n_tokens.float()[:, None, None]
    options = {
        "top": top,
        "max_entropy": max_entropy,
        "filter_quantile": filter_quantile,
        "bar_quantile": bar_quantile,
        "compat": compat,
        **asdict(variant),
    }
    member = select_by_entropy(
        probability,
        top=top,
        max_entropy=max_entropy,
        filter_quantile=filter_quantile,
        bar_quantile=bar_quantile,
        variant=variant,
    )
    languages = freq.languages
    if compat:
        served = member.flatten(1).any(1).nonzero()
        languages = languages[: int(served.max()) + 1] if len(served) else languages[:1]
    return as_language_neurons(
        member[: len(languages)], languages, freq.site, {"method": "lape", "options": options}, freq
    )


def select_by_entropy(
    values: Float[Tensor, "lang layer neuron"],
    *,
    top: float = 0.01,
    max_entropy: float | None = None,
    filter_quantile: float = 0.95,
    bar_quantile: float = 0.95,
    variant: LapeVariant | None = None,
) -> Bool[Tensor, "lang layer neuron"]:
    """Apply LAPE's selection rule to any values that are not negative.

    Args:
        values: One value per language and neuron; for LAPE the activation probability.
        top: See `lape`.
        max_entropy: See `lape`.
        filter_quantile: See `lape`.
        bar_quantile: See `lape`.
        variant: See `lape`.

    Returns:
        True where a neuron belongs to a language.
    """
    variant = variant or LapeVariant()
    if len(values) < 2:
        raise OptionError("Entropy over languages needs at least two languages, got one")
    if max_entropy is None and not 0 < top <= 1:
        raise OptionError(f"top is a share of all neurons, above 0 and at most 1, got {top}")
    for name, quantile in (("filter_quantile", filter_quantile), ("bar_quantile", bar_quantile)):
        if not 0 < quantile <= 1:
            raise OptionError(f"{name} must lie above 0 and at most at 1, got {quantile}")
    entropy = entropy_over_languages(values).double()
    passed = (values > _threshold(values, filter_quantile, variant)).any(0)
    entropy = torch.where(passed, entropy, torch.inf)
    if max_entropy is not None:
        selected = entropy <= max_entropy
    elif variant.scope == "layer":
        selected = torch.stack([_lowest(layer[None], top)[0] for layer in entropy])
    else:
        selected = _lowest(entropy, top)
    if variant.filtered == "drop":
        selected &= passed
    above = values > _threshold(values, bar_quantile, variant)
    if variant.assign == "argmax":
        above &= torch.nn.functional.one_hot(values.argmax(0), len(values)).bool().movedim(-1, 0)
    elif variant.assign == "exclusive":
        above &= above.sum(0) == 1
    return above & selected


def _threshold(
    values: Float[Tensor, "lang layer neuron"], quantile: float, variant: LapeVariant
) -> Float[Tensor, "rows 1 1"]:
    """The quantile of all values, or of each language's, ready to compare `values` with."""
    pool = values.flatten(1) if variant.pool == "language" else values.reshape(1, -1)
    if variant.quantile == "interpolated":
        # To be above a value between two ranks is to be above the lower of the two.
        rank = int(quantile * (pool.shape[1] - 1)) + 1
    else:
        rank = max(round(pool.shape[1] * quantile), 1)  # round() takes halves to even
    found = pool.kthvalue(rank, dim=1).values
    return found[:, None, None]


def _lowest(entropy: Float[Tensor, "layer neuron"], share: float) -> Bool[Tensor, "layer neuron"]:
    """The round(n * share) lowest entropies; ties go to the lower layer, then index."""
    order = entropy.flatten().sort(stable=True).indices
    selected = torch.zeros(entropy.numel(), dtype=torch.bool)
    selected[order[: round(entropy.numel() * share)]] = True
    return selected.view_as(entropy)


def as_language_neurons(
    member: Bool[Tensor, "lang layer neuron"],
    languages: tuple[str, ...],
    site: Site,
    method: dict[str, object],
    statistic: object,
) -> LanguageNeurons:
    """Name the rows of a membership tensor, and say where it came from.

    Args:
        member: True where a neuron belongs to a language.
        languages: Names of the rows.
        site: Where the neurons were read; they are switched at `switch_site` of it.
        method: What found them, for the provenance.
        statistic: The result they were found in, whose provenance is kept.
    """
    provenance = {
        **method,
        "read at": site.name,
        "statistic": dict(getattr(statistic, "provenance", {})),
        "versions": versions(),
    }
    sets = {
        lang: NeuronSet({switch_site(site): rows})
        for lang, rows in zip(languages, member, strict=True)
    }
    return LanguageNeurons(sets, provenance)
