"""Read what a GGUF file says before its weights: metadata, and the tensors' names, shapes, types and places.

The format (version 2 and 3, little-endian): ``GGUF``, version, number of tensors, number of metadata; then each key
with its type and value; then each tensor's name, dimensions (fastest first), type and offset; then the data. Every
number is checked against the bytes that are there before it is followed. (gguf's own reader believes them: 49 bytes
that state a list of 2^40 values take all memory.)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quant_shape_to_byte_shape

from checkpoints_tools.formats import GGUF_MAGIC, size_of_weights
from data.errors import UserError
from data.files import limits

_VERSIONS = (2, 3)
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
# GGUF's number of a type of metadata -> its format for `struct`; besides them there are texts and lists.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9


class StoredTensor(NamedTuple):
    """A tensor of a GGUF file: shape (rows first), type, and its bytes, mapped: uint8 ``[..., bytes of a row]``."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    content: np.ndarray


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Metadata by key, and tensors by name.

    Raises:
        UserError: the file is not GGUF, is truncated, or states what cannot be.
    """
    size_of_weights(path)
    try:
        return _Header(np.memmap(path, mode="r")).read()
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a complete GGUF file ({error}); download it again") from None


class _Header:
    """A position in the file. What is wrong raises ValueError; `read_gguf` adds the file's name."""

    def __init__(self, content: np.ndarray):
        self.content = content
        self.view = memoryview(content)  # type: ignore[arg-type]
        self.position = 0
        self.listed = 0  # values of lists so far

    def read(self) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        if bytes(self._bytes(4)) != GGUF_MAGIC:
            raise ValueError(f"it does not begin with {GGUF_MAGIC.decode()}")
        version = self._number("I")
        if version not in _VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
            raise ValueError("it is big-endian" if swapped else f"version {version}; known: {_VERSIONS}")
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        if n_tensors > limits.TENSORS or n_keys > limits.TENSORS:
            raise ValueError(f"{n_tensors:,} tensors and {n_keys:,} metadata; the limit for each is {limits.TENSORS:,}")
        metadata = self._named(n_keys, self._value)
        places = self._named(n_tensors, self._tensor)
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= limits.MIB or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}; it must be a power of two")
        begin = -(-self.position // alignment) * alignment
        return metadata, {name: self._placed(name, begin, *place) for name, place in places.items()}

    def _named(self, count: int, read: Callable[[], Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self._text()
            if name in found:
                raise ValueError(f"{name!r} is there twice")
            found[name] = read()
        return found

    def _bytes(self, count: int) -> memoryview:
        begin, self.position = self.position, self.position + count
        if self.position > len(self.view):
            raise ValueError(f"it ends at byte {len(self.view):,}, within a value of {count:,} bytes at {begin:,}")
        return self.view[begin : self.position]

    def _number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self._bytes(struct.calcsize(f"<{kind}")))[0]

    def _text(self) -> str:
        length = self._number("Q")
        if length > limits.TEXT_CHARACTERS:
            raise ValueError(f"a text of {length:,} bytes; the limit is {limits.TEXT_CHARACTERS:,}")
        return str(self._bytes(length), "utf-8")

    def _value(self) -> Any:
        kind = self._number("I")
        if kind == _TEXT:
            return self._text()
        if kind in _NUMBERS:
            return self._number(_NUMBERS[kind])
        if kind != _LIST:
            raise ValueError(f"metadata of the unknown type {kind}")
        kind, count = self._number("I"), self._number("Q")
        self.listed += count
        if self.listed > limits.GGUF_VALUES:
            raise ValueError(f"lists of more than {limits.GGUF_VALUES:,} values, the limit; one states {count:,}")
        if kind == _TEXT:
            return [self._text() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"a list of the unknown type {kind}")
        form = f"<{count}{_NUMBERS[kind]}"
        return list(struct.unpack(form, self._bytes(struct.calcsize(form))))

    def _tensor(self) -> tuple[tuple[int, ...], int, int]:
        count = self._number("I")
        if count > limits.TENSOR_DIMENSIONS:
            raise ValueError(f"a tensor of {count:,} dimensions; the limit is {limits.TENSOR_DIMENSIONS}")
        shape = tuple(reversed([self._number("Q") for _ in range(count)]))
        if math.prod(max(n, 1) for n in shape) > limits.TENSOR_ELEMENTS:
            raise ValueError(f"a tensor of the shape {list(shape)}; the limit is {limits.TENSOR_ELEMENTS:,} elements")
        return shape, self._number("I"), self._number("Q")

    def _placed(self, name: str, begin: int, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
        quantization = GGMLQuantizationType(kind)  # ValueError: unknown
        block, block_bytes = GGML_QUANT_SIZES[quantization]
        if not shape or shape[-1] % block:
            raise ValueError(f"{name} has the shape {list(shape)}, but {quantization.name} has blocks of {block}")
        n_bytes = math.prod(shape) // block * block_bytes
        first = begin + offset
        if first + n_bytes > len(self.content):
            raise ValueError(f"it has {len(self.content):,} bytes, but {name} ends at {first + n_bytes:,}")
        content = self.content[first : first + n_bytes]
        return StoredTensor(shape, quantization, content.reshape(quant_shape_to_byte_shape(shape, quantization)))
