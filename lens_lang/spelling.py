"""What every vocabulary item spells, as UTF-8 bytes: sentencepiece and byte-level BPE.

Sentencepiece writes a word boundary as ``▁`` and single bytes as ``<0xE8>``; byte-level BPE writes
every byte as a printable character. As bytes they are one thing: an item is a piece of text,
or a part of a character that no text shows.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from lens_lang.documents import TokenisingModel, tokenizer_of

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MARKUP = re.compile(r"<[^\s<>]*>|\[[A-Z_]+\d*\]")


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
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    added = set(getattr(tokenizer, "added_tokens_decoder", ()))
    spelled = spell_pieces(pieces, special=set(tokenizer.all_special_ids), added=added)
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
    bytes_of = _byte_alphabet()
    regular = [p for n, p in enumerate(pieces) if n not in added and n not in special]
    # Only byte-level BPE has a piece for the space that is no space, and nothing outside it.
    byte_level = "Ġ" in regular and all(
        letter in bytes_of for piece in regular if isinstance(piece, str) for letter in piece
    )
    return [
        b"" if n in special else _spell(p, bytes_of if byte_level and n not in added else None)
        for n, p in enumerate(pieces)
    ]


def token_texts(model: Any, ids: Iterable[int]) -> dict[int, str]:
    """Return how to show some tokens, by id.

    Parts of characters become replacement characters; special tokens and markup show their names,
    and a model without a tokeniser numbers in brackets.

    Args:
        model: Whose tokens they are.
        ids: Token ids; any of them several times.
    """
    wanted = sorted(set(ids))
    if getattr(model, "tokenizer", None) is None:
        return {item: f"[{item}]" for item in wanted}
    spelled = spell_vocabulary(model)
    names = tokenizer_of(model).convert_ids_to_tokens(wanted)
    return {
        item: spelled[item].decode("utf-8", errors="replace") or str(name or f"[{item}]")
        for item, name in zip(wanted, names, strict=True)
    }


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
