"""PLND: neurons that matter for every document of a language (Zhao et al. 2024, arXiv:2402.18815).

A neuron is a language's if its importance was high in all of the language's documents, or, more
robustly, in most of them. Importance comes from `lens_lang.PLNDImportance`; changing the share of
documents, the sites or the number kept costs no further pass through the model.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_lang.errors import OptionError, SiteError
from lens_lang.importance import Importance
from lens_lang.languages import find_language
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import Site
from lens_lang.storage import versions


def plnd(
    imp: Importance,
    *,
    min_share: float = 1.0,
    top: int | None = None,
    without: Literal["common"] | str | None = None,
    sites: Sequence[Site] | None = None,
) -> LanguageNeurons:
    """Find the neurons whose importance is high in the documents of a language.

    Args:
        imp: Importance of every neuron.
        min_share: Share of the documents in which it must be high; 1.0 is the intersection over
            all documents, the paper's rule, which a single odd document can empty.
        top: Keep at most so many neurons of a language in each layer of a site: those of
            highest mean score.
        without: Take away the neurons of another language, such as ``"en"``; or, ``"common"``,
            those that all languages have. The language itself keeps its own. None, the
            paper's main setting, takes nothing away.
        sites: Which of the scored sites; None takes all.

    Returns:
        The neurons of each language. The provenance has, under ``"found"``, how many neurons
        of how many there are, by language and site.

    Raises:
        OptionError: A share or a number lies outside its range.
        LanguageError: The language to take away is not among the languages.
        SiteError: A site was not scored.

    Examples:
        >>> from lens_lang.sites import MLP_POST
        >>> imp = Importance(
        ...     languages=("en", "fr"), n_documents=torch.tensor([2, 4]),
        ...     n_tokens=torch.tensor([40, 80]),
        ...     hits={MLP_POST: torch.tensor([[[2, 2, 1]], [[4, 0, 3]]])},
        ...     score_sum={MLP_POST: torch.ones(2, 1, 3).double()})
        >>> plnd(imp)
        LanguageNeurons(plnd: en 2, fr 1; 2 distinct)
        >>> plnd(imp, min_share=0.75, without="common")
        LanguageNeurons(plnd: en 1, fr 1; 2 distinct)
    """
    if not 0 < min_share <= 1:
        raise OptionError(f"min_share is a share of documents, above 0 up to 1, got {min_share}")
    if top is not None and top < 1:
        raise OptionError(f"top must be at least 1 neuron per layer, got {top}")
    wanted = imp.sites if sites is None else tuple(sites)
    if not wanted:
        raise SiteError("There is no site to take neurons from: sites is empty")
    members = {}
    for site in wanted:
        member = imp.high(site, min_share)
        if top is not None:
            member = _best(member, imp.scores(site), top)
        members[site] = member
    if without is not None:
        members = {site: _without(member, without, imp) for site, member in members.items()}
    sets = {
        lang: NeuronSet({site: member[row] for site, member in members.items()})
        for row, lang in enumerate(imp.languages)
    }
    found = {
        lang: {
            site.name: {"found": int(mask.sum()), "of": mask.numel()}
            for site, mask in neurons.masks.items()
        }
        for lang, neurons in sets.items()
    }
    provenance = {
        "method": "plnd",
        "options": {"min_share": min_share, "top": top, "without": without},
        "scored": {"mode": imp.mode, **imp.rule},
        "found": found,
        "documents": dict(zip(imp.languages, imp.n_documents.tolist(), strict=True)),
        "statistic": dict(imp.provenance),
        "versions": versions(),
    }
    return LanguageNeurons(sets, provenance)


def _best(
    member: Bool[Tensor, "lang layer neuron"],
    scores: Float[Tensor, "lang layer neuron"],
    top: int,
) -> Bool[Tensor, "lang layer neuron"]:
    """Keep the members of highest score in each layer; ties go to the lower index."""
    ranked = scores.masked_fill(~member, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    kept = torch.zeros_like(member).scatter_(-1, ranked[..., :top], True)
    return kept & member


def _without(
    member: Bool[Tensor, "lang layer neuron"], what: str, imp: Importance
) -> Bool[Tensor, "lang layer neuron"]:
    if what == "common":
        return member & ~member.all(0)
    row = find_language(what, imp.languages)
    taken = member & ~member[row]
    taken[row] = member[row]
    return taken
