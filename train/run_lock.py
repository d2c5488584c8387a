"""One writer: a run folder is locked, by rank 0, from before any work to the end of the process.

``run.lock`` says who holds it: machine, process, when that was started, and the job. It is created by a hard link,
which is atomic on network file systems too: of two runs that start at the same moment one gets it. It does not depend
on flock, but uses it where it works. A lock is taken over if its holder is certainly gone:

    on this machine        the process has ended, its number belongs to another one, or the machine was restarted
    on another machine     it was an earlier attempt of this Slurm job or of this torchrun, which end an attempt first

Otherwise the run is refused, and the message says how to remove the lock.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import msgspec

from data.commands import quoted
from data.errors import UserError
from data.files.documents import parse_json
from data.files.paths import check_links
from data.json_text import to_json
from train import stopping
from train.launched import env_rank, torchrun_job

log = logging.getLogger(__name__)

LOCK = "run.lock"
WAIT_SECONDS = 2.0  # for the contents of a lock that is being written at this moment
_LEFT = re.compile(r"\.+run\.lock(\.[0-9a-f]+)+")  # names of what `_create` and `_replace` write, and a kill leaves
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of file systems without hard links


class Holder(msgspec.Struct, frozen=True):
    """The contents of ``run.lock``.

    Attributes:
        host, machine, boot: the machine's name, its ``/etc/machine-id``, and an id of the time since it was started.
        pid, namespace, started: the process, the process numbers' namespace, and the process's start in clock ticks
            since the machine's.
        folder, time: what was locked, and when.
        flock: the file is locked by flock, too, as long as the process lives.
        slurm, torchrun: ids of the jobs, or empty; and how often they have been restarted. torchrun's is that of
            ``--rdzv-id`` with the address where its ranks meet.
    """

    host: str
    machine: str
    boot: str
    pid: int
    namespace: str
    started: int
    folder: str
    time: str
    flock: bool
    slurm: str = ""
    slurm_restarts: int = 0
    torchrun: str = ""
    torchrun_restarts: int = 0

    def describe(self) -> str:
        job = f", Slurm job {self.slurm}" if self.slurm else ""
        return f"process {self.pid} on {self.host}{job}, since {self.time}"


@dataclass
class _Held:
    path: Path
    file: BinaryIO
    made: list[Path]  # folders, innermost first


_held: _Held | None = None


@contextmanager
def held(output: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is created if it does not exist. Does something on rank 0 only.

    Raises:
        UserError: another run holds it.
    """
    if env_rank() == 0:
        _take(output)
    try:
        yield
    finally:
        release()


def release() -> None:
    """Remove the lock that this process holds, if any. For a process that is about to end, from any thread."""
    global _held
    lock, _held = _held, None
    if lock is None:
        return
    with suppress(OSError):
        if _is_at(lock.file, lock.path):
            lock.path.unlink()
        lock.file.close()
        for folder in lock.made:
            folder.rmdir()  # an OSError: it is not empty


stopping.BEFORE_LEAVING.append(release)


def _take(output: Path) -> None:
    global _held
    assert _held is None, "this process holds the lock of a run"
    check_links(f"output = {output}", output)
    path, missing = output / LOCK, [p for p in (output, *output.absolute().parents) if not p.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        _held = _Held(path, _lock(path), missing)
        with suppress(OSError):
            for left in filter(is_of_lock, set(output.iterdir()) - {path}):
                left.unlink(missing_ok=True)
    except OSError as error:
        parent = next(p for p in (output, *output.absolute().parents) if p.exists())
        if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
            raise UserError(f"output = {output}: {path} cannot be written: {error.strerror or error}.") from error
        # Otherwise `open_run` says what is wrong, together with all other problems.


def is_of_lock(path: Path) -> bool:
    """Whether a file in a run folder is the lock, or what another start has written to lock it, which may be killed."""
    return path.name == LOCK or _LEFT.fullmatch(path.name) is not None


def _lock(path: Path) -> BinaryIO:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        if (mine := _create(path)) is not None:
            return mine
        try:
            if not stat.S_ISREG(path.lstat().st_mode):  # a pipe would be waited for, a link lead anywhere
                raise UserError(f"output = {path.parent}: {path.name} there is not a file of this program. Remove it.")
            file = path.open("rb")
        except FileNotFoundError:
            continue  # released just now
        with file:
            holder, me, free = _read(file), describe_me(path.parent), _flock(file)
            if holder is not None and (why := gone(holder, me, free)) is not None:
                if (mine := _replace(path, file)) is None:
                    continue
                log.info("note: taking over %s from %s: %s.", path, holder.describe(), why)
                return mine
        if holder is not None or time.monotonic() > deadline:
            raise UserError(_refusal(path, holder, me))
        time.sleep(0.1)


def _refusal(path: Path, holder: Holder | None, me: Holder) -> str:
    where, remove = f"output = {path.parent}", f"rm {quoted(str(path))}"
    if holder is None:
        return f"{where}: {path.name} is no lock of this program, or damaged. If no run is writing: {remove}"
    seen = _one_machine(holder, me) and holder.namespace == me.namespace
    unknown = "" if seen else f"\nWhether it still runs cannot be seen from {me.host}. If it does not: {remove}"
    return (
        f"{where}: another run is writing to it ({holder.describe()}). Wait for its end, stop it, or name another "
        f"--output.{unknown}"
    )


def gone(holder: Holder, me: Holder, free: bool) -> str | None:
    """Why the holder of a lock is certainly gone, or None if it may be running.

    Args:
        free: this process could lock the file by flock.
    """
    here, free = _one_machine(holder, me), free and holder.flock
    if here and holder.namespace == me.namespace:  # then it can be seen, whatever a job says of its attempts
        if process_start(holder.pid) != holder.started:
            return "the process has ended"
        return f"the lock is a copy of that in {holder.folder}" if free and holder.folder != me.folder else None
    if holder.slurm and holder.slurm == me.slurm and holder.slurm_restarts < me.slurm_restarts:
        return "an earlier attempt of this Slurm job"
    if holder.torchrun and holder.torchrun == me.torchrun and holder.torchrun_restarts < me.torchrun_restarts:
        return "an earlier attempt of this torchrun"
    if here:  # in another container, where its number means another process
        return "the process has ended" if free else None
    same_name = (holder.host, holder.machine) == (me.host, me.machine)
    return "the machine was restarted since" if same_name and holder.boot and me.boot else None


def _one_machine(holder: Holder, me: Holder) -> bool:
    """Whether both are processes of one machine since its last start."""
    return holder.boot == me.boot and bool(me.boot or (holder.host, holder.machine) == (me.host, me.machine))


def describe_me(folder: Path) -> Holder:
    """What this process writes into the lock of a folder."""
    torchrun, torchrun_restarts = torchrun_job()
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    return Holder(
        host=socket.gethostname(),
        machine=_content("/etc/machine-id"),
        boot=_content("/proc/sys/kernel/random/boot_id"),
        pid=os.getpid(),
        namespace=_namespace(),
        started=process_start(os.getpid()),
        folder=str(folder.resolve()),
        time=datetime.now().astimezone().isoformat(" ", "seconds"),
        flock=False,
        slurm=os.environ.get("SLURM_JOB_ID", ""),
        slurm_restarts=int(restarts) if restarts.isdecimal() else 0,
        torchrun=torchrun,
        torchrun_restarts=torchrun_restarts,
    )


def _content(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def process_start(pid: int) -> int:
    """When a process of this machine was started, in clock ticks; -1 if there is none. Without /proc 0 if there is."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] in "ZX" else int(fields[19])
    except OSError:
        if Path("/proc/self").exists():
            return -1
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return -1
    except PermissionError:
        pass
    return 0


# --- the file ---------------------------------------------------------------------------------------------------------


def _create(path: Path) -> BinaryIO | None:
    """Create the lock, open and with its contents; None if there is one."""
    new = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
    file = _write(new)
    try:
        os.link(new, path)
    except OSError as error:
        if os.fstat(file.fileno()).st_nlink == 2:  # a network file system did it twice, and reports the second time
            return file
        file.close()
        if error.errno == errno.EEXIST or not new.exists():  # removed by another start, which has the lock now
            return None
        if error.errno not in _NO_LINKS:
            raise
        try:
            return _write(path)
        except FileExistsError:
            return None
    finally:
        new.unlink(missing_ok=True)
    return file


def _write(path: Path) -> BinaryIO:
    """Create a file of the lock; a full disk leaves none."""
    file = path.open("xb")
    try:
        holder = msgspec.structs.replace(describe_me(path.parent), flock=_flock(file))
        file.write(to_json(msgspec.to_builtins(holder), indent=1).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
            file.close()
        raise
    return file


def _flock(file: BinaryIO) -> bool:
    """Lock an open file by flock, without waiting; False if it is locked, or its file system has no such locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _read(file: BinaryIO) -> Holder | None:
    try:
        found: Holder = parse_json(file.read(2**16).decode("utf-8", "replace"), LOCK, Holder)
    except UserError:
        return None
    return found


def _is_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _replace(path: Path, file: BinaryIO) -> BinaryIO | None:
    """Put a lock of ours in the place of one that was read from ``file``; None if another process is quicker.

    Whoever does this holds a lock on doing so for that one file. So nobody else touches the path meanwhile, where there
    is always a lock: a process that finds none would create its own.
    """
    old = os.fstat(file.fileno())
    taking = path.with_name(f".{path.name}.{old.st_ino}.{old.st_mtime_ns}")
    try:
        claim = _lock(taking)
    except UserError:
        time.sleep(0.01)
        return None
    try:
        if not _is_at(file, path):
            return None
        new = path.with_name(f".{path.name}.{os.urandom(8).hex()}")
        mine = _write(new)
        new.replace(path)
        return mine
    finally:
        claim.close()
        taking.unlink(missing_ok=True)
