"""Read the TOML file of a user's own task. Its data files are read by ``custom_examples.py``.

Paths in the TOML file are relative to its folder; ``~`` and environment variables are replaced by their values::

    name = "tickets"                  # used in ids and in the run folder
    document_name = "Ticket"          # used in the prompt's delimiters; default "Document"
    instruction = "Sort the ticket."  # optional; added to the standard instruction
    text_column = "text"              # default "text"
    id_column = "ticket_id"           # default: the line number
    tsv_quoting = true                # quotation marks in .tsv files mean what they do in CSV; default: nothing

    [files]                           # .csv, .tsv or .jsonl, all UTF-8
    train = "train.csv"
    test = "test.jsonl"

    [[fields]]                        # one or more; several are answered as one JSON object
    name = "queue"
    type = "class"
    labels = ["billing", "sales"]     # or: labels_from = "train", to collect them from that file
    column = "queue"                  # default: the field's name

    [[fields]]
    name = "parts"
    type = "token"                    # one label for each of the text's words (text.split())
    labels = ["product", "date"]
    other = "Other"                   # the label of words that have none of these; default "Other"
    tags = "iob2"                     # how the files' labels are written: "types", "iob1", "iob2", "iobes", "bilou"
    answer = "spans"                  # a decoder writes the entities; "list" or "bio": a label or a tag for each word

    [[fields]]
    name = "topics"
    type = "multi"                    # any number of labels, none included
    labels = ["refund", "delivery"]
    separator = "|"                   # between the labels in a cell; default: a cell has a JSON list
    # or: columns = ["refund", "delivery"], instead of labels: a column of 0 and 1 for each

A token column holds a list of labels in JSON lines, and labels separated by spaces (or a JSON list) in CSV. They are
types or tags of types (``B-product I-product O``), which have the entities' boundaries for the strict slot score; see
`data.readers.tags`. Without ``tags`` they are recognized; where a label may be either, it must be given. Without tags,
adjacent equal labels are one entity. How a table has the labels of a multi field: `data.readers.multi`. Labels that
look the same (composed or decomposed letters, invisible characters) are one label. Examples with a blank text are kept,
so that a test set never loses an example.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from data.characters import appearance
from data.errors import UserError, nearest
from data.files.documents import parse_toml, read_bytes, readable, shaped
from data.files.paths import expand
from data.readers.cells import collect_labels, records
from data.readers.encoding import decode_utf8
from data.readers.multi import MultiCells, collect_multi, columns_of, key_problem
from data.readers.tags import SCHEMES

SPLITS = ("train", "dev", "test")
SUFFIXES = (".csv", ".tsv", ".jsonl")
TYPES = ("class", "multi", "token")
ANSWERS = ("spans", "list", "bio")


class _FieldTable(msgspec.Struct):
    """A ``[[fields]]`` table, as it is written."""

    name: str
    type: str
    labels: list[str] | None = None
    labels_from: str | None = None
    column: str | None = None
    other: str | None = None
    tags: str | None = None
    answer: str | None = None
    separator: str | None = None
    columns: list[str] | dict[str, str] | None = None


class _Table(msgspec.Struct):
    """The whole TOML file, as it is written."""

    name: str
    document_name: str = "Document"
    instruction: str | None = None
    text_column: str = "text"
    id_column: str | None = None
    tsv_quoting: bool = False
    files: dict[str, str] = {}
    fields: list[_FieldTable] = []


@dataclass(frozen=True)
class CustomField:
    """One field of the answer, as described in the TOML file; ``data.tasks`` turns it into a field of the task.

    Attributes:
        name: its key in the examples' labels.
        type: ``"class"`` (one label per document), ``"multi"`` (any number) or ``"token"`` (one per word).
        labels: the label set, in the order in which the prompt lists it; for token fields without ``other``.
        column: the column or key of the data files that holds it.
        other: the label of a word that has none of ``labels``; unused for class fields.
        answer: how a decoder writes the labels of a token field: "spans", "list" or "bio" (see `data.answers`).
        tags: how the files' labels are written, a key of `data.readers.tags.SCHEMES`; None: as each label shows.
        separator, columns: of a multi field; see `data.readers.multi.MultiCells`.
    """

    name: str
    type: str
    labels: tuple[str, ...]
    column: str
    other: str = "Other"
    answer: str = "spans"
    tags: str | None = None
    separator: str | None = None
    columns: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def cells(self) -> MultiCells:
        """Where a table has the labels of a multi field."""
        return MultiCells(self.column, self.separator, self.columns)


@dataclass(frozen=True)
class CustomSpec:
    """A task, as described in its TOML file.

    Attributes:
        name: the task's name, and the first part of its examples' ids.
        document_name: what the prompt's delimiters call a document.
        instruction: the user's own sentences in the prompt, or None.
        fields: in the order of the answer.
        files: by split, the absolute path of its file.
        text_column, id_column: the columns of the document and of its id (None: the line number).
        path: the TOML file itself.
        toml: its text.
        tsv_quoting: see `data.readers.tables.open_table`.
    """

    name: str
    document_name: str
    instruction: str | None
    fields: tuple[CustomField, ...]
    files: dict[str, Path]
    text_column: str
    id_column: str | None
    path: Path
    toml: str
    tsv_quoting: bool = False


def read_custom_spec(path: Path) -> CustomSpec:
    """Read and check a task's TOML file; data files are opened only to collect labels (``labels_from``).

    Raises:
        UserError: no such file, broken TOML (with its line), an unknown, missing or mistyped key, a field or
            label named twice, a data file that is missing or of an unknown kind.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no task file at {path}.")
    text = decode_utf8(read_bytes(path), str(path), path.name)
    found = parse_toml(text, str(path))
    _check_keys(found, _Table.__struct_fields__, str(path))
    table: _Table = shaped(found, str(path), _Table)
    if not table.files:
        raise UserError(f'{path}: a [files] table is needed, such as train = "train.csv".')
    if not table.fields:
        raise UserError(f"{path}: at least one [[fields]] table is needed; it describes what the model answers.")
    _check_keys(table.files, SPLITS, f"{path}, [files]")
    where = [f"{path}, [[fields]] number {number}" for number in range(1, len(table.fields) + 1)]
    for entry, place in zip(found["fields"], where, strict=True):
        _check_keys(entry, _FieldTable.__struct_fields__, place)
    for part, place in ((table, str(path)), *zip(table.fields, where, strict=True)):
        for key, value in msgspec.structs.asdict(part).items():
            if isinstance(value, str) and not (value if key == "separator" else value.strip()):
                raise UserError(f"{place}: {key} is empty.")

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", table.name):
        raise UserError(f"{path}: name {table.name!r}: use only letters, digits, '_', '-' and '.' (it names folders).")
    files = {split: _data_file(name, split, path) for split, name in table.files.items()}
    if table.tsv_quoting and not any(file.suffix.lower() == ".tsv" for file in files.values()):
        raise UserError(f"{path}: tsv_quoting is for .tsv files; [files] has none.")
    fields: list[CustomField] = []
    for own, place in zip(table.fields, where, strict=True):
        field = _read_field(own, place, files, table.tsv_quoting)
        if field.name in [other.name for other in fields]:
            raise UserError(f"{path}: two fields are named {field.name!r}.")
        fields.append(field)
    return CustomSpec(
        name=table.name,
        document_name=table.document_name,
        instruction=table.instruction,
        fields=tuple(fields),
        files=files,
        text_column=table.text_column,
        id_column=table.id_column,
        path=path.resolve(),
        toml=text,
        tsv_quoting=table.tsv_quoting,
    )


def _data_file(name: str, split: str, path: Path) -> Path:
    folder = path.resolve().parent
    try:
        file = folder / expand(name, folder)
    except UserError as error:
        raise UserError(f"{path}: {split} file {error}") from error
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: {split} file {file.name!r} must end in one of {', '.join(SUFFIXES)}.")
    with readable(file):
        there = file.is_file()
    if not there:
        raise UserError(f"{path}: no {split} file at {file}.")
    return file


def _read_field(entry: _FieldTable, where: str, files: dict[str, Path], tsv_quoting: bool) -> CustomField:
    name, kind = entry.name, entry.type
    if kind not in TYPES:
        raise UserError(f"{where}: unknown type {kind!r}.{nearest(kind, TYPES)}")
    if kind != "token" and entry.other is not None:
        raise UserError(f"{where}: 'other' is for fields of type \"token\" only; put it among the labels instead.")
    if kind != "token" and entry.answer is not None:
        raise UserError(
            f"{where}: 'answer' is for fields of type \"token\" only; other fields are answered in one way."
        )
    if kind != "token" and entry.tags is not None:
        raise UserError(f"{where}: 'tags' is for fields of type \"token\" only.")
    for key in ("separator", "columns"):
        if kind != "multi" and getattr(entry, key) is not None:
            raise UserError(f"{where}: '{key}' is for fields of type \"multi\" only.")
    labels_given = entry.labels is not None or entry.labels_from is not None
    if problem := key_problem(entry.columns, entry.separator, entry.column, labels_given):
        raise UserError(f"{where}: {problem}")
    columns = columns_of(entry.columns)
    if not columns and (entry.labels is None) == (entry.labels_from is None):
        raise UserError(f"{where}: give either labels (a list) or labels_from (a split), not both.")
    column, other = entry.column or name, entry.other or "Other"
    answer, tags = entry.answer or ANSWERS[0], entry.tags
    if answer not in ANSWERS:
        raise UserError(f"{where}: unknown answer {answer!r}.{nearest(answer, ANSWERS)}")
    if tags is not None and tags not in SCHEMES:
        raise UserError(f"{where}: unknown tags {tags!r}.{nearest(tags, SCHEMES)}")

    if columns:
        labels = list(columns)
    elif entry.labels is not None:
        labels = entry.labels
    else:
        split = entry.labels_from or ""
        if split not in files:
            raise UserError(f"{where}: labels_from {split!r} is not a split in [files].{nearest(split, files)}")
        rows = records(files[split], tsv_quoting)
        if kind == "multi":
            labels = collect_multi(files[split], rows, MultiCells(column, entry.separator, {}))
        else:
            labels = collect_labels(files[split], rows, column, kind, other, tags)
    for label in labels:
        if not appearance(label) or label != label.strip() or "\n" in label:
            raise UserError(f"{where}: label {label!r} is empty, has spaces around it, or contains a line break.")
        if entry.separator is not None and entry.separator in label:
            raise UserError(
                f"{where}: label {label!r} has the separator {entry.separator!r} in it, so it would be read as "
                "several. Choose another separator, or give the labels as JSON lists."
            )
        if kind == "token" and appearance(label) == appearance(other):
            raise UserError(f"{where}: {label!r} is the label of words without one (other); remove it from the labels.")
    seen: dict[str, str] = {}
    for label in labels:
        twin = seen.setdefault(appearance(label), label)
        if label != twin:
            raise UserError(f"{where}: two labels look the same, {ascii(twin)} and {ascii(label)}. List one of them.")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: label {repeated[0]!r} is listed more than once.")
    if kind == "token" and answer == "spans":
        for label in labels:
            longer = next((other for other in labels if other.startswith(f"{label}:")), None)
            if longer is not None:
                raise UserError(
                    f"{where}: in an answer of spans, the label {longer!r} could be read as {label!r} and words after "
                    'its colon. Rename one of them, or set answer = "list".'
                )
    least = 2 if kind == "class" else 1
    if len(labels) < least:
        raise UserError(f"{where}: a field of type {kind!r} needs at least {least} labels, found {len(labels)}.")
    return CustomField(name, kind, tuple(labels), column, other, answer, tags, entry.separator, columns)


def _check_keys(table: dict[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}.{nearest(key, known)}")
