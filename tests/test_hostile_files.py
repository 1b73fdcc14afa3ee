"""Files that are hostile, or broken in unusual ways, end in one sentence."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from lens_lang import storage
from lens_lang.corpora import Corpora
from lens_lang.errors import CorpusError, StorageError
from lens_lang.results import load
from lens_lang.storage import read_json, read_tensors
from lens_lang.texts import read_documents

DEEP = "[" * 200_000


def test_half_a_surrogate_pair_is_a_corpus_error(tmp_path: Path, speller: Any) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "ab\\ud800c"}\n')
    with pytest.raises(CorpusError, match="document of 'fr' .* surrogate"):
        Corpora.from_files({"fr": tmp_path / "x.jsonl"}, speller, pack=False)


def test_parquet_that_is_not_utf8_is_a_corpus_error(tmp_path: Path) -> None:
    offsets = pyarrow.array([0, 2], pyarrow.int32()).buffers()[1]
    text = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, offsets, pyarrow.py_buffer(b"\xe9\xe9")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match="x.parquet is not a readable parquet file"):
        list(read_documents(tmp_path / "x.parquet"))


def test_deeply_nested_json_is_refused_everywhere(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(DEEP + "\n")
    with pytest.raises(CorpusError, match="line 1 is not JSON"):
        list(read_documents(tmp_path / "x.jsonl"))
    with pytest.raises(StorageError, match="not readable JSON"):
        read_json(tmp_path / "x.jsonl")
    save_file({"x": torch.zeros(1)}, tmp_path / "a", metadata={storage.FORMAT: DEEP})
    with pytest.raises(StorageError, match="header of .* is damaged"):
        read_tensors(tmp_path / "a")


def test_token_ids_beyond_32_bits_are_refused() -> None:
    with pytest.raises(CorpusError, match="documents of 'x' contain .*token id"):
        Corpora.from_tokens({"x": [[2**32 + 5]]})


def test_a_class_that_is_no_name_is_a_damaged_header(tmp_path: Path) -> None:
    about = {"format_version": storage.FORMAT_VERSION, "class": [], "header": {}}
    metadata = {storage.FORMAT: json.dumps(about)}
    save_file({"x": torch.zeros(1)}, tmp_path / "a", metadata=metadata)
    with pytest.raises(StorageError, match="header of .* is damaged"):
        load(tmp_path / "a")


def test_an_open_quote_does_not_swallow_the_rest_of_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('text\n"un\ndeux\ntrois\n')
    with pytest.raises(CorpusError, match="not readable CSV: unexpected end of data"):
        list(read_documents(tmp_path / "x.csv"))  # one document of three lines today
