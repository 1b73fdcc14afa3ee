"""Aligned questions: what is shown in front of them, and what stands before their answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_lang.errors import CorpusError, LanguageError, OptionError
from lens_lang.questions import Question, answered, demonstrated, space_between


@pytest.mark.parametrize(
    ("prompt", "lang", "space"),
    [
        ("答案:", "zh", ""),
        ("（公司）", "zh", ""),
        ("前提：他来了。Answer:", "zh", " "),
        ("¿", "es", ""),
        ("La monnaie est l'", "fr", ""),
        ("The answer:", "en", " "),
    ],
)
def test_the_last_letter_says_whether_a_space_follows(prompt: str, lang: str, space: str) -> None:
    assert space_between(prompt, lang) == space


def test_languages_have_one_name_and_answers_no_space() -> None:
    ask = Question("x", {"English": "The sky is", "cmn": "天空是"}, {"en": " blue ", "zh": "蓝"})
    assert ask.languages == ("en", "zh")
    assert answered(ask, "zh") == "天空是蓝"
    assert answered(ask, "en") == "The sky is blue"
    with pytest.raises(LanguageError, match="twice"):
        Question("x", {"English": "a", "en": "b"})
    assert repr(ask) == "Question('x': 'The sky is' in en, zh)"


def test_a_question_is_not_shown_to_one_that_asks_the_same() -> None:
    same = [
        Question(name, {"en": "Italy borders"}, {"en": answer}, group="p")
        for name, answer in (("a", "France"), ("b", "Austria"))
    ]
    with pytest.raises(OptionError, match="0 other questions"):
        demonstrated(same, 1)


def asked(number: int, *languages: str, group: str = "a") -> Question:
    name = f"{group}{number}"
    prompts = {lang: f"{lang} {name} is" for lang in languages}
    return Question(name, prompts, dict.fromkeys(languages, f"<{number}>"), group=group)


MANY = [asked(n, "en", "fr", "zh", group=group) for group in "ab" for n in range(6)]


@given(st.integers(0, 5), st.integers(0, 99))
def test_the_same_questions_are_shown_in_every_language(count: int, seed: int) -> None:
    found = demonstrated(MANY, count, separator="\n\n", seed=seed)
    assert found == demonstrated(MANY, count, separator="\n\n", seed=seed)
    texts = {answered(each, lang): (each.name, lang) for each in MANY for lang in each.prompts}
    for each, longer in zip(MANY, found, strict=True):
        shown = {}
        for lang, prompt in longer.prompts.items():
            *solved, last = prompt.split("\n\n")
            assert last == each.prompts[lang]
            assert {texts[text][1] for text in solved} <= {lang}
            shown[lang] = [texts[text][0] for text in solved]
        assert shown["en"] == shown["fr"] == shown["zh"]
        assert len(set(shown["en"])) == count
        assert each.name not in shown["en"]
        assert {name[0] for name in shown["en"]} <= {each.group}
        assert (longer.name, longer.answers, longer.group) == (each.name, each.answers, each.group)


def test_none_shown_changes_nothing_and_seeds_matter() -> None:
    assert demonstrated(MANY, 0) == MANY
    assert demonstrated(MANY, 3, seed=1) != demonstrated(MANY, 3, seed=2)
    mute = [Question("x", {"en": "text"})]
    assert demonstrated(mute, 0) == mute


def test_a_question_is_not_shown_to_its_copy() -> None:
    with pytest.raises(OptionError, match="'a1' cannot have 1 .* 'a' has 0 other questions"):
        demonstrated([asked(1, "en"), asked(1, "en")], 1)


UNANSWERED = Question("a2", {"en": "x", "fr": "y"}, group="a")


@pytest.mark.parametrize("other", [asked(2, "en", "fr", group="b"), asked(2, "en"), UNANSWERED])
def test_too_few_of_a_kind_are_refused(other: Question) -> None:
    with pytest.raises(OptionError, match="'a1' cannot have 1 demonstrations: its group 'a' has 0"):
        demonstrated([asked(1, "en", "fr"), other], 1)
    with pytest.raises(OptionError, match="count must be at least 0, got -1"):
        demonstrated([], -1)


@pytest.mark.parametrize(
    ("prompt", "lang", "solved"),
    [
        ('The opposite of "hot" is "', "en", 'The opposite of "hot" is "A"'),
        ("Ja: 「", "ja", "Ja: 「A」"),
        ("Le mot «", "fr", "Le mot «A»"),
        ("Das Wort „", "de", "Das Wort „A“"),
        ("Er sagte „so“", "de", "Er sagte „so“ A"),  # closed here, open elsewhere
        ("Er sagte »so«", "de", "Er sagte »so« A"),
        ("the word “", "en", "the word “A”"),
        ('The sky "is', "en", 'The sky "is A"'),
        ("The sky is", "en", "The sky is A"),
    ],
)
def test_quotation_marks_are_closed_in_what_is_shown(prompt: str, lang: str, solved: str) -> None:
    shown = Question("x", {lang: prompt}, {lang: "A"})
    after = demonstrated([Question("y", {lang: "?"}, {lang: "!"}), shown], 1)[0]
    assert after.prompts[lang] == f"{solved}\n?"


@pytest.mark.parametrize(
    ("prompt", "lang", "space"),
    [
        ("The sky is", "en", " "), ("Le ciel est", "fr", " "), ("Answer:", "zh", " "),
        ("Réponse :", "fr", " "), ("하늘은", "ko", " "), ('He said "so"', "en", " "),
        ("天空是", "zh", ""), ("天空是", "zh-TW", ""), ("空は", "ja", ""), ("ฟ้า", "th", ""),
        ('"热"', "zh", ""), ('"热"的反义词是"', "zh", ""), ('It is "', "en", ""), ("(", "en", ""),
        ("「", "ja", ""), ("It is ", "en", ""), ("答案：", "zh", ""), ("Answer:\n", "en", ""),
        ("", "en", ""),
    ],
)  # fmt: skip
def test_a_space_stands_where_one_is_written(prompt: str, lang: str, space: str) -> None:
    assert space_between(prompt, lang) == space
    assert answered(Question("x", {lang: prompt}, {lang: "A"}), lang) == f"{prompt}{space}A"


def test_an_answer_is_one_of_the_options() -> None:
    with pytest.raises(CorpusError, match="'x' in 'en' offers a, b, and its answer None"):
        Question("x", {"en": "?"}, {}, {"en": ("a", "b")})


def test_an_answer_in_another_language_is_no_key_error() -> None:
    with pytest.raises(LanguageError, match="'a1' is not asked in 'de'; known here: en, fr"):
        answered(asked(1, "en", "fr"), "de")
    with pytest.raises(LanguageError, match="'x' is not answered in 'en'"):
        answered(Question("x", {"en": "text"}), "en")
