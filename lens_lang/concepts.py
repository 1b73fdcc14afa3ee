"""Words for the same concepts in several languages, and prompts made of them.

The three tasks of Wendler et al. (2024): translate a word, repeat it, fill it into a sentence.
Demonstrations are drawn from the other concepts, with a seed.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lens_lang.errors import CorpusError, LanguageError, OptionError, near_misses
from lens_lang.languages import language_tag

BLANK = '"___"'
"""The gap of a cloze sentence."""

_ANSWER = {
    "en": "Answer",
    "de": "Antwort",
    "es": "Respuesta",
    "fr": "Réponse",
    "id": "Jawaban",
    "ja": "答え",
    "ru": "Ответ",
    "vi": "Đáp án",
    "zh": "答案",
}


@dataclass(frozen=True)
class Concept:
    """One concept: its word in every language, and a sentence that only it fits.

    Attributes:
        name: What to call it.
        words: One word per language.
        cloze: One sentence per language, with `BLANK` where the word goes; may be empty.
    """

    name: str
    words: Mapping[str, str]
    cloze: Mapping[str, str]


@dataclass(frozen=True)
class Prompt:
    """A prompt that ends where one word is expected.

    Attributes:
        text: The prompt, up to and with the opening quotation mark.
        answers: The expected word by language: that of the answer first, others (such as the
            English word that may show on the way there) behind.
    """

    text: str
    answers: Mapping[str, str]


def read_concepts(path: str | Path | None = None) -> list[Concept]:
    """Read a list of concepts.

    Args:
        path: JSON lines with ``concept``, ``words`` and perhaps ``cloze``; None reads the
            list that comes with lens_lang, written for it in nine languages.

    Returns:
        The concepts, in the file's order.

    Raises:
        CorpusError: The file is missing or malformed; the message names the line.

    Examples:
        >>> concepts = read_concepts()
        >>> len(concepts) >= 80, sorted(concepts[0].words)
        (True, ['de', 'en', 'es', 'fr', 'id', 'ja', 'ru', 'vi', 'zh'])
    """
    source = files("lens_lang").joinpath("data", "words.jsonl") if path is None else Path(path)
    try:
        lines = source.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"Could not read the concepts in {path}: {error}") from error
    concepts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            concept = Concept(str(row["concept"]), dict(row["words"]), dict(row.get("cloze", {})))
            for texts in (concept.words, concept.cloze):
                for text in texts.values():
                    text.encode("utf-8")  # what is no text, or half a surrogate pair, fails here
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorpusError(f"Line {number} of {path} is no concept: {error}") from error
        gaps = [lang for lang, text in concept.cloze.items() if text.count(BLANK) != 1]
        if gaps:
            raise CorpusError(
                f"Line {number} of {path}: the sentence in {gaps[0]!r} must have {BLANK} once"
            )
        concepts.append(concept)
    if not concepts:
        raise CorpusError(f"{path} holds no concept")
    return concepts


def translation_prompts(
    concepts: Sequence[Concept],
    source: str,
    target: str,
    *,
    demonstrations: int = 4,
    pivot: str = "en",
    seed: int = 42,
) -> list[Prompt]:
    """Return prompts that ask for a concept's word in another language.

    Demonstrations stand one a line, ``Deutsch: "Blume" - Français: "fleur"``; the last line
    ends after the opening quotation mark.

    Args:
        concepts: What to ask for, and to demonstrate with.
        source: Language of the given word.
        target: Language of the word asked for. The same as `source` asks to repeat it.
        demonstrations: Solved lines before the question.
        pivot: Language whose word is kept beside the target's, to look for on the way.
        seed: Of the choice of demonstrations.

    Returns:
        One prompt per concept.

    Raises:
        LanguageError: The concepts have no word in a language.
        OptionError: There are too few concepts to demonstrate with.

    Examples:
        >>> some = [Concept("one", {"en": "one", "fr": "un"}, {}),
        ...         Concept("two", {"en": "two", "fr": "deux"}, {})]
        >>> print(translation_prompts(some, "en", "fr", demonstrations=1)[0].text)
        English: "two" - Français: "deux"
        English: "one" - Français: "
    """
    source, target, pivot = (language_tag(name) for name in (source, target, pivot))
    first, second = _title(source), _title(target)
    prompts = []
    for concept, shown in _with_demonstrations(concepts, demonstrations, pivot, seed):
        lines = [
            f'{first}: "{_word(each, source)}" - {second}: "{_word(each, target)}"'
            for each in shown
        ]
        lines.append(f'{first}: "{_word(concept, source)}" - {second}: "')
        prompts.append(Prompt("\n".join(lines), _answers(concept, target, pivot)))
    return prompts


def repetition_prompts(
    concepts: Sequence[Concept],
    language: str,
    *,
    demonstrations: int = 4,
    pivot: str = "en",
    seed: int = 42,
) -> list[Prompt]:
    """Return prompts that ask to repeat a word; see `translation_prompts`."""
    return translation_prompts(
        concepts, language, language, demonstrations=demonstrations, pivot=pivot, seed=seed
    )


def cloze_prompts(
    concepts: Sequence[Concept],
    language: str,
    *,
    demonstrations: int = 2,
    pivot: str = "en",
    seed: int = 42,
) -> list[Prompt]:
    """Return prompts that ask for the word missing in a sentence.

    Args:
        concepts: What to ask for, and to demonstrate with.
        language: Language of sentence and word.
        demonstrations: Solved sentences before the question.
        pivot: Language whose word is kept beside the answer, to look for on the way.
        seed: Of the choice of demonstrations.

    Returns:
        One prompt per concept.

    Raises:
        LanguageError: The concepts have no word or sentence in the language.
        OptionError: There are too few concepts to demonstrate with.
    """
    language, pivot = language_tag(language), language_tag(pivot)
    answer = _ANSWER.get(language.split("-")[0], "Answer")
    prompts = []
    for concept, shown in _with_demonstrations(concepts, demonstrations, pivot, seed):
        lines = [
            f'{_in(each.cloze, each, language)} {answer}: "{_word(each, language)}".'
            for each in shown
        ]
        lines.append(f'{_in(concept.cloze, concept, language)} {answer}: "')
        prompts.append(Prompt("\n".join(lines), _answers(concept, language, pivot)))
    return prompts


def _with_demonstrations(
    concepts: Sequence[Concept], demonstrations: int, pivot: str, seed: int
) -> list[tuple[Concept, list[Concept]]]:
    if demonstrations < 0 or demonstrations >= len(concepts):
        raise OptionError(
            f"demonstrations must be between 0 and the {len(concepts) - 1} other concepts, got "
            f"{demonstrations}"
        )
    if not any(pivot in concept.words for concept in concepts):
        raise LanguageError(f"No concept has a word in the pivot language {pivot!r}")
    chooser = random.Random(seed)
    drawn = []
    for concept in concepts:
        others = [each for each in concepts if each is not concept]
        drawn.append((concept, chooser.sample(others, demonstrations)))
    return drawn


def _answers(concept: Concept, language: str, pivot: str) -> dict[str, str]:
    found = {language: _word(concept, language)}
    if pivot in concept.words:
        found.setdefault(pivot, concept.words[pivot])
    return found


def _word(concept: Concept, language: str) -> str:
    return _in(concept.words, concept, language)


def _in(texts: Mapping[str, str], concept: Concept, language: str) -> str:
    if language not in texts:
        raise LanguageError(
            f"The concept {concept.name!r} has nothing in {language!r}"
            f"{near_misses(language, texts)}"
        )
    return texts[language]


def _title(language: str) -> str:
    """A language's own name for itself, as a title: English, Deutsch, Русский, 中文."""
    import langcodes

    name = langcodes.Language.get(language).autonym()
    return name[:1].upper() + name[1:]
