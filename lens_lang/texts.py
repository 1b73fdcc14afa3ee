"""Documents from files and from the hub: one string each, read as a stream.

``.txt`` holds one document a line; ``.jsonl``, ``.csv`` and ``.parquet`` one a row, in a text
column. ``.txt``, ``.jsonl`` and ``.csv`` may be gzipped.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lens_lang.errors import CorpusError, near_misses

KINDS = (".txt", ".jsonl", ".csv", ".parquet")


def check_text_file(path: str | Path) -> str:
    """Return the kind of a text file, without reading it.

    Args:
        path: The file.

    Returns:
        One of `KINDS`.

    Raises:
        CorpusError: There is no such file, or it is of another kind.
    """
    path = Path(path)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if kind not in KINDS or (kind == ".parquet" and path.suffix == ".gz"):
        raise CorpusError(
            f"Cannot read text from {path}: its name must end in {', '.join(KINDS)} (all but the "
            "last also with .gz)"
        )
    if not path.is_file():
        raise CorpusError(f"There is no text file {path}")
    return kind


def read_documents(
    path: str | Path, *, text_column: str = "text", keep_blank: bool = False
) -> Iterator[str]:
    """Yield the documents of one file, without those that are blank.

    Args:
        path: A ``.txt``, ``.jsonl``, ``.csv`` (each also ``.gz``) or ``.parquet`` file.
        text_column: Name of the column or key that holds the text, in all but ``.txt``.
        keep_blank: Yield blank ones, too, so that line n stays line n.

    Yields:
        Each document, stripped.

    Raises:
        CorpusError: The file is missing, damaged, of another kind, not UTF-8, or has no such
            column. The message names the line.
    """
    kind, path = check_text_file(path), Path(path)
    rows = (
        _parquet_rows(path, text_column)
        if kind == ".parquet"
        else text_lines(path)
        if kind == ".txt"
        else {".jsonl": _json_rows, ".csv": _csv_rows}[kind](path, text_column)
    )
    for row in rows:
        document = row.strip()
        if document or keep_blank:
            yield document


def stream_documents(
    dataset: str, *, config: str | None, split: str, text_column: str
) -> Iterator[str]:
    """Yield the documents of one data set of the hub as they arrive.

    Args:
        dataset: Id of the data set, such as ``wikimedia/wikipedia``.
        config: Name of its configuration, such as ``20231101.fr``.
        split: Its split, such as ``train``.
        text_column: The column that holds the text.

    Yields:
        Each document, stripped, without those that are blank.

    Raises:
        CorpusError: The data set cannot be loaded, or has no such column.
    """
    import datasets

    what = f"{dataset}{f' ({config})' if config else ''}, split {split}"
    try:
        rows = datasets.load_dataset(dataset, config, split=split, streaming=True)
        for row in rows:
            document = _field(row, text_column, what).strip()
            if document:
                yield document
    except CorpusError:
        raise
    # The hub's client, its data readers and the network raise classes without a common base.
    except Exception as error:
        raise CorpusError(f"Could not stream {what} from the hub: {error}") from error


def _field(row: Any, column: str, where: str) -> str:
    if not isinstance(row, dict):
        raise CorpusError(f"{where} holds {type(row).__name__}, not an object with text columns")
    if column not in row:
        raise CorpusError(f"{where} has no column {column!r}{near_misses(column, map(str, row))}")
    value = row[column]
    if not isinstance(value, str):
        raise CorpusError(
            f"{where} has {type(value).__name__} in column {column!r}, where text is expected"
        )
    return value


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, gzipped or not.

    Args:
        path: The file.

    Raises:
        CorpusError: It cannot be read, or is not UTF-8; the message names the line.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for raw in file:
                number += 1
                # a byte-order mark is no part of the first document
                yield raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 text: line {number}, byte {error.start} of it is "
            f"0x{error.object[error.start]:02x}. Convert the file to UTF-8"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorpusError(f"{path} is a damaged gzip file after line {number}: {error}") from error
    except OSError as error:
        raise CorpusError(f"Cannot read {path}: {error.strerror or error}") from error


def _json_rows(path: Path, text_column: str) -> Iterator[str]:
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorpusError(f"{path}, line {number} is not JSON: {error}") from error
        yield _field(row, text_column, f"{path}, line {number}")


def _csv_rows(path: Path, text_column: str) -> Iterator[str]:
    # Documents may be longer than the reader's default limit of 128 KiB for a field.
    csv.field_size_limit(2**31 - 1)
    try:
        for number, row in enumerate(csv.DictReader(text_lines(path), strict=True), 2):
            yield _field(row, text_column, f"{path}, row {number}")
    except csv.Error as error:
        raise CorpusError(f"{path} is not readable CSV: {error}") from error


def _parquet_rows(path: Path, text_column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if text_column not in names:
                raise CorpusError(
                    f"{path} has no column {text_column!r}{near_misses(text_column, names)}"
                )
            for batch in file.iter_batches(columns=[text_column]):
                for row in batch.to_pylist():
                    yield _field(row, text_column, str(path))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path} is not a readable parquet file: {error}") from error
