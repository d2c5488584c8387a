"""The fixed tokens around the document of a model with heads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Frame:
    """What stands before and after a document, or between its two readings: ``before TEXT [between TEXT] after``.

    Attributes:
        before, after: token ids.
        between: token ids between a document and its repetition; None: it is read once.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...] | None = None

    @property
    def readings(self) -> int:
        """How often a document is read."""
        return 1 if self.between is None else 2

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tokens before, between and after the readings."""
        return len(self.before), len(self.between or ()), len(self.after)

    @property
    def size(self) -> int:
        """Tokens beside the document."""
        return sum(self.sizes)

    @property
    def least(self) -> int:
        """Tokens of the shortest sample that has a document."""
        return self.size + self.readings

    def around(self, document: list[int]) -> list[int]:
        """The token ids of a sample."""
        again = [] if self.between is None else [*self.between, *document]
        return [*self.before, *document, *again, *self.after]

    def start(self, n: int) -> int:
        """The index in a sample at which the last reading of a document of n tokens begins."""
        return len(self.before) + (0 if self.between is None else n + len(self.between))
