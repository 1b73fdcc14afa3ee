"""Every token is in exactly one row and counted once, whatever the layout."""

import gzip
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import py3langid
import pytest
import torch
from conftest import random_documents
from hypothesis import given
from hypothesis import strategies as st
from lingua import Language, LanguageDetectorBuilder
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lens_lang.corpora import Corpora, check_fits, sample_sentences
from lens_lang.errors import CorpusError, LanguageError, OptionError

NINE = ("en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh")
DOCUMENTS = st.lists(st.lists(st.integers(3, 90), min_size=1, max_size=12), min_size=1, max_size=8)


def counted(corpora: Corpora, batch_size: int = 3, **options: Any) -> dict[str, list[int]]:
    """The counted tokens of every language, in order."""
    tokens: dict[str, list[int]] = {lang: [] for lang in corpora.languages}
    for batch in corpora.batches(batch_size, **options):
        for row, mask in zip(batch.tokens, batch.mask, strict=True):
            tokens[batch.language] += row[mask].tolist()
    return tokens


class Elsewhere(Tensor):
    """Stands for a tensor on a GPU: not mixed with those that are here, nor read, until moved."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = tree_leaves((args, kwargs))
        mixed = any(type(each) is Tensor and each.ndim for each in operands)
        if mixed or func in (Tensor.numpy, Tensor.__array__):
            raise RuntimeError("Expected all tensors to be on the same device")
        found = super().__torch_function__(func, types, args, kwargs)
        if func is Tensor.cpu or (func is Tensor.to and "cpu" in operands):
            with torch._C.DisableTorchFunctionSubclass():
                return found.as_subclass(Tensor)
        return found


def elsewhere(values: Any) -> Elsewhere:
    return torch.tensor(values).as_subclass(Elsewhere)


def flat(documents: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(documents))


@given(DOCUMENTS, st.integers(1, 4), st.sampled_from([None, 1]), st.sampled_from([None, 5]))
def test_documents_in_their_own_rows_keep_every_token(
    documents: list[list[int]], batch_size: int, bos_id: int | None, ctx_len: int | None
) -> None:
    corpora = Corpora.from_tokens({"x": documents}, bos_id=bos_id, ctx_len=ctx_len, pack=False)
    for side in ("left", "right"):
        assert counted(corpora, batch_size, padding_side=side)["x"] == flat(documents)
    assert corpora.n_tokens == {"x": len(flat(documents))}
    for batch in corpora.batches(batch_size):
        assert ctx_len is None or batch.tokens.shape[1] <= ctx_len


@given(DOCUMENTS, st.integers(2, 6), st.sampled_from([None, 1]))
def test_packed_rows_are_full_and_lose_only_the_tail(
    documents: list[list[int]], ctx_len: int, bos_id: int | None
) -> None:
    width = ctx_len - (bos_id is not None)
    tokens = flat(documents)
    if len(tokens) < width:
        with pytest.raises(CorpusError, match=f"fewer than one row of {width}"):
            Corpora.from_tokens({"x": documents}, ctx_len=ctx_len, bos_id=bos_id)
        return
    corpora = Corpora.from_tokens({"x": documents}, ctx_len=ctx_len, bos_id=bos_id)
    kept = len(tokens) // width * width
    assert counted(corpora)["x"] == tokens[:kept]
    assert corpora.n_tokens == {"x": kept}
    for batch in corpora.batches(2):
        assert batch.tokens.shape[1] == ctx_len
        assert batch.attention_mask is None  # nothing is padding


def test_every_row_begins_with_bos_which_is_counted_only_if_asked(corpora: Corpora) -> None:
    for side in ("left", "right"):
        for batch in corpora.batches(4, padding_side=side):
            everything = torch.ones_like(batch.mask)
            real = everything if batch.attention_mask is None else batch.attention_mask
            first = real.int().argmax(1)
            rows = torch.arange(len(batch.tokens))
            assert (batch.tokens[rows, first] == 1).all()
            assert not batch.mask[rows, first].any()
            assert (real.sum(1) == batch.mask.sum(1) + 1).all()
    with_bos = counted(corpora.laid_out(count_bos=True))
    assert with_bos["fr"].count(1) == 3
    assert counted(corpora.laid_out(bos_id=None))["fr"] == counted(corpora)["fr"]


def test_padding_stands_where_it_was_asked_for() -> None:
    corpora = Corpora.from_tokens({"x": [[5, 6], [7, 8, 9]]})
    (right,) = corpora.batches(2)
    (left,) = corpora.batches(2, padding_side="left")
    assert right.tokens.tolist() == [[5, 6, 0], [7, 8, 9]]
    assert left.tokens.tolist() == [[0, 5, 6], [7, 8, 9]]
    assert right.attention_mask is not None and left.attention_mask is not None
    assert right.attention_mask.tolist() == [[True, True, False], [True, True, True]]
    assert left.attention_mask.tolist() == [[False, True, True], [True, True, True]]


def test_rows_know_their_document() -> None:
    corpora = Corpora.from_tokens({"x": [[5] * 7, [6] * 2]}, ctx_len=3, pack=False)
    (batch,) = corpora.batches(9)
    assert batch.documents.tolist() == [0, 0, 0, 1]


@given(st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_shares_deal_out_whole_batches(count: int, batch_size: int, pack: bool) -> None:
    docs = {lang: random_documents([5, 3, 8, 6, 7, 4, 9], seed=i) for i, lang in enumerate("ab")}
    corpora = Corpora.from_tokens(docs, ctx_len=6, bos_id=1, pack=pack)
    whole = [(b.language, b.tokens.tolist()) for b in corpora.batches(batch_size)]
    shares = [
        [(b.language, b.tokens.tolist()) for b in corpora.sharded(i, count).batches(batch_size)]
        for i in range(count)
    ]
    assert sorted(itertools.chain.from_iterable(shares)) == sorted(whole)
    for i, share in enumerate(shares):
        n = corpora.sharded(i, count).n_batches(batch_size)
        assert sum(n.values()) == len(share)


def test_splitting_is_disjoint_complete_seeded_and_aligned() -> None:
    docs = {lang: [[10 * i + k, i + 3] for i in range(9)] for k, lang in enumerate("ab")}
    corpora = Corpora.from_tokens(docs)
    first, second = corpora.split(2 / 3, seed=0)
    for lang in "ab":
        mine = [first.documents[lang][i].tolist() for i in range(6)]
        theirs = [second.documents[lang][i].tolist() for i in range(3)]
        assert sorted(mine + theirs) == sorted(docs[lang])
    numbers = [[int(first.documents[lang][i][1]) for i in range(6)] for lang in "ab"]
    assert numbers[0] == numbers[1]  # the same sentences in both languages
    again, other = corpora.split(2 / 3, seed=0)[0], corpora.split(2 / 3, seed=1)[0]
    assert again.digest == first.digest
    assert other.digest != first.digest


def test_a_part_too_small_for_a_row_can_still_be_read_by_the_document() -> None:
    corpora = Corpora.from_tokens({"x": [[5] * 4] * 5}, ctx_len=10)
    _, held_out = corpora.split(0.8, seed=0)
    with pytest.raises(CorpusError, match="'x' has 4 tokens, fewer than one row of 10"):
        next(held_out.batches(1))
    assert counted(held_out.laid_out(pack=False)) == {"x": [5] * 4}


@pytest.mark.parametrize(
    ("fraction", "error", "message"),
    [(0.0, OptionError, "between 0 and 1"), (0.05, CorpusError, "leaves a part empty")],
)
def test_splits_that_leave_nothing_are_refused(
    corpora: Corpora, fraction: float, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        corpora.split(fraction, seed=0)


def test_truncating_keeps_the_first_tokens_and_prorates_bytes(speller: Any) -> None:
    corpora = Corpora.from_texts({"fr": ["abcd", "éfgh"], "de": ["xy"]}, speller, pack=False)
    assert corpora.documents["fr"].n_bytes.tolist() == [4, 5]
    cut = corpora.truncate(tokens=6)
    assert cut.n_tokens == {"fr": 6, "de": 2}
    assert cut.documents["fr"].ends.tolist() == [4, 6]
    assert cut.documents["fr"].n_bytes.tolist() == [4, 2]  # half of 5, to even
    assert counted(cut)["fr"] == counted(corpora)["fr"][:6]
    assert corpora.truncate(tokens=8).digest == corpora.digest
    assert corpora.truncate(tokens=4).documents["fr"].ends.tolist() == [4]
    with pytest.raises(OptionError, match="at least 1, got 0"):
        corpora.truncate(tokens=0)


def test_the_digest_tells_tokens_layout_names_and_order_apart() -> None:
    docs = {"a": [[4, 5], [6, 7]], "b": [[8, 9], [10]]}
    base = Corpora.from_tokens(docs)
    others = [
        Corpora.from_tokens({**docs, "a": [[4, 5], [6, 8]]}),
        Corpora.from_tokens({**docs, "a": [[4, 5, 6], [7]]}),
        Corpora.from_tokens({"a": docs["a"], "c": docs["b"]}),
        Corpora.from_tokens(dict(reversed(docs.items()))),
        base.laid_out(bos_id=1),
        base.laid_out(ctx_len=2),
        base.laid_out(ctx_len=2, pack=True),
        base.laid_out(count_bos=True),
        base.sharded(0, 2),
    ]
    digests = {corpora.digest for corpora in (base, *others)}
    assert len(digests) == 1 + len(others)
    assert Corpora.from_tokens(docs).digest == base.digest


def test_one_language_can_be_taken_out(corpora: Corpora) -> None:
    french = corpora["French"]
    assert french.languages == ("fr",)
    assert counted(french)["fr"] == counted(corpora)["fr"]
    with pytest.raises(LanguageError, match="no language 'de' here"):
        corpora["de"]


def test_texts_are_read_no_further_than_needed(speller: Any) -> None:
    def endless() -> Iterator[str]:
        for number in itertools.count():
            assert number < 2000, "read far beyond what was asked for"
            yield "abcdefghij"

    corpora = Corpora.from_texts({"fr": endless()}, speller, ctx_len=11, tokens=95)
    assert len(corpora.documents["fr"].tokens) == 95
    assert corpora.n_tokens == {"fr": 90}  # nine rows of ten, after BOS


def test_bos_follows_transformer_lens_unless_told(speller: Any) -> None:
    texts = {"fr": ["abc"]}
    assert Corpora.from_texts(texts, speller, pack=False).bos_id == 1
    assert Corpora.from_texts(texts, speller, pack=False, bos=False).bos_id is None
    shy = SimpleNamespace(
        tokenizer=speller.tokenizer, cfg=SimpleNamespace(default_prepend_bos=False)
    )
    assert Corpora.from_texts(texts, shy, pack=False).bos_id is None
    assert Corpora.from_texts(texts, shy, pack=False, bos=True).bos_id == 1


def test_texts_without_tokeniser_or_bos_are_refused(speller: Any) -> None:
    with pytest.raises(CorpusError, match="no tokeniser"):
        Corpora.from_texts({"fr": ["a"]}, SimpleNamespace(tokenizer=None, cfg=None))
    mute = SimpleNamespace(
        tokenizer=lambda texts, **options: {"input_ids": [[3]] * len(texts)}, cfg=speller.cfg
    )
    assert Corpora.from_texts({"fr": ["a"]}, mute, pack=False).bos_id is None
    with pytest.raises(CorpusError, match="has no BOS token: use bos=False"):
        Corpora.from_texts({"fr": ["a"]}, mute, pack=False, bos=True)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ({"fr": "one string"}, CorpusError, "is one string: give a list of documents"),
        ({"fr": []}, CorpusError, "The text of 'fr' is empty"),
        ({"fr": ["a"], "fra_Latn": ["b"]}, LanguageError, "given twice: fr"),
        ({"frrr": ["a"]}, LanguageError, "No language is called 'frrr'"),
        ({}, LanguageError, "No language was given"),
        ({"fr": ["ab"]}, CorpusError, "'fr' has 2 tokens, fewer than one row of 255"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(
    texts: Any, error: type[Exception], message: str, speller: Any
) -> None:
    with pytest.raises(error, match=message):
        Corpora.from_texts(texts, speller)


@pytest.mark.parametrize(
    ("documents", "options", "error", "message"),
    [
        ({"x": []}, {}, CorpusError, "The text of 'x' is empty"),
        ({"x": [[]]}, {}, CorpusError, "The text of 'x' is empty"),
        ({"x": [[4, -1]]}, {}, CorpusError, "negative token id"),
        ({"x": [[4]]}, {"ctx_len": 1}, OptionError, "at least 2 tokens, got 1"),
        ({"x": [[4]]}, {"pack": True}, OptionError, "Packing needs ctx_len"),
        ({}, {}, LanguageError, "No language was given"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused(
    documents: Any, options: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Corpora.from_tokens(documents, **options)


def test_tokens_may_lie_on_any_device() -> None:
    expected = Corpora.from_tokens({"x": [[5, 6], [7]]})
    for documents in ([elsewhere([5, 6]), elsewhere([7])], [elsewhere([5, 6]), [7]]):
        corpora = Corpora.from_tokens({"x": documents})
        assert corpora.digest == expected.digest
        assert counted(corpora) == counted(expected)


def test_impossible_batches_and_shares_are_refused(corpora: Corpora) -> None:
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        next(corpora.batches(0))
    with pytest.raises(OptionError, match="Share 2 of 2 does not exist"):
        corpora.sharded(2, 2)
    with pytest.raises(OptionError, match="are a share already"):
        corpora.sharded(0, 2).sharded(1, 2)


def test_tokens_of_another_vocabulary_are_refused(corpora: Corpora) -> None:
    cfg = SimpleNamespace(d_vocab=97, n_ctx=8, positional_embedding_type="rotary")
    check_fits(corpora, cfg)
    with pytest.raises(CorpusError, match="tokenised for another model"):
        check_fits(Corpora.from_tokens({"x": [[4]]}, bos_id=97), cfg)


def test_rows_longer_than_learned_positions_are_refused(corpora: Corpora) -> None:
    cfg = SimpleNamespace(d_vocab=97, n_ctx=12, positional_embedding_type="standard")
    with pytest.raises(CorpusError, match="'en' has rows of 13 tokens, .* only 12 positions: use"):
        check_fits(corpora, cfg)
    check_fits(corpora.laid_out(ctx_len=12), cfg)


def test_files_of_several_kinds_become_corpora(tmp_path: Path, speller: Any) -> None:
    (tmp_path / "a.txt").write_text("bonjour\nsalut\n", encoding="utf-8")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(json.dumps({"text": "hallo"}) + "\n")
    files = {"French": tmp_path / "a.txt", "deu_Latn": tmp_path / "b.jsonl.gz"}
    corpora = Corpora.from_files(files, speller, pack=False)
    assert corpora.languages == ("fr", "de")
    assert [len(docs) for docs in corpora.documents.values()] == [2, 1]
    assert corpora.documents["de"].n_bytes.tolist() == [5]
    assert repr(corpora) == "Corpora(one row a document; tokens: fr 12, de 5)"


def test_the_hub_is_asked_for_every_language(monkeypatch: pytest.MonkeyPatch, speller: Any) -> None:
    asked = []

    def stream(dataset: str, *, config: str, split: str, text_column: str) -> Iterator[str]:
        asked.append((dataset, config, split, text_column))
        yield from ["abcdefghij"] * 100

    monkeypatch.setattr("lens_lang.corpora.stream_documents", stream)
    corpora = Corpora.from_hub(
        "wiki/{lang}", speller, languages=["fra_Latn", "de"], config="x.{lang}", tokens=50,
        ctx_len=11,
    )  # fmt: skip
    assert corpora.languages == ("fr", "de")
    assert corpora.n_tokens == {"fr": 50, "de": 50}
    assert asked[0] == ("wiki/fra_Latn", "x.fra_Latn", "train", "text")


class TestSample:
    """The sample text: natural, aligned, and in the language that it says."""

    def test_it_is_aligned_and_distinct(self) -> None:
        sentences = sample_sentences()
        assert tuple(sentences) == NINE
        for lang, lines in sentences.items():
            assert len(lines) == 120, lang
            assert len(set(lines)) == 120, lang
            assert all(line == line.strip() and line for line in lines), lang

    @pytest.mark.parametrize("lang", NINE)
    def test_sentences_have_the_length_of_sentences(self, lang: str) -> None:
        for line in sample_sentences()[lang]:
            if lang in ("ja", "zh"):
                assert 30 <= len(line) <= 110, line
            else:
                # Vietnamese puts spaces between syllables
                assert 12 <= len(line.split()) <= (48 if lang == "vi" else 36), line

    def test_two_identifiers_agree_with_it(self) -> None:
        languages = [Language.from_iso_code_639_1(code) for code in map(_iso, NINE)]
        lingua = LanguageDetectorBuilder.from_languages(*languages).build()
        py3langid.set_languages(list(NINE))
        for lang, lines in sample_sentences().items():
            first = [py3langid.classify(line)[0] for line in lines]
            found = [lingua.detect_language_of(line) for line in lines]
            second = [x.iso_code_639_1.name.lower() if x else "" for x in found]
            assert first.count(lang) >= 0.97 * 120, lang
            assert second.count(lang) >= 0.97 * 120, lang

    def test_some_languages_can_be_chosen(self, speller: Any) -> None:
        corpora = Corpora.sample(speller, languages=["Japanese", "en"])
        assert corpora.languages == ("ja", "en")
        assert corpora.ctx_len == 128
        assert len(corpora.documents["ja"]) == 120


def _iso(code: str) -> Any:
    from lingua import IsoCode639_1

    return getattr(IsoCode639_1, code.upper())


def test_rows_of_whole_documents_are_numbered_like_any_documents() -> None:
    """Longest first, and one is left out: what indexes by document must find its own."""
    corpora = Corpora.from_tokens({"xx": [[1, 2], [3], [4, 5, 6]]}, ctx_len=4)
    assert corpora.longest_first()["xx"].tolist() == [2, 0]
    rows = corpora.one_document_a_row(max_tokens=8)
    (batch,) = rows.batches(8)
    assert batch.documents.tolist() == [0, 1]
    for row, document in zip(batch.tokens, batch.documents, strict=True):
        text = rows.documents["xx"][int(document)]
        assert row[: len(text)].tolist() == text.tolist()
