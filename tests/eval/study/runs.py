"""Small made-up results of cells, written as `eval.py` writes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from data.example import Example
from data.tasks import TASKS, Task, TokenField
from eval.results import Prediction, Results, count_oddities, field_kinds, measure, other_labels, write_run
from eval.study.cells import Cell, Outcome

GROUPS, INTENTS, TYPES = ("rec.autos", "sci.med", "sci.space"), ("alarm_set", "play_music"), ("Other", "date", "time")
N = 40


def examples(dataset: str, n: int = N, start: int = 0) -> list[Example]:
    """The same labels for the same number, whatever the range."""
    found = []
    for i in range(start, start + n):
        rng = random.Random(i)
        if dataset == "20ng":
            group = rng.choice(GROUPS)
            found.append(Example(f"20ng/test/{i}", "a b", {"group": group, "root": group.split(".")[0]}))
        else:
            types = tuple(rng.choice(TYPES) for _ in range(4))
            bio = tuple("O" if kind == "Other" else f"B-{kind}" for kind in types)
            labels = {"intent": rng.choice(INTENTS), "slots": types}
            found.append(Example(f"massive/test/{i}", "a b c d", labels, {"slots": bio}))
    return found


def answer(example: Example, task: Task, rng: random.Random, good: float) -> dict[str, Any]:
    """Labels of which a part ``good`` is right and a few are unparsed."""

    def change(value: Any) -> Any:
        if rng.random() < 0.05:
            return None
        if isinstance(value, str):
            return value if rng.random() < good else "wrong"
        return tuple(kind if rng.random() < good else "time" for kind in value)

    return {field.name: change(example.labels[field.name]) for field in task.fields}


def write_cell(
    folder: Path,
    cell: Cell,
    good: float = 0.8,
    task: Task | None = None,
    scored: list[Example] | None = None,
    lenient: bool = False,
    seconds: float = 0.5,
    **settings: Any,
) -> Outcome:
    """Write the result of a cell; its answers depend on the cell's name only."""
    task = task or TASKS[cell.task]
    scored = examples(task.dataset) if scored is None else scored
    rng = random.Random(cell.name)
    names = [field.name for field in task.fields]
    predictions = []
    for i, example in enumerate(scored):
        parsed = answer(example, task, rng, good)
        predictions.append(
            Prediction(
                example.id,
                {name: example.labels[name] for name in names},
                raw="raw",
                parsed=parsed,
                unparsed=tuple(name for name, value in parsed.items() if value is None),
                stopped=i > 2,
                truncated=i < 2,
                n_prompt_tokens=100,
                n_new_tokens=5,
                gold_bio={name: tags for name, tags in example.bio.items() if name in names},
                lenient={k: example.labels[k] for k, v in parsed.items() if v is None} if lenient else None,
            )
        )
    own = [p.example for p in predictions]
    results = Results(
        cell.name, task.name, field_kinds(task), "made up", "test", measure(task, own, predictions),
        others=other_labels(task),
        model=cell.model, shots=cell.shots, counts=count_oddities(predictions), settings={"device": "cpu", **settings},
        cost={"seconds": seconds * len(own), "seconds_per_example": seconds, "prompt_tokens": 100.0, "new_tokens": 5.0},
    )  # fmt: skip
    write_run(folder / cell.name, results, predictions)
    return Outcome(cell, "done", folder / cell.name)


def unfinished(folder: Path, cell: Cell, state: Any, why: str = "") -> Outcome:
    return Outcome(cell, state, folder / cell.name, why)


def word_task(other: str) -> Task:
    """A user's task whose words without an entity are called ``other``."""
    return Task("mine", "custom", (TokenField("entities", ("date", "time"), other),))
