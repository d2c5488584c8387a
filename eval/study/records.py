"""What a study remembers: of the study which file it has, and of each cell how far it is.

    OUTPUT/study.json             the study's name
    OUTPUT/cells/CELL/cell.json   the cell's options, state, seconds, and hash of its result (see `Record`)
    OUTPUT/cells/CELL/log.txt     what its commands printed
    OUTPUT/cells/CELL/train/      the run folder of train.py
    OUTPUT/cells/CELL/score/      results.json and predictions.jsonl of eval.py

A cell is done when its record says so and its result is the one that the study saw. So a killed study never takes half
a result for a whole one, and a result that was changed by hand is noticed.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from checkpoints_tools.formats import EXPORTS
from data.commands import ROOT
from data.errors import UserError, shortened
from data.files.documents import read_json
from data.files.durable import unfinished, write_text
from data.json_text import to_json
from eval.kept_lines import sha256_of, writable
from eval.results import PREDICTIONS, RESULTS, read_results
from eval.study.cells import Cell, Outcome
from eval.study.commands import left_behind
from eval.study.file import Study, expanded
from eval.study.inputs import WEIGHTS
from eval.study.plan import CELLS, cell_folder, score_folder
from train.run_lock import is_of_lock, process_start

STUDY, RECORD, LOG = "study.json", "cell.json", "log.txt"
AGAIN = "--retry runs the cell again, its training too if its model was removed."
PACKAGES = ("model", "data", "train", "eval", "checkpoints_tools")


class Record(msgspec.Struct):
    """``cell.json``.

    Attributes:
        options: of its programs, as `eval.study.plan.identity` gives them.
        code: hash of the code that finished it (`code_hash`).
        seconds: by kind of command, over all starts.
        ranks: processes on which it ran.
        jobs: cells that ran at the same time, at most.
        result: SHA-256 of its ``results.json``; empty until it is done.
        examples: hash of what was scored (`eval.results.Results.examples`).
        inputs: hashes of what its training, or else its scoring, began with (`eval.study.inputs.inputs_of`).
        why: of a failed cell, what went wrong.
        pid, started: the command that is running, as `train.run_lock` tells processes apart.
    """

    state: Literal["running", "done", "failed", "open"]
    options: dict[str, Any]
    code: str = ""
    seconds: dict[str, float] = {}
    ranks: int = 1
    jobs: int = 1
    result: str = ""
    examples: str = ""
    inputs: dict[str, str] = {}
    why: str = ""
    pid: int = 0
    started: int = 0


class _Study(msgspec.Struct):
    name: str


@functools.cache
def code_hash() -> str:
    """A hash of the code that trains and scores, in twelve digits."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def check_claim(output: Path, name: str, cells: list[Cell]) -> None:
    """Check that a folder, if it is one of a study, is one of this study.

    Raises:
        UserError: it has another name, or cells, but none of these.
    """
    if not (output / STUDY).is_file():
        return
    found: _Study = read_json(output / STUDY, _Study)
    if found.name != name:
        raise UserError(
            f"--output {output} has the study {found.name!r}, and this one is {name!r}. Give another --output."
        )
    others = forgotten(output, cells)
    if others and not any(cell_folder(output, cell).is_dir() for cell in cells):
        raise UserError(
            f"--output {output} has another study of the name {name!r}: its cells, such as {others[0]}, are none of "
            "this file's. Give another --output."
        )


def claim(output: Path, name: str, cells: list[Cell]) -> None:
    """Write the study's name into its folder, or check that the folder is this study's (`check_claim`).

    Raises:
        UserError: the folder has another study, or files that are of no study.
    """
    file = output / STUDY
    if file.is_file():
        check_claim(output, name, cells)
        return
    found = [path for path in output.iterdir() if not is_of_lock(path)] if output.is_dir() else []
    left = [path for path in found if unfinished(path) == STUDY]
    others = [path.name for path in found if path not in left]
    if others:
        raise UserError(
            f"--output {output} has files of no study ({', '.join(sorted(others)[:5])}). Give a new folder, or an "
            "empty one."
        )
    with writable(f"--output {output}"):
        output.mkdir(parents=True, exist_ok=True)
        for path in left:
            path.unlink()
        write_text(file, to_json({"name": name}, indent=2) + "\n")


def read_record(output: Path, cell: Cell) -> Record | None:
    """A cell's record, or None if it was never started.

    Raises:
        UserError: damaged.
    """
    path = cell_folder(output, cell) / RECORD
    return read_json(path, Record) if path.is_file() else None


def write_record(output: Path, cell: Cell, record: Record) -> None:
    """Write a cell's record.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    folder = cell_folder(output, cell)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RECORD, to_json(msgspec.to_builtins(record), indent=2) + "\n")


def outcome(output: Path, cell: Cell) -> Outcome:
    """How far a cell is. A result that is not the one that the study saw is a failure; nothing is raised."""
    folder = score_folder(output, cell)
    try:
        record = read_record(output, cell)
        if record is None:
            return Outcome(cell, "open", folder)
        if record.state == "done":
            _check_result(folder, record)
        if record.state == "running" and not running_process(output, cell, record):  # the machine ended, say
            return Outcome(cell, "open", folder)
        return Outcome(cell, record.state, folder, record.why, record.jobs)
    except UserError as error:
        return Outcome(cell, "failed", folder, f"{str(error).rstrip('.')}. {AGAIN}")


def running_process(output: Path, cell: Cell, record: Record) -> int:
    """A process of the command that a cell's record says is running; 0 if all have ended."""
    if record.state != "running":
        return 0
    return record.pid if process_start(record.pid) == record.started else left_behind(cell_folder(output, cell))


def _check_result(folder: Path, record: Record) -> None:
    for file in (folder / RESULTS, folder / PREDICTIONS):
        if not file.is_file():
            raise UserError(f"{file} is missing, and the cell was done.")
    if sha256_of(folder / RESULTS) != record.result:
        raise UserError(f"{folder / RESULTS} was changed after the study wrote it.")
    read_results(folder)


def readable_record(output: Path, cell: Cell) -> Record | None:
    """A cell's record, or None if there is none, or a damaged one, with which the cell has failed (`outcome`)."""
    try:
        return read_record(output, cell)
    except UserError:
        return None


def changed_options(output: Path, cell: Cell, now: dict[str, Any]) -> list[str]:
    """What a cell that was started before has other options in, in words; empty if nothing is different.

    A cell that failed or was interrupted may have other options for what it has nothing of yet.
    """
    record = readable_record(output, cell)
    if record is None:
        return []
    before, unfinished = record.options, record.state in ("open", "failed")
    there = _what_is_there(cell_folder(output, cell), now)
    return [
        f"{name} ({_shown(before.get(name))} there, {_shown(now.get(name))} now)"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name) and (not unfinished or name.split()[0] in there)
    ]


def _what_is_there(folder: Path, options: dict[str, Any]) -> set[str]:
    """The programs, as options name them, of which there is something that other options would not give."""
    checkpoint = options.get("train checkpoint", options.get("eval checkpoint", ""))
    made = {
        "convert": [expanded(checkpoint)] if checkpoint else [],
        "train": [folder / "train" / name for name in ("checkpoints", *EXPORTS)],
        "eval": [folder / "score"],
    }
    return {name for name, paths in made.items() if any(path.is_dir() and any(path.iterdir()) for path in paths)}


def _shown(value: Any) -> str:
    return "none" if value is None else shortened(value if isinstance(value, str) else to_json(value))


def doubts(study: Study, output: Path, outcomes: Sequence[Outcome]) -> list[str]:
    """What may keep results of the finished cells from being compared: other code, data, tasks or weights.

    Args:
        outcomes: of the study's cells, in their order.
    """
    others, examples = set[str](), defaultdict[tuple[str, str], set[str]](set)
    inputs = defaultdict[tuple[str, str], dict[str, str]](dict)  # by group and what it is: a cell's name by hash
    for own, reached in zip(study.cells, outcomes, strict=True):
        record = readable_record(output, own.cell) if reached.state == "done" else None
        if record is None:
            continue
        examples[own.cell.task, str(own.eval.get("limit", ""))].add(record.examples)
        for what, digest in record.inputs.items():
            inputs[own.cell.model if what == WEIGHTS else own.cell.task, what].setdefault(digest, own.cell.name)
        if record.code != code_hash():
            others.add(own.cell.name)
    found = []
    if others:
        found.append(f"{len(others)} cells were finished by other code than this: {', '.join(sorted(others)[:5])}")
    for (task, limit), hashes in examples.items():
        if len(hashes) > 1:
            some = f"{limit} examples" if limit else "all examples"
            found.append(f"cells of {task} were scored on different data, though all have {some}; was it changed?")
    for (group, what), cells in inputs.items():
        if len(cells) > 1:
            some = " and ".join(list(cells.values())[:2])
            found.append(
                f"cells of {group} had different {what}, such as {some}; remove the folders of those to be run again"
            )
    return found


def forgotten(output: Path, cells: list[Cell]) -> list[str]:
    """Names of cells in the folder that the study file no longer has."""
    names = {cell.name for cell in cells}
    folder = output / CELLS
    return sorted(path.name for path in folder.iterdir() if path.name not in names) if folder.is_dir() else []
