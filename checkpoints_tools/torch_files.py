"""Read the files that ``torch.save`` writes: tensors, mapped into memory, without running anything that they hold.

There are two formats. Since PyTorch 1.6 a file is a zip archive, in which ``data.pkl`` describes the tensors and each
storage is a member. Before that it was five pickles (a magic number, a version, the machine, the tensors, the order of
the storages) and then the storages. In both a tensor is a name of its storage, an offset, sizes and strides. All of
them are checked against the bytes that are there. Both are decoded by `pickles`; ``torch.load`` is not used.
"""

from __future__ import annotations

import errno
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from checkpoints_tools.formats import size_of_weights
from checkpoints_tools.pickles import Unusable, decode, ordered_dict
from data.errors import UserError
from data.files import limits

DTYPES = {
    name: getattr(torch, name)
    for name in (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64 complex128 "
        "float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu"
    ).split()
}
_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
# In files from before PyTorch 1.6.
_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001


@dataclass(frozen=True)
class _Storage:
    """Bytes of a file, ``[n]`` uint8, mapped; and the dtype of their elements, which is uint8 if it is not stated."""

    content: Tensor
    dtype: torch.dtype


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a weight file by name, mapped: only the pages that are used are read.

    Raises:
        UserError: see `load`; or the file is not a dict of tensors.
    """
    found = load(path)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise UserError(f"{path} holds no dict of tensors by name, so it is not a weight file.")
    return found


def load(path: Path) -> Any:
    """What ``torch.save`` wrote to a file, if it is tensors, numbers, texts and containers of them.

    Raises:
        UserError: the file is empty, a git-lfs pointer, truncated, damaged or compressed, or holds anything else.
    """
    return load_part(path, map_file(path))


def map_file(path: Path) -> Tensor:
    """The bytes of a file, ``[n]`` uint8, mapped.

    Raises:
        UserError: the file is empty, or a git-lfs pointer.
    """
    size = size_of_weights(path)
    try:
        return torch.from_file(os.fspath(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}).") from None


def load_part(path: Path, content: Tensor) -> Any:
    """As `load`, of a part of a mapped file: training checkpoints have many in one file, one after another."""
    return (_load_zip if _bytes(content[:2]) == b"PK" else _load_old)(path, content)


def _load_zip(path: Path, content: Tensor) -> Any:
    members = _members(path, content)
    described = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(described) != 1:
        raise UserError(f"{path} is a zip archive, but torch.save did not write it: {len(described)} data.pkl in it.")
    folder = described[0].removesuffix("data.pkl")
    order = members.get(f"{folder}byteorder")  # not in files from before PyTorch 2.1
    if order is not None and _bytes(order[:7]) != b"little":
        raise UserError(f"{path} was written on a big-endian machine; load and save it with PyTorch to convert it.")

    def stored(found: Any) -> _Storage:
        dtype, key, elements, _ = _persistent(found)
        member = members.get(f"{folder}data/{key}")
        if member is None:
            raise Unusable(f"is truncated or damaged: storage {key!r} is missing")
        return _storage(member, dtype, key, elements)

    return decode(_stream(path, members[described[0]]), str(path), _ADMITTED, stored)


def _members(path: Path, content: Tensor) -> dict[str, Tensor]:
    """The content of each member of a zip archive by name; all of them must be stored, not compressed."""
    try:
        _check_directory(path, content)
        with zipfile.ZipFile(_Stream(content)) as archive:
            entries = archive.infolist()
    except UserError:
        raise
    except Exception as error:  # on a damaged archive zipfile can raise almost anything
        raise UserError(f"{path} is truncated or damaged ({error}).") from None
    found = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise UserError(f"{path}: {entry.filename} in it is compressed or encrypted, which torch.save never does.")
        begin = entry.header_offset
        header = _bytes(content[begin : begin + 30]) if 0 <= begin <= len(content) - 30 else b""
        begin += 30 + sum(struct.unpack("<26xHH", header)) if header[:4] == b"PK\x03\x04" else len(content)
        if begin + entry.file_size > len(content):
            raise UserError(f"{path} is truncated or damaged ({entry.filename} in it is not where it should be).")
        found[entry.filename] = content[begin : begin + entry.file_size]
    return found


class _Stream(io.RawIOBase):
    """Mapped bytes as a file, for `zipfile`, which reads little of them."""

    def __init__(self, content: Tensor) -> None:
        self.content, self.position = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: len(self.content)}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))  # as a file on a disk; zipfile expects it
        self.position = position
        return position

    def readinto(self, buffer: Any) -> int:
        found = self.content[self.position : self.position + len(buffer)].numpy()
        buffer[: len(found)] = found.data
        self.position += len(found)
        return len(found)


def _check_directory(path: Path, content: Tensor) -> None:
    """Refuse a directory that would take too much memory, before `zipfile` reads it."""
    end = _bytes(content[-22:])  # torch.save writes no comment after the end record
    if len(end) < 22 or end[:4] != b"PK\x05\x06":
        raise UserError(f"{path} is truncated: it is the beginning of a zip archive of {len(content):,} bytes.")
    size, position = struct.unpack("<12xII2x", end)
    if size == 0xFFFFFFFF:  # then it is in the zip64 record
        position = struct.unpack("<8xQ4x", _bytes(content[-42:-22]))[0]
        size = struct.unpack("<40xQ8x", _bytes(content[position : position + 56]))[0]
    if size > limits.ZIP_DIRECTORY_BYTES:
        raise UserError(f"{path}: its directory has {size:,} bytes; the limit is {limits.ZIP_DIRECTORY_BYTES:,}.")


def _load_old(path: Path, content: Tensor) -> Any:
    stream, where = _stream(path, content[: limits.PICKLE_BYTES]), str(path)
    if decode(stream, where, {}) != _MAGIC:
        raise UserError(f"{path} is truncated or damaged, or not a file that torch.save wrote.")
    version, machine = decode(stream, where, {}), decode(stream, where, {})
    if version != _VERSION or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise UserError(f"{path} is damaged, or was written by an unknown version of PyTorch: {repr(version)[:60]}.")
    begin = stream.tell()

    stated: dict[str, tuple[torch.dtype, int]] = {}

    def note(found: Any) -> None:
        dtype, key, elements, view = _persistent(found)
        if view is not None or stated.setdefault(key, (dtype, elements)) != (dtype, elements):
            raise Unusable(f"has storage {key!r} in a form that PyTorch no longer writes")

    # The storages are behind the description of the tensors, so this is decoded twice.
    nothing = {name: (lambda _: None) if callable(value) else value for name, value in _ADMITTED.items()}
    decode(stream, where, nothing | {_DICT: ordered_dict}, note)
    order = decode(stream, where, {})
    if not isinstance(order, list) or set(map(str, order)) != stated.keys():
        raise UserError(f"{path} is damaged: it lists other storages than its tensors have.")
    places: dict[str, _Storage] = {}
    position = stream.tell()
    for key in map(str, order):
        dtype, elements = stated[key]
        end = position + 8 + elements * dtype.itemsize
        if end > len(content) or _bytes(content[position : position + 8]) != elements.to_bytes(8, "little"):
            raise UserError(f"{path} is truncated or damaged: storage {key!r} does not have its {elements:,} elements.")
        places[key] = _storage(content[position + 8 : end], dtype, key, elements)
        position = end

    stream.seek(begin)
    return decode(stream, where, _ADMITTED, lambda found: places[_persistent(found)[1]])


def _stream(path: Path, content: Tensor) -> io.BytesIO:
    if len(content) > limits.PICKLE_BYTES:
        raise UserError(f"{path}: data.pkl in it has {len(content):,} bytes; the limit is {limits.PICKLE_BYTES:,}.")
    return io.BytesIO(_bytes(content))


def _bytes(content: Tensor) -> bytes:
    return content.numpy().tobytes()


def _persistent(found: Any) -> tuple[torch.dtype, str, int, Any]:
    """Dtype, key, number of elements and (in the old format) view of a storage, from its persistent id."""
    match found:
        case ("storage", torch.dtype() as dtype, str(key), str(), int(elements), *view) if elements >= 0:
            return dtype, key, elements, view[0] if view else None
    raise Unusable("is damaged: what it says of a storage is not what torch.save writes")


def _storage(content: Tensor, dtype: torch.dtype, key: str, elements: int) -> _Storage:
    if len(content) != elements * dtype.itemsize:
        raise Unusable(
            f"is truncated or damaged: storage {key!r} has {len(content):,} bytes, but {elements:,} elements of "
            f"{dtype.itemsize} bytes are stated"
        )
    aligned = content.storage_offset() % 16 == 0  # the old format aligns nothing
    return _Storage(content if aligned else content.clone(), dtype)


def _tensor(arguments: tuple[Any, ...]) -> Tensor:
    """What stands for ``_rebuild_tensor`` and ``_rebuild_tensor_v2`` of torch, and for the latter's third version."""
    match arguments:
        case (_Storage() as storage, int(offset), tuple(sizes), tuple(strides), *more) if len(more) <= 4:
            pass
        case _:
            raise Unusable("is damaged: what it says of a tensor is not what torch.save writes")
    rest = more[2:]  # after whether it needs a gradient, and hooks
    dtype = rest.pop(0) if rest and isinstance(rest[0], torch.dtype) else storage.dtype
    if any(found is not None and not (isinstance(found, dict) and not found) for found in rest):
        raise Unusable("has a tensor with properties that weights do not have (conjugated or negated)")
    numbers = (offset, *sizes, *strides)
    if len(sizes) != len(strides) or any(type(n) is not int or not 0 <= n <= limits.TENSOR_ELEMENTS for n in numbers):
        raise Unusable(f"is damaged: a tensor has the sizes {sizes[:9]}, strides {strides[:9]} and offset {offset}")
    shown = f"a tensor of sizes {list(sizes)}, strides {list(strides)} and offset {offset}"
    if len(sizes) > limits.TENSOR_DIMENSIONS or math.prod(max(n, 1) for n in sizes) > limits.TENSOR_ELEMENTS:
        raise Unusable(f"is damaged: {shown}")
    count = math.prod(sizes)
    if count == 0:
        return torch.empty(sizes, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    elements = len(storage.content) // dtype.itemsize
    if last >= elements:
        raise Unusable(f"is damaged: {shown} has a storage of {elements} elements")
    if count > elements:
        raise Unusable(f"has {shown}, which is expanded from {elements} elements: save it again as tensor.contiguous()")
    values = storage.content[: elements * dtype.itemsize].view(dtype)
    return values.as_strided(sizes, strides, values.storage_offset() + offset)


def _parameter(arguments: tuple[Any, ...]) -> Tensor:
    """What stands for ``_rebuild_parameter``: a tensor, whether it needs a gradient, and hooks."""
    if not arguments or not isinstance(arguments[0], Tensor):
        raise Unusable("is damaged: a parameter without a tensor")
    return arguments[0]


_DICT = "collections.OrderedDict"
_REBUILD: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    _DICT: ordered_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
# Every name that a file may contain, and what stands for it. Nothing is imported or looked up by name.
_ADMITTED: dict[str, Any] = (
    _REBUILD
    | {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
    | {f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()}
    | {"torch.storage.UntypedStorage": torch.uint8}
)
