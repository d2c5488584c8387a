"""Read and change the settings of a SentencePiece ``tokenizer.model``, of which the library shows only a part.

The file is a protobuf, ``ModelProto`` of sentencepiece_model.proto. Two of its properties make changes short: bytes
that are appended to a message replace the values of the same fields, and a message within it is changed by appending to
its parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

# Fields of ModelProto, of its SentencePiece, of its TrainerSpec and of its NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TYPE = 3
MODEL_TYPE, BYTE_FALLBACK, SPACE_AS_SUFFIX = 3, 35, 24
CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA, ESCAPE = 2, 3, 4, 5
# Values of SentencePiece.type and of TrainerSpec.model_type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Settings:
    """Settings that decide ids; the defaults are the library's.

    Attributes:
        model_type: of `MODEL_TYPES`.
        byte_fallback: a character without a piece becomes its UTF-8 bytes, not the unknown token.
        normalizes: characters are replaced first (``nmt_nfkc`` and others; not ``identity``).
        add_dummy_prefix: a space is added to every text.
        remove_extra_whitespaces: runs of spaces are joined, and spaces at both ends dropped.
        escape_whitespaces: spaces are written as U+2581.
        treat_whitespace_as_suffix: spaces belong to the word before, and so does the added one.
    """

    model_type: str
    byte_fallback: bool
    normalizes: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    treat_whitespace_as_suffix: bool


def read_settings(model: bytes) -> Settings:
    """The settings of a model that the library has accepted."""
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(model):
        if field in (TRAINER, NORMALIZER) and isinstance(value, bytes):
            (trainer if field == TRAINER else normalizer).update(_fields(value))
    return Settings(
        model_type=MODEL_TYPES.get(int(trainer.get(MODEL_TYPE, 1)), "unknown"),
        byte_fallback=bool(trainer.get(BYTE_FALLBACK, False)),
        normalizes=bool(normalizer.get(CHARSMAP, b"")),
        add_dummy_prefix=bool(normalizer.get(ADD_DUMMY_PREFIX, True)),
        remove_extra_whitespaces=bool(normalizer.get(REMOVE_EXTRA, True)),
        escape_whitespaces=bool(normalizer.get(ESCAPE, True)),
        treat_whitespace_as_suffix=bool(trainer.get(SPACE_AS_SUFFIX, False)),
    )


def piece_types(model: bytes) -> list[int]:
    """The type of every piece, by id."""
    return [
        int(dict(_fields(value)).get(PIECE_TYPE, NORMAL))
        for field, value in _fields(model)
        if field == PIECES and isinstance(value, bytes)
    ]


def with_normalizer(
    model: bytes,
    add_dummy_prefix: bool | None = None,
    remove_extra_whitespaces: bool | None = None,
    escape_whitespaces: bool | None = None,
    normalizes: bool = True,
) -> bytes:
    """The model with other settings of its normalizer; None leaves one as it is."""
    flags = {ADD_DUMMY_PREFIX: add_dummy_prefix, REMOVE_EXTRA: remove_extra_whitespaces, ESCAPE: escape_whitespaces}
    spec = b"".join(_number_field(field, value) for field, value in flags.items() if value is not None)
    return model + _message_field(NORMALIZER, spec + (b"" if normalizes else _message_field(CHARSMAP, b"")))


def with_control_pieces(model: bytes, ids: Collection[int]) -> bytes:
    """The model with these pieces as control pieces, which no text is encoded to."""
    parts, place = [], 0
    for field, value in _fields(model):
        if isinstance(value, int):
            parts.append(_number_field(field, value))
        elif field == PIECES:
            parts.append(_message_field(field, value + _number_field(PIECE_TYPE, CONTROL) * (place in ids)))
            place += 1
        else:
            parts.append(_message_field(field, value))
    return b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of the fields of a valid message; values of fixed size are left out."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        if key & 7 == 0:
            value, at = _number(message, at)
            yield key >> 3, value
        elif key & 7 == 2:
            size, at = _number(message, at)
            yield key >> 3, message[at : at + size]
            at += size
        else:
            at += {1: 8, 5: 4}[key & 7]


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _number_field(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message_field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content
