"""Tarballs that would take all memory or time, or that are damaged."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from pathlib import Path

import pytest

from data.errors import UserError
from data.files import limits
from data.files.archive import iterate_tarball
from tests.children import peak_memory

NAME = "20news-bydate-train/sci.med/1"
READ = """
import sys; from pathlib import Path; from data.files.archive import iterate_tarball
for name, content in iterate_tarball(Path(sys.argv[2]), lambda name: name.endswith("/1")): print(name, len(content))
"""


def header(name: str = NAME, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def packed(start: bytes, n_zeros: int) -> bytes:
    """Bytes and zeros, packed with gzip, without having them in memory."""
    packer, block = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(1 << 20)
    return b"".join([packer.compress(start), *(packer.compress(block) for _ in range(n_zeros >> 20)), packer.flush()])


def sparse() -> bytes:
    """A member of no bytes that stands for eight terabytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo(NAME)
        size = {"GNU.sparse.size": str(8 << 40), "GNU.sparse.map": "0,0", "GNU.sparse.name": NAME}
        info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1"} | size
        archive.addfile(info)
    return gzip.compress(stream.getvalue())


def old_sparse() -> bytes:
    block = bytearray(header(kind=tarfile.GNUTYPE_SPARSE))
    block[386:410], block[483:495] = b"0" * 11 + b"\0" + b"0" * 11 + b"\0", b"77777777777\0"
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + 256 + sum(block[156:512]))
    return gzip.compress(bytes(block) + bytes(1024))


LARGE = 1 << 28  # bytes; enough to see that they are not in memory
BOMBS = {
    "sparse": (sparse, "is a sparse file"),
    "old sparse": (old_sparse, "is a sparse file"),
    "large member": (lambda: packed(header(size=4 * LARGE), 64 << 20), "has 1,073,741,824 bytes"),
    "skipped member": (lambda: packed(header("x", LARGE), LARGE), "bytes when unpacked"),
    "long name": (
        lambda: packed(header(size=LARGE, kind=tarfile.GNUTYPE_LONGNAME), LARGE),
        "header of a member has more",
    ),
    "attributes": (lambda: packed(header(size=LARGE, kind=tarfile.XHDTYPE), LARGE), "the header of a member"),
    "long names in each other": (
        lambda: gzip.compress(header(size=1, kind=tarfile.GNUTYPE_LONGNAME) * 100_000),
        "header of a member has more",
    ),
    "after the end": (lambda: packed(b"", LARGE), "bytes when unpacked"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_takes_no_memory(tmp_path: Path, bomb: str) -> None:
    make, message = BOMBS[bomb]
    path = tmp_path / "20news-bydate.tar.gz"
    path.write_bytes(make())
    assert path.stat().st_size < 3 << 20
    printed, peak = peak_memory(READ, str(path))
    assert message in printed and printed.startswith("UserError")
    assert peak < 200 << 20, f"{peak >> 20} MiB"


@pytest.mark.parametrize(
    "limit, value, message",
    [
        ("TAR_MEMBERS", 2, "more than 2 members"),
        ("TAR_MEMBER_BYTES", 5, "has 6 bytes"),
        ("TAR_CONTENT_BYTES", 11, "all until there have 12"),
        ("TAR_SMALL_BYTES", 1536, "more than 1,536 bytes when unpacked"),
        ("TAR_HEADER_BYTES", 500, "the header of a member has more than 500 bytes"),
    ],
)
def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, message: str) -> None:
    path = tmp_path / "x.tar"
    member = header(size=6) + b"abcdef".ljust(512, b"\0")
    path.write_bytes(member * 3 + bytes(1024))
    assert list(iterate_tarball(path, lambda name: True)) == [(NAME, b"abcdef")] * 3
    monkeypatch.setattr(limits, "TAR_RATIO", 0)
    monkeypatch.setattr(limits, limit, value)
    with pytest.raises(UserError, match=message):
        list(iterate_tarball(path, lambda name: True))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a tarball"),
        (header()[:-1], "not a tarball"),
        (b"x" * 2000, "not a tarball"),
        (header(size=6) + b"abc", "cannot be read to its end"),
        (
            header() + b"x" * 512 + header() + bytes(1024),
            "damaged after member 1",
        ),
        (header() + header()[:300], "damaged after member 1"),
        (header(size=-1024) + header(), "a negative size"),
        (b"\x1f\x8b" + bytes(40), "not a tarball"),
    ],
)
def test_damage_is_noticed(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(iterate_tarball(path, lambda name: True))


def test_other_packings_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:xz") as archive:
        archive.addfile(tarfile.TarInfo(NAME))
    with pytest.raises(UserError, match="not a tarball"):
        list(iterate_tarball(path, lambda name: True))
