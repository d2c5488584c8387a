"""What is wrong with the labels of rows: one message names several rows, so that nobody corrects one in each run."""

from __future__ import annotations

from collections.abc import Iterable

from data.errors import UserError, nearest
from data.readers.label_sets import without_fraction

SHOWN = 5  # rows that a message names
MOST = 1000  # wrong rows, at which reading ends: the cause is in all of them
NUMBERS = (
    " In files of text 1 and 1.0 are two labels: write one of them everywhere, or give both the same name, such as "
    'names = { "1" = "yes", "1.0" = "yes" }.'
)


class RowError(UserError):
    """A mistake in a row, which others of the table may have as well.

    Args:
        problem: what is wrong, with or without its place.
        advice: what to do, in parts of which a message about several rows has each once.
    """

    def __init__(self, problem: str, *advice: str) -> None:
        super().__init__(problem + "".join(advice))
        self.problem, self.advice = problem, advice


class RowErrors:
    """The wrong rows of a split.

    Attributes:
        n: how many there are.
    """

    def __init__(self, split: str) -> None:
        self.split, self.n = split, 0
        self.first: list[RowError] = []

    def add(self, error: RowError) -> None:
        """Count one; a UserError if there are too many to go on."""
        self.n += 1
        self.first = [*self.first, error][:SHOWN]
        if self.n == MOST:
            raise UserError(self.problem())

    def problem(self) -> str:
        """The first ones and their number; empty if there are none."""
        if self.n < 2:
            return str(self.first[0]) if self.first else ""
        lines = [error.problem for error in self.first]
        if self.n > SHOWN:
            number = f"{self.n:,} or more" if self.n == MOST else f"{self.n:,}"
            lines.append(f"... ({number} examples of the {self.split} split have such mistakes)")
        advice = "".join(dict.fromkeys(part for error in self.first for part in error.advice))
        return "\n".join([*lines, *filter(None, [advice.strip()])])


def placed(error: UserError, place: str) -> RowError:
    """An error without its place, with it."""
    if isinstance(error, RowError):
        return RowError(f"{place} {error.problem}", *error.advice)
    return RowError(f"{place} {error}")


def unknown(problem: str, name: str, known: Iterable[str], advice: str = "") -> RowError:
    """A label or code that is not in the field's set."""
    known = list(known)
    hint, listed, others = nearest(name, known).partition(" Known: ")
    is_number = without_fraction(name) in map(without_fraction, known)
    return RowError(f"{problem}{hint}", f"{listed}{others}", advice, NUMBERS if is_number else "")
