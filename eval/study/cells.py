"""The cells of a study: what is scored, and how far each of them is.

A cell is one model on one task: with so many few-shot examples, fine-tuned or not, with one seed. A row of the paper's
Table 3 has six of them: 20ng_20, 20ng_7 and 20ng_joint, massive_intent, massive_slots and massive_joint. A joint task
fills two columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

# done: it has a result. failed: a command of it ended with an error. running: a command of it was started and has not
# ended. open: not run yet, or interrupted.
State = Literal["done", "failed", "running", "open"]


@dataclass(frozen=True, order=True)
class Cell:
    """One model on one task.

    Attributes:
        model: value of ``--model``, or the study's own name for a model.
        task: name of a task, or of the study's own one.
        shots: few-shot examples in the prompt.
        tuned: whether it was fine-tuned on the task first.
        seed: of the training, of the few-shot examples, and of the choice of examples.
        variant: name of a set of options that differ from the others' (such as ``spans``); empty for none.
    """

    model: str
    task: str
    shots: int
    tuned: bool
    seed: int = 0
    variant: str = ""

    @property
    def name(self) -> str:
        """Its name in lists and messages, and that of its folder."""
        parts = [self.model, self.task, f"{self.shots}shot", "tuned" if self.tuned else "untuned", f"seed{self.seed}"]
        return "-".join([*parts, *([self.variant] if self.variant else [])])

    @property
    def row(self) -> Cell:
        """What cells of one row of the table have in common: all but the task and the seed."""
        return replace(self, task="", seed=0)


@dataclass(frozen=True)
class Outcome:
    """How far a cell is.

    Attributes:
        folder: of ``results.json`` and ``predictions.jsonl`` once it is done.
        why: of a failed cell, what went wrong, in one line; else empty.
        jobs: cells that ran at the same time, at most.
    """

    cell: Cell
    state: State
    folder: Path
    why: str = ""
    jobs: int = 1
