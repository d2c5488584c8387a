"""The text of an example, made of several columns of a table by a template: ``"{title}\\n{body}"``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from data.errors import UserError, shortened

_PIECE = re.compile(r"(\{\{|\}\})|\{([^{}]*)\}|([{}])")


class TextTemplate:
    """A text with the names of columns in braces; ``{{`` and ``}}`` are braces.

    Raises:
        UserError: a single brace, a name that is empty, or no column at all. Without its place.
    """

    def __init__(self, written: str) -> None:
        self.written = written
        self.pieces: list[tuple[bool, str]] = []  # each a column's name (True) or a text
        end = 0
        for found in _PIECE.finditer(written):
            self._add(written[end : found.start()])
            escaped, column, single = found.groups()
            if single:
                raise UserError(f"text = {written!r}: a single {single!r}. Columns are written as {{name}}, braces "
                                "as {{ and }}.")  # fmt: skip
            if column is None:
                self._add(escaped[0])
            elif not column.strip():
                raise UserError(f"text = {written!r}: a column's name is missing between braces.")
            else:
                self.pieces.append((True, column))
            end = found.end()
        self._add(written[end:])
        if not self.columns:
            raise UserError(
                f'text = {written!r} has no column in braces, such as "{{title}}\\n{{body}}". For a single column '
                f'write text_column = "{written}".'
            )

    def _add(self, text: str) -> None:
        if text:
            self.pieces.append((False, text))

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, each once."""
        return tuple(dict.fromkeys(piece for is_column, piece in self.pieces if is_column))

    def fill(self, values: Mapping[str, Any]) -> str:
        """The text of a record; each of `columns` must be in it, and not be missing (see `is_missing`).

        Raises:
            UserError: a value that is no text, number or truth. Without its place.
        """
        texts = {}
        for column in self.columns:
            text = scalar_text(values[column])
            if text is None:
                found = shortened(repr(values[column]))
                raise UserError(f"{column!r} must be a text or a number, found {found}.")
            texts[column] = text
        return "".join(texts[piece] if is_column else piece for is_column, piece in self.pieces)


def is_missing(value: Any) -> bool:
    """Whether a cell has no value: null, NaN (of Python, not as a text), or a text without a visible character."""
    if value.__class__ is str:
        return not value or value.isspace()
    return value is None or (isinstance(value, float) and math.isnan(value))


def scalar_text(value: Any) -> str | None:
    """A value of JSON as text: true, false, and numbers without a fraction without a point, as JSON has only one kind
    of number: 1.0 is 1. None if it is no text, number or truth."""
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float() if math.isfinite(value):
            return str(int(value)) if value.is_integer() else repr(value)
    return None
