"""Read JSON and TOML documents: within limits, and with the types that the code expects.

The types are those of `msgspec`: `dict[str, int]`, `int | list[int] | None`, a `msgspec.Struct` whose fields are the
keys that are used. Other keys are ignored, unless the struct forbids them. An error names the file, the value's path in
it, what belongs there and what was found::

    config.json: rope_scaling.factor must be a number; it is 'eight'
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar, overload

import msgspec

from data.errors import UserError
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
_BOUNDS = {">=": "at least", "<=": "at most", ">": "above", "<": "below"}
_SHOWN = 60  # characters of a found value in a message


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
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}.") from error
    if len(content) > limit:
        raise UserError(
            f"{path} is larger than {limit:,} bytes, the limit for such a file. It is not what it should be."
        )
    return content


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
    except (ValueError, RecursionError) as error:  # DecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"{where}: {_why_not_json(content, error)}") from None
    return shaped(found, where, shape)


def _why_not_json(content: bytes, error: Exception) -> str:
    """What is wrong with a document that msgspec refuses. Python's decoder knows the line and column."""
    try:
        json.loads(content.decode("utf-8"))
        reason = "it has NaN, Infinity, or half of a surrogate pair, which JSON does not have"
    except RecursionError:
        return f"nested more than {limits.DEPTH} levels deep."
    except UnicodeDecodeError as undecoded:
        reason = f"byte {undecoded.start + 1} is not UTF-8"
    except json.JSONDecodeError as found:
        reason = f"{found.msg}, line {found.lineno}, column {found.colno}"
    except ValueError:  # a number with thousands of digits
        reason = str(error)
    return f"not JSON ({reason}). The file is damaged, or its download is incomplete."


def parse_toml(text: str, where: str, shape: Any = dict[str, Any]) -> Any:
    """Decode a TOML document; see `parse_json`."""
    _check_size(text.encode("utf-8", "surrogatepass"), where)
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


def _check_size(content: bytes, where: str) -> None:
    if len(content) > limits.DOCUMENT_BYTES:
        raise UserError(f"{where}: {len(content):,} bytes; the limit for a document is {limits.DOCUMENT_BYTES:,}.")
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
    text = repr(found)
    return before + (text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
