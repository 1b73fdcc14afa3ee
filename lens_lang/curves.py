"""Shares of languages by layer, prompt by prompt, with their intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.errors import LanguageError, OptionError, ShapeError
from lens_lang.evaluate.significance import mean_interval
from lens_lang.languages import find_language
from lens_lang.saved import Saved
from lens_lang.vocabulary import OTHER

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class LanguageCurve(Saved):
    """How much of each layer's prediction belongs to each language, for every prompt.

    Attributes:
        languages: Labels of all columns but the last, which is *other*.
        prompt_languages: The language of each prompt; prompts of one language stand together.
        values: Shares, or differences of shares; layer 0 are the embeddings, layer n is after
            the n-th block.
        provenance: Model, prompts, vocabulary and options, as JSON values.

    Examples:
        >>> values = torch.tensor([[[0.2, 0.7, 0.1]], [[0.4, 0.5, 0.1]]])
        >>> curve = LanguageCurve(("en", "fr"), ("fr", "fr"), values.double())
        >>> [round(share, 2) for share in curve.mean[0, 0].tolist()]
        [0.3, 0.6, 0.1]
    """

    languages: tuple[str, ...]
    prompt_languages: tuple[str, ...]
    values: Float[Tensor, "prompt layer lang_other"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prompts, _, columns = self.values.shape if self.values.ndim == 3 else (0, 0, 0)
        if prompts != len(self.prompt_languages) or columns != len(self.languages) + 1:
            raise ShapeError(
                f"values of {len(self.prompt_languages)} prompts and {len(self.languages)} "
                f"languages must be [{len(self.prompt_languages)} layer "
                f"{len(self.languages) + 1}], got {list(self.values.shape)}"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all columns."""
        return (*self.languages, OTHER)

    @property
    def is_difference(self) -> bool:
        """Whether these are changes of shares, made by subtracting."""
        return "difference of" in self.provenance

    @property
    def groups(self) -> tuple[str, ...]:
        """The prompts' languages, each once."""
        return tuple(dict.fromkeys(self.prompt_languages))

    @property
    def mean(self) -> Float[Tensor, "group layer lang_other"]:
        """Mean over the prompts of each language."""
        return torch.stack([self.values[self._members(lang)].mean(0) for lang in self.groups])

    @cached_property
    def ci(self) -> Float[Tensor, "group layer lang_other 2"]:
        """95 % interval of `mean`, by bootstrap over prompts."""
        return self.interval()

    def interval(
        self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> Float[Tensor, "group layer lang_other 2"]:
        """Return intervals of `mean`: prompts are drawn again, with replacement.

        Args:
            level: Probability to cover.
            resamples: Number of resamples.
            seed: Of the resampling.

        Returns:
            Lower and upper ends; NaN for a single prompt. With few prompts the bootstrap's
            intervals are somewhat too narrow.
        """
        return torch.stack(
            [
                mean_interval(
                    self.values[self._members(lang)].movedim(0, -1),
                    level=level,
                    resamples=resamples,
                    seed=seed,
                )
                for lang in self.groups
            ]
        )

    def of(self, lang: str) -> "LanguageCurve":
        """Return the prompts of one language.

        Raises:
            LanguageError: No prompt has that language.
        """
        lang = self.groups[find_language(lang, self.groups)]
        members = self._members(lang)
        return replace(self, prompt_languages=(lang,) * len(members), values=self.values[members])

    def __sub__(self, other: "LanguageCurve") -> "LanguageCurve":
        """Return the change from `other`, prompt by prompt, so that its interval is paired.

        Raises:
            ShapeError: The two are not of the same prompts, layers and languages.
        """
        if not self.comparable(other):
            raise ShapeError(
                "Two curves can be compared only over the same prompts, layers and languages"
            )
        about = {"difference of": [dict(self.provenance), dict(other.provenance)]}
        return replace(self, values=self.values - other.values, provenance=about)

    def comparable(self, other: "LanguageCurve") -> bool:
        """Say whether two curves are over the same languages, prompts' languages and layers."""
        return (self.languages, self.prompt_languages, self.values.shape) == (
            other.languages,
            other.prompt_languages,
            other.values.shape,
        )

    def among_languages(self) -> "LanguageCurve":
        """Return shares of what belongs to any of the languages, *other* left out.

        As in Zhao et al. (2024), figure 1, where only items of candidate languages count. Where
        nothing does, all remains *other*.

        Raises:
            OptionError: These are differences of shares.
        """
        self._refuse_differences("among_languages")
        named = self.values[..., :-1]
        total = named.sum(-1, keepdim=True)
        share = torch.where(total > 0, named / total.clamp(min=1e-300), torch.zeros_like(named))
        rest = (total <= 0).to(share.dtype)
        return replace(self, values=torch.cat([share, rest], dim=-1))

    def story(self, *, english: str = "en") -> "LanguageCurve":
        """Return English, the prompt's own language, and all others together.

        The curves that tell whether a model understands in the prompt's language, thinks in
        English and answers in the prompt's language again. For English prompts the own language
        is English, and counts as that.

        Args:
            english: The pivot language.

        Returns:
            Columns: the pivot, ``own``, ``others``, *other*.

        Raises:
            LanguageError: The pivot or a prompt's language is not among the curve's.
        """
        pivot = find_language(english, self.languages)
        rows = []
        for lang, values in zip(self.prompt_languages, self.values, strict=True):
            if lang not in self.languages:
                raise LanguageError(
                    f"Prompts of {lang!r} have no own language among {', '.join(self.languages)}"
                )
            own = self.languages.index(lang)
            shown = values[:, pivot]
            mine = values[:, own] if own != pivot else torch.zeros_like(shown)
            others = values[:, :-1].sum(1) - shown - mine
            rows.append(torch.stack([shown, mine, others, values[:, -1]], dim=1))
        names = (self.languages[pivot], "own", "others")
        return replace(self, languages=names, values=torch.stack(rows))

    def summary(self, *, english: str = "en") -> "pd.DataFrame":
        """Say for each language of the prompts where English is strongest, and where the own is.

        Returns:
            One row per language of the prompts: the share of the own language at the embeddings
            (``own_first``) and at the end (``own_last``); ``layer``, where the pivot's share is
            largest in the later three quarters, with the ``pivot`` and ``own`` share there; and
            ``takes_over``, the first layer from which on the own language has more than the
            pivot to the end (NaN if never, and for prompts in the pivot itself).

        Raises:
            LanguageError: The pivot or a prompt's language is not among the curve's.
            OptionError: These are differences of shares.
        """
        import pandas as pd

        self._refuse_differences("summary")
        rows = []
        story = self.story(english=english)
        pivot = story.languages[0]
        for lang, mean in zip(story.groups, story.mean, strict=True):
            own = mean[:, 0 if lang == pivot else 1]
            # the first layers still hold the token just read, whatever its language
            first = len(mean) // 4
            layer = first + int(mean[first:, 0].argmax())
            behind = (own <= mean[:, 0]).nonzero().flatten()
            start = int(behind[-1]) + 1 if len(behind) else 0
            rows.append(
                {
                    "prompts": lang,
                    "own_first": float(own[0]),
                    "layer": layer,
                    "pivot": float(mean[layer, 0]),
                    "own": float(own[layer]),
                    "own_last": float(own[-1]),
                    "takes_over": start if start < len(mean) else float("nan"),
                }
            )
        return pd.DataFrame(rows)

    def to_frame(self) -> "pd.DataFrame":
        """Return one row per prompt language, layer and label, with its interval."""
        import pandas as pd

        mean, ci = self.mean, self.ci
        return pd.DataFrame(
            [
                {
                    "prompts in": group,
                    "layer": layer,
                    "language": label,
                    "share": float(mean[g, layer, column]),
                    "ci_low": float(ci[g, layer, column, 0]),
                    "ci_high": float(ci[g, layer, column, 1]),
                }
                for g, group in enumerate(self.groups)
                for layer in range(mean.shape[1])
                for column, label in enumerate(self.labels)
            ]
        )

    def __repr__(self) -> str:
        return (
            f"LanguageCurve({len(self.prompt_languages)} prompts in {', '.join(self.groups)}; "
            f"{self.values.shape[1] - 1} layers; {', '.join(self.labels)})"
        )

    def _refuse_differences(self, what: str) -> None:
        if self.is_difference:
            raise OptionError(f"{what} is of shares, and these are differences: use it before")

    def _members(self, lang: str) -> list[int]:
        return [n for n, each in enumerate(self.prompt_languages) if each == lang]
