"""Cache of tokenized data: files named after a hash of their inputs, written by one process and read by the others."""

from __future__ import annotations

import fcntl
import logging
import math
import os
import platform
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def cached(cache_dir: Path | str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays of ``key`` from its cache file; if there is none, call ``build`` and cache the result.

    If several processes of a machine ask for one key at the same time, one builds and the others wait. They wait for a
    lock, which the system releases if its holder dies. A damaged file or a folder that cannot be written is logged,
    and the arrays are built again.

    Args:
        key: hexadecimal hash of all inputs of ``build``.
    """
    path = Path(cache_dir) / f"samples-{key[:32]}.npz"
    with _locked(path.with_suffix(".lock")):
        arrays = _read(path, key)
        if arrays is None:
            arrays = build()
            _write(path, key, arrays)
    return arrays


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between the processes of this machine; the system releases it if its holder dies."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("Waiting for another process of this machine to tokenize these samples.")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # no permission, or a file system without locks: every process tokenizes
            log.warning("No lock at %s (%s): every process tokenizes separately.", path, error)
        yield


def _write(path: Path, key: str, arrays: Arrays) -> None:
    part = path.with_suffix(f".{platform.node()}-{os.getpid()}.part")  # the folder may be shared by machines
    try:
        with open(part, "wb") as file:
            np.savez(file, allow_pickle=False, key=np.frombuffer(key.encode(), dtype=np.uint8), **arrays)
        os.replace(part, path)  # atomic: a reader finds a complete file or none
    except OSError as error:
        log.warning("The tokenized samples could not be written to %s: %s", path, error)
        if part.exists():
            part.unlink()


def _read(path: Path, key: str) -> Arrays | None:
    """Return the cached arrays, or None when there are none or the file is damaged (which is logged)."""
    if not path.exists():
        return None
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            if file["key"].tobytes().decode() != key:
                raise ValueError("its samples do not match its name")
            return {name: file[name] for name in file.files if name != "key"}
    except Exception as error:  # whatever numpy and zipfile come to on bytes that are not theirs
        log.warning("The cache file %s is damaged (%s); tokenizing again.", path, error)
        return None


def _check_sizes(path: Path) -> None:
    """Raise ValueError if an array of a cache file, which is not packed, claims to be larger than the file."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                raise ValueError(f"{member.filename} is packed or larger than the file")
            with archive.open(member) as file:
                version = npy.read_magic(file)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, _, dtype = read_header(file)
                if math.prod(shape) * dtype.itemsize > size:
                    raise ValueError(f"{member.filename} claims to be larger than the file")
