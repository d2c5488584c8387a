"""Run a study: one command after the other, and remember what came of each.

A study may be ended at any moment and started again with the same command. Then finished cells are not repeated, an
interrupted training goes on from its last checkpoint, an interrupted scoring from its kept answers. A cell whose
command fails is recorded with the reason and skipped, and the study goes on with the next one.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError, shortened
from data.terminal import say
from eval.kept_lines import sha256_of, writable
from eval.results import PREDICTIONS, RESULTS, read_results
from eval.study.estimate import Estimates
from eval.study.file import Study, StudyCell
from eval.study.plan import Step, cell_folder, identity, report_step, score_folder, steps_of
from eval.study.records import LOG, Record, changed_options, code_hash, outcome, read_record, write_record
from train import stopping
from train.errors import Interrupted
from train.run_lock import process_start

TAIL = 40  # lines of output in which the reason of a failure is looked for
SHOWN = 300  # characters of it
WAIT_SECONDS = 180.0  # for a command that an earlier start of the study left behind
STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (negative: the signal that killed it) and the last lines of its output."""

    status: int
    tail: list[str]

    @property
    def signum(self) -> signal.Signals | None:
        """The signal that it was told to stop by."""
        number = -self.status if self.status < 0 else self.status - 128
        return signal.Signals(number) if number in STOPS else None

    @property
    def why(self) -> str:
        """The reason of a failure, in one line."""
        if self.status == -signal.SIGKILL:
            return "killed by SIGKILL, which is what a machine without free memory does"
        lines = [line.strip() for line in self.tail if line.strip()]
        errors = [i for i, line in enumerate(lines) if line.startswith("error:") or ": error: " in line]
        text = " ".join(lines[errors[-1] : errors[-1] + 3]) if errors else (lines or ["it printed nothing"])[-1]
        return shortened(f"status {self.status}: {text}", SHOWN)


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


def run_study(study: Study, output: Path, retry: bool, after_cell: Callable[[], None], again: str) -> None:
    """Run all cells that are not done.

    Args:
        retry: run failed cells again.
        after_cell: called when a cell is done or has failed.
        again: the command that goes on with the study, for the message of an interruption.

    Raises:
        Interrupted: the study, or a command of it, was told to stop.
        UserError: a command of an earlier start is still running.
    """
    child: list[subprocess.Popen[str]] = []

    def forward() -> None:
        for process in child:
            with suppress(ProcessLookupError):
                process.send_signal(stop.signum or signal.SIGTERM)

    announcement = "telling the running command to stop; a second signal ends the study at once"
    with stopping.held(announcement, second_ends=True, told=forward) as stop:
        for number, own in enumerate(study.cells, start=1):
            before = outcome(output, own.cell)
            if before.state == "done" or before.state == "failed" and not retry:
                continue
            left = Estimates(study, output).left()
            say(f"[{number}/{len(study.cells)}] {own.cell.name}" + (f"; left: {left}" if left else ""))
            ended = _run_cell(study, own, output, child, stop)
            if ended is None:
                after_cell()
            told = ended.signum if ended is not None else None
            if stop.noted or told is not None:
                signum = stop.signum or told or signal.SIGTERM
                raise Interrupted(f"The study was stopped in {own.cell.name}. To continue:\n  {again}", signum)


def _run_cell(
    study: Study, own: StudyCell, output: Path, child: list[subprocess.Popen[str]], stop: stopping.Stop
) -> Ended | None:
    """Run what is left of a cell and record it; how its last command ended if it was told to stop, else None."""
    cell, folder = own.cell, cell_folder(output, own.cell)
    record = read_record(output, cell) or Record("open", {})
    _wait_for(record, folder)
    record.options, record.ranks, record.result, record.why = identity(study, own, output), own.ranks, "", ""
    _set_aside(score_folder(output, cell), record)
    for step in steps_of(study, own, output):
        if step.is_done:
            continue
        if stop.noted:  # the command before ended without seeing the signal
            record.state = "open"
            write_record(output, cell, record)
            return Ended(0, [])
        folder.mkdir(parents=True, exist_ok=True)
        say(f"  {step.line}")
        begin = time.monotonic()
        ended = _run(step, folder / LOG, child, stop, lambda process: _note_running(output, own, record, process))
        record.seconds[step.kind] = record.seconds.get(step.kind, 0.0) + time.monotonic() - begin
        record.pid = record.started = 0
        if ended.status != 0:
            told = stop.noted or ended.signum is not None
            record.state, record.why = ("open", "") if told else ("failed", f"{step.kind}: {ended.why}")
            write_record(output, cell, record)
            if told:
                return ended
            say(f"  failed: {record.why}\n  Its output is in {folder / LOG}. The study goes on with the next cell.")
            return None
    score = score_folder(output, cell)
    try:
        record.examples = read_results(score).examples
    except UserError as error:  # the command succeeded, and its result is damaged or gone
        record.state, record.why = "failed", f"eval: {error}"
        write_record(output, cell, record)
        return None
    record.state, record.code, record.result = "done", code_hash(), sha256_of(score / RESULTS)
    write_record(output, cell, record)
    if _run(report_step(own, output), folder / LOG, child, stop, lambda process: None).status != 0:
        say(f"  note: this cell has no report; {folder / LOG} says why.")
    _remove_weights(study, folder)
    return None


def _run(
    step: Step,
    log: Path,
    child: list[subprocess.Popen[str]],
    stop: stopping.Stop,
    started: Callable[[subprocess.Popen[str]], None],
) -> Ended:
    """Run a command; what it prints goes to the terminal and the log."""
    tail: deque[str] = deque(maxlen=TAIL)
    process = subprocess.Popen(
        step.words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="backslashreplace",
        start_new_session=True,  # Ctrl-C reaches the study alone, which passes it on
        preexec_fn=_stop_with_parent if sys.platform == "linux" else None,
    )
    child.append(process)
    try:
        if stop.noted:  # before it was in the list
            process.send_signal(stop.signum or signal.SIGTERM)
        started(process)
        assert process.stdout is not None
        with writable(log), log.open("a", encoding="utf-8") as file:
            file.write(f"$ {step.line}\n")
            for line in process.stdout:
                file.write(line)
                file.flush()
                tail.append(line.rstrip("\n"))
                say(line.rstrip("\n"))
        return Ended(process.wait(), list(tail))
    except BaseException:  # such as a full disk, which is an error of the study
        process.terminate()
        process.communicate()
        raise
    finally:
        child.remove(process)


_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1


def _stop_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when the study dies, however that happens."""
    assert _LIBC is not None
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _note_running(output: Path, own: StudyCell, record: Record, process: subprocess.Popen[str]) -> None:
    record.state, record.pid, record.started = "running", process.pid, process_start(process.pid)
    write_record(output, own.cell, record)


def _wait_for(record: Record, folder: Path) -> None:
    """Wait for the end of a command that an earlier start of the study left behind when it was killed."""
    if record.state != "running" or not record.pid:
        return
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    while process_start(record.pid) == record.started:
        if not told:
            say(f"  waiting for process {record.pid}, which an earlier start of the study began, to save and end")
            told = True
        if time.monotonic() > deadline:
            raise UserError(
                f"process {record.pid}, which an earlier start of the study began in {folder}, is still running. Wait "
                f"for its end or stop it: kill {record.pid}"
            )
        time.sleep(0.2)


def _set_aside(folder: Path, record: Record) -> None:
    """Rename a result that was damaged or changed by hand; ``eval.py`` would refuse to replace it."""
    for name in (RESULTS, PREDICTIONS):
        if record.state == "done" and (folder / name).is_file():
            (folder / name).replace(folder / f"{name}.changed")


def _remove_weights(study: Study, folder: Path) -> None:
    """Remove what a finished cell's training left: its checkpoints, and with keep = "results" its model too."""
    for name in ("checkpoints", *(("export", "best") if study.keep == "results" else ())):
        shutil.rmtree(folder / "train" / name, ignore_errors=True)
