"""How the tests start our scripts: alone or under torchrun, in an environment of their own; and a small task."""

from __future__ import annotations

import logging
import os
import runpy
import signal
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
# The fields of data/sample/tickets with 24 training and 8 test rows, so that a run takes seconds.
TICKETS = ROOT / "tests" / "old_files" / "data" / "tickets" / "tickets.toml"


def environment() -> dict[str, str]:
    """Without what a torchrun around the tests, or the user, may have set."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}


def with_signals() -> None:
    """For ``preexec_fn``: take signals that this process was told to ignore, by nohup or a shell's ``&``."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def command(script: Path, *args: object, ranks: int = 1) -> list[str]:
    start = [sys.executable]
    if ranks > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    return [*start, str(script), *map(str, args)]


def pretend(patch: pytest.MonkeyPatch, size: int, **more: object) -> None:
    """Set what a launcher sets for rank 0 of ``size`` ranks, and more variables."""
    for name, value in dict(RANK=0, WORLD_SIZE=size, MASTER_ADDR="here", MASTER_PORT=1).items():
        patch.setenv(name, str(value))
    for name, value in more.items():
        patch.setenv(name, str(value))


def call_main(patch: pytest.MonkeyPatch, script: str, *arguments: object) -> None:
    """Call a script's ``main`` in this process, as with these arguments; what it set for the process is undone."""
    patch.setattr(sys, "argv", [script, *map(str, arguments)])
    threads, root = torch.get_num_threads(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    torch.set_num_threads(1)
    try:
        runpy.run_path(str(ROOT / script))["main"]()
    finally:
        torch.set_num_threads(threads)
        root.handlers[:] = handlers
        root.setLevel(level)
        if dist.is_initialized():
            dist.destroy_process_group()
