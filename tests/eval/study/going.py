"""Runs studies in this process, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from eval.study import plan, records, run
from eval.study.file import Study

FAIL = "import sys; print('working', flush=True); print('error: no such data: x', file=sys.stderr); sys.exit(2)"


def go(study: Study, output: Path, retry: bool = False, jobs: int = 1) -> int:
    """Run the study; how often it said that cells were finished or failed."""
    ended: list[None] = []
    run.run_study(study, output, retry, lambda: ended.append(None), "python -m eval.study trial.toml", jobs)
    return len(ended)


def states(study: Study, output: Path) -> list[str]:
    return [records.outcome(output, own.cell).state for own in study.cells]


def commands(study: Study, output: Path, number: int) -> list[str]:
    """The commands that were run for a cell, by kind."""
    log = (plan.cell_folder(output, study.cells[number].cell) / records.LOG).read_text()
    kinds = {"copytree": "eval", "write_text": "train", "no such data": "fail"}
    lines = [line for line in log.splitlines() if line.startswith("$ ")]
    return [
        next((kind for word, kind in kinds.items() if word in line.replace("\\x20", " ")), "page") for line in lines
    ]


SLOW = """
import os, signal, sys, time
from pathlib import Path
def stop(number, frame):
    time.sleep(0.5)
    Path({saved!r}).write_text(str(number)); sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, stop)
Path({ready!r}).touch()
time.sleep(60)
"""


def wait_for(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.05)
