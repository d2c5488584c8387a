"""Read JSON and TOML documents: within limits, and with the types that the code expects.

The types are those of `msgspec`: `dict[str, int]`, `int | list[int] | None`, a `msgspec.Struct` whose fields are the
keys that are used. Other keys are ignored, unless the struct forbids them. An error names the file, the value's path in
it, what belongs there and what was found::

    config.json: rope_scaling.factor must be a number; it is 'eight'
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from data.errors import UserError, shortened
from data.files import limits

T = TypeVar("T")
_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
# What no program can change: a full disk, its share for a user, the largest size of a file, a disk that is read only.
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_TEXT = re.compile(r'"(?:[^"\\]|\\.)*\\?(?:"|\Z)')  # of JSON; the last may be cut off
# A key of TOML with so many parts; to decode one takes time that grows with more than the square of their number.
_KEY = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*"""
_DEEP_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*(?:{_KEY}\.[ \t]*){{{limits.DEPTH}}}", re.MULTILINE)
_BOUNDS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}


@overload
def read_json(path: Path) -> dict[str, Any]: ...
@overload
def read_json(path: Path, shape: type[T]) -> T: ...
def read_json(path: Path, shape: Any = dict[str, Any]) -> Any:
    """Read a JSON file; by default one that holds an object.

    Raises:
        UserError: unreadable, not JSON, over a limit, or not of the shape.
    """
    return parse_json(read_bytes(path), str(path), shape)


def read_bytes(path: Path, limit: int = limits.DOCUMENT_BYTES) -> bytes:
    """The content of a file that must fit in memory.

    Raises:
        UserError: unreadable, or larger than ``limit`` bytes.
    """
    with readable(path), path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(
            f"{path} is larger than {limit:,} bytes, the limit for such a file. It is not what it should be."
        )
    return content


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each line of a file with its place for messages, ``FILE, line 3``.

    Raises:
        UserError: unreadable, or a line that is larger than a document may be.
    """
    with readable(path), path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(limits.DOCUMENT_BYTES + 1), b""), start=1):
            where = f"{path}, line {number}"
            _check_size(line, where)
            yield where, line


def parse_json(text: bytes | str, where: str, shape: Any = Any) -> Any:
    """Decode a JSON document.

    Args:
        text: UTF-8.
        where: names the document in messages.
        shape: the type it must have.

    Raises:
        UserError: not JSON, over a limit, or not of the shape.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    _check_size(content, where)
    try:
        found = msgspec.json.decode(content)
    except (ValueError, RecursionError):  # DecodeError and UnicodeDecodeError are ValueErrors
        why = _why_not_json(content)
        is_broken = why.startswith("not JSON") and "(it " not in why  # not of a byte order mark, or of NaN
        advice = " The file is damaged, or its download is incomplete." if is_broken else ""
        raise UserError(f"{where}: {why}.{advice}") from None
    return shaped(found, where, shape)


def parse_line(text: bytes | str, where: str, shape: Any = Any, *, as_python: bool = False) -> Any:
    """Decode one line of JSON lines, or other JSON that is on one line; see `parse_json`.

    Args:
        as_python: read also what Python writes and JSON does not have: NaN, infinity and halves of surrogate pairs.
            Only for data of users, in which a strange value of a column that is not used is no mistake.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    _check_size(content, where)
    try:
        found = json.loads(content.decode("utf-8", "surrogatepass")) if as_python else msgspec.json.decode(content)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: {_why_not_json(content, is_line=True)}.") from None
    return shaped(found, where, shape)


def _why_not_json(content: bytes, is_line: bool = False) -> str:
    """What is wrong with a document that a decoder refuses. Python's own knows the place."""
    if content.startswith(codecs.BOM_UTF8):
        return "not JSON (it begins with a byte order mark; save it as UTF-8 without one)"
    try:
        json.loads(content.decode("utf-8", "surrogatepass"))
        return "not JSON (it has NaN, Infinity, or half of a surrogate pair, which JSON does not have)"
    except RecursionError:
        return f"nested more than {limits.DEPTH} levels deep"
    except UnicodeDecodeError as undecoded:
        return f"not JSON (byte {undecoded.start + 1} is not UTF-8)"
    except json.JSONDecodeError as found:
        if _open_at(found.doc[: found.pos]) > limits.DEPTH:  # Python 3.13 reads thousands of levels
            return f"nested more than {limits.DEPTH} levels deep"
        place = f" at character {found.pos + 1}" if is_line else f", line {found.lineno}, column {found.colno}"
        return f"not JSON ({found.msg.removesuffix(' at')}{place})"
    except ValueError:  # a number with thousands of digits
        return f"a number with more than {limits.DIGITS} digits"


def _open_at(begin: str) -> int:
    """How many lists and objects are open at the end of a valid beginning of a document."""
    outside = _TEXT.sub("", begin)
    return sum(outside.count(opening) for opening in "[{") - sum(outside.count(closing) for closing in "]}")


def parse_toml(text: str, where: str, shape: Any = dict[str, Any]) -> Any:
    """Decode a TOML document; see `parse_json`."""
    content = text.encode("utf-8", "surrogatepass")
    _check_size(content, where, limits.TOML_BYTES)
    if _DEEP_KEY.search(text):
        raise UserError(f"{where}: nested more than {limits.DEPTH} levels deep.")
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: not TOML ({error}).") from None
    except RecursionError:
        raise UserError(f"{where}: nested more than {limits.DEPTH} levels deep.") from None
    except ValueError:  # a number with thousands of digits
        raise UserError(f"{where}: a number with more than {limits.DIGITS} digits.") from None
    return shaped(found, where, shape)


def fields_of(found: dict[str, Any], shape: type[msgspec.Struct]) -> tuple[dict[str, Any], list[str]]:
    """The fields of a struct one by one, for readers that report all problems of a file together.

    Args:
        found: a decoded document. null where the struct has a default means the default.

    Returns:
        field → value, for those that are there and right or have a default; and a line for each other one.
    """
    values: dict[str, Any] = {}
    problems = []
    for field in msgspec.structs.fields(shape):
        key = field.encode_name
        if found.get(key) is None and not field.required:
            has_value = field.default is not msgspec.NODEFAULT
            values[field.name] = field.default if has_value else field.default_factory()
        elif key not in found:
            problems.append(f"{key} is missing")
        else:
            try:
                values[field.name] = msgspec.convert(found[key], field.type)
            except msgspec.ValidationError as error:
                problems.append(_in_words(str(error), found[key], key))
    return values, problems


def shaped(found: Any, where: str, shape: type[T] | Any) -> T:
    """A decoded document with the types of ``shape``.

    Raises:
        UserError: a value has another type, a key is missing, or a limit is passed.
    """
    _check_values(found, where)
    if shape is Any:
        return found
    try:
        return msgspec.convert(found, shape)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_in_words(str(error), found)}") from None
    except UnicodeEncodeError:  # only of what `parse_line` reads as Python does
        raise UserError(f"{where}: a name or text has half of a surrogate pair, which is no character.") from None


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn an OSError about a file or folder (no permission, not a file, a broken disk) into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror or error}.") from error


@contextmanager
def permitted() -> Iterator[None]:
    """Turn a PermissionError, a path that is too long, and what a disk refuses to write into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in _REFUSED:
            name = error.filename2 or error.filename or "a file"  # of two names the second one is new
            raise UserError(f"cannot write {name}: {error.strerror}.") from error
        if error.errno == errno.ENAMETOOLONG:
            name = shortened(os.fsdecode(error.filename2 or error.filename or "a path"))
            raise UserError(f"{name} is too long for a path, or a name in it is. Give a shorter one.") from error
        if not isinstance(error, PermissionError) or error.filename is None:
            raise
        raise UserError(f"{error.filename}: {error.strerror}.") from error


def _check_size(content: bytes, where: str, limit: int | None = None) -> None:
    limit = limits.DOCUMENT_BYTES if limit is None else limit
    if len(content) > limit:
        raise UserError(f"{where}: {len(content):,} bytes; the limit for a document is {limit:,}.")
    if (values := sum(map(content.count, (b",", b"[", b"{")))) > limits.DOCUMENT_VALUES:
        raise UserError(f"{where}: about {values:,} values; the limit for a document is {limits.DOCUMENT_VALUES:,}.")


def _check_values(found: Any, where: str) -> None:
    """Refuse what would stop later code: deep nesting, numbers and texts without an end.

    Level by level, because a recursive check would itself fail on deep nesting.
    """
    level, largest = [[found]], 10**limits.DIGITS
    for _ in range(limits.DEPTH + 1):
        below: list[Any] = []
        for parent in level:
            for value in parent.values() if type(parent) is dict else parent:
                kind = type(value)
                if kind is dict or kind is list:
                    below.append(value)
                elif kind is int and not -largest < value < largest:
                    raise UserError(f"{where}: a number with more than {limits.DIGITS} digits.")
                elif kind is str and len(value) > limits.TEXT_CHARACTERS:
                    raise UserError(f"{where}: a text with more than {limits.TEXT_CHARACTERS:,} characters.")
        if not below:
            return
        level = below
    raise UserError(f"{where}: nested more than {limits.DEPTH} levels deep.")


def _in_words(message: str, found: Any, root: str = "") -> str:
    """msgspec's message in words, with the value found: ``Expected `int`, got `str` - at `$.a[0]` ``.

    Args:
        root: the key of ``found`` in the document.
    """
    message, _, place = message.partition(" - at ")
    steps = re.findall(r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]", place)
    path = (root + "".join(f".{name}" if name else f"[{index}]" for name, index in steps)).removeprefix(".")
    if missing := re.fullmatch(r"Object missing required field `(.*)`", message):
        return f"{path + '.' if path else ''}{missing[1]} is missing"
    subject = path or "the document"
    if bound := re.fullmatch(r"Expected `(int|float)` (>=|<=|>|<) (.*)", message):
        wanted = f"{_NAMES[bound[1]]}, {_BOUNDS[bound[2]]} {_short(bound[3])}"
        return f"{subject} must be {wanted}{_value_at(found, steps, '; it is ')}"
    wrong = re.fullmatch(r"Expected `(.*?)`, got `(.*)`", message)
    if not wrong:
        return f"{subject}: {message.replace('`', '')}{_value_at(found, steps, '; it is ')}"
    wanted = " or ".join(_NAMES.get(name, name) for name in wrong[1].split(" | "))
    return f"{subject} must be {wanted}" + (
        _value_at(found, steps, "; it is ") or f", not {_NAMES.get(wrong[2], wrong[2])}"
    )


def _short(number: str) -> str:
    return f"{int(number):,}" if number.isdigit() else number.removesuffix(".0")


def _value_at(found: Any, steps: list[tuple[str, str]], before: str) -> str:
    """The value at a path, shortened; empty where msgspec does not say which key of a mapping it means."""
    for name, index in steps:
        if name and isinstance(found, dict) and name in found:
            found = found[name]
        elif index.isdigit() and isinstance(found, list) and int(index) < len(found):
            found = found[int(index)]
        else:
            return ""
    return before + shortened(repr(found))
