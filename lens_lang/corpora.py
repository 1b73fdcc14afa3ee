"""Text per language, as batches of tokens.

`Corpora` holds the documents of every language as token ids, and how they are laid out in
rows: packed end to end into full rows of ``ctx_len`` tokens (as in Tang et al. 2024, where a
document can see the end of the one before it), or one document a row, padded. The layout is a
view: `Corpora.laid_out` changes it without tokenising again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from lens_lang.batches import TokenBatch, padded_batch
from lens_lang.documents import Documents, TokenisingModel, bos_token, tokenise, tokenizer_of
from lens_lang.errors import CorpusError, OptionError
from lens_lang.languages import distinct_languages, find_language, language_tag
from lens_lang.texts import read_documents, stream_documents


@dataclass(frozen=True, eq=False)
class Corpora:
    """The documents of several languages, and how they lie in rows.

    Attributes:
        documents: Documents by language, in the order of the languages.
        ctx_len: Tokens per row, BOS included. None gives every document a row of its own.
        bos_id: Put in front of every row; None puts nothing there.
        count_bos: Whether statistics count BOS.
        pack: Fill rows from documents end to end (the tail that does not fill a row is left
            out), rather than giving every document its own rows.
        shard: (index, count): of all batches, only every count-th, from index on.
    """

    documents: Mapping[str, Documents]
    ctx_len: int | None = None
    bos_id: int | None = None
    count_bos: bool = False
    pack: bool = False
    shard: tuple[int, int] = field(default=(0, 1))

    def __post_init__(self) -> None:
        distinct_languages(self.documents)
        if self.ctx_len is not None and self.ctx_len < 2:
            raise OptionError(f"ctx_len must be at least 2 tokens, got {self.ctx_len}")
        if self.pack and self.ctx_len is None:
            raise OptionError("Packing needs ctx_len, the number of tokens in a row")
        for lang, documents in self.documents.items():
            if len(documents.tokens) == 0:
                raise CorpusError(f"The text of {lang!r} is empty")
        object.__setattr__(self, "documents", MappingProxyType(dict(self.documents)))

    @classmethod
    def from_tokens(
        cls,
        documents: Mapping[str, Sequence[Sequence[int] | Int[Tensor, "_"]]],
        *,
        ctx_len: int | None = None,
        bos_id: int | None = None,
        count_bos: bool = False,
        pack: bool | None = None,
    ) -> "Corpora":
        """Build corpora from token ids, without a tokeniser.

        Args:
            documents: For each language, documents as lists or tensors of token ids. Labels are
                kept as they are; they need not be language tags.
            ctx_len: Tokens per row; None gives every document a row of its own.
            bos_id: Token to put in front of every row.
            count_bos: Whether statistics count it.
            pack: Fill rows end to end; the default packs when `ctx_len` is given.

        Returns:
            The corpora.

        Raises:
            CorpusError: A language has no token, or too few for one packed row.

        Examples:
            >>> Corpora.from_tokens({"xx": [[5, 9, 3]]}).n_tokens
            {'xx': 3}
        """
        joined = {}
        for lang, docs in documents.items():
            pieces = [_token_row(doc, lang) for doc in docs]
            if any(bool((piece < 0).any()) for piece in pieces):
                raise CorpusError(f"The documents of {lang!r} contain a negative token id")
            if any(bool((piece >= 2**31).any()) for piece in pieces):
                raise CorpusError(f"The documents of {lang!r} contain a token id above 2**31 - 1")
            joined[lang] = Documents.join(pieces, [0] * len(pieces))
        pack = ctx_len is not None if pack is None else pack
        corpora = cls(joined, ctx_len=ctx_len, bos_id=bos_id, count_bos=count_bos, pack=pack)
        return corpora._with_full_rows()

    @classmethod
    def from_texts(
        cls,
        texts: Mapping[str, Iterable[str]],
        model: TokenisingModel,
        *,
        ctx_len: int = 256,
        tokens: int | None = None,
        bos: bool | None = None,
        pack: bool = True,
    ) -> "Corpora":
        """Tokenise documents.

        Args:
            texts: For each language, under any of its names, its documents. Any iterable will
                do; no more of it is read than `tokens` need.
            model: Whose tokeniser to use.
            ctx_len: Tokens per row, BOS included.
            tokens: Stop after this many tokens per language. None takes all.
            bos: Put BOS in front of every row. None does what TransformerLens does for this
                model (``cfg.default_prepend_bos``). BOS is not counted: see `laid_out`.
            pack: Fill rows end to end; False gives every document its own rows, padded.

        Returns:
            The corpora, languages in the order given.

        Raises:
            LanguageError: A language is unknown, or given twice.
            CorpusError: A language has no text, or too little for one row.
        """
        tokenizer = tokenizer_of(model)
        tags = [language_tag(name) for name in texts]
        distinct_languages(tags)
        documents = {
            tag: tokenise(tokenizer, docs, limit=tokens, lang=tag)
            for tag, docs in zip(tags, texts.values(), strict=True)
        }
        corpora = cls(documents, ctx_len=ctx_len, bos_id=bos_token(model, bos), pack=pack)
        return corpora._with_full_rows()

    @classmethod
    def from_files(
        cls,
        files: Mapping[str, str | Path],
        model: TokenisingModel,
        *,
        ctx_len: int = 256,
        text_column: str = "text",
        tokens: int | None = None,
        bos: bool | None = None,
        pack: bool = True,
    ) -> "Corpora":
        """Tokenise one file per language.

        Args:
            files: For each language, under any of its names, a ``.txt`` (one document a line),
                ``.jsonl``, ``.csv``, ``.parquet``, or gzipped text file.
            model: Whose tokeniser to use.
            ctx_len: Tokens per row, BOS included.
            text_column: The column that holds the text, in all but ``.txt``.
            tokens: Stop after this many tokens per language.
            bos: See `from_texts`.
            pack: See `from_texts`.

        Returns:
            The corpora, languages in the order given.

        Raises:
            LanguageError: A language is unknown, or given twice.
            CorpusError: A file is missing, damaged, not UTF-8, empty, or has no such column.
        """
        if not isinstance(files, Mapping):
            raise OptionError(
                f"files must be {{language: path}}, got {type(files).__name__}: write "
                f"{{'en': {str(files)!r}}}"
            )
        texts = {
            lang: read_documents(path, text_column=text_column) for lang, path in files.items()
        }
        return cls.from_texts(texts, model, ctx_len=ctx_len, tokens=tokens, bos=bos, pack=pack)

    @classmethod
    def from_hub(
        cls,
        dataset: str,
        model: TokenisingModel,
        *,
        languages: Sequence[str],
        config: str | None = "{lang}",
        split: str = "train",
        text_column: str = "text",
        tokens: int = 1_000_000,
        ctx_len: int = 256,
    ) -> "Corpora":
        """Stream as much of a hub data set as is needed.

        Args:
            dataset: Id of the data set. May contain ``{lang}``.
            model: Whose tokeniser to use.
            languages: Languages as the data set spells them.
            config: Name of the configuration, with ``{lang}`` in it.
            split: The split.
            text_column: The column that holds the text.
            tokens: Tokens per language.
            ctx_len: Tokens per row, BOS included.

        Returns:
            Packed corpora, languages in the order given.

        Raises:
            LanguageError: A language is unknown, or given twice.
            CorpusError: The data set cannot be streamed.
        """
        texts = {
            lang: stream_documents(
                dataset.format(lang=lang),
                config=None if config is None else config.format(lang=lang),
                split=split,
                text_column=text_column,
            )
            for lang in languages
        }
        return cls.from_texts(texts, model, ctx_len=ctx_len, tokens=tokens)

    @classmethod
    def sample(
        cls,
        model: TokenisingModel,
        *,
        ctx_len: int = 128,
        languages: Sequence[str] | None = None,
        bos: bool | None = None,
        pack: bool = True,
    ) -> "Corpora":
        """Tokenise the sample text that comes with lens_lang.

        The same 120 sentences in English, German, Spanish, French, Indonesian, Japanese,
        Russian, Vietnamese and Chinese, written for this project. Enough to try everything and
        to find strong effects; too little to publish on.

        Args:
            model: Whose tokeniser to use.
            ctx_len: Tokens per row, BOS included.
            languages: Which languages; None takes all nine.
            bos: See `from_texts`.
            pack: See `from_texts`.

        Returns:
            The corpora. Document n of every language is the same sentence.
        """
        sentences = sample_sentences()
        known = list(sentences)
        wanted = known if languages is None else [known[find_language(x, known)] for x in languages]
        texts = {lang: sentences[lang] for lang in wanted}
        return cls.from_texts(texts, model, ctx_len=ctx_len, bos=bos, pack=pack)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages, in order."""
        return tuple(self.documents)

    @property
    def row_tokens(self) -> int:
        """Tokens of text in a full row, BOS not among them; 0 if rows are whole documents."""
        return 0 if self.ctx_len is None else self.ctx_len - (self.bos_id is not None)

    @property
    def n_tokens(self) -> dict[str, int]:
        """Tokens of text of each language that lie in rows, BOS not among them."""
        return {
            lang: len(docs.tokens) - (len(docs.tokens) % self.row_tokens if self.pack else 0)
            for lang, docs in self.documents.items()
        }

    @property
    def digest(self) -> str:
        """Fingerprint of languages, tokens and layout: equal only for the same rows."""
        digest = hashlib.sha256(json.dumps(self._layout(), sort_keys=True).encode())
        for lang, docs in self.documents.items():
            digest.update(lang.encode())
            for tensor in (docs.tokens, docs.ends):
                digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """Return layout, token counts and digest, for a result's provenance."""
        return {**self._layout(), "n_tokens": self.n_tokens, "digest": self.digest}

    def __getitem__(self, lang: str) -> "Corpora":
        """Return one language's corpora."""
        tag = self.languages[find_language(lang, self.languages)]
        return replace(self, documents={tag: self.documents[tag]})

    def __repr__(self) -> str:
        rows = f"rows of {self.ctx_len}" if self.pack else "one row a document"
        sizes = ", ".join(f"{lang} {n:,}" for lang, n in self.n_tokens.items())
        return f"Corpora({rows}; tokens: {sizes})"

    def laid_out(
        self,
        *,
        ctx_len: int | None = None,
        bos_id: int | None | Literal["same"] = "same",
        count_bos: bool | None = None,
        pack: bool | None = None,
    ) -> "Corpora":
        """Return the same documents in other rows. What is not named stays as it is.

        Args:
            ctx_len: Tokens per row.
            bos_id: Token in front of every row; None for none.
            count_bos: Whether statistics count BOS.
            pack: Fill rows end to end, or give every document its own rows.
        """
        return replace(
            self,
            ctx_len=self.ctx_len if ctx_len is None else ctx_len,
            bos_id=self.bos_id if bos_id == "same" else bos_id,
            count_bos=self.count_bos if count_bos is None else count_bos,
            pack=self.pack if pack is None else pack,
        )

    def one_document_a_row(self, *, max_tokens: int) -> "Corpora":
        """Give every document one row, cut at a number of tokens, in the order of `longest_first`.

        Documents with fewer than two tokens, BOS among them, are left out: nothing precedes
        their token, so they say nothing about attention. `cut_documents` counts both kinds.

        Args:
            max_tokens: Tokens of text in a row, at most; BOS comes on top.

        Raises:
            CorpusError: A language has no document left.
        """
        if max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, got {max_tokens}")
        rows = {
            lang: self.documents[lang].select(kept.tolist()).cut_each(max_tokens)
            for lang, kept in self.longest_first().items()
        }
        return replace(self, documents=rows, ctx_len=None, pack=False)

    def longest_first(self) -> dict[str, Int[Tensor, "_"]]:
        """Return the numbers of the documents long enough for `one_document_a_row`, longest first.

        Raises:
            CorpusError: A language has none.
        """
        found = {}
        for lang, docs in self.documents.items():
            order = docs.lengths.argsort(descending=True, stable=True)
            found[lang] = order[docs.lengths[order] >= self._fewest_tokens]
            if not len(found[lang]):
                raise CorpusError(
                    f"{lang!r} has no document of at least {self._fewest_tokens} tokens"
                )
        return found

    def cut_documents(self, *, max_tokens: int) -> dict[str, dict[str, int]]:
        """Return how many documents `one_document_a_row` would cut, and leave out.

        Returns:
            ``{"cut": {lang: n}, "left out": {lang: n}}``, with the languages that have any.
        """
        found: dict[str, dict[str, int]] = {"cut": {}, "left out": {}}
        for lang, docs in self.documents.items():
            for what, those in (
                ("cut", docs.lengths > max_tokens),
                ("left out", docs.lengths < self._fewest_tokens),
            ):
                if bool(those.any()):
                    found[what][lang] = int(those.sum())
        return found

    @property
    def _fewest_tokens(self) -> int:
        """Tokens that a document needs for one of them to attend to another."""
        return 2 - (self.bos_id is not None)

    def split(self, fraction: float, *, seed: int) -> tuple["Corpora", "Corpora"]:
        """Divide the documents at random, for example into a part to search and one to judge.

        Languages with equally many documents are divided alike, so parallel text stays
        parallel and no sentence is judged whose translation was searched.

        Args:
            fraction: Share of the documents in the first part.
            seed: Of the division; the same seed divides the same way.

        Returns:
            Both parts, in the same layout.

        Raises:
            CorpusError: A part would be empty.
        """
        if not 0 < fraction < 1:
            raise OptionError(f"fraction must lie between 0 and 1, got {fraction}")
        parts: tuple[dict[str, Documents], dict[str, Documents]] = ({}, {})
        for lang, docs in self.documents.items():
            order = torch.randperm(len(docs), generator=torch.Generator().manual_seed(seed))
            cut = round(len(docs) * fraction)
            if cut in (0, len(docs)):
                raise CorpusError(
                    f"{lang!r} has {len(docs)} documents: splitting off {fraction} of them leaves "
                    "a part empty"
                )
            for part, numbers in zip(parts, (order[:cut], order[cut:]), strict=True):
                part[lang] = docs.select(sorted(numbers.tolist()))
        return replace(self, documents=parts[0]), replace(self, documents=parts[1])

    def truncate(self, *, tokens: int) -> "Corpora":
        """Keep the first documents of each language, up to a number of tokens.

        The last document kept is cut to end at the limit. The bytes of a cut document are
        taken to be spread evenly over its tokens.

        Args:
            tokens: Tokens to keep per language; languages with fewer keep all.
        """
        if tokens < 1:
            raise OptionError(f"tokens must be at least 1, got {tokens}")
        return replace(
            self, documents={lang: docs.cut(tokens) for lang, docs in self.documents.items()}
        )

    def sharded(self, index: int, count: int) -> "Corpora":
        """Return one machine's share of the batches: the shares' results add up to the whole.

        Batches are dealt out whole, so every forward pass is the one that a single machine
        would have run, and integer counts add up exactly.

        Args:
            index: Which share, from 0.
            count: How many shares.
        """
        if self.shard != (0, 1):
            raise OptionError("These corpora are a share already: share the whole into more parts")
        if not 0 <= index < count:
            raise OptionError(f"Share {index} of {count} does not exist: index runs from 0")
        return replace(self, shard=(index, count))

    def n_batches(self, batch_size: int) -> dict[str, int]:
        """Return how many batches each language has in this shard."""
        _check_batch_size(batch_size)
        index, count = self.shard
        totals = {}
        for lang, docs in self._with_full_rows().documents.items():
            whole = -(-len(self._rows(docs)) // batch_size)
            totals[lang] = len(range(index, whole, count))
        return totals

    def batches(
        self, batch_size: int, *, padding_side: Literal["left", "right"] = "right"
    ) -> Iterator[TokenBatch]:
        """Yield the rows, language by language.

        Args:
            batch_size: Rows in a batch; the last of a language may have fewer.
            padding_side: Where shorter rows are padded.

        Yields:
            Batches of one language each, always the same ones in the same order.
        """
        _check_batch_size(batch_size)
        index, count = self.shard
        for lang, docs in self._with_full_rows().documents.items():
            rows = self._rows(docs)
            starts = range(0, len(rows), batch_size)
            for start in islice(starts, index, None, count):
                chosen = rows[start : start + batch_size]
                yield self._batch(lang, docs, chosen, padding_side)

    def _layout(self) -> dict[str, Any]:
        return {
            "languages": list(self.languages),
            "ctx_len": self.ctx_len,
            "bos_id": self.bos_id,
            "count_bos": self.count_bos,
            "pack": self.pack,
            "shard": list(self.shard),
        }

    def _with_full_rows(self) -> "Corpora":
        """These corpora, if every language fills a row.

        Checked where rows are needed, and not for every value: a small part held out by `split`
        is read document by document.
        """
        for lang, docs in self.documents.items():
            if self.pack and len(docs.tokens) < self.row_tokens:
                raise CorpusError(
                    f"{lang!r} has {len(docs.tokens)} tokens, fewer than one row of "
                    f"{self.row_tokens}: give more text, a smaller ctx_len, or pack=False"
                )
        return self

    def _rows(self, docs: Documents) -> list[tuple[int, int, int]]:
        """(start, end, document) of every row, in tokens of the language."""
        width = self.row_tokens
        if self.pack:
            full = len(docs.tokens) // width
            return [(row * width, (row + 1) * width, row) for row in range(full)]
        rows = []
        start = 0
        for number, end in enumerate(docs.ends.tolist()):
            step = width or max(end - start, 1)
            rows += [(left, min(left + step, end), number) for left in range(start, end, step)]
            start = end
        return rows

    def _batch(
        self,
        lang: str,
        docs: Documents,
        rows: list[tuple[int, int, int]],
        padding_side: Literal["left", "right"],
    ) -> TokenBatch:
        return padded_batch(
            [docs.tokens[start:end] for start, end, _ in rows],
            language=lang,
            numbers=[document for _, _, document in rows],
            bos_id=self.bos_id,
            count_bos=self.count_bos,
            padding_side=padding_side,
        )


def sample_sentences() -> dict[str, list[str]]:
    """Return the sample text by language: sentence n says the same in every language.

    Examples:
        >>> sentences = sample_sentences()
        >>> list(sentences), {len(lines) for lines in sentences.values()}
        (['en', 'de', 'es', 'fr', 'id', 'ja', 'ru', 'vi', 'zh'], {120})
    """
    text = files("lens_lang").joinpath("data", "sample.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    languages = [key for key in rows[0] if key not in ("key", "topic", "register")]
    return {lang: [row[lang] for row in rows] for lang in languages}


def _token_row(document: Any, lang: str) -> Int[Tensor, "doc_token"]:
    try:
        row = torch.as_tensor(document)
    except (TypeError, ValueError, RuntimeError):
        row = torch.zeros(())  # neither numbers nor a row of them
    if row.ndim != 1 or (row.is_floating_point() and len(row)):
        raise CorpusError(
            f"A document of {lang!r} must be a list of token ids, got {type(document).__name__}: "
            "give a list of such lists"
        )
    return row.to("cpu", torch.int64)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise OptionError(f"batch_size must be at least 1, got {batch_size}")


def check_fits(corpora: Corpora, cfg: Any, *, more: int = 0) -> None:
    """Refuse rows that a model cannot read: unknown token ids, more positions than it has.

    Only learned positions end: a model with rotations or slopes reads on, if not always well.

    Args:
        corpora: The text.
        cfg: The model's configuration.
        more: Tokens about to be added to every row.

    Raises:
        CorpusError: The text was tokenised for another model, or its rows are too long.
    """
    learned = getattr(cfg, "positional_embedding_type", None) == "standard"
    for lang, docs in corpora.documents.items():
        largest = max(int(docs.tokens.max()), corpora.bos_id or 0)
        if largest >= cfg.d_vocab:
            raise CorpusError(
                f"The text of {lang!r} has token id {largest}, but the model has only "
                f"{cfg.d_vocab} tokens: it was tokenised for another model"
            )
        longest = max((end - start for start, end, _ in corpora._rows(docs)), default=0)
        longest += (corpora.bos_id is not None) + more
        if learned and longest > cfg.n_ctx:
            raise CorpusError(
                f"The text of {lang!r} has rows of {longest} tokens, but the model has only "
                f"{cfg.n_ctx} positions: use ctx_len={cfg.n_ctx} or less"
            )
