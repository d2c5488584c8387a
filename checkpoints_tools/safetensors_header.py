"""Read the header of a safetensors file, and check it against the bytes that are there, before anything is mapped."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct

from checkpoints_tools.formats import size_of_weights
from checkpoints_tools.source import TensorInfo
from data.errors import UserError
from data.files import limits
from data.files.documents import parse_json, shaped

# Bytes of an element, by safetensors' name of the dtype.
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


class Stored(Struct):
    """A tensor in the header of a safetensors file."""

    dtype: str
    shape: Annotated[
        list[Annotated[int, Meta(ge=0, le=limits.TENSOR_ELEMENTS)]], Meta(max_length=limits.TENSOR_DIMENSIONS)
    ]
    data_offsets: tuple[Annotated[int, Meta(ge=0)], Annotated[int, Meta(ge=0)]]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Names, shapes and dtypes in a safetensors file; see `read_places`."""
    found, _ = read_places(path)
    return {name: TensorInfo(tuple(entry.shape), entry.dtype) for name, entry in found.items()}


def read_places(path: Path) -> tuple[dict[str, Stored], int]:
    """The header of a safetensors file, and where the data begin; compares offsets with shapes and the file's size.

    The format: N in 8 bytes (little-endian), N bytes of JSON, then the data, to which offsets in the JSON point.

    Raises:
        UserError: the file is empty, a git-lfs pointer, truncated, or not safetensors; or tensors overlap, leave bytes
            between them, or have other numbers of bytes than their shapes.
    """
    size = size_of_weights(path)
    with open(path, "rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if length < 2 or length > limits.DOCUMENT_BYTES:
            raise UserError(f"{path} is not a safetensors file (it begins with {start!r})")
        if 8 + length > size:
            raise UserError(f"{path} is truncated: its header alone has {8 + length:,} bytes, the file {size:,}")
        header = parse_json(file.read(length), f"{path}: its header", dict[str, Any])
    header.pop("__metadata__", None)
    if len(header) > limits.TENSORS:
        raise UserError(f"{path} has {len(header):,} tensors; the limit for one file is {limits.TENSORS:,}.")
    found: dict[str, Stored] = {
        name: shaped(entry, f"{path} has a damaged header: {name}", Stored) for name, entry in header.items()
    }
    end = 8 + length + max((entry.data_offsets[1] for entry in found.values()), default=0)
    if end != size:
        what = "truncated" if end > size else "damaged"
        raise UserError(f"{path} is {what}: it has {size:,} bytes, its header says {end:,}")
    position = 0
    for name, entry in sorted(found.items(), key=lambda item: item[1].data_offsets):
        begin, end = entry.data_offsets
        count, item_bytes = math.prod(entry.shape), ITEM_BYTES.get(entry.dtype)
        if begin != position or end < begin or item_bytes is not None and end - begin != count * item_bytes:
            raise UserError(
                f"{path} has a damaged header: {name} has bytes {begin:,} to {end:,}, but the tensor before it ends at "
                f"{position:,}, and {entry.dtype} of the shape {entry.shape} has {count * (item_bytes or 0):,} bytes"
            )
        position = end
    return found, 8 + length
