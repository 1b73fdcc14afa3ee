"""What every vocabulary item spells, as UTF-8 bytes: sentencepiece and byte-level BPE.

Sentencepiece writes a word boundary as ``▁`` and single bytes as ``<0xE8>``; byte-level BPE writes
every byte as a printable character. As bytes they are one thing: an item is a piece of text,
or a part of a character that no text shows.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

from lens_lang.documents import TokenisingModel, tokenizer_of

PART = "·"
"""What stands for a part of a character whose last byte comes with a later token."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MARKUP = re.compile(r"<[^\s<>]*>|\[[A-Z_]+\d*\]")
_CONTINUING = bytes(range(0x80, 0xC0))  # bytes that begin no character
_AT_ONCE = 4096


def spell_vocabulary(model: TokenisingModel) -> tuple[bytes, ...]:
    """Return the bytes that each vocabulary item stands for; none for special tokens and markup.

    Args:
        model: The model. Its vocabulary may be larger than its tokeniser's.

    Returns:
        One string of bytes per item; a word boundary is a space.

    Raises:
        CorpusError: The model has no tokeniser.
    """
    tokenizer = tokenizer_of(model)
    size = int(getattr(model.cfg, "d_vocab", None) or len(tokenizer))
    spelled = _spell_items(tokenizer, range(min(size, len(tokenizer))))
    return (*spelled, *[b""] * (size - len(spelled)))


def spell_pieces(
    pieces: Sequence[Any], *, special: Collection[int] = (), added: Collection[int] = ()
) -> list[bytes]:
    r"""Return the bytes that each piece stands for, as a tokeniser's vocabulary spells it.

    Args:
        pieces: Strings, in the notation of sentencepiece or of byte-level BPE.
        special: Numbers of the items that stand for no text.
        added: Numbers of the items that were added as plain text, outside the notation.

    Examples:
        >>> spell_pieces(["<s>", "▁flow", "er", "<0xE8>", "花"], special=[0])
        [b'', b' flow', b'er', b'\xe8', b'\xe8\x8a\xb1']
        >>> spell_pieces(["Ġ", "Ġflow", "er", "è", "èĬ±"])
        [b' ', b' flow', b'er', b'\xe8', b'\xe8\x8a\xb1']
    """
    outside = {*added, *special}
    byte_level = _is_byte_level(p for n, p in enumerate(pieces) if n not in outside)
    bytes_of = _byte_alphabet() if byte_level else None
    return [
        b"" if n in special else _spell(p, None if n in added else bytes_of)
        for n, p in enumerate(pieces)
    ]


def token_bytes(model: Any, ids: Iterable[int]) -> dict[int, bytes]:
    """Return what to show of some tokens, by id, as UTF-8 bytes.

    Special tokens and markup, which spell nothing, give their names, and those of a model without
    a tokeniser their numbers in brackets. `show_tokens` makes text of a row of them.

    Args:
        model: Whose tokens they are.
        ids: Token ids; any of them several times.
    """
    wanted = sorted(set(ids))
    if getattr(model, "tokenizer", None) is None:
        return {item: f"[{item}]".encode() for item in wanted}
    tokenizer = tokenizer_of(model)
    inside = [item for item in wanted if item < len(tokenizer)]
    spelled = dict(zip(inside, _spell_items(tokenizer, inside), strict=True))
    names = tokenizer.convert_ids_to_tokens(wanted)
    return {
        item: spelled.get(item) or str(name or f"[{item}]").encode("utf-8", errors="replace")
        for item, name in zip(wanted, names, strict=True)
    }


def show_tokens(pieces: Sequence[bytes]) -> tuple[str, ...]:
    r"""Return successive tokens as text, one for one.

    A character stands at the token of its last byte; each token with an earlier part of it has a
    "·". What is left of a character that was cut off is a single replacement character.

    Args:
        pieces: The bytes of each token, one after the other in the text.

    Examples:
        >>> show_tokens([b" a", b"\xe8", b"\x8a", b"\xb1b"])
        (' a', '·', '·', '花b')
        >>> show_tokens([b"\x8a", b"\xb1", b"a"])
        ('·', '�', 'a')
    """
    owners = [token for token, piece in enumerate(pieces) for _ in piece]
    shown = [""] * len(pieces)
    characters = list(_characters(b"".join(pieces)))
    ends = accumulate(length for length, _ in characters)
    for end, (length, text) in zip(ends, characters, strict=True):
        *parts, last = dict.fromkeys(owners[end - length : end])
        for token in parts:
            shown[token] += PART
        shown[last] += text
    return tuple(shown)


def join_tokens(pieces: Sequence[bytes]) -> str:
    r"""Return the text of successive tokens.

    Args:
        pieces: As `show_tokens` takes them.

    Examples:
        >>> join_tokens([b" a", b"\xe8", b"\x8a\xb1"]), join_tokens([b"\x8a", b"\xb1", b"a"])
        (' a花', '�a')
    """
    return "".join(text for _, text in _characters(b"".join(pieces)))


def as_text(spelled: bytes) -> str | None:
    r"""Return the text of a vocabulary item, or None for a part of a character.

    Examples:
        >>> as_text("花".encode()), as_text(b"\xe8")
        ('花', None)
    """
    try:
        return spelled.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _characters(spelled: bytes) -> Iterator[tuple[int, str]]:
    """The characters of some text, each with its number of bytes; what is damaged in between."""
    cut = len(spelled) - len(spelled.lstrip(_CONTINUING))
    if cut:  # the rest of a character that began before
        yield cut, "\ufffd"
    at = cut
    while at < len(spelled):
        try:
            good, damaged = spelled[at:].decode("utf-8"), 0
        except UnicodeDecodeError as error:
            good = spelled[at : at + error.start].decode("utf-8")
            damaged = error.end - error.start
        for letter in good:
            length = len(letter.encode("utf-8"))
            at += length
            yield length, letter
        if damaged:
            at += damaged
            yield damaged, "\ufffd"


def _spell_items(tokenizer: Any, items: Sequence[int]) -> list[bytes]:
    """What some items of a tokeniser spell, as `spell_pieces` of all items would say."""
    pieces = tokenizer.convert_ids_to_tokens(list(items))
    added, special = _outside(tokenizer)
    bytes_of = _byte_alphabet() if _notation(tokenizer) else None
    return [
        b"" if n in special else _spell(p, None if n in added else bytes_of)
        for n, p in zip(items, pieces, strict=True)
    ]


def _outside(tokenizer: Any) -> tuple[set[int], set[int]]:
    """The items that were added as text, and those that stand for none."""
    return set(getattr(tokenizer, "added_tokens_decoder", ())), set(tokenizer.all_special_ids)


_NOTATIONS: WeakKeyDictionary[Any, tuple[int, bool]] = WeakKeyDictionary()


def _notation(tokenizer: Any) -> bool:
    """Whether a tokeniser spells in bytes: its whole vocabulary says so, which is read once."""
    size = len(tokenizer)
    try:
        known_size, known = _NOTATIONS.get(tokenizer, (-1, False))
    except TypeError:  # a tokeniser that cannot be a key is read again
        return _is_byte_level(_regular(tokenizer))
    if known_size != size:  # items can be added to it
        known = _is_byte_level(_regular(tokenizer))
        _NOTATIONS[tokenizer] = (size, known)
    return known


def _regular(tokenizer: Any) -> Iterator[Any]:
    """The pieces of a vocabulary that follow its notation, some at a time."""
    outside = set.union(*_outside(tokenizer))
    for first in range(0, len(tokenizer), _AT_ONCE):
        items = range(first, min(first + _AT_ONCE, len(tokenizer)))
        pieces = tokenizer.convert_ids_to_tokens(list(items))
        yield from (p for n, p in zip(items, pieces, strict=True) if n not in outside)


def _is_byte_level(regular: Iterable[Any]) -> bool:
    # Only byte-level BPE has a piece for the space that is no space, and nothing outside it.
    letters, space = _byte_alphabet().keys(), False
    for piece in regular:
        if isinstance(piece, str) and not letters >= set(piece):
            return False
        space = space or piece == "Ġ"
    return space


def _spell(piece: Any, bytes_of: dict[str, int] | None) -> bytes:
    if piece is None:  # a hole in the numbering
        return b""
    if isinstance(piece, bytes):
        return piece
    if bytes_of is not None:
        return bytes(bytes_of[letter] for letter in piece)
    if byte := _BYTE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    if _MARKUP.fullmatch(piece):  # <unused7>, <table>, [INST]
        return b""
    return piece.replace("▁", " ").encode("utf-8", errors="replace")


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes: printable Latin-1 as itself, others from U+0100 on."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    found = {chr(byte): byte for byte in shown}
    found.update({chr(0x100 + place): byte for place, byte in enumerate(hidden)})
    return found
