"""How important each neuron was, over the documents of each language: what PLND detects from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_lang.errors import LanguageError, ShapeError, SiteError, StorageError
from lens_lang.languages import distinct_languages, find_language
from lens_lang.sites import Site, find_site
from lens_lang.stats import joined_provenance
from lens_lang.storage import read_tensors, write_tensors

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Importance:
    """Scores of every neuron, summed over documents, and how often they were high.

    Attributes:
        languages: Names of the first axis.
        score_sum: For each site the sum of scores over documents, float64. Scores of different
            sites have different units and are not compared.
        hits: For each site the number of documents in which the neuron's score was high.
        n_documents: Number of documents of each language.
        n_tokens: Number of tokens of each language.
        rule: What was scored and what counted as high, as JSON values.
        mode: ``exact``, ``first_order`` or ``released``.
        provenance: Model, corpora and versions, as JSON values.

    Examples:
        >>> from lens_lang.sites import MLP_POST
        >>> imp = Importance(
        ...     languages=("en",), score_sum={MLP_POST: torch.tensor([[[6.0, 1.0]]]).double()},
        ...     hits={MLP_POST: torch.tensor([[[2, 0]]])}, n_documents=torch.tensor([2]),
        ...     n_tokens=torch.tensor([40]))
        >>> imp.scores(MLP_POST).tolist(), imp.share(MLP_POST).tolist()
        ([[[3.0, 0.5]]], [[[1.0, 0.0]]])
    """

    languages: tuple[str, ...]
    score_sum: Mapping[Site, Float[Tensor, "lang layer _neuron"]]
    hits: Mapping[Site, Int[Tensor, "lang layer _neuron"]]
    n_documents: Int[Tensor, "lang"]
    n_tokens: Int[Tensor, "lang"]
    rule: Mapping[str, Any] = field(default_factory=dict)
    mode: str = "exact"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        distinct_languages(self.languages)
        if set(self.score_sum) != set(self.hits):
            raise ShapeError("score_sum and hits must speak of the same sites")
        for site, sums in self.score_sum.items():
            hits = self.hits[site]
            if sums.shape != hits.shape or len(sums) != len(self.languages):
                raise ShapeError(
                    f"The sums of {len(self.languages)} languages at {site.name} must be tensors "
                    f"lang x layer x neuron of one shape, got {tuple(sums.shape)} and "
                    f"{tuple(hits.shape)}"
                )
            most = self.n_documents[:, None, None]
            if bool((hits < 0).any()) or bool((hits > most).any()):
                raise ShapeError(
                    f"A number of hits at {site.name} must lie between 0 and the number of "
                    "documents of its language"
                )
        counts = zip(self.languages, self.n_documents.tolist(), strict=True)
        if empty := [lang for lang, n in counts if n <= 0]:
            raise LanguageError(f"No document was scored for {', '.join(empty)}")
        for name in ("score_sum", "hits"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites that were scored."""
        return tuple(self.score_sum)

    def scores(self, site: Site) -> Float[Tensor, "lang layer neuron"]:
        """Return the mean score over documents, float64.

        Raises:
            SiteError: The site was not scored.
        """
        return self._at(self.score_sum, site) / self.n_documents[:, None, None]

    def share(self, site: Site) -> Float[Tensor, "lang layer neuron"]:
        """Return the share of documents in which each neuron's score was high, float64.

        Raises:
            SiteError: The site was not scored.
        """
        return self._at(self.hits, site).double() / self.n_documents[:, None, None]

    def high(self, site: Site, min_share: float) -> Tensor:
        """Say which neurons were high in at least a share of each language's documents.

        Args:
            site: The site.
            min_share: 1.0 asks for every document.

        Returns:
            Bool, languages by layers by neurons.
        """
        # a product with a share such as .9 must not round up past a whole number
        needed = [math.ceil(min_share * n - 1e-9) for n in self.n_documents.tolist()]
        return self._at(self.hits, site) >= torch.tensor(needed).clamp(min=1)[:, None, None]

    def ranked(self, lang: str, *, site: Site | None = None) -> "pd.DataFrame":
        """Return the neurons that were ever high for a language, most important first.

        Args:
            lang: The language.
            site: One site; None takes all, each ranked by itself.

        Returns:
            Columns site, layer, neuron, rank (in its site), score (mean over documents) and
            share (of documents in which it was high).
        """
        import pandas as pd

        row = find_language(lang, self.languages)
        frames = []
        for one in self.sites if site is None else (site,):
            scores, share = self.scores(one)[row], self.share(one)[row]
            where = (share > 0).nonzero()
            order = scores[where[:, 0], where[:, 1]].argsort(descending=True, stable=True)
            layer, neuron = where[order].unbind(1)
            frames.append(
                pd.DataFrame(
                    {
                        "site": one.name,
                        "layer": layer,
                        "neuron": neuron,
                        "rank": range(1, len(order) + 1),
                        "score": scores[layer, neuron],
                        "share": share[layer, neuron],
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def __repr__(self) -> str:
        documents = zip(self.languages, self.n_documents.tolist(), strict=True)
        counted = ", ".join(f"{lang} {n:,}" for lang, n in documents)
        sites = ", ".join(site.name for site in self.sites)
        return f"Importance({self.mode}: {sites}; documents: {counted})"

    def __add__(self, other: "Importance") -> "Importance":
        if not isinstance(other, Importance):
            return NotImplemented
        for name in ("mode", "rule"):
            if getattr(self, name) != getattr(other, name):
                raise ShapeError(
                    f"Cannot add importances that differ in {name}: {getattr(self, name)} and "
                    f"{getattr(other, name)}"
                )
        if set(self.languages) != set(other.languages):
            raise ShapeError(
                f"Cannot add importances of {', '.join(self.languages)} and of "
                f"{', '.join(other.languages)}"
            )
        shapes = [{s: x.shape[1:] for s, x in each.hits.items()} for each in (self, other)]
        if shapes[0] != shapes[1]:
            raise ShapeError("Cannot add importances of other sites or of another model")
        order = [other.languages.index(lang) for lang in self.languages]
        return Importance(
            languages=self.languages,
            score_sum={s: x + other.score_sum[s][order] for s, x in self.score_sum.items()},
            hits={s: x + other.hits[s][order] for s, x in self.hits.items()},
            n_documents=self.n_documents + other.n_documents[order],
            n_tokens=self.n_tokens + other.n_tokens[order],
            rule=self.rule,
            mode=self.mode,
            provenance=joined_provenance(self.provenance, other.provenance),
        )

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Raises:
            StorageError: The file cannot be written.
        """
        tensors = {"n_documents": self.n_documents, "n_tokens": self.n_tokens}
        for site in self.sites:
            tensors[f"score_sum.{site.name}"] = self.score_sum[site]
            tensors[f"hits.{site.name}"] = self.hits[site]
        header = {
            "languages": list(self.languages),
            "sites": [site.name for site in self.sites],
            "rule": dict(self.rule),
            "mode": self.mode,
            "provenance": dict(self.provenance),
        }
        write_tensors(path, type(self).__name__, header, tensors)

    @classmethod
    def load(cls, path: str | Path) -> "Importance":
        """Read what `save` wrote.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            sites = [find_site(name) for name in header["sites"]]
            return cls(
                languages=tuple(header["languages"]),
                score_sum={site: tensors[f"score_sum.{site.name}"] for site in sites},
                hits={site: tensors[f"hits.{site.name}"] for site in sites},
                n_documents=tensors["n_documents"],
                n_tokens=tensors["n_tokens"],
                rule=header["rule"],
                mode=header["mode"],
                provenance=header["provenance"],
            )
        except (KeyError, TypeError, SiteError) as error:
            raise StorageError(f"{path} is damaged: {error} is missing or malformed") from error

    def _at(self, sums: Mapping[Site, Tensor], site: Site) -> Tensor:
        if site not in sums:
            known = ", ".join(scored.name for scored in self.sites)
            raise SiteError(f"{site.name} was not scored; {known} were")
        return sums[site]
