"""Guess what a stranger's table has: how it is written, which column has the texts and which one the labels.

Only ``data.new`` asks, which writes every guess into a task file, where a person reads and changes it. The readers
themselves guess nothing.
"""

from __future__ import annotations

import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from data.column import LABELS, Column
from data.errors import UserError, nearest, shortened
from data.readers import conll
from data.readers.cells import NAMES, choices_in
from data.readers.encoding import check_encoding, probable_encoding
from data.readers.lines import byte_lines
from data.readers.multi import written_list
from data.readers.prodigy import ANSWER, not_accepted, note
from data.readers.records import Record, Table
from data.readers.tables import ASK_FOR_QUOTING, COLUMNAR, DELIMITERS, Dialect, open_table
from data.template import is_missing
from data.word_rows import check_sentences

ROWS = 5000  # that are looked at, drawn from those that are read: a table may be sorted by its labels
KINDS = ("spans", "token", "class", "multi")  # of labels, the first before the others
READ = 1_000_000  # rows at most, which take a few seconds
DELIMITER_ROWS = 200  # that are read with each delimiter
# Names of columns of labels, the first before the others; of columns about a text, and of lists of words.
USUAL = (
    re.compile("labels?|class|category|target", re.IGNORECASE),
    re.compile(
        "sentiment|polarity|emotion|intent|topics?|stars|rating|spans|entities|(ner_)?tags",
        re.IGNORECASE,
    ),
)
LAST = re.compile("_.*|answer|verified.*|lang(uage)?|country|locale|annotator|split|tokens|words", re.IGNORECASE)


@dataclass
class Guess:
    """What a table is guessed to have.

    Attributes:
        dialect: how it is written.
        reads: how the text around its first special character reads in ``dialect.encoding``; empty for UTF-8.
        n_rows: that were looked at.
        looked_at: which they are, in words.
        columns: all of them, by name.
        text: the name of the column with the texts, or with lists of words.
        label: the name of the column with their labels; of several columns of 0 and 1, the first.
        flags: columns of 0 and 1, of which each may be a label; empty if there is only one.
        is_flags: the labels are all of these.
        skipped: the numbers of the rows without a text or a label, of those that were looked at.
        has_gaps: some row is without a text or a label, of all that were read.
        left_out: how many rows that were read have an answer of Prodigy with which they are left out, by answer.
        texts, labels: other columns that might be these, most probable first.
    """

    dialect: Dialect
    reads: str
    n_rows: int
    looked_at: str
    columns: dict[str, Column]
    text: str
    label: str
    flags: list[str]
    is_flags: bool
    skipped: set[int]
    has_gaps: bool
    left_out: Counter[str]
    texts: list[str]
    labels: list[str]

    @property
    def used(self) -> list[str]:
        """The columns that the task needs."""
        return [self.text, *(self.flags if self.is_flags else [self.label])]


def guess(file: Path, format: str, text: str | None, label: str | None, encoding: str | None) -> Guess:
    """Look at rows from all of a table, and at all its bytes for the encoding.

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
    found = _guess(file, format, text, label, dialect, reads, accepted_only=False)
    if found.left_out and ANSWER not in found.used:
        return _guess(file, format, text, label, dialect, reads, accepted_only=True)
    return replace(found, left_out=Counter())


def _guess(
    file: Path, format: str, text: str | None, label: str | None, dialect: Dialect, reads: str, accepted_only: bool
) -> Guess:
    """Arguments as of `guess` and `_columns`."""
    dialect, columns, n_rows, looked_at, left_out = _read(file, format, dialect, text, accepted_only)
    if not n_rows:
        raise UserError(f"{file}: no rows{' below the header' if columns else ''}. {note(left_out)}".rstrip())
    for name in (text, label):
        if name is not None and name not in columns:
            raise UserError(f"{file}: no column {name!r}.{nearest(name, columns)}")
    if text is not None and text == label:
        raise UserError(f"--text and --label are both {text!r}: texts and labels are in different columns.")
    known = [column for column in columns.values() if column.has_name]
    lists = [column for column in known if column.is_list and not column.has_numbers and column.name != label]
    words = [column for column in lists if not column.is_spaced]
    words.sort(key=lambda c: (c.is_sparse(c.text_gaps()), -len(c.values)))  # stable
    if format in conll.FORMATS:
        words.sort(key=lambda column: column.name != conll.token_column([column.name for column in known]))
    texts = [column for column in known if column.may_be_text() and column.name != label]
    texts.sort(
        key=lambda c: (c.is_sparse(c.text_gaps()), c.words < 2 * c.scalars, c.may_be_labels(), -c.length)
    )  # stable
    if text is None:
        check_sentences(file, format, dialect, known)
        tags = [column for column in lists if column.may_be_tags()] if label is None else [columns[label]]
        tagged = [own for own in words if any(other.is_list and other.is_paired(own) for other in tags)]
        # Two lists of tags have the same lengths as well: then the words are in a text.
        tagged = [
            own
            for own in tagged
            if not own.may_be_tags() or all(own.are_words_of(plain) for plain in texts if own.is_paired(plain))
        ]
        found = min([*tagged, *texts, *words], key=lambda c: c.is_sparse(c.text_gaps()), default=None)
        if found is None:
            raise UserError(_none(file, "texts (strings of several words)", "--text", columns, looked_at))
        text = found.name
    own = columns[text]
    order = list(columns)
    last = {name: -order.index(name) for name, column in columns.items() if column.label_type(own) == "token"}
    labels = [column for column in known if column.may_label(own)]
    labels.sort(
        key=lambda c: (
            c.is_sparse(c.gaps(own)) or c.has_one_value,
            LAST.fullmatch(c.name) is not None,
            *(pattern.fullmatch(c.name) is None for pattern in USUAL),
            KINDS.index(c.label_type(own)),
            c.is_numeric or c.is_flag,
            order.index(c.name) < order.index(own.name),
            last.get(c.name, 0),  # of the tags of words the last before the others
        )
    )  # stable
    if own.is_list:  # its tags first, the last of them before the others
        tags = [column for column in known if column in labels and column.is_list][::-1]
        tags.sort(key=lambda c: (c.is_sparse(c.gaps(own)), c.has_numbers))  # stable
        if format == "conllu":  # most of its ten columns have numbers of words, or notes; those of others come first
            ranks = {name: rank for rank, name in enumerate(conll.OF_WORDS, 1)}
            tags = [column for column in tags if column.name in ranks or column.name not in conll.UNIVERSAL]
            tags.sort(key=lambda c: ranks.get(c.name, 0))  # stable
        labels = [*tags, *(column for column in labels if not column.is_list)]
    labels = labels or [c for c in known if c is not own and (c.is_spaced or c.is_iob)]  # `_check_lists` says why
    if label is None and not labels:
        raise UserError(
            _none(
                file,
                f"labels (2 to {LABELS} different values, each there twice on average)",
                "--label",
                columns,
                looked_at,
            )
        )
    if label is None and labels[0].scalars and (name := labels[0].name) in labels[0].values:
        raise UserError(
            f"{file}: the column {name!r} also has the value {name!r}: the first line seems to be an example. Write "
            "the columns' names above it; or, if this is a name, give --label."
        )
    flags = [c.name for c in known if c.is_flag and not (c is own or c.is_sparse(c.missing) or LAST.fullmatch(c.name))]
    flags = flags if len(flags) > 1 else []
    is_flags = label is None and labels[0].name in flags and not any(p.fullmatch(labels[0].name) for p in USUAL)
    label = flags[0] if is_flags else label or labels[0].name
    _check_lists(file, own, columns[label])
    used = [columns[name] for name in (flags if is_flags else [label])]
    skipped = own.text_gaps().union(*(column.gaps(own) for column in used))
    return Guess(
        dialect,
        reads,
        n_rows,
        looked_at,
        columns,
        text,
        label,
        flags,
        is_flags,
        skipped,
        bool(skipped or own.lacking) or any(column.lacks_label(own) for column in used),
        left_out,
        [column.name for column in texts if column.name not in (text, label) and not column.may_be_ids()],
        [column.name for column in labels if column.is_advisable(own) and column.name not in (label, *flags)],
    )


def _check_lists(file: Path, text: Column, label: Column) -> None:
    """Raise a UserError if labels are in lists that no task file can name without a person."""
    if label.is_iob:
        raise UserError(
            f"{file}: {label.name!r} has tags of words, written as {shortened(next(iter(label.values)))!r}. Write them "
            "with nothing but spaces between ('O B-city'), or as JSON lists."
        )
    if label.is_spaced and not label.is_paired(text):
        a, b = next(((a, b) for a, b in zip(label.lengths, text.lengths, strict=True) if a and b and a != b), (0, 0))
        raise UserError(
            f"{file}: {label.name!r} has tags of words, but not one for each word of {text.name!r}, such as {a} tags "
            f"for {b} words. Write spaces between all words of a text that have tags ('to Rome .'), or write the words "
            "as JSON lists."
        )
    keys = f'{"tokens" if text.is_list else "text"}_column = "{text.name}", and in the field type = "token"'
    if text.is_list and label.is_list and not label.is_paired(text):
        raise UserError(
            f"{file}: {text.name!r} and {label.name!r} are lists of different lengths. Labels of words need one for "
            f"each word. If only few rows are wrong, correct them, or write the task file by hand: {keys}."
        )
    if label.has_numbers and label.label_type(text) == "token":
        raise UserError(
            f"{file}: {label.name!r} has numbers for the words of {text.name!r}, and nothing says what they mean. "
            f'Write the task file by hand: {keys}, column = "{label.name}" and names such as {NAMES}.'
        )


def _none(file: Path, what: str, option: str, columns: dict[str, Column], looked_at: str) -> str:
    listed = "; ".join(f"{name!r} ({column.describe()})" for name, column in list(columns.items())[:20])
    more = "; ..." if len(columns) > 20 else ""
    return (
        f"{file}: no column looks like {what}. Name it with {option}. The columns, in {looked_at}: "
        f"{listed or 'none'}{more}."
    )


def _encoding(file: Path) -> tuple[str, str]:
    # Of a line that is too long the readers tell.
    return probable_encoding(byte_lines(file), str(file), file.name, "Or give the right one with --encoding.")


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


def _read(
    file: Path, format: str, dialect: Dialect, text: str | None, accepted_only: bool
) -> tuple[Dialect, dict[str, Column], int, str, Counter[str]]:
    """How the rows had to be read, and what `_columns` finds."""
    try:
        with _quiet() as said:
            found = _columns(file, format, dialect, text, accepted_only)
        quoted = any(ASK_FOR_QUOTING in text for text in said)
    except UserError as error:
        quoted = ASK_FOR_QUOTING in str(error)
        if not quoted:
            raise
    if quoted:
        dialect = replace(dialect, tsv_quoting=True)
        found = _columns(file, format, dialect, text, accepted_only)
    return dialect, *found


def _columns(
    file: Path, format: str, dialect: Dialect, text: str | None, accepted_only: bool
) -> tuple[dict[str, Column], int, str, Counter[str]]:
    """The columns of some rows, how many and which these are, and how many of Prodigy's were not accepted, by answer.

    Args:
        accepted_only: without the latter.
    """
    left_out = Counter[str]()
    lacking: dict[str, set[bool]] = defaultdict(set)
    drawn: list[tuple[int, Record]] = []
    n_read, draw = 0, random.Random(0)
    with open_named(file, format, dialect) as table:
        names = dict.fromkeys(table.columns or ())
        for record in islice(table.records, READ):
            if record.error and not record.is_short:
                raise UserError(record.error)
            if answer := not_accepted(record.values):
                left_out[answer] += 1
                if accepted_only:
                    continue
            at = n_read if n_read < ROWS else draw.randrange(n_read + 1)  # a reservoir: all have the same chance
            if at == n_read < ROWS:
                drawn.append((n_read, record))
            elif 0 < at < ROWS:  # the first row is always kept
                drawn[at] = n_read, record
            n_read += 1
            names.update(dict.fromkeys(record.values))
            for name in names:
                if is_missing(value := record.values.get(name)):
                    lacking[name].add(isinstance(value, str))
        rows = [record for _, record in sorted(drawn, key=itemgetter(0))]
    columns = {name: Column(name, lacking[name]) for name in names}
    for name, column in columns.items():
        values = [row.values.get(name) for row in rows]
        chosen = _chosen(values)
        column.has_choices = chosen is not None
        for value in _unpacked(values) if chosen is None else chosen:
            column.add(value)
    spaced = [own for own in columns.values() if own.name != text and own.are_tags(columns.values())]
    for column in [Column(own.name, own.lacking, is_spaced=True) for own in spaced]:
        for row in rows:
            value = row.values.get(column.name)
            column.add(value.split() or value if isinstance(value, str) else value)
        column.has_numbers = all(map(str.isdecimal, column.values))
        columns[column.name] = column
    of = f"the first {n_read:,} rows" if n_read == READ else f"{n_read:,} rows"
    return columns, len(rows), of if n_read <= ROWS else f"{len(rows):,} of {of}, drawn at random", left_out


def _chosen(values: list[Any]) -> list[Any] | None:
    """The lists of labels in a column of Label Studio's, of which those with one label are texts; else None."""
    read = [written_list(value) if isinstance(value, str) else value for value in values]
    chosen = [choices_in(value) for value in read]
    if not any(own is not None for own in chosen):
        return None
    return [
        own if own is not None else [value.strip()] if isinstance(value, str) and not is_missing(value) else value
        for own, value in zip(chosen, values, strict=True)
    ]


def _unpacked(values: list[Any]) -> list[Any]:
    """The lists that all values of a column are, which has them as texts, as cells of CSV do; else the values."""
    found = list[Any]()
    for value in values:
        if not is_missing(value):
            value = written_list(value) if isinstance(value, str) else None
            if not isinstance(value, list):
                return values
        found.append(value)
    return found


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
