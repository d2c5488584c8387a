"""``~`` and environment variables in the paths that users write: options, configuration files and task files.

A shell expands them only where it sees them as words: not in ``--output=~/run``, in quotes, or in a file. So programs
expand them too, once, when they read the path.
"""

from __future__ import annotations

import dataclasses
import os
import re
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from data.errors import UserError

T = TypeVar("T")

_PATH = object()
PathText = Annotated[str, _PATH]
"""The type of an option that is a path or a name, such as ``sample`` or ``-``."""

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([^}]*)(\}?))")


def expand(path: str, folder: Path = Path()) -> str:
    """A path with the values of ``~``, ``~user``, ``$NAME`` and ``${NAME}``; other texts are returned unchanged.

    Of a path that exists as it is written, ``$`` is a part of its name.

    Args:
        folder: the folder that a relative path is relative to; the result is still relative.

    Raises:
        UserError: a variable that is not set or empty, a user whose home folder is not known.
    """
    at_home = os.path.expanduser(path)
    if os.path.lexists(folder / at_home):
        return at_home
    expanded = os.path.expanduser(_VARIABLE.sub(_value, path))
    if expanded.startswith("~"):
        user = expanded.split("/")[0]
        raise UserError(
            f"{path}: {'the home folder of ' + user[1:] if user != '~' else 'your home folder'} is not known "
            "(~ at its start). Write the folder's path, or its absolute path if its name starts with ~."
        )
    return expanded


def _value(found: re.Match[str]) -> str:
    name = found[1] if found[1] is not None else found[2]
    if found[2] is not None and not (found[3] and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)):
        raise UserError(f"{found.string}: after $ a variable is expected, as in $NAME or ${{NAME}}; found {found[0]}.")
    value = os.environ.get(name, "")
    if not value:
        what = "is empty" if name in os.environ else "is not set"
        raise UserError(f"{found.string}: the environment variable {name} {what}. Set it, or write the path in full.")
    return value


def expand_options(options: T, problems: list[str]) -> T:
    """An options object with all its paths expanded: those of type `Path` and `PathText`, also in sections and tuples.

    Defaults are ours and stay as they are. A path that cannot be expanded is described in ``problems`` and kept.
    """
    assert dataclasses.is_dataclass(options) and not isinstance(options, type)
    kinds = typing.get_type_hints(type(options), include_extras=True)
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[field.name] = expand_options(value, problems)
        elif _is_path(kinds[field.name]) and value != field.default:
            try:
                changed[field.name] = tuple(map(_expanded, value)) if isinstance(value, tuple) else _expanded(value)
            except UserError as error:
                problems.append(f"{field.name} = {error}")
    return dataclasses.replace(options, **changed)


def _expanded(value: Any) -> Any:
    return value if value is None else type(value)(expand(str(value)))


def _is_path(kind: Any) -> bool:
    """Whether values of this type are paths, or tuples or optional ones of them."""
    if _PATH in getattr(kind, "__metadata__", ()):
        return True
    return kind is Path or any(map(_is_path, typing.get_args(kind)))


def parsed_paths(options: T) -> T:
    """`expand_options` for a program without layers of options.

    Raises:
        UserError: names every path that cannot be expanded.
    """
    problems: list[str] = []
    expanded = expand_options(options, problems)
    if problems:
        raise UserError("\n".join(problems))
    return expanded


def check_links(name: str, path: Path) -> None:
    """Check that a path to write to, and the folders above it, are no links to what does not exist.

    Args:
        name: the option, for the message.
    """
    for link in (path, *path.absolute().parents):
        if link.is_symlink() and not link.exists():
            raise UserError(
                f"{name}: {link} is a link to {os.readlink(link)}, which does not exist. Make that folder, or give "
                "another name."
            )
