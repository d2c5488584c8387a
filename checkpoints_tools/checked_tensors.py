"""Slices of a safetensors file, each compared with the folder's checksums before it is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from checkpoints_tools.checksums import CheckedFile
from checkpoints_tools.safetensors_header import Stored, read_places
from checkpoints_tools.source import Slices


class CheckedTensors:
    """The tensors of an opened safetensors file.

    A rank checks the chunks in which its rows are, not the whole file: of the Llamas' matrices a rank's rows take
    several chunks, so it reads little more than it needs. Columns are in all chunks of their rows.

    Args:
        opened: from `safetensors.safe_open`.
        file: the same file.
    """

    def __init__(self, opened: Any, file: CheckedFile) -> None:
        self.opened, self.file = opened, file
        file.check(0, 1)  # the beginning of the header, which says how long it is
        self.places, self.data = read_places(file.path)
        file.check(0, self.data)

    def get_slice(self, name: str) -> Slices:
        return _CheckedSlices(self.opened.get_slice(name), self.file, self.places[name], self.data)


@dataclass(frozen=True)
class _CheckedSlices:
    slices: Slices
    file: CheckedFile
    place: Stored
    data: int

    def __getitem__(self, where: slice | tuple[slice, ...]) -> Tensor:
        begin, end = self.place.data_offsets
        rows = where if isinstance(where, slice) else where[0]
        if self.place.shape:
            n_rows = self.place.shape[0]
            first, last, _ = rows.indices(n_rows)
            row_bytes = (end - begin) // max(n_rows, 1)
            begin, end = begin + first * row_bytes, begin + max(first, last) * row_bytes
        if begin < end:
            self.file.check(self.data + begin, self.data + end)
        return self.slices[where]
