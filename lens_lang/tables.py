"""Rows of data files as objects, and what is read from their columns.

JSON lines, lists in JSON and parquet, whoever wrote them: what is wrong in one is named by its
file and row.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from lens_lang.errors import CorpusError, LanguageError, near_misses
from lens_lang.languages import language_tag
from lens_lang.texts import text_lines

tag_of = lru_cache(4096)(language_tag)
"""`language_tag`, which remembers: the rows of a file name the same few languages."""


def rows_of(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data file as objects.

    Args:
        path: ``.jsonl`` (or ``.jsonl.gz``), ``.json`` with a list, or ``.parquet``.

    Raises:
        CorpusError: The file is missing, damaged, or of another kind; the message names the row.

    Yields:
        One object per row.
    """
    path = Path(path)
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if not path.is_file():
        raise CorpusError(f"There is no file {path}")
    if kind == ".jsonl":
        found: Iterable[Any] = _json_lines(path)
    elif kind == ".json" and path.suffix != ".gz":
        found = _json_list(path)
    elif kind == ".parquet" and path.suffix != ".gz":
        found = _parquet_rows(path)
    else:
        raise CorpusError(
            f"Cannot read items from {path}: its name must end in .jsonl, .jsonl.gz, "
            ".json or .parquet"
        )
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise CorpusError(f"Row {number} of {path} is {type(row).__name__}, not an object")
        yield row


def value_of(row: Mapping[str, Any], column: str, place: str) -> Any:
    """Return what a row has in a column.

    Args:
        row: The row.
        column: Name of the column.
        place: What to call the row in a message.

    Raises:
        CorpusError: There is no such column.
    """
    if column not in row:
        raise CorpusError(f"{place} has no column {column!r}{near_misses(column, map(str, row))}")
    return row[column]


def word_of(row: Mapping[str, Any], column: str, place: str) -> str | None:
    """Return a text or a number as text; None where there is none.

    Args:
        row: The row.
        column: Name of the column, which may be missing.
        place: What to call the row in a message.

    Raises:
        CorpusError: Something else is there.
    """
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise CorpusError(
            f"{place} has {type(value).__name__} in column {column!r}, where text is expected"
        )
    return text_of(str(value), column, place)


def text_of(value: Any, column: str, place: str) -> str:
    """Return a text that is one, and can be written.

    Args:
        value: What is expected to be a text.
        column: Name of its column.
        place: What to call its row in a message.

    Raises:
        CorpusError: It is no text, or blank, or has half a surrogate pair.
    """
    if not isinstance(value, str) or not value.strip():
        raise CorpusError(
            f"{place}: {column!r} must be a text, or texts by language, none of them empty"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise CorpusError(f"{place}: {column!r} has half a surrogate pair") from None
    return value


def by_tag(pairs: Iterable[tuple[Any, Any]], place: str) -> dict[str, Any]:
    """Return what is given by language by the languages' tags.

    Args:
        pairs: A language, under any of its names, and what belongs to it.
        place: What to call all of them in a message.

    Raises:
        LanguageError: A language is unknown, or given twice.
    """
    named: dict[str, Any] = {}
    for name, each in pairs:
        try:
            tag = tag_of(str(name))
        except LanguageError as error:
            raise LanguageError(f"{place}: {error}") from error
        if tag in named:
            raise LanguageError(f"{place} is given twice in {tag!r}")
        named[tag] = each
    return named


def _json_lines(path: Path) -> Iterator[Any]:
    for number, line in enumerate(text_lines(path), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CorpusError(f"{path}, line {number} is not JSON: {error}") from error


def _json_list(path: Path) -> list[Any]:
    try:
        content = json.loads("".join(text_lines(path)))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, list):
        raise CorpusError(f"{path} holds {type(content).__name__}, where a list is expected")
    return content


def _parquet_rows(path: Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise CorpusError(f"{path} is not a readable parquet file: {error}") from error
