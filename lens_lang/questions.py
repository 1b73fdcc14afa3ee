"""Questions asked in several languages, with their answers: the aligned items of a task.

Whatever the source (`lens_lang.items`, `lens_lang.relations`), an item ends up as a `Question`:
one prompt and one answer per language. Solved questions may be shown in front of it.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from lens_lang.errors import CorpusError, LanguageError, OptionError, near_misses
from lens_lang.languages import language_tag

Texts = Mapping[str, str]
"""One text per language."""

AnyText = TypeVar("AnyText")

_WITHOUT_SPACES = ("ja", "zh", "yue", "th", "lo", "km", "my")
_CLOSING = {
    "(": ")",
    "[": "]",
    "{": "}",
    "«": "»",
    "„": "“",
    "“": "”",
    "‘": "’",
    "「": "」",
    "『": "』",
    "（": "）",
    "《": "》",
}
_JOINED = "¿¡'’"
"""Opening marks of Spanish; an apostrophe is an elision (l', d') or opens something."""
_CLOSES_TOO = {"“": "„", "‘": "‚", "«": "»"}
"""German and its neighbours close with what others open with: „so“, ‚so‘, »so«."""


@dataclass(frozen=True, repr=False)
class Question:
    """One item, in every language it is given in.

    Attributes:
        name: What to call it.
        prompts: By language, under any of its names; each ends where its answer begins.
        answers: The right answer by language, without the space before it; empty for text that
            asks nothing.
        options: By language what to choose from, the answer among it; empty for an open question.
        group: Its kind, such as a relation; demonstrations come from the same.
    """

    name: str
    prompts: Texts
    answers: Texts = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group: str = ""

    def __post_init__(self) -> None:
        prompts = self._by_tag(self.prompts)
        answers = {lang: text.strip() for lang, text in self._by_tag(self.answers).items()}
        options = {
            lang: tuple(word.strip() for word in words)
            for lang, words in self._by_tag(self.options).items()
        }
        for name, given in (("prompts", prompts), ("answers", answers), ("options", options)):
            object.__setattr__(self, name, MappingProxyType(given))
        for lang, offered in self.options.items():
            if offered and self.answers.get(lang) not in offered:
                raise CorpusError(
                    f"{self.name!r} in {lang!r} offers {', '.join(offered)}, and its answer "
                    f"{self.answers.get(lang)!r} is none of them"
                )

    def _by_tag(self, given: Mapping[str, AnyText]) -> dict[str, AnyText]:
        found = {language_tag(lang): each for lang, each in given.items()}
        if len(found) < len(given):
            raise LanguageError(f"{self.name!r} is given twice in a language: {', '.join(given)}")
        return found

    def __repr__(self) -> str:
        languages = ", ".join(self.languages)
        return f"Question({self.name!r}: {next(iter(self.prompts.values()), '')!r} in {languages})"

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it is asked in."""
        return tuple(self.prompts)


def demonstrated(
    questions: Sequence[Question], count: int, *, separator: str = "\n", seed: int = 0
) -> list[Question]:
    r"""Put solved questions of the same group in front of each, the same ones in every language.

    Args:
        questions: The questions, all with answers.
        count: Solved questions in front.
        separator: What stands between two.
        seed: Of their choice.

    Returns:
        As many questions, under the same names.

    Raises:
        OptionError: A group has too few questions, or they have no answers.

    Examples:
        >>> two = [Question(x, {"en": f"{x} is"}, {"en": x.upper()}) for x in ("a", "b")]
        >>> demonstrated(two, 1)[0].prompts["en"]
        'b is B\na is'
    """
    if count < 0:
        raise OptionError(f"count must be at least 0, got {count}")
    chooser = random.Random(seed)
    fitting: dict[tuple[str, frozenset[str]], list[Question]] = {}
    longer = []
    for question in questions:
        languages = frozenset(question.prompts)
        key = (question.group, languages)
        if key not in fitting:
            fitting[key] = [
                each
                for each in questions
                if each.group == question.group
                and languages <= each.prompts.keys() & each.answers.keys()
            ]
        others = [
            each
            for each in fitting[key]
            if each.name != question.name and each.prompts != question.prompts
        ]
        if len(others) < count:
            raise OptionError(
                f"{question.name!r} cannot have {count} demonstrations: its group "
                f"{question.group!r} has {len(others)} other questions with answers in its "
                "languages"
            )
        shown = chooser.sample(others, count)
        prompts = {
            lang: separator.join([*(_solved(each, lang) for each in shown), question.prompts[lang]])
            for lang in question.prompts
        }
        longer.append(
            Question(question.name, prompts, question.answers, question.options, question.group)
        )
    return longer


def answered(question: Question, lang: str) -> str:
    """Return a prompt with its answer behind it, and the space between them where one belongs.

    Args:
        question: The question.
        lang: The language.

    Raises:
        LanguageError: It is not asked, or not answered, in that language.

    Examples:
        >>> answered(Question("x", {"fr": "Le ciel est", "zh": "天空是"},
        ...                   {"fr": "bleu", "zh": "蓝色的"}), "fr")
        'Le ciel est bleu'
    """
    for given in (question.prompts, question.answers):
        if lang not in given:
            what = "asked" if given is question.prompts else "answered"
            raise LanguageError(
                f"{question.name!r} is not {what} in {lang!r}{near_misses(lang, given)}"
            )
    prompt, answer = question.prompts[lang], question.answers[lang]
    return prompt + space_between(prompt, lang) + answer


def space_between(prompt: str, lang: str) -> str:
    """Return the space that belongs between a prompt and its answer; none in Chinese, say.

    Args:
        prompt: The prompt, which may end in an opening quotation mark.
        lang: The language of the prompt's end.

    Examples:
        >>> space_between("The sky is", "en"), space_between('It is "', "en")
        (' ', '')
    """
    end = prompt[-1:]
    # An English instruction around Chinese text ends in English, whatever its colon.
    last = next((each for each in reversed(prompt) if each.isalpha()), "a")
    written = lang.split("-")[0] in _WITHOUT_SPACES and not last.isascii()
    joined = not end or end.isspace() or end in _JOINED or written
    return "" if joined or _left_open(prompt) else " "


def _left_open(prompt: str) -> str:
    """What closes the mark that a prompt ends in, if that mark opens something."""
    end = prompt[-1:]
    if end == '"':
        return '"' * (prompt.count(end) % 2)
    opener = _CLOSES_TOO.get(end)
    if opener and prompt.count(opener) >= prompt.count(end):
        return ""
    return _CLOSING.get(end, "")


def _solved(question: Question, lang: str) -> str:
    """A prompt with its answer, its quotation mark closed."""
    prompt = question.prompts[lang]
    return answered(question, lang) + (_left_open(prompt) or '"' * (prompt.count('"') % 2))
