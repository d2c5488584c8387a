"""The texts of the scored examples, which predictions do not have: read again from the data, and matched by id.

They are shown only if the data is what was scored: it must have every example, with the gold labels of the run. Two
joined runs have the same texts, so the data of one task shows them, with the gold labels of its fields.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from data.errors import UserError
from data.example import Example
from data.source import load_examples, splits_of
from data.tasks import TASKS, Task, get_task
from eval.page.html import TEXT_SHOWN, Html, foreign, note, tag
from eval.provenance import place_of
from eval.results import Prediction, Results

log = logging.getLogger("eval")


@dataclass
class Texts:
    """The examples that were scored.

    Attributes:
        by_id: the examples of the split, by their ids in the run; empty if texts are not shown.
        why_not: the reason for that; else empty.
        tasks: those of the run, whose label sets and names of no type are used; empty if they are not known.
        fields: those whose gold labels the data must have; None: all of the run.
    """

    by_id: dict[str, Example] = field(default_factory=dict)
    why_not: str = ""
    tasks: list[Task] = field(default_factory=list)
    fields: frozenset[str] | None = None

    def of(self, prediction_id: str) -> Example | None:
        """The example of a prediction; None if texts are not shown."""
        return self.by_id.get(prediction_id)

    def check(self, prediction: Prediction) -> Example | None:
        """The same; if the data is not what was scored, texts are not shown from here on."""
        if self.why_not:
            return None
        example = self.by_id.get(prediction.id)
        if example is None:
            self._drop(f"the data has no example {prediction.id!r}")
        elif any(example.labels.get(name) != gold for name, gold in prediction.gold.items()
                 if self.fields is None or name in self.fields):  # fmt: skip
            self._drop(f"example {prediction.id!r} has other gold labels in the data than in the run")
        else:
            return example
        return None

    def quote(self, prediction_id: str, limit: int = TEXT_SHOWN) -> Html:
        """The text of an example with its id, or the id alone."""
        example, name = self.of(prediction_id), foreign(prediction_id, 80, class_="quiet")
        if example is None:
            return name
        return tag("blockquote", foreign(" ".join(example.text[: 4 * limit].split()), limit), " ", name)

    def remark(self) -> Html:
        """What a page says about the texts that it does not show."""
        return note("Texts are not shown: ", foreign(self.why_not, 1000)) if self.why_not else Html()

    def _drop(self, why: str) -> None:
        own = [task.name for task in self.tasks if task.custom is not None]
        advice = (
            f"The files of task {own[0]} are not as they were scored."
            if own
            else "Give --data the data that was scored."
        )
        self.why_not = f"{why}. {advice}"
        self.by_id.clear()
        log.warning("note: texts are not shown: %s", self.why_not)


def open_texts(results: Results, data: str | None = None, task: str | None = None) -> Texts:
    """Load the examples of a run.

    Args:
        data: as of `load_examples`; None: where the run's name for its data leads.
        task: the file of a user's own task, of two joined runs that of either; None: a built-in one.

    Raises:
        UserError: ``data`` or ``task`` is given and cannot be read, or is of another task.
    """
    try:
        tasks = _tasks(results, task)
    except UserError as error:
        if task is not None or data is not None:
            raise
        return _without(str(error))
    split = results.split.removesuffix(", held out")
    try:
        if split not in splits_of(tasks[0]):
            raise UserError(f"the data of {tasks[0].name} has no split {split!r}.")
        is_own = tasks[0].custom is not None
        place = data if data is not None or is_own or results.data != "sample" else "sample"
        examples = load_examples(tasks[0], split, place)
    except UserError as error:
        if data is not None:
            raise
        return _without(str(error), tasks)
    names = _names(results)
    by_id = {}
    for example in examples:
        place = place_of(example.id, tasks[0].name)
        by_id[example.id if place == example.id else f"{names[0]}/{place}"] = example  # joined runs: the first one's
    fields = frozenset(own.name for task in tasks for own in task.fields) if len(names) > 1 else None
    return Texts(by_id, "", tasks, fields)


def _without(why: str, tasks: list[Task] | None = None) -> Texts:
    log.warning("note: texts are not shown: %s", why)
    return Texts(why_not=why, tasks=tasks or [])


def _names(results: Results) -> list[str]:
    """The name of the run's task; of two runs that were joined, both."""
    return results.task.split("+")


def _tasks(results: Results, given: str | None) -> list[Task]:
    """The run's task; of two runs that were joined, both, or the given one."""
    names = _names(results)
    if given is not None:
        own = get_task(given)
        if own.name not in names:
            joined = f" It is two runs that were joined: give the task of one, {' or '.join(names)}."
            raise UserError(
                f"--task {given} is task {own.name!r}, and the run is of {results.task!r}."
                f"{joined if len(names) > 1 else ''}"
            )
        return [own]
    if unknown := [name for name in names if name not in TASKS]:
        raise UserError(f"{unknown[0]!r} is a task of your own. Give --task its .toml file.")
    return [get_task(name) for name in names]
