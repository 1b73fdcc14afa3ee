"""Facts by relation and facts told anew, from files as mLAMA, mParaRel and MzsRE have them."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_items import write

from lens_lang.cli.options import questions_of
from lens_lang.errors import CorpusError, LanguageError, OptionError
from lens_lang.questions import Question
from lens_lang.relations import read_edits, read_relations

PATTERNS = {
    "en": ["[Y] is the capital of [X]", "The capital of [X] is [Y].", "[X]'s capital: [Y]"],
    "zh": ["[Y]是[X]的首都", "[X]的首都是[Y]。"],
}
LABELS = {
    "en": {"Q142": "France", "Q90": "Paris", "Q183": "Germany", "Q64": "Berlin", "Q17": "Japan"},
    "zh": {"Q142": "法国", "Q90": "巴黎", "Q183": "德国", "Q64": "柏林"},
}
PAIRS = [("Q142", "Q90"), ("Q17", "Q1490"), ("Q183", "Q64")]


def tuples(lang: str) -> list[dict[str, Any]]:
    """Facts as the files have them: a label may be null."""
    return [
        {"sub_uri": sub, "obj_uri": obj, "sub_label": LABELS[lang].get(sub),
         "obj_label": LABELS[lang].get(obj), "lineid": n}
        for n, (sub, obj) in enumerate(PAIRS)
    ]  # fmt: skip


def mpararel(folder: Path, **spelled: str) -> Path:
    for lang, name in {"en": "en", "zh": "zh", **spelled}.items():
        patterns = [{"pattern": each, "checked-by-human": False} for each in PATTERNS[lang]]
        write(folder / "patterns" / name / "P36.jsonl", *patterns)
        write(folder / "patterns" / name / "P999.jsonl", {"pattern": "[X] of [Y] is"})
        write(folder / "tuples" / name / "P36.jsonl", *tuples(lang))
    return folder


def mlama(folder: Path) -> Path:
    for lang in ("en", "zh"):
        templates = [{"relation": "P36", "template": each} for each in PATTERNS[lang]]
        lost = {"relation": "P1", "template": None}
        write(folder / lang / "templates.jsonl", lost, *templates)
        write(folder / lang / "P36.jsonl", *tuples(lang))
    return folder


def flat(folder: Path) -> Path:
    rows = [
        {**fact, "predicate_id": "P36", "template": PATTERNS[lang][1], "language": lang}
        for lang in ("zh", "en")
        for fact in tuples(lang)
    ]
    nobodys: dict[str, Any] = {"language": "tlh-nowhere"}
    return write(folder / "x.jsonl", nobodys, *rows)


FACTS = [
    Question(
        f"P36/{sub}/{obj}",
        {"en": f"The capital of {LABELS['en'][sub]} is", "zh": f"{LABELS['zh'][sub]}的首都是"},
        {lang: LABELS[lang][obj] for lang in ("en", "zh")},
        group="P36",
    )
    for sub, obj in (PAIRS[0], PAIRS[2])
]


@pytest.mark.parametrize("make", [mpararel, mlama, flat])
def test_every_layout_gives_the_facts_that_all_languages_have(make: Any, tmp_path: Path) -> None:
    source = make(tmp_path)
    assert read_relations(source, ["en", "zh"]) == FACTS
    assert [each.languages for each in read_relations(source, ["Chinese", "eng_Latn"])] == [
        ("zh", "en"), ("zh", "en"),
    ]  # fmt: skip
    assert [each.prompts for each in read_relations(source, ["en"])] == [
        {"en": each.prompts["en"]} for each in FACTS
    ]  # Japan's capital has no label in any language


def test_languages_on_the_command_line_may_have_spaces_between_them(tmp_path: Path) -> None:
    task = f"relations={mlama(tmp_path)}"
    assert questions_of(task, "en", 0, " en , zh ", None) == FACTS
    with pytest.raises(OptionError, match="needs --languages"):
        questions_of(task, "en", 0, None, None)


@pytest.mark.parametrize(
    ("folder", "asked"),
    [("zh-cn", "zh"), ("zh-hans", "zh"), ("zh_CN", "zh-cn"), ("zh", "zh-CN"), ("zho_Hans", "zh")],
)
def test_folders_may_spell_languages_otherwise(folder: str, asked: str, tmp_path: Path) -> None:
    source = mpararel(tmp_path, zh=folder)
    (source / "patterns" / "zh-hant").mkdir()
    (source / "patterns" / "__MACOSX").mkdir()
    assert [each.answers["en"] for each in read_relations(source, ["en", asked])] == [
        "Paris", "Berlin",
    ]  # fmt: skip
    with pytest.raises(CorpusError, match="files in 'zh-SG' were expected"):
        read_relations(source, ["zh-SG", "en"])


def test_the_folder_of_that_name_comes_before_one_like_it(tmp_path: Path) -> None:
    source = mpararel(mpararel(tmp_path), zh="pt-br")
    write(source / "patterns" / "pt" / "P36.jsonl", {"pattern": "[X] tem [Y]"})
    write(source / "tuples" / "pt" / "P36.jsonl", *tuples("en"))
    assert read_relations(source, ["pt"])[0].prompts == {"pt": "France tem"}
    assert read_relations(source, ["pt-BR"])[0].prompts == {"pt-BR": "法国的首都是"}


def test_nothing_in_common_is_counted(tmp_path: Path) -> None:
    source = mpararel(tmp_path)
    write(source / "patterns" / "zh" / "P36.jsonl", {"pattern": "[Y]是[X]的首都"}, {"pattern": " "})
    with pytest.raises(CorpusError, match=r"no fact .* in every language .*en 2, zh 0"):
        read_relations(source, ["en", "zh"])


@pytest.mark.parametrize("languages", [[], ["en", "English"], ["xx-nowhere"]])
def test_languages_are_known_and_given_once(languages: list[str], tmp_path: Path) -> None:
    with pytest.raises(LanguageError):
        read_relations(tmp_path, languages)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"sub_uri": "Q1", "obj_uri": "Q2", "sub_label": "a"}, "Row 1 .* no column 'obj_label'"),
        ({**tuples("en")[0], "obj_label": ["Paris"]}, "Row 1 .* has list in column 'obj_label'"),
        ({**tuples("en")[0], "sub_label": "\ud800"}, "'sub_label' has half a surrogate pair"),
        ({**tuples("en")[0], "sub_label": " "}, r"a label and a pattern: en 0"),
        ({**tuples("en")[0], "obj_uri": None}, r"a label and a pattern: en 0"),
        ([], "Row 1 .* is list, not an object"),
    ],
)  # fmt: skip
def test_hostile_facts_are_refused_or_left_out(fact: Any, message: str, tmp_path: Path) -> None:
    source = mpararel(tmp_path)
    write(source / "tuples" / "en" / "P36.jsonl", fact)
    with pytest.raises(CorpusError, match=message):
        read_relations(source, ["en"])


@pytest.mark.parametrize("file", ["patterns/en/P36.jsonl", "en/templates.jsonl", "x.jsonl"])
def test_hostile_patterns_are_refused(file: str, tmp_path: Path) -> None:
    path = write(tmp_path / file, {"relation": "P36", "patern": "[X] [Y]"})
    (tmp_path / "tuples" / "en").mkdir(parents=True)
    with pytest.raises(CorpusError, match=f"Row 1 of {path} has no column '(pattern|templ|langu)"):
        read_relations(path if file == "x.jsonl" else tmp_path, ["en"])


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is no folder of mParaRel or mLAMA: files in 'en'"):
        read_relations(tmp_path, ["en"])
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        read_relations(tmp_path / "nowhere", ["en"])
    (tmp_path / "en").mkdir()
    with pytest.raises(CorpusError, match=r"There is no file .*templates\.jsonl"):
        read_relations(tmp_path, ["en"])


# --- facts told anew ---


def edit(lang: str, question: str, answer: str, english: str = "") -> dict[str, Any]:
    return {
        "en": {"src": english or "Who?", "alt": "Ann", "rephrase": "By whom?"},
        lang: {"src": question, "alt": answer},
        "case": 7,
    }


def pairs(folder: Path) -> list[str | Path]:
    german = [edit("deu_Latn", "Wo?", "Hier", "Where?"), edit("deu_Latn", "Wer?", "Anna")]
    chinese = [edit("zh", "谁？", "安"), edit("zh", "几点？", "一点", "When?")]
    for name, rows in (("de", german), ("zh", chinese)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return [folder / "de.json", str(folder / "zh.json")]


def test_edits_are_told_in_one_language_and_asked_in_another(tmp_path: Path) -> None:
    (english,) = read_edits(pairs(tmp_path))
    assert english.prompts == {
        "en": "Who? Ann\nWho?", "de": "Who? Ann\nWer?", "zh": "Who? Ann\n谁？",
    }  # fmt: skip
    assert english.answers == {"en": "Ann", "de": "Anna", "zh": "安"}
    (own,) = read_edits(pairs(tmp_path), fact="own")
    assert own.prompts == {
        "en": "Who? Ann\nWho?", "de": "Wer? Anna\nWho?", "zh": "谁？ 安\nWho?",
    }  # fmt: skip
    assert own.answers == {"en": "Ann", "de": "Ann", "zh": "Ann"}
    both = read_edits(pairs(tmp_path)[:1])
    assert [each.languages for each in both] == [("en", "de")] * 2
    assert [each.name for each in both] == ["0", "1"]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"en": {"src": "a", "alt": "b"}}], CorpusError, "Row 1 of .*x.json must have 'src'"),
        ([edit("de", "Wer?", "Anna"), {"de": {"src": "a"}}], CorpusError, "Row 2 .* must have"),
        ([edit("de", " ", "Anna")], CorpusError, "Row 1 .*'src' must be a text"),
        ([{**edit("de", "a", "b"), "fr": {"src": "c", "alt": None}}], CorpusError, "'alt' must be"),
        ([edit("de", "\ud800", "b")], CorpusError, "'src' has half a surrogate"),
        ([edit("nowhere", "a", "b")], LanguageError, "Row 1 .*No language is called 'nowhere'"),
        ([{**edit("de", "a", "b"), **edit("German", "c", "d")}], LanguageError, "twice in 'de'"),
        ([[]], CorpusError, "Row 1 of .*x.json is list"),
        ([], CorpusError, "x.json holds no item"),
        ([edit("fr", "a", "b", "Other?")], CorpusError, "no English question in common"),
    ],
)
def test_malformed_edits_are_refused(
    rows: list[Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text(json.dumps(rows))
    with pytest.raises(error, match=message):
        read_edits([*pairs(tmp_path), tmp_path / "x.json"])


def test_edits_need_a_list_of_files() -> None:
    for paths in ([], "x.json"):
        with pytest.raises(OptionError, match="list of at least one file"):
            read_edits(paths)
