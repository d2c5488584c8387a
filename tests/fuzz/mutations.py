"""Damage a file: at random bytes, and where its format says that something counts.

`mutate` is the entry. Every change is drawn from the given generator, so a seed always gives the same bytes. What is
drawn are the kinds that broke parsers: wrong types, numbers out of range, deep nesting, very long strings and numbers,
missing and repeated keys, lengths that lie, archives that unpack to gigabytes.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePath
from random import Random
from typing import Any

DEEP = 100_000  # levels of nesting
BOMB = 1536 << 20  # bytes that a bomb unpacks to
EXTREME = (0, 1, -1, 127, 128, 255, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62,
           2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip
_MARK = "@mutated@"  # the place in a document for a piece of text that no writer would write

# What an earlier mutation can make of a structure that a later one expects.
BROKEN = (ValueError, LookupError, TypeError, RecursionError, EOFError, OSError, struct.error, zlib.error,
          zipfile.BadZipFile, tarfile.TarError)  # fmt: skip

Mutation = Callable[[bytes, Random], bytes]


def mutate(content: bytes, name: str, rng: Random) -> bytes:
    """A damaged copy of a file.

    Args:
        name: its name, whose ending says which structure to damage; see `KINDS`.
    """
    kind = KINDS.get(PurePath(name).suffix)
    if kind is None:  # a rank file is text, a SentencePiece model is not
        kind = binary if b"\0" in content[:1000] else text
    for again in range(rng.choice((1, 1, 1, 2, 3))):
        packed = kind in (torch_zip, tarball)  # may be a bomb by now, so it is not unpacked again
        damage = kind if rng.random() < (0.9 if packed else 0.75) and not (again and packed) else any_bytes
        try:
            content = damage(content, rng)
        except BROKEN:
            content = any_bytes(content, rng)
    return content


# --- bytes ------------------------------------------------------------------------------------------------------------


def any_bytes(content: bytes, rng: Random) -> bytes:
    """Flip, cut, insert, duplicate, splice, delete."""
    size = len(content)
    start = rng.randrange(size + 1)
    end = min(size, start + _length(rng, size))
    other = rng.randrange(size + 1)
    piece = content[start:end]
    what = rng.choice(("flip", "flip", "cut", "insert", "duplicate", "splice", "delete", "fill", "empty"))
    if what == "flip":
        flipped = bytearray(content)
        for _ in range(rng.choice((1, 1, 4, 32)) if size else 0):
            flipped[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(flipped)
    if what == "cut":
        return content[:start]
    if what == "insert":
        return content[:start] + rng.randbytes(_length(rng, 64)) + content[start:]
    if what == "duplicate":
        return content[:end] + piece * rng.choice((1, 1, 2, 50)) + content[end:]
    if what == "splice":
        return content[:other] + piece + content[other + len(piece) :]
    if what == "delete":
        return content[:start] + content[end:]
    if what == "fill":
        return content[:start] + bytes([rng.choice((0, 0xFF, 0x20))]) * len(piece) + content[end:]
    return rng.choice((b"", b"\0" * 8, rng.randbytes(100), content[:1]))


def integer(content: bytes, rng: Random) -> bytes:
    """Write an extreme number over 1, 2, 4 or 8 bytes; more often where headers and directories are."""
    width = rng.choice((1, 2, 4, 8, 8))
    near = min(rng.choice((64, 512, 4096)), len(content))
    where = rng.random()
    at = rng.randrange(near + 1) if where < 0.6 else rng.randrange(len(content) + 1)
    if where > 0.85:
        at = max(0, len(content) - at)
    number = rng.choice(EXTREME) % 2 ** (8 * width)
    return content[:at] + number.to_bytes(width, rng.choice(("little", "little", "big"))) + content[at + width :]


def binary(content: bytes, rng: Random) -> bytes:
    return rng.choice((integer, integer, any_bytes))(content, rng)


def _length(rng: Random, most: int) -> int:
    """Short lengths as often as long ones."""
    return max(1, int(2 ** rng.uniform(0, max(1, most).bit_length())))


# --- JSON and TOML ----------------------------------------------------------------------------------------------------


def fragment(rng: Random) -> str:
    """JSON for one value, not always valid."""
    small = ("null", "true", "false", "0", "-0", "1", "-1", "2", "0.5", "1e308", "1e400", "-1e400", "NaN", "Infinity",
             "-Infinity", "01", '""', '" "', '"x"', r'"\ud800"', r'"\u0000"', r'"\n"', '"1"', '"\u202e\u200b"', "[]",
             "{}", "[[]]", "[null]", "[-1]", '[1, "a"]', '{"": 0}', '{"a": null}', '[{"a": [{}]}]',
             "undefined")  # fmt: skip
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(small)
    if kind < 0.8:
        return str(rng.choice(EXTREME) * rng.choice((1, -1)))
    digits = "9" * rng.choice((400, 5_000))
    depth = rng.choice((600, DEEP))
    letters = "a" * rng.choice((300, 70_000, 1_000_000))
    return rng.choice(
        (
            digits, f"-{digits}", f"0.{digits}", f"1e{digits}", f'"{digits}"',
            "[" * depth + "]" * depth, "[" * depth, '{"a":' * depth + "1" + "}" * depth,
            f'"{letters}"', "[" + "0," * 70_000 + "0]", "{" + ",".join(f'"{i}":0' for i in range(5_000)) + "}",
        )
    )  # fmt: skip


def edit(document: Any, rng: Random) -> str:
    """A JSON document with one place changed, as text."""
    replacement = fragment(rng)
    parent, key = _place(document, rng)
    if parent is None:
        return replacement
    what = rng.random()
    if what < 0.12:
        del parent[key]
        return json.dumps(document)
    if what < 0.24:  # a value from elsewhere
        other, at = _place(document, rng)
        parent[key] = json.loads(json.dumps(document if other is None else other[at]))
        return json.dumps(document)
    if what < 0.32 and isinstance(parent, dict):
        parent[rng.choice(("", "surprise", "__class__", "self", " ", key + " ", key.upper()))] = parent[key]
        return json.dumps(document)
    if what < 0.40 and isinstance(parent, dict):  # the same key twice
        replacement = f"{replacement}, {json.dumps(key)}: {json.dumps(parent[key])}"
    parent[key] = _MARK
    return json.dumps(document).replace(json.dumps(_MARK), replacement)


def _place(document: Any, rng: Random) -> tuple[Any, Any]:
    """A container and a key of it, near the root as often as deep inside; (None, None): the root."""
    parent, key, here = None, None, document
    while isinstance(here, dict | list) and here and (parent is None or rng.random() < 0.6):
        if parent is None and rng.random() < 0.03:
            break
        parent, key = here, rng.choice(list(here) if isinstance(here, dict) else range(len(here)))
        here = parent[key]
    return parent, key


def as_json(content: bytes, rng: Random) -> bytes:
    return edit(json.loads(content), rng).encode()


def json_lines(content: bytes, rng: Random) -> bytes:
    lines = content.splitlines()
    at = rng.randrange(len(lines))
    if rng.random() < 0.15:
        lines.insert(at, rng.choice((b"", b" ", lines[rng.randrange(len(lines))], b"[]", b"null")))
    else:
        lines[at] = as_json(lines[at], rng)
    return b"\n".join(lines) + b"\n"


def toml(content: bytes, rng: Random) -> bytes:
    """Change the value of a key, or a key."""
    lines = content.decode().splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if re.match(r"\s*[\w.-]+\s*=|\[", line)])
    key = lines[at].split("=")[0].rstrip()
    value = fragment(rng).replace('":', '" = ')
    if rng.random() < 0.3:
        value = rng.choice(
            ("nan", "inf", "-inf", "1979-05-27", "07:32:00", "'''\na'''", "{}", "{a = 1}", '["a", 1]', "0x_1", "1_000")
        )
    deep = ".".join("a" * rng.choice((100, DEEP)))
    new = rng.choice(
        (f"{key} = {value}", f"{key} = {value}", f"{key} = {value}", "", f"{lines[at]}\n{lines[at]}",
         f"surprise = {value}", f"{deep} = 1", f"[{deep}]", f"[[{key.strip('[]')}]]", f"[{key.strip('[]')}]")
    )  # fmt: skip
    lines[at] = new
    return ("\n".join(lines) + "\n").encode()


# --- other text -------------------------------------------------------------------------------------------------------


def text(content: bytes, rng: Random) -> bytes:
    """Change a word or a line, or the encoding."""
    if rng.random() < 0.1:
        encoding = rng.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-le"))
        return content.decode("utf-8", "replace").encode(encoding)
    pieces = (b'"', b"'", b"\0", b"\r", b"\n\n\n", b"\t", b",", b" ", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80",
              b"\xc2\x85", b"\xe2\x80\xa8", b"\x1a", b"=", b"-1", b"," * 70_000, b"a" * 200_000,
              b'"' + b"a,\n" * 50_000, b"9" * 5_000, b"[" * DEEP, b"{" * DEEP)  # fmt: skip
    piece = rng.choice(pieces) if rng.random() < 0.7 else fragment(rng).encode()
    words = list(re.finditer(rb"[^\s,]+", content))
    if words and rng.random() < 0.6:
        word = rng.choice(words)
        return content[: word.start()] + piece + content[word.end() :]
    lines = content.splitlines(keepends=True)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice((piece, piece + b"\n", rng.choice(lines or [b""]))))
    return b"".join(lines)


def answer(content: bytes, rng: Random) -> bytes:
    """What a model has written: JSON or not."""
    return rng.choice((as_json, text))(content, rng)


# --- tensor files -----------------------------------------------------------------------------------------------------


def safetensors(content: bytes, rng: Random) -> bytes:
    """Change the JSON header and correct its length, or leave it and change the length or the data."""
    if rng.random() < 0.3:
        return integer(content, rng)
    (length,) = struct.unpack("<Q", content[:8])
    header, data = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.1:
        data = any_bytes(data, rng)
    else:
        header = as_json(header, rng)
        header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + data


def torch_zip(content: bytes, rng: Random) -> bytes:
    """Change a member of a file of ``torch.save``, mostly its pickle."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    pickles = [name for name in members if name.endswith(".pkl")]
    name = rng.choice(pickles) if pickles and rng.random() < 0.7 else rng.choice(list(members))
    what = rng.random()
    if what < 0.7:
        members[name] = rng.choice((any_bytes, any_bytes, integer))(members[name], rng)
    elif what < 0.85:
        del members[name]
    else:
        members[name + rng.choice((".x", "/..", "\\", "0"))] = members.pop(name)
    bomb = rng.choice(list(members)) if members and rng.random() < 0.05 else None
    return zip_of(members, bomb)


def zip_of(members: dict[str, bytes], bomb: str | None = None) -> bytes:
    """A zip file, its members stored; but ``bomb`` is compressed and unpacks to `BOMB` bytes."""
    body, directory = bytearray(), bytearray()
    for name, data in members.items():
        method, size = (8, BOMB) if name == bomb else (0, len(data))
        stored = deflated_zeros() if name == bomb else data
        common = struct.pack("<HHHHHIIIH", 20, 0, method, 0, 0, zlib.crc32(data), len(stored), size, len(name.encode()))
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHHII", 0, 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\x03\x04" + common + struct.pack("<H", 0) + name.encode() + stored
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    return bytes(body + directory) + b"PK\x05\x06" + end


@functools.cache
def deflated_zeros() -> bytes:
    """`BOMB` zeros, compressed as in a zip file (raw deflate)."""
    block = 1 << 20
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)  # depends on nothing before it
    return first + again * (BOMB // block - 1) + packer.flush(zlib.Z_FINISH)


def gguf(content: bytes, rng: Random) -> bytes:
    """Change a count, a length, a type or a value of the metadata."""
    places = [4, 8, 16]  # version, number of tensors, number of keys
    for key in re.finditer(rb"(?s)([^\0])\0{7}([a-z][\w.]+)", content[: 1 << 20]):
        if len(key[2]) >= (length := key[1][0]):
            behind = key.start() + 8 + length  # the type; of an array, then the elements' type and number
            places += [key.start(), behind, behind + 4, behind + 8]
            places += [behind + 4, behind + 8] * (5 if content[behind] == 9 else 0)
    at = rng.choice(places[:80] if rng.random() < 0.7 else places)
    width = rng.choice((4, 8))
    number = rng.choice((*EXTREME, *range(14))) % 2 ** (8 * width)
    return content[:at] + number.to_bytes(width, "little") + content[at + width :]


# --- tarballs ---------------------------------------------------------------------------------------------------------


def tarball(content: bytes, rng: Random) -> bytes:
    """Change the headers of a ``.tar.gz`` inside it, or pack a bomb."""
    archive = gzip.decompress(content)
    what = rng.random()
    if what < 0.06:
        return gzip.compress(archive[:-1024]) + _bomb_member(archive)
    if what < 0.12:
        return gzip.compress(_sparse_member(archive, rng) + archive, 1)
    if what < 0.25:
        return gzip.compress(any_bytes(archive, rng), 1)
    headers = [at for at in range(0, len(archive) - 511, 512) if archive[at + 257 : at + 262] == b"ustar"]
    at = rng.choice(headers)
    header = bytearray(archive[at : at + 512])
    field = rng.choice(("size", "size", "type", "name", "link", "any"))
    if field == "size":
        number = rng.choice(EXTREME)
        packed = b"\x80" + (number % 2**64).to_bytes(11, "big") if rng.random() < 0.5 else b"%011o\0" % (number % 8**11)
        header[124:136] = packed
    elif field == "type":
        header[156] = rng.choice(b"\x000123456789gxLKSVXDN\xff")
    elif field == "name":
        end = bytes(header[:100]).rstrip(b"\0").split(b"/")[-1]
        names = (b"/etc/passwd", b"../" * 20 + b"a", b"", b"\xff" * 100, b"a/" * 50, b"20news-bydate-train/x/1", end)
        header[:100] = rng.choice(names)[:100].ljust(100, b"\0")
    elif field == "link":
        header[156] = rng.choice(b"12")
        header[157:257] = rng.choice((b"", b"/etc/passwd", b"../" * 30, bytes(header[:100])))[:100].ljust(100, b"\0")
    else:
        for _ in range(4):
            header[rng.randrange(512)] = rng.randrange(256)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(archive[:at] + bytes(header) + archive[at + 512 :], 1)


def _first_name(archive: bytes) -> str:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return next(member.name for member in tar if member.isfile())


def _bomb_member(archive: bytes) -> bytes:
    """A compressed member of `BOMB` zeros and the archive's end, to stand behind other members."""
    info = tarfile.TarInfo(_first_name(archive) + "0")
    info.size = BOMB
    zeros = gzip.compress(bytes(16 << 20), 9)
    return gzip.compress(info.tobuf()) + zeros * (BOMB // (16 << 20)) + gzip.compress(bytes(1024))


def _sparse_member(archive: bytes, rng: Random) -> bytes:
    """A member without content that claims to be a sparse file of terabytes."""
    name, size = _first_name(archive) + "0", rng.choice((2**31, 2**43, 2**62, -1))
    info = tarfile.TarInfo(name)
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(size),
        "GNU.sparse.map": rng.choice(("0,0", f"{size},0", "0", "a,b", f"0,{size}")),
        "GNU.sparse.name": name,
    }
    return info.tobuf(tarfile.PAX_FORMAT)


KINDS: dict[str, Mutation] = {
    ".json": as_json,
    ".jsonl": json_lines,
    ".toml": toml,
    ".csv": text,
    ".tsv": text,
    ".txt": text,
    ".answer": answer,
    ".fenced": text,
    ".safetensors": safetensors,
    ".pth": torch_zip,
    ".bin": torch_zip,
    ".pt": torch_zip,
    ".gz": tarball,
    ".gguf": gguf,
    ".parquet": binary,
    ".arrow": binary,
    ".conll": text,
    ".conllu": text,
    ".distcp": binary,
}
"""By the ending of a file's name."""
