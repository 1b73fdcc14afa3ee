"""Which neurons all languages share, some share, one has alone, none uses (Wang et al. 2024).

Every example divides the neurons of a layer into four kinds (arXiv:2406.09265, section 3). For one
example `sharing` gives these four; for many it gives the neurons that are of the same kind in
every example, or in most of them, beside the mean share of each kind and its spread over examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import OptionError
from lens_lang.evaluate.significance import mean_interval
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.patterns import CATEGORIES, SharingPatterns, of_counts
from lens_lang.sites import MLP_POST
from lens_lang.storage import versions

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Sharing:
    """The neurons of each kind, and how large the kinds are.

    Attributes:
        all_shared: Neurons that fire in every language.
        partial_shared: In several, not in all.
        specific: In exactly one, by that language.
        non_activated: In none.
        members: For each example, how many neurons of each layer are of which kind; the last axis
            is in the order of `lens_lang.patterns.CATEGORIES`.
        same: For each layer, how many neurons are of the same kind in every example (a specific
            one perhaps of another language).
        active: Mean share of neurons that fire, by language and layer.
        n_neurons: Neurons of a layer.
        provenance: Of the patterns, with method and options.
    """

    all_shared: NeuronSet
    partial_shared: NeuronSet
    specific: LanguageNeurons
    non_activated: NeuronSet
    members: Int[Tensor, "example layer category"]
    same: Int[Tensor, "layer category"]
    active: Float[Tensor, "lang layer"]
    n_neurons: int
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> Float[Tensor, "layer category"]:
        """Mean over examples of the share of a layer's neurons that are of each kind."""
        return self.members.double().mean(0) / self.n_neurons

    @cached_property
    def ci(self) -> Float[Tensor, "layer category 2"]:
        """95 % interval of `share`, by bootstrap over examples."""
        return mean_interval(self.members.double().movedim(0, -1) / self.n_neurons)

    @property
    def range(self) -> Float[Tensor, "layer category 2"]:
        """Least and greatest share over examples."""
        least, most = self.members.aminmax(dim=0)
        return torch.stack([least, most], dim=-1).double() / self.n_neurons

    @property
    def consistent(self) -> Float[Tensor, "layer category"]:
        """Share of a layer's neurons that are of the same kind in every example."""
        return self.same.double() / self.n_neurons

    def __getitem__(self, category: str) -> NeuronSet:
        """Return the neurons of one kind; the specific ones of all languages together."""
        if category not in CATEGORIES:
            raise OptionError(f"category must be one of {', '.join(CATEGORIES)}, got {category!r}")
        return self.specific.union() if category == "specific" else getattr(self, category)

    def __repr__(self) -> str:
        mean = self.members.double().mean((0, 1)) / self.n_neurons
        shares = ", ".join(
            f"{name} {100 * share:.1f} %"
            for name, share in zip(CATEGORIES, mean.tolist(), strict=True)
        )
        return f"Sharing({len(self.members)} examples: {shares})"

    def neurons(self) -> LanguageNeurons:
        """Return all kinds as one result that can be saved, ablated and drawn.

        Returns:
            ``all_shared``, ``partial_shared``, ``specific-fr`` ..., ``non_activated``.
        """
        sets = {
            "all_shared": self.all_shared,
            "partial_shared": self.partial_shared,
            **{f"specific-{lang}": some for lang, some in self.specific.items()},
            "non_activated": self.non_activated,
        }
        return LanguageNeurons(sets, self.provenance)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per layer and kind: mean share, interval, range, consistent share."""
        import pandas as pd

        rows = []
        for layer in range(self.members.shape[1]):
            for kind, name in enumerate(CATEGORIES):
                low, high = self.ci[layer, kind].tolist()
                least, most = self.range[layer, kind].tolist()
                rows.append(
                    {
                        "layer": layer,
                        "category": name,
                        "share": float(self.share[layer, kind]),
                        "ci_low": low,
                        "ci_high": high,
                        "least": least,
                        "most": most,
                        "consistent": float(self.consistent[layer, kind]),
                    }
                )
        return pd.DataFrame(rows)


def sharing(
    patterns: SharingPatterns,
    *,
    threshold: float | int | None = None,
    min_share: float | int = 1.0,
    across: Literal["every", "any"] = "every",
) -> Sharing:
    """Divide neurons by the languages that share them.

    Args:
        patterns: From `collect_parallel` with ``SharingPattern()``.
        threshold: One of those measured; None takes the first.
        min_share: A neuron is of a kind if it is in at least this share of the examples. 1.0: in
            every one, "the same category in every example".
        across: ``"every"``: every example divides the neurons, as in the paper. ``"any"``: a
            language uses a neuron if it fires in any of its examples, and one division is made
            of that; `min_share` then has no meaning and must be 1.

    Returns:
        The neurons of each kind, at the site where they are switched, and the kinds' sizes.

    Raises:
        OptionError: The threshold was not measured, or a share lies outside its range.

    Examples:
        >>> fires = torch.tensor([[[[1.0, 0, 1, 1]], [[1, 0, 0, 0]], [[1, 0, 0, 2]]]])
        >>> found = sharing(SharingPatterns.from_activations(fires, ("en", "fr", "de")))
        >>> found.all_shared.indices(MLP_POST).tolist(), len(found.specific["en"])
        ([[0, 0]], 1)
        >>> found.share.tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    if across not in ("every", "any"):
        raise OptionError(f"across must be every or any, got {across!r}")
    # Above a half, no neuron can be of two kinds.
    if not 0.5 < min_share <= 1 or (across == "any" and min_share != 1):
        raise OptionError(
            f"min_share must be above 0.5 and at most 1, and 1 with across='any', got {min_share}"
        )
    place = _place(patterns, threshold)
    counted = _kinds(patterns.exactly[place])
    total = patterns.n_examples
    if across == "any":
        used = patterns.firing[place] > 0
        kinds = of_counts(used.sum(0), len(patterns.languages))
        alone = used & kinds[CATEGORIES.index("specific")]
    else:
        # Divided, not multiplied: 7 / 10 is 0.7, and 0.7 * 10 is a little more than 7.
        kinds = counted.double() / total >= min_share
        alone = patterns.only[place].double() / total >= min_share
    options = {
        "threshold": patterns.thresholds[place],
        "min_share": float(min_share),
        "across": across,
        "space": patterns.space,
        "position": patterns.position,
    }
    provenance = {
        "method": "sharing",
        "options": options,
        "statistic": dict(patterns.provenance),
        "versions": versions(),
    }
    sets = dict(zip(CATEGORIES, (NeuronSet({MLP_POST: mask}) for mask in kinds), strict=True))
    specific = LanguageNeurons(
        {
            lang: NeuronSet({MLP_POST: mask})
            for lang, mask in zip(patterns.languages, alone, strict=True)
        },
        provenance,
    )
    n_neurons = patterns.firing.shape[-1]
    return Sharing(
        all_shared=sets["all_shared"],
        partial_shared=sets["partial_shared"],
        specific=specific,
        non_activated=sets["non_activated"],
        members=patterns.members[place],
        same=(counted == total).sum(-1).T,
        active=patterns.firing[place].double().sum(-1) / (total * n_neurons),
        n_neurons=n_neurons,
        provenance=provenance,
    )


def _place(patterns: SharingPatterns, threshold: float | int | None) -> int:
    if threshold is None:
        return 0
    if float(threshold) not in patterns.thresholds:
        measured = ", ".join(f"{level:g}" for level in patterns.thresholds)
        raise OptionError(f"threshold must be one of those measured ({measured}), got {threshold}")
    return patterns.thresholds.index(float(threshold))


def _kinds(
    exactly: Int[Tensor, "count layer neuron"],
) -> Int[Tensor, "category layer neuron"]:
    """In how many examples each neuron is of each kind."""
    return torch.stack([exactly[-1], exactly[2:-1].sum(0), exactly[1], exactly[0]])
