"""Tasks: their prompts, their rows from files and from the hub, and the packaged sets."""

import gzip
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

import lens_lang
from lens_lang.errors import CorpusError, LanguageError, OptionError
from lens_lang.items import Template, inference_template
from lens_lang.languages import language_tag
from lens_lang.tables import rows_of
from lens_lang.task_reading import PACKAGED_LANGUAGES, read_task, stream_task
from lens_lang.tasks import (
    MGSM,
    TASKS,
    XCSQA,
    XLSUM,
    XNLI,
    XQUAD,
    Item,
    Task,
    TaskItems,
    find_task,
)

NINE = ("de", "en", "es", "fr", "id", "ja", "ru", "vi", "zh")
DATA = Path(lens_lang.__file__).parent / "data"
PROMPTS = json.loads((DATA / "task_prompts.json").read_text(encoding="utf-8"))

# One row of each data set, with all the columns that the hub has.
ROWS: dict[str, dict[str, Any]] = {
    "xquad": {
        "id": "match-07",
        "context": " The {Herons} won 24–10. ",
        "question": "Who won? ",
        "answers": {"text": ["Herons", " The {Herons}", "Herons"], "answer_start": [5, 0, 5]},
    },
    "mgsm": {
        "question": "Two {hens} lay 3 eggs each. How many eggs?",
        "answer": None,
        "answer_number": 6,
        "equation_solution": None,
    },
    "xcsqa": {
        "id": "fish-03",
        "lang": "en",
        "question": {
            "stem": "Where do {fish} live?",
            "choices": {
                "label": ["A", "B", "C", "D", "E"],
                "text": ["a tree", " water ", "bread", "the moon", "a sock"],
            },
        },
        "answerKey": "B",
    },
    "xlsum": {
        "id": "world-1",
        "url": "https://www.bbc.com/news/world-1",
        "title": "A {bridge}",
        "summary": "A bridge was built.",
        "text": "They built a bridge.\nIt stands.",
    },
    "xnli": {"premise": "It {rains}.", "hypothesis": "It is dry.", "label": 2},
}
# The same as items: prompt with its cue, references, options.
ITEMS = {
    "xquad": ("The {Herons} won 24–10. Question: Who won?\nAnswer:", ("Herons", "The {Herons}")),
    "mgsm": (
        "Let's think step by step. Question: Two {hens} lay 3 eggs each. How many eggs?\nAnswer:",
        ("6",),
    ),
    "xcsqa": (
        "Question: Where do {fish} live?\nAnswer:",
        ("water",),
        ("a tree", "water", "bread", "the moon", "a sock"),
    ),
    "xlsum": (
        "Summarize the context in one sentence. Title: A {bridge} Context: They built a bridge.\n"
        "It stands.\nSummary:",
        ("A bridge was built.",),
    ),
    "xnli": (
        "Here is what we know: It {rains}.\nIs the following also true? It is dry.\n"
        "Choose Yes, Maybe or No.\nAnswer:",
        ("No",),
        ("Yes", "Maybe", "No"),
    ),
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def the_item(name: str) -> Item:
    return Item(ROWS[name].get("id", "0"), *ITEMS[name])


def changed(name: str, **columns: Any) -> dict[str, Any]:
    return {**ROWS[name], **columns}


def without(name: str, column: str) -> dict[str, Any]:
    return {key: value for key, value in ROWS[name].items() if key != column}


# --- the tasks ---


def test_tasks_are_found_by_name() -> None:
    assert list(TASKS) == ["xquad", "mgsm", "xcsqa", "xlsum", "xnli"]
    for name, task in TASKS.items():
        assert (find_task(name), task.name) == (task, name)
        assert {task: 1}[task] == 1, "a task can be a key"
    assert find_task("XQuAD") is XQUAD
    assert find_task("X-CSQA") is XCSQA
    with pytest.raises(OptionError, match="There is no task 'xsquad'; did you mean 'xquad'"):
        find_task("xsquad")
    with pytest.raises(OptionError, match="known here: xquad, mgsm, xcsqa, xlsum, xnli"):
        find_task("?")


def test_configurations_are_by_tag() -> None:
    for task in TASKS.values():
        assert [language_tag(lang) for lang in task.configs] == list(task.configs)
        assert len(set(task.configs.values())) == len(task.configs)
        assert len(set(NINE) & set(task.configs)) >= 6
    assert "fr" not in XQUAD.configs
    assert "de" not in XLSUM.configs


def test_only_tasks_that_generate_have_an_end() -> None:
    for task in TASKS.values():
        generates = task.metric != "choice"
        assert bool(task.new_tokens) == bool(task.stop) == generates


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a "}, "prompt of 'x' must end in a word"),
        ({"prompt": ""}, "prompt of 'x' must end in a word"),
        ({"references": ()}, "'x' must have references, none of them blank"),
        ({"references": ("a", " ")}, "'x' must have references, none of them blank"),
        ({"options": ("a", " ")}, "'x' must have options, none of them blank"),
        ({"options": ("a",)}, "at least two options, all different"),
        ({"options": ("a", "b", "b ")}, "at least two options, all different"),
        ({"options": ("b", "c")}, "offers b, c, and its answer 'a' is none of them"),
    ],
)
def test_an_item_that_asks_nothing_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        Item(**{"name": "x", "prompt": "p", "references": ("a",), **fields})


def test_texts_of_an_item_are_stripped() -> None:
    assert Item("x", " p", (" a",), ("a ", "b")) == Item("x", " p", ("a",), ("a", "b"))


# --- prompts ---


def test_there_are_prompts_in_nine_languages() -> None:
    assert set(PROMPTS) == set(TASKS) - {"xnli"}
    for prompts in PROMPTS.values():
        assert tuple(sorted(prompts)) == NINE


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("lang", NINE)
def test_a_prompt_has_its_columns_its_cue_and_its_ends(name: str, lang: str) -> None:
    prompt = PROMPTS[name][lang]
    columns = {"xquad": {"context", "question"}, "xlsum": {"title", "text"}}
    assert set(Template(prompt["template"]).columns) == columns.get(name, {"question"})
    assert prompt["cue"].startswith("\n")
    assert prompt["cue"].endswith("：" if lang in ("ja", "zh") else ":")
    assert prompt["cue"].strip() == prompt["cue"][1:]
    if name == "xlsum":
        assert "asks" not in prompt
    else:
        before, _, after = prompt["template"].partition("{question}")
        assert (before.rstrip().endswith(prompt["asks"]), after) == (True, "")
    if name == "mgsm":
        assert f"\n{prompt['asks']}" in prompt["stops"]
        assert f"\n{before.rstrip()}" in prompt["stops"]
        assert all(stop.startswith("\n") for stop in prompt["stops"])
    if lang != "en":
        assert prompt["template"] != PROMPTS[name]["en"]["template"]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("lang", NINE)
@pytest.mark.parametrize("cue", [True, False])
def test_items_are_asked_in_every_language(name: str, lang: str, cue: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS[name])
    read = read_task(name, {lang: path}, cue=cue)
    (item,) = read.items[lang]
    values = {
        "xquad": ["The {Herons} won 24–10.", "Who won?"],
        "mgsm": [ROWS["mgsm"]["question"]],
        "xcsqa": ["Where do {fish} live?"],
        "xlsum": ["A {bridge}", "They built a bridge.\nIt stands."],
        "xnli": ["It {rains}.", "It is dry."],
    }[name]
    places = [item.prompt.index(value) for value in values]
    assert places == sorted(places)
    assert item.prompt[-1] in ":：" if cue else item.prompt[-1] not in ":：\n "
    if lang == "en":
        assert item == the_item(name) if cue else item.prompt == ITEMS[name][0].rpartition("\n")[0]


def test_without_a_cue_prompts_are_those_of_the_paper(tmp_path: Path) -> None:
    for name, prompt in {
        "mgsm": "Let's think step by step. Question: {question}",
        "xquad": "{context} Question: {question}",
        "xlsum": "Summarize the context in one sentence. Title: {title} Context: {text}",
        "xcsqa": "Question: {question}",
    }.items():
        assert PROMPTS[name]["en"]["template"] == prompt
        row = ROWS[name] if name != "xcsqa" else ROWS[name]["question"] | {"question": "?"}
        texts = {key: value.strip() for key, value in row.items() if isinstance(value, str)}
        texts["question"] = texts.get("stem", texts.get("question", ""))
        read = read_task(name, {"en": write(tmp_path / f"{name}.jsonl", ROWS[name])}, cue=False)
        assert read.items["en"][0].prompt == prompt.format(**texts)


@pytest.mark.parametrize(
    ("name", "lang", "question", "kept"),
    [
        ("mgsm", "en", "Question: How many?", "How many?"),
        ("mgsm", "fr", "Question : Combien ?", "Combien ?"),
        ("mgsm", "fr", "Question: Combien ?", "Combien ?"),
        ("mgsm", "zh", "问题:多少？", "多少？"),
        ("mgsm", "ja", "問題： いくつ？", "いくつ？"),
        ("mgsm", "ru", "Задача: Сколько?", "Сколько?"),
        ("mgsm", "vi", "Câu hỏi: Bao nhiêu?", "Bao nhiêu?"),
        ("xquad", "de", "Frage: Wer?", "Wer?"),
        ("mgsm", "en", "Question one: How many?", "Question one: How many?"),
        ("mgsm", "en", "A Question: How many?", "A Question: How many?"),
        ("mgsm", "de", "Question: Wie viele?", "Question: Wie viele?"),
        ("mgsm", "en", "Question:", "Question:"),
    ],
)  # fmt: skip
def test_a_question_is_not_announced_twice(
    name: str, lang: str, question: str, kept: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.jsonl", changed(name, question=question))
    (item,) = read_task(name, {lang: path}, cue=False).items[lang]
    shape = PROMPTS[name][lang]["template"]
    assert item.prompt == shape.format(question=kept, context="The {Herons} won 24–10.")


def test_an_answer_ends_where_its_language_asks_anew() -> None:
    sums = read_task("mgsm")
    assert set(sums.stops) == set(sums.languages)
    assert sums.stops["en"] == MGSM.stop
    for lang in sums.languages:
        assert set(sums.stops[lang]) == {*MGSM.stop, *PROMPTS["mgsm"][lang]["stops"]}
        assert len(set(sums.stops[lang])) == len(sums.stops[lang])
    assert "\nFrage:" in sums.stops["de"]
    assert dict(read_task("xlsum", languages=["en", "zh"]).stops) == {"en": ("\n",), "zh": ("\n",)}
    assert dict(read_task("xnli", languages=["en"]).stops) == {"en": ()}


# --- files ---


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_every_kind_of_file_says_the_same(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{kind}"
    if kind == ".parquet":
        datasets.Dataset.from_list([ROWS[name]]).to_parquet(path)
    elif kind == ".json":
        path.write_text(json.dumps([ROWS[name]]))
    else:
        raw = json.dumps(ROWS[name]).encode() + b"\n"
        path.write_bytes(gzip.compress(raw) if kind.endswith("gz") else raw)
    read = read_task(name, {"English": str(path)})
    assert dict(read.items) == {"en": (the_item(name),)}
    assert (read.task, read.source, read.languages) == (TASKS[name], "files", ("en",))


def test_lists_of_objects_are_an_older_form(tmp_path: Path) -> None:
    choices = ROWS["xcsqa"]["question"]["choices"]
    older = [
        {"label": label, "text": text}
        for label, text in zip(choices["label"], choices["text"], strict=True)
    ]
    row = changed("xcsqa", question={**ROWS["xcsqa"]["question"], "choices": older})
    read = read_task(XCSQA, {"en": write(tmp_path / "x.jsonl", row)})
    assert read.items["en"] == (the_item("xcsqa"),)
    row = changed("xquad", answers=[{"text": x} for x in ROWS["xquad"]["answers"]["text"]])
    read = read_task(XQUAD, {"en": write(tmp_path / "y.jsonl", row)})
    assert read.items["en"] == (the_item("xquad"),)


def test_choices_that_translation_made_one_are_one(tmp_path: Path) -> None:
    row = choosing(["arbre", "eau", "pain", "eau", "lune"], key="D")
    (item,) = read_task(XCSQA, {"fr": write(tmp_path / "x.jsonl", row)}).items["fr"]
    assert (item.references, item.options) == (("eau",), ("arbre", "eau", "pain", "lune"))


@pytest.mark.parametrize("number", [18, 18.0, "18", " 18 ", "+018"])
def test_whole_numbers_are_numbers_however_written(number: Any, tmp_path: Path) -> None:
    row = changed("mgsm", answer_number=number)
    (item,) = read_task(MGSM, {"en": write(tmp_path / "x.jsonl", row)}).items["en"]
    assert item.references == ("18",)


def test_a_gap_in_a_table_makes_floats_of_numbers(tmp_path: Path) -> None:
    pd.DataFrame([ROWS["mgsm"], changed("mgsm", answer_number=None)]).to_parquet(
        tmp_path / "x.parquet"
    )
    (item,) = read_task(MGSM, {"en": tmp_path / "x.parquet"}, limit=1).items["en"]
    assert item.references == ("6",)
    with pytest.raises(CorpusError, match="Row 2 .* must be a whole number, got None"):
        read_task(MGSM, {"en": tmp_path / "x.parquet"})


def choosing(texts: Any, *, labels: Any = "ABCDE", key: Any = "B") -> dict[str, Any]:
    choices = {"label": list(labels), "text": texts}
    return {"question": {"stem": "Where?", "choices": choices}, "answerKey": key}


FIVE = ["a", "b", "c", "d", "e"]
BAD: list[tuple[str, list[Any], str]] = [
    ("xquad", [], "x.jsonl holds no row"),
    ("xquad", [ROWS["xquad"], [1]], "Row 2 of .* is list, not an object"),
    ("xquad", [ROWS["xquad"]] * 2, "Two rows of .* are called 'match-07'"),
    ("xquad", [changed("xquad", id=1), changed("xquad", id="1")], "Two rows of .* called '1'"),
    ("xquad", [changed("xquad", id={})], "dict in column 'id', where text"),
    ("xquad", [changed("xquad", id="\ud800")], "'id' has half a surrogate pair"),
    ("xquad", [without("xquad", "context")], "no column 'context'; did you mean 'contexts'"),
    ("xquad", [without("xquad", "question")], "no column 'question'"),
    ("xquad", [without("xquad", "answers")], "no column 'answers'"),
    ("xquad", [changed("xquad", context=" \n")], "'context' must be text, and not blank"),
    ("xquad", [changed("xquad", context=None)], "'context' must be text"),
    ("xquad", [changed("xquad", context="\udc00")], "'context' has half a surrogate pair"),
    ("xquad", [changed("xquad", question={"en": "Who?"})], "'question' must be text"),
    ("xquad", [changed("xquad", answers={"text": []})], "has no answer in 'answers'"),
    ("xquad", [changed("xquad", answers=[])], "has no answer in 'answers'"),
    ("xquad", [changed("xquad", answers={"text": [""]})], "'answers' must be text"),
    ("xquad", [changed("xquad", answers={"text": [5]})], "'answers' must be text"),
    ("xquad", [changed("xquad", answers={"text": ["\ud8ff"]})], "half a surrogate pair"),
    ("xquad", [changed("xquad", answers={"text": "x"})], "'answers' must be an object with a list"),
    ("xquad", [changed("xquad", answers="x")], "'answers' must be an object with a list"),
    ("xquad", [changed("xquad", answers=["x"])], "'answers' must be an object with a list"),
    ("xquad", [changed("xquad", answers=None)], "'answers' must be an object with a list"),
    ("xquad", [changed("xquad", answers={"texts": []})], "'answers' has no column 'text'; did you"),
    ("xquad", [changed("xquad", answers=[{"txt": 1}])], "'answers' has no column 'text'; did you"),
    ("mgsm", [without("mgsm", "question")], "no column 'question'"),
    ("mgsm", [without("mgsm", "answer_number")], "no column 'answer_number'"),
    ("mgsm", [changed("mgsm", question=7)], "'question' must be text"),
    *[
        ("mgsm", [changed("mgsm", answer_number=number)], "'answer_number' must be a whole number")
        for number in (
            True, None, math.nan, math.inf, 6.5, "", "6.5", "1,000", "six", "٦", "6" * 100, [6], {},
        )
    ],
    ("xcsqa", [without("xcsqa", "question")], "no column 'question'"),
    ("xcsqa", [changed("xcsqa", question="Where?")], "str in column 'question', where an object"),
    ("xcsqa", [without("xcsqa", "answerKey")], "'answerKey', as in the test split, whose answers"),
    ("xcsqa", [choosing(FIVE, key="")], "use the validation split"),
    ("xcsqa", [choosing(FIVE, key=None)], "use the validation split"),
    ("xcsqa", [choosing(FIVE, key="F")], "'answerKey' is 'F', none of the labels A, B, C, D, E"),
    ("xcsqa", [choosing(FIVE, key=["A"])], "list in column 'answerKey'"),
    ("xcsqa", [choosing(FIVE[:4])], "one label, its own, for each text"),
    ("xcsqa", [choosing(FIVE, labels="AABCD")], "one label, its own, for each text"),
    ("xcsqa", [choosing(FIVE, labels=[1, 2, 3, 4, 5])], "'label' must be text"),
    ("xcsqa", [choosing([*FIVE[:4], " "])], "'text' must be text, and not blank"),
    ("xcsqa", [choosing([*FIVE[:4], None])], "'text' must be text, and not blank"),
    ("xcsqa", [choosing([*FIVE[:4], "\ud800"])], "'text' has half a surrogate pair"),
    ("xcsqa", [choosing(["b"] * 5)], "at least two different texts"),
    ("xcsqa", [choosing([], labels="")], "'answerKey' is 'B', none of the labels"),
    ("xcsqa", [choosing("abcde")], "'choices' must be an object with a list of 'text'"),
    ("xcsqa", [changed("xcsqa", question={"stem": "?"})], "no column 'choices'"),
    (
        "xcsqa",
        [changed("xcsqa", question={"choices": {"label": ["A", "B"], "text": ["a", "b"]}})],
        "no column 'stem'",
    ),
    *[
        ("xlsum", [row], message)
        for column in ("title", "text", "summary")
        for row, message in (
            (without("xlsum", column), f"no column '{column}'"),
            (changed("xlsum", **{column: " "}), f"'{column}' must be text, and not blank"),
            (changed("xlsum", **{column: ["x"]}), f"'{column}' must be text"),
        )
    ],
    ("xnli", [without("xnli", "premise")], "no column 'premise'"),
    ("xnli", [without("xnli", "label")], "no column 'label'"),
    ("xnli", [changed("xnli", hypothesis={"en": "x"})], "'hypothesis' must be text"),
    *[
        ("xnli", [changed("xnli", label=label)], r"'label' must be 0 \(entailment\), 1")
        for label in (-1, 3, True, None, "0", 1.0)
    ],
]  # fmt: skip


@pytest.mark.parametrize(("name", "rows", "message"), BAD)
def test_a_bad_row_is_named(name: str, rows: list[Any], message: str, tmp_path: Path) -> None:
    if "did you mean 'contexts'" in message:
        rows = [{**row, "contexts": ""} for row in rows]
    path = write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(CorpusError, match=message) as caught:
        read_task(name, {"en": path})
    assert str(path) in str(caught.value)
    assert ("Row " in str(caught.value)) == (len(rows) == 1 or "Row " in message)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="There is no file .*nowhere.jsonl"):
        read_task("xquad", {"en": tmp_path / "nowhere.jsonl"})
    (tmp_path / "x.csv").write_text("id,context\n")
    with pytest.raises(CorpusError, match="x.csv: its name must end in"):
        read_task("xquad", {"en": tmp_path / "x.csv"})


def test_languages_have_any_of_their_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROWS["xnli"])
    files = {"eng_Latn": path, "German": path, "zh-Hans": path}
    assert read_task("xnli", files).languages == ("en", "de", "zh")
    assert read_task("xnli", files, languages=["Chinese", "eng_Latn"]).languages == ("zh", "en")


@pytest.mark.parametrize(
    ("files", "languages", "message"),
    [
        (["en", "English"], None, "A file is given twice in 'en'"),
        (["xx-nowhere"], None, "A file: No language is called 'xx-nowhere'"),
        ([], None, "No language was given"),
        (["en"], [], "No language was given"),
        (["en"], ["en", "English"], "given twice: en"),
        (["en"], ["fr"], "There is no file in fr; known here: en"),
        (["en", "sw", "th"], None, "There is no prompt of mgsm in sw, th; known here: en, de, es"),
        (None, ["ja"], "no packaged set of mgsm in ja; known here: en, de, es, fr, ru, zh"),
        (None, ["French", "xx-nowhere"], "No language is called 'xx-nowhere'"),
    ],
)
def test_a_bad_language_is_named(
    files: list[str] | None, languages: list[str] | None, message: str
) -> None:
    given = None if files is None else dict.fromkeys(files, "never read")
    with pytest.raises(LanguageError, match=message):
        read_task("mgsm", given, languages=languages)


def test_options_that_cannot_work_are_refused() -> None:
    for read in (read_task, stream_task):
        with pytest.raises(OptionError, match="limit must be at least 1, got 0"):
            read("mgsm", languages=["en"], limit=0)  # type: ignore[operator]
        with pytest.raises(OptionError, match="languages is a list"):
            read("mgsm", languages="en")  # type: ignore[operator]
        with pytest.raises(OptionError, match="There is no task 'xqad'; did you mean"):
            read("xqad", languages=["en"])  # type: ignore[operator]
        with pytest.raises(OptionError, match="rows and prompts it has, got 'mine'; known here"):
            read(replace(MGSM, name="mine"), languages=["en"])  # type: ignore[operator]


# --- items in several languages ---


def items_of(**names: str) -> TaskItems:
    items = {
        lang: tuple(Item(name, f"{lang} {name}", (name,)) for name in some)
        for lang, some in names.items()
    }
    return TaskItems(MGSM, items, "files")


def test_items_are_aligned_if_their_names_are() -> None:
    assert items_of(en="abc", fr="abc").aligned
    assert items_of(en="abc").aligned
    assert not items_of(en="abc", fr="abd").aligned
    assert not items_of(en="abc", fr="acb").aligned
    assert not items_of(en="abc", fr="ab").aligned


def test_a_limit_keeps_items_aligned_and_chooses_evenly() -> None:
    found = items_of(en="abcdefghij", fr="abcdefghij", de="abc")
    for count in range(1, 12):
        some = found.limit(count)
        counts = {lang: len(each) for lang, each in some.items.items()}
        assert counts == {"en": min(count, 10), "fr": min(count, 10), "de": min(count, 3)}
        english = [item.name for item in some.items["en"]]
        assert english == [item.name for item in some.items["fr"]]
        assert english == sorted(set(english))
        steps = [ord(b) - ord(a) for a, b in pairwise([*english, "k"])]
        assert max(steps) - min(steps) <= 1, "evenly"
        assert (some.task, some.source, some.stops) == (found.task, found.source, found.stops)
    assert [item.name for item in found.limit(3).items["en"]] == ["a", "d", "g"]
    assert found.limit(99) == found
    with pytest.raises(OptionError, match="limit must be at least 1, got 0"):
        found.limit(0)


def test_a_digest_knows_everything_that_is_asked() -> None:
    item = Item("a", "p", ("1", "2"), ("1", "3"))
    digests = [
        TaskItems(XCSQA, items, "files").digest
        for items in (
            {"en": (item,)},
            {"fr": (item,)},
            {"en": (item,), "fr": (item,)},
            {"fr": (item,), "en": (item,)},
            {"en": (item, replace(item, name="b"))},
            {"en": (replace(item, name="b"),)},
            {"en": (replace(item, prompt="q"),)},
            {"en": (replace(item, references=("1",)),)},
            {"en": (replace(item, options=("3", "1")),)},
            {"en": (replace(item, options=()),)},
        )
    ]
    assert len(set(digests)) == len(digests)
    found = TaskItems(XCSQA, {"English": (item,)}, "files").describe()
    assert found == {
        "task": "xcsqa",
        "source": "files",
        "counts": {"en": 1},
        "digest": "c70f4fd30972dd74e25ee67c1a44b504",
    }
    assert json.loads(json.dumps(found)) == found


def test_items_are_frozen_and_never_empty() -> None:
    found = items_of(en="ab", fr="ab")
    assert repr(found) == "TaskItems(mgsm, files: en 2, fr 2)"
    assert found.stops["fr"] == MGSM.stop
    own = TaskItems(MGSM, found.items, "files", {"French": ("\nQuestion :",)})
    assert dict(own.stops) == {"en": MGSM.stop, "fr": ("\nQuestion :",)}
    with pytest.raises(TypeError):
        found.items["de"] = ()  # type: ignore[index]
    with pytest.raises(TypeError):
        MGSM.configs["xx"] = ""  # type: ignore[index]
    with pytest.raises(LanguageError, match="mgsm has items in no language"):
        TaskItems(MGSM, {}, "files")
    with pytest.raises(LanguageError, match="A list of items is given twice in 'en'"):
        TaskItems(MGSM, {"en": found.items["en"], "English": found.items["en"]}, "files")
    with pytest.raises(CorpusError, match="mgsm has no item in 'fr'"):
        items_of(en="a", fr="")
    with pytest.raises(CorpusError, match="2 items of mgsm in 'en' are 'a'"):
        items_of(en="aba")


# --- the hub ---


class Hub:
    """Stands for `datasets.load_dataset`: notes what it is asked, and has a row of each schema."""

    def __init__(self, *rows: Mapping[str, Any]) -> None:
        self.rows = [dict(row) for row in rows]
        self.asked: list[Any] = []

    def __call__(self, *names: str, **options: Any) -> datasets.IterableDataset:
        self.asked.append((*names, options))
        return datasets.Dataset.from_list(self.rows).to_iterable_dataset()


def converted(config: str) -> str:
    return (
        "hf://datasets/csebuetnlp/xlsum@refs%2Fconvert%2Fparquet/" + config + "/test/0000.parquet"
    )


@pytest.mark.parametrize(
    ("task", "lang", "asked"),
    [
        (XQUAD, "zh", ("google/xquad", "xquad.zh", {"split": "validation"})),
        (MGSM, "ja", ("jbross-ibm-research/mgsm", "ja", {"split": "test"})),
        (XCSQA, "ja", ("INK-USC/xcsr", "X-CSQA-jap", {"split": "validation"})),
        (XCSQA, "fr", ("INK-USC/xcsr", "X-CSQA-fr", {"split": "validation"})),
        (XNLI, "ru", ("facebook/xnli", "ru", {"split": "test"})),
        # its script is refused, so the hub's own conversion is read
        *[
            (
                XLSUM,
                lang,
                ("parquet", {"data_files": {"test": converted(config)}, "split": "test"}),
            )
            for lang, config in (("zh", "chinese_simplified"), ("en", "english"))
        ],
    ],
)
def test_the_hub_is_asked_for_one_configuration_a_language(
    task: Task, lang: str, asked: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = ROWS[task.name]
    numbered = "id" not in row
    hub = Hub(row, *[row if numbered else {**row, "id": name} for name in ("1", "2")])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = stream_task(task, [lang], limit=2)
    assert hub.asked == [(*asked[:-1], {**asked[-1], "streaming": True})]
    assert [item.name for item in found.items[lang]] == [row.get("id", "0"), "1"]
    if lang == "en":
        assert found.items["en"][0] == the_item(task.name)
    assert found.source == f"hub: {task.dataset}, split {task.split}"
    assert found.stops == read_task(task, {lang: write(tmp_path / "x.jsonl", row)}).stops


def test_a_revision_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(ROWS["xquad"])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = stream_task(replace(XQUAD, revision="abc"), ["en"])
    assert hub.asked[0][-1] == {"split": "validation", "streaming": True, "revision": "abc"}
    assert found.source == "hub: google/xquad, split validation, revision abc"
    hub = Hub(ROWS["xlsum"])
    monkeypatch.setattr(datasets, "load_dataset", hub)
    stream_task(replace(XLSUM, revision="refs/pr/1"), ["en"])
    file = converted("english").replace("refs%2Fconvert%2Fparquet", "refs%2Fpr%2F1")
    assert hub.asked[0][-1]["data_files"] == {"test": file}


def test_several_languages_of_the_hub_are_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(*[ROWS["mgsm"]] * 3)
    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = stream_task("mgsm", ["English", "fr", "zho_Hans"])
    assert [names[1] for names in hub.asked] == ["en", "fr", "zh"]
    assert found.languages == ("en", "fr", "zh")
    assert found.aligned
    assert [item.name for item in found.items["zh"]] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("task", "languages", "message"),
    [
        (XQUAD, ["en", "fr"], "google/xquad is not given in fr; known here: ar, de, el, en"),
        (XLSUM, ["de"], "csebuetnlp/xlsum is not given in de"),
        (XQUAD, ["th", "hi"], "no prompt of xquad in th, hi; known here: en, de"),
        (XQUAD, ["en", "en"], "given twice: en"),
        (XQUAD, [], "No language was given"),
    ],
)
def test_the_hub_is_not_asked_for_what_cannot_be(
    task: Task, languages: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub()
    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(LanguageError, match=message):
        stream_task(task, languages)
    assert not hub.asked


def test_a_bad_row_of_the_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    where = r"INK-USC/xcsr \(X-CSQA-en\), split test"
    for rows, message in (
        ([ROWS["xcsqa"], changed("xcsqa", id="2", answerKey="")], f"Row 2 of {where} has no 'an"),
        ([ROWS["xcsqa"], "text"], f"Row 2 of {where} is str, not an object"),
        ([], f"{where} holds no row"),
    ):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, rows=rows, **__: rows)
        with pytest.raises(CorpusError, match=message):
            stream_task(replace(XCSQA, split="test"), ["en"])


@pytest.mark.parametrize("task", [XQUAD, XLSUM])
def test_an_unreachable_hub_is_one_sentence(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(CorpusError, match=f"Could not stream {task.dataset} .*: no route"):
        stream_task(task, ["en"])


def test_the_conversion_of_a_data_set_is_read_as_it_is_laid_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call on the same folders, but on a disk."""
    folder = tmp_path / "csebuetnlp" / "xlsum@refs%2Fconvert%2Fparquet" / "english" / "test"
    folder.mkdir(parents=True)
    datasets.Dataset.from_list([ROWS["xlsum"]]).to_parquet(folder / "0000.parquet")
    load = datasets.load_dataset

    def load_dataset(path: str, *, data_files: Mapping[str, str], **options: Any) -> Any:
        local = {
            split: each.replace("hf://datasets", str(tmp_path))
            for split, each in data_files.items()
        }
        return load(path, data_files=local, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert stream_task("xlsum", ["en"]).items["en"] == (the_item("xlsum"),)


# --- the packaged sets ---


@pytest.mark.parametrize("name", ["xquad", "mgsm", "xcsqa", "xlsum"])
def test_packaged_sets_are_aligned_in_six_languages(name: str) -> None:
    found = read_task(name)
    assert found.languages == PACKAGED_LANGUAGES
    assert found.source == "packaged"
    assert found.aligned
    for lang, some in found.items.items():
        assert len(some) >= 20
        assert len({item.prompt for item in some}) == len(some)
        cue = PROMPTS[name][lang]["cue"]
        assert all(item.prompt.endswith(cue) for item in some)
        if lang != "en":  # nothing was left in English
            assert not {item.prompt for item in some} & {item.prompt for item in found.items["en"]}
    assert [len(some) for some in found.limit(7).items.values()] == [7] * 6
    assert found.limit(7).aligned
    assert [len(some) for some in read_task(name, limit=3).items.values()] == [3] * 6


@pytest.mark.parametrize("lang", PACKAGED_LANGUAGES)
def test_packaged_answers_stand_in_their_context(lang: str) -> None:
    for row in rows_of(DATA / "tasks" / "xquad" / f"{lang}.jsonl"):
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        for text, start in zip(texts, starts, strict=True):
            assert row["context"][start : start + len(text)] == text


@pytest.mark.parametrize("lang", PACKAGED_LANGUAGES)
def test_packaged_sums_have_one_answer_in_all_languages(lang: str) -> None:
    answers = [item.references for item in read_task("mgsm").items["en"]]
    items = read_task("mgsm", languages=[lang]).items[lang]
    assert [item.references for item in items] == answers


@pytest.mark.parametrize("lang", PACKAGED_LANGUAGES)
def test_packaged_choices_are_five_in_any_place(lang: str) -> None:
    items = read_task("xcsqa", languages=[lang]).items[lang]
    places = [item.options.index(item.references[0]) for item in items]
    assert all(len(item.options) == 5 for item in items)
    assert max(map(places.count, places)) < len(items) / 2, "no place is the answer's"


def test_packaged_choices_are_in_the_same_places() -> None:
    found = read_task("xcsqa")
    places = {
        tuple(item.options.index(item.references[0]) for item in some)
        for some in found.items.values()
    }
    assert len(places) == 1


@pytest.mark.parametrize("lang", PACKAGED_LANGUAGES)
def test_packaged_summaries_are_shorter_than_what_they_sum_up(lang: str) -> None:
    for item in read_task("xlsum", languages=[lang]).items[lang]:
        assert len(item.references) == 1
        assert "\n" not in item.references[0]
        assert len(item.references[0]) < len(item.prompt) / 2


def test_packaged_inferences_are_those_of_items() -> None:
    native = inference_template("native").options
    assert isinstance(native, Mapping)
    found = read_task(XNLI)
    assert (found.languages, found.source) == (tuple(native), "packaged")
    assert found.aligned
    assert {len(some) for some in found.items.values()} == {48}
    for lang, some in found.items.items():
        assert all(item.options == native[lang] for item in some)
        bare = read_task(XNLI, languages=[lang], cue=False, limit=5).items[lang]
        for item, same in zip(bare, some[:5], strict=True):
            assert same.prompt.rpartition("\n")[0] == item.prompt
            assert (item.name, item.references) == (same.name, same.references)
