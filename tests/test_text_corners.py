"""Corners between a file of text and a row of tokens, each found by trying to break them."""

import errno
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from conftest import random_documents
from hypothesis import given
from hypothesis import strategies as st

from lens_lang.corpora import Corpora
from lens_lang.errors import CorpusError, OptionError, StorageError
from lens_lang.storage import read_json, replacing, write_json
from lens_lang.texts import read_documents, stream_documents

# test_corpora.py


@pytest.mark.parametrize("count_bos", [False, True])
def test_packed_rows_begin_with_bos_which_is_counted_only_if_asked(count_bos: bool) -> None:
    docs = random_documents([7, 8, 6])
    corpora = Corpora.from_tokens({"x": docs}, ctx_len=6, bos_id=1, count_bos=count_bos)
    for batch in corpora.batches(3):
        assert (batch.tokens[:, 0] == 1).all()
        assert (batch.mask[:, 0] == count_bos).all()
        assert batch.mask[:, 1:].all()
    assert corpora.n_tokens == {"x": 20}  # BOS is no text, counted or not


def test_long_documents_become_pieces_of_their_own() -> None:
    docs = [[11, 12, 13, 14, 15], [21, 22], [31, 32, 33]]
    corpora = Corpora.from_tokens({"x": docs}, ctx_len=3, bos_id=1, pack=False)
    (batch,) = corpora.batches(9)
    assert batch.tokens.tolist() == [
        [1, 11, 12], [1, 13, 14], [1, 15, 0], [1, 21, 22], [1, 31, 32], [1, 33, 0],
    ]  # fmt: skip
    assert batch.documents.tolist() == [0, 0, 0, 1, 2, 2]


def test_another_layout_is_a_view_of_the_same_documents(corpora: Corpora) -> None:
    before = corpora.digest
    other = corpora.laid_out(ctx_len=4, bos_id=None, count_bos=True, pack=True)
    for lang, docs in corpora.documents.items():
        assert other.documents[lang].tokens.data_ptr() == docs.tokens.data_ptr()
    assert (other.ctx_len, other.bos_id, other.count_bos, other.pack) == (4, None, True, True)
    assert corpora.digest == before
    assert corpora.laid_out().digest == before  # nothing named, nothing changed
    with pytest.raises(TypeError, match="does not support item assignment"):
        corpora.documents["en"] = corpora.documents["fr"]  # type: ignore[index]


@given(st.integers(1, 6), st.integers(1, 5), st.booleans())
def test_batches_are_as_many_as_announced_in_every_language(
    batch_size: int, count: int, pack: bool
) -> None:
    docs = {lang: random_documents([5, 3, 8, 6, 7][: 3 + i]) for i, lang in enumerate("abc")}
    corpora = Corpora.from_tokens(docs, ctx_len=5, bos_id=1, pack=pack)
    for index in range(count):
        share = corpora.sharded(index, count)
        found = [batch.language for batch in share.batches(batch_size)]
        assert share.n_batches(batch_size) == {lang: found.count(lang) for lang in "abc"}


def test_the_digest_is_the_same_in_every_process() -> None:
    """Run folders compare it with one from another day: a change of it orphans them all."""
    corpora = Corpora.from_tokens({"en": [[4, 5], [6]], "fr": [[7]]}, bos_id=1)
    assert corpora.digest == "215634be57339482e18136c658dffb97"


def test_parts_keep_the_layout_and_the_bytes(speller: Any) -> None:
    texts = {"fr": ["é" * n for n in range(1, 9)]}
    corpora = Corpora.from_texts(texts, speller, ctx_len=7, pack=False)
    for part in corpora.split(0.5, seed=3):
        assert (part.ctx_len, part.bos_id, part.pack) == (7, 1, False)
        docs = part.documents["fr"]
        assert docs.n_bytes.tolist() == [2 * len(docs[n]) for n in range(len(docs))]


@pytest.mark.parametrize(
    ("texts", "tokens", "error", "message"),
    [
        ({"fr": ["a"]}, 0, OptionError, "tokens must be at least 1, got 0"),
        ({"fr": iter(["a", None])}, None, CorpusError, "A document of 'fr' is NoneType"),
        ({"fr": iter([b"a"])}, None, CorpusError, "A document of 'fr' is bytes, where text is"),
    ],
)
def test_documents_that_are_no_text_are_refused(
    texts: Any, tokens: int | None, error: type[Exception], message: str, speller: Any
) -> None:
    with pytest.raises(error, match=message):
        Corpora.from_texts(texts, speller, tokens=tokens, pack=False)


def test_documents_without_tokens_leave_no_row(speller: Any) -> None:
    corpora = Corpora.from_texts({"fr": ["", "ab", ""]}, speller, pack=False)
    assert corpora.documents["fr"].n_bytes.tolist() == [2]
    (batch,) = Corpora.from_tokens({"x": [[], [5], []]}).batches(4)
    assert batch.tokens.tolist() == [[5]]
    assert batch.documents.tolist() == [1]


def test_no_batches_are_announced_for_an_impossible_batch_size(corpora: Corpora) -> None:
    with pytest.raises(OptionError, match="batch_size must be at least 1, got 0"):
        corpora.n_batches(0)


def test_a_bad_file_is_still_named_when_corpora_are_made(tmp_path: Path, speller: Any) -> None:
    (tmp_path / "fr.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(CorpusError, match="fr.txt is not UTF-8 text: line 2"):
        Corpora.from_files({"fr": tmp_path / "fr.txt"}, speller, pack=False)


# test_texts.py


@pytest.mark.parametrize(
    ("name", "content"),
    [("x.txt", "bonjour\n"), ("x.jsonl", '{"text": "bonjour"}\n'), ("x.csv", "text\nbonjour\n")],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_no_text_in_any_file(
    name: str, content: str, packed: bool, tmp_path: Path
) -> None:
    raw = ("\ufeff" + content).encode()
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(raw, mtime=0) if packed else raw)
    assert list(read_documents(file)) == ["bonjour"]


def test_a_csv_field_may_hold_several_lines(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,text\n1,"un\ndeux"\n2,trois\n', encoding="utf-8")
    assert list(read_documents(tmp_path / "x.csv")) == ["un\ndeux", "trois"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.txt.gz",
            gzip.compress(b"fine\ncaf\xe9\n", mtime=0),
            "x.txt.gz is not UTF-8 text: line 2",
        ),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n{\n', mtime=0), "line 2 is not JSON"),
        ("x.txt.gz", gzip.compress(b"a\n" * 9, mtime=0)[:-8] + bytes(8), "damaged .* line 9: CRC"),
        ("x.csv", b"id,text\n1,a\n2\n", "row 3 has NoneType in column 'text'"),
        ("x.csv", b"text\na\rb\n", "x.csv is not readable CSV: new-line character"),
        ("x.jsonl", b'\n{"text": "a"}\n\n[]\n', "line 4 holds list"),  # blank lines are lines
    ],
)
def test_a_bad_file_is_named_with_the_place_in_other_ways(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_documents(tmp_path / name))


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_parquet_file_is_refused(kept: float, tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pd.DataFrame({"text": [f"document {n}" for n in range(500)]}).to_parquet(file)
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * kept)])
    with pytest.raises(CorpusError, match="x.parquet is not a readable parquet file"):
        list(read_documents(file))


@pytest.mark.parametrize(("value", "kind"), [(5, "int"), (None, "NoneType")])
def test_a_parquet_column_without_text_is_refused(value: Any, kind: str, tmp_path: Path) -> None:
    pd.DataFrame({"text": [value]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match=f"x.parquet.* has {kind} in column 'text'"):
        list(read_documents(tmp_path / "x.parquet"))


def test_a_folder_is_no_text_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    with pytest.raises(CorpusError, match="There is no text file"):
        list(read_documents(tmp_path / "x.txt"))


def test_a_stream_that_breaks_off_keeps_what_came_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        yield {"text": "un"}
        raise ConnectionError("planted")

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: datasets.IterableDataset.from_generator(rows)
    )
    stream = stream_documents("wiki", config="x", split="train", text_column="text")
    assert next(stream) == "un"
    with pytest.raises(CorpusError, match="Could not stream wiki .x., split train .*: planted"):
        next(stream)


# test_storage.py


def test_a_full_disk_loses_no_json_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})

    def full(self: Path, text: str, **options: Any) -> int:
        self.write_bytes(text[:3].encode())  # some of it still fitted
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="Could not write .*a.json: No space left"):
        write_json(file, {"new": 2})
    assert json.loads(file.read_bytes()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with pytest.raises(KeyboardInterrupt), replacing(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert read_json(file) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with replacing(file) as part:
        part.write_text('{"new": 2}')
        assert read_json(file) == {"old": 1}
    assert read_json(file) == {"new": 2}


def test_a_folder_in_the_files_place_is_reported(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Could not write .*: Is a directory"):
        write_json(tmp_path, {})
    with pytest.raises(StorageError, match="is not readable JSON: .*Is a directory"):
        read_json(tmp_path)


def test_who_reads_the_old_file_meanwhile_reads_it_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with file.open(encoding="utf-8") as reader:
        write_json(file, {"new": 2})
        assert json.load(reader) == {"old": 1}


# more of test_corpora.py and test_texts.py


def test_parts_keep_the_order_of_the_documents() -> None:
    corpora = Corpora.from_tokens({"x": [[5 + n] for n in range(20)]})
    for part in corpora.split(0.5, seed=0):
        tokens = part.documents["x"].tokens.tolist()
        assert tokens == sorted(tokens)


def test_a_layout_keeps_what_is_not_named() -> None:
    corpora = Corpora.from_tokens({"x": [[5] * 9]}, ctx_len=4, bos_id=1, count_bos=True)
    for other in (corpora.laid_out(pack=False), corpora.laid_out(bos_id=2)):
        assert (other.ctx_len, other.count_bos) == (4, True)
    assert corpora.laid_out(bos_id=2).pack


def test_files_are_read_from_the_column_that_is_named(tmp_path: Path, speller: Any) -> None:
    (tmp_path / "x.csv").write_text("text,body\nwrong,ab\n", encoding="utf-8")
    files = {"fr": tmp_path / "x.csv"}
    corpora = Corpora.from_files(files, speller, text_column="body", pack=False)
    assert corpora.n_tokens == {"fr": 2}


def test_a_long_parquet_file_is_read_to_its_end(tmp_path: Path) -> None:
    documents = [str(n) for n in range(70_000)]  # pyarrow hands out 65,536 rows at once
    pd.DataFrame({"text": documents}).to_parquet(tmp_path / "x.parquet")
    assert list(read_documents(tmp_path / "x.parquet")) == documents
