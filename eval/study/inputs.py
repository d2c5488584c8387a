"""What a cell is made from, as hashes: files with the same path may have another content at the next start."""

from __future__ import annotations

from pathlib import Path

from checkpoints_tools.file_hashes import hash_files
from data.errors import UserError
from data.readers.custom_examples import source_of
from data.task_file import task_hash
from data.tasks import get_task
from eval.study.file import StudyCell, expanded
from eval.weights import hash_weights

TASK, TRAINING, WEIGHTS = "labels or instructions", "training data", "weights to begin with"


def inputs_of(own: StudyCell) -> dict[str, str]:
    """Hashes of a cell's task, of the files with its training or few-shot examples, and of its checkpoint's weights.

    Without what cannot be read: the cell's command says what is wrong with it. Data sets of the hub are not read.
    """
    try:
        task = get_task(own.task)
        found = {TASK: task_hash(task)}
        if own.cell.tuned or own.cell.shots:
            files = [expanded(own.data)] if own.data else []
            if task.custom is not None:
                sources = task.custom.files[source_of(task.custom, "train")[0]]
                files = [source for source in sources if isinstance(source, Path)]
            if files := [file for path in files for file in (path.rglob("*") if path.is_dir() else [path])]:
                found[TRAINING] = hash_files(files)
        if own.checkpoint and (folder := expanded(own.checkpoint)).is_dir():
            found[WEIGHTS] = hash_weights(folder)
    except (OSError, UserError):
        return {}
    return found
