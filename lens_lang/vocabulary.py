"""Which language each vocabulary item belongs to, as a distribution over languages and *other*.

Three makers, one result. Token counts in corpora know words but only those they have seen;
the Unicode script knows every item but cannot tell languages of one script apart; an
identifier guesses from letters. What belongs to none of the languages is *other*: punctuation,
digits, markup, parts of characters, words of languages that were not asked for.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_lang.corpora import Corpora
from lens_lang.documents import TokenisingModel
from lens_lang.errors import LanguageError, OptionError, ShapeError, StorageError
from lens_lang.identification import (
    SPOKEN_AS,
    Identify,
    LangidIdentifier,
    LinguaIdentifier,
    identified,
)
from lens_lang.languages import distinct_languages, find_language, language_tag
from lens_lang.models import cache_dir
from lens_lang.saved import Saved
from lens_lang.spelling import as_text, spell_vocabulary

if TYPE_CHECKING:
    import pandas as pd

OTHER = "other"
"""Label of the last column: no language, or none of those asked for."""

_ASK_AT_ONCE = 10_000
"""Texts an identifier is given at once: the answers of a large vocabulary would fill memory."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class VocabularyLanguages(Saved):
    """For each vocabulary item a distribution over languages and *other*.

    Attributes:
        languages: The languages, as labels of all columns but the last.
        share: Probability of each language given the item; the last column is *other*. Rows
            sum to 1.
        provenance: Which maker, with which options, as JSON values.

    Examples:
        >>> vocabulary = VocabularyLanguages(
        ...     ("en", "fr"), torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.0, 1.0]]))
        >>> vocabulary.language_of(0), vocabulary.language_of(1)
        ('en', 'other')
    """

    languages: tuple[str, ...]
    share: Float[Tensor, "item lang_other"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        distinct_languages(self.languages)
        if self.share.ndim != 2:
            raise ShapeError(f"share must be [item lang_other], got {list(self.share.shape)}")
        object.__setattr__(self, "share", self.share.detach().to("cpu", torch.float32))
        if OTHER in self.languages:
            raise LanguageError(f"{OTHER!r} is what belongs to no language, and cannot be one")
        if self.share.shape[1] != len(self.languages) + 1:
            raise ShapeError(
                f"share must have a column for each of {len(self.languages)} languages and one "
                f"for {OTHER!r}, got {self.share.shape[1]} columns"
            )
        if not torch.allclose(self.share.sum(1), torch.ones(()), atol=1e-5):
            raise ShapeError("Each row of share must sum to 1")
        if bool((self.share < 0).any()):
            raise ShapeError("share holds probabilities, got some below 0")

    @classmethod
    def from_corpora(
        cls, corpora: Corpora, model: TokenisingModel | None = None, *, smoothing: int | float = 0.5
    ) -> "VocabularyLanguages":
        """Count in which language's text each item occurs.

        p(lang | item) = n(lang, item) / (sum of n over languages + smoothing), with n the count
        as if every language had as many tokens as the smallest; the rest is *other*. So an item
        seen once is less certain than one seen often, and an unseen one belongs to *other*.

        Args:
            corpora: The text.
            model: Its tokeniser tells items without any letter, which then are *other*: a comma
                is no language's. None takes the counts as they are.
            smoothing: Counts of *other* beside every item's.

        Returns:
            Up to the largest token of the corpora, or all items of the model's vocabulary.

        Raises:
            OptionError: `smoothing` is not above 0.

        Examples:
            >>> corpora = Corpora.from_tokens({"en": [[0, 0, 1]], "fr": [[1, 2, 2]]})
            >>> VocabularyLanguages.from_corpora(corpora, smoothing=1).share.tolist()[1]
            [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]
        """
        if not smoothing > 0:
            raise OptionError(f"smoothing must be above 0, got {smoothing}")
        every = [documents.tokens for documents in corpora.documents.values()]
        size = max(int(tokens.max()) for tokens in every) + 1
        spelled = None if model is None else spell_vocabulary(model)
        if spelled is not None and size > len(spelled):
            raise ShapeError(
                f"The corpora hold token {size - 1}, and the model's vocabulary has "
                f"{len(spelled)} items: they were tokenised for another model"
            )
        size = size if spelled is None else len(spelled)
        smallest = min(len(tokens) for tokens in every)
        counts = torch.stack(
            [
                torch.bincount(tokens, minlength=size).double() * (smallest / len(tokens))
                for tokens in every
            ],
            dim=1,
        )
        share = counts / (counts.sum(1, keepdim=True) + smoothing)
        if spelled is not None:
            share[~_has_letters(spelled)] = 0.0
        about = {"maker": "corpora", "corpora": corpora.digest, "smoothing": float(smoothing)}
        return cls(corpora.languages, _with_other(share), about)

    @classmethod
    def from_script(cls, model: TokenisingModel, languages: Sequence[str]) -> "VocabularyLanguages":
        """Tell languages by the script of an item's letters.

        An item belongs, in equal parts, to the languages whose usual script (from Unicode's
        CLDR) has all its letters: ``кн`` to Russian, ``花`` half to Chinese and half to Japanese,
        ``flow`` to all languages in Latin letters alike. A choice among the languages given:
        with one of them in Latin letters, all Latin items are its own, English ones too.

        Args:
            model: Whose vocabulary.
            languages: The languages.

        Returns:
            All items of the vocabulary.

        Raises:
            LanguageError: A language is unknown, or given twice.
        """
        import regex

        tags = distinct_languages(language_tag(lang) for lang in languages)
        letter = regex.compile(r"\p{L}")
        foreign = {
            scripts: regex.compile(_letters_outside(scripts), regex.V1)
            for scripts in {_scripts(tag) for tag in tags}
        }
        spelled = spell_vocabulary(model)
        share = torch.zeros(len(spelled), len(tags), dtype=torch.float64)
        rows: dict[frozenset[frozenset[str]], Tensor] = {}
        for number, each in enumerate(spelled):
            text = as_text(each)
            if not text or not letter.search(text):
                continue
            fitting = frozenset(each for each in foreign if not foreign[each].search(text))
            if fitting not in rows:
                fits = torch.tensor([float(_scripts(tag) in fitting) for tag in tags])
                rows[fitting] = fits / fits.sum().clamp(min=1.0)
            share[number] = rows[fitting]
        return cls(tags, _with_other(share), {"maker": "script"})

    @classmethod
    def from_identifier(
        cls, model: TokenisingModel, languages: Sequence[str], identify: Identify
    ) -> "VocabularyLanguages":
        """Ask a language identifier about every item that has a letter.

        Identifiers are made for sentences; of a few letters they can only say what is likely.

        Args:
            model: Whose vocabulary.
            languages: The languages; what the identifier gives to others becomes *other*.
            identify: Is given distinct items as text, without outer spaces, some thousands at
                once, and says for each its language, or the probabilities of languages, or None.
                See `lens_lang.LinguaIdentifier` and `lens_lang.LangidIdentifier`, whose answers
                are kept in lens_lang's cache folder.

        Returns:
            All items of the vocabulary.

        Raises:
            LanguageError: A language is unknown, or given twice.
            OptionError: The identifier gave fewer answers than it was asked, or what is no
                distribution.
        """
        tags = distinct_languages(language_tag(lang) for lang in languages)
        spelled = spell_vocabulary(model)
        kept = _cache_file(identify, spelled, tags)
        if kept is not None and kept.is_file():
            try:
                return cls.load(kept)
            except StorageError as error:
                logger.warning("asking again, because the answers kept are unreadable: %s", error)
        texts = [(as_text(each) or "").strip() for each in spelled]
        numbers: dict[str, list[int]] = {}
        for number in _has_letters(spelled).nonzero().flatten().tolist():
            numbers.setdefault(texts[number], []).append(number)
        share = torch.zeros(len(spelled), len(tags), dtype=torch.float64)
        columns = _Columns(tags)
        distinct = list(numbers)
        for start in range(0, len(distinct), _ASK_AT_ONCE):
            asked = distinct[start : start + _ASK_AT_ONCE]
            for text, answer in zip(asked, identified(asked, identify), strict=True):
                for lang, probability in answer.items():
                    place = columns[lang]
                    if place is not None:
                        share[numbers[text], place] += probability
        named = getattr(identify, "name", None) or type(identify).__name__
        made = cls(tags, _with_other(share), {"maker": "identifier", "identifier": str(named)})
        if kept is not None:
            try:
                made.save(kept)
            except StorageError as error:
                logger.warning("the identifier's answers are not kept: %s", error)
        return made

    @classmethod
    def combine(
        cls, *parts: "VocabularyLanguages", certain: int | float = 0.5
    ) -> "VocabularyLanguages":
        """Take for each item the first part that is certain of a language.

        Args:
            *parts: The most trusted first; all over the same languages. A shorter one knows
                nothing of the items it lacks.
            certain: A part is certain of an item if a language has more than this.

        Returns:
            Each item's distribution from one of the parts; from the first if none is certain.

        Examples:
            >>> counted = VocabularyLanguages(("en",), torch.tensor([[0.9, 0.1], [0.0, 1.0]]))
            >>> guessed = VocabularyLanguages(("en",), torch.tensor([[0.0, 1.0], [0.8, 0.2]]))
            >>> both = VocabularyLanguages.combine(counted, guessed)
            >>> [round(p, 3) for p in both.share[:, 0].tolist()]
            [0.9, 0.8]
        """
        if not parts:
            raise OptionError("combine needs at least one part")
        languages = parts[0].languages
        differing = [part.languages for part in parts if part.languages != languages]
        if differing:
            raise LanguageError(
                f"Parts to combine must have the same languages in the same order: "
                f"{', '.join(languages)} and {', '.join(differing[0])} differ"
            )
        size = max(len(part) for part in parts)
        share = parts[0].padded(size).share.clone()
        open_items = ~(share[:, :-1] > certain).any(1)
        for part in parts[1:]:
            theirs = part.padded(size).share
            taken = open_items & (theirs[:, :-1] > certain).any(1)
            share[taken] = theirs[taken]
            open_items &= ~taken
        about = {"maker": "combined", "parts": [dict(part.provenance) for part in parts]}
        return cls(languages, share, {**about, "certain": float(certain)})

    def __len__(self) -> int:
        """Number of items."""
        return len(self.share)

    def __repr__(self) -> str:
        made = self.provenance.get("maker", "hand")
        return f"VocabularyLanguages({len(self):,} items by {made}: {', '.join(self.languages)})"

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of all columns: the languages, then *other*."""
        return (*self.languages, OTHER)

    @property
    def digest(self) -> str:
        """Fingerprint of languages and shares."""
        digest = hashlib.sha256("\n".join(self.languages).encode())
        digest.update(self.share.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def language_of(self, item: int) -> str:
        """Return the likeliest label of an item."""
        return self.labels[int(self.share[item].argmax())]

    def of(self, lang: str) -> Float[Tensor, "item"]:
        """Return one language's share of every item; ``"other"`` is a language here.

        Raises:
            LanguageError: The language is not among these.
        """
        if lang == OTHER:
            return self.share[:, -1]
        return self.share[:, find_language(lang, self.languages)]

    def padded(self, size: int) -> "VocabularyLanguages":
        """Return the same for a larger vocabulary; further items are *other*.

        Raises:
            ShapeError: The vocabulary is smaller.
        """
        if size == len(self):
            return self
        if size < len(self):
            raise ShapeError(
                f"This VocabularyLanguages has {len(self)} items, and the vocabulary {size}: it "
                "was made for another model"
            )
        more = torch.zeros(size - len(self), len(self.labels), dtype=self.share.dtype)
        more[:, -1] = 1.0
        return VocabularyLanguages(self.languages, torch.cat([self.share, more]), self.provenance)

    def coverage(self, *, certain: int | float = 0.5) -> "pd.DataFrame":
        """Count the items of each label.

        Args:
            certain: An item counts as certain if the label has more than this of it.

        Returns:
            One row per label: ``items`` it is certain to have, and ``mass``, the sum of its
            shares.
        """
        import pandas as pd

        return pd.DataFrame(
            {
                "items": (self.share > certain).sum(0).tolist(),
                "mass": self.share.double().sum(0).tolist(),
            },
            index=pd.Index(self.labels, name="language"),
        )

    def agreement(
        self, other: "VocabularyLanguages", *, certain: int | float = 0.5
    ) -> "pd.DataFrame":
        """Compare two makers where both are certain of a language.

        Args:
            other: The other, over the same languages.
            certain: How much of an item a language must have.

        Returns:
            One row per language of these, and ``all``: ``items`` certain here and there,
            ``agree`` of them with the same language, ``share``.
        """
        import pandas as pd

        if self.languages != other.languages:
            raise LanguageError("Makers can be compared over the same languages only")
        size = max(len(self), len(other))
        mine, theirs = (part.padded(size).share[:, :-1].max(1) for part in (self, other))
        both = (mine.values > certain) & (theirs.values > certain)
        same = both & (mine.indices == theirs.indices)
        rows = []
        for place, lang in enumerate(self.languages):
            here = mine.indices == place
            rows.append((lang, int((both & here).sum()), int((same & here).sum())))
        rows.append(("all", int(both.sum()), int(same.sum())))
        table = pd.DataFrame(rows, columns=["language", "items", "agree"]).set_index("language")
        return table.assign(share=table["agree"] / table["items"].where(table["items"] > 0))


def _with_other(share: Float[Tensor, "item lang"]) -> Float[Tensor, "item lang_other"]:
    """Add the column of what is left of 1, and scale away what rounding put above 1."""
    total = share.sum(1, keepdim=True)
    share = share / total.clamp(min=1.0)
    return torch.cat([share, (1 - total).clamp(min=0.0)], dim=1).float()


def _has_letters(spelled: Sequence[bytes]) -> Bool[Tensor, "item"]:
    return torch.tensor(
        [any(letter.isalpha() for letter in as_text(each) or "") for each in spelled]
    )


def _scripts(tag: str) -> frozenset[str]:
    """Unicode scripts that a language is written in, by CLDR's likely subtags."""
    import langcodes

    code = langcodes.Language.get(tag).maximize().script or "Latn"
    several = {
        "Jpan": ("Han", "Hiragana", "Katakana"),
        "Kore": ("Hangul", "Han"),
        "Hans": ("Han",),
        "Hant": ("Han", "Bopomofo"),
    }
    return frozenset(several.get(code, (code,)))


def _letters_outside(scripts: frozenset[str]) -> str:
    """A pattern of the letters that scripts do not have.

    By script extensions, because some letters serve several: the Japanese long vowel.
    """
    known = [*sorted(scripts), "Common", "Inherited"]
    return "[\\p{L}--[" + "".join(rf"\p{{Script_Extensions={name}}}" for name in known) + "]]"


def _cache_file(identify: Any, spelled: Sequence[bytes], tags: Sequence[str]) -> Path | None:
    """Where the answers of a library are kept; nowhere for a callable that may change."""
    if not isinstance(identify, LangidIdentifier | LinguaIdentifier):
        return None
    digest = hashlib.sha256("\n".join([identify.name, *tags]).encode())
    for each in spelled:
        digest.update(len(each).to_bytes(4, "little") + each)
    return cache_dir() / "vocabularies" / f"{digest.hexdigest()[:32]}.safetensors"


class _Columns:
    """The column of a language under any of its names; None for one not asked for."""

    def __init__(self, tags: Sequence[str]) -> None:
        self._known: dict[str, int | None] = {tag: place for place, tag in enumerate(tags)}
        self._primary = {tag.split("-")[0]: place for place, tag in reversed([*enumerate(tags)])}

    def __getitem__(self, name: str) -> int | None:
        if name not in self._known:
            try:
                tag = language_tag(name)
            except LanguageError:
                tag = name
            primary = SPOKEN_AS.get(tag.split("-")[0], tag.split("-")[0])
            self._known[name] = self._known.get(tag, self._primary.get(primary))
        return self._known[name]
