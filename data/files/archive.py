"""Shared by the readers of raw files: errors of unreadable files, JSON, and tarballs, which are never extracted.

Nothing here depends on a data set: ``newsgroups.py`` and ``massive.py`` say which members of a tarball they want.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import UserError

TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn an OSError about a file or folder (no permission, not a file, a broken disk) into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}.") from error


def parse_json(text: str, where: str) -> Any:
    """Parse JSON from a user's file.

    Raises:
        UserError: not JSON, or deeper nesting or a longer number than Python can read; the message names ``where``.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at character {error.pos + 1}).") from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON that cannot be read (nested too deeply).") from error
    except ValueError as error:
        raise UserError(f"{where}: JSON that cannot be read ({error}).") from error


def is_tarball(path: Path) -> bool:
    """Whether ``path`` is a file with the name of a tarball."""
    return path.is_file() and path.name.endswith(TAR_SUFFIXES)


def iterate_tarball(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield ``(name, content)`` of every regular member whose name (without a leading ``./``) is wanted.

    Every member is checked, wanted or not. Nothing is written to disk, so an unsafe name could do no harm here. It
    is still refused: such an archive is not the release, and another tool may extract it.

    Raises:
        UserError: a member that is a device, or whose name or link is absolute or leaves the archive with ``..``;
            a file that is not a tarball, or that ends early (an interrupted download).
    """
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                _refuse_outside(path, member)
                name = str(PurePosixPath(member.name))
                if member.isfile() and wanted(name):
                    stream = archive.extractfile(member)
                    assert stream is not None  # a regular file always has one
                    yield name, stream.read()
            while archive.fileobj and archive.fileobj.read(1 << 20):
                pass  # tarfile stops at the last member; the checksum of the compressed stream comes after it
    except (tarfile.ReadError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot read {path}: {error.strerror}.") from error
        raise UserError(
            f"{path} cannot be read to its end ({error}): it is not a tarball, or its download stopped "
            "early. Delete it and fetch it again."
        ) from error


def _refuse_outside(path: Path, member: tarfile.TarInfo) -> None:
    def refuse(why: str) -> None:
        raise UserError(
            f"{path}: refused, because its member {member.name!r} {why}. The original release has no "
            "such member; fetch it from its source (python -m data.download)."
        )

    if _escapes(member.name):
        refuse("points outside the archive")
    if member.issym() and _escapes(str(PurePosixPath(member.name).parent / member.linkname), member.linkname):
        refuse(f"is a link to {member.linkname!r}, outside the archive")
    if member.islnk() and _escapes(member.linkname):  # a hard link's target counts from the archive's root
        refuse(f"is a link to {member.linkname!r}, outside the archive")
    if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
        refuse("is neither a file, a folder nor a link")


def _escapes(name: str, *more: str) -> bool:
    """Whether a member name is absolute (on any system) or climbs above the archive's root."""
    for text in (name, *more):
        if text.startswith(("/", "\\")) or (len(text) > 1 and text[1] == ":"):
            return True
    depth = 0
    for part in name.replace("\\", "/").split("/"):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8. Half a surrogate pair (``"\\ud800"``), valid in JSON, cannot."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
