"""Options that several commands take, and what their words mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_lang.errors import OptionError

if TYPE_CHECKING:
    from lens_lang.corpora import Corpora

RunDir = Annotated[Path, typer.Argument(help="Run folder, as `collect` made it.")]
Model = Annotated[str, typer.Option(help="gemma-3-270m, a folder, or a hub id.")]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", help="LANGUAGE=FILE, once per language; .txt .jsonl .csv (.gz) .parquet."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
CtxLen = Annotated[int, typer.Option(help="Tokens per row, BOS included.")]
Column = Annotated[str, typer.Option(help="Column that holds the text.")]
Neurons = Annotated[str, typer.Option(help="Neuron file in the run folder.")]
Top = Annotated[float, typer.Option(help="Share of all neurons to select.")]


def text_files(text: list[str] | None) -> dict[str, str | Path]:
    """LANGUAGE=FILE pairs, checked as far as that is possible without a model."""
    from lens_lang.languages import language_tag
    from lens_lang.texts import check_text_file

    files: dict[str, str | Path] = {}
    for pair in text or []:
        lang, equals, path = pair.partition("=")
        if not equals or lang in files:
            raise OptionError(f"--text takes LANGUAGE=FILE, once per language, got {pair!r}")
        language_tag(lang)
        files[lang] = path
    for file in files.values():
        check_text_file(file)
    return files


def corpora_of(
    model: Any,
    files: dict[str, str | Path],
    ctx_len: int,
    tokens: int | None,
    text_column: str,
    part: int = 0,
) -> "Corpora":
    """The text named on the command line, or a part of the sample: 0 to search, 1 to judge."""
    from lens_lang.corpora import Corpora

    if not files:
        sample = Corpora.sample(model, ctx_len=ctx_len).split(0.8, seed=0)[part]
        return sample if tokens is None else sample.truncate(tokens=tokens)
    # Text to judge on is read document by document, however short.
    return Corpora.from_files(
        files, model, ctx_len=ctx_len, text_column=text_column, tokens=tokens, pack=part == 0
    )


def share_of(shard: str) -> tuple[int, int]:
    """INDEX/COUNT as two numbers."""
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise OptionError(f"--shard takes INDEX/COUNT, such as 0/4, got {shard!r}")
    return int(index), int(count)
