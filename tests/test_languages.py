"""Any usual name of a language becomes one tag; anything else is refused."""

import pytest

from lens_lang.errors import LanguageError
from lens_lang.languages import distinct_languages, find_language, language_tag


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("fr", "fr"),
        ("FR", "fr"),
        ("fra", "fr"),
        ("fra_Latn", "fr"),
        ("French", "fr"),
        ("french", "fr"),
        ("français", "fr"),
        ("Deutsch", "de"),
        ("zho_Hans", "zh"),
        ("zh-Hans", "zh"),
        ("zho_Hant", "zh-Hant"),
        ("Chinese", "zh"),
        ("ind_Latn", "id"),
        ("jpn_Jpan", "ja"),
        ("rus_Cyrl", "ru"),
        ("cmn_Hans", "zh"),
        ("arb_Arab", "ar"),
        ("zsm_Latn", "ms"),
        ("swh_Latn", "sw"),
        ("nob_Latn", "nb"),  # not merged with Nynorsk
        ("pt-BR", "pt-BR"),
        ("pt_br", "pt-BR"),
        ("srp_Latn", "sr-Latn"),  # Serbian is usually written in Cyrillic
    ],
)
def test_every_usual_spelling_gives_the_same_tag(name: str, tag: str) -> None:
    assert language_tag(name) == tag
    assert language_tag(tag) == tag


@pytest.mark.parametrize("name", ["xx", "klingonish", "Nosuchlanguage", "", "fr fr", "../fr"])
def test_what_is_no_language_is_refused(name: str) -> None:
    with pytest.raises(LanguageError, match="No language is called"):
        language_tag(name)


def test_a_misspelt_name_gets_near_misses() -> None:
    with pytest.raises(LanguageError, match="'Frensh'.*did you mean 'French'"):
        language_tag("Frensh")


def test_languages_are_found_under_any_name() -> None:
    languages = ("en", "pt-BR", "xx")
    assert find_language("English", languages) == 0
    assert find_language("pt_br", languages) == 1
    assert find_language("xx", languages) == 2  # a label that is no language is still itself
    with pytest.raises(LanguageError, match="no language 'fr' here; known here: en, pt-BR, xx"):
        find_language("fr", languages)


def test_repeated_and_missing_languages_are_refused() -> None:
    assert distinct_languages(["b", "a"]) == ("b", "a")  # the order is kept
    with pytest.raises(LanguageError, match="given twice: a, b"):
        distinct_languages(["b", "a", "b", "a"])
    with pytest.raises(LanguageError, match="No language was given"):
        distinct_languages([])


def test_the_message_of_a_language_error_has_no_quotes_around_it() -> None:
    assert str(LanguageError("a sentence")) == "a sentence"
    assert isinstance(LanguageError("x"), KeyError)
