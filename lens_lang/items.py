"""Items of a task as questions: those that come with lens_lang, anybody's files, and the hub's.

A `Template` says how an item's columns become a prompt, with one instruction for all languages or
each language's own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from lens_lang.errors import CorpusError, OptionError
from lens_lang.languages import language_tag
from lens_lang.questions import Question, Texts
from lens_lang.tables import by_tag, rows_of, text_of, value_of, word_of


@dataclass(frozen=True)
class Template:
    """How an item becomes a prompt and an answer.

    Attributes:
        prompt: Text with ``{placeholders}`` for the item's columns: one for all languages (an
            English instruction for every language, as in Wang et al. 2024), or one per language.
        answer: The column with the answer: text, or the number of one of the options.
        options: What the prompt offers: the same words for all languages, or each language's.
        name: The column with the item's name; without such a column they are numbered.
        group: The column with the item's kind.
    """

    prompt: str | Texts = "{prompt}"
    answer: str = "answer"
    options: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    name: str = "id"
    group: str = "relation"

    @property
    def columns(self) -> tuple[str, ...]:
        """The placeholders, in the order in which they first appear.

        Raises:
            OptionError: A brace is open, or a placeholder is more or less than a column's name.
        """
        texts = [self.prompt] if isinstance(self.prompt, str) else list(self.prompt.values())
        found: dict[str, None] = {}
        for text in texts:
            try:
                parts = list(Formatter().parse(text))
            except (ValueError, TypeError) as error:
                raise OptionError(f"The template {text!r} is malformed: {error}") from error
            for _, name, format_spec, conversion in parts:
                if name is None:  # literal text behind the last placeholder
                    continue
                if not name.isidentifier() or format_spec or conversion:
                    raise OptionError(
                        f"The template {text!r} has a placeholder that is no column name"
                    )
                found[name] = None
        return tuple(found)


PLAIN = Template()
"""Prompts and answers as they are, in columns of these names."""


def inference_template(instruction: Literal["en", "native"] = "en") -> Template:
    """Return how an XNLI item is asked: does the hypothesis follow from the premise?

    Args:
        instruction: ``"en"``: in English around premise and hypothesis of every language, as in
            Wang et al. (2024). ``"native"``: in each of the nine languages of lens_lang.

    Returns:
        A template for items with ``premise``, ``hypothesis`` and ``label`` (0 entailment,
        1 neutral, 2 contradiction).

    Raises:
        OptionError: There is no such instruction.

    Examples:
        >>> inference_template().columns, inference_template().options
        (('premise', 'hypothesis'), ('Yes', 'Maybe', 'No'))
    """
    if instruction not in ("en", "native"):
        raise OptionError(f"instruction must be en or native, got {instruction!r}")
    known = json.loads(_packaged("inference_templates.json").read_text(encoding="utf-8"))
    if instruction == "en":
        return Template(
            known["en"]["prompt"], answer="label", options=tuple(known["en"]["options"])
        )
    return Template(
        {lang: each["prompt"] for lang, each in known.items()},
        answer="label",
        options={lang: tuple(each["options"]) for lang, each in known.items()},
    )


def read_questions(
    path: str | Path, template: Template = PLAIN, *, limit: int | None = None
) -> list[Question]:
    """Read the items of one file.

    A column is one text for all languages, or texts by language (``{"en": ..., "fr": ...}``, or
    XNLI's ``{"language": [...], "translation": [...]}``); null where it is not given in one. A
    question has the languages that all its columns have.

    Args:
        path: ``.jsonl`` (or ``.jsonl.gz``), ``.json`` with a list, or ``.parquet``.
        template: How an item becomes a prompt. The default takes the columns ``prompt`` and
            ``answer`` as they are, with ``id`` and ``relation`` where they are given.
        limit: Read no more items than this.

    Returns:
        The questions, in the file's order.

    Raises:
        CorpusError: The file is missing or malformed; the message names the item.
        LanguageError: A language is unknown.
        OptionError: The template is malformed.
    """
    return _questions(rows_of(path), template, str(path), limit)


def stream_questions(
    dataset: str,
    template: Template,
    *,
    config: str | None = None,
    split: str = "test",
    limit: int | None = 1000,
) -> list[Question]:
    """Read items from a data set of the hub, such as ``facebook/xnli``, config ``all_languages``.

    Args:
        dataset: Id of the data set.
        template: How an item becomes a prompt.
        config: Name of its configuration.
        split: Its split.
        limit: Read no more items than this; Wang et al. (2024) take 1000.

    Returns:
        The questions, in the data set's order.

    Raises:
        CorpusError: The data set cannot be streamed, or an item is malformed.
        LanguageError: A language is unknown.
        OptionError: The template is malformed.
    """
    import datasets

    where = f"{dataset}{f' ({config})' if config else ''}, split {split}"
    _check_limit(limit)
    _ = template.columns  # malformed ones are refused before the network is asked
    try:
        rows = list(
            islice(datasets.load_dataset(dataset, config, split=split, streaming=True), limit)
        )
    # The hub's client, its data readers and the network raise classes without a common base.
    except Exception as error:
        raise CorpusError(f"Could not stream {where} from the hub: {error}") from error
    return _questions(rows, template, where, limit)


def read_facts(path: str | Path | None = None) -> list[Question]:
    """Read facts to complete: capitals, currencies, opposites, translations.

    Args:
        path: A file of the same schema; None reads the 96 facts that come with lens_lang,
            written for it in nine languages.

    Returns:
        Open questions, grouped by relation.

    Raises:
        CorpusError: The file is missing or malformed.

    Examples:
        >>> facts = read_facts()
        >>> facts[0].prompts["en"], facts[0].answers["en"], len({fact.group for fact in facts})
        ('The capital of France is', 'Paris', 4)
    """
    return read_questions(_packaged("facts.jsonl") if path is None else path)


def read_entailment(
    path: str | Path | None = None, *, instruction: Literal["en", "native"] = "en"
) -> list[Question]:
    """Read inferences: does a sentence follow from another, perhaps, or not?

    Args:
        path: A file in the schema of ``facebook/xnli``, config ``all_languages``; None reads the
            48 items that come with lens_lang, written for it in nine languages. The data set
            itself: ``stream_questions("facebook/xnli", inference_template(), ...)``.
        instruction: See `inference_template`.

    Returns:
        Questions with three options.

    Raises:
        CorpusError: The file is missing or malformed.
        OptionError: There is no such instruction.

    Examples:
        >>> items = read_entailment()
        >>> len(items), items[0].options["fr"]
        (48, ('Yes', 'Maybe', 'No'))
    """
    source = _packaged("entailment.jsonl") if path is None else path
    return read_questions(source, inference_template(instruction))


def open_questions(
    path: str | Path | None = None,
    *,
    languages: Sequence[str] | None = None,
    frame: str = "Q: {question}\nA:",
    limit: int | None = None,
) -> dict[str, list[str]]:
    """Read questions that have no one answer, to see in which language a model answers.

    Args:
        path: A file whose rows have texts by language in the column ``questions``; None reads the
            24 questions that come with lens_lang, written for it in nine languages.
        languages: Which languages; None takes all that every question is given in.
        frame: What stands around ``{question}``: by default that of Tang et al. (2024), without
            their request to answer in the language.
        limit: At most so many questions, evenly chosen.

    Returns:
        Prompts by language.

    Raises:
        CorpusError: The file is missing or malformed, or a question is not given in a language.
        OptionError: `frame` has no place for the question, or `limit` is less than one.
        LanguageError: A language is unknown.

    Examples:
        >>> print(open_questions(languages=["English"], limit=1)["en"][0])
        Q: How do you make a good cup of tea, and what mistakes do beginners often make?
        A:
    """
    if frame.count("{question}") != 1:
        raise OptionError(f"frame must have {{question}} once, got {frame!r}")
    _check_limit(limit)
    source = _packaged("open_questions.jsonl") if path is None else path
    found = read_questions(source, Template(frame.replace("{question}", "{questions}")))
    count = len(found) if limit is None else min(limit, len(found))
    chosen = [found[place * len(found) // count] for place in range(count)]
    if languages is None:
        tags = [lang for lang in chosen[0].languages if all(lang in q.prompts for q in chosen)]
    else:
        tags = [language_tag(lang) for lang in languages]
    for each in chosen:
        missing = [lang for lang in tags if lang not in each.prompts]
        if missing or not tags:
            raise CorpusError(
                f"{source}: question {each.name!r} is not given in "
                f"{', '.join(missing) or 'the languages of the others'}"
            )
    return {lang: [each.prompts[lang] for each in chosen] for lang in tags}


def _packaged(name: str) -> Path:
    return Path(str(files("lens_lang").joinpath("data", name)))


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}")


def _questions(
    rows: Iterable[Any], template: Template, where: str, limit: int | None
) -> list[Question]:
    _check_limit(limit)
    columns = template.columns
    template = _with_tags(template)
    found: dict[str, Question] = {}
    for number, row in enumerate(islice(rows, limit), 1):
        question = _question(row, template, columns, number, where)
        if question.name in found:
            raise CorpusError(f"Two items of {where} are called {question.name!r}")
        found[question.name] = question
    if not found:
        raise CorpusError(f"{where} holds no item")
    return list(found.values())


def _with_tags(template: Template) -> Template:
    """The template, with tags for its languages' names."""
    prompt, options = template.prompt, template.options
    if not isinstance(prompt, str):
        prompt = by_tag(prompt.items(), "The template's prompt")
    if isinstance(options, Mapping):
        options = by_tag(options.items(), "The template's options")
    return replace(template, prompt=prompt, options=options)


def _question(
    row: Any, template: Template, columns: Sequence[str], number: int, where: str
) -> Question:
    place = f"Item {number} of {where}"
    if not isinstance(row, Mapping):
        raise CorpusError(f"{place} is {type(row).__name__}, not an object")
    texts = {column: _texts(value_of(row, column, place), column, place) for column in columns}
    shapes = template.prompt
    languages = _shared_languages([*texts.values(), shapes], place)
    prompts = {}
    for lang in languages:
        values = {name: x if isinstance(x, str) else x[lang] for name, x in texts.items()}
        # braces in the values are text, as format() reads only the template's
        prompts[lang] = (shapes if isinstance(shapes, str) else shapes[lang]).format(**values)
    options = _options(template, languages)
    answers = {}
    if options:
        value_of(row, template.answer, place)  # who is offered a choice is asked something
    if options or row.get(template.answer) is not None:
        answers = _answers(row[template.answer], template.answer, options, languages, place)
    return Question(
        name=word_of(row, template.name, place) or str(number - 1),
        prompts=prompts,
        answers=answers,
        options=options,
        group=word_of(row, template.group, place) or "",
    )


def _texts(value: Any, column: str, place: str) -> str | dict[str, str]:
    """One text for all languages, or one per language; both of XNLI's forms."""
    if not isinstance(value, Mapping):
        return text_of(value, column, place)
    pairs = list(value.items())
    if set(value) == {"language", "translation"}:
        names, translations = value["language"], value["translation"]
        if (
            not isinstance(names, list | tuple)
            or not isinstance(translations, list | tuple)
            or len(names) != len(translations)
        ):
            raise CorpusError(f"{place}: {column!r} has not one translation per language")
        pairs = list(zip(names, translations, strict=True))
    # files with one type of row, such as parquet, have null where others have nothing
    given = [(name, text_of(text, column, place)) for name, text in pairs if text is not None]
    if not given:
        raise CorpusError(f"{place}: {column!r} is given in no language")
    return by_tag(given, f"{place}: {column!r}")


def _shared_languages(texts: Sequence[str | Mapping[str, str]], place: str) -> list[str]:
    by_language = [each for each in texts if isinstance(each, Mapping)]
    if not by_language:
        raise CorpusError(f"{place} has no text by language, so nobody knows its languages")
    shared = [lang for lang in by_language[0] if all(lang in each for each in by_language)]
    if not shared:
        raise CorpusError(f"{place} has no language in which all its texts are given")
    return shared


def _options(template: Template, languages: Sequence[str]) -> dict[str, tuple[str, ...]]:
    if not isinstance(template.options, Mapping):
        offered = tuple(template.options)
        return dict.fromkeys(languages, offered) if offered else {}
    missing = [lang for lang in languages if lang not in template.options]
    if missing:
        raise OptionError(f"The template has no options in {', '.join(missing)}")
    return {lang: tuple(template.options[lang]) for lang in languages}


def _answers(
    value: Any,
    column: str,
    options: Mapping[str, tuple[str, ...]],
    languages: Sequence[str],
    place: str,
) -> dict[str, str]:
    if isinstance(value, int) and not isinstance(value, bool):
        least = min((len(each) for each in options.values()), default=0)
        if not 0 <= value < least:
            raise CorpusError(
                f"{place}: {column!r} is {value}, but the template has {least} options to choose "
                "from by number"
            )
        return {lang: options[lang][value] for lang in languages}
    texts = _texts(value, column, place)
    if isinstance(texts, str):
        texts = dict.fromkeys(languages, texts)
    missing = [lang for lang in languages if lang not in texts]
    if missing:
        raise CorpusError(f"{place} has no {column!r} in {', '.join(missing)}")
    for lang in languages if options else ():
        if texts[lang] not in options[lang]:
            raise CorpusError(
                f"{place}: {column!r} in {lang!r} is {texts[lang]!r}, none of the options "
                f"{', '.join(options[lang])}"
            )
    return {lang: texts[lang] for lang in languages}
