"""Items are spelled as their tokeniser means them, and belong to the languages that use them."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_lang import results
from lens_lang.corpora import Corpora
from lens_lang.errors import CorpusError, LanguageError, OptionError, ShapeError, StorageError
from lens_lang.identification import LangidIdentifier, LinguaIdentifier
from lens_lang.spelling import _byte_alphabet, as_text, spell_pieces, spell_vocabulary
from lens_lang.vocabulary import OTHER, VocabularyLanguages

LANGUAGES = ("en", "ja", "ru", "zh")


def model_with(pieces: list[Any], *, special: tuple[int, ...] = (), more: int = 0) -> Any:
    """What spelling asks of a model whose tokeniser has these pieces."""

    class Tokenizer:
        all_special_ids = special

        def __len__(self) -> int:
            return len(pieces)

        def convert_ids_to_tokens(self, ids: list[int]) -> list[Any]:
            return [pieces[item] for item in ids]

    return SimpleNamespace(tokenizer=Tokenizer(), cfg=SimpleNamespace(d_vocab=len(pieces) + more))


# --- spelling ---


@given(st.text(min_size=1, max_size=8))
def test_byte_level_pieces_spell_their_bytes(text: str) -> None:
    letters = {byte: letter for letter, byte in _byte_alphabet().items()}
    piece = "".join(letters[byte] for byte in text.encode("utf-8"))
    assert spell_pieces(["Ġ", piece])[1] == text.encode("utf-8")


def test_byte_level_needs_its_space_and_nothing_outside_its_alphabet() -> None:
    assert spell_pieces(["é"]) == ["é".encode()]
    assert spell_pieces(["Ġ", "é"])[1] == b"\xe9"
    assert spell_pieces(["Ġ", "é", "花"])[1] == "é".encode()
    # items added as text do not decide, and are not spelled in bytes
    assert spell_pieces(["Ġ", "é", "花é"], added=[2]) == [b" ", b"\xe9", "花é".encode()]


def test_special_tokens_markup_and_holes_spell_nothing() -> None:
    pieces = ["<bos>", "<unused7>", "</table>", "[INST]", None, "▁<a b", "a<b>", "<0x0A>", b"\xe8"]
    expected = [b"", b"", b"", b"", b"", b" <a b", b"a<b>", b"\n", b"\xe8"]
    assert spell_pieces(pieces, special=[0]) == expected


def test_items_beyond_the_tokeniser_spell_nothing() -> None:
    assert spell_vocabulary(model_with(["a", "▁b"], more=2)) == (b"a", b" b", b"", b"")


def test_a_part_of_a_character_is_no_text() -> None:
    assert as_text("花".encode()[:2]) is None
    assert as_text(b"") == ""


def test_a_model_without_tokeniser_is_refused() -> None:
    with pytest.raises(CorpusError, match="no tokeniser"):
        spell_vocabulary(SimpleNamespace(tokenizer=None, cfg=SimpleNamespace(d_vocab=3)))


@pytest.mark.real
def test_the_real_tokeniser_spells_what_it_reads(gemma: Any) -> None:
    spelled = spell_vocabulary(gemma)
    for text in ("Der Fluss, so breit.", "Ça va ? 花が咲く。", "Привет — мир\n\n  x = 7", "🙂 ngủ"):
        ids = gemma.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert b"".join(spelled[item] for item in ids).decode() == text


@pytest.mark.real
def test_makers_agree_about_the_real_vocabulary(gemma: Any) -> None:
    languages = ["en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh"]
    counted = VocabularyLanguages.from_corpora(Corpora.sample(gemma), gemma)
    scripts = VocabularyLanguages.from_script(gemma, languages)
    assert len(counted) == len(scripts) == 262_144
    table = counted.agreement(scripts)
    # what a script leaves to one language: Cyrillic, kana
    assert table.at["all", "items"] > 2000
    assert table.at["all", "share"] > 0.95
    for pieces, lang in (("▁дом", "ru"), ("です", "ja")):
        assert scripts.language_of(gemma.tokenizer.convert_tokens_to_ids(pieces)) == lang


# --- by corpora ---


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=30), min_size=1, max_size=4),
    st.floats(0.1, 3.0),
)
def test_counts_become_shares_as_by_hand(texts: list[list[int]], smoothing: float) -> None:
    corpora = Corpora.from_tokens({f"l{n}": [text] for n, text in enumerate(texts)})
    made = VocabularyLanguages.from_corpora(corpora, smoothing=smoothing)
    smallest = min(map(len, texts))
    assert len(made) == max(map(max, texts)) + 1
    for item in range(len(made)):
        counts = [text.count(item) * smallest / len(text) for text in texts]
        total = sum(counts) + smoothing
        expected = [*(count / total for count in counts), smoothing / total]
        assert made.share[item].tolist() == pytest.approx(expected, abs=1e-6)


def test_items_without_letters_are_no_languages() -> None:
    model = model_with(["a", ",", "7", "<0xE8>", "▁Ы"])
    corpora = Corpora.from_tokens({"en": [[0, 1, 2, 3]], "ru": [[4, 1, 2, 3]]})
    made = VocabularyLanguages.from_corpora(corpora, model)
    labels = [made.language_of(item) for item in range(5)]
    assert labels == ["en", OTHER, OTHER, OTHER, "ru"]
    without = VocabularyLanguages.from_corpora(corpora)
    assert without.language_of(1) in ("en", "ru")  # a comma, equally often in both


def test_corpora_of_another_model_are_refused() -> None:
    with pytest.raises(ShapeError, match="token 5, and the model's vocabulary has 2 items"):
        VocabularyLanguages.from_corpora(Corpora.from_tokens({"en": [[5]]}), model_with(["a", "b"]))
    with pytest.raises(OptionError, match="smoothing must be above 0, got 0"):
        VocabularyLanguages.from_corpora(Corpora.from_tokens({"en": [[5]]}), smoothing=0)


# --- by script ---


def test_scripts_tell_languages_as_far_as_they_can() -> None:
    pieces = ["▁flow", "кн", "花", "花が", "スー", "ー", "한", "flowкн", "!", "7a", "é", "ß", "́a"]
    made = VocabularyLanguages.from_script(model_with(pieces), LANGUAGES)
    en, ja, ru, zh = range(4)
    expected = [
        {en: 1.0},
        {ru: 1.0},
        {ja: 0.5, zh: 0.5},
        {ja: 1.0},
        {ja: 1.0},
        {ja: 1.0},
        {},  # Korean was not asked for
        {},  # no language has both
        {},
        {en: 1.0},
        {en: 1.0},
        {en: 1.0},
        {en: 1.0},  # a combining accent belongs to its letter
    ]
    for item, shares in enumerate(expected):
        row = [shares.get(column, 0.0) for column in range(4)]
        assert made.share[item].tolist() == [*row, 1.0 - sum(row)], pieces[item]


def test_languages_of_one_script_share_its_items() -> None:
    made = VocabularyLanguages.from_script(model_with(["flow"]), ["French", "en", "vi"])
    assert made.languages == ("fr", "en", "vi")
    assert made.share[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    with pytest.raises(LanguageError, match="twice: fr"):
        VocabularyLanguages.from_script(model_with(["flow"]), ["fr", "French"])


# --- by identifier ---


def test_an_identifier_is_asked_once_for_each_text_and_may_answer_in_three_ways() -> None:
    asked: list[list[str]] = []

    def identify(texts: Any) -> Any:
        asked.append(list(texts))
        answers: dict[str, Any] = {"flow": "en", "fleur": {"fr": 0.7, "ca": 0.2}, "x": None}
        return [answers[text] for text in texts]

    model = model_with(["▁flow", "flow", "fleur", "x", "!", "<0xE8>"])
    made = VocabularyLanguages.from_identifier(model, ["en", "fr"], identify)
    assert asked == [["flow", "fleur", "x"]]
    assert made.share[:, 0].tolist() == [1, 1, 0, 0, 0, 0]
    assert made.share[:, 1].tolist() == pytest.approx([0, 0, 0.7, 0, 0, 0])
    assert made.share[:, 2].tolist() == pytest.approx([0, 0, 0.3, 1, 1, 1])


def test_answers_name_languages_as_they_like() -> None:
    answers = ["eng_Latn", {"nb": 0.4, "nn": 0.3}, "Chinese", "zh-Hant", "zh-TW", "klingon?", "zz"]
    model = model_with([chr(97 + n) for n in range(len(answers))])
    made = VocabularyLanguages.from_identifier(
        model, ["en", "no", "zh", "zh-Hant"], lambda texts: answers
    )
    labels = [made.language_of(item) for item in range(len(answers))]
    assert labels == ["en", "no", "zh", "zh-Hant", "zh", OTHER, OTHER]


def test_large_vocabularies_are_asked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_lang.vocabulary._ASK_AT_ONCE", 2)
    asked: list[int] = []

    def identify(texts: Any) -> list[str]:
        asked.append(len(texts))
        return ["en" if text < "c" else "fr" for text in texts]

    made = VocabularyLanguages.from_identifier(model_with([*"abcde"]), ["en", "fr"], identify)
    assert asked == [2, 2, 1]
    assert made.share[:, 0].tolist() == [1, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([], "0 answers for 1 texts"),
        ([{"en": 1.5}], "no distribution"),
        ([{"en": 0.9, "fr": 0.9}], "no distribution"),
    ],
)
def test_an_identifier_that_answers_nonsense_is_refused(answer: Any, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        VocabularyLanguages.from_identifier(model_with(["a"]), ["en", "fr"], lambda texts: answer)


@pytest.mark.parametrize("make", [LangidIdentifier, LinguaIdentifier])
def test_libraries_know_plain_sentences(make: Any) -> None:
    texts = [
        "The children are reading.",
        "Die Kinder lesen im Garten.",
        "Это был очень длинный день, и мы устали.",
    ]
    for languages in (None, ("en", "de", "ru")):
        best = [max(a, key=a.__getitem__) for a in make(languages)(texts)]
        assert best == ["en", "de", "ru"]
    for answer in make(("en", "de"))(texts[:2]):
        assert sum(answer.values()) == pytest.approx(1.0, abs=1e-2)
    with pytest.raises(LanguageError, match="xx"):
        make(("en", "xx"))(texts)


def test_named_identifiers_are_asked_once_for_a_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENS_LANG_CACHE", os.fspath(tmp_path))
    model, identify = model_with(["▁maison", "house"]), LinguaIdentifier(("en", "fr"))
    first = VocabularyLanguages.from_identifier(model, ["en", "fr"], identify)
    assert first.language_of(0) == "fr"
    monkeypatch.setattr(LinguaIdentifier, "__call__", lambda self, texts: pytest.fail("asked"))
    again = VocabularyLanguages.from_identifier(model, ["en", "fr"], identify)
    assert torch.equal(again.share, first.share)
    (kept,) = tmp_path.rglob("*.safetensors")
    # a damaged file is asked again and replaced; a folder that cannot be written is no reason
    # to lose the answers
    monkeypatch.undo()
    monkeypatch.setenv("LENS_LANG_CACHE", os.fspath(tmp_path))
    kept.write_bytes(kept.read_bytes()[:50])
    third = VocabularyLanguages.from_identifier(model, ["en", "fr"], identify)
    assert torch.equal(third.share, first.share)
    assert torch.equal(VocabularyLanguages.load(kept).share, first.share)
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("LENS_LANG_CACHE", os.fspath(blocked))
    fourth = VocabularyLanguages.from_identifier(model, ["en", "fr"], identify)
    assert torch.equal(fourth.share, first.share)


# --- the value itself ---


def of(share: list[list[float]], languages: tuple[str, ...] = ("en", "fr")) -> VocabularyLanguages:
    return VocabularyLanguages(languages, torch.tensor(share))


def test_the_first_certain_part_decides() -> None:
    first = of([[0.9, 0.0, 0.1], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    second = of([[0.0, 1.0, 0.0], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.0, 0.9, 0.1]])
    third = of([[1.0, 0.0, 0.0]] * 4)
    made = VocabularyLanguages.combine(first, second, third)
    expected = [[0.9, 0.0, 0.1], [0.1, 0.8, 0.1], [1.0, 0.0, 0.0], [0.0, 0.9, 0.1]]
    assert torch.allclose(made.share, torch.tensor(expected))
    alone = VocabularyLanguages.combine(first)
    assert torch.equal(alone.share, first.share)


def test_parts_of_other_languages_do_not_combine() -> None:
    with pytest.raises(LanguageError, match="en, fr and en, de differ"):
        VocabularyLanguages.combine(of([[1.0, 0, 0]]), of([[1.0, 0, 0]], ("en", "de")))
    with pytest.raises(OptionError, match="at least one part"):
        VocabularyLanguages.combine()


def test_coverage_and_agreement_count_what_is_certain() -> None:
    here = of([[0.9, 0.0, 0.1], [0.0, 0.6, 0.4], [0.0, 0.7, 0.3], [0.5, 0.5, 0.0]])
    there = of([[0.8, 0.1, 0.1], [0.9, 0.0, 0.1], [0.0, 0.4, 0.6]])
    assert here.coverage()["items"].tolist() == [1, 2, 0]
    assert here.coverage()["mass"].tolist() == pytest.approx([1.4, 1.8, 0.8])
    table = here.agreement(there)
    assert table["items"].tolist() == [1, 1, 2]
    assert table["agree"].tolist() == [1, 0, 1]
    assert table.at["all", "share"] == 0.5


def test_a_vocabulary_reaches_a_file_and_back(tmp_path: Path) -> None:
    made = of([[0.9, 0.0, 0.1], [0.5, 0.5, 0.0]])
    made.save(tmp_path / "v.safetensors")
    again = results.load(tmp_path / "v.safetensors")
    assert isinstance(again, VocabularyLanguages)
    assert torch.equal(again.share, made.share)
    assert (again.languages, again.digest) == (made.languages, made.digest)
    (tmp_path / "v.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match="not a readable safetensors"):
        VocabularyLanguages.load(tmp_path / "v.safetensors")


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ShapeError, match="must sum to 1"):
        of([[0.9, 0.0, 0.0]])
    with pytest.raises(ShapeError, match="below 0"):
        of([[1.1, -0.1, 0.0]])
    with pytest.raises(ShapeError, match="2 languages and one for 'other', got 2 columns"):
        of([[1.0, 0.0]])
    with pytest.raises(LanguageError, match="cannot be one"):
        of([[1.0, 0.0]], (OTHER,))


def test_labels_and_columns_go_together() -> None:
    made = of([[0.9, 0.0, 0.1], [0.5, 0.5, 0.0]])
    assert made.labels == ("en", "fr", OTHER)
    assert made.of("French").tolist() == pytest.approx([0.0, 0.5])
    assert made.of(OTHER).tolist() == pytest.approx([0.1, 0.0])
    assert made.padded(3).share[2].tolist() == [0, 0, 1]
    with pytest.raises(ShapeError, match="made for another model"):
        made.padded(1)
    assert "2 items by hand: en, fr" in repr(made)
