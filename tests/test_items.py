"""Items as questions: those that come along, anybody's files, and the hub."""

import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_lang
from lens_lang.errors import CorpusError, LanguageError, OptionError
from lens_lang.items import (
    Template,
    inference_template,
    read_entailment,
    read_facts,
    read_questions,
    stream_questions,
)
from lens_lang.questions import Question, answered
from lens_lang.tables import rows_of

NINE = ("en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh")
ROW = {"prompt": {"en": "One and one is", "fr": "Un et un font"}, "answer": "2"}
XNLI = {
    "premise": {"en": "It {rains}.", "fr": "Il pleut {0}."},
    "hypothesis": {"language": ["fr", "en"], "translation": ["Il fait sec.", "It is dry {}."]},
    "label": 2,
}


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- what comes with lens_lang ---


def test_facts_are_aligned_and_do_not_tell_their_answers() -> None:
    facts = read_facts()
    groups = [fact.group for fact in facts]
    assert {name: groups.count(name) for name in set(groups)} == {
        "capital": 24, "currency": 24, "opposite": 24, "translation": 24,
    }  # fmt: skip
    for fact in facts:
        assert fact.languages == tuple(fact.answers) == NINE
        for lang in NINE:
            told = fact.answers[lang].casefold() in fact.prompts[lang].casefold()
            # "le mot français pour chien": asked in the language that is asked for
            assert told == (fact.group == "translation" and told_in(fact) == lang), fact.name
            assert answered(fact, lang).endswith(fact.answers[lang])
            assert fact.prompts[lang] == fact.prompts[lang].strip()


def told_in(fact: Question) -> str:
    return "fr" if "French" in fact.prompts["en"] else "es"


@pytest.mark.parametrize("instruction", ["en", "native"])
def test_every_inference_is_asked_in_nine_languages(instruction: Any) -> None:
    items = read_entailment(instruction=instruction)
    raw = list(rows_of(Path(lens_lang.__file__).parent / "data" / "entailment.jsonl"))
    assert len(items) == len(raw) == 48
    for item, row in zip(items, raw, strict=True):
        assert item.languages == NINE
        for lang in NINE:
            options = item.options[lang]
            assert len(set(options)) == 3
            assert item.answers[lang] == options[row["label"]]
            assert all(option in item.prompts[lang] for option in options)
            assert row["premise"][lang] in item.prompts[lang]
            assert item.prompts[lang].startswith("Here is what we know") == (
                instruction == "en" or lang == "en"
            )
    labels = [row["label"] for row in raw]
    assert [labels.count(n) for n in range(3)] == [16, 16, 16]


def test_native_options_say_one_thing_each() -> None:
    options = inference_template("native").options
    assert isinstance(options, dict)
    assert tuple(options) == NINE
    for words in options.values():
        firsts = [word[0] for word in words]
        assert len(set(firsts)) == 3, "their first tokens must differ"


# --- anybody's files ---


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.parquet"])
def test_every_kind_of_file_says_the_same(name: str, tmp_path: Path) -> None:
    other = {"prompt": {"en": "Two", "de": None}, "answer": {"en": "Zwei"}, "id": "two"}
    rows = [{**ROW, "answer": {"en": "2", "fr": "deux"}, "id": "one"}, other]
    path = tmp_path / name
    if name == "x.parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif name == "x.json":
        path.write_text(json.dumps(rows))
    else:
        raw = ("\n" + "\n\n".join(map(json.dumps, rows)) + "\n").encode()
        path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert read_questions(path) == [
        Question("one", ROW["prompt"], {"en": "2", "fr": "deux"}),  # type: ignore[arg-type]
        Question("two", {"en": "Two"}, {"en": "Zwei"}),
    ]
    assert len(read_questions(path, limit=1)) == 1


def test_braces_in_the_data_are_text(tmp_path: Path) -> None:
    (item,) = read_questions(write(tmp_path / "x.jsonl", XNLI), inference_template())
    assert item.prompts["en"].startswith("Here is what we know: It {rains}.\nIs")
    assert "Il pleut {0}." in item.prompts["fr"]
    assert "It is dry {}." in item.prompts["en"]
    assert item.answers == {"en": "No", "fr": "No"}


@given(st.text(min_size=1).filter(lambda x: bool(x.strip()) and x.isprintable()))
def test_any_text_comes_through_a_template(text: str) -> None:
    rows = [{"prompt": {"en": text, "fr": "x"}, "answer": text}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", lambda *a, **k: rows)
        (item,) = stream_questions("x", Template("{{{prompt}}}"))
    assert item.prompts == {"en": f"{{{text}}}", "fr": "{x}"}
    assert item.answers["fr"] == text


def test_languages_are_those_of_all_columns(tmp_path: Path) -> None:
    row = {"a": {"French": "un", "eng_Latn": "one", "de": "eins"}, "b": {"fr": "x", "en": "y"}}
    path = write(tmp_path / "x.jsonl", row)
    (item,) = read_questions(path, Template("{b}{a}"))
    assert item.prompts == {"fr": "xun", "en": "yone"}
    assert (item.name, item.group, dict(item.answers)) == ("0", "", {})
    (item,) = read_questions(path, Template({"English": "{a}!", "zh": "{a}"}))
    assert item.prompts == {"en": "one!"}


TWICE = {"en": "a", "English": "b"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**XNLI, "label": -1}], "Item 1 .*'label' is -1, but the template has 3 options"),
        ([XNLI, {**XNLI, "label": 3}], "Item 2 .*'label' is 3"),
        ([{**XNLI, "label": True}], "'label' must be a text"),
        ([{**XNLI, "label": None}], "'label' must be a text"),
        ([{**XNLI, "label": "Ja"}], "'label' in 'en' is 'Ja', none of the options Yes, Maybe, No"),
        ([{"premise": "", "hypothesis": "", "labels": 0}], "'premise' must be a text"),
        ([{k: XNLI[k] for k in ("premise", "hypothesis")}], "has no column 'label'"),
        ([{"premises": {}, "hypothesis": {}}], "no column 'premise'; did you mean 'premises'"),
        ([{**XNLI, "premise": "all"}, {**XNLI, "hypothesis": 5}], "Item 2 .*'hypothesis' must"),
        ([{**XNLI, "premise": {"en": " "}}], "'premise' must be a text"),
        ([{**XNLI, "premise": {"en": None}}], "'premise' is given in no language"),
        ([{**XNLI, "premise": {"de": "x"}}], "no language in which all its texts"),
        ([{**XNLI, "premise": "a", "hypothesis": "b"}], "nobody knows its languages"),
        ([{**XNLI, "premise": {"en": "\ud800"}}], "'premise' has half a surrogate pair"),
        ([{**XNLI, "id": "\ud800"}], "'id' has half a surrogate pair"),
        ([{**XNLI, "id": {}}], "dict in column 'id', where text"),
        ([{**XNLI, "id": 7}, {**XNLI, "id": "7"}], "Two items .* are called '7'"),
        ([], "holds no item"),
        ([XNLI, [1]], "Row 2 of .*x.jsonl is list, not an object"),
        ([{**XNLI, "premise": {"language": ["en"], "translation": []}}], "not one translation"),
        ([{**XNLI, "premise": {"language": "en", "translation": "ab"}}], "not one translation"),
    ],
)  # fmt: skip
def test_a_bad_item_is_named(rows: list[Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(CorpusError, match=message) as caught:
        read_questions(path, inference_template())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"xx-nowhere": "a"}, "Item 1 .*'prompt': No language is called 'xx-nowhere'"),
        (TWICE, "Item 1 .*'prompt' is given twice in 'en'"),
        ({"language": ["fr", "fr"], "translation": ["a", "b"]}, "given twice in 'fr'"),
        ({"language": [None, ["fr"]], "translation": ["a", "b"]}, "No language is called 'None'"),
    ],
)
def test_a_bad_language_is_named(column: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(LanguageError, match=message):
        read_questions(write(tmp_path / "x.jsonl", {"prompt": column}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b"{}\n\n{\n", "x.jsonl, line 3 is not JSON"),
        ("x.jsonl", b"[" * 200_000, "line 1 is not JSON"),
        ("x.jsonl", b"{}\n\xe9\n", "not UTF-8 text: line 2"),
        ("x.jsonl.gz", b"no gzip", "damaged gzip"),
        ("x.json", b"[{}", "x.json is not JSON"),
        ("x.json", b"{}", "x.json holds dict, where a list is expected"),
        ("x.json", b"[{}, 5]", "Row 2 of .*x.json is int"),
        ("x.parquet", b"PAR1 and nothing more", "not a readable parquet file"),
        ("x.csv", b"", "x.csv: its name must end in .jsonl, .jsonl.gz, .json or .parquet"),
        ("x.json.gz", b"", "its name must end in"),
        ("x.parquet.gz", b"", "its name must end in"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(rows_of(tmp_path / name))


def test_a_missing_file_and_a_folder_are_no_file(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    for path in (tmp_path / "x.jsonl", tmp_path / "nowhere.jsonl"):
        with pytest.raises(CorpusError, match=f"There is no file {path}"):
            read_facts(path)


@pytest.mark.parametrize(
    "prompt",
    ["{premise", "premise}", "{}", "{0}", "{premise.x}", "{premise[0]}", "{premise!r}",
     "{premise:>9}", "{premise:{label}}", "{a b}", {"en": "{premise}", "fr": "{}"}],
)  # fmt: skip
def test_a_template_takes_columns_and_nothing_else(prompt: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="The template '.*' (is malformed|has a placeholder)"):
        read_questions(tmp_path / "never read", Template(prompt))


def test_a_template_must_fit_its_languages(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {**ROW, "answer": 0})
    with pytest.raises(OptionError, match="no options in fr"):
        read_questions(path, Template(options={"en": ("Yes",)}))
    with pytest.raises(LanguageError, match="template's prompt is given twice in 'en'"):
        read_questions(path, Template(TWICE))
    with pytest.raises(OptionError, match="limit must be at least 1, got 0"):
        read_questions(path, limit=0)
    with pytest.raises(CorpusError, match="0 options to choose"):
        read_questions(path)


def test_an_answer_is_needed_in_every_language(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", {**ROW, "answer": {"en": "2"}})
    with pytest.raises(CorpusError, match="Item 1 .* has no 'answer' in fr"):
        read_questions(path)


# --- the hub ---


def test_the_hub_is_asked_for_no_more_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load_dataset(path: str, name: str | None, **options: object) -> datasets.IterableDataset:
        asked.update(path=path, name=name, **options)
        return datasets.Dataset.from_list([XNLI] * 3).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    template = inference_template()
    found = stream_questions("facebook/xnli", template, config="all_languages", limit=2)
    assert [item.name for item in found] == ["0", "1"]
    assert asked == {
        "path": "facebook/xnli", "name": "all_languages", "split": "test", "streaming": True,
    }  # fmt: skip
    with pytest.raises(CorpusError, match="Item 1 of x, split test has no column 'body'"):
        stream_questions("x", Template("{body}"))
    asked.clear()
    with pytest.raises(OptionError, match="limit must be at least 1"):
        stream_questions("x", template, limit=-1)
    with pytest.raises(OptionError, match="malformed"):
        stream_questions("x", Template("{"))
    assert not asked, "what cannot work asks nobody"


def test_a_row_of_the_hub_that_is_no_object_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: [XNLI, "text"])
    with pytest.raises(CorpusError, match=r"Item 2 of x \(all\), split dev is str, not an object"):
        stream_questions("x", inference_template(), config="all", split="dev")


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match="Could not stream nobody/nothing, split test"):
        stream_questions("nobody/nothing", inference_template())
