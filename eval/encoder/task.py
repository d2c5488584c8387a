"""What an encoder's checkpoint can be scored on: its heads and their labels decide, there is no prompt."""

from __future__ import annotations

from pathlib import Path

from checkpoints_tools.encoder_config import heads_for
from data.encoder.samples import output_labels, tag_set
from data.errors import UserError
from data.tasks import TASKS, Task, TokenField, get_task
from model.encoder import EncoderConfig, Head

SHOWN = 5  # labels named in an error message


def encoder_task(name: str, config: EncoderConfig, labels: dict[str, list[str]], path: Path) -> Task:
    """The task that a checkpoint's heads were fine-tuned for.

    Args:
        name: a task's name or TOML file; empty: the built-in task whose heads these are.
        config: the checkpoint's own numbers and heads.
        labels: by head, the label of each of its outputs; a head that is missing here is not compared.
        path: the checkpoint, for messages.

    Raises:
        UserError: the checkpoint has no heads, they are not the task's, or their labels are others.
    """
    if not config.heads:
        raise UserError(
            f"{path} is an encoder without heads for any task: there is nothing yet that could be scored. Fine-tune it "
            "first (train.py --task ...), then score the run's export."
        )
    if not name:
        fits = [task for task in TASKS.values() if labels and output_labels(task) == labels]
        if not fits:
            raise UserError(
                f"no --task given, and no task that is built in has the heads of {path}: {_names(config.heads)}. "
                "For a task of your own give its TOML file."
            )
        return fits[0]
    task = get_task(name)
    if set(heads_for(task)) != set(config.heads):
        raise UserError(
            f"--task {name} needs the heads {_names(heads_for(task))}; {path} was fine-tuned with "
            f"{_names(config.heads)}. Score it on its own task, or fine-tune it on this one."
        )
    for field, own in output_labels(task).items():
        known = labels.get(field, own)
        if known != own:
            differ = [label for label in dict.fromkeys([*known, *own]) if (label in own) != (label in known)]
            what = f"only one of the two has {', '.join(differ[:SHOWN])}" if differ else "they are in another order"
            raise UserError(
                f"{path}: the labels of {field} are not those of task {task.name}: {what}. The head's outputs are "
                "numbered by them: fine-tune again, or score with the task as it was."
            )
    return task


def from_label_sets(heads: tuple[Head, ...], labels: dict[str, list[str]]) -> dict[str, list[str]]:
    """`output_labels` from a training checkpoint's label sets, in which token fields have types, not tags."""
    return {
        head.name: list(tag_set(TokenField(head.name, tuple(labels[head.name])))) if head.kind == "token"
        else labels[head.name]
        for head in heads
    }  # fmt: skip


def _names(heads: tuple[Head, ...]) -> str:
    return ", ".join(f"{head.name} ({head.n_labels} {'tags' if head.kind == 'token' else 'labels'})" for head in heads)
