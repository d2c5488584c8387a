"""Read the TOML file of a user's own task. Its data files are read by ``custom_examples.py``.

Paths in the TOML file are relative to its folder; ``~`` and environment variables are replaced by their values::

    name = "tickets"                  # used in ids and in the run folder
    document_name = "Ticket"          # used in the prompt's delimiters; default "Document"
    instruction = "Sort the ticket."  # optional; added to the standard instruction
    text_column = "text"              # default "text"; or: text = "{title}\\n{body}", to make it of several columns
                                      # or: tokens_column = "tokens", if it has lists of words
    id_column = "ticket_id"           # default: the line number
    delimiter = ";"                   # between the cells of .csv files; default ","
    encoding = "windows-1252"         # of all files of text; default "utf-8"
    tsv_quoting = true                # quotation marks in .tsv files mean what they do in CSV; default: nothing
    missing = "skip"                  # leave out examples without a text, label or id; default: "error"

    format = "conll"                  # of all files; default: as their endings say, see `data.readers.tables`
    conll_columns = ["tokens", "ner"] # names of the columns of CoNLL; default: see `data.readers.conll`

    [files]                           # or: dataset = "owner/name", see `data.readers.sources`
    train = "train-*.csv"             # a file, a pattern, or a list of them
    test = "test.jsonl"

    [split]                           # cuts splits from the train files (`data.readers.cut`)
    dev = 0.1                         # a fraction of their examples
    seed = 0                          # of the draw; default 0
    stratify = "queue"                # a class field, or false; default: the first class field
    group = "customer"                # a column whose values are not divided between splits

    [[fields]]                        # one or more; several are answered as one JSON object
    name = "queue"
    type = "class"
    labels = ["billing", "sales"]     # or: labels_from = "train", to collect them from that split
                                      # or: names = { 0 = "billing", 1 = "sales" }, if the files have codes
    column = "queue"                  # default: the field's name

    [[fields]]
    name = "parts"
    type = "token"                    # one label for each of the text's words (text.split())
    labels = ["product", "date"]
    other = "Other"                   # the label of words that have none of these; default "Other"
    tags = "iob2"                     # how the files' labels are written: "types", "iob1", "iob2", "iobes", "bilou"
                                      # or: "spans", spans of characters, see `data.readers.spans`
    answer = "spans"                  # a decoder writes the entities; "list" or "bio": a label or a tag for each word

    [[fields]]
    name = "topics"
    type = "multi"                    # any number of labels, none included
    labels = ["refund", "delivery"]
    separator = "|"                   # between the labels in a cell; default: a cell has a list
    # or: columns = ["refund", "delivery"], instead of labels: a column of 0 and 1 for each; see `data.readers.multi`
    # or: choices = true, for Label Studio's exports

A token column holds a list of labels in JSON lines, and labels separated by spaces (or a JSON list) in CSV. They are
types or tags of types (``B-product I-product O``), which have the entities' boundaries for the strict slot score; see
`data.readers.tags`. Without ``tags`` they are recognized; where a label may be either, it must be given. Without tags,
adjacent equal labels are one entity. Labels that look the same (composed or decomposed letters, invisible characters)
are one label.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from data.errors import UserError, nearest
from data.files.documents import parse_toml, read_bytes, shaped
from data.readers import conll
from data.readers.cells import SPANS
from data.readers.custom_fields import REQUIRED, CustomField, FieldTable, is_taken, read_field
from data.readers.cut import Cut, SplitTable, read_cut
from data.readers.encoding import check_encoding, decode_utf8
from data.readers.sources import DEFAULT_SPLITS, Source, dataset_splits, format_of
from data.readers.split_files import split_files
from data.readers.tables import COLUMNAR, FORMATS, PLAIN, Dialect, read_delimiter
from data.template import TextTemplate

SPLITS = ("train", "dev", "test")
MISSING = ("error", "skip")


class _Table(msgspec.Struct):
    """The whole TOML file, as it is written."""

    name: str
    document_name: str = "Document"
    instruction: str | None = None
    text_column: str | None = None
    tokens_column: str | None = None
    text: str | None = None
    id_column: str | None = None
    missing: str = MISSING[0]
    delimiter: str | None = None
    encoding: str | None = None
    tsv_quoting: bool = False
    format: str | None = None
    conll_columns: list[str] | None = None
    files: dict[str, str | list[str]] = {}
    dataset: str | None = None
    dataset_config: str | None = None
    revision: str | None = None
    splits: dict[str, str] = {}
    split: SplitTable | None = None
    fields: list[FieldTable] = []


@dataclass(frozen=True)
class CustomSpec:
    """A task, as described in its TOML file.

    Attributes:
        name: the task's name, and the first part of its examples' ids.
        document_name: what the prompt's delimiters call a document.
        instruction: the user's own sentences in the prompt, or None.
        fields: in the order of the answer.
        files: by split, the absolute paths of its files, or the split of a data set.
        text_column, id_column: the columns of the document and of its id (None: the line number).
        has_words: the column of the document holds a list of its words.
        dataset: the folder or the name of the data set that has the splits; None: files are named.
        template: makes the document of several columns; then ``text_column`` is not used.
        path: the TOML file itself.
        toml: its text.
        dialect: how all files are written.
        missing: what to do about examples without a text or a label, one of `MISSING`.
        cut: how splits are cut from the train files, which ``files`` does not have; None: they are not.
    """

    name: str
    document_name: str
    instruction: str | None
    fields: tuple[CustomField, ...]
    files: dict[str, tuple[Source, ...]]
    text_column: str
    id_column: str | None
    path: Path
    toml: str
    has_words: bool = False
    dataset: str | None = None
    dialect: Dialect = PLAIN
    template: TextTemplate | None = None
    missing: str = MISSING[0]
    cut: Cut | None = None

    @property
    def has_token_field(self) -> bool:
        """Whether words have labels."""
        return any(field.type == "token" for field in self.fields)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that are given, and those that are cut from the train files."""
        return (*self.files, *(self.cut.fractions if self.cut is not None else ()))


def read_custom_spec(path: Path) -> CustomSpec:
    """Read and check a task's TOML file; data files are opened only to collect labels (``labels_from``).

    Raises:
        UserError: no such file, broken TOML (with its line), an unknown, missing or mistyped key, a field or
            label named twice, a field whose labels are in the text, a data file that is missing or of an unknown kind.
    """
    path = Path(path)
    if not path.exists():
        beside = sorted(str(file) for file in path.parent.glob("*.toml"))
        raise UserError(f"no task file at {path}.{nearest(str(path), beside) if beside else ''}")
    text = decode_utf8(read_bytes(path), str(path), path.name)
    found = parse_toml(text, str(path))
    _check_keys(found, _Table.__struct_fields__, str(path))
    for key, has in (("splits", "the dataset's names"), ("files", "names of files")):
        if isinstance(found.get(key), dict):
            _check_keys(found[key], SPLITS, f"{path}, {key if key == 'splits' else '[files]'}")
            if number := next((name for name, x in found[key].items() if type(x) in (int, float)), None):
                raise UserError(f"{path}: {key} has {has}, so {number} must be a text. Write fractions in [split].")
    where = _check_fields(found.get("fields"), path)
    table: _Table = shaped(found, str(path), _Table)
    if not table.files and table.dataset is None:
        raise UserError(f'{path}: a [files] table is needed, such as train = "train.csv", or a dataset.')
    if not table.fields:
        raise UserError(f"{path}: at least one [[fields]] table is needed; it describes what the model answers.")
    parts: list[tuple[msgspec.Struct, str]] = [(table, str(path)), *zip(table.fields, where, strict=True)]
    if table.split is not None:
        _check_keys(found["split"], SplitTable.__struct_fields__, f"{path}, [split]")
        parts.append((table.split, f"{path}, [split]"))
    for part, place in parts:
        for key, value in msgspec.structs.asdict(part).items():
            blank = isinstance(value, str) and not (value if key == "separator" else value.strip())
            if blank and key != "delimiter":
                raise UserError(f"{place}: {key} is empty.")

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", table.name):
        raise UserError(f"{path}: name {table.name!r}: use only letters, digits, '_', '-' and '.' (it names folders).")
    if table.missing not in MISSING:
        raise UserError(f"{path}: unknown missing {table.missing!r}.{nearest(table.missing, MISSING)}")
    template = _read_template(table, path)
    files = _read_sources(table, path)
    dialect = _read_dialect(table, files, path)
    tokens_column = _tokens_column(table, files, dialect, path)
    text_column = tokens_column or table.text_column or "text"
    text_columns = (text_column,) if template is None else template.columns
    text_key = "text" if template is not None else "text_column" if tokens_column is None else "tokens_column"
    fields: list[CustomField] = []
    for own, place in zip(table.fields, where, strict=True):
        field = read_field(own, place, files, dialect, text_key, text_columns)
        if field.name in [other.name for other in fields]:
            raise UserError(f"{path}: two fields are named {field.name!r}.")
        if field.tags == SPANS and tokens_column is not None:
            raise UserError(f'{place}: tags = "spans" is for texts, whose characters are counted; the texts here are '
                            f"lists of words, in {tokens_column!r}.")  # fmt: skip
        fields.append(field)
    types = {field.name: field.type for field in fields}
    likely = [name for name, kind in types.items() if kind != "token"]  # their labels have probabilities
    if taken := next((name for name in types if is_taken(name, likely)), None):
        raise UserError(f"{path}: a field cannot be named {taken!r}: predict.py adds a column of this name. Rename "
                        f'the field, and write column = "{taken}" if the table has it under this name.')  # fmt: skip
    return CustomSpec(
        name=table.name,
        document_name=table.document_name,
        instruction=table.instruction,
        fields=tuple(fields),
        files=files,
        text_column=text_column,
        has_words=tokens_column is not None,
        dataset=table.dataset,
        id_column=table.id_column,
        path=path.resolve(),
        toml=text,
        dialect=dialect,
        template=template,
        missing=table.missing,
        cut=None if table.split is None else read_cut(table.split, files, types, path),
    )


def _read_template(table: _Table, path: Path) -> TextTemplate | None:
    if table.text is None:
        return None
    if table.text_column is not None:
        raise UserError(f"{path}: give either text_column (a column) or text (a template of several), not both.")
    try:
        return TextTemplate(table.text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_sources(table: _Table, path: Path) -> dict[str, tuple[Source, ...]]:
    if table.dataset is None:
        for key in ("dataset_config", "revision", "splits"):
            if getattr(table, key):
                raise UserError(f"{path}: {key} is for a dataset, and none is named.")
        if table.format is not None and table.format not in FORMATS:
            raise UserError(f"{path}: unknown format {table.format!r}.{nearest(table.format, FORMATS)}")
        return dict(split_files(table.files, path, any_ending=table.format is not None))
    for key in ("files", "format"):
        if getattr(table, key):
            raise UserError(f"{path}: give either a dataset or {key}, not both.")
    cut = {} if table.split is None else table.split.cut()
    splits = table.splits or {split: theirs for split, theirs in DEFAULT_SPLITS.items() if split not in cut}
    return dataset_splits(table.dataset, table.dataset_config, table.revision, splits, path)


def _read_dialect(table: _Table, files: dict[str, tuple[Source, ...]], path: Path) -> Dialect:
    if table.conll_columns == []:
        raise UserError(f"{path}: conll_columns is empty. Name every column, or omit it.")
    columns = None if table.conll_columns is None else tuple(table.conll_columns)
    dialect = Dialect(tsv_quoting=table.tsv_quoting, format=table.format, conll_columns=columns)
    formats = {format_of(file, dialect) for own in files.values() for file in own}
    place = "[files]" if table.dataset is None else "the dataset"
    for key, its_formats, kind in (
        ("tsv_quoting", {"tsv"}, ".tsv files"),
        ("delimiter", {"csv"}, ".csv files"),
        ("conll_columns", set(conll.FORMATS), ".conll and .conllu files"),
        ("encoding", set(FORMATS) - COLUMNAR.keys(), "files of text"),
    ):
        if getattr(table, key) and not formats & its_formats:
            raise UserError(f"{path}: {key} is for {kind}; {place} has none.")
    encoding = PLAIN.encoding if table.encoding is None else table.encoding
    try:
        delimiter = PLAIN.delimiter if table.delimiter is None else read_delimiter(table.delimiter)
        check_encoding(encoding)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return replace(dialect, delimiter=delimiter, encoding=encoding)


def _tokens_column(table: _Table, files: dict[str, tuple[Source, ...]], dialect: Dialect, path: Path) -> str | None:
    """The column that has the words of a text as a list; None if the text is written as one."""
    other = next((key for key in ("text_column", "text") if getattr(table, key) is not None), None)
    formats = {format_of(file, dialect) for own in files.values() for file in own}
    if not formats & set(conll.FORMATS):
        if table.tokens_column is not None and other is not None:
            raise UserError(f"{path}: give either tokens_column (a list of words) or {other} (a text), not both.")
        return table.tokens_column
    if other is not None:
        raise UserError(f"{path}: {other} is for texts, and CoNLL files have words: use tokens_column.")
    usual = dialect.conll_columns or (conll.UNIVERSAL if "conllu" in formats else (conll.TOKENS,))
    return table.tokens_column or conll.token_column(usual)


def _check_fields(fields: Any, path: Path) -> list[str]:
    """The places of the fields' tables, for messages.

    Raises:
        UserError: not a list, which TOML makes of lines in two brackets; a key is unknown or missing.
    """
    if isinstance(fields, dict):
        raise UserError(f"{path}: [fields] is one table, and there may be several fields: write [[fields]] above each.")
    where = list[str]()
    for number, entry in enumerate(fields if isinstance(fields, list) else (), start=1):
        where.append(f"{path}, [[fields]] number {number}")
        if not isinstance(entry, dict):
            continue  # reported with its type
        _check_keys(entry, FieldTable.__struct_fields__, where[-1])
        if lacking := next((key for key in REQUIRED if key not in entry), None):
            raise UserError(f"{where[-1]}: {lacking} is missing. {REQUIRED[lacking]}")
    return where


def _check_keys(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key in _Table.__struct_fields__ and key not in known and not isinstance(table[key], dict):
            raise UserError(f"{where}: {key} belongs at the file's beginning, above the first line in brackets: a key "
                            "belongs to the table that the line in brackets above it begins.")  # fmt: skip
        if key == "class_weights":
            raise UserError(f"{where}: {key} is no key of a task, but an option of train.py: --{key} balanced.")
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}.{nearest(key, known)}")
