"""Write a task file for a table: which column has the texts, which one the labels, how the table is written.

    python -m data.new FILE.csv [--text COLUMN] [--label COLUMN] [--encoding NAME]

FILE is what the readers read: CSV, TSV, JSON, CoNLL, Parquet, Arrow. ``FILE.toml`` is written beside it. Its comments
say what was guessed and why, and which other keys may be of use. Nothing is overwritten.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated

import tomlkit
import tyro

from data import terminal
from data.characters import is_text
from data.column import Column
from data.command_line import cli
from data.commands import command, python, quoted
from data.errors import UserError, shortened
from data.files.documents import permitted, readable
from data.files.durable import write_text
from data.files.paths import parsed_paths
from data.guess import Guess, guess, open_named
from data.readers.cells import missing_column
from data.readers.custom_examples import MANY_SKIPPED
from data.readers.custom_fields import is_taken
from data.readers.encoding import UTF8, is_utf8
from data.readers.label_sets import mistaken_in_spans
from data.readers.lines import GZIP
from data.readers.prodigy import note
from data.readers.split_files import LINES
from data.readers.tables import ENDINGS, NEXT_STEPS, PLAIN, ending_of
from data.readers.tags import NAME_THEM, SCHEMES
from data.tasks import TASKS, Task, get_task
from data.terminal import say

TRAIN = re.compile(r"train(?:ing)?", re.IGNORECASE)
OTHERS = {"dev": ("dev", "valid", "validation", "val"), "test": ("test",)}  # words in the names of other splits' files
TYPES = {  # the lines of a field, by what `data.guess` calls its labels
    "class": ['type = "class"'],
    "multi": ['type = "multi"  # any number of labels for a text'],
    "token": ['type = "token"'],
    "spans": ['type = "token"', 'tags = "spans"  # of characters of the text'],
}
SHOWN = 8  # labels in a comment
LABEL_CHARACTERS = 40


@dataclass
class NewArgs:
    """Write a commented task file for a table of texts and labels."""

    file: Annotated[Path, tyro.conf.Positional]
    """The table: .csv, .tsv, .jsonl, .json, .parquet, .arrow, .conll and others."""
    text: str | None = None
    """The column with the texts. Default: the longest strings."""
    label: str | None = None
    """The column with the labels, which may be lists. Default: few different values."""
    encoding: str | None = None
    """The encoding of the table. Default: UTF-8 if it is that, else what it looks like."""


def new_task(
    file: Path, text: str | None = None, label: str | None = None, encoding: str | None = None
) -> tuple[Task, Guess]:
    """Write a task file beside a table, and return the task and what it was made of.

    Args:
        text, label, encoding: as the options; None: guessed.

    Raises:
        UserError: no such table, one that cannot be read, or one without texts or labels; a task file that exists.
            Tags of which only a person can say how they are written: then the file is kept, with the line to complete.
    """
    ending = ending_of(file)
    format = ENDINGS.get(ending)
    with readable(file):
        if file.is_dir():
            raise UserError(
                f"{file}: this is a folder; data.new looks at one table. If there is a folder for each label, make a "
                "CSV of it with the header text,label and a row for each file. For a folder that datasets saved, write "
                "the task file by hand: docs/data.md."
            )
        if format is None or format == LINES:
            known = ", ".join(end for end, own in ENDINGS.items() if own != LINES and not end.endswith(GZIP))
            step = NEXT_STEPS.get(ending.removesuffix(GZIP), "")
            raise UserError(f"{file}: a table must end in one of {known}; text also with .gz. {step}".rstrip())
        if not file.is_file():
            raise UserError(f"no file {file}.")
    if not is_text(file.name):
        raise UserError(f"{ascii(file.name)}: a name that is not UTF-8, which no task file can have. Rename the table.")
    stem = file.name[: -len(ending)]
    target = file.with_name(f"{stem}.toml")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} exists, and is not overwritten. Move it, or change it by hand.")
    found = guess(file, format, text, label, encoding)
    others, unlabelled = _other_splits(file, format, found)
    lines = "\n".join(_lines(file, _name(stem, file), found, others, unlabelled)) + "\n"
    write_text(target, lines)
    try:
        return get_task(target), found
    except UserError as error:
        if NAME_THEM not in str(error):
            target.unlink()
            raise
        kind, choices = TYPES["token"][0], ", ".join(f'"{scheme}"' for scheme in SCHEMES)
        marked = lines.replace(f"\n{kind}\n", f'\n{kind}\ntags = "?"  # DECIDE: {choices}\n', 1)
        write_text(target, marked)
        raise UserError(f'{error} {target} is written: decide there, in the line tags = "?".') from error


def _name(stem: str, file: Path) -> str:
    """A name for the task: the file's, or its folder's if the file is called after a split."""
    if TRAIN.fullmatch(stem) or stem.lower() == "data":
        stem = file.resolve().parent.name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_.-")
    if not name:  # of no letter or digit of ASCII, as in a file that is named in Russian
        return "my_task"
    return f"my_{name}" if name in TASKS else name


def _other_splits(file: Path, format: str, found: Guess) -> tuple[dict[str, str], list[str]]:
    """By split, the name of a file beside this one that is called after it and has the same columns.

    Also the names of those in which no row has a text and a label, as of a competition, so that they cannot be splits.
    """
    others: dict[str, str] = {}
    unlabelled: list[str] = []
    for split, words in OTHERS.items():
        for word in words:
            beside = file.with_name(TRAIN.sub(word, file.name))
            if beside == file or not beside.is_file():
                continue
            try:
                with open_named(beside, format, found.dialect) as table:
                    first = next(table.records, None)
                    columns = table.columns or tuple(first.values if first else ())
                    if not set(found.used) <= set(columns):
                        continue
                    rows = chain([first] if first else [], table.records)
                    # Of a row that cannot be read the check tells; one with too few cells is a gap.
                    is_split = any(
                        not row.is_short if row.error else missing_column(row, found.used) is None for row in rows
                    )
            except UserError:
                continue  # the check of a task that names it would tell why
            if is_split:
                others.setdefault(split, beside.name)
            else:
                unlabelled.append(beside.name)
    return others, unlabelled


def _lines(file: Path, name: str, found: Guess, others: dict[str, str], unlabelled: Iterable[str]) -> Iterator[str]:
    """The lines of the task file."""
    text, label = found.columns[found.text], found.columns[found.label]
    yield f"# Written by data.new. Guessed from {found.looked_at} of {_shown(file.name)}: read and correct it."
    yield "# All keys are in docs/data.md. Then: python -m data.check, which says what else is wrong."
    yield _pair("name", name)
    yield f'{_pair("document_name", "Document")}  # what the prompt calls a text, such as "Review"'
    if text.is_list:
        yield f"{_pair('tokens_column', found.text)}  # lists of words: the list with the most different ones"
    else:
        yield f"{_pair('text_column', found.text)}  # the longest texts, {text.length:.0f} characters on average"
        if found.texts and not set("{}") & set(found.texts[0] + found.text):
            both = f"{{{found.texts[0]}}}\n{{{found.text}}}"
            lacking = _lacking(len(found.columns[found.texts[0]].missing))
            yield f"# {_pair('text', both)}  # in place of text_column, for a text in several columns{lacking}"
    yield '# instruction = "What the labels mean, in a sentence or two."'
    for column in found.columns.values():
        if column.may_be_ids() and column.name not in found.used:
            yield f"# {_pair('id_column', column.name)}  # all its values differ"
    yield from _dialect(found)
    if found.has_gaps:
        yield f'missing = "skip"  # {_gaps(found)}'
    if found.left_out:
        yield f"# {note(found.left_out)}"
    yield ""
    yield "[files]"
    yield _pair("train", file.name)
    for split in ("dev", "test"):
        if split in others:
            yield f"{_pair(split, others[split])}  # beside it, with the same columns"
    for other in unlabelled:
        yield f"# {_shown(other)} is left out: no row of it has a text and a label. predict.py labels its texts."
    if "test" not in others:
        yield '# test = "..."  # labelled texts that are not in train: eval.py scores on them'
        yield ""
        yield "# [split]  # in place of a test file: cuts a part from the train file"
        yield "# test = 0.2"
    yield ""
    if found.is_flags:
        yield from _flags(found)
    else:
        yield from _field(label, text)
    if found.flags and not found.is_flags:
        yield ""
        yield "# Several columns of 0 and 1. If each is a label, one field for all of them:"
        yield from ("# " + line for line in _flags(found))
    if found.labels:
        yield ""
        yield "# Other columns with few different values. Each would be one more thing to answer:"
        for other in found.labels:
            yield from ("# " + line for line in _field(found.columns[other], text, [found.label]) if line[0] != "#")


def _dialect(found: Guess) -> Iterator[str]:
    dialect = found.dialect
    if dialect.delimiter != PLAIN.delimiter:
        yield f"{_pair('delimiter', dialect.delimiter)}  # with it most rows have as many cells as the first"
    if dialect.encoding != UTF8:
        why = f"not UTF-8; so it reads {_shown(found.reads)}" if found.reads else "as given"
        yield f"{_pair('encoding', dialect.encoding)}  # {why}"
    if dialect.tsv_quoting:
        yield "tsv_quoting = true  # cells are in quotation marks"


def _field(column: Column, text: Column, others: Iterable[str] = ()) -> Iterator[str]:
    """The lines of a field; of one that is only suggested, beside others, also what it lacks."""
    kind, labels = column.label_type(text), column.labels
    shown = ", ".join(f"{_shown(value)} ({n:,})" for value, n in labels.most_common(SHOWN))
    more = f", and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
    more += _lacking(len(column.gaps(text))) if others else ""
    yield "[[fields]]"
    if is_taken(column.name, others):
        yield f"{_pair('name', f'{column.name}_label')}  # {column.name} is a name of predict.py's"
        yield _pair("column", column.name)
    else:
        yield _pair("name", column.name)
    yield from TYPES[kind]
    if kind in ("token", "spans") and (pair := next(mistaken_in_spans(labels), None)):
        yield f'answer = "list"  # not of entities, in which {_shown(pair[1])} could be read as {_shown(pair[0])}'
    if column.has_choices:
        yield "choices = true  # as Label Studio exports them: one label is a text"
    if column.separator:
        yield f"{_pair('separator', column.separator)}  # between the labels of a text"
    yield f'labels_from = "train"  # {len(labels):,} different in these rows: {shown}{more}'
    if column.is_numeric and kind in ("class", "multi"):
        codes = ", ".join(f'{_key(value)} = "..."' for value in sorted(labels))
        yield f"# names = {{ {codes} }}  # in place of labels_from: words tell a model more than numbers do"


def _gaps(found: Guess) -> str:
    text, *labels = (found.columns[name] for name in found.used)
    no_label = set[int]().union(*(label.gaps(text) for label in labels))
    counts = f"{len(text.text_gaps()):,} have no text and {len(no_label):,} no label"
    return f"of {found.n_rows:,} rows {counts}{'' if found.skipped else ', but others have such gaps'}"


def _flags(found: Guess) -> Iterator[str]:
    """The lines of a field for several columns of 0 and 1."""
    columns = [found.columns[name] for name in found.flags]
    shown = ", ".join(f"{_shown(column.name)} ({column.n_true:,})" for column in columns[:SHOWN])
    more = f", and {len(columns) - SHOWN:,} more" if len(columns) > SHOWN else ""
    yield "[[fields]]"
    yield _pair("name", next(name for name in ("labels", "marks", "my_labels") if name not in found.columns))
    yield from TYPES["multi"]
    yield f"columns = {tomlkit.item(found.flags).as_string()}  # a label each; in these rows {shown}{more}"


def _lacking(n: int) -> str:
    return f'; {n:,} of these rows have none, which missing = "skip" leaves out' if n else ""


def _pair(key: str, value: str) -> str:
    return f"{key} = {tomlkit.item(value).as_string()}"


def _key(text: str) -> str:
    return tomlkit.key(text).as_string()


def _shown(text: str) -> str:
    """A text in a comment: on one line, without control characters."""
    return repr(shortened(text, LABEL_CHARACTERS))


def main(argv: list[str] | None = None) -> int:
    terminal.open_streams()
    args = cli(NewArgs, argv, prog="python -m data.new")
    terminal.show_logs("stderr")
    try:
        args = parsed_paths(args)
        with permitted():
            task, found = new_task(args.file, args.text, args.label, args.encoding)
    except UserError as error:
        say(f"error: {error}", "stderr")
        return error.status
    assert task.custom is not None
    target = task.custom.path
    say(f"written: {target}. Read it: its comments say what was guessed.")
    if not is_utf8(encoding := task.custom.dialect.encoding) and args.encoding is None:
        say(f"Not UTF-8: {encoding} is guessed. The file shows how it reads; if wrong, remove it and give --encoding.")
    if len(found.skipped) > MANY_SKIPPED * found.n_rows:
        say(f"Note: {_gaps(found)}. Such rows are skipped ({len(found.skipped) / found.n_rows:.0%}): fill them in, or "
            "choose other columns (--text, --label).")  # fmt: skip
    say(f"To check the data:\n  {python()} -m data.check {quoted(str(target))}")
    run = {"task": target, "output": f"runs/{task.name}"}
    say(f"To train on it:\n  {command('train.py', {'model': 'smollm2_135m', **run})}")
    encoder = {"model": "bert", "checkpoint": "checkpoints/minilm", **run, "output": f"runs/{task.name}_encoder"}
    say(f"Or a small encoder (docs/few_labels.md):\n  {command('train.py', encoder)}")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.status_of(main()))
