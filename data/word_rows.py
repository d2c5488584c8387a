"""Tables with a word on each row, in which a second column says where sentences begin. For ``guess.py``.

    Sentence #    Word   Tag         or on every row:    sentence_id   words   labels
    Sentence: 1   in     O                               0             in      O
                  Rome   B-city                          0             Rome    B-city

No task reads them, as an example has to be one row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data.column import WORDS, Column
from data.errors import UserError
from data.readers.encoding import is_utf8
from data.readers.tables import Dialect

SENTENCE = re.compile(r"sent(ence)?s?([ _.#-].*|id)?", re.IGNORECASE)  # the name of a column


def check_sentences(file: Path, format: str, dialect: Dialect, columns: Sequence[Column]) -> None:
    """Raise a UserError if a table has a word on each row; it says how to make lists of them."""
    of_sentences = next(filter(_marks_sentences, columns), None)
    of_words = [c for c in columns if c.texts == c.words > 0 and not c.is_sparse(c.empty) and c is not of_sentences]
    is_text = any(c.words >= WORDS * c.scalars > 0 and not c.is_sparse(c.missing) for c in columns)
    if of_sentences is None or is_text or len(of_words) < 2:
        return
    words = max(of_words, key=lambda column: len(column.values))
    sentence, source = of_sentences.name, "table"
    if format in ("csv", "tsv"):
        separator = "\t" if format == "tsv" else dialect.delimiter
        settings = "" if separator == "," else f", sep={separator!r}"
        settings += "" if is_utf8(dialect.encoding) else f", encoding={dialect.encoding!r}"
        source = f"pd.read_csv({file.name!r}{settings}, keep_default_na=False, na_values={{{sentence!r}: ['']}})"
    target = f"{file.name.split('.')[0]}_sentences.jsonl"
    raise UserError(
        f"{file}: each row has one word ({words.name!r}), and {sentence!r} says where sentences begin. A task needs a "
        f"sentence on each row. Save it as CoNLL, or make lists of the words with pandas and use {target}. (If these "
        "words are the texts, give --text.)\n"
        f"  {source}.ffill().groupby({sentence!r}, sort=False).agg(list)"
        f".to_json({target!r}, orient='records', lines=True)"
    )


def _marks_sentences(column: Column) -> bool:
    """Whether it has a sentence's number: on each of its rows if its name says so, or on the first one."""
    n, is_named = column.scalars, SENTENCE.fullmatch(column.name) is not None
    if n < 2 or column.words >= WORDS * n:
        return False
    if not is_named:
        are_numbers = all(any(map(str.isdigit, value)) for value in column.values)
        return are_numbers and 0 not in column.missing and column.is_sparse(column.missing) and len(column.values) == n
    return column.is_sparse(column.missing) or 2 * len(column.values) <= n
