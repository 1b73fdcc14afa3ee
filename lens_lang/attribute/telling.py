"""Which neurons tell a language best: those to look at first."""

import torch

from lens_lang.attribute.neighbourhood import mlp_site
from lens_lang.errors import OptionError, ShapeError
from lens_lang.neurons import LanguageNeurons
from lens_lang.stats import Frequency


def top_neurons(
    frequency: Frequency, *, k: int = 1, neurons: LanguageNeurons | None = None
) -> dict[str, tuple[tuple[int, int], ...]]:
    """Choose for each language the neurons whose firing tells it best from every other.

    The score of a neuron for a language is its firing probability on that language, less the
    highest on any other. Of equal scores the lower layer comes first, then the lower index.

    Args:
        frequency: How often neurons fire, on two languages or more.
        k: Neurons a language.
        neurons: Choose among each language's own neurons; a language that has fewer than `k` gives
            those it has. None chooses among all.

    Returns:
        By language pairs of layer and index, the best first.

    Raises:
        OptionError: There is one language only, or fewer than `k` neurons.
        LanguageError: `neurons` lacks a language of `frequency`.
        ShapeError: `neurons` belong to another model.

    Examples:
        >>> count = torch.tensor([[[9, 1, 5]], [[1, 9, 5]]])
        >>> top_neurons(Frequency(("en", "fr"), count, torch.tensor([10, 10])))
        {'en': ((0, 0),), 'fr': ((0, 1),)}
    """
    if len(frequency.languages) < 2:
        raise OptionError("Telling languages apart needs two or more, and the frequency has one")
    width = frequency.count.shape[2]
    if not 1 <= k <= frequency.count[0].numel():
        raise OptionError(f"k must be between 1 and {frequency.count[0].numel()}, got {k}")
    probability = frequency.probability
    found = {}
    for place, lang in enumerate(frequency.languages):
        others = [row for row in range(len(probability)) if row != place]
        score = (probability[place] - probability[others].max(0).values).flatten()
        count = k
        if neurons is not None:
            mask = neurons[lang].masks[mlp_site(neurons)]
            if mask.shape != frequency.count.shape[1:]:
                raise ShapeError(
                    f"The neurons are of {tuple(mask.shape)} and the frequency of "
                    f"{tuple(frequency.count.shape[1:])} (layers, neurons): they belong to "
                    "different models"
                )
            score = score.masked_fill(~mask.flatten(), -torch.inf)
            count = min(k, int(mask.sum()))
        order = score.argsort(descending=True, stable=True)[:count].tolist()
        found[lang] = tuple(divmod(each, width) for each in order)
    return found
