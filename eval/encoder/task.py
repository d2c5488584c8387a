"""Find the task that an encoder's checkpoint can be scored on, from its heads and their labels."""

from __future__ import annotations

from pathlib import Path

from checkpoints_tools.heads import GIVES, UNNAMED, heads_for, how_labels_differ
from data.encoder.samples import output_labels, tag_set
from data.errors import UserError
from data.task_file import TASK_FILE, read_task
from data.tasks import TASKS, Task, TokenField, get_task
from model.encoder import Head
from model.llama_heads import HeadedConfig


def encoder_task(
    name: str, config: HeadedConfig, labels: dict[str, list[str]], path: Path, labelled: bool = True
) -> Task:
    """The task that a checkpoint's heads were fine-tuned for.

    Args:
        name: a task's name or TOML file; empty: the task that is stored with the checkpoint, or the built-in task with
            these heads.
        config: the checkpoint's config, with its heads.
        labels: by head, the label of each output; a head that is missing here is not compared.
        path: the checkpoint.
        labelled: the task's labelled examples are needed. Otherwise a user's own task is read from the checkpoint.

    Raises:
        UserError: the checkpoint has no heads, or their names, sizes or labels are not those of the task.
    """
    if not config.heads:
        raise UserError(
            f"{path} is a model without heads for any task, so it cannot be scored. Fine-tune it "
            "first (train.py --task ...), then score the run's export."
        )
    if is_unnamed(config):
        return _task_of_unnamed(name, config, labels, path)
    stored = read_task(path)
    if not name and stored is not None:
        if labelled and stored.name not in TASKS:
            raise needs_toml(stored.name, stored)
        return _fitting(stored, f"the task in {path / TASK_FILE}", config, labels, path)
    if not name:
        fits = [task for task in TASKS.values() if labels and output_labels(task) == labels]
        if not fits:
            raise UserError(
                f"no --task given, and no built-in task has the heads of {path}: {_names(config.heads)}. "
                "For your own task, give its TOML file."
            )
        return fits[0]
    return _fitting(get_task(name), f"--task {name}", config, labels, path)


def is_unnamed(config: HeadedConfig) -> bool:
    """Whether the only head names no field, as in what transformers saves: its labels say what it is for."""
    return [head.name for head in config.heads] == [UNNAMED]


def _task_of_unnamed(name: str, config: HeadedConfig, labels: dict[str, list[str]], path: Path) -> Task:
    """The task whose one field, whatever its name, has the labels of the head in some order."""
    source, head = f"{path / 'config.json'}: id2label", config.heads[0]
    if UNNAMED not in labels:
        raise UserError(f"{source} is missing, so what the head's {head.n_labels} outputs mean is not known. Add it.")
    known = labels[UNNAMED]
    if not name:
        fits = [
            task for task in TASKS.values() if [sorted(own) for own in output_labels(task).values()] == [sorted(known)]
        ]
        if not fits:
            raise UserError(f"no --task given, and no built-in task has the labels of {source}. Give your TOML file.")
        return fits[0]
    task = get_task(name)
    own = heads_for(task)
    if [one.kind for one in own] != [head.kind]:
        raise UserError(
            f"--task {name} needs the heads {_names(own)}; {path} has one head, which gives {GIVES[head.kind]}. "
            "Score it on a task with one such field."
        )
    outputs = output_labels(task)[own[0].name]
    if sorted(outputs) != sorted(known):
        differ = [label for label in dict.fromkeys([*known, *outputs]) if (label in outputs) != (label in known)]
        raise UserError(
            f"{source} has not the labels of field {own[0].name} of task {task.name}: only one of the two has "
            f"{', '.join(differ[:5]) or 'a label twice'}. Score it on its own task; if id2label only numbers the "
            "labels, write their names into it."
        )
    return task


def output_order(task: Task, config: HeadedConfig, labels: dict[str, list[str]]) -> dict[str, list[int]]:
    """By field, which output of its head is which of the task's labels; only where the two orders may differ."""
    if not is_unnamed(config):
        return {}
    return {field: [labels[UNNAMED].index(label) for label in own] for field, own in output_labels(task).items()}


def needs_toml(name: str, stored: Task | None) -> UserError:
    """The error for a task of the user's own without its TOML file."""
    hint = " It names the labelled examples; predict.py needs no TOML file." if stored is not None else ""
    return UserError(
        f"the checkpoint was fine-tuned on a task of your own, '{name}': give its TOML file with --task.{hint}"
    )


def _fitting(task: Task, source: str, config: HeadedConfig, labels: dict[str, list[str]], path: Path) -> Task:
    """The task, if its heads and their labels are those of the checkpoint."""
    if set(heads_for(task)) != set(config.heads):
        raise UserError(
            f"{source} needs the heads {_names(heads_for(task))}; {path} was fine-tuned with "
            f"{_names(config.heads)}. Score it on its own task, or fine-tune it on this one."
        )
    for field, own in output_labels(task).items():
        if what := how_labels_differ(labels.get(field, own), own):
            raise UserError(
                f"{path}: the labels of {field} are not those of task {task.name}: {what}. The labels number the "
                "head's outputs: fine-tune again, or score with the original task."
            )
    return task


def from_label_sets(heads: tuple[Head, ...], labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """`output_labels` from a training checkpoint's label sets, which have types instead of tags for token fields."""
    return {
        head.name: list(tag_set(TokenField(head.name, tuple(labels[head.name])))) if head.kind == "token"
        else labels[head.name]
        for head in heads
    }  # fmt: skip


def _names(heads: tuple[Head, ...]) -> str:
    what = {"class": "labels", "multi": "labels, any number of them", "token": "tags"}
    return ", ".join(f"{head.name} ({head.n_labels} {what[head.kind]})" for head in heads)
