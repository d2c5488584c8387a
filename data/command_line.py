"""The command line of a program whose options are the fields of a dataclass, read by tyro."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def cli(options: type[T], args: Sequence[str] | None = None, **how: Any) -> T:
    """`tyro.cli` with underscores in the options' names, and a help whose sentences are whole.

    Args:
        options: a dataclass; the string below a field is the option's help.
        args: the words of the command line; default: the program's own.
        how: more for `tyro.cli`, such as ``prog``.
    """
    words = sys.argv[1:] if args is None else args
    if {"-h", "--help"} & set(words):
        _write_helps(options)
    return tyro.cli(options, args=words, use_underscores=True, **how)


def _write_helps(cls: type) -> None:
    """Give tyro each field's help without the line ends of the source, which it keeps in indented strings."""
    helps: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for statement, below in itertools.pairwise(body):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    helps[name] = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text))
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(typing.cast(Any, cls)):
        if field.name in helps:
            field.metadata = types.MappingProxyType({**field.metadata, "help": helps[field.name]})
        if dataclasses.is_dataclass(kind := kinds[field.name]):
            _write_helps(typing.cast(type, kind))
