"""Read Parquet and Arrow record by record: files, and the folders that ``Dataset.save_to_disk`` of ``datasets`` writes.

Arrow files are mapped into memory and of Parquet one batch of rows is read at a time, so neither is ever in memory as a
whole. What a file says about itself is checked before it is used: Arrow trusts offsets, and would read anywhere.

The columns that ``datasets`` calls a ClassLabel hold numbers, whose names are in the file: they are read as the names.
Columns that nobody asks for are not read: what is wrong in them does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import msgspec

from data.errors import UserError
from data.files.documents import parse_json, read_json, readable
from data.readers.records import Record, Table, check_columns

BATCH_ROWS = 256  # that are read at a time
BATCH_BYTES = 4 << 20  # of them, that are Python objects at a time
PARQUET_BUFFER = 1 << 20  # bytes
FEATURES = b"huggingface"  # the entry of a file's metadata in which `datasets` describes the columns
STATE_FILE = "state.json"  # of a folder that `datasets` saved
SPLITS_FILE = "dataset_dict.json"  # of a folder with such a folder for each split
NO_LABEL = -1  # as the test sets of benchmarks have it
ARROW_FILE, STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"

Convert = Callable[[Any], Any]


class _DataFile(msgspec.Struct):
    filename: str


class _State(msgspec.Struct):
    """What is read of `STATE_FILE`."""

    data_files: list[_DataFile] = msgspec.field(name="_data_files")


class _Splits(msgspec.Struct):
    splits: list[str]


# ---------------------------------------------------------------------------------------------------------- files


@contextmanager
def open_parquet(path: Path, name: str, wanted: Collection[str] | None = None) -> Iterator[Table]:
    """Open a Parquet file.

    Args:
        wanted: the columns that records have, of those of the file; None: all.

    Raises:
        UserError: here or while iterating: it cannot be read, is damaged or incomplete, or has a column twice.
    """
    import pyarrow.parquet as pq  # here: it is slow to import, and most runs read no Parquet

    _check_readable(path)
    try:
        file = pq.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False)  # else it reads whole row groups
    except _broken() as error:
        raise UserError(f"{name}: not Parquet, damaged or incomplete ({first_line(error)}).") from error
    with file:
        rows = Rows(name, file.schema_arrow, wanted)
        n_rows = file.metadata.num_rows
        records = rows.records(file.iter_batches(batch_size=BATCH_ROWS, columns=rows.wanted))
        yield Table(rows.columns, records, lambda: rows.n_read / n_rows if n_rows else None)


@contextmanager
def open_arrow(path: Path, name: str, wanted: Collection[str] | None = None) -> Iterator[Table]:
    """Open an Arrow file (of streaming or of file format), or a folder of them that ``datasets`` saved.

    Args:
        wanted: the columns that records have, of those of the file; None: all.

    Raises:
        UserError: here or while iterating: it cannot be read, is damaged or incomplete, or has a column twice.
    """
    with readable(path):
        is_folder = path.is_dir()
    files = saved_files(path) if is_folder else [path]
    with ExitStack() as stack:
        opened = [stack.enter_context(_open_arrow_file(file, str(file) if is_folder else name)) for file in files]
        schema, sizes = opened[0].schema, [file.size for file in opened]
        for file in opened[1:]:
            if not file.schema.equals(schema):
                raise UserError(f"{file.name}: its columns are not those of {opened[0].name}.")
        rows = Rows(name, schema, wanted)
        records = rows.records(batch for file in opened for batch in file.batches(rows.wanted))
        total = sum(sizes)
        yield Table(rows.columns, records, lambda: sum(file.done for file in opened) / total if total else None)


class _ArrowFile:
    """An open Arrow file.

    Attributes:
        done: bytes of it whose rows were asked for, about.
    """

    def __init__(self, name: str, source: Any, reader: Any, is_stream: bool) -> None:
        self.name, self.source, self.reader, self.is_stream = name, source, reader, is_stream
        self.schema, self.size, self.done = reader.schema, source.size(), 0.0

    def batches(self, wanted: list[str]) -> Iterator[Any]:
        """Yield batches of few rows, each checked, with the wanted columns."""
        if self.is_stream:
            large = iter(self.reader)
        else:
            large = (self.reader.get_batch(i) for i in range(self.reader.num_record_batches))
        for number, batch in enumerate(large, 1):
            batch = batch.select(wanted)
            try:
                batch.validate(full=True)
            except ValueError as error:  # to_pylist would read wherever an offset points
                raise UserError(f"{self.name}: damaged ({first_line(error)}).") from error
            if self.is_stream:
                end = self.source.tell() + len(STREAM_END)
            else:
                end = self.size * number / self.reader.num_record_batches
            begin, n_rows = self.done, batch.num_rows
            for first in range(0, n_rows, BATCH_ROWS):
                self.done = begin + (end - begin) * min(first + BATCH_ROWS, n_rows) / n_rows
                yield batch.slice(first, BATCH_ROWS)


@contextmanager
def _open_arrow_file(path: Path, name: str) -> Iterator[_ArrowFile]:
    import pyarrow as pa

    _check_readable(path)
    try:
        with ExitStack() as stack:
            source = stack.enter_context(pa.memory_map(str(path)))
            is_stream = source.read(len(ARROW_FILE)) != ARROW_FILE
            source.seek(0)
            reader = stack.enter_context(pa.ipc.open_stream(source) if is_stream else pa.ipc.open_file(source))
            if is_stream:
                begin = source.tell()
                source.seek(max(source.size() - len(STREAM_END), 0))
                if source.read() != STREAM_END:  # else a file that was cut between two batches would look complete
                    raise UserError(f"{name}: incomplete: an Arrow stream ends with a mark, and this one does not.")
                source.seek(begin)
            opened = _ArrowFile(name, source, reader, is_stream)
            stack.pop_all()
    except _broken() as error:
        raise UserError(f"{name}: not Arrow, damaged or incomplete ({first_line(error)}).") from error
    with source, reader:
        yield opened


def saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a folder that ``Dataset.save_to_disk`` wrote.

    Raises:
        UserError: it is no such folder, or one with several splits (the message names them), or a file is missing.
    """
    if (splits := saved_splits(folder)) is not None:
        raise UserError(f"{folder}: it has the splits {', '.join(splits)}. Name one of these folders in it.")
    state = folder / STATE_FILE
    with readable(folder):
        there = state.is_file()
    if not there:
        raise UserError(
            f"{folder}: this is a folder, and not one that save_to_disk of `datasets` wrote: it has no {STATE_FILE}."
        )
    names = [file.filename for file in read_json(state, _State).data_files]
    if not names:
        raise UserError(f"{state}: it names no files.")
    for name in names:
        if Path(name).name != name:
            raise UserError(f"{state}: the file {name!r} must be in the same folder.")
        with readable(folder / name):
            there = (folder / name).is_file()
        if not there:
            raise UserError(f"{folder}: {name} is missing. The folder is incomplete; copy it again.")
    return [folder / name for name in names]


def saved_splits(folder: Path) -> list[str] | None:
    """The splits of a folder that ``DatasetDict.save_to_disk`` wrote; None if it is no such folder."""
    file = folder / SPLITS_FILE
    with readable(folder):
        there = file.is_file()
    return read_json(file, _Splits).splits if there else None


def _check_readable(path: Path) -> None:
    with readable(path):
        path.open("rb").close()  # pyarrow's messages about files that cannot be opened are long


def _broken() -> tuple[type[Exception], ...]:
    """What pyarrow raises on damaged files."""
    import pyarrow as pa

    return pa.ArrowException, OSError, UnicodeDecodeError


# ----------------------------------------------------------------------------------------------------------- rows


class Rows:
    """Turns batches of Arrow into records.

    Args:
        name: what messages call the source.
        schema: of the source, a ``pyarrow.Schema``.
        wanted: the columns that records have, of those of the schema; None: all. Batches may have others too.

    Attributes:
        columns: the names of all columns.
        wanted: of those that records have.
        n_read: number of rows until now.

    Raises:
        UserError: no column, a column twice, a name that is not UTF-8, or a description of the columns that is damaged.
    """

    def __init__(self, name: str, schema: Any, wanted: Collection[str] | None = None) -> None:
        try:
            self.columns = tuple(schema.names)
        except UnicodeDecodeError as error:
            raise UserError(f"{name}: damaged: a column's name is not UTF-8 ({first_line(error)}).") from error
        check_columns(list(self.columns), name)
        if not self.columns:
            raise UserError(f"{name}: it has no columns.")
        features = _features(schema, name)
        self.name, self.n_read = name, 0
        self.wanted = [column for column in self.columns if wanted is None or column in wanted]
        self._convert = [_converter(schema.field(column).type, features.get(column)) for column in self.wanted]

    def records(self, batches: Iterator[Any]) -> Iterator[Record]:
        """The records of ``pyarrow.RecordBatch`` after ``pyarrow.RecordBatch``."""
        broken = _broken()
        while True:
            try:
                batch = next(batches, None)
            except broken as error:
                raise UserError(f"{self.name}, after row {self.n_read}: damaged ({first_line(error)}).") from error
            if batch is None:
                return
            n_rows = max(1, min(BATCH_ROWS, batch.num_rows * BATCH_BYTES // max(batch.nbytes, 1)))
            for first in range(0, batch.num_rows, n_rows):
                yield from self._records(batch.slice(first, n_rows))

    def _records(self, batch: Any) -> Iterator[Record]:
        try:
            rows = self._values(batch)
        except (ValueError, OverflowError):  # in which row that was, the loop finds
            rows = None
        for i in range(batch.num_rows):
            self.n_read += 1
            where = f"{self.name}, row {self.n_read}"
            if rows is not None:
                yield Record(where, self.n_read, rows[i])
                continue
            try:
                (values,) = self._values(batch.slice(i, 1))
            except (ValueError, OverflowError) as error:  # text that is not UTF-8; a date after the year 9999
                yield Record(where, self.n_read, {}, f"{where}: cannot be read ({first_line(error)}).")
            else:
                yield Record(where, self.n_read, values)

    def _values(self, batch: Any) -> list[dict[str, Any]]:
        columns = []
        for column, convert in zip(self.wanted, self._convert, strict=True):
            values = batch.column(column).to_pylist()
            columns.append(values if convert is None else list(map(convert, values)))
        return [dict(zip(self.wanted, row, strict=True)) for row in zip(*columns, strict=True)]


def _converter(kind: Any, feature: Any) -> Convert | None:
    """What the Python values of a column have to go through; None: they stay as they are."""
    import pyarrow as pa

    names = _namer(feature)
    if names is None:
        simple = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
        return None if any(is_kind(kind) for is_kind in simple) else plain
    return lambda value: names(plain(value))


def plain(value: Any) -> Any:
    """A value from Arrow as JSON can have it.

    Times are written in ISO 8601. Bytes are decoded as UTF-8; those that are not UTF-8 become lone surrogates. NaN
    becomes None. Other types (decimals, durations, infinity) are written as text.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None if math.isnan(value) else str(value)
        case bytes():
            return value.decode("utf-8", errors="surrogateescape")
        case date() | datetime() | time():
            return value.isoformat()
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    return str(value)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, without a full stop and without control characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return "".join(character if character.isprintable() else "?" for character in line)


# ------------------------------------------------------------------------------------------------ names of classes


def _features(schema: Any, name: str) -> dict[str, Any]:
    """By column, what ``datasets`` says of it; empty if the file is not of ``datasets``."""
    content = (schema.metadata or {}).get(FEATURES)
    if content is None:
        return {}
    found = parse_json(content, f"{name}, the description of its columns ({FEATURES.decode()})", dict[str, Any])
    info = found.get("info")
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def _namer(feature: Any) -> Convert | None:
    """What gives the numbers in a column's values their names; None if the column has no ClassLabel.

    A feature is as ``datasets`` writes it: ``{"_type": "ClassLabel", "names": [...]}``, in lists
    ``{"_type": "List", "feature": ...}`` or ``[...]``, and in structs ``{"key": ...}``.
    """
    if isinstance(feature, list):
        return _each(_namer(feature[0]) if feature else None)
    if not isinstance(feature, dict):
        return None
    names = feature.get("names")
    if feature.get("_type") == "ClassLabel" and isinstance(names, list):
        return lambda number: _name_of(number, names)
    if "feature" in feature and isinstance(feature.get("_type"), str):
        inner, of = _namer(feature["feature"]), feature["feature"]
        if feature["_type"] == "Sequence" and isinstance(of, dict) and "_type" not in of:
            return _in_struct({key: _each(_namer(part)) for key, part in of.items()})  # it is a struct of lists
        return _each(inner)
    return _in_struct({key: _namer(part) for key, part in feature.items()})


def _each(inner: Convert | None) -> Convert | None:
    if inner is None:
        return None
    return lambda value: [inner(item) for item in value] if isinstance(value, list) else value


def _in_struct(parts: dict[str, Convert | None]) -> Convert | None:
    inner = {key: convert for key, convert in parts.items() if convert is not None}
    if not inner:
        return None

    def convert(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: inner[key](item) if key in inner else item for key, item in value.items()}

    return convert


def _name_of(number: Any, names: Sequence[Any]) -> Any:
    if number is None or number == NO_LABEL:
        return None
    if not isinstance(number, int) or not 0 <= number < len(names):
        raise ValueError(f"class {number} of a ClassLabel with {len(names)} names")
    return str(names[number])
