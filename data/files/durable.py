"""Bringing files to the disk: what is renamed to its final name must not be empty after a power cut.

A program that writes a file and renames it is safe against being killed. Only fsync makes it safe against the machine's
end: of the files, then of their folder, before the rename; and after it, of the folder that has the new name.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.new")
# What file systems say that cannot sync a folder (some network and FUSE ones), and folders that cannot be opened.
_UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)
_noted = False


def sync(path: Path) -> None:
    """Call fsync on a file or folder.

    A file system that cannot sync a folder is noted in the log, once: most of them write names at once.

    Raises:
        OSError: the disk is full or broken.
    """
    global _noted
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED or not path.is_dir():
            raise
        if not _noted:
            log.warning(
                "note: the file system of %s does not sync folders (%s). After a power cut the files that were written "
                "last may be missing.",
                path,
                error.strerror,
            )
        _noted = True


def sync_folder(folder: Path) -> None:
    """Call fsync on all files in a folder, its subfolders, and the folder itself."""
    for path in folder.iterdir():
        if path.is_dir():
            sync_folder(path)
        elif path.is_file():
            sync(path)
    sync(folder)


def write_text(path: Path, text: str) -> None:
    """Write a file that has either its old contents or the new ones, whatever happens.

    A link is replaced, not followed. An OSError names the file, whichever call failed.
    """
    new = path.with_name(f".{path.name}.{os.urandom(4).hex()}.new")
    try:
        with new.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync(path.parent)


def unfinished(path: Path) -> str | None:
    """The name of the file that a killed `write_text` was to make of this one; None: it is none of its files."""
    found = _UNFINISHED.fullmatch(path.name)
    return found[1] if found and path.is_file() and not path.is_symlink() else None
