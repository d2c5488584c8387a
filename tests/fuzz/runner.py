"""Give mutated inputs to a parser in child processes, and count what it must not do.

A child is forked from this process, with the product's modules already imported. It reads one input after the other and
reports each through a pipe. What must not happen:

    exception   anything but the product's `UserError`; a MemoryError counts as memory
    crash       the child dies of a signal, or exits
    time        an input takes longer than `Limits.seconds`; a watchdog then writes down where, and ends the child
    memory      resident memory grows by more than `Limits.memory` during one input

After a crash or a timeout another child continues with the next input. A child's address space is bounded
(`Limits.address_space`), so that an input cannot take the machine down.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import math
import os
import re
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from data.errors import UserError
from tests.fuzz.mutations import mutate

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "out"  # in a parser's folder: for what its reader writes; removed before every input
PER_CHILD = 500  # inputs: so that what the product caches does not add up
FRAME = re.compile(r'File "(.+?)", line (\d+) in (.+)')


@dataclass(frozen=True)
class Parser:
    """A parser under test.

    Attributes:
        write: writes a valid sample into an empty folder.
        files: the files in it that are mutated, one for each input.
        read: reads the sample as the product does; it is given the mutated file.
    """

    name: str
    write: Callable[[Path], object]
    files: tuple[str, ...]
    read: Callable[[Path], object]


# An input is ended after so many times the seconds that it may take: other programs may have the processor meanwhile.
PATIENCE = 4


@dataclass(frozen=True)
class Limits:
    """What an input may take: seconds of the processor, bytes of resident memory, bytes of address space."""

    seconds: float = 5.0
    memory: int = 1 << 30
    address_space: int = 3 << 30


@dataclass(frozen=True)
class Finding:
    """An input that ended in something else than success or a clear error.

    Attributes:
        kind: "exception", "crash", "time" or "memory".
        what: the exception's type, the signal, the seconds or bytes.
        where: file, line and function of the deepest frame in the product's code.
        message: the exception's, on one line, shortened.
        detail: the traceback.
    """

    seed: int
    file: str
    kind: str
    what: str
    where: str
    message: str
    detail: str


@dataclass
class Report:
    """The inputs that one parser was given: how many, how many of them were read without an error, and findings."""

    parser: str
    inputs: int = 0
    read: int = 0
    findings: list[Finding] = field(default_factory=list)

    def count(self, kind: str) -> int:
        return sum(finding.kind == kind for finding in self.findings)

    def groups(self) -> dict[tuple[str, str, str], list[Finding]]:
        """Findings by kind, type and place, the largest group first."""
        found: dict[tuple[str, str, str], list[Finding]] = {}
        for finding in self.findings:
            found.setdefault((finding.kind, finding.what, finding.where), []).append(finding)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def fuzz(
    parser: Parser, seed: int = 0, inputs: int | None = None, seconds: float | None = None, limits: Limits = Limits()
) -> Report:
    """Give a parser the inputs of the seeds ``seed``, ``seed + 1``, ...

    Args:
        inputs, seconds: when to stop; the first that is reached.

    Raises:
        AssertionError: the valid sample cannot be read, so that nothing would be tested.
    """
    assert inputs is not None or seconds is not None, "this would never end"
    deadline = time.monotonic() + (math.inf if seconds is None else seconds)
    last = math.inf if inputs is None else seed + inputs
    with tempfile.TemporaryDirectory(prefix="fuzz_") as scratch:
        run = _Run(parser, Path(scratch), limits, deadline, Report(parser.name))
        run.read_valid_sample()
        while seed < last and time.monotonic() < deadline:
            seed = run.in_child(range(seed, int(min(last, seed + PER_CHILD))))
    return run.report


def write_sample(parser: Parser, folder: Path) -> dict[str, bytes]:
    """Write a parser's valid sample into a new folder; the files to mutate, by name."""
    folder.mkdir(parents=True)
    with _quiet():
        parser.write(folder)
    return {name: (folder / name).read_bytes() for name in parser.files}


def input_of(parser: Parser, originals: dict[str, bytes], seed: int) -> tuple[str, bytes]:
    """The mutated file of a seed: its name and content."""
    rng = Random(f"{parser.name}/{seed}")
    name = rng.choice(parser.files)
    return name, mutate(originals[name], name, rng)


class _Run:
    """A parser's sample, in ``scratch``, and the children that read it until ``deadline`` (of the monotonic clock)."""

    def __init__(self, parser: Parser, scratch: Path, limits: Limits, deadline: float, report: Report) -> None:
        self.parser, self.limits, self.deadline, self.report = parser, limits, deadline, report
        self.folder, self.log = scratch / "sample", scratch / "log"
        self.originals = write_sample(parser, self.folder)

    def read_valid_sample(self) -> None:
        """Also imports what the product imports late, once for all children."""
        for name in self.parser.files:
            _clear(self.folder)
            try:
                with _quiet():
                    self.parser.read(self.folder / name)
            except UserError as error:
                raise AssertionError(f"{self.parser.name}: the valid sample is refused: {error}") from error

    def in_child(self, seeds: range) -> int:
        """Read the inputs of some seeds in a child and note what it reports; returns the first seed that is left."""
        self.log.write_text("")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.close(reading)
                self._child(seeds, lambda line: os.write(writing, json.dumps(line).encode() + b"\n"))
            except BaseException:
                self.log.write_text(traceback.format_exc())
            finally:
                os._exit(0)  # never back into the caller's code
        os.close(writing)
        seed, name = seeds.start, ""
        for line in _lines(reading, 2 * PATIENCE * self.limits.seconds + 30):
            if "reading" in line:
                name = line["reading"]
                continue
            self._note(line["kind"], Finding(seed, name, **line))
            seed, name = seed + 1, ""
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # if it says nothing more; else it has ended
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        log = self.log.read_text(errors="replace")
        if name:  # it ended during this input
            late = "Timeout (" in log
            kind, what = ("time", f"over {self.limits.seconds:g} s") if late else ("crash", _ending(status))
            self._note(kind, Finding(seed, name, kind, what, _where_in_log(log), "", log))
            return seed + 1
        started = seed > seeds.start or time.monotonic() > self.deadline
        assert started, f"{self.parser.name}: the child read nothing:\n{log}"
        return seed

    def _note(self, kind: str, finding: Finding) -> None:
        self.report.inputs += 1
        self.report.read += kind == "read"
        if kind not in ("read", "refused"):
            self.report.findings.append(finding)

    def _child(self, seeds: range, report: Callable[[dict[str, str]], object]) -> None:
        """What the child does: reports ``{"reading": file}``, then how that ended."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        bound = _memory("VmSize") + self.limits.address_space
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
        for name, content in self.originals.items():  # an earlier child may have died with one of them mutated
            _put(self.folder / name, content)
        with self.log.open("w") as log, _quiet():
            faulthandler.enable(log)
            for seed in seeds:
                if time.monotonic() > self.deadline:
                    return
                name, content = input_of(self.parser, self.originals, seed)
                _clear(self.folder)
                _put(self.folder / name, content)
                report({"reading": name})
                faulthandler.dump_traceback_later(PATIENCE * self.limits.seconds, exit=True, file=log)
                Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
                before = _memory("VmRSS")
                begin = time.process_time()
                outcome = _outcome(self.parser, self.folder / name)
                faulthandler.cancel_dump_traceback_later()
                if time.process_time() - begin > self.limits.seconds:
                    outcome |= {"kind": "time", "what": f"over {self.limits.seconds:g} s"}
                if _memory("VmHWM") - before > self.limits.memory:
                    outcome |= {"kind": "memory", "what": f"over {self.limits.memory >> 20:,} MiB"}
                report(outcome)
                _put(self.folder / name, self.originals[name])


def _lines(reading: int, patience: float) -> Iterator[dict[str, str]]:
    """The child's reports, until it closes the pipe or says nothing for ``patience`` seconds."""
    rest = b""
    while select.select([reading], [], [], patience)[0]:
        chunk = os.read(reading, 1 << 16)
        if not chunk:
            return
        *complete, rest = (rest + chunk).split(b"\n")
        yield from map(json.loads, complete)


def _ending(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"


def _outcome(parser: Parser, file: Path) -> dict[str, str]:
    """How reading a file ended: the fields of a `Finding`, of which it is one unless it was read or refused."""
    found: BaseException
    try:
        parser.read(file)
        return {"kind": "read", "what": "", "where": "?", "message": "", "detail": ""}
    except UserError as error:
        kind, found = "refused", error
    except BaseException as error:  # a panic of Rust is none of Exception
        kind, found = "memory" if isinstance(error, MemoryError) else "exception", error
    detail = "".join(traceback.format_exception(found, limit=-12, chain=False))[-6000:]
    message = " ".join(str(found)[:200].split())
    return {"kind": kind, "what": type(found).__name__, "where": _where(found), "message": message, "detail": detail}


def _where_in_log(log: str) -> str:
    """The deepest frame of the product in what faulthandler wrote: the most recent call comes first."""
    for path, line, function in FRAME.findall(log):
        if _is_product(path):
            return f"{Path(path).relative_to(ROOT)}:{line} {function}"
    return "?"


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_product(frame.filename)]
    if not frames:
        return "?"
    deepest = frames[-1]
    return f"{Path(deepest.filename).relative_to(ROOT)}:{deepest.lineno} {deepest.name}"


def _is_product(path: str) -> bool:
    file = Path(path)
    return file.is_relative_to(ROOT) and not file.is_relative_to(ROOT / "tests")


def _memory(name: str) -> int:
    """A figure of /proc/self/status in bytes: VmRSS, VmHWM (its highest), VmSize."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"no {name} in /proc/self/status")


def _put(path: Path, content: bytes) -> None:
    """Write a new file: the old one may still be mapped."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _clear(folder: Path) -> None:
    shutil.rmtree(folder / OUTPUT, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard what the product prints and logs, but format it, as a user's terminal would have it."""
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler = logging.StreamHandler(nowhere)
        root = logging.getLogger()
        root.addHandler(handler)
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yield
        finally:
            root.removeHandler(handler)
