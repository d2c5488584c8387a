"""What a column of a stranger's table has, and what it may be: texts, words, labels, ids. For ``guess.py``."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from data.errors import UserError, shortened
from data.readers.label_sets import is_label
from data.readers.multi import FLAGS, parts_of, several_in_one
from data.readers.spans import labels_of
from data.readers.tags import OUTSIDE, TAG
from data.template import is_missing, scalar_text

LABELS = 200  # different values of a column of labels at most
LABEL_CHARACTERS = 100  # of a label on average: longer values that repeat are rather texts
ONE_VALUE = 0.99  # of the rows, from which a column says nothing
PAIRED = 0.9  # of the rows have a tag for each word: the others may be damaged
AROUND = ",;|[]()'\""  # tags in a text, as no reader takes them
BETWEEN = re.compile(rf"[\s{re.escape(AROUND)}]+")
WORDS = 3  # a value on average, from which a column has texts even if few of them differ


@dataclass
class Column:
    """What a column has in the rows that were looked at.

    Attributes:
        lacking: whether any row that was read has no value in it, also of those that were not looked at: True for an
            empty text, False for no value at all.
        texts: how many of its values are strings.
        lists: how many of its values are lists of strings and whole numbers.
        spans: how many of its values are lists of spans of characters, of which there is at least one.
        others: values that are none of these, and neither numbers nor truths.
        empty, nulls: the numbers of the rows without a value: of those with an empty text, and of the others.
        has_numbers: some of its lists have numbers.
        has_choices: some of its lists are Label Studio's choices.
        is_spaced: its lists are texts in the table, with spaces between tags.
        values: how often each text, number or truth occurs; of lists, how often each item does; of spans, in how many
            rows each label is.
        lengths: of each row, how many items its list or words its text has; None: neither.
    """

    name: str
    lacking: set[bool] = field(default_factory=set)
    texts: int = 0
    lists: int = 0
    spans: int = 0
    others: int = 0
    empty: set[int] = field(default_factory=set)
    nulls: set[int] = field(default_factory=set)
    characters: int = 0
    words: int = 0
    with_letters: int = 0
    has_numbers: bool = False
    has_choices: bool = False
    is_spaced: bool = False
    values: Counter[str] = field(default_factory=Counter)
    lengths: list[int | None] = field(default_factory=list)

    def add(self, value: Any) -> None:
        words = len(value.split()) if isinstance(value, str) else 0
        self.lengths.append(len(value) if isinstance(value, list) else words or None)
        if is_missing(value):
            (self.empty if isinstance(value, str) else self.nulls).add(len(self.lengths) - 1)
        elif isinstance(value, list) and all(isinstance(item, str | int) for item in value):
            self.lists += 1
            self.has_numbers |= not all(isinstance(item, str) for item in value)
            self.values.update(str(scalar_text(item)).strip() for item in value)
        elif (labels := _labels_of_spans(value)) is not None:
            self.spans += 1
            self.values.update(labels)
        elif (text := scalar_text(value)) is None:
            self.others += 1
        else:
            self.texts += isinstance(value, str)
            self.characters += len(text)
            self.words += len(text.split())
            self.with_letters += any(map(str.isalpha, text))
            self.values[text.strip()] += 1

    @property
    def missing(self) -> set[int]:
        """The numbers of the rows without a value."""
        return self.empty | self.nulls

    @property
    def has_name(self) -> bool:
        """Whether a task file can have its name as it is in the header."""
        return self.name == self.name.strip() != "" and not _has_control(self.name)

    @property
    def scalars(self) -> int:
        """Values that are texts, numbers or truths."""
        return 0 if self.lists or self.spans or self.others else self.values.total()

    @property
    def is_list(self) -> bool:
        """Whether all values are lists of strings and numbers."""
        return self.lists > 0 and not (self.spans or self.others or self.characters)

    @property
    def has_spans(self) -> bool:
        """Whether all values are lists of spans."""
        return self.spans > 0 and self.lists == self.lengths.count(0) and not (self.others or self.characters)

    @property
    def length(self) -> float:
        """Characters of a value on average."""
        return self.characters / max(self.scalars, 1)

    @property
    def is_numeric(self) -> bool:
        return not any(any(map(str.isalpha, value)) for value in self.values)

    @property
    def is_flag(self) -> bool:
        """Whether it has 0 and 1, as a column of a multi field's ``columns``, and nothing else."""
        return self.scalars > 0 and {FLAGS.get(value.lower()) for value in self.values} == {False, True}

    @property
    def n_true(self) -> int:
        """Of a column of 0 and 1: how many are 1."""
        return sum(n for value, n in self.values.items() if FLAGS[value.lower()])

    @property
    def has_one_value(self) -> bool:
        """Whether nearly all its texts, numbers or truths are the same one."""
        return self.scalars > 0 and self.values.most_common(1)[0][1] >= ONE_VALUE * self.scalars

    @cached_property
    def separator(self) -> str:
        """What separates several labels in its texts; empty if that is not clear."""
        if not 0 < self.texts == self.scalars or self.length > LABEL_CHARACTERS:
            return ""
        joined, separator = several_in_one(list(self.values))
        return separator if len(joined) > 1 else ""

    @cached_property
    def labels(self) -> Counter[str]:
        """How often each label occurs if it has labels."""
        if not self.separator:
            return self.values
        found = Counter[str]()
        for text, n in self.values.items():
            found.update(dict.fromkeys(parts_of(text, self.separator), n))
        return found

    def may_be_text(self) -> bool:
        """Strings with letters, long or mostly different."""
        n = self.scalars
        if not n or self.texts < n or self.with_letters < 0.9 * n:
            return False
        return self.words >= WORDS * n or len(self.values) > 0.5 * n

    def may_be_labels(self) -> bool:
        """Few different labels, each of which is there at least twice and not too long, both on average."""
        return self._repeats() and not self.unfit()

    def _repeats(self) -> bool:
        if not (self.scalars or self.is_list or self.has_spans) or 2 * len(self.labels) > self.labels.total():
            return False
        if self.is_list or self.separator:  # a text may have any number, but not all texts the same
            least, differ = 1, min(self.labels.values(), default=0) < len(self.lengths) - len(self.nulls)
        else:
            least, differ = 1 if self.has_spans else 2, True
        return differ and least <= len(self.labels) <= LABELS

    def unfit(self) -> str:
        """Why values that repeat are not taken for labels; empty if they are, or if they do not repeat."""
        if not self._repeats():
            return ""
        wrong = next((label for label in self.labels if not is_label(label)), None)
        if wrong is not None:
            return f"the label {shortened(wrong)!r} is empty, has a line break or is not UTF-8: correct it"
        if sum(len(label) * n for label, n in self.labels.items()) > LABEL_CHARACTERS * self.labels.total():
            return f"labels have at most {LABEL_CHARACTERS} characters on average, unless --label names them"
        return ""

    @cached_property
    def pieces(self) -> Counter[str]:
        """How often each word of its texts, or each item of its lists, occurs."""
        found = Counter[str]()
        for text, n in self.values.items():
            for piece in [text] if self.is_list else text.split():
                found[piece] += n
        return found

    @cached_property
    def is_iob(self) -> bool:
        """Whether its texts are tags as O and B-city, whatever is between them."""
        if not 0 < self.texts == self.scalars:
            return False
        pieces = Counter(piece for text in self.values for piece in BETWEEN.split(text) if piece)
        tags = [piece for piece in pieces if piece != OUTSIDE]
        return 0 < len(tags) < len(pieces) and pieces.total() > len(self.values) and all(map(TAG.fullmatch, tags))

    def are_tags(self, others: Iterable[Column]) -> bool:
        """Whether its texts are tags with spaces between them, as their looks or the words of another column say."""
        if not 0 < self.texts == self.scalars or not 1 < len(self.pieces) <= LABELS:
            return False
        if self.is_iob:
            return not any(map(BETWEEN.search, self.pieces))
        is_clean = all(piece.strip(AROUND) in ("", piece) for piece in self.pieces)  # "," may be a part of speech
        return is_clean and any(map(self._are_tags_of, others))

    def _are_tags_of(self, words: Column) -> bool:
        both = [(a, b) for a, b in zip(self.lengths, words.lengths, strict=True) if a and b and max(a, b) > 1]
        equal = [a for a, b in both if a == b]
        if len(equal) < PAIRED * len(both) or len(set(equal)) < 2:  # two words for each two are no evidence
            return False
        is_fewer = 2 * len(self.pieces) <= self.pieces.total() and len(self.pieces) < len(words.pieces)
        return is_fewer and (self.is_numeric or not self.are_words_of(words))  # texts have some 0 and 1 as well

    def may_be_tags(self) -> bool:
        """Lists of different labels; if one is empty, the reader says where."""
        return self.is_list and (1 < len(self.values) <= LABELS or "" in self.values)

    def is_paired(self, words: Column) -> bool:
        """Whether there is an item for each word of another column, but for damaged rows."""
        both = [(a, b) for a, b in zip(self.lengths, words.lengths, strict=True) if a is not None and b is not None]
        equal = sum(a == b for a, b in both)
        return self is not words and equal >= PAIRED * len(both) and any(a == b > 1 for a, b in both)

    def are_words_of(self, text: Column) -> bool:
        """Whether it has words of the texts, and not tags of them: most of their items are in the texts."""
        words = {word.casefold() for word in text.pieces}
        return 2 * sum(item.casefold() in words for item in self.pieces) > len(self.pieces)

    def label_type(self, text: Column) -> str:
        """What it has for a column of texts or words: "class", "multi", "token" or "spans"."""
        if self.has_choices:
            return "multi"
        if self.has_spans:
            return "spans"
        if self.is_list:
            return "token" if self.is_paired(text) else "multi"
        return "multi" if self.separator else "class"

    def may_label(self, text: Column) -> bool:
        """Whether it looks like labels of a column of texts or words."""
        kind = self.label_type(text)
        if kind == "token" or self.is_spaced:
            return kind == "token" and self.may_be_tags()
        is_for_texts = kind == "spans" or self.is_list
        return self is not text and self.may_be_labels() and not (text.is_list and is_for_texts)

    def is_advisable(self, text: Column) -> bool:
        """Whether a field for it can be used as `data.new` writes it."""
        numbers = self.label_type(text) == "token" and self.has_numbers
        return self.may_label(text) and not (numbers or self.is_iob) and all(map(is_label, self.labels))

    def is_sparse(self, gaps: set[int]) -> bool:
        """Whether more than half of the rows are gaps."""
        return 2 * len(gaps) > len(self.lengths)

    def text_gaps(self) -> set[int]:
        """The rows that have no text, or a list without words."""
        return self.missing | {n for n, length in enumerate(self.lengths) if length == 0}

    def gaps(self, text: Column) -> set[int]:
        """The rows that have no label for a column of texts or words, and are to be skipped."""
        return self.nulls if self.label_type(text) == "multi" else self.missing

    def lacks_label(self, text: Column) -> bool:
        """Whether any row that was read has such a gap."""
        return False in self.lacking if self.label_type(text) == "multi" else bool(self.lacking)

    def may_be_ids(self) -> bool:
        """Single words, all of them different."""
        return 1 < self.scalars == len(self.values) == self.words and not self.missing and self.has_name

    def describe(self) -> str:
        """A few words for a message that lists the columns."""
        if not self.has_name:
            why = "has a control character" if _has_control(self.name.strip()) else "has spaces around it"
            return f"not looked at, as its name {why if self.name.strip() else 'is empty'}: correct the header"
        if self.others:
            return "objects; flatten them (Label Studio: export JSON-MIN)"
        if not self.values or self.scalars:
            what = f"{len(self.values):,} different values, {self.length:.0f} characters on average"
        else:
            what = "lists" if self.is_list else "spans" if self.has_spans else "no texts"
        return "; ".join(filter(None, [what, self.unfit()]))


def _has_control(name: str) -> bool:
    """Whether a name has control characters or line separators, which a task file would show as something else."""
    return any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def _labels_of_spans(value: Any) -> set[str] | None:
    try:
        return labels_of(value) if isinstance(value, list | dict) else None
    except UserError:
        return None
