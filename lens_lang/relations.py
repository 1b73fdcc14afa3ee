"""Facts by relation, and facts told anew: files as mLAMA, mParaRel and MzsRE have them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from lens_lang.errors import CorpusError, LanguageError, OptionError
from lens_lang.languages import distinct_languages, language_tag
from lens_lang.questions import Question
from lens_lang.tables import by_tag, rows_of, tag_of, text_of, value_of, word_of

_ENDS_OF_SENTENCES = " .。．!！?？؟।"

_Fact = tuple[tuple[str, str, str], tuple[str, str]]
"""(relation, subject, object), then prompt and answer."""


def read_relations(source: str | Path, languages: Sequence[str]) -> list[Question]:
    """Read facts by relation, from files as mLAMA and mParaRel have them.

    A relation's pattern is used where the object, ``[Y]``, stands at its end, as a model that
    reads from left to right needs it: the first such pattern of each language. Facts are aligned
    by relation, subject and object; those without a label or a pattern in every language are
    left out, and those whose subject has several objects (the neighbours of a country), because
    their prompts have several right answers.

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
    objects = Counter(key[:2] for key in {key for each in facts.values() for key in each})
    shared = [key for key in shared if objects[key[:2]] == 1]
    if not shared:
        counts = ", ".join(f"{tag} {len(each)}" for tag, each in facts.items())
        raise CorpusError(
            f"{source} has no fact with one object, a label, and a pattern that ends in [Y], in "
            f"every language (facts with a label and a pattern: {counts})"
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


def _facts_in_file(source: Path, tags: Sequence[str]) -> dict[str, dict[Any, tuple[str, str]]]:
    found: dict[str, dict[Any, tuple[str, str]]] = {tag: {} for tag in tags}
    for number, row in enumerate(rows_of(source), 1):
        place = f"Row {number} of {source}"
        try:
            tag = tag_of(str(value_of(row, "language", place)))
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
                found.setdefault(tag_of(each.name), each)
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
        value_of(row, column, place)
    return [word_of(row, column, place) for column in columns]


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
            (name, (text_of(each["src"], "src", place), text_of(each["alt"], "alt", place)))
            for name, each in row.items()
            if isinstance(each, Mapping) and "src" in each and "alt" in each
        ]
        texts = by_tag(pairs, place)
        if "en" not in texts or len(texts) < 2:
            raise CorpusError(f"{place} must have 'src' and 'alt' in English and another language")
        found.setdefault(texts["en"][0], texts)
    if not found:
        raise CorpusError(f"{path} holds no item")
    return found
