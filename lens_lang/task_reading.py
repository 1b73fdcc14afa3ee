"""Reading a task's items: from the hub, from files of the same schema, or those of lens_lang.

Rows become prompts in the language they are in; prompts are zero-shot, after Zhao et al. (2024).
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files as resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast
from urllib.parse import quote

from lens_lang.errors import CorpusError, LanguageError, OptionError, near_misses
from lens_lang.items import inference_template, read_entailment
from lens_lang.languages import distinct_languages, language_tag
from lens_lang.tables import by_tag, rows_of, text_of, value_of, word_of
from lens_lang.tasks import TASKS, XNLI, Item, Task, TaskItems, find_task

PACKAGED_LANGUAGES = ("en", "de", "es", "fr", "ru", "zh")
"""Languages of the packaged sets; the packaged inferences are also in Indonesian, Japanese and
Vietnamese."""


def read_task(
    task: Task | str,
    files: Mapping[str, str | Path] | None = None,
    *,
    languages: Sequence[str] | None = None,
    cue: bool = True,
    limit: int | None = None,
) -> TaskItems:
    """Read a task's items, from files or from what comes with lens_lang.

    Args:
        task: The task, or its name.
        files: For each language, under any of its names, a ``.jsonl`` (or ``.jsonl.gz``),
            ``.json`` or ``.parquet`` file with rows as the hub has them. None reads the small sets
            that were written for lens_lang: good to try everything, too little to publish on.
        languages: Which of those languages; None takes all.
        cue: End prompts in a line such as ``Answer:``, without which base models go on asking.
            False gives the prompts of Zhao et al. (2024) as they are, and those of XNLI without
            their last line.
        limit: Read no more items than this in each language; `TaskItems.limit` chooses evenly.

    Returns:
        The items, in the files' order; rows without an ``id`` are numbered.

    Raises:
        CorpusError: A file is missing or malformed; the message names the row.
        LanguageError: A language is unknown, given twice, not among the files, or there is no
            prompt in it.
        OptionError: There is no such task, or `limit` is less than one.

    Examples:
        >>> item = read_task("xnli", languages=["French"], limit=1).items["fr"][0]
        >>> item.options, item.prompt.splitlines()[-1]
        (('Oui', 'Peut-être', 'Non'), 'Réponse :')
    """
    task = _task_of(task)
    _check_limit(limit)
    paths = _packaged_files(task) if files is None else by_tag(files.items(), "A file")
    tags = distinct_languages(paths) if languages is None else _tags(languages)
    missing = [tag for tag in tags if tag not in paths]
    if missing:
        what = f"packaged set of {task.name}" if files is None else "file"
        raise LanguageError(
            f"There is no {what} in {', '.join(missing)}; known here: {', '.join(paths)}"
        )
    _check_prompts(task, tags)
    if files is None and task.name == XNLI.name:
        items = _packaged_inferences(tags, cue, limit)
    else:
        items = {
            tag: _items(islice(rows_of(paths[tag]), limit), str(paths[tag]), task, tag, cue=cue)
            for tag in tags
        }
    return _task_items(task, items, "packaged" if files is None else "files")


def stream_task(
    task: Task | str, languages: Sequence[str], *, cue: bool = True, limit: int | None = None
) -> TaskItems:
    """Read a task's items from the hub.

    Args:
        task: The task, or its name.
        languages: Which languages, under any of their names.
        cue: As for `read_task`.
        limit: Read no more items than this in each language: the first ones.

    Returns:
        The items, in the data set's order; rows without an ``id`` are numbered.

    Raises:
        CorpusError: The data set cannot be streamed, or a row is malformed.
        LanguageError: A language is unknown, given twice, not in the data set, or there is no
            prompt in it.
        OptionError: There is no such task, or `limit` is less than one.
    """
    task, tags = _task_of(task), _tags(languages)
    _check_limit(limit)
    _check_prompts(task, tags)
    missing = [tag for tag in tags if tag not in task.configs]
    if missing:
        raise LanguageError(
            f"{task.dataset} is not given in {', '.join(missing)}; known here: "
            f"{', '.join(task.configs)}"
        )
    items = {}
    for tag in tags:
        where = f"{task.dataset} ({task.configs[tag]}), split {task.split}"
        items[tag] = _items(_hub_rows(task, tag, where, limit), where, task, tag, cue=cue)
    revision = f", revision {task.revision}" if task.revision else ""
    return _task_items(task, items, f"hub: {task.dataset}, split {task.split}{revision}")


class _Prompt(NamedTuple):
    """How a task is asked in one language."""

    template: str
    cue: str
    asks: str = ""  # the word before the question
    stops: Sequence[str] = ()
    options: tuple[str, ...] = ()


class _Read(NamedTuple):
    """What a row says: the prompt's fields, and the item's references and options."""

    fields: dict[str, str]
    references: Sequence[str]
    options: Sequence[str] = ()


def _task_of(task: Task | str) -> Task:
    if isinstance(task, str):
        return find_task(task)
    if task.name not in TASKS:
        raise OptionError(
            f"A task must have the name whose rows and prompts it has, got {task.name!r}"
            f"{near_misses(task.name, TASKS)}"
        )
    return task


def _tags(languages: Sequence[str]) -> tuple[str, ...]:
    if isinstance(languages, str):
        raise OptionError("languages is a list: give ['en', 'fr']")
    return distinct_languages(language_tag(name) for name in languages)


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}")


def _check_prompts(task: Task, tags: Sequence[str]) -> None:
    known = _prompts(task.name)
    missing = [tag for tag in tags if tag not in known]
    if missing:
        raise LanguageError(
            f"There is no prompt of {task.name} in {', '.join(missing)}; known here: "
            f"{', '.join(known)}"
        )


@lru_cache
def _prompts(name: str) -> Mapping[str, _Prompt]:
    """A task's prompts by language."""
    if name == XNLI.name:
        native = inference_template("native")
        shapes = cast("Mapping[str, str]", native.prompt)
        options = cast("Mapping[str, tuple[str, ...]]", native.options)
        found = {}
        for lang, shape in shapes.items():
            template, _, cue = shape.rpartition("\n")
            found[lang] = _Prompt(template, f"\n{cue}", options=options[lang])
        return found
    path = resources("lens_lang").joinpath("data", "task_prompts.json")
    known = json.loads(path.read_text(encoding="utf-8"))[name]
    return {lang: _Prompt(**each) for lang, each in known.items()}


def _task_items(task: Task, items: Mapping[str, tuple[Item, ...]], source: str) -> TaskItems:
    prompts = _prompts(task.name)
    stops = {lang: tuple(dict.fromkeys([*task.stop, *prompts[lang].stops])) for lang in items}
    return TaskItems(task, items, source, stops)


def _hub_rows(task: Task, tag: str, where: str, limit: int | None) -> list[Any]:
    import datasets

    config, split = task.configs[tag], task.split
    # configurations of the conversion are folders, which no name chooses; a small split is one file
    at = quote(task.revision or "refs/convert/parquet", safe="")
    converted = {split: f"hf://datasets/{task.dataset}@{at}/{config}/{split}/0000.parquet"}
    revision = {"revision": task.revision} if task.revision else {}
    try:
        if task.exported:
            rows = datasets.load_dataset(
                "parquet", data_files=converted, split=split, streaming=True
            )
        else:
            rows = datasets.load_dataset(
                task.dataset, config, split=split, streaming=True, **revision
            )
        return list(islice(rows, limit))
    # The hub's client, its data readers and the network raise classes without a common base.
    except Exception as error:
        raise CorpusError(f"Could not stream {where} from the hub: {error}") from error


def _packaged_files(task: Task) -> dict[str, Path]:
    """The packaged file of each language; inferences are one file for all."""
    folder = Path(str(resources("lens_lang").joinpath("data")))
    if task.name == XNLI.name:
        return dict.fromkeys(_prompts(task.name), folder / "entailment.jsonl")
    return {lang: folder / "tasks" / task.name / f"{lang}.jsonl" for lang in PACKAGED_LANGUAGES}


def _packaged_inferences(
    tags: Sequence[str], cue: bool, limit: int | None
) -> dict[str, tuple[Item, ...]]:
    asked = read_entailment(instruction="native")[:limit]
    prompts = _prompts(XNLI.name)
    return {
        tag: tuple(
            Item(
                each.name,
                each.prompts[tag] if cue else each.prompts[tag].removesuffix(prompts[tag].cue),
                (each.answers[tag],),
                each.options[tag],
            )
            for each in asked
        )
        for tag in tags
    }


def _items(rows: Iterable[Any], where: str, task: Task, tag: str, *, cue: bool) -> tuple[Item, ...]:
    """The items of one language, in the order of its rows."""
    prompt, read = _prompts(task.name)[tag], _READERS[task.name]
    shape = prompt.template + prompt.cue * cue
    found: dict[str, Item] = {}
    for number, row in enumerate(rows, 1):
        place = f"Row {number} of {where}"
        if not isinstance(row, Mapping):
            raise CorpusError(f"{place} is {type(row).__name__}, not an object")
        name = word_of(row, "id", place) or str(number - 1)
        if name in found:
            raise CorpusError(f"Two rows of {where} are called {name!r}")
        fields, references, options = read(row, prompt, place)
        # braces in the values are text, as format() reads only the template's
        text = shape.format(**fields)
        found[name] = Item(name, text, tuple(dict.fromkeys(references)), tuple(options))
    if not found:
        raise CorpusError(f"{where} holds no row")
    return tuple(found.values())


def _xquad(row: Mapping[str, Any], prompt: _Prompt, place: str) -> _Read:
    answers = _listed(value_of(row, "answers", place), "text", f"{place}: 'answers'")
    if not answers:
        raise CorpusError(f"{place} has no answer in 'answers'")
    return _Read(
        {
            "context": _text(row, "context", place),
            "question": _asked(_text(row, "question", place), prompt),
        },
        [_stripped(text, "answers", place) for text in answers],
    )


def _mgsm(row: Mapping[str, Any], prompt: _Prompt, place: str) -> _Read:
    number = value_of(row, "answer_number", place)
    whole = (
        re.fullmatch(r"[+-]?\d{1,99}", number.strip(), re.ASCII) is not None
        if isinstance(number, str)
        # tables with a gap anywhere have floats everywhere
        else isinstance(number, int | float) and not isinstance(number, bool) and number % 1 == 0
    )
    if not whole:
        raise CorpusError(f"{place}: 'answer_number' must be a whole number, got {number!r}")
    return _Read({"question": _asked(_text(row, "question", place), prompt)}, [str(int(number))])


def _xcsqa(row: Mapping[str, Any], prompt: _Prompt, place: str) -> _Read:
    asked = value_of(row, "question", place)
    if not isinstance(asked, Mapping):
        raise CorpusError(
            f"{place} has {type(asked).__name__} in column 'question', where an object with "
            "'stem' and 'choices' is expected"
        )
    answer = word_of(row, "answerKey", place)
    if answer is None:
        raise CorpusError(
            f"{place} has no 'answerKey', as in the test split, whose answers are not published: "
            "use the validation split"
        )
    choices = value_of(asked, "choices", place)
    labels, texts = (
        [_stripped(each, key, place) for each in _listed(choices, key, f"{place}: 'choices'")]
        for key in ("label", "text")
    )
    if len(labels) != len(texts) or len(set(labels)) < len(labels):
        raise CorpusError(f"{place}: 'choices' must have one label, its own, for each text")
    by_label = dict(zip(labels, texts, strict=True))
    if answer not in by_label:
        raise CorpusError(
            f"{place}: 'answerKey' is {answer!r}, none of the labels {', '.join(by_label)}"
        )
    # Translation made some choices of X-CSQA one: whoever says either says both.
    options = tuple(dict.fromkeys(texts))
    if len(options) < 2:
        raise CorpusError(f"{place}: 'choices' must have at least two different texts")
    question = _asked(_text(asked, "stem", place), prompt)
    return _Read({"question": question}, [by_label[answer]], options)


def _xlsum(row: Mapping[str, Any], _prompt: _Prompt, place: str) -> _Read:
    return _Read(
        {name: _text(row, name, place) for name in ("title", "text")},
        [_text(row, "summary", place)],
    )


def _xnli(row: Mapping[str, Any], prompt: _Prompt, place: str) -> _Read:
    label = value_of(row, "label", place)
    count = len(prompt.options)
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < count:
        raise CorpusError(
            f"{place}: 'label' must be 0 (entailment), 1 (neutral) or 2 (contradiction), got "
            f"{label!r}"
        )
    return _Read(
        {name: _text(row, name, place) for name in ("premise", "hypothesis")},
        [prompt.options[label]],
        prompt.options,
    )


_READERS: Mapping[str, Callable[[Mapping[str, Any], _Prompt, str], _Read]] = {
    "xquad": _xquad,
    "mgsm": _mgsm,
    "xcsqa": _xcsqa,
    "xlsum": _xlsum,
    "xnli": _xnli,
}


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    return _stripped(value_of(row, column, place), column, place)


def _stripped(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(f"{place}: {column!r} must be text, and not blank")
    return text_of(value, column, place).strip()


def _listed(value: Any, key: str, place: str) -> list[Any]:
    """What is under a key: of an object of lists, or of a list of objects, its older form."""
    if isinstance(value, list | tuple) and all(isinstance(each, Mapping) for each in value):
        return [value_of(each, key, place) for each in value]
    listed = value_of(value, key, place) if isinstance(value, Mapping) else None
    if not isinstance(listed, list | tuple):
        raise CorpusError(f"{place} must be an object with a list of {key!r}")
    return list(listed)


def _asked(question: str, prompt: _Prompt) -> str:
    """The question without the word that the prompt says before it, which some mirrors have."""
    word = re.escape(prompt.asks.rstrip(" :："))
    return re.sub(rf"\A{word}\s*[:：]\s*(?=\S)", "", question)
