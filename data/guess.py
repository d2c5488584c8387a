"""Guess what a stranger's table has: how it is written, which column has the texts and which one the labels.

Only ``data.new`` asks, which writes every guess into a task file, where a person reads and changes it. The readers
themselves guess nothing.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from data.errors import UserError, nearest
from data.files import limits
from data.files.documents import readable
from data.readers import conll
from data.readers.encoding import check_encoding, probable_encoding
from data.readers.lines import is_packed
from data.readers.records import Record, Table
from data.readers.tables import ASK_FOR_QUOTING, COLUMNAR, DELIMITERS, Dialect, open_table
from data.template import is_missing, scalar_text

ROWS = 5000  # that are looked at
DELIMITER_ROWS = 200  # that are read with each delimiter
LABELS = 200  # different values of a column of labels at most
LABEL_CHARACTERS = 100
WORDS = 3  # a value on average, from which a column has texts even if few of them differ
USUAL = ("label", "labels", "class", "category", "target")  # names of columns of labels


@dataclass
class Column:
    """What a column has in the rows that were looked at.

    Attributes:
        texts: how many of its values are strings.
        lists: how many of its values are lists of strings.
        others: values that are neither texts, numbers nor truths.
        missing: rows without a value.
        values: how often each text, number or truth occurs; of lists, how often each item does.
        lengths: of each row, how many items its list has; None: it has no list.
    """

    name: str
    texts: int = 0
    lists: int = 0
    others: int = 0
    missing: int = 0
    characters: int = 0
    words: int = 0
    with_letters: int = 0
    values: Counter[str] = field(default_factory=Counter)
    lengths: list[int | None] = field(default_factory=list)

    def add(self, value: Any) -> None:
        self.lengths.append(len(value) if isinstance(value, list) else None)
        if is_missing(value):
            self.missing += 1
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            self.lists += 1
            self.values.update(value)
        elif (text := scalar_text(value)) is None:
            self.others += 1
        else:
            self.texts += isinstance(value, str)
            self.characters += len(text)
            self.words += len(text.split())
            self.with_letters += any(map(str.isalpha, text))
            self.values[text.strip()] += 1

    @property
    def has_name(self) -> bool:
        """Whether a task file can have its name as it is in the header."""
        return self.name.isprintable() and self.name == self.name.strip() != ""

    @property
    def scalars(self) -> int:
        """Values that are texts, numbers or truths."""
        return 0 if self.lists or self.others else self.values.total()

    @property
    def length(self) -> float:
        """Characters of a value on average."""
        return self.characters / max(self.scalars, 1)

    @property
    def is_numeric(self) -> bool:
        return not self.with_letters

    def may_be_text(self) -> bool:
        """Strings with letters, long or mostly different."""
        n = self.scalars
        if not n or self.texts < n or self.with_letters < 0.9 * n:
            return False
        return self.words >= WORDS * n or len(self.values) > 0.5 * n

    def may_be_labels(self) -> bool:
        """Few different values, each of which is short and, on average, there at least twice."""
        n, different = self.scalars, len(self.values)
        if not n or not 2 <= different <= min(LABELS, n / 2):
            return False
        return all(len(value) <= LABEL_CHARACTERS and value.isprintable() for value in self.values)

    def may_label(self, words: Column) -> bool:
        """Lists with an item for each item of another column's, but for damaged rows, and few different ones."""
        both = [pair for pair in zip(self.lengths, words.lengths, strict=True) if None not in pair]
        equal = sum(a == b for a, b in both)
        return self is not words and len(self.values) <= LABELS and equal > 0 and equal >= 0.9 * len(both)

    def may_be_ids(self) -> bool:
        """Single words, all of them different."""
        return 1 < self.scalars == len(self.values) == self.words and not self.missing and self.name.isprintable()

    def describe(self) -> str:
        """A few words for a message that lists the columns."""
        if not self.has_name:
            why = "has spaces around it" if self.name.strip().isprintable() else "has a control character"
            return f"not looked at, as its name {why if self.name.strip() else 'is empty'}: correct the header"
        if self.lists or self.others:
            return "lists" if self.lists and not self.others else "no texts"
        return f"{len(self.values):,} different values, {self.length:.0f} characters on average"


@dataclass
class Guess:
    """What a table is guessed to have.

    Attributes:
        dialect: how it is written.
        reads: how the text around its first special character reads in ``dialect.encoding``; empty for UTF-8.
        n_rows: that were looked at.
        columns: all of them, by name.
        text, label: the names of the columns.
        is_words: they are lists of words and of the words' labels.
        texts, labels: other columns that might be these, most probable first.
    """

    dialect: Dialect
    reads: str
    n_rows: int
    columns: dict[str, Column]
    text: str
    label: str
    is_words: bool
    texts: list[str]
    labels: list[str]


def guess(file: Path, format: str, text: str | None, label: str | None, encoding: str | None) -> Guess:
    """Look at a table's first rows, and at all its bytes for the encoding.

    Args:
        format: one of `data.readers.tables.FORMATS`.
        text, label, encoding: what the user says; None: guessed.

    Raises:
        UserError: a table that cannot be read, or without a column of texts or labels; names its columns.
    """
    dialect, reads = Dialect(), ""
    if encoding is not None:
        try:
            check_encoding(encoding)
        except UserError as error:
            raise UserError(f"--encoding {error}") from error
        dialect = replace(dialect, encoding=encoding)
    elif format not in COLUMNAR:
        encoding, reads = _encoding(file)
        dialect = replace(dialect, encoding=encoding)
    if format == "csv":
        dialect = replace(dialect, delimiter=_delimiter(file, dialect))
    dialect, columns, n_rows = _read(file, format, dialect)
    if not n_rows:
        raise UserError(f"{file}: no rows{' below the header' if columns else ''}.")
    for name in (text, label):
        if name is not None and name not in columns:
            raise UserError(f"{file}: no column {name!r}.{nearest(name, columns)}")
    if text is not None and text == label:
        raise UserError(f"--text and --label are both {text!r}: texts and labels are in different columns.")
    known = {name: column for name, column in columns.items() if column.has_name}
    listed = [column for column in known.values() if column.lists and not column.others and not column.characters]
    listed.sort(key=lambda column: -len(column.values))  # stable
    if format in conll.FORMATS:
        listed.sort(key=lambda column: column.name != conll.token_column(list(known)))
    if text is None and label is None:
        for words in listed:
            tags = [column.name for column in known.values() if column in listed and column.may_label(words)]
            if tags:
                return Guess(dialect, reads, n_rows, columns, words.name, tags[-1], True, [], tags[-2::-1])
    texts = [column for column in known.values() if column.may_be_text() and column.name != label]
    texts.sort(key=lambda column: (column.words < 2 * column.scalars, -column.length))  # stable
    if text is None and not texts:
        raise UserError(_none(file, "texts (strings of several words)", "--text", columns))
    text = text or texts[0].name
    order = list(known)
    after = order.index(text) if text in order else 0
    labels = [column for column in known.values() if column.may_be_labels() and column.name != text]
    labels.sort(key=lambda c: (c.name.casefold() not in USUAL, c.is_numeric, order.index(c.name) < after))  # stable
    if label is None and not labels:
        raise UserError(
            _none(file, f"labels (2 to {LABELS} different values, each there twice on average)", "--label", columns)
        )
    if label is None and (name := labels[0].name) in labels[0].values:
        raise UserError(
            f"{file}: the column {name!r} also has the value {name!r}: the first line seems to be an example. Write "
            "the columns' names above it; or, if this is a name, give --label."
        )
    label = label or labels[0].name
    return Guess(
        dialect,
        reads,
        n_rows,
        columns,
        text,
        label,
        False,
        [column.name for column in texts if column.name not in (text, label)],
        [column.name for column in labels if column.name not in (text, label)],
    )


def _none(file: Path, what: str, option: str, columns: dict[str, Column]) -> str:
    listed = "; ".join(f"{name!r} ({column.describe()})" for name, column in list(columns.items())[:20])
    more = "; ..." if len(columns) > 20 else ""
    return f"{file}: no column looks like {what}. Name it with {option}. The columns: {listed or 'none'}{more}."


def _encoding(file: Path) -> tuple[str, str]:
    def lines() -> Iterator[bytes]:
        opened = gzip.open(file, "rb") if is_packed(file) else file.open("rb")
        with opened as stream:
            while line := stream.readline(limits.RECORD_CHARACTERS):  # of a longer one the readers tell
                yield line

    with readable(file):
        try:
            return probable_encoding(lines(), str(file), file.name, "Or give the right one with --encoding.")
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise UserError(f"{file}: the compressed file is damaged or cut off ({error}).") from error


def _delimiter(file: Path, dialect: Dialect) -> str:
    """The delimiter with which most rows have as many cells as the header, which are several.

    If there is none, one with which the table cannot be read: the reader then says why. Else a comma.
    """
    scores: dict[str, tuple[float, int]] = {}
    refused: list[str] = []
    for delimiter in DELIMITERS:
        try:
            with _quiet(), open_named(file, "csv", replace(dialect, delimiter=delimiter)) as table:
                fits = [not record.error for record in islice(table.records, DELIMITER_ROWS)]
                n_columns = len(table.columns or ())
        except UserError:  # quotation marks do not fit, or a column is there twice
            refused.append(delimiter)
            continue
        if n_columns > 1:
            scores[delimiter] = (sum(fits) / max(len(fits), 1), n_columns)
    return max(scores, key=lambda delimiter: scores[delimiter], default=[*refused, *DELIMITERS][0])


def open_named(file: Path, format: str, dialect: Dialect) -> AbstractContextManager[Table]:
    """Open a table of which all columns that have a name are needed."""
    return open_table(file, format, dialect=dialect, wanted=None if format in COLUMNAR else ())


def _read(file: Path, format: str, dialect: Dialect) -> tuple[Dialect, dict[str, Column], int]:
    """The columns of the first rows, and how they had to be read."""
    try:
        with _quiet() as said:
            columns, n_rows = _columns(file, format, dialect)
        quoted = any(ASK_FOR_QUOTING in text for text in said)
    except UserError as error:
        quoted = ASK_FOR_QUOTING in str(error)
        if not quoted:
            raise
    if quoted:
        dialect = replace(dialect, tsv_quoting=True)
        columns, n_rows = _columns(file, format, dialect)
    return dialect, columns, n_rows


def _columns(file: Path, format: str, dialect: Dialect) -> tuple[dict[str, Column], int]:
    rows: list[Record] = []
    with open_named(file, format, dialect) as table:
        for record in islice(table.records, ROWS):
            if record.error and not record.is_short:
                raise UserError(record.error)
            rows.append(record)
        names = list(dict.fromkeys([*(table.columns or ()), *(name for row in rows for name in row.values)]))
    columns = {name: Column(name) for name in names}
    for row in rows:
        for name, column in columns.items():
            column.add(row.values.get(name))
    return columns, len(rows)


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """What the readers warn of is kept, not printed: it is about a guess."""
    log, handler = logging.getLogger("data"), _Said()
    log.addHandler(handler)
    before, log.propagate = log.propagate, False
    try:
        yield handler.texts
    finally:
        log.removeHandler(handler)
        log.propagate = before
