"""Checksums of a folder's files, by which damage is noticed: ``checksums.json``.

::

    {
      "format": 1,
      "hash": "xxh3_64",
      "chunk_bytes": 4194304,
      "files": {
        "config.json": {"bytes": 606, "chunks": "2d06800538d394c2"},
        "model.safetensors": {"bytes": 538090408, "chunks": "..."}
      },
      "own": "99aa06d3014798d8"
    }

``chunks`` has 16 digits for each 4 MiB of the file, so that a rank checks only the chunks that it reads, and a message
says where a file is damaged. ``own`` is the hash of the rest of this document. Model cards (``*.md``) have no
checksums, because people edit them and no program reads them.

This is against disks, networks and accidents. Against somebody who also changes ``checksums.json`` it is no protection.
A folder without the file loads unchecked.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import xxhash

from checkpoints_tools.formats import METADATA
from data.commands import quoted
from data.errors import UserError
from data.files.documents import read_json
from data.files.durable import write_text
from data.json_text import to_json

CHECKSUMS = "checksums.json"
CHUNK = 4 * 2**20
DIGITS = 16  # of a chunk's hash
# Files that are large, or of which a program reads a part. They are checked when they are read.
READ_IN_PARTS = (".safetensors", ".distcp", ".bin", ".pth", ".pt", ".gguf")


class Damaged(UserError):
    """A file differs from its checksums."""


class FileSums(msgspec.Struct, frozen=True):
    """The size of a file, and the hashes of its chunks, one after another."""

    bytes: Annotated[int, msgspec.Meta(ge=0)]
    chunks: Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{16})*$")]

    @property
    def n_chunks(self) -> int:
        return -(-self.bytes // CHUNK)

    def hash_of(self, chunk: int) -> str:
        return self.chunks[DIGITS * chunk : DIGITS * (chunk + 1)]


class _Document(msgspec.Struct):
    format: Literal[1]
    hash: Literal["xxh3_64"]
    chunk_bytes: Literal[4194304]
    files: dict[str, FileSums]
    own: str


class Summing:
    """Computes the checksums of a file from its bytes, in order."""

    def __init__(self) -> None:
        self.n_bytes, self.done, self.hash = 0, "", xxhash.xxh3_64()

    def update(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data).cast("B")
        while view:
            part = view[: CHUNK - self.n_bytes % CHUNK]
            self.hash.update(part)
            self.n_bytes += len(part)
            view = view[len(part) :]
            if self.n_bytes % CHUNK == 0:
                self._end_chunk()

    def _end_chunk(self) -> None:
        self.done += self.hash.hexdigest()
        self.hash.reset()

    def sums(self) -> FileSums:
        """The checksums of the file, which is complete now."""
        if self.n_bytes % CHUNK:
            self._end_chunk()
        return FileSums(self.n_bytes, self.done)


def sums_of(path: Path) -> FileSums:
    """The checksums of a file on the disk."""
    summing, buffer = Summing(), bytearray(CHUNK)
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(buffer):
            summing.update(memoryview(buffer)[:n])
    return summing.sums()


# --- the document -----------------------------------------------------------------------------------------------------


def write_checksums(folder: Path, known: Mapping[str, FileSums] | None = None) -> None:
    """Write ``checksums.json`` for the files that are in ``folder`` now.

    Args:
        known: file name → checksums that need not be computed from the disk again. Files of other ranks, which this
            rank may not see yet, belong here.
    """
    names = {path.name for path in folder.iterdir() if path.is_file() and _has_sums(path)}
    files = dict(known or {})
    files |= {name: sums_of(folder / name) for name in sorted(names - files.keys())}
    _write(folder / CHECKSUMS, files)


def _write(path: Path, files: Mapping[str, FileSums]) -> None:
    document = {"format": 1, "hash": "xxh3_64", "chunk_bytes": CHUNK, "files": msgspec.to_builtins(dict(files))}
    write_text(path, to_json(document | {"own": _own(document)}, indent=2) + "\n")


def replace_file(folder: Path, name: str, text: str) -> None:
    """Write a small file into a folder, new or not, and its checksum, if the folder has checksums.

    Whenever the process is killed, the folder is undamaged: the file has no checksum until it is complete.
    """
    sums = read_checksums(folder)
    if name in sums:
        _replace_checksums(folder, {other: own for other, own in sums.items() if other != name})
    write_text(folder / name, text)
    if sums:
        _replace_checksums(folder, sums | {name: sums_of(folder / name)})


def _replace_checksums(folder: Path, files: Mapping[str, FileSums]) -> None:
    """Write ``checksums.json`` anew. It keeps its time: a model card with a later one was edited."""
    path = folder / CHECKSUMS
    before = path.stat()
    _write(path, files)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _has_sums(path: Path) -> bool:
    hidden = path.name.startswith(".") and path.name != METADATA
    return not hidden and path.suffix != ".md" and path.name != CHECKSUMS


def _own(document: Mapping[str, object]) -> str:
    return xxhash.xxh3_64_hexdigest(to_json(document).encode())


def read_checksums(folder: Path) -> dict[str, FileSums]:
    """File name → checksums; empty if the folder has none.

    Raises:
        UserError: ``checksums.json`` is damaged, or another version wrote it.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return {}
    found = read_json(path, _Document)
    document = {name: getattr(found, name) for name in ("format", "hash", "chunk_bytes")}
    wrong = [
        name
        for name, sums in found.files.items()
        if Path(name).name != name or len(sums.chunks) != DIGITS * sums.n_chunks
    ]
    if wrong or found.own != _own(document | {"files": msgspec.to_builtins(found.files)}):
        raise Damaged(f"{path} itself is damaged or was changed. {_way_on(folder)}")
    return found.files


# --- checking ---------------------------------------------------------------------------------------------------------


class CheckedFile:
    """A file whose chunks are compared with their checksums, each once, before they are read."""

    def __init__(self, path: Path, sums: FileSums) -> None:
        self.path, self.sums, self.good = path, sums, set[int]()

    def check(self, begin: int = 0, end: int | None = None) -> None:
        """Check the chunks that have the bytes from ``begin`` up to ``end``, by default to the file's end.

        Raises:
            Damaged: names the file, and the chunk's bytes.
        """
        end = self.sums.bytes if end is None else end
        if bad := self.bad_chunks(range(begin // CHUNK, -(-end // CHUNK) or 1)):
            raise damaged(self.path.parent, [self.describe(bad)])

    def bad_chunks(self, chunks: Iterable[int]) -> list[int]:
        """Those of the chunks that differ from their checksums. In a file of another size all of them do."""
        chunks = [n for n in chunks if n not in self.good]
        if not chunks:
            return []
        if not self.path.is_file() or self.path.stat().st_size != self.sums.bytes:
            return chunks
        if not self.sums.bytes:
            return []
        with self.path.open("rb", buffering=0) as file:
            buffer = bytearray(min(CHUNK, self.sums.bytes))
            bad = [n for n in chunks if not self._is_good(n, file, buffer)]
        self.good |= set(chunks) - set(bad)
        return bad

    def _is_good(self, chunk: int, file: io.FileIO, buffer: bytearray) -> bool:
        view, filled = memoryview(buffer)[: self.sums.bytes - chunk * CHUNK], 0
        try:
            file.seek(chunk * CHUNK)
            while filled < len(view) and (more := file.readinto(view[filled:])):
                filled += more
        except OSError:  # what a disk says of a block that it cannot read
            return False
        return xxhash.xxh3_64_hexdigest(view[:filled]) == self.sums.hash_of(chunk)

    def describe(self, bad: list[int]) -> str:
        """What is wrong with the file: ``model.safetensors, bytes 4,194,304 to 8,388,607``."""
        if not self.path.is_file():
            return f"{self.path.name} is missing"
        if (size := self.path.stat().st_size) != self.sums.bytes:
            return f"{self.path.name} has {size:,} bytes, not {self.sums.bytes:,}"
        starts = [n for n in bad if n - 1 not in bad]
        ends = [n for n in bad if n + 1 not in bad]
        ranges = [
            f"{start * CHUNK:,} to {min((end + 1) * CHUNK, self.sums.bytes) - 1:,}"
            for start, end in zip(starts, ends, strict=True)
        ]
        return f"{self.path.name}, bytes {', '.join(ranges[:3])}{' and more' if len(ranges) > 3 else ''}"


def checked_file(path: Path) -> CheckedFile | None:
    """The file, to be checked; None if its folder has no checksums of it."""
    sums = read_checksums(path.parent).get(path.name)
    return CheckedFile(path, sums) if sums is not None else None


def check_small_files(folder: Path) -> None:
    """Check all files that a program reads completely: config, tokenizer, task, prompt, options.

    Raises:
        Damaged: names the files that are missing or differ.
    """
    found = [
        CheckedFile(folder / name, sums)
        for name, sums in read_checksums(folder).items()
        if not name.endswith(READ_IN_PARTS)
    ]
    bad = [(file, chunks) for file in found if (chunks := file.bad_chunks(_units(file.sums)))]
    if bad:
        raise damaged(folder, [file.describe(chunks) for file, chunks in bad])


def find_damage(folder: Path, part: int = 0, n_parts: int = 1) -> list[str]:
    """Check a share of all bytes of a folder; what is wrong with it, a text for each file.

    Args:
        part, n_parts: shares are equal and consecutive in the document's order, so that the ranks of a checkpoint
            check about the files that they read afterwards.

    Raises:
        UserError: see `read_checksums`.
    """
    files = read_checksums(folder)
    units = [(name, n) for name, sums in files.items() for n in _units(sums)]
    mine = units[len(units) * part // n_parts : len(units) * (part + 1) // n_parts]
    chunks: dict[str, list[int]] = {}
    for name, n in mine:
        chunks.setdefault(name, []).append(n)
    checked = [(CheckedFile(folder / name, files[name]), listed) for name, listed in chunks.items()]
    return [file.describe(bad) for file, listed in checked if (bad := file.bad_chunks(listed))]


def _units(sums: FileSums) -> range:
    """The chunks to check; of an empty file one, for its size."""
    return range(max(1, sums.n_chunks))


def damaged(folder: Path, found: list[str]) -> Damaged:
    """The error for a folder with damage, of which ``found`` has a text for each file."""
    return Damaged(
        f"{folder} is not what was written: {'; '.join(found)}. The disk or a copy damaged it, or somebody changed it. "
        f"{_way_on(folder)}"
    )


def _way_on(folder: Path) -> str:
    return (
        "Restore it from another copy. If you changed it on purpose, write the checksums anew: "
        f"python -m checkpoints_tools.inspect {quoted(str(folder))} --checksums write"
    )
