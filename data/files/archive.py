"""Read the members of a tarball, within limits, without extracting it.

Nothing here depends on a data set: ``newsgroups.py`` and ``massive.py`` say which members they want.
"""

from __future__ import annotations

import gzip
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from data.errors import UserError
from data.files import limits
from data.files.documents import readable

TAR_SUFFIXES = (".tar.gz", ".tgz", ".tar")
AGAIN = " Delete it and fetch it again."
_GZIP = b"\x1f\x8b"
_BLOCK = 1 << 18  # bytes read at once of what is skipped
_SHOWN = 100  # characters of a member's name in a message


def is_tarball(path: Path) -> bool:
    """Whether ``path`` is a file with the name of a tarball."""
    return path.is_file() and path.name.endswith(TAR_SUFFIXES)


def iterate_tarball(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield ``(name, content)`` of every regular member whose name (without a leading ``./``) is wanted.

    Every member is checked, wanted or not. Nothing is written to disk, so an unsafe name could do no harm here. It
    is still refused: such an archive is not the release, and another tool may extract it.

    Raises:
        UserError: a member that is a device, or whose name or link is absolute or leaves the archive with ``..``;
            a file that is not a tarball, that is damaged, or that ends early (an interrupted download); one that
            passes a limit (`data.files.limits`).
    """
    with readable(path), path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
        file.seek(0)
        stream = _Stream(path, cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file)
        try:
            yield from _members(path, stream, wanted)
        except UserError:
            raise
        except Exception as error:  # whatever tarfile and gzip come to on bytes that are not theirs
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise UserError(
                f"{path} cannot be read to its end ({error}): it is not a tarball, or its download stopped "
                f"early.{AGAIN}"
            ) from error


def _members(path: Path, stream: _Stream, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    n_members = n_content = 0
    with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:") as archive:
        while True:
            stream.header_left = limits.TAR_HEADER_BYTES
            member = archive.next()
            archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
            if member is None:
                break
            n_members += 1
            if n_members > limits.TAR_MEMBERS:
                raise UserError(f"{path}: more than {limits.TAR_MEMBERS:,} members. It is not the release.")
            _refuse_member(path, member)
            name = str(PurePosixPath(member.name))
            if not (member.isfile() and wanted(name)):
                continue
            n_content += member.size
            if member.size > limits.TAR_MEMBER_BYTES or n_content > limits.TAR_CONTENT_BYTES:
                raise UserError(
                    f"{path}: its member {name[:_SHOWN]!r} has {member.size:,} bytes, and all until there have "
                    f"{n_content:,}. The limits are {limits.TAR_MEMBER_BYTES:,} and {limits.TAR_CONTENT_BYTES:,}. It "
                    "is not the release."
                )
            stream.header_left = None
            content = archive.extractfile(member)
            assert content is not None  # a regular file always has one
            yield name, content.read()
        if stream.last.strip(b"\0"):  # tarfile takes a damaged header for the end
            raise UserError(f"{path}: damaged after member {n_members:,}.{AGAIN}")
        stream.seek(sys.maxsize)  # the checksum of gzip is at its end


class _Stream:
    """The bytes of an archive for ``tarfile``: forwards only, and within limits.

    Attributes:
        position: bytes delivered or skipped.
        header_left: bytes that may be read for the next member's header, long names included; None: no limit.
        last: what was read last.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self.position, self.last = 0, b""
        self.header_left: int | None = limits.TAR_HEADER_BYTES
        self._limit = max(limits.TAR_SMALL_BYTES, path.stat().st_size * limits.TAR_RATIO)

    def read(self, size: int) -> bytes:
        if self.header_left is not None:
            self.header_left -= size
            if self.header_left < 0:
                raise UserError(
                    f"{self._path}: the header of a member has more than {limits.TAR_HEADER_BYTES:,} bytes.{AGAIN}"
                )
        self.last = self._file.read(size)
        self._move(len(self.last))
        return self.last

    def seek(self, position: int) -> None:
        """Skip bytes, as far as there are any."""
        if position < self.position:
            raise UserError(f"{self._path}: damaged, a member has a negative size.{AGAIN}")
        while self.position < position:
            skipped = len(self._file.read(min(_BLOCK, position - self.position)))
            if not skipped:
                return
            self._move(skipped)

    def tell(self) -> int:
        return self.position

    def _move(self, n: int) -> None:
        self.position += n
        if self.position > self._limit:
            raise UserError(
                f"{self._path}: more than {self._limit:,} bytes when unpacked, the limit for a file of its size. It is "
                "not the release."
            )


def _refuse_member(path: Path, member: tarfile.TarInfo) -> None:
    def refuse(why: str) -> None:
        raise UserError(
            f"{path}: refused, because its member {member.name[:_SHOWN]!r} {why}. The original release has no "
            "such member; fetch it from its source (python -m data.download)."
        )

    if _escapes(member.name):
        refuse("points outside the archive")
    if member.issym() and _escapes(str(PurePosixPath(member.name).parent / member.linkname), member.linkname):
        refuse(f"is a link to {member.linkname[:_SHOWN]!r}, outside the archive")
    if member.islnk() and _escapes(member.linkname):  # a hard link's target counts from the archive's root
        refuse(f"is a link to {member.linkname[:_SHOWN]!r}, outside the archive")
    if not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
        refuse("is neither a file, a folder nor a link")
    if member.issparse():  # its zeros are not in the archive: a few bytes can stand for terabytes
        refuse("is a sparse file")


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
