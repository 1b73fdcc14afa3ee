"""The documents of one language as token ids, end to end in one tensor."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from lens_lang.errors import CorpusError, OptionError

_TOKENISE_AT_ONCE = 512


@runtime_checkable
class TokenisingModel(Protocol):
    """What tokenising asks of a model: its tokeniser and its configuration."""

    cfg: Any
    tokenizer: Any


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of one language, end to end.

    Attributes:
        tokens: All token ids.
        ends: Where each document ends in `tokens`.
        n_bytes: UTF-8 bytes of each document; 0 where it never was text.
    """

    tokens: Int[Tensor, "token"]
    ends: Int[Tensor, "doc"]
    n_bytes: Int[Tensor, "doc"]

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Int[Tensor, "doc_token"]]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Int[Tensor, "doc_token"]:
        start = int(self.ends[number - 1]) if number else 0
        return self.tokens[start : int(self.ends[number])]

    @property
    def lengths(self) -> Int[Tensor, "doc"]:
        """Tokens of each document."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    @classmethod
    def join(cls, pieces: Iterable[Tensor], n_bytes: Iterable[int]) -> "Documents":
        """Lay token documents end to end."""
        pieces = list(pieces)
        lengths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)
        tokens = torch.cat(pieces) if pieces else torch.zeros(0)
        return cls(
            tokens.to(torch.int32), lengths.cumsum(0), torch.tensor(list(n_bytes)).to(torch.int64)
        )

    def select(self, numbers: Sequence[int]) -> "Documents":
        """Return some of the documents, in the given order."""
        chosen = [self[number] for number in numbers]
        return Documents.join(chosen, self.n_bytes[list(numbers)].tolist())

    def cut_each(self, limit: int) -> "Documents":
        """Keep the first tokens of every document; bytes are prorated as in `cut`."""
        kept = self.lengths.clamp(max=limit)
        n_bytes = (self.n_bytes * kept / self.lengths.clamp(min=1)).round().long()
        return Documents.join([doc[:limit] for doc in self], n_bytes.tolist())

    def cut(self, limit: int) -> "Documents":
        """Keep the first tokens; the bytes of a cut document are prorated by its tokens."""
        if len(self.tokens) <= limit:
            return self
        kept = int((self.ends < limit).sum()) + 1
        ends = self.ends[:kept].clamp(max=limit)
        n_bytes = self.n_bytes[:kept].clone()
        whole = len(self[kept - 1])
        part = whole - int(self.ends[kept - 1] - ends[-1])
        n_bytes[-1] = round(int(n_bytes[-1]) * part / whole)
        return Documents(self.tokens[:limit].clone(), ends, n_bytes)


def tokenizer_of(model: TokenisingModel) -> Any:
    """Return a model's tokeniser.

    Raises:
        CorpusError: It has none.
    """
    tokenizer = getattr(model, "tokenizer", None)
    if tokenizer is None:
        raise CorpusError(
            "This model has no tokeniser, so text cannot be turned into tokens: load it with one, "
            "or give token ids to Corpora.from_tokens"
        )
    return tokenizer


def bos_token(model: TokenisingModel, bos: bool | None) -> int | None:
    """Return the id to put in front of rows: asked for, refused, or as TransformerLens does it.

    Raises:
        CorpusError: BOS is asked for, and the tokeniser has none.
    """
    bos_id = getattr(tokenizer_of(model), "bos_token_id", None)
    if bos is None:
        bos = bos_id is not None and bool(getattr(model.cfg, "default_prepend_bos", True))
    if bos and bos_id is None:
        raise CorpusError("This tokeniser has no BOS token: use bos=False")
    return bos_id if bos else None


def tokenise(tokenizer: Any, texts: Iterable[str], *, limit: int | None, lang: str) -> Documents:
    """Tokenise documents, reading no more of them than a limit of tokens needs.

    Args:
        tokenizer: Of `transformers`.
        texts: The documents; any iterable.
        limit: Tokens to stop at; None for all.
        lang: Their language, for error messages.

    Raises:
        CorpusError: There is no text.
    """
    if isinstance(texts, str):
        raise CorpusError(f"The text of {lang!r} is one string: give a list of documents")
    if limit is not None and limit < 1:
        raise OptionError(f"tokens must be at least 1, got {limit}")
    pieces: list[Tensor] = []
    n_bytes: list[int] = []
    total = 0
    stream = iter(texts)
    while (limit is None or total < limit) and (some := list(islice(stream, _TOKENISE_AT_ONCE))):
        wrong = [text for text in some if not isinstance(text, str)]
        if wrong:
            raise CorpusError(
                f"A document of {lang!r} is {type(wrong[0]).__name__}, where text is expected"
            )
        try:
            sizes = [len(text.encode("utf-8")) for text in some]
        except UnicodeEncodeError as error:
            raise CorpusError(
                f"A document of {lang!r} has half a surrogate pair at character {error.start}, "
                "which no encoding can write: remove it from the text"
            ) from error
        for size, ids in zip(sizes, _token_ids(tokenizer, some), strict=True):
            if not ids:
                continue
            pieces.append(torch.tensor(ids, dtype=torch.int32))
            n_bytes.append(size)
            total += len(ids)
    if not pieces:
        raise CorpusError(f"The text of {lang!r} is empty")
    joined = Documents.join(pieces, n_bytes)
    return joined if limit is None else joined.cut(limit)


def first_token(tokenizer: Any, text: str) -> int | None:
    """Return the first token of a text that spells something, by itself; None if none does.

    Sentencepiece puts a word boundary in front of every text: ``▁`` alone, where the first
    character has no piece that begins with it.

    Args:
        tokenizer: Of `transformers`.
        text: The text.
    """
    ids = _token_ids(tokenizer, [text])[0]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    spelled = (i for i, piece in zip(ids, pieces, strict=True) if str(piece).strip("▁Ġ \t\n"))
    return next(spelled, ids[0] if ids else None)


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # verbose=False: a document longer than the model's context is no mistake here, rows cut it
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
