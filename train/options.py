"""Layered options: dataclass defaults < recipe < TOML file < command line, with every mistake reported together.

An options class is a dataclass whose fields are options or *sections* (dataclasses of options). Names are unique over
all sections, so that ``--lr`` needs no prefix, and a TOML file may write ``lr`` at its top level or under its
section's name, as the saved ``config.toml`` does. tyro parses the command line and prints the help; because it stops
at its first complaint, `read_argv` looks the arguments over beforehand and collects everything wrong with them.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from data.errors import UserError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Option:
    """One option: its name (also the flag and the TOML key), the section it stands in, its type and default."""

    name: str
    section: str | None
    type: Any
    default: Any


def options_of(cls: type) -> dict[str, Option]:
    """All options of an options class by name, in the order they are declared."""
    found: dict[str, Option] = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            inner_hints = typing.get_type_hints(hints[field.name])
            inner = [(f.name, field.name, inner_hints[f.name], f) for f in dataclasses.fields(hints[field.name])]
        else:
            inner = [(field.name, None, hints[field.name], field)]
        for name, section, kind, f in inner:
            assert name not in found, f"two options are called {name}"
            found[name] = Option(name, section, kind, f.default)
    return found


def sections_of(cls: type) -> list[str]:
    return list(dict.fromkeys(o.section for o in options_of(cls).values() if o.section))


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(str(a) for a in typing.get_args(kind))
    if isinstance(kind, types.UnionType):
        return " | ".join(_describe(a) for a in typing.get_args(kind) if a is not type(None))
    names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "text"}
    return names[kind]


def coerce(option: Option, value: Any) -> Any:
    """Turn a TOML value or a command-line string into the option's type.

    Raises:
        UserError: the value is not of that type; the message names the option, the value and what is wanted.
    """
    try:
        return _coerce(option.type, value)
    except (ValueError, TypeError):
        raise UserError(f"{option.name} = {value!r}: expected {_describe(option.type)}.") from None


def _coerce(kind: Any, value: Any) -> Any:
    if isinstance(kind, types.UnionType):
        if type(None) in typing.get_args(kind) and value in (None, "None"):
            return None
        (kind,) = (a for a in typing.get_args(kind) if a is not type(None))
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError
        return value
    if isinstance(value, bool) or (kind in (str, Path) and not isinstance(value, str)):
        raise ValueError
    if kind is int and isinstance(value, float):
        raise ValueError
    return kind(value)


def read_toml(path: Path, cls: type, problems: list[str]) -> dict[str, Any]:
    """Read option values from a TOML file; what is wrong with it is added to ``problems``."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(f"--config {path}: cannot be read ({error.strerror}).")
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(f"--config {path}: not valid TOML ({error}).")
        return {}
    options, sections = options_of(cls), sections_of(cls)
    values: dict[str, Any] = {}
    for key, value in document.items():
        inner = value if isinstance(value, dict) else {key: value}
        section = key if isinstance(value, dict) else None
        if section is not None and section not in sections:
            problems.append(f"{path}: unknown section [{section}].{nearest(section, sections)}")
            continue
        for name, item in inner.items():
            known = [o.name for o in options.values() if section in (None, o.section)]
            if name not in known:
                where = f" in [{section}]" if section else ""
                problems.append(f"{path}: unknown key '{name}'{where}.{nearest(name, known)}")
                continue
            try:
                values[name] = coerce(options[name], item)
            except UserError as error:
                problems.append(f"{path}: {error}")
    return values


def read_argv(argv: Sequence[str], cls: type, problems: list[str]) -> dict[str, Any]:
    """Read option values from command-line arguments; what is wrong with them is added to ``problems``."""
    options = options_of(cls)
    values: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            continue
        if not word.startswith("--"):
            problems.append(f"'{word}' is not an option; options start with --.")
            continue
        flag, equals, text = word.partition("=")
        name = flag[2:].replace("-", "_")
        negated = name.startswith("no_") and name not in options and name[3:] in options
        option = options.get(name[3:] if negated else name)
        if option is not None and option.type is bool and not equals:
            values[option.name] = not negated
            continue
        if not equals:
            has_value = bool(rest) and not rest[0].startswith("--")
            text = rest.pop(0) if has_value else None
        if option is None or negated:
            known = [f"--{known}" for known in options]
            problems.append(f"unknown option {flag}.{nearest(f'--{name}', known)}")
        elif option.type is bool:
            problems.append(f"--{name} takes no value (found '{text}').")
        elif text is None:
            problems.append(f"--{name} needs a value: {_describe(option.type)}.")
        else:
            try:
                values[option.name] = coerce(option, text)
            except UserError as error:
                problems.append(f"--{error}")
    return values


def build(cls: type[T], layers: Sequence[Mapping[str, Any]]) -> T:
    """Make the options object from layers of flat values; later layers win."""
    values = {name: value for layer in layers for name, value in layer.items()}
    hints = typing.get_type_hints(cls)
    top: dict[str, Any] = {section: {} for section in sections_of(cls)}
    for name, value in values.items():
        section = options_of(cls)[name].section
        (top if section is None else top[section])[name] = value
    return cls(**{k: hints[k](**v) if k in sections_of(cls) else v for k, v in top.items()})


def flatten(config: Any) -> dict[str, Any]:
    """All option values of an options object by name."""
    return {
        o.name: getattr(getattr(config, o.section) if o.section else config, o.name)
        for o in options_of(type(config)).values()
    }


def parse(cls: type[T], argv: Sequence[str], default: T, description: str) -> T:
    """Parse the command line over ``default`` with tyro; prints the help and exits when asked."""
    return tyro.cli(
        cls,
        args=argv,
        default=default,
        description=description,
        use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def to_toml(config: Any) -> str:
    """Write an options object as TOML, section by section; options that are None are left out."""
    lines: list[str] = []
    section: str | None = None
    values = flatten(config)
    for option in sorted(options_of(type(config)).values(), key=lambda o: o.section is not None):
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"] if lines else [f"[{section}]"]
        value = values[option.name]
        if value is not None:
            lines.append(f"{option.name} = {_toml_value(value)}")
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def report(problems: Sequence[str]) -> None:
    """Raise all collected problems as one error, if there are any.

    Raises:
        UserError: lists every problem, one a line.
    """
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems))
