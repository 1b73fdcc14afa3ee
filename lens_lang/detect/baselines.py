"""What LAPE is compared with: the paper's simpler methods, on the same statistics.

Tang et al. (2024) compare LAPE with activation probability alone (LAP), with the entropy of
activation values (LAVE), and with random neurons. The released code does not contain these;
where there was a choice, the docstring says which one is ours.
"""

import torch

from lens_lang.detect.lape import LapeVariant, as_language_neurons, select_by_entropy
from lens_lang.errors import OptionError
from lens_lang.neurons import LanguageNeurons
from lens_lang.sites import MLP_POST, MLP_PRE, Site
from lens_lang.stats import Activations, Frequency


def lap(freq: Frequency, *, threshold: float = 0.95) -> LanguageNeurons:
    """Give a language every neuron that fires on nearly all of its tokens.

    Language activation probability, a baseline of Tang et al. (2024).

    Args:
        freq: Firing counts.
        threshold: A neuron is the language's if its probability is above this, strictly. That
            it is high and fixed is the method; 0.95 is our default.

    Returns:
        The neurons of each language. They overlap greatly: nothing here asks whether other
        languages activate the neuron too, which is what the comparison shows.

    Examples:
        >>> freq = Frequency(
        ...     languages=("en", "fr"), count=torch.tensor([[[99, 10]], [[98, 96]]]),
        ...     n_tokens=torch.tensor([100, 100]))
        >>> lap(freq)
        LanguageNeurons(lap: en 1, fr 2; 2 distinct)
    """
    if not 0 <= threshold < 1:
        raise OptionError(f"threshold is a probability, at least 0 and below 1, got {threshold}")
    return as_language_neurons(
        freq.probability > threshold,
        freq.languages,
        freq.site,
        {"method": "lap", "options": {"threshold": threshold}},
        freq,
    )


def lave(
    activations: Activations,
    *,
    top: float = 0.01,
    filter_quantile: float = 0.95,
    bar_quantile: float = 0.95,
    variant: LapeVariant | None = None,
) -> LanguageNeurons:
    """Apply LAPE's rule to mean activation values instead of probabilities.

    Language activation value entropy, a baseline of Tang et al. (2024). Means
    below 0 (GELU and SiLU have them) cannot be normalised over languages and count as 0: our
    choice.

    Args:
        activations: Sums of activations, in gate or product space.
        top: See `lape`.
        filter_quantile: See `lape`.
        bar_quantile: See `lape`.
        variant: See `lape`.

    Returns:
        The neurons of each language.
    """
    if activations.space not in ("gate", "product"):
        raise OptionError(
            "lave needs activation values of MLP neurons, in gate or product space, got "
            f"{activations.space!r}"
        )
    member = select_by_entropy(
        activations.mean.clamp(min=0),
        top=top,
        filter_quantile=filter_quantile,
        bar_quantile=bar_quantile,
        variant=variant,
    )
    options = {"top": top, "filter_quantile": filter_quantile, "bar_quantile": bar_quantile}
    site = MLP_PRE if activations.space == "gate" else MLP_POST
    return as_language_neurons(
        member,
        activations.languages,
        site,
        {"method": "lave", "options": options},
        activations,
    )


def random_neurons(
    languages: tuple[str, ...],
    *,
    counts: dict[str, int],
    shape: tuple[int, int],
    generator: torch.Generator,
    site: Site = MLP_POST,
) -> LanguageNeurons:
    """Draw neurons uniformly from the whole model: the paper's random selection.

    `random_like` is the stricter control, which also matches the number in every layer.

    Args:
        languages: The languages.
        counts: How many neurons for each.
        shape: Number of layers, and of neurons per layer.
        generator: Source of randomness.
        site: The site the neurons live at.

    Returns:
        As many neurons for each language, drawn without replacement within a language.
    """
    total = shape[0] * shape[1]
    member = torch.zeros(len(languages), total, dtype=torch.bool)
    for row, lang in zip(member, languages, strict=True):
        wanted = counts[lang]
        if not 0 <= wanted <= total:
            raise OptionError(f"Cannot draw {wanted} of {total} neurons for {lang!r}")
        row[torch.randperm(total, generator=generator)[:wanted]] = True
    return as_language_neurons(
        member.view(-1, *shape), languages, site, {"method": "random", "options": counts}, None
    )
