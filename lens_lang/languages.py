"""Names of languages: any usual spelling in, one BCP-47 tag out.

``fr``, ``fra_Latn`` and ``French`` are the same language. Tags keep their region
(``pt-BR``) and lose a script that the language is written in anyway (``zho_Hans`` is ``zh``).
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

from lens_lang.errors import LanguageError, near_misses


@lru_cache(maxsize=4096)
def language_tag(name: str) -> str:
    """Return the BCP-47 tag of a language.

    Args:
        name: A tag (``"fr"``), a corpus code (``"fra_Latn"``), or a name in English or in the
            language itself (``"French"``, ``"français"``).

    Returns:
        The shortest standard tag.

    Raises:
        LanguageError: No such language is known.

    Examples:
        >>> [language_tag(name) for name in ("fra_Latn", "French", "zho_Hans", "pt-BR")]
        ['fr', 'fr', 'zh', 'pt-BR']
    """
    import langcodes  # about 30 ms, and only text corpora need it

    try:
        if langcodes.tag_is_valid(name):
            language = langcodes.Language.get(langcodes.standardize_tag(name))
        else:
            language = langcodes.find(name)
            # find() guesses at any word; only a language's real name will do.
            names = (language.display_name("en"), language.autonym())
            if name.casefold() not in (known.casefold() for known in names):
                raise LookupError(name)
    except (LookupError, ValueError):
        common = ("English", "German", "Spanish", "French", "Indonesian", "Japanese", "Russian")
        raise LanguageError(
            f"No language is called {name!r}: give a BCP-47 tag such as 'fr', a code such as "
            f"'fra_Latn' or an English name{near_misses(name, (*common, 'Vietnamese', 'Chinese'))}"
        ) from None
    # Corpora such as FLORES code Arabic as arb and Chinese as cmn; everybody else says ar and zh.
    language = language.prefer_macrolanguage()
    bare = langcodes.Language.make(language=language.language, territory=language.territory)
    if language.script and bare.maximize().script == language.script:
        language = bare
    return str(language.to_tag())


def find_language(name: str, languages: Sequence[str]) -> int:
    """Return the position of a language in a tuple of tags, under any of its names.

    Args:
        name: The language asked for, in any spelling that `language_tag` knows.
        languages: The tags or labels to look through.

    Returns:
        Index into `languages`.

    Raises:
        LanguageError: The language is not there.

    Examples:
        >>> find_language("French", ("en", "fr"))
        1
    """
    if name in languages:
        return languages.index(name)
    try:
        tag = language_tag(name)
    except LanguageError:
        tag = name
    if tag in languages:
        return languages.index(tag)
    raise LanguageError(f"There is no language {name!r} here{near_misses(name, languages)}")


def distinct_languages(names: Iterable[str]) -> tuple[str, ...]:
    """Return language labels as a tuple, refusing a repeated one.

    Args:
        names: Language labels in the order to keep.

    Returns:
        The same labels.

    Raises:
        LanguageError: The same label stands twice, or there is none.

    Examples:
        >>> distinct_languages(["en", "fr"])
        ('en', 'fr')
    """
    languages = tuple(names)
    repeated = sorted({name for name in languages if languages.count(name) > 1})
    if repeated:
        raise LanguageError(f"These languages are given twice: {', '.join(repeated)}")
    if not languages:
        raise LanguageError("No language was given; at least one is needed")
    return languages
