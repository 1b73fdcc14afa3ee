"""Documents come out of files as they went in, and a bad file is named with its line."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pandas as pd
import pytest

from lens_lang.errors import CorpusError
from lens_lang.texts import read_documents, stream_documents

DOCUMENTS = ["Le chat dort.", 'Er sagte: "Ja", und ging.', "猫在睡觉。", "x" * 200_000]


def write_txt(path: Path) -> None:
    path.write_text("\n\n".join(DOCUMENTS) + "\n   \n", encoding="utf-8")


def write_jsonl(path: Path) -> None:
    rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate([*DOCUMENTS, "  "])]
    path.write_text("\n".join(rows) + "\n\n", encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate([*DOCUMENTS, " "]))


def write_parquet(path: Path) -> None:
    pd.DataFrame({"id": range(5), "text": [*DOCUMENTS, ""]}).to_parquet(path)


WRITERS: dict[str, Callable[[Path], None]] = {
    ".txt": write_txt,
    ".jsonl": write_jsonl,
    ".csv": write_csv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_documents_survive_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"text{kind}"
    WRITERS[kind](file)
    assert list(read_documents(file)) == DOCUMENTS
    if kind == ".parquet":
        return
    packed = tmp_path / f"text{kind}.gz"
    packed.write_bytes(gzip.compress(file.read_bytes(), mtime=0))
    assert list(read_documents(packed)) == DOCUMENTS


def test_another_column_can_be_named(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text('{"content": "a"}\n{"content": "b"}\n')
    assert list(read_documents(file, text_column="content")) == ["a", "b"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes("\ufefftext\nbonjour\n".encode())
    assert list(read_documents(file)) == ["bonjour"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"fine\ncaf\xe9\n", "x.txt is not UTF-8 text: line 2, byte 3 of it is 0xe9"),
        ("x.pdf", b"", "must end in .txt, .jsonl, .csv, .parquet"),
        ("x.parquet.gz", b"", "must end in"),
        ("x.txt.gz", b"no gzip", "damaged gzip file after line 0"),
        ("x.txt.gz", gzip.compress(b"a\n" * 5000, mtime=0)[:-20], "damaged gzip file after line"),
        ("x.jsonl", b'{"text": "a"}\n{"text": \n', "x.jsonl, line 2 is not JSON"),
        ("x.jsonl", b'{"texts": "a"}\n', "line 1 has no column 'text'; did you mean 'texts'"),
        ("x.jsonl", b'{"text": 5}\n', "line 1 has int in column 'text', where text is expected"),
        ("x.jsonl", b"[1]\n", "line 1 holds list, not an object"),
        ("x.csv", b"id,txt\n1,a\n", "row 2 has no column 'text'; did you mean 'txt'"),
        ("x.parquet", b"PAR1 and nothing more", "not a readable parquet file"),
    ],
)
def test_a_bad_file_is_named_with_the_place(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        list(read_documents(tmp_path / name))


def test_a_missing_file_and_a_missing_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="There is no text file .*nowhere.txt"):
        list(read_documents(tmp_path / "nowhere.txt"))
    pd.DataFrame({"body": ["a"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(CorpusError, match="no column 'text'; known here: body"):
        list(read_documents(tmp_path / "x.parquet"))


def test_the_hub_is_streamed_with_the_names_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def load_dataset(path: str, name: str | None, **options: object) -> datasets.IterableDataset:
        asked.update(path=path, name=name, **options)
        rows = [{"text": " un "}, {"text": ""}, {"text": "deux"}]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = stream_documents("wiki", config="20231101.fr", split="train", text_column="text")
    assert list(found) == ["un", "deux"]
    assert asked == {"path": "wiki", "name": "20231101.fr", "split": "train", "streaming": True}
    with pytest.raises(CorpusError, match="wiki .x., split train has no column 'body'"):
        list(stream_documents("wiki", config="x", split="train", text_column="body"))


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CorpusError, match="Could not stream nobody/nothing, split train"):
        list(stream_documents("nobody/nothing", config=None, split="train", text_column="text"))
