"""Questions asked in several languages, with their answers: the aligned items of a task.

Whatever the source (this project's own facts and inferences, XNLI, mLAMA, mParaRel, MzsRE, JSON
lines of anybody), an item ends up as a `Question`: one prompt and one answer per language. A
`Template` says how an item's texts become a prompt, with one instruction for all languages or each
language's own.
"""

import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from string import Formatter
from typing import Any, Literal

from lens_lang.errors import CorpusError, LanguageError, OptionError, near_misses
from lens_lang.languages import distinct_languages, language_tag
from lens_lang.texts import text_lines

Texts = Mapping[str, str]
"""One text per language."""

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
_CLOSES_TOO = {"“": "„", "‘": "‚", "«": "»"}
"""German and its neighbours close with what others open with: „so“, ‚so‘, »so«."""
_ENDS_OF_SENTENCES = " .。．!！?？؟।"

_tag = lru_cache(4096)(language_tag)


@dataclass(frozen=True)
class Question:
    """One item, in every language it is given in.

    Attributes:
        name: What to call it.
        prompts: By language; each ends where its answer begins.
        answers: The right answer by language; empty for text that asks nothing.
        options: By language what to choose from, the answer among it; empty for an open question.
        group: Its kind, such as a relation; demonstrations come from the same.
    """

    name: str
    prompts: Texts
    answers: Texts = field(default_factory=dict)
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    group: str = ""

    def __post_init__(self) -> None:
        for lang, options in self.options.items():
            if options and self.answers.get(lang) not in options:
                raise CorpusError(
                    f"{self.name!r} in {lang!r} offers {', '.join(options)}, and its answer "
                    f"{self.answers.get(lang)!r} is none of them"
                )

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages it is asked in."""
        return tuple(self.prompts)


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


def read_relations(source: str | Path, languages: Sequence[str]) -> list[Question]:
    """Read facts by relation, from files as mLAMA and mParaRel have them.

    A relation's pattern is used where the object, ``[Y]``, stands at its end, as a model that
    reads from left to right needs it: the first such pattern of each language. Facts are aligned
    by relation, subject and object; those without a label or a pattern in every language are
    left out.

    Args:
        source: A folder of mParaRel (``patterns/de/P36.jsonl``, ``tuples/de/P36.jsonl``) or of
            mLAMA (``de/templates.jsonl``, ``de/P36.jsonl``); or one file with mLAMA's columns
            (``predicate_id``, ``template``, ``sub_uri``, ``sub_label``, ``obj_uri``,
            ``obj_label``, ``language``).
        languages: Languages, under any of their names. Folders may spell them otherwise: without
            a folder ``zh``, ``zh-cn`` or ``zh-hans`` is that of Chinese.

    Returns:
        Open questions, grouped by relation, in the order of the first language.

    Raises:
        CorpusError: Files are missing or malformed, or no fact is in every language.
        LanguageError: A language is unknown, given twice, or none is.
    """
    source, tags = Path(source), distinct_languages(language_tag(name) for name in languages)
    if source.is_file():
        facts = _facts_in_file(source, tags)
    else:
        facts = {tag: dict(_facts_in_folder(source, tag)) for tag in tags}
    shared = [key for key in facts[tags[0]] if all(key in facts[tag] for tag in tags)]
    if not shared:
        counts = ", ".join(f"{tag} {len(each)}" for tag, each in facts.items())
        raise CorpusError(
            f"{source} has no fact with a label, and a pattern that ends in [Y], in every language "
            f"(facts that have both: {counts})"
        )
    return [
        Question(
            name="/".join(key),
            prompts={tag: facts[tag][key][0] for tag in tags},
            answers={tag: facts[tag][key][1] for tag in tags},
            group=key[0],
        )
        for key in shared
    ]


def read_edits(
    paths: Sequence[str | Path], *, fact: Literal["english", "own"] = "english"
) -> list[Question]:
    """Read facts that a prompt states anew before it asks for them, from files as MzsRE has them.

    Args:
        paths: One ``.json`` file per pair of languages: a list of
            ``{"en": {"src": ..., "alt": ...}, "de": {...}}``, question and new answer. Files are
            aligned by the English question.
        fact: ``"english"``: the fact in English, the question in each language (EN to ALL).
            ``"own"``: the fact in each language, the question in English (ALL to EN).

    Returns:
        Open questions, in the first file's order; those that a file lacks are left out.

    Raises:
        CorpusError: A file is missing or malformed, or they have no question in common.
        LanguageError: A language is unknown.
        OptionError: There is no such direction, or no file.
    """
    if fact not in ("english", "own"):
        raise OptionError(f"fact must be english or own, got {fact!r}")
    if not paths or isinstance(paths, str):
        raise OptionError("read_edits needs a list of at least one file")
    tables = [_edits(Path(path)) for path in paths]
    shared = [key for key in tables[0] if all(key in table for table in tables)]
    if not shared:
        raise CorpusError("The files have no English question in common")
    questions = []
    for number, key in enumerate(shared):
        texts: dict[str, tuple[str, str]] = {}
        for table in tables:
            texts.update(table[key])
        told = {lang: " ".join(texts["en" if fact == "english" else lang]) for lang in texts}
        asked = {lang: texts[lang if fact == "english" else "en"] for lang in texts}
        questions.append(
            Question(
                name=str(number),
                prompts={lang: f"{told[lang]}\n{asked[lang][0]}" for lang in texts},
                answers={lang: asked[lang][1] for lang in texts},
            )
        )
    return questions


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
        others = [each for each in fitting[key] if each.name != question.name]
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
    # an English instruction around Chinese text ends in English
    written = lang.split("-")[0] in _WITHOUT_SPACES and not (end.isascii() and end != '"')
    return "" if not end or end.isspace() or _left_open(prompt) or written else " "


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


def rows_of(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data file as objects.

    Args:
        path: ``.jsonl`` (or ``.jsonl.gz``), ``.json`` with a list, or ``.parquet``.

    Raises:
        CorpusError: The file is missing, damaged, or of another kind; the message names the row.

    Yields:
        One object per row.
    """
    path = Path(path)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if not path.is_file():
        raise CorpusError(f"There is no file {path}")
    if kind == ".jsonl":
        found: Iterable[Any] = _json_lines(path)
    elif kind == ".json" and path.suffix != ".gz":
        found = _json_list(path)
    elif kind == ".parquet" and path.suffix != ".gz":
        found = _parquet_rows(path)
    else:
        raise CorpusError(
            f"Cannot read items from {path}: its name must end in .jsonl, .jsonl.gz, "
            ".json or .parquet"
        )
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise CorpusError(f"Row {number} of {path} is {type(row).__name__}, not an object")
        yield row


def _packaged(name: str) -> Path:
    return Path(str(files("lens_lang").joinpath("data", name)))


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{path}, line {number} is not JSON: {error}") from error


def _json_list(path: Path) -> list[Any]:
    try:
        content = json.loads("".join(text_lines(path)))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, list):
        raise CorpusError(f"{path} holds {type(content).__name__}, where a list is expected")
    return content


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise CorpusError(f"{path} is not a readable parquet file: {error}") from error


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
        prompt = _by_tag(prompt.items(), "The template's prompt")
    if isinstance(options, Mapping):
        options = _by_tag(options.items(), "The template's options")
    return replace(template, prompt=prompt, options=options)


def _question(
    row: Any, template: Template, columns: Sequence[str], number: int, where: str
) -> Question:
    place = f"Item {number} of {where}"
    if not isinstance(row, Mapping):
        raise CorpusError(f"{place} is {type(row).__name__}, not an object")
    texts = {column: _texts(_column(row, column, place), column, place) for column in columns}
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
        _column(row, template.answer, place)  # who is offered a choice is asked something
    if options or row.get(template.answer) is not None:
        answers = _answers(row[template.answer], template.answer, options, languages, place)
    return Question(
        name=_word(row, template.name, place) or str(number - 1),
        prompts=prompts,
        answers=answers,
        options=options,
        group=_word(row, template.group, place) or "",
    )


def _column(row: Mapping[str, Any], column: str, place: str) -> Any:
    if column not in row:
        raise CorpusError(f"{place} has no column {column!r}{near_misses(column, map(str, row))}")
    return row[column]


def _word(row: Mapping[str, Any], column: str, place: str) -> str | None:
    """A text or a number as text; None where there is none."""
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CorpusError(
            f"{place} has {type(value).__name__} in column {column!r}, where text is expected"
        )
    return _text(str(value), column, place)


def _text(value: Any, column: str, place: str) -> str:
    """A text that is one, and can be written."""
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(
            f"{place}: {column!r} must be a text, or texts by language, none of them empty"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise CorpusError(f"{place}: {column!r} has half a surrogate pair") from None
    return value


def _texts(value: Any, column: str, place: str) -> str | dict[str, str]:
    """One text for all languages, or one per language; both of XNLI's forms."""
    if not isinstance(value, Mapping):
        return _text(value, column, place)
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
    given = [(name, _text(text, column, place)) for name, text in pairs if text is not None]
    if not given:
        raise CorpusError(f"{place}: {column!r} is given in no language")
    return _by_tag(given, f"{place}: {column!r}")


def _by_tag(pairs: Iterable[tuple[Any, Any]], place: str) -> dict[str, Any]:
    """The same by the languages' tags."""
    named: dict[str, Any] = {}
    for name, each in pairs:
        try:
            tag = _tag(str(name))
        except LanguageError as error:
            raise LanguageError(f"{place}: {error}") from error
        if tag in named:
            raise LanguageError(f"{place} is given twice in {tag!r}")
        named[tag] = each
    return named


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


_Fact = tuple[tuple[str, str, str], tuple[str, str]]
"""(relation, subject, object), then prompt and answer."""


def _facts_in_file(source: Path, tags: Sequence[str]) -> dict[str, dict[Any, tuple[str, str]]]:
    found: dict[str, dict[Any, tuple[str, str]]] = {tag: {} for tag in tags}
    for number, row in enumerate(rows_of(source), 1):
        place = f"Row {number} of {source}"
        try:
            tag = _tag(str(_column(row, "language", place)))
        except LanguageError:
            continue  # nobody asked for it
        if tag in found:
            relation, shape = _words(row, ("predicate_id", "template"), place)
            if relation and shape:
                found[tag].update(_fact(row, relation, [shape], place))
    return found


def _facts_in_folder(source: Path, tag: str) -> Iterator[_Fact]:
    patterns = _language_folder(source / "patterns", tag)
    facts = _language_folder(source / "tuples" if patterns else source, tag)
    if facts is None:
        what = "is no folder of mParaRel or mLAMA" if source.is_dir() else "does not exist"
        raise CorpusError(f"{source} {what}: files in {tag!r} were expected there")
    templates: dict[str, list[str]] = {}
    if patterns is None:
        for row, place in _placed_rows(facts / "templates.jsonl"):
            relation, shape = _words(row, ("relation", "template"), place)
            if relation and shape:
                templates.setdefault(relation, []).append(shape)
    else:
        for file in sorted(patterns.glob("*.jsonl")):
            read = (_words(row, ("pattern",), place)[0] for row, place in _placed_rows(file))
            templates[file.stem] = [shape for shape in read if shape]
    for relation, shapes in templates.items():
        file = facts / f"{relation}.jsonl"
        if file.is_file():
            for row, place in _placed_rows(file):
                yield from _fact(row, relation, shapes, place)


def _placed_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    return ((row, f"Row {number} of {path}") for number, row in enumerate(rows_of(path), 1))


def _language_folder(folder: Path, tag: str) -> Path | None:
    """The folder of a language, however it spells it."""
    found: dict[str, Path] = {}
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if each.is_dir():
                found.setdefault(_tag(each.name), each)
        except LanguageError:
            continue
    alike = (each for name, each in found.items() if _likely(name) == _likely(tag))
    return found.get(tag) or next(alike, None)


@lru_cache(4096)
def _likely(tag: str) -> str:
    """A tag with the script and the region that go without saying: zh is zh-Hans-CN."""
    import langcodes

    return str(langcodes.Language.get(tag).maximize())


def _words(row: Mapping[str, Any], columns: Sequence[str], place: str) -> list[str | None]:
    for column in columns:
        _column(row, column, place)
    return [_word(row, column, place) for column in columns]


def _fact(
    row: Mapping[str, Any], relation: str, shapes: Sequence[str], place: str
) -> Iterator[_Fact]:
    columns = ("sub_uri", "obj_uri", "sub_label", "obj_label")
    subject_uri, object_uri, subject, answer = _words(row, columns, place)
    if not (subject_uri and object_uri and subject and answer):
        return
    for shape in shapes:
        before, gap, after = shape.partition("[Y]")
        if gap and "[X]" in before and not after.strip(_ENDS_OF_SENTENCES):
            prompt = before.replace("[X]", subject).rstrip()
            yield (relation, subject_uri, object_uri), (prompt, answer)
            return


def _edits(path: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """Question and new answer by language, by the English question."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for row, place in _placed_rows(path):
        pairs = [
            (name, (_text(each["src"], "src", place), _text(each["alt"], "alt", place)))
            for name, each in row.items()
            if isinstance(each, Mapping) and "src" in each and "alt" in each
        ]
        texts = _by_tag(pairs, place)
        if "en" not in texts or len(texts) < 2:
            raise CorpusError(f"{place} must have 'src' and 'alt' in English and another language")
        found.setdefault(texts["en"][0], texts)
    if not found:
        raise CorpusError(f"{path} holds no item")
    return found
