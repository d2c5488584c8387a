"""Table 3 of the paper: the figures with which a study's are compared.

Accuracy of 20 Newsgroups and of intents, entity F1 of slots, in percent as printed. A "dual" figure is of a model for
one task, a "consolidated" one of a model that answers both tasks in one call.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperColumn:
    """A column of Table 3.

    Attributes:
        dataset: as the table names it.
        consolidated: whether the figures are of the model for both tasks.
        heading: as printed.
        task, field: our names.
    """

    dataset: str
    consolidated: bool
    heading: str
    task: str
    field: str

    @property
    def group(self) -> str:
        """The heading above the heading."""
        return f"{self.dataset} {'consolidated' if self.consolidated else 'dual'}"


COLUMNS = (
    PaperColumn("20NG", False, "20-class", "20ng_20", "group"),
    PaperColumn("20NG", False, "7-class", "20ng_7", "root"),
    PaperColumn("20NG", True, "20-class", "20ng_joint", "group"),
    PaperColumn("20NG", True, "7-class", "20ng_joint", "root"),
    PaperColumn("MASSIVE", False, "Intent", "massive_intent", "intent"),
    PaperColumn("MASSIVE", False, "Slot Filling", "massive_slots", "slots"),
    PaperColumn("MASSIVE", True, "Intent", "massive_joint", "intent"),
    PaperColumn("MASSIVE", True, "Slot Filling", "massive_joint", "slots"),
)


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 3.

    Attributes:
        label: as printed.
        model: our name.
        figures: in percent, one for each of `COLUMNS`.
    """

    label: str
    model: str
    shots: int
    tuned: bool
    figures: tuple[float, ...]


def _encoder(label: str, model: str, *figures: float) -> PaperRow:
    return PaperRow(label, model, 0, True, figures)


def _decoder(name: str, model: str, shots: int, tuned: bool, *figures: float) -> PaperRow:
    label = f"{name} {'Five' if shots else 'Zero'}-shot {'w/' if tuned else 'w/o'} FT"
    return PaperRow(label, model, shots, tuned, figures)


# fmt: off
ROWS = (
    _encoder("RoBERTa-base", "roberta_base", 86.7, 93.6, 86.5, 93.6, 88.9, 83.4, 89.1, 83.6),
    _encoder("RoBERTa-large", "roberta_large", 88.1, 94.2, 87.8, 94.6, 90.1, 85.0, 90.0, 84.7),
    _decoder("Llama2-7B", "llama2_7b", 5, False, 0, 0, 0, 0, 35.8, 4.6, 7.2, 7.9),
    _decoder("Llama2-7B", "llama2_7b", 0, False, 25.1, 23.8, 11.4, 21.8, 30.3, 0, 0, 0),
    _decoder("Llama2-70B", "llama2_70b", 5, False, 0, 0, 0, 0, 70.8, 9.5, 62.7, 5.1),
    _decoder("Llama2-70B", "llama2_70b", 0, False, 64.1, 44.9, 48.6, 62.7, 60.8, 0, 0, 0),
    _decoder("Llama2-7B", "llama2_7b", 5, True, 88.2, 94.6, 88.1, 93.9, 90.3, 84.0, 89.8, 84.1),
    _decoder("Llama2-7B", "llama2_7b", 0, True, 89.5, 95.2, 89.2, 94.9, 90.4, 82.5, 89.6, 83.4),
    _decoder("Llama2-70B", "llama2_70b", 5, True, 88.4, 95.3, 88.7, 94.6, 90.0, 83.9, 90.0, 84.3),
    _decoder("Llama2-70B", "llama2_70b", 0, True, 91.2, 96.3, 91.5, 96.6, 90.2, 83.1, 90.4, 83.6),
    _decoder("Llama3-8B", "llama3_8b", 5, False, 0, 0, 0, 0, 69.7, 2.0, 38.9, 5.9),
    _decoder("Llama3-8B", "llama3_8b", 0, False, 52.2, 41.2, 34.1, 51.6, 61.7, 1.6, 0, 0),
    _decoder("Llama3-70B", "llama3_70b", 5, False, 0, 0, 0, 0, 80.6, 20.6, 70.7, 16.4),
    _decoder("Llama3-70B", "llama3_70b", 0, False, 69.5, 67, 56.7, 78, 78.9, 12.2, 0, 0),
    _decoder("Llama3-8B", "llama3_8b", 5, True, 91.1, 95.9, 91, 96.1, 90.6, 86.2, 89.7, 84.5),
    _decoder("Llama3-8B", "llama3_8b", 0, True, 91.6, 96.3, 90.8, 96.2, 90.6, 85.6, 90.0, 85.5),
    _decoder("Llama3-70B", "llama3_70b", 5, True, 91.9, 96.5, 92.1, 96.8, 90.8, 86.0, 90.2, 86.8),
    _decoder("Llama3-70B", "llama3_70b", 0, True, 91.5, 96.1, 91.2, 96.2, 90.8, 85.8, 89.8, 86.3),
    _decoder("GPT3.5", "gpt-3.5-turbo", 5, False, 0, 0, 0, 0, 64.0, 2.0, 73.6, 21.0),
    _decoder("GPT3.5", "gpt-3.5-turbo", 0, False, 72.9, 55.1, 62.3, 69.6, 60.7, 1.8, 69.6, 14.2),
    _decoder("GPT4", "gpt-4", 5, False, 0, 0, 0, 0, 83.3, 37.1, 79.9, 28.1),
    _decoder("GPT4", "gpt-4", 0, False, 80.4, 74.5, 80.6, 88.5, 81.9, 13.6, 76.9, 21.6),
    _decoder("GPT4o", "gpt-4o", 5, False, 0, 0, 0, 0, 82.0, 18.9, 81.0, 39.4),
    _decoder("GPT4o", "gpt-4o", 0, False, 77.4, 73.3, 73.6, 84.1, 62.7, 14.8, 0, 0),
)
# fmt: on

_ROWS = {(row.model, row.shots, row.tuned): row for row in ROWS}
_COLUMNS = {(column.task, column.field): i for i, column in enumerate(COLUMNS)}


def paper_row(model: str, shots: int, tuned: bool) -> PaperRow | None:
    """The row of Table 3 of a model by our name; None if it has no such row."""
    return _ROWS.get((model, shots, tuned))


def paper_column(task: str, field: str) -> PaperColumn | None:
    """The column of Table 3 of a task's field; None if it has no such column."""
    index = _COLUMNS.get((task, field))
    return None if index is None else COLUMNS[index]


def paper_figure(model: str, shots: int, tuned: bool, task: str, field: str) -> float | None:
    """The paper's figure in percent; None if Table 3 has none."""
    row, index = paper_row(model, shots, tuned), _COLUMNS.get((task, field))
    return None if row is None or index is None else row.figures[index]


def single_task(task: str, field: str) -> str | None:
    """The task that asks for one field of a consolidated task by itself; None if ``task`` is not consolidated."""
    column = paper_column(task, field)
    if column is None or not column.consolidated:
        return None
    (found,) = (c.task for c in COLUMNS if not c.consolidated and (c.dataset, c.field) == (column.dataset, field))
    return found
