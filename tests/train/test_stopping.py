"""Runs that are told to stop: by any signal, in any phase, with or without a reader, and when torchrun has died."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkpoints_tools.checksums import read_checksums
from tests.launching import ROOT, command, environment, with_signals
from tests.train.scripted_scorer import ScriptedScorer
from train import stopping
from train.checkpointing import checkpoint
from train.errors import Interrupted
from train.resolve import load_config
from train.scorer import HeldOutScore
from train.setup import open_run
from train.stopping import Stop
from train.together import how_it_ended
from train.trainer import Trainer

TRAIN = ROOT / "train.py"
WAIT = 120.0


@contextmanager
def running(
    args: list[str], run: Path, until: int, ranks: int = 1, save_every: int = 0, **pipes
) -> Iterator[subprocess.Popen]:
    """``train.py``, once it has taken a number of steps; it has many to go. It is killed if the test fails."""
    line = command(TRAIN, *args, "--output", run, "--steps", "100000", "--save_every", save_every, ranks=ranks)
    more = {"preexec_fn": with_signals} | pipes
    process = subprocess.Popen(line, cwd=ROOT, env=environment(), start_new_session=True, **more)
    try:
        wait_for(lambda: taken(run) >= until, process)
        yield process
    finally:
        with_group(process, signal.SIGKILL)
        process.wait()


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def with_group(process: subprocess.Popen, signum: int) -> None:
    """Send a signal to all processes of the session, as a terminal does."""
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        pass


def taken(run: Path) -> int:
    log = run / "log.jsonl"
    return log.read_text().count('"loss"') if log.exists() else 0


def saved(run: Path) -> list[int]:
    return [checkpoint.read_state(folder).step for folder in checkpoint.steps_in(run / "checkpoints")]


@pytest.mark.parametrize("number", stopping.SIGNALS, ids=lambda number: number.name)
def test_every_signal_ends_in_a_checkpoint_also_if_it_comes_twice(
    number: signal.Signals, train_args: list[str], tmp_path: Path
) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with running(train_args, tmp_path / "run", 2, **pipes) as process:
        process.send_signal(number)
        process.send_signal(number)
        out, err = process.communicate(timeout=WAIT)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert saved(tmp_path / "run") == [taken(tmp_path / "run")]
    assert f"{number.name}: finishing this step, then saving." in out and "--resume" in err


def test_nohup_is_respected(train_args: list[str], tmp_path: Path) -> None:
    with running(train_args, tmp_path / "run", 2, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) as p:
        p.send_signal(signal.SIGHUP)
        before = taken(tmp_path / "run")
        wait_for(lambda: taken(tmp_path / "run") > before + 5, p)


def test_a_reader_that_ends_with_the_same_interrupt_costs_nothing(train_args: list[str], tmp_path: Path) -> None:
    """``train.py … 2>&1 | tee log`` and Ctrl-C."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with running([*train_args, "--log_every", "1"], tmp_path / "run", 2, **pipes) as process:
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT) == 128 + signal.SIGINT
    assert saved(tmp_path / "run") == [taken(tmp_path / "run")]


def test_a_reader_that_ends_earlier_and_a_full_disk_end_no_run(train_args: list[str], tmp_path: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    args = [*train_args, "--log_every", "1"]
    with running(args, tmp_path / "a", 1, **pipes) as process:
        process.stdout.close()
        wait_for(lambda: taken(tmp_path / "a") >= 8, process)
    with (
        open("/dev/full", "wb") as full,
        running(args, tmp_path / "b", 4, stdout=full, stderr=full) as process,
    ):
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT) == 128 + signal.SIGTERM
    assert saved(tmp_path / "b") == [taken(tmp_path / "b")]


def test_a_reader_that_reads_no_more_cannot_hold_up_the_checkpoint(train_args: list[str], tmp_path: Path) -> None:
    """A pager, a stopped terminal, a suspended ``tee``: the trainer waits to print when the signal comes."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    run = tmp_path / "run"

    def read(process: subprocess.Popen) -> bool:
        try:
            os.read(reader, 65536)
        except BlockingIOError:
            pass
        return taken(run) >= 1

    line = command(TRAIN, *train_args, "--output", run, "--steps", "100000", "--save_every", "0", "--log_every", "1")
    with open(tmp_path / "errors", "wb") as errors:
        process = subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=writer, stderr=errors)
    try:
        os.close(writer)
        wait_for(lambda: read(process), process)
        before = -1
        while taken(run) != before:  # until it is stuck
            before = taken(run)
            time.sleep(2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
        os.close(reader)
    assert saved(run) == [taken(run)] and "saved to" in (tmp_path / "errors").read_text()


@pytest.mark.parametrize("ranks", [1, 2])
def test_before_the_first_step_there_is_nothing_to_keep(ranks: int, train_args: list[str], tmp_path: Path) -> None:
    line = command(TRAIN, *train_args, "--output", tmp_path / "run", ranks=ranks)
    process = subprocess.Popen(line, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    lines = iter(process.stdout.readline, "")
    assert any("training data:" in line for line in lines)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=WAIT)
    assert "SIGINT: stopped. No step was taken since this start" in errors and saved(tmp_path / "run") == []
    if ranks == 1:
        assert process.returncode == 128 + signal.SIGINT and "Traceback" not in errors


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started, by rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    of_rank = {}
    for child in children:
        if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes():
            given = dict(
                pair.split(b"=", 1) for pair in Path(f"/proc/{child}/environ").read_bytes().split(b"\0") if pair
            )
            of_rank[int(given[b"RANK"])] = int(child)
    return [pid for _, pid in sorted(of_rank.items())]


def test_a_killed_rank_leaves_the_command_to_continue(train_args: list[str], tmp_path: Path) -> None:
    """As the kernel kills it if memory is short: rank 0's collective fails, and then torchrun ends rank 0."""
    run = tmp_path / "run"
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with running(train_args, run, 12, ranks=2, save_every=10, **pipes) as launcher:
        launcher.send_signal(signal.SIGSTOP)
        os.kill(ranks_of(launcher)[1], signal.SIGKILL)
        wait_for(lambda: not (run / "run.lock").exists(), launcher)  # rank 0 has failed
        launcher.send_signal(signal.SIGCONT)
        _, err = launcher.communicate(timeout=WAIT)
    last = checkpoint.steps_in(run / "checkpoints")[-1]
    assert f"SIGTERM: stopped. The last checkpoint is {last}. To continue:\n  " in err and "--resume auto" in err
    assert f"{run}/resume.sh has this command, too." in err


def test_ranks_stop_when_torchrun_has_died(train_args: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        open(tmp_path / "out", "wb") as out,
        running(train_args, run, 2, ranks=2, stdout=out, stderr=out) as launcher,
    ):
        ranks = ranks_of(launcher)
        assert len(ranks) == 2
        launcher.kill()
        launcher.wait()
        deadline = time.monotonic() + 15
        while any(map(is_running, ranks)):
            assert time.monotonic() < deadline, (tmp_path / "out").read_text()
            time.sleep(0.05)
    # Rank 1 may have noticed first, and rank 0 stopped with it before it looked itself.
    assert "interrupted: stopped after step" in (tmp_path / "out").read_text()
    assert saved(run) == [taken(run)]


@pytest.mark.parametrize("given", [("--shutdown-timeout", "77"), ("--shutdown_timeout=77",), ()])
def test_the_time_that_torchrun_gives(given: tuple[str, ...]) -> None:
    """Of a process whose parent has these words in its command line."""
    inner = "from train import stopping; print(stopping.grace_seconds())"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    line = [sys.executable, "-c", code, *given, "train.py"]
    done = subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert float(done.stdout) == (77.0 if given else stopping.GRACE_SECONDS), done.stderr


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("rank", ["1", "", None])
def test_a_rank_waits_for_no_step_for_ever_when_its_launcher_has_died(rank: str | None) -> None:
    """A program that is no rank goes on: the shell or program that started it may end."""
    code = (
        "import subprocess, sys, os\n"
        "inner = 'import time; from train import stopping; stopping.GRACE_SECONDS = 1.0; stopping.watch()\\n'\n"
        'inner += \'with stopping.held("stopping"): print("ready", flush=True); time.sleep(600)\'\n'
        "child = subprocess.Popen([sys.executable, '-c', inner], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "os._exit(0)\n"
    )
    torchrun = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    env = {**environment(), **torchrun, **({} if rank is None else {"RANK": rank})}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT)
    child, deadline = int(done.stdout), time.monotonic() + (10 if rank else 4)
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_running(child) == (not rank)
    if not rank:
        os.kill(child, signal.SIGKILL)


def test_a_scoring_that_is_stopped_is_made_up_for(world, train_args: list[str], tmp_path: Path, told: Stop) -> None:
    """Stopped in the scoring of step 2: no other step, no other scoring; the resumed run begins with this one."""
    scored: list[int] = []

    def score(model, stop) -> HeldOutScore | None:
        if trainer.step == 2 and not scored[1:]:
            told.signum = signal.SIGUSR1
        if stop():
            return None
        scored.append(trainer.step)
        return HeldOutScore({}, trainer.step / 10)

    args = [*train_args, "--holdout", "0.25", "--eval_every", "1"]
    config = load_config([*args, "--save_every", "2"])
    trainer = Trainer(config, open_run(config), world, ScriptedScorer(score))
    with pytest.raises(Interrupted, match="after step 2 ") as stopped:
        trainer.run()
    assert stopped.value.signum == signal.SIGUSR1 and scored == [1]
    assert [path.name for path in checkpoint.steps_in(trainer.checkpoints)] == ["step_000002"]
    assert json.loads((trainer.output / "best" / "best.json").read_text())["step"] == 1

    told.signum = None
    scored.append(0)
    config = load_config([*args, "--save_every", "2", "--resume"])
    trainer = Trainer(config, open_run(config), world, ScriptedScorer(score))
    trainer.run()
    assert scored[2:] == [2, 3, 4, 5, 6]
    assert not checkpoint.read_state(checkpoint.steps_in(trainer.checkpoints)[-1]).unscored


@pytest.mark.parametrize("best", [True, False], ids=["of the best", "of the last"])
def test_a_run_that_is_stopped_in_its_last_calibration_is_calibrated_when_it_goes_on(
    world, train_args: list[str], told: Stop, best: bool
) -> None:
    """Also its export waits for that: one without a calibration would never get one."""
    args = [*train_args, "--holdout", "0.25", "--eval_every", "3", "--steps", "6"]

    def score(model, stop) -> HeldOutScore:
        return HeldOutScore({}, trainer.step if best else -trainer.step)

    class Stopped(ScriptedScorer):
        def calibrate(self, model, stop):
            if trainer.step == 6 and told.signum is None:
                told.signum = signal.SIGTERM
            return super().calibrate(model, stop)

    config = load_config(args)
    trainer = Trainer(config, open_run(config), world, Stopped(score))
    with pytest.raises(Interrupted, match="after step 6 of 6"):
        trainer.run()
    output = trainer.output
    assert not (output / "export").exists() and json.loads((output / "best" / "best.json").read_text())["step"] == 3
    assert checkpoint.read_state(checkpoint.steps_in(trainer.checkpoints)[-1]).unscored is best

    told.signum = None
    config = load_config([*args, "--resume", "auto"])
    setup, scorer = open_run(config), ScriptedScorer(score)
    assert how_it_ended(config, setup) is None
    trainer = Trainer(config, setup, world, scorer)
    trainer.run()
    assert scorer.n_calibrated == 1, "a model that is the best and the last is calibrated once"
    stored = [json.loads((output / name / "calibration.json").read_text()) for name in ("export", "best")]
    assert stored == [{"number": 1}] * 2
    assert how_it_ended(config, open_run(config)) is not None
    assert "calibration.json" in read_checksums(output / "export")
