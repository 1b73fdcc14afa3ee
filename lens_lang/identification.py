"""Language identifiers, as values that can be called with texts.

Any callable that takes texts and returns, for each, a language, probabilities of languages, or
None serves as well.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from lens_lang.errors import LanguageError, MissingExtraError, OptionError
from lens_lang.languages import language_tag

Identify = Callable[[Sequence[str]], Sequence[Mapping[str, float] | str | None]]
"""For each text its language, or probabilities of languages, or None."""

logger = logging.getLogger(__name__)

SPOKEN_AS = {"nb": "no", "nn": "no"}
"""Languages that corpora and identifiers call by the name of both."""

UNDETERMINED = "und"
"""A text of no language, or of none that is known, as in BCP 47."""


@dataclass(frozen=True)
class LangidIdentifier:
    """py3langid: a byte n-gram model of some 140 languages, small and quick.

    Attributes:
        languages: Choose among these only; None among all it knows.

    Examples:
        >>> identify = LangidIdentifier(("en", "fr"))
        >>> max((p, lang) for lang, p in identify(["La maison est petite."])[0].items())[1]
        'fr'
    """

    languages: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What tells its answers from another identifier's."""
        return f"py3langid {_version('py3langid')}{_among(self.languages)}"

    def __call__(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """Return the probabilities of languages for each text.

        Raises:
            MissingExtraError: py3langid is not installed.
            LanguageError: It does not know one of the languages.
        """
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            raise MissingExtraError("Identifying languages with py3langid", "lid") from None
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        if self.languages is not None:
            unknown = set(self.languages) - set(identifier.labels)
            if unknown:
                raise LanguageError(f"py3langid does not know {', '.join(sorted(unknown))}")
            identifier.set_languages(list(self.languages))
        return [dict(identifier.rank(text)) for text in texts]


@dataclass(frozen=True)
class LinguaIdentifier:
    """lingua: 75 languages, made for short text; more certain of single words than py3langid.

    Languages with a probability below 0.001 are left out of its answers.

    Attributes:
        languages: Choose among these only; None among all it knows.

    Examples:
        >>> identify = LinguaIdentifier(("en", "fr"))
        >>> max((p, lang) for lang, p in identify(["maison"])[0].items())[1]
        'fr'
    """

    languages: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """What tells its answers from another identifier's."""
        return f"lingua {_version('lingua-language-detector')}{_among(self.languages)}"

    def __call__(self, texts: Sequence[str]) -> list[Mapping[str, float]]:
        """Return the probabilities of languages for each text.

        Raises:
            MissingExtraError: lingua is not installed.
            LanguageError: It does not know one of the languages.
        """
        try:
            import lingua
        except ImportError:
            raise MissingExtraError("Identifying languages with lingua", "lid") from None
        by_code = {str(each.iso_code_639_1.name).lower(): each for each in lingua.Language.all()}
        builder = lingua.LanguageDetectorBuilder.from_all_languages()
        if self.languages is not None:
            unknown = set(self.languages) - set(by_code)
            if unknown or len(self.languages) < 2:
                missing = ", ".join(sorted(unknown)) or "fewer than two languages"
                raise LanguageError(f"lingua cannot choose among {missing}")
            chosen = [by_code[lang] for lang in self.languages]
            builder = lingua.LanguageDetectorBuilder.from_languages(*chosen)
        answers = builder.build().compute_language_confidence_values_in_parallel(list(texts))
        codes = {each: code for code, each in by_code.items()}
        # likeliest first; the tail of 75 languages costs more time than asking for it
        return [
            {codes[each.language]: each.value for each in takewhile(_counts, answer)}
            for answer in answers
        ]


def identified(texts: Sequence[str], identify: Identify) -> list[dict[str, float]]:
    """Ask an identifier, and check what it says.

    Args:
        texts: What to ask about.
        identify: The identifier.

    Returns:
        For each text the probabilities of languages, as the identifier names them; empty where it
        knows none.

    Raises:
        OptionError: It gave fewer answers than it was asked, or what is no distribution.
    """
    answers = identify(texts)
    if len(answers) != len(texts):
        raise OptionError(
            f"The identifier gave {len(answers)} answers for {len(texts)} texts; it must give one "
            "for each"
        )
    return [_distribution(answer, text) for answer, text in zip(answers, texts, strict=True)]


def spoken_languages(texts: Sequence[str], identify: Identify) -> list[str]:
    """Say in which language each text is.

    Args:
        texts: Texts of any length; a few words are a guess.
        identify: The identifier; it is asked once, about distinct texts that have a letter.

    Returns:
        Tags; ``und`` for a text without a letter, or in no language the identifier knows. A label
        that is no language is ``und``, too, and a warning is logged.

    Raises:
        OptionError: See `identified`.

    Examples:
        >>> spoken_languages(["Das Haus ist klein.", "42"], LangidIdentifier())
        ['de', 'und']
    """
    asked = list(dict.fromkeys(text for text in texts if any(map(str.isalpha, text))))
    said = dict(zip(asked, identified(asked, identify) if asked else [], strict=True))
    found, strange = [], set()
    for text in texts:
        answer = said.get(text) or {UNDETERMINED: 1.0}
        likeliest = max(answer, key=answer.__getitem__).removeprefix("__label__")  # fastText's
        try:
            found.append(language_tag(likeliest))
        except LanguageError:
            found.append(UNDETERMINED)
            strange.add(likeliest)
    if strange - {UNDETERMINED}:
        logger.warning(
            "the identifier's labels %s are no languages; give tags such as 'fr'", sorted(strange)
        )
    return found


def is_spoken(said: str, wanted: str) -> bool:
    """Say whether what an identifier heard is the language that was wanted.

    Where either knows no region or script, only the language counts: ``pt`` is said of ``pt-BR``,
    ``zh-CN`` of ``zh``, ``no`` of ``nb``.

    Args:
        said: The identifier's tag.
        wanted: The tag asked for.

    Examples:
        >>> is_spoken("pt", "pt-BR"), is_spoken("pt-PT", "pt-BR"), is_spoken("no", "nb")
        (True, False, True)
    """
    if said == wanted:
        return True
    (mine, *detail), (theirs, *other) = said.split("-"), wanted.split("-")
    same = SPOKEN_AS.get(mine, mine) == SPOKEN_AS.get(theirs, theirs)
    return same and not (detail and other)


def _distribution(answer: Any, text: str) -> dict[str, float]:
    if answer is None:
        return {}
    if isinstance(answer, str):
        return {answer: 1.0}
    found = {str(lang): float(probability) for lang, probability in answer.items()}
    total = sum(found.values())
    if not (all(0 <= probability <= 1 for probability in found.values()) and total < 1.01):
        raise OptionError(f"What the identifier gave for {text!r} is no distribution")
    return found


def _counts(answer: Any) -> bool:
    return float(answer.value) >= 0.001


def _among(languages: tuple[str, ...] | None) -> str:
    return "" if languages is None else f" among {', '.join(languages)}"


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "missing"
