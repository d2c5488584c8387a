"""The bytes that tokens stand for, by how a kind of tokenizer writes them in its vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_SPACE = "\u2581"


def sentence_pieces(vocabulary: Mapping[str, int]) -> dict[int, bytes]:
    """Of SentencePiece: U+2581 is a space, ``<0xE2>`` a byte."""
    found = {}
    for piece, i in vocabulary.items():
        byte = _BYTE.fullmatch(piece)
        found[i] = bytes([int(byte[1], 16)]) if byte else piece.replace(_SPACE, " ").encode()
    return found


def byte_level_pieces(vocabulary: Mapping[str, int]) -> dict[int, bytes]:
    """Of GPT-2: each character of a piece is a byte; those that cannot be seen have characters from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    alphabet = {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
    return {
        i: bytes(alphabet[character] for character in piece) if alphabet.keys() >= set(piece) else piece.encode()
        for piece, i in vocabulary.items()
    }


def json_pieces(vocabulary: Mapping[str, int], decoder: Mapping[str, Any] | None, path: Path) -> dict[int, bytes]:
    """Of a ``tokenizer.json``, by its decoder.

    Raises:
        UserError: a decoder of another kind.
    """
    text = json.dumps(decoder)
    if '"ByteLevel"' in text:
        return byte_level_pieces(vocabulary)
    if '"ByteFallback"' in text or '"Metaspace"' in text:
        return sentence_pieces(vocabulary)
    raise UserError(
        f"{path}: the decoder is {text}. The bytes of tokens are known for ByteLevel, ByteFallback and Metaspace only, "
        "so answers cannot be kept to the valid ones: give --decode free."
    )
