"""Options of both programs: defaults < recipe < TOML file < command line. All errors are reported together.

An options class is a dataclass whose fields are options or *sections* (dataclasses of options). Names are unique over
all sections, so that ``--lr`` needs no prefix, and a TOML file may write ``lr`` at its top level or under its
section's name, as the saved ``config.toml`` does.

tyro is the only parser. Keys of a TOML file are translated into command-line words. So a layer is a list of words, and
appending its words to those of another layer overrides that layer. tyro stops at its first error. If it refuses a
layer, each option of the layer is parsed alone, and every refused one is reported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomlkit
import tyro

from data.characters import is_text
from data.command_line import cli
from data.errors import UserError, nearest
from data.files import limits
from data.files.documents import parse_toml, read_bytes
from data.files.paths import expand, expand_options
from data.readers.encoding import decode_utf8

T = TypeVar("T")

_STYLE = (tyro.conf.OmitArgPrefixes,)

# The words of one option: its flag and the values behind it, as in ["--lr", "1e-4"] or ["--lr=1e-4"].
Words = list[str]

# How a boolean option's value may be written. "on" and "off" are also what older code saved for true and false.
SWITCH = {"on": True, "true": True, "off": False, "false": False}


@dataclass(frozen=True)
class Option:
    """One option: its name (also the flag and the TOML key), section, type and default."""

    name: str
    section: str | None
    type: Any
    default: Any

    @property
    def is_switch(self) -> bool:
        """Whether it is a boolean (or a boolean that may be None, for "not given")."""
        return self.type in (bool, bool | None)

    @property
    def may_be_switched(self) -> bool:
        """Whether ``--name`` alone turns it on: also an option with other values beside "on" and "off"."""
        return self.is_switch or {"on", "off"} <= set(typing.get_args(self.type))


def options_of(cls: type) -> dict[str, Option]:
    """All options of an options class by name, in the order they are declared.

    A field marked as `tyro.conf.Suppress` is not an option: the program sets it.
    """
    return _options_of(cls)


@functools.cache
def _options_of(cls: type) -> dict[str, Option]:
    found: dict[str, Option] = {}
    for field, kind in _typed_fields(cls):
        if dataclasses.is_dataclass(kind):
            inner, section = _typed_fields(kind), field.name
        else:
            inner, section = [(field, kind)], None
        for f, inner_kind in inner:
            assert f.name not in found, f"two options are called {f.name}"
            found[f.name] = Option(f.name, section, inner_kind, f.default)
    return found


def _typed_fields(cls: Any) -> list[tuple[dataclasses.Field, Any]]:
    marked = typing.get_type_hints(cls, include_extras=True)
    plain = typing.get_type_hints(cls)
    return [
        (field, plain[field.name])
        for field in dataclasses.fields(cls)
        if tyro.conf.Suppress not in getattr(marked[field.name], "__metadata__", ())
    ]


def sections_of(cls: type) -> list[str]:
    return list(dict.fromkeys(o.section for o in options_of(cls).values() if o.section))


# --- reading ----------------------------------------------------------------------------------------------------------


def parse(cls: type[T], layer: Sequence[Words], default: T | None = None, description: str = "") -> T:
    """Parse a layer with tyro on top of ``default`` (None: the defaults of the class).

    Exits after printing the help or tyro's error message, if there is one.
    """
    args = tuple(word for words in layer for word in _as_flag(words, options_of(cls)))
    if default is None and not description:
        return typing.cast(T, _parsed(typing.cast(type, cls), args))
    return cli(cls, args=args, default=cls() if default is None else default, description=description, config=_STYLE)


@functools.lru_cache(maxsize=8)  # the same words are read several times, and tyro takes a tenth of a second
def _parsed(cls: type, args: tuple[str, ...]) -> object:
    return cli(cls, args=args, default=cls(), config=_STYLE)


def _as_flag(words: Words, options: Mapping[str, Option]) -> Words:
    """Translate a switch to tyro's forms: ``--packing off`` to ``--no_packing``, ``--resume`` to ``--resume on``.

    Other words stay unchanged.
    """
    name, values = _split_words(words)
    option, negated = options.get(name), options.get(name.removeprefix("no_"))
    if option is not None and option.may_be_switched and len(values) == 1 and values[0].lower() in SWITCH:
        value = SWITCH[values[0].lower()]
    elif not values and option is not None and option.may_be_switched:
        value = True
    elif not values and option is None and negated is not None and negated.may_be_switched:
        option, value = negated, False
    else:
        return words
    if option.is_switch:
        return [f"--{option.name}" if value else f"--no_{option.name}"]
    return [f"--{option.name}", "on" if value else "off"]


def _split_words(words: Words) -> tuple[str, Words]:
    """Split the words of an option into its name and its values."""
    flag, equals, value = words[0].partition("=")
    return flag.removeprefix("--").replace("-", "_"), [value] * bool(equals) + words[1:]


def show_help(cls: type, argv: Sequence[str], description: str) -> None:
    """Print the help and exit, if the command line asks for it."""
    if {"-h", "--help"} & set(argv):
        parse(cls, [["--help"]], description=description)


def read_layers(cls: type, argv: Sequence[str], problems: list[str], seen: set[str] | None = None) -> list[list[Words]]:
    """Read the layers that a user gives: the TOML file of ``--config``, then the command line.

    Invalid parts of either are omitted and described in ``problems``; ``seen`` gets the names of all options in them.
    """
    seen = set() if seen is None else seen
    seen.update(_split_words([word])[0] for word in argv if word.startswith("--"))
    from_argv = _read_argv(cls, argv, problems)
    path = flatten(parse(cls, from_argv))["config"]
    return [_read_toml(cls, Path(expand(str(path))), problems, seen) if path is not None else [], from_argv]


def _read_argv(cls: type, argv: Sequence[str], problems: list[str]) -> list[Words]:
    layer: list[Words] = []
    for word in argv:
        if word.startswith("--") or not layer:
            layer.append([word])
        else:
            layer[-1].append(word)
    _check_lists(cls, layer, problems)
    if _accepts(cls, layer):
        return layer
    kept = []
    for words in layer:
        # The longest valid part: stray words may follow an option's value.
        n = next((n for n in range(len(words), 0, -1) if _accepts(cls, [words[:n]])), 0)
        if n == len(words) or n > 1:
            kept.append(words[:n])
            strays = words[n:]
        else:
            strays = [] if words[0].startswith("--") else words
            problems += [] if strays else [_error_in(cls, words)]
        problems += [f"'{stray}' is not an option; options start with --." for stray in strays]
    return kept


def _check_lists(cls: type, layer: Sequence[Words], problems: list[str]) -> None:
    """A list without values, or the last of two lists, would replace the one before without a word."""
    options = options_of(cls)
    known = {name for name, option in options.items() if typing.get_origin(option.type) is tuple}
    lists = [words for words in map(_split_words, layer) if words[0] in known]
    problems += [f"--{name} needs a value: {_describe(options[name].type)}." for name, values in lists if not values]
    repeated = [name for name, count in Counter(name for name, _ in lists).items() if count > 1]
    problems += [f"--{name} is given more than once: write all values after one --{name}." for name in repeated]


def _accepts(cls: type, layer: Sequence[Words]) -> bool:
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parse(cls, layer)
    except SystemExit as end:
        if not end.code:  # no error: --help was given
            raise
        return False
    return True


def _error_in(cls: type, words: Words) -> str:
    """The error message for an option whose words tyro refuses."""
    options = options_of(cls)
    name, values = _split_words(words)
    negated = options.get(name.removeprefix("no_"))
    if name not in options and negated is not None and negated.may_be_switched:
        return f"--{name} takes no value (found '{' '.join(values)}')."
    if name not in options:
        return (
            f"unknown option {words[0].partition('=')[0]}.{nearest(f'--{name}', [f'--{known}' for known in options])}"
        )
    if not values:
        return f"--{name} needs a value: {_describe(options[name].type)}."
    return f"--{name} = {' '.join(values)!r}: expected {_describe(options[name].type)}."


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " | ".join(str(a) for a in typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # Literal[...] | None is the latter
        return " | ".join(_describe(a) for a in typing.get_args(kind) if a is not type(None))
    if typing.get_origin(kind) is tuple:
        return " and ".join("more" if a is ... else _describe(a) for a in typing.get_args(kind))
    names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path", str: "text"}
    return names[kind]


def _read_toml(cls: type, path: Path, problems: list[str], seen: set[str]) -> list[Words]:
    try:
        content = read_bytes(path)
        document = parse_toml(decode_utf8(content, f"--config {path}", path.name), f"--config {path}")
    except UserError as error:
        problems.append(str(error))
        return []
    found = _known_keys(cls, document, path, problems)
    seen.update(found)
    for name in [name for name, value in found.items() if _is_no_option(value)]:
        value = found.pop(name)
        what = f"a list of {len(value):,}, or of lists" if isinstance(value, list) else "a table"
        problems.append(f"{path}: {name} is {what}: expected {_describe(options_of(cls)[name].type)}.")
    layer = {name: _to_words(name, value) for name, value in found.items()}
    if not _accepts(cls, list(layer.values())):
        layer = {name: words for name, words in layer.items() if _accepts(cls, [words])}
    read = flatten(parse(cls, list(layer.values())))
    valid = {name: words for name, words in layer.items() if _has_type_of(found[name], read[name])}
    problems += [
        f"{path}: {name} = {tomlkit.item(value).as_string()}: expected {_describe(options_of(cls)[name].type)}."
        for name, value in found.items()
        if name not in valid
    ]
    return list(valid.values())


def _is_no_option(value: Any) -> bool:
    """Whether a value in a file is one that no option has: to print it, or to parse it as words, could take minutes."""
    if isinstance(value, list):
        return len(value) > limits.OPTION_WORDS or any(isinstance(item, list | dict) for item in value)
    return isinstance(value, dict)


def _known_keys(cls: type, document: Mapping[str, Any], path: Path, problems: list[str]) -> dict[str, Any]:
    """The values of a TOML document by option, given at the top level or under the option's section."""
    options, sections = options_of(cls), sections_of(cls)
    found: dict[str, Any] = {}
    for key, value in document.items():
        section = key if isinstance(value, dict) else None
        if section is not None and section not in sections:
            hint = (
                nearest(section, sections) if sections else " There are no sections: write its keys at the top level."
            )
            problems.append(f"{path}: unknown section [{section}].{hint}")
            continue
        inner = value if isinstance(value, dict) else {key: value}
        known = [o.name for o in options.values() if section in (None, o.section)]
        where = f" in [{section}]" if section else ""
        problems += [f"{path}: unknown key '{n}'{where}.{nearest(n, known)}" for n in inner if n not in known]
        found |= {name: item for name, item in inner.items() if name in known}
    return found


def _to_words(name: str, value: Any) -> Words:
    return [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]


def _has_type_of(value: Any, read: Any) -> bool:
    """Whether a TOML value has the type that tyro parsed from it: ``lr = "1e-4"`` is text, not a number."""
    if isinstance(read, bool):
        return value is read or value == ("on" if read else "off")
    if isinstance(value, bool):
        return read == ("on" if value else "off")
    if isinstance(read, tuple):
        value = [value] if isinstance(value, str) else value  # class_weights = "balanced"
        return isinstance(value, list) and all(_has_type_of(v, r) for v, r in zip(value, read, strict=True))
    return isinstance(value, str) if isinstance(read, Path) else value == read


def from_older(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Option values of a ``run.json``, with true and false where older code wrote "on" and "off"."""
    options = options_of(cls)
    return {
        name: SWITCH[value] if value in ("on", "off") and name in options and options[name].is_switch else value
        for name, value in values.items()
    }


# --- objects ----------------------------------------------------------------------------------------------------------


def build(cls: type[T], layers: Sequence[Mapping[str, Any]]) -> T:
    """Build the options object from layers of values by name; later layers override earlier ones."""
    hints = typing.get_type_hints(cls)
    top: dict[str, Any] = {section: {} for section in sections_of(cls)}
    for name, value in {name: value for layer in layers for name, value in layer.items()}.items():
        section = options_of(cls)[name].section
        (top if section is None else top[section])[name] = value
    return cls(**{k: hints[k](**v) if k in sections_of(cls) else v for k, v in top.items()})


def expand_paths(config: T, problems: Sequence[str]) -> T:
    """The options with ``~`` and environment variables in paths replaced by their values (`data.files.paths`).

    Raises:
        UserError: some path cannot be expanded; the message lists ``problems`` as well. Checks that come later would
            only complain about the same paths.
    """
    wrong: list[str] = []
    expanded = expand_options(config, wrong)
    if wrong:
        report([*problems, *wrong])
    return expanded


def flatten(config: Any) -> dict[str, Any]:
    """All option values of an options object by name."""
    return {
        o.name: getattr(getattr(config, o.section) if o.section else config, o.name)
        for o in options_of(type(config)).values()
    }


def text_problems(config: Any) -> list[str]:
    """Find the options whose text no file can hold: names of files that are not UTF-8."""
    return [
        f"{name} = {ascii(text)}: not UTF-8, so it cannot be recorded. Rename the file or folder; or, if its name is "
        "UTF-8 and the locale is not, set PYTHONUTF8=1."
        for name, value in flatten(config).items()
        for text in map(str, value if isinstance(value, tuple | list) else [value])
        if not is_text(text)
    ]


def report(problems: Sequence[str]) -> None:
    """Raise all collected problems as one error, if any.

    Raises:
        UserError: lists every problem, one per line.
    """
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} problems:\n" + "\n".join(f"  - {p}" for p in problems))
