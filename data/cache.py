"""Tokenized data on disk: arrays under a name that says what went in, made by one process and read by the others."""

from __future__ import annotations

import fcntl
import logging
import os
import platform
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


def cached(cache_dir: Path | str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """The arrays that ``key`` stands for: from the cache file if there is one, else from ``build``, and kept.

    Processes of this machine that ask for the same at the same time wait for the first one, under a lock that the
    system releases should that one die. A damaged file, or a folder that cannot be written, is said in the log and
    costs no more than building anew.

    Args:
        key: hexadecimal hash of everything that decides the arrays.
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
    """Hold an exclusive lock between the processes of this machine; the system drops it when its holder dies."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("Waiting for another process of this machine to tokenize these samples.")
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # no such right, or a file system without locks: each process does the work itself
            log.warning("No lock at %s (%s): every process tokenizes for itself.", path, error)
        yield


def _write(path: Path, key: str, arrays: Arrays) -> None:
    part = path.with_suffix(f".{platform.node()}-{os.getpid()}.part")  # the folder may be shared by machines
    try:
        with open(part, "wb") as file:
            np.savez(file, allow_pickle=False, key=np.frombuffer(key.encode(), dtype=np.uint8), **arrays)
        os.replace(part, path)  # atomic: a reader finds a whole file or none
    except OSError as error:
        log.warning("The tokenized samples could not be kept as %s: %s", path, error)
        if part.exists():
            part.unlink()


def _read(path: Path, key: str) -> Arrays | None:
    """Return the cached arrays, or None when there are none or the file is damaged (which is logged)."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["key"].tobytes().decode() != key:
                raise ValueError("it holds other samples than its name says")
            return {name: file[name] for name in file.files if name != "key"}
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        log.warning("The cache file %s is damaged (%s); tokenizing anew.", path, error)
        return None
