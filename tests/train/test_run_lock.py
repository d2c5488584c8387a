"""A run folder has one writer."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from data.errors import UserError
from tests.launching import ROOT, call_main, command, environment
from train import run_lock
from train.run_lock import LOCK, Holder, describe_me, gone, held

# Locks a folder, says so, and waits to be killed; or says why it could not.
HOLD = """
import sys, time, pathlib
from data.errors import UserError
from train.run_lock import held
try:
    with held(pathlib.Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(float(sys.argv[2]))
except UserError as error:
    print(error, flush=True)
"""


def start_holder(folder: Path, seconds: float = 60) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(seconds)], stdout=subprocess.PIPE, text=True, env=environment()
    )


def said(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(run_lock, "_flock", lambda file: False)
    return request.param


def test_a_folder_that_is_being_written_is_refused_until_its_writer_is_gone(
    flock: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    holder = start_holder(folder)
    try:
        assert said(holder) == "held"
        start = time.monotonic()
        with pytest.raises(UserError, match=rf"another run is writing to it \(process {holder.pid} on ") as error:
            with held(folder):
                pass
        assert time.monotonic() - start < 1 and " rm " not in str(error.value), "it can be seen from here"
    finally:
        holder.kill()
    with caplog.at_level("INFO"):  # it is a zombie: dead, not yet waited for
        deadline = time.monotonic() + 20
        while True:
            try:
                with held(folder):
                    assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
                break
            except UserError:
                assert time.monotonic() < deadline
    assert any("taking over" in message and "the process has ended" in message for message in caplog.messages)
    holder.wait()
    assert not folder.exists() or not any(folder.iterdir()), "nothing is left"


def test_of_starts_at_the_same_moment_one_wins(tmp_path: Path) -> None:
    """Four starts meet no lock, or one whose holder was killed; all but one are refused."""
    for stale in (False, True):
        folder = tmp_path / f"run {stale}"
        if stale:
            dead = start_holder(folder)
            assert said(dead) == "held"
            dead.kill()
            dead.wait()
        starts = [start_holder(folder) for _ in range(4)]
        try:
            answers = [said(process) for process in starts]
        finally:
            for process in starts:
                process.kill()
                process.wait()
        assert sorted(answer == "held" for answer in answers) == [False, False, False, True], answers
        assert sorted(path.name for path in folder.iterdir()) == [LOCK]


def test_many_takeovers_in_one_process_leave_one_holder(flock: bool, tmp_path: Path) -> None:
    """Threads race for a stale lock; each counts how many hold it at the same time."""
    import threading

    stale = msgspec.structs.replace(describe_me(tmp_path), started=-5)
    for _ in range(30):
        (tmp_path / LOCK).write_bytes(msgspec.json.encode(stale))
        barrier, won = threading.Barrier(6), []

        def race(barrier: threading.Barrier = barrier, won: list = won) -> None:
            barrier.wait()
            try:
                won.append(run_lock._lock(tmp_path / LOCK))
            except UserError:
                pass

        threads = [threading.Thread(target=race) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].close()
        (tmp_path / LOCK).unlink()


def test_a_takeover_that_was_killed_is_taken_over_too(
    flock: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the lock on taking over, which is one of a process that has ended."""

    class Killed(BaseException):
        pass

    def killed(*paths: object, **how: object) -> None:
        raise Killed

    path = tmp_path / LOCK
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(describe_me(tmp_path), started=-5)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        patch.setattr(run_lock, "_is_at", killed)
        patch.setattr(run_lock, "describe_me", lambda folder: msgspec.structs.replace(describe_me(folder), started=-6))
        with path.open("rb") as file, pytest.raises(Killed):
            run_lock._replace(path, file)
    assert len(list(tmp_path.iterdir())) > 1, "nothing was left behind"
    run_lock._lock(path).close()
    assert run_lock._read(path.open("rb")).pid == os.getpid()


@pytest.mark.parametrize("stale", [False, True])
def test_a_full_disk_leaves_nothing_beside_the_lock(
    stale: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if stale:
        dead = msgspec.structs.replace(describe_me(tmp_path), started=-5)
        (tmp_path / LOCK).write_bytes(msgspec.json.encode(dead))
    before = list(tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"run\.lock cannot be written: No space left on device"), held(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == before


def test_a_start_removes_what_killed_starts_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what one that is still to be refused has just written: that one waits for the lock as before."""
    names = [".run.lock.0123456789abcdef", ".run.lock.12.345", "..run.lock.12.345.0123456789abcdef"]
    for name in [*names, ".run.lock.mine", "notes"]:
        (tmp_path / name).touch()
    with held(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock.mine", "notes", LOCK]
        link, tried = os.link, list[str]()

        def removed(new: Path, path: Path) -> None:
            tried.append(new.name)
            new.unlink()
            link(new, path)

        monkeypatch.setattr(os, "link", removed)
        with pytest.raises(UserError, match="another run is writing"):
            run_lock._lock(tmp_path / LOCK)
    assert len(tried) == 1


def test_it_is_released_after_errors_and_with_the_folders_it_made(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), held(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / LOCK).is_file()
        1 / 0  # noqa: B018
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with held(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_it_removes_no_lock_of_another(tmp_path: Path) -> None:
    with held(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with held(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
        with pytest.raises(UserError, match="another run is writing"):
            run_lock._lock(tmp_path / LOCK)


@pytest.mark.parametrize("content", [b"", b"my lock", b'{"pid": 1}'])
def test_a_file_that_is_no_lock_stays(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_SECONDS", 0.2)
    (tmp_path / LOCK).write_bytes(content)
    with pytest.raises(UserError, match=r"run\.lock is no lock of this program, or damaged\. .*: rm "), held(tmp_path):
        pass
    assert (tmp_path / LOCK).read_bytes() == content


@pytest.mark.parametrize(
    "make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/not/there", path)], ids=["pipe", "folder", "link"]
)
def test_what_is_no_file_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / LOCK)
    with pytest.raises(UserError, match=r"run\.lock there is not a file of this program"), held(tmp_path):
        pass
    assert os.path.lexists(tmp_path / LOCK)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_link_to_what_does_not_exist_is_named(below: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/not/there")
    with pytest.raises(UserError, match=f"{tmp_path}/link is a link to /not/there, which does not exist"):
        with held(tmp_path / "link" / below):
            pass
    assert os.readlink(tmp_path / "link") == "/not/there"


ME = Holder("node1", "m1", "boot1", 50, "ns1", 0, "/run", "now", True)
ALIVE = {"pid": os.getpid(), "started": run_lock.process_start(os.getpid())}


@pytest.mark.parametrize(
    ("holder", "me", "free", "expected"),
    [
        ({"pid": os.getpid()}, {}, True, "has ended"),  # the number belongs to another process now
        ({"pid": 2**22 + 1}, {}, False, "has ended"),
        ({"boot": "boot0"}, {}, True, "restarted"),
        ({"boot": "boot0", "machine": "m2"}, {}, True, None),  # another machine of the same name
        ({"host": "node2", "boot": "boot2"}, {}, True, None),
        ({"host": "node2", "boot": "boot2", "pid": 2**22 + 1}, {}, False, None),
        ({"host": "old-name", "pid": 2**22 + 1}, {}, False, "has ended"),  # a laptop in another network
        ({"namespace": "ns2"}, {}, True, "has ended"),  # a container that was restarted
        ({"namespace": "ns2"}, {}, False, None),
        ({"namespace": "ns2", "flock": False}, {}, True, None),
        ({"host": "node2", "boot": "boot2", "slurm": "7"}, {"slurm": "7", "slurm_restarts": 1}, False, "Slurm"),
        ({"host": "node2", "boot": "boot2", "slurm": "7"}, {"slurm": "7"}, False, None),  # two steps of one job
        ({"host": "node2", "boot": "boot2", "slurm": "7"}, {"slurm": "8", "slurm_restarts": 1}, False, None),
        ({"host": "node2", "boot": "boot2", "torchrun": "a"}, {"torchrun": "a", "torchrun_restarts": 1}, False, "torc"),
        ({"host": "node2", "boot": "boot2"}, {"torchrun_restarts": 1}, False, None),
        # One that can be seen to live is not gone: two torchruns were given one --rdzv-id, and the second restarts.
        ({"torchrun": "a", **ALIVE}, {"torchrun": "a", "torchrun_restarts": 1}, False, None),
        ({"slurm": "7", **ALIVE}, {"slurm": "7", "slurm_restarts": 1}, False, None),
        (ALIVE, {}, True, None),
        ({**ALIVE, "folder": "/other"}, {}, True, "copy"),
    ],
)
def test_when_a_holder_is_gone(holder: dict, me: dict, free: bool, expected: str | None) -> None:
    replace = msgspec.structs.replace
    found = gone(replace(ME, **{"started": 5, **holder}), replace(ME, **me), free)
    assert (found is None) == (expected is None) and (expected is None or expected in (found or ""))


def test_torchruns_are_told_apart_by_where_they_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """People give all their jobs the same --rdzv-id; the second one's restarts are not those of the first."""
    for name, value in {"TORCHELASTIC_RUN_ID": "100", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    found = []
    for address in ("node1", "node2"):
        monkeypatch.setenv("MASTER_ADDR", address)
        monkeypatch.setenv("MASTER_PORT", "29500")
        found.append(msgspec.structs.replace(describe_me(tmp_path), host=address, boot=address, torchrun_restarts=1))
    first, second = found
    earlier = msgspec.structs.replace(first, torchrun_restarts=0)
    assert gone(earlier, second, False) is None
    assert gone(earlier, msgspec.structs.replace(first, host="node3", boot="node3"), False) is not None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert describe_me(tmp_path).torchrun == ""


def test_a_holder_on_another_machine_is_named_with_how_to_remove_its_lock(tmp_path: Path) -> None:
    elsewhere = msgspec.structs.replace(describe_me(tmp_path), host="gpu17", boot="another", slurm="4711")
    (tmp_path / LOCK).write_bytes(msgspec.json.encode(elsewhere))
    with pytest.raises(UserError) as error, held(tmp_path):
        pass
    for part in (f"process {os.getpid()} on gpu17, Slurm job 4711, since ", f"rm {tmp_path / LOCK}", "--output"):
        assert part in str(error.value)
    assert (tmp_path / LOCK).is_file()


def test_a_copied_folder_can_be_used_while_the_first_one_is_written(tmp_path: Path) -> None:
    with held(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        run_lock._lock(tmp_path / "copy" / LOCK).close()
        with pytest.raises(UserError):
            run_lock._lock(tmp_path / "run" / LOCK)


# --- train.py ---------------------------------------------------------------------------------------------------------


def test_two_runs_in_one_folder(train_args: list[str], tmp_path: Path, launch) -> None:
    holder = start_holder(tmp_path / "run")
    try:
        assert said(holder) == "held"
        for ranks in (1, 2):
            done = launch(ROOT / "train.py", *train_args, ranks=ranks)
            assert done.returncode != 0
            assert (done.stdout + done.stderr).count("another run is writing to it") == 1
            assert ranks > 1 or "Traceback" not in done.stderr  # torchrun prints one of its own
        planned = launch(ROOT / "train.py", *train_args, "--plan")
        assert planned.returncode == 0, planned.stderr
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    finally:
        holder.kill()
        holder.wait()


def test_a_run_leaves_no_lock_whatever_its_end(
    train_args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch
) -> None:
    call_main(monkeypatch, "train.py", *train_args)
    assert (tmp_path / "run" / "export").is_dir() and not (tmp_path / "run" / LOCK).exists()
    refused = launch(ROOT / "train.py", *train_args)
    assert refused.returncode == 2 and "--resume" in refused.stderr
    assert not (tmp_path / "run" / LOCK).exists()
    args = [*train_args, "--output", str(tmp_path / "new" / "run"), "--data", str(tmp_path / "none")]
    assert launch(ROOT / "train.py", *args).returncode == 2
    assert not (tmp_path / "new").exists(), "a refused start leaves no folder"


def test_a_killed_run_is_resumed_by_the_same_machine(train_args: list[str], tmp_path: Path, launch) -> None:
    args = [*train_args, "--steps", "2000", "--save_every", "1"]
    process = subprocess.Popen(command(ROOT / "train.py", *args), cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "checkpoints" / "step_000002").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "run" / LOCK).is_file()
    newest = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step_*"))
    i = args.index("--steps", args.index("--steps") + 1)
    del args[i : i + 2]
    done = launch(ROOT / "train.py", *args, "--resume", "--limit", "3")
    assert newest >= 2 and "taking over" in done.stdout and "different run" in done.stderr, done.stderr


def test_the_lock_of_a_run_that_a_signal_ends_at_once_is_removed(tmp_path: Path) -> None:
    code = HOLD.replace("import sys", "from train import stopping\nstopping.watch()\nimport sys")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run"), "60"], stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert said(process) == "held"
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not (tmp_path / "run").exists()
