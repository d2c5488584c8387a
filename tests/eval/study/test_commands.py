"""How a command of a study ended, from its status and the last lines that it printed."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from eval.study.commands import Ended
from tests.launching import command, environment

LINE = "{}1129 00:05:38.046000 27508 torch/distributed/elastic/multiprocessing/api.py:1002] {}"
CLOSING = LINE.format("W", "Sending process 27530 closing signal SIGTERM")


def report(*failed: tuple[int, int]) -> list[str]:
    """The end of what torchrun prints, of ranks with their exit statuses; last the one that failed first."""
    rank, status = failed[-1]
    lines = [LINE.format("E", f"failed (exitcode: {status}) local_rank: {rank} (pid: 27531) of binary: python")]
    lines += ["Traceback (most recent call last):", "    raise ChildFailedError(", "=" * 60, "train.py FAILED"]
    for rank, status in failed:
        lines += [f"[{rank}]:", f"  rank      : {rank} (local_rank: {rank})"]
        lines += [f"  exitcode  : {status} (pid: 27531) {'(SIGKILL)' * (status == -9)}", "  error_file: <N/A>"]
    return [*lines, "=" * 60]


def torchrun(folder: Path, program: str) -> Ended:
    """Run a program on two ranks."""
    (folder / "program.py").write_text(f"import os, signal, sys, time\nrank = os.environ['RANK']\n{program}")
    done = subprocess.run(
        command(folder / "program.py", ranks=2), env=environment(), stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    return Ended(done.returncode, done.stdout.splitlines())


def test_a_torchrun_that_is_told_to_stop_has_not_failed(tmp_path: Path) -> None:
    ended = torchrun(tmp_path, "rank == '0' and os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)")
    assert ended.status == 1 and ended.signum == signal.SIGTERM, ended.tail


@pytest.mark.parametrize(
    "failed, signum",
    [
        ([(0, 130), (1, 130)], signal.SIGINT),
        ([(1, -15)], signal.SIGTERM),
        ([(0, 143), (1, 2)], None),
        ([(0, -9)], None),
    ],
)
def test_ranks_that_are_told_to_stop_have_not_failed(failed: list, signum: signal.Signals | None) -> None:
    """By what the first rank did: torchrun stops the others."""
    assert Ended(1, ["step 7", CLOSING, "SIGTERM: stopped.", *report(*failed)]).signum == signum


def test_a_rank_that_is_killed_is_named(tmp_path: Path) -> None:
    ended = torchrun(tmp_path, "time.sleep(1)\nrank == '1' and os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")
    assert ended.why == "rank 1 was killed by SIGKILL, which is what a machine without free memory does", ended.tail


@pytest.mark.parametrize(
    "printed, why",
    [
        (["error: no such data: x", "Write y."], "status 2: error: no such data: x Write y."),
        (["[rank 1] error: no such data: x"], "status 2: [rank 1] error: no such data: x"),
        (["usage: train.py", "train.py: error: what?"], "status 2: train.py: error: what?"),
        (["step 7", "ValueError: x", CLOSING, "SIGTERM: stopped."], "status 2: ValueError: x"),
        (["step 7", LINE.format("W", "Setting OMP_NUM_THREADS"), "*****"], "status 2: step 7"),
        ([], "status 2: it printed nothing"),
    ],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_reason_of_a_failure_is_what_the_program_said(printed: list[str], why: str, ranks: int) -> None:
    """Not what torchrun says of it."""
    if ranks == 1:
        assert Ended(2, [line for line in printed if line not in (CLOSING, "SIGTERM: stopped.")]).why == why
    else:
        assert Ended(1, [*printed, *report((0, 143), (1, 2))]).why == why


def test_a_reason_says_what_to_do_however_long_it_is() -> None:
    own = ["error: output = /runs/train has what the run would replace:", *["  one.txt: no run has written it"] * 4]
    end = "Nothing was changed. Name another --output, or move it out of the way."
    assert Ended(2, [*own, end]).why == "status 2: " + " ".join(map(str.strip, [*own, end]))
    why = Ended(2, [*own * 9, end]).why
    assert why.startswith("status 2: error: output = /runs/train has") and why.endswith(end) and len(why) < 620
