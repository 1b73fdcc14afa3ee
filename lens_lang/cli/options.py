"""Options that several commands take, and what their words mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_lang.cli.printing import say
from lens_lang.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lens_lang.corpora import Corpora
    from lens_lang.parallel import ParallelCorpora
    from lens_lang.questions import Question

RunDir = Annotated[Path, typer.Argument(help="Run folder, as `collect` made it.")]
Model = Annotated[str, typer.Option(help="gemma-3-270m, a folder, or a hub id.")]
Device = Annotated[
    str | None, typer.Option(help="Where the model runs: cuda, cuda:1, mps; without, the CPU.")
]
Texts = Annotated[
    list[str] | None,
    typer.Option(
        "--text", help="LANGUAGE=FILE, once per language; .txt .jsonl .csv (.gz) .parquet."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Of the weights, such as bfloat16: half the memory, twice the speed."),
]
CtxLen = Annotated[
    int | None,
    typer.Option(help="Tokens per row, BOS included: 256, of the packaged text 128."),
]
Column = Annotated[str, typer.Option(help="Column that holds the text.")]
Neurons = Annotated[str, typer.Option(help="Neuron file in the run folder.")]
Task = Annotated[
    str | None,
    typer.Option(
        help="facts or entailment, of lens_lang or =FILE; xnli from the hub; relations=FOLDER of "
        "mParaRel or mLAMA; edits=FILE[,FILE] of MzsRE (edits-own: facts in each language)."
    ),
]
Instruction = Annotated[str, typer.Option(help="Of entailment: en, or native in each language.")]
Demonstrations = Annotated[
    int, typer.Option(help="Solved questions in front of each, the same in every language.")
]
Languages = Annotated[
    str | None, typer.Option(help="With commas; without, all that every example is given in.")
]
Items = Annotated[int | None, typer.Option(help="At most so many examples, evenly chosen.")]
Top = Annotated[float, typer.Option(help="Share of all neurons to select.")]


def dtype_of(dtype: str | None) -> dict[str, Any]:
    """What `load_model` is told of the dtype named on the command line: nothing where none was."""
    if dtype is None:
        return {}
    import torch

    from lens_lang.errors import near_misses

    known = ("bfloat16", "float16", "float32", "float64")
    if dtype not in known:
        raise OptionError(
            f"--dtype takes {', '.join(known)}, got {dtype!r}{near_misses(dtype, known)}"
        )
    return {"dtype": getattr(torch, dtype)}


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
    ctx_len: int | None,
    tokens: int | None,
    text_column: str,
    part: int = 0,
    *,
    languages: "Sequence[str] | None" = None,
) -> "Corpora":
    """The text named on the command line, or a part of the sample: 0 to search, 1 to judge."""
    from lens_lang.corpora import Corpora, sample_sentences

    if not files:
        known = list(sample_sentences())
        wanted = known if languages is None else [lang for lang in known if lang in languages]
        if not wanted:
            raise OptionError(
                f"The packaged text has none of {', '.join(languages or ())}: name your own with "
                "--text LANGUAGE=FILE"
            )
        sample = Corpora.sample(
            model, ctx_len=128 if ctx_len is None else ctx_len, languages=wanted
        )
        sample = sample.split(0.8, seed=0)[part]
        return sample if tokens is None else sample.truncate(tokens=tokens)
    # Text to judge on is read document by document, however short.
    return Corpora.from_files(
        files,
        model,
        ctx_len=256 if ctx_len is None else ctx_len,
        text_column=text_column,
        tokens=tokens,
        pack=part == 0,
    )


def share_of(shard: str) -> tuple[int, int]:
    """INDEX/COUNT as two numbers."""
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise OptionError(f"--shard takes INDEX/COUNT, such as 0/4, got {shard!r}")
    return int(index), int(count)


def languages_of(languages: str | None) -> list[str] | None:
    """The languages named with commas; None where none were named."""
    return None if languages is None else [each.strip() for each in languages.split(",")]


def questions_of(
    task: str, instruction: str, demonstrations: int, languages: str | None, items: int | None
) -> "list[Question]":
    """The questions of a task named on the command line."""
    from lens_lang.errors import near_misses
    from lens_lang.items import (
        inference_template,
        read_entailment,
        read_facts,
        read_questions,
        stream_questions,
    )
    from lens_lang.questions import demonstrated
    from lens_lang.relations import read_edits, read_relations

    kind, equals, source = task.partition("=")
    path = Path(source) if equals else None
    if instruction not in ("en", "native"):
        raise OptionError(f"--instruction must be en or native, got {instruction!r}")
    if kind == "facts":
        found = read_facts(path)
    elif kind == "entailment":
        template = inference_template("native" if instruction == "native" else "en")
        found = (
            read_entailment(instruction="native" if instruction == "native" else "en")
            if path is None
            else read_questions(path, template)
        )
    elif kind == "xnli" and path is None:
        template = inference_template("native" if instruction == "native" else "en")
        found = stream_questions("facebook/xnli", template, config="all_languages")
    elif kind == "relations" and path is not None:
        named = languages_of(languages)
        if named is None:
            raise OptionError("--task relations needs --languages, such as en,fr,zh")
        found = read_relations(path, named)
    elif kind in ("edits", "edits-own") and path is not None:
        files = [each.strip() for each in source.split(",")]
        found = read_edits(files, fact="english" if kind == "edits" else "own")
    else:
        known = ("facts", "entailment", "xnli", "relations=FOLDER", "edits=FILE")
        raise OptionError(
            f"--task takes {', '.join(known)}, got {task!r}{near_misses(kind, known)}"
        )
    found = demonstrated(found, demonstrations) if demonstrations else found
    return [found[number] for number in evenly(len(found), items)]


def evenly(count: int, items: int | None) -> list[int]:
    """The places of so many of `count` things, evenly chosen; all of them for None."""
    if items is None or items >= count:
        return list(range(count))
    if items < 1:
        raise OptionError(f"--items must be at least 1, got {items}")
    return [place * count // items for place in range(items)]


def examples_of(model: Any, asked: "list[Question]", languages: str | None) -> "ParallelCorpora":
    """Questions as examples, in the languages named on the command line."""
    from lens_lang.parallel import ParallelCorpora

    return ParallelCorpora.from_questions(asked, model, languages=languages_of(languages))


def vocabulary_of(model: Any, train: "Corpora") -> Any:
    """Which language each vocabulary item belongs to: by counts, then script, then lingua."""
    from importlib.util import find_spec

    from lens_lang.identification import LinguaIdentifier
    from lens_lang.vocabulary import VocabularyLanguages

    parts = [VocabularyLanguages.from_corpora(train, model)]
    if "en" in train.languages:  # else a script would call English words another language's
        parts.append(VocabularyLanguages.from_script(model, train.languages))
    if find_spec("lingua"):
        say("asking lingua about the vocabulary; once for each model and choice of languages")
        parts.append(
            VocabularyLanguages.from_identifier(model, train.languages, LinguaIdentifier())
        )
    else:
        say("without lingua (pip install 'lens-lang[lid]') only words of the text are known")
    return VocabularyLanguages.combine(*parts)
