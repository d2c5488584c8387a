"""Read the sharded tensors of a training checkpoint (torch.distributed.checkpoint, "DCP").

DCP itself unpickles ``.metadata`` and every value that is not a tensor, and so runs whatever code is in them. Here
both are decoded by `checkpoints_tools.pickles` and `checkpoints_tools.torch_files`, and every byte is compared with the
folder's checksums, if it has any, before it is used. What DCP still does is to decide which rank reads what.

::

    .metadata         which tensors there are, and the file, offset and length of each part of each of them
    __0_0.distcp      the parts that rank 0 wrote, one after another, each as torch.save writes it
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from checkpoints_tools.checksums import CheckedFile, read_checksums
from checkpoints_tools.formats import METADATA
from checkpoints_tools.pickles import Unusable, decode
from checkpoints_tools.torch_files import DTYPES, load_part, map_file
from data.errors import UserError
from data.files import limits
from data.files.documents import read_bytes


def load_sharded(folder: Path, state: dict[str, Any]) -> None:
    """Fill a nested state from a training checkpoint; each rank reads its own slices. Collective.

    Raises:
        UserError: a file is damaged or holds more than tensors and numbers; raised on every rank.
        CheckpointException: the checkpoint does not fit the state.
    """
    reader = _Reader(folder, read_metadata(folder))
    try:
        dcp.load(state, storage_reader=reader, planner=_Planner())
    except CheckpointException as error:  # a BaseException whose message holds a traceback of every rank
        ours = dict.fromkeys(str(cause) for cause, _ in error.failures.values() if isinstance(cause, UserError))
        if ours:
            raise UserError("\n".join(ours)) from None
        raise


class _Reader(dcp.FileSystemReader):
    """DCP's reader, which opens all files as described above. Only for a `_Planner`."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self.folder, self.metadata, self.sums = folder, metadata, read_checksums(folder)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[ReadItem]] = {}
        for item in plan.items:
            by_file.setdefault(self.storage_data[item.storage_index].relative_path, []).append(item)
        for name, items in by_file.items():
            path = self.folder / name
            content = map_file(path)
            checked = CheckedFile(path, self.sums[name]) if name in self.sums else None
            for item in items:
                place = self.storage_data[item.storage_index]
                if checked is not None:
                    checked.check(place.offset, place.offset + place.length)
                found = load_part(path, content[place.offset : place.offset + place.length])
                if item.type == LoadItemType.BYTE_IO:
                    cast(_Planner, planner).take(item, found)
                    continue
                if not isinstance(found, Tensor):
                    raise UserError(f"{path} is damaged: it has no tensor for {item.storage_index.fqn}.")
                target = planner.resolve_tensor(item).detach()
                target.copy_(narrow_tensor_by_index(found, item.storage_offsets, item.lengths))
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("it would unpickle them")

    def take(self, item: ReadItem, value: Any) -> None:
        """Put a value that is not a tensor into the state."""
        set_element(self.original_state_dict, self.mappings[item.dest_index.fqn], value)


# --- .metadata --------------------------------------------------------------------------------------------------------


def read_metadata(folder: Path) -> Metadata:
    """The contents of a training checkpoint's ``.metadata``.

    Raises:
        UserError: the file is missing, damaged, or not what DCP writes.
    """
    path = folder / METADATA
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from None
    found = _read_metadata(path, state.st_mtime_ns, state.st_size)
    found.storage_meta = StorageMeta()  # DCP writes into it
    return found


@functools.lru_cache(maxsize=2)  # it is needed several times, and of a large model takes seconds
def _read_metadata(path: Path, modified: int, size: int) -> Metadata:
    if (sums := read_checksums(path.parent).get(METADATA)) is not None:
        CheckedFile(path, sums).check()
    record = decode(
        io.BytesIO(read_bytes(path, limits.METADATA_BYTES)), str(path), _ADMITTED, None, limits.METADATA_STEPS
    )
    try:
        return _metadata(record)
    except Unusable as error:
        raise UserError(f"{path} {error}. The file was not read.") from None


@dataclass(eq=False)  # it stands in the keys of a dict
class _Record:
    """What stands for an object in the pickle: the name of its class, and the state that the pickle gives it."""

    kind: str
    state: Any = None

    def set_state(self, state: Any) -> None:
        self.state = state


def _record(kind: str) -> Callable[[tuple[Any, ...]], _Record]:
    return lambda arguments: _Record(kind)


def _ignored(arguments: tuple[Any, ...]) -> None:
    """What stands for values that loading does not need."""


def _member(arguments: tuple[Any, ...]) -> None:
    """What stands for ``builtins.getattr``, by which Python 3.11.2 (Debian 12's) writes a member of an enumeration."""
    match arguments:
        case (kind, str()) if kind is _ignored:
            return
    raise Unusable("holds more than tensors: it calls builtins.getattr, which could run code; refused")


def _size(arguments: tuple[Any, ...]) -> torch.Size:
    match arguments:
        case (tuple(numbers),) if all(type(n) is int and 0 <= n <= limits.TENSOR_ELEMENTS for n in numbers):
            return torch.Size(numbers)
    raise Unusable("is damaged: a size that is not a list of numbers")


_RECORDS = "Metadata TensorStorageMetadata TensorProperties ChunkStorageMetadata BytesStorageMetadata MetadataIndex"
_DCP = "torch.distributed.checkpoint"
# Every name that the pickle may contain, and what stands for it. Nothing is imported or looked up by name.
_ADMITTED: dict[str, Any] = (
    {f"{_DCP}.metadata.{name}": _record(name) for name in _RECORDS.split()}
    | {f"{_DCP}.filesystem._StorageInfo": _record("_StorageInfo"), "torch.Size": _size}
    | {f"{_DCP}.metadata.StorageMeta": _record("StorageMeta")}
    | {f"{_DCP}.metadata._MEM_FORMAT_ENCODING": _ignored, "torch.serialization._get_layout": _ignored}
    | {"builtins.getattr": _member}
    | {f"pathlib.{name}": _ignored for name in ("PosixPath", "_local.PosixPath")}
    | {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
)


def _state(found: Any, kind: str) -> Mapping[str, Any]:
    if isinstance(found, _Record) and found.kind == kind and isinstance(found.state, dict):
        return found.state
    raise Unusable(f"is damaged: it has no {kind} where one belongs")


def _metadata(record: Any) -> Metadata:
    match _state(record, "Metadata"):
        case {"state_dict_metadata": dict(entries), "storage_data": dict(places)}:
            pass
        case _:
            raise Unusable("is damaged: a list of tensors or of their places is missing")
    lists: set[int] = set()
    storage = dict(_place(index, info) for index, info in places.items())
    return Metadata({_text(name): _entry(found, lists) for name, found in entries.items()}, storage_data=storage)


def _text(found: Any) -> str:
    if not isinstance(found, str):
        raise Unusable(f"is damaged: {type(found).__name__} as a name")
    return found


def _entry(found: Any, lists: set[int]) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(found, _Record) and found.kind == "BytesStorageMetadata":
        return BytesStorageMetadata()
    match _state(found, "TensorStorageMetadata"):
        case {
            "properties": _Record("TensorProperties", (torch.dtype() as dtype, *_)),
            "size": torch.Size() as size,
            "chunks": list(chunks),
        } if id(chunks) not in lists:  # one list for all tensors could make a small file large
            lists.add(id(chunks))
            return TensorStorageMetadata(TensorProperties(dtype), size, [_chunk(chunk) for chunk in chunks])
    raise Unusable("is damaged: what it says of a tensor is not what DCP writes")


def _chunk(found: Any) -> ChunkStorageMetadata:
    match _state(found, "ChunkStorageMetadata"):
        case {"offsets": torch.Size() as offsets, "sizes": torch.Size() as sizes}:
            return ChunkStorageMetadata(offsets, sizes)
    raise Unusable("is damaged: what it says of a tensor's part is not what DCP writes")


def _place(index: Any, info: Any) -> tuple[MetadataIndex, _StorageInfo]:
    """Which part of which tensor, and where it is. A file is a name in the folder, so that nothing else is opened."""
    match {"offset": None, **_state(index, "MetadataIndex")}, _state(info, "_StorageInfo"):
        case (
            {"fqn": str(name), "offset": (torch.Size() | None) as part, "index": (int() | None) as hint},
            {"relative_path": str(file), "offset": int(offset), "length": int(length)},
        ) if file.endswith(".distcp") and Path(file).name == file and offset >= 0 and length > 0:
            return MetadataIndex(name, part, hint), _StorageInfo(file, offset, length)
    raise Unusable("is damaged: what it says of a tensor's place is not what DCP writes")
