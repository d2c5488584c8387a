"""Read CoNLL files sentence by sentence: one token a line, its columns parted by tabs or spaces, blank lines between.

    EU      NNP  B-ORG        a record:  {"tokens": ["EU", "rejects"], "2": ["NNP", "VBZ"], "tags": ["B-ORG", "O"]}
    rejects VBZ  O

The columns of such files have no names. Without other ones the first is ``tokens``, the last ``tags``, and those
between are called by their number. CoNLL-U has ten columns with names; its tokens are in ``form``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from data.errors import UserError
from data.files import limits
from data.readers.records import Record, check_columns

ENDINGS = {".conll": "conll", ".bio": "conll", ".iob": "conll", ".conllu": "conllu", ".conllup": "conllu"}
FORMATS = tuple(dict.fromkeys(ENDINGS.values()))
UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
OF_WORDS = ("upos", "xpos", "deprel")  # those of them that have a label for each word, the most usual first
TOKENS, TAGS, FORM, ID = "tokens", "tags", "form", "id"
DOCUMENT = "-DOCSTART-"  # the token of a line before a document of CoNLL-2003
# Before a sentence. A token may begin with such a mark as well: "#summer O".
COMMENT = re.compile(r"#(?: |$|begin document|end document)")
NAMES = re.compile(r"#\s*global\.columns\s*=\s*(.*)")  # in the first line of CoNLL-U Plus
NOT_A_WORD = re.compile(r"\d+[-.]\d+")  # the id of a line for several words, or for one that is not in the text
NAME_THEM = "Name those of the file: conll_columns in the task's file, or --conll_columns of predict.py."

log = logging.getLogger("data")

Line = tuple[int, str, str]  # its number, itself, what is wrong with it


def token_column(columns: Sequence[str]) -> str:
    """The column that has the tokens, of those of a CoNLL file."""
    return next((name for name in (TOKENS, FORM) if name in columns), columns[0])


def sentences(
    lines: Iterable[Line], name: str, is_universal: bool, names: Sequence[str] | None = None
) -> tuple[tuple[str, ...], Iterator[Record]]:
    """The names of a file's columns, and a record for each sentence: by column, a list with a text for each token.

    Args:
        lines: of the file, from the first.
        name: what messages call the file.
        is_universal: it is CoNLL-U.
        names: of the columns; None: the usual ones.

    Raises:
        UserError: here or while iterating: fewer or more columns than names, a sentence that does not end.
    """
    numbered = iter(lines)
    before: list[Line] = []  # what is read to learn about the columns is read again below
    first: Line | None = None
    for line in numbered:
        before.append(line)
        if match := NAMES.match(line[1]):
            names = names or match[1].lower().split()
        if _has_token(line[1], is_universal):
            first = line
            break
    if first is None:
        return (), iter(())
    number, text, _ = first
    by_tab = "\t" in text
    found = len(_cells(text, by_tab))
    if names is None:
        names = UNIVERSAL if is_universal else _usual(found)
    where = f"{name}, line {number}"
    if len(names) != found:
        raise UserError(f"{where}: {found} columns, but {len(names)} are expected: {', '.join(names)}. {NAME_THEM}")
    check_columns(list(names), name)
    return tuple(names), _records(chain(before, numbered), name, is_universal, by_tab, tuple(names))


def _usual(n_columns: int) -> list[str]:
    between = [str(number) for number in range(2, n_columns)]
    return [TOKENS] if n_columns == 1 else [TOKENS, *between, TAGS]


def _has_token(line: str, is_universal: bool) -> bool:
    """Whether the first line of a sentence, or one before it, has a token."""
    comment = line.startswith("#") if is_universal else COMMENT.match(line.rstrip("\r\n"))
    return bool(line.strip()) and not comment and not line.startswith(DOCUMENT)


def _cells(line: str, by_tab: bool) -> list[str]:
    line = line.rstrip("\r\n")
    # Not str.split: tokens have no-break spaces.
    return [cell.strip(" ") for cell in line.split("\t")] if by_tab else re.split("[ \t]+", line.strip(" \t"))


def _records(
    lines: Iterator[Line], name: str, is_universal: bool, by_tab: bool, names: tuple[str, ...]
) -> Iterator[Record]:
    id_at = names.index(ID) if is_universal and ID in names else None
    rows: list[list[str]] = []
    size, first, last, error, warned = 0, 0, 0, "", False

    def record() -> Record:
        where = f"{name}, line {last}" if first == last else f"{name}, lines {first} to {last}"
        values = {} if error else dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        return Record(where, last, values, error)

    for number, line, problem in lines:
        if not line.strip() or line.startswith(DOCUMENT):
            if rows or error:
                yield record()
            rows, size, first, error = [], 0, 0, ""
            continue
        if not first and not _has_token(line, is_universal):
            if not (warned or is_universal or by_tab) and len(_cells(line, by_tab)) == len(names):
                log.warning(
                    "%s, line %d: %r is read as a comment before a sentence, and has as many columns as a token. If "
                    "'#' is a token, part the columns by tabs.", name, number, line.strip(),
                )  # fmt: skip
                warned = True
            continue
        if is_universal and line.startswith("#"):
            error = error or f"{name}, line {number}: a comment within a sentence. Is the blank line before it missing?"
            continue
        size += len(line)
        if size > limits.RECORD_CHARACTERS:
            raise UserError(
                f"{name}, line {number}: a sentence with more than {limits.RECORD_CHARACTERS:,} characters, the limit. "
                "Are the blank lines between sentences missing?"
            )
        first, last = first or number, number
        cells = _cells(line, by_tab)
        if problem:
            error = error or problem
        elif len(cells) != len(names):
            parted = "tabs" if by_tab else "spaces"
            found = f"{len(cells)} columns, parted by {parted}"
            error = error or f"{name}, line {number}: {found}, but the first token has {len(names)}."
        elif id_at is None or not NOT_A_WORD.fullmatch(cells[id_at]):
            rows.append(cells)
    if rows or error:
        yield record()
