"""From cells to commands: how each cell is prepared, trained and scored, checked before anything runs.

What several cells share is done once: a checkpoint is converted and a data set fetched before the first cell that needs
it. Tokenized data are cached by the programs themselves, and few-shot examples depend on task and seed alone, so that
all models get the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.commands import ours, python, quoted, torchrun
from data.errors import UserError
from data.readers.custom_examples import source_of
from data.source import load_examples
from data.tasks import TASKS, get_task
from eval.study.cells import Cell
from eval.study.file import Study, StudyCell, expanded, words
from train.config import FREE_ON_RESUME

CELLS = "cells"
SHARED = ("convert", "data")  # kinds of commands whose result several cells use
# Options that say how something is computed or watched, not what: a cell may be continued with others. Of those with
# which a training may be resumed, some change what comes of it.
_RESULTS = frozenset("output checkpoint data task patience eval_every max_new_tokens fit_heads export_dtype".split())
_EVAL = "batch_tokens concurrency attempts timeout max_cost yes key_env prices cache_dir device tp"
HOW = {"train": FREE_ON_RESUME - _RESULTS, "eval": frozenset(_EVAL.split())}


_there: set[str] = set()  # data sets that were found once


@dataclass(frozen=True)
class Step:
    """A command of a study.

    Attributes:
        kind: what it does: "convert", "data", "train", "eval" or "page".
        words: its command line, to be run in the project's folder.
        makes: the file that is there when it is done; None: it must be run.
    """

    kind: str
    words: tuple[str, ...]
    makes: Path | None

    @property
    def is_done(self) -> bool:
        return self.makes is not None and self.makes.exists()

    @property
    def line(self) -> str:
        return " ".join(map(quoted, self.words))


def cell_folder(output: Path, cell: Cell) -> Path:
    return output / CELLS / cell.name


def score_folder(output: Path, cell: Cell) -> Path:
    """The folder of a cell's ``results.json`` and ``predictions.jsonl``."""
    return cell_folder(output, cell) / "score"


def train_options(study: Study, own: StudyCell, output: Path) -> dict[str, Any]:
    """The options of ``train.py`` for a cell that is fine-tuned."""
    folder = cell_folder(output, own.cell) / "train"
    fixed: dict[str, Any] = {"model": own.spec.name, "checkpoint": own.checkpoint, "task": own.task}
    fixed |= {"data": own.data} if own.data else {}
    fixed |= {"shots": own.cell.shots} if own.cell.shots else {}
    fixed |= {"seed": own.cell.seed, "optim": study.optim, "save_every": 500, "keep": 1}
    return fixed | own.train | {"resume": "auto", "output": str(folder)}


def eval_options(own: StudyCell, output: Path) -> dict[str, Any]:
    """The options of ``eval.py``. The seed of the choice of examples (``--limit``) is the same for all cells."""
    cell = own.cell
    fixed: dict[str, Any] = {"model": own.spec.name}
    if cell.tuned:
        fixed["checkpoint"] = str(cell_folder(output, cell) / "train" / "export")
    elif own.checkpoint:
        fixed["checkpoint"] = own.checkpoint
    if not cell.tuned or own.task not in TASKS:  # of a task of one's own, the file names the examples
        fixed["task"] = own.task
    fixed |= {"data": own.data} if own.data else {}
    if not cell.tuned:
        fixed |= {"shots": cell.shots, "shots_seed": cell.seed} if cell.shots else {"shots": 0}
    if own.spec.kind == "api":
        fixed["yes"] = True
    return fixed | {"seed": 0} | own.eval | {"name": cell.name, "output": str(score_folder(output, cell))}


def identity(study: Study, own: StudyCell, output: Path) -> dict[str, Any]:
    """What makes a cell this cell: all options but those in `HOW` and its own folders."""
    programs: dict[str, dict[str, Any]] = {"eval": eval_options(own, output)}
    if own.cell.tuned:
        programs["train"] = train_options(study, own, output)
    return {
        f"{program} {name}": value if isinstance(value, list) else str(value)
        for program, options in sorted(programs.items())
        for name, value in sorted(options.items())
        if name not in (*HOW[program], "output", "name")
        and not (program == "eval" and own.cell.tuned and name == "checkpoint")
    } | ({"convert": own.convert} if own.convert else {})


def steps_of(study: Study, own: StudyCell, output: Path) -> list[Step]:
    """The commands of a cell in their order, those that cells share included."""
    found = []
    if own.convert:
        folder = expanded(own.checkpoint)
        command = [python(), "-m", "checkpoints_tools.convert", own.convert, own.checkpoint]
        found.append(Step("convert", tuple(command), folder / "config.json"))
    if own.task in TASKS and not own.data and not _is_there(name := TASKS[own.task].dataset):
        found.append(Step("data", (python(), "-m", "data.download", name), None))
    start = [python()] if own.ranks == 1 else [*torchrun(), "--standalone", "--nproc_per_node", str(own.ranks)]
    if own.cell.tuned:
        options = train_options(study, own, output)
        command = [*start, ours("train.py"), *words(options)]
        found.append(Step("train", tuple(command), cell_folder(output, own.cell) / "train/export/config.json"))
    command = [*start, ours("eval.py"), *words(eval_options(own, output))]
    found.append(Step("eval", tuple(command), None))
    return found


def report_step(own: StudyCell, output: Path) -> Step:
    """The command that makes the report of a finished cell, a page for people."""
    options = {"data": own.data} if own.data else {}
    options |= {"task": own.task} if own.task not in TASKS else {}
    options |= {"train": str(cell_folder(output, own.cell) / "train")} if own.cell.tuned else {}
    command = [python(), "-m", "eval.page", str(score_folder(output, own.cell)), *words(options)]
    return Step("page", tuple(command), None)


def _is_there(dataset: str) -> bool:
    if dataset not in _there:
        try:
            load_examples(dataset, "test")
        except UserError:
            return False
        _there.add(dataset)
    return True


def check_options(study: Study, output: Path) -> None:
    """Check every cell's options as its programs will, without data or weights, and that a training exports a model.

    Raises:
        UserError: names each wrong option once, with the first cell that has it.
    """
    from eval.resolve import load_config as load_eval
    from train.resolve import load_config as load_train

    def load_training(given: list[str]) -> None:
        if not load_train(given).checkpoint.export:
            raise UserError("export = off: the study scores the model that a training exports. Remove it.")

    def load_scoring(given: list[str]) -> None:
        config = load_eval(given)
        if config.task and (own_task := get_task(config.task).custom) is not None:
            source_of(own_task, config.split)  # else it would fail after the training

    found: dict[str, str] = {}
    for own in study.cells:
        programs: list[tuple[str, Any, dict[str, Any]]] = [("eval.py", load_scoring, eval_options(own, output))]
        if own.cell.tuned:
            programs.insert(0, ("train.py", load_training, train_options(study, own, output)))
        for program, load, options in programs:
            try:
                load(words(options))
            except UserError as error:
                first, *more = str(error).splitlines()
                for line in more if first.endswith("problems:") else [first, *more]:
                    found.setdefault(f"{program}: {line.strip(' -')}", own.cell.name)
    if found:
        lines = [f"{study.path}: {text} (cell {cell})" for text, cell in found.items()]
        raise UserError("\n".join(lines))
