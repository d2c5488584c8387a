"""The output of predict.py: each input row with its prediction, as JSON lines or CSV, to a file or standard output.

``partial.py`` writes a file over more than one run. The caller makes the predictions and names their columns.
"""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from data.errors import UserError
from data.json_text import to_json
from data.readers.columnar import plain
from eval.kept_lines import writable
from eval.predict.inputs import Row, format_of
from eval.predict.partial import (
    ADVICE,
    Partial,
    complete_csv,
    complete_lines,
    identity_path,
    kept_rows,
    open_partial,
    partial_path,
)

STANDARD_OUTPUT = "-"
ENDINGS = {".jsonl": "jsonl", ".csv": "csv"}
FORMATS = tuple(ENDINGS.values())


class OutputClosed(Exception):
    """The reader of standard output has ended, as ``head`` does. This is no failure: there is nothing left to do."""


class Output:
    """An open output, made by `open_output`.

    Attributes:
        n_written: number of rows in it; after opening, those of the interrupted run, which the caller has to skip.
    """

    def __init__(
        self,
        file: BinaryIO,
        name: str,
        format: str,
        columns: Sequence[str],
        predicted: Sequence[str],
        partial: Partial | None = None,
    ) -> None:
        self._file, self._name, self.format, self._partial = file, name, format, partial
        self._columns, self._predicted = tuple(columns), tuple(predicted)
        n_records = partial.n_records if partial is not None else 0
        self._header_due = format == "csv" and n_records == 0
        self.n_written = max(n_records - 1, 0) if format == "csv" else n_records

    def write(self, rows: Iterable[tuple[Row, Mapping[str, Any]]]) -> None:
        """Write rows, each with its prediction, whose columns are those that `open_output` was told.

        Raises:
            UserError: a JSON-lines record with the name of a prediction's column, or (CSV) with a column that the
                header lacks; a disk is full.
            OutputClosed: the reader of standard output has ended.
        """
        for row, prediction in rows:
            assert tuple(prediction) == self._predicted, (tuple(prediction), self._predicted)
            try:
                check_columns(row.columns, row.where, self._columns, self._predicted, self.format)
            except UserError as error:  # only of an input that is read only once, or has changed meanwhile
                if self._partial is None or not self.n_written:
                    raise
                done = partial_path(self._partial.output)
                raise UserError(f"{error} The rows that are done are in {done}. {ADVICE}") from None
            line = self._encode({**row.columns, **prediction})
            with self._writing():
                if self._header_due:  # not earlier: without it an output without rows is empty
                    self._file.write(csv_line([*self._columns, *self._predicted]))
                    self._header_due = False
                self._file.write(line)
            self.n_written += 1

    def flush(self) -> None:
        """Pass what was written to the system, which keeps it if this process is killed."""
        with self._writing():
            self._file.flush()

    def finish(self) -> None:
        """Declare the output complete; a file gets its final name."""
        self.flush()
        if self._partial is not None:
            self._partial.finish()

    def _encode(self, record: Mapping[str, Any]) -> bytes:
        if self.format == "jsonl":
            return json_line(record)
        return csv_line([record.get(column) for column in (*self._columns, *self._predicted)])

    @contextmanager
    def _writing(self) -> Iterator[None]:
        partial = self._partial
        advice = "" if partial is None else f" {kept_rows(partial.output, partial.continuable)}"
        try:
            with writable(self._name, advice):
                yield
        except BrokenPipeError:
            raise OutputClosed from None


@contextmanager
def open_output(
    path: Path | str,
    columns: Sequence[str],
    predicted: Sequence[str],
    format: str = "auto",
    identity: Mapping[str, str] | None = None,
    source: Path | None = None,
    stdout: BinaryIO | None = None,
    records: Iterable[tuple[str, Collection[str]]] = (),
) -> Iterator[Output]:
    """Open a file or standard output (``-``). Without a call of `Output.finish`, a file stays partial.

    Args:
        columns: the columns of the input; in JSON lines those of the first record.
        predicted: the columns of a prediction.
        format: one of `FORMATS`; auto: by the end of the file's name, for standard output JSON lines.
        identity: all that the rows depend on, such as the input's SHA-256. A run with the same identity continues an
            interrupted one; None: this input cannot be read twice, so none can. Not used for standard output.
        source: the input's file, which must not be written.
        stdout: written for ``-``; default: the process's standard output.
        records: location and columns of each record that can have others than the first one. They are checked before
            anything is written: the options that a message recommends then contradict no rows that are done.

    Raises:
        UserError: a column of both the input and the prediction; a record that CSV cannot have; an unknown ending; the
            input itself; and as `open_partial`.
    """
    to_stdout = str(path) == STANDARD_OUTPUT
    check_columns(columns, "the input", columns, predicted, format)
    if format == "auto":
        format = "jsonl" if to_stdout else format_of(Path(path), ENDINGS, "output", "output_format")
    for where, own in records:
        check_columns(own, where, columns, predicted, format)
    with ExitStack() as stack:
        if to_stdout:
            file = stack.enter_context(_standard_output()) if stdout is None else stdout
            yield Output(file, "standard output", format, columns, predicted)
            return
        path = Path(path)
        for written in (path, partial_path(path), identity_path(path)):
            if source is not None and written.exists() and written.samefile(source):
                raise UserError(f"--output {path} would overwrite the input {source}. Give another name.")
        if format == "csv":
            opened = open_partial(path, identity, complete_csv, csv_line([*columns, *predicted]), n_header=1)
        else:
            opened = open_partial(path, identity, complete_lines, b"{")
        partial = stack.enter_context(opened)
        yield Output(partial.file, str(partial_path(path)), format, columns, predicted, partial)


def json_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of JSON. Half a character, which UTF-8 does not have, is escaped as in JSON: ``\\ud800``.

    NaN and infinity in the input, which Python reads from JSON, become null and text as those in Parquet do.
    """
    return to_json(plain(dict(record))).encode("utf-8", errors="backslashreplace") + b"\n"


def csv_line(values: Sequence[Any]) -> bytes:
    """A record of CSV: strings as they are, None as an empty cell, everything else as JSON."""
    plain_values = map(plain, values)
    cells = ["" if value is None else value if isinstance(value, str) else to_json(value) for value in plain_values]
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)  # only then does Python 3.11 quote a cell with "\r"
    return text.getvalue().removesuffix("\r\n").encode("utf-8", errors="backslashreplace") + b"\n"


def check_columns(
    own: Collection[str], where: str, columns: Collection[str], predicted: Sequence[str], format: str
) -> None:
    """Refuse a record with the name of a prediction's column, and in CSV one with a column that the header lacks.

    Args:
        own: the columns of the record.
        columns: those of the input, of which the header is made.
    """
    both = [column for column in predicted if column in own]
    if both:
        raise UserError(
            f"{where} already has a column {both[0]!r}, which is also a column of the prediction. Choose "
            "another start of the prediction's columns, such as --prefix new_."
        )
    if format == "csv" and (new := set(own).difference(columns)):
        raise UserError(
            f"{where}: column {min(new)!r} is not in the CSV's header, which has the columns of the first record. In "
            "JSON lines each record has its own columns: --output_format jsonl."
        )


@contextmanager
def _standard_output() -> Iterator[BinaryIO]:
    """A file of our own for standard output: Python complains at its end if `sys.stdout` cannot be flushed."""
    sys.stdout.flush()
    file = os.fdopen(os.dup(1), "wb")
    try:
        yield file
    finally:
        with suppress(OSError):
            file.close()
