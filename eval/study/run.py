"""Run a study: cell after cell, or several at the same time, and remember what came of each.

A study may be ended at any moment and started again with the same command. Then finished cells are not repeated, an
interrupted training goes on from its last checkpoint, an interrupted scoring from its kept answers. A cell whose
command fails is recorded with the reason and skipped, and the study goes on with the next one. A full disk ends the
study, for the next cell would meet it too.
"""

from __future__ import annotations

import errno
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from checkpoints_tools.formats import EXPORTS
from data.errors import UserError
from data.terminal import say
from eval.kept_lines import sha256_of, writable
from eval.results import PREDICTIONS, RESULTS, read_results
from eval.study.cells import Cell
from eval.study.commands import Commands, Ended, shares
from eval.study.estimate import Estimates
from eval.study.file import Study, StudyCell
from eval.study.inputs import inputs_of
from eval.study.page import REPORT
from eval.study.plan import SHARED, Step, cell_folder, identity, report_step, score_folder, steps_of
from eval.study.records import (
    LOG,
    Record,
    changed_options,
    code_hash,
    outcome,
    readable_record,
    running_process,
    write_record,
)
from train import stopping
from train.checkpointing import run_folder
from train.errors import Interrupted
from train.metrics import duration
from train.run_lock import process_start

WAIT_SECONDS = 180.0  # for a command that an earlier start of the study left behind


def check_unchanged(study: Study, output: Path) -> None:
    """Refuse to go on with cells that were started with other options than the file has now.

    Raises:
        UserError: names the cells and what is different.
    """
    lines = []
    for own in study.cells:
        if changes := changed_options(output, own.cell, identity(study, own, output)):
            lines.append(f"cell {own.cell.name} was started with other options: {', '.join(changes)}.")
    if lines:
        raise UserError(
            "\n".join([*lines[:10], *([f"... and {len(lines) - 10} more cells."] if len(lines) > 10 else [])])
            + f"\nUndo the change in {study.path}, give another --output, give the new cells a variant, or remove the "
            f"folders of these cells in {output / 'cells'}."
        )


def check_jobs(study: Study, output: Path, retry: bool, jobs: int) -> None:
    """Refuse to run cells at the same time that need the machine for themselves.

    Raises:
        UserError: some of the cells that are left run on several ranks.
    """
    several = [own for _, own in _left(study, output, retry) if own.ranks > 1]
    if jobs > 1 and several:
        raise UserError(
            f"--jobs {jobs}: {len(several)} cells run on several ranks, such as {several[0].cell.name} on "
            f"{several[0].ranks}, and need all GPUs. Omit --jobs."
        )


def _left(study: Study, output: Path, retry: bool) -> list[tuple[int, StudyCell]]:
    """The cells that are to be run, with their numbers in the study."""
    found = []
    for number, own in enumerate(study.cells, start=1):
        state = outcome(output, own.cell).state
        if state != "done" and (state != "failed" or retry):
            found.append((number, own))
    return found


def run_study(
    study: Study, output: Path, retry: bool, after_cell: Callable[[], None], again: str, jobs: int = 1
) -> None:
    """Run all cells that are not done.

    Args:
        retry: run failed cells again.
        after_cell: called when a cell is done or has failed; once for cells that ended while it ran.
        again: the command that goes on with the study, for the message of an interruption.
        jobs: cells at the same time; see `check_jobs`.

    Raises:
        Interrupted: the study, or a command of it, was told to stop.
        UserError: a command of an earlier start is still running; the disk is full.
    """
    left = _left(study, output, retry)
    runner = _Runner(study, output, jobs)
    announcement = "telling what runs to stop; a second signal ends the study at once"
    told: list[tuple[str, Ended]] = []
    with (
        stopping.held(
            announcement, second_ends=True, told=lambda: runner.commands.stop(stop.signum or signal.SIGTERM)
        ) as stop,
        ThreadPoolExecutor(jobs) as pool,
    ):
        runner.finish_earlier()
        # With one job nothing runs beside `after_cell`, which would change a run's seconds.
        for group in [left] if jobs > 1 else [[one] for one in left]:
            waiting = {pool.submit(runner.run, number, own): own for number, own in group}
            while waiting:
                ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
                results = [(waiting.pop(future), future.result()) for future in ended]
                told += [(own.cell.name, result) for own, result in results if isinstance(result, Ended)]
                if any(result == "ended" for _, result in results):
                    after_cell()
    if full := next((f"{name}: {ended.why}" for name, ended in told if ended.met_a_full_disk), ""):
        raise UserError(f"{full}\nThe study was stopped. With free disk space, to continue:\n  {again}") from OSError(
            errno.ENOSPC, full
        )
    if runner.commands.stopped is not None:
        where = f" in {', '.join(name for name, _ in told)}" if told else ""
        raise Interrupted(f"The study was stopped{where}. To continue:\n  {again}", runner.commands.stopped)


@dataclass
class _Runner:
    """Runs cells, each in a thread of `jobs`."""

    study: Study
    output: Path
    jobs: int
    commands: Commands = field(default_factory=Commands)

    def __post_init__(self) -> None:
        self._sharing = threading.Lock()  # what cells share is made by one of them
        self._free: SimpleQueue[dict[str, str]] = SimpleQueue()
        for share in shares(self.jobs):
            self._free.put(share)

    def run(self, number: int, own: StudyCell) -> Ended | Literal["ended", "not begun"]:
        """Run what is left of a cell, unless the study was told to stop; how its command ended if it was told to."""
        if self.commands.stopped is not None:
            return "not begun"
        share = self._free.get()
        try:
            left = Estimates(self.study, self.output).left(self.jobs)
            say(f"[{number}/{len(self.study.cells)}] {own.cell.name}" + (f"; left: {left}" if left else ""))
            begin = time.monotonic()
            told = self._run_cell(own, share)
            if told is not None:  # also by somebody else: then the others are told, before another cell begins
                self.commands.stop(told.signum or signal.SIGTERM)
                return told
            if self.jobs > 1:
                state = outcome(self.output, own.cell).state
                say(f"{own.cell.name}: {state} after {duration(time.monotonic() - begin)}")
            return "ended"
        except BaseException:
            self.commands.stop(signal.SIGTERM)
            raise
        finally:
            self._free.put(share)

    def _run_cell(self, own: StudyCell, share: dict[str, str]) -> Ended | None:
        """Run what is left of a cell and record it; how its last command ended if it was told to stop, else None."""
        output, cell, folder = self.output, own.cell, cell_folder(self.output, own.cell)
        log, shown = folder / LOG, self.jobs == 1
        record = readable_record(output, cell) or Record("open", {})
        if not _wait_for(record, output, cell, self.commands):
            return Ended(0, [])
        record.options, record.result, record.why = identity(self.study, own, output), "", ""
        record.ranks, record.jobs = own.ranks, self.jobs
        _set_aside(score_folder(output, cell), record)
        for step in steps_of(self.study, own, output):
            with self._sharing if step.kind in SHARED else nullcontext():
                if step.is_done:
                    continue
                if self.commands.stopped is not None:  # the command before ended without seeing the signal
                    record.state = "open"
                    write_record(output, cell, record)
                    return Ended(0, [])
                folder.mkdir(parents=True, exist_ok=True)
                if shown:
                    say(f"  {step.line}")
                if step.kind == ("train" if cell.tuned else "eval"):
                    record.inputs = inputs_of(own)
                begin = time.monotonic()
                ended = self.commands.run(step, log, share, shown, partial(_note_running, output, own, record))
            record.seconds[step.kind] = record.seconds.get(step.kind, 0.0) + time.monotonic() - begin
            record.pid = record.started = 0
            if ended.status != 0:
                told = self.commands.stopped is not None or ended.signum is not None or ended.met_a_full_disk
                if step.kind in SHARED and not told and self._is_made(step, own):  # by another study meanwhile
                    continue
                record.state, record.why = ("open", "") if told else ("failed", f"{step.kind}: {ended.why}")
                write_record(output, cell, record)
                if told:
                    return ended
                say(f"  {cell.name} failed: {record.why}")
                say(f"  Its output is in {log}. The study goes on with the next cell.")
                return None
        score = score_folder(output, cell)
        try:
            record.examples = read_results(score).examples
        except UserError as error:  # the command succeeded, and its result is damaged or gone
            record.state, record.why = "failed", f"eval: {error}"
            write_record(output, cell, record)
            return None
        (score / REPORT).unlink(missing_ok=True)  # of a result before
        record.state, record.code, record.result = "done", code_hash(), sha256_of(score / RESULTS)
        write_record(output, cell, record)
        self._finish(own, share)
        return None

    def _is_made(self, step: Step, own: StudyCell) -> bool:
        return step.is_done or step not in steps_of(self.study, own, self.output)

    def _finish(self, own: StudyCell, share: dict[str, str]) -> None:
        """Make the report of a cell that is done, unless it is there, and remove the weights that are not kept."""
        folder = cell_folder(self.output, own.cell)
        if not (score_folder(self.output, own.cell) / REPORT).is_file():
            step = report_step(own, self.output)
            if self.commands.run(step, folder / LOG, share, self.jobs == 1).status != 0:
                say(f"  note: {own.cell.name} has no report; {folder / LOG} says why.")
        _remove_weights(self.study, folder)

    def finish_earlier(self) -> None:
        """`_finish` the cells that were done before: the study may have been killed in between."""
        for own in self.study.cells:
            if self.commands.stopped is None and outcome(self.output, own.cell).state == "done":
                self._finish(own, {})


def _note_running(output: Path, own: StudyCell, record: Record, process: subprocess.Popen[str]) -> None:
    record.state, record.pid, record.started = "running", process.pid, process_start(process.pid)
    write_record(output, own.cell, record)


def _wait_for(record: Record, output: Path, cell: Cell, commands: Commands) -> bool:
    """Wait for the end of a command that an earlier start of the study left behind when it was killed.

    Returns:
        False if the study was told to stop before.
    """
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    while process := running_process(output, cell, record):
        if commands.stopped is not None:
            return False
        if not told:
            say(f"  waiting for process {process}, which an earlier start of the study began, to save and end")
            told = True
        if time.monotonic() > deadline:
            raise UserError(
                f"process {process}, which an earlier start of the study began in {cell_folder(output, cell)}, is "
                f"still running. Wait for its end or stop it: kill {process}"
            )
        time.sleep(0.2)
    return True


def _set_aside(folder: Path, record: Record) -> None:
    """Rename a result that was damaged or changed by hand; ``eval.py`` would refuse to replace it."""
    for name in (RESULTS, PREDICTIONS):
        if record.state == "done" and (folder / name).is_file():
            (folder / name).replace(folder / f"{name}.changed")


def _remove_weights(study: Study, folder: Path) -> None:
    """Remove what a finished cell's training left: its checkpoints, and with keep = "results" its model too.

    It is said, also in the log: the cell's commands have advised what to do with these folders. What somebody else put
    into them is kept under another name.
    """
    train, checkpoints = folder / "train", folder / "train/checkpoints"
    exports = [path for name in EXPORTS if study.keep == "results" and (path := train / name).is_dir()]
    there = [*([checkpoints] if checkpoints.is_dir() else []), *exports]
    with suppress(OSError):
        for path in exports:
            run_folder.discard(path, ours=run_folder.is_export(path))
        for path in [*run_folder.checkpoints_in(train), *run_folder.leftovers(train)]:
            run_folder.discard(path, ours=True)
        checkpoints.rmdir()  # an OSError: it is not empty
    if removed := [str(path) for path in there if not path.exists()]:
        line = f'  removed, because of keep = "{study.keep}": {", ".join(removed)}'
        say(line)
        with writable(folder / LOG), (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
