"""Damaged files: no exception but the product's own, no crash, no hang, no gigabyte. And the fuzzer notices each."""

from __future__ import annotations

import io
import json
import mmap
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from data.errors import UserError
from data.json_text import to_json
from tests.fuzz.mutations import BOMB, KINDS, deflated_zeros, mutate, zip_of
from tests.fuzz.parsers import PARSERS
from tests.fuzz.runner import Limits, Parser, fuzz, input_of, write_sample
from tests.launching import ROOT, environment

QUICK = 8  # inputs for each parser; with all of them this takes some ten seconds
SLOW = 120  # seconds for each parser
SMALL = Limits(seconds=1.0, memory=64 << 20, address_space=512 << 20)


# --- the product's parsers --------------------------------------------------------------------------------------------


def run_fuzzer(report: Path, *arguments: object) -> tuple[dict[str, Any], str]:
    """Reports by parser, and what was printed. In a process of its own: this one may have threads, and is forked."""
    command = [sys.executable, "-m", "tests.fuzz", "--json", report, *arguments]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert report.is_file(), done.stderr
    return {found["parser"]: found for found in json.loads(report.read_text())}, done.stdout


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_fuzzer(tmp_path_factory.mktemp("fuzz") / "reports.json", "--inputs", QUICK)[0]


@pytest.mark.parametrize("name", PARSERS)
def test_a_few_damaged_files(name: str, quick: dict[str, Any]) -> None:
    assert quick[name]["inputs"] == QUICK
    assert not quick[name]["findings"], f"python -m tests.fuzz {name} --inputs {QUICK}"


@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_for_two_minutes(name: str, tmp_path: Path) -> None:
    reports, printed = run_fuzzer(tmp_path / "reports.json", name, "--seconds", SLOW, "--seed", QUICK)
    assert reports[name]["inputs"] > 100 and reports[name]["read"], "some get past the parser"
    assert not reports[name]["findings"], printed


# --- the fuzzer -------------------------------------------------------------------------------------------------------


class Panic(BaseException):
    """As Rust's panics arrive."""


def refuse() -> None:
    raise UserError("x.json is damaged")


def panic() -> None:
    raise Panic


def take_memory() -> None:
    """Fresh pages: `malloc` could give some that this process had before, and the tests before it leave many."""
    with mmap.mmap(-1, 100 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for _ in range(100):
            memory.write(b"x" * (1 << 20))


FAULTS: dict[str, tuple[Callable[[], object], str, str]] = {
    "KeyError": (lambda: {}["missing"], "exception", "KeyError"),
    "panic": (panic, "exception", "Panic"),
    "exit": (lambda: sys.exit(2), "exception", "SystemExit"),
    "sleep": (lambda: time.sleep(30), "time", "over 1 s"),
    "slow": (lambda: all(time.process_time() < end for end in [time.process_time() + 1.5] for _ in iter(int, 1)),
             "time", "over 1 s"),
    # No function is entered in it: faulthandler may see no frame while Python 3.13 changes them.
    "loop": (lambda: sum(iter(int, 1)), "time", "over 1 s"),
    "resident": (take_memory, "memory", "over 64 MiB"),
    "refused": (lambda: bytearray(1 << 40), "memory", "MemoryError"),
    "segfault": (lambda: os.kill(os.getpid(), signal.SIGSEGV), "crash", "SIGSEGV"),
    "abort": (os.abort, "crash", "SIGABRT"),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), "crash", "SIGKILL"),
    "vanish": (lambda: os._exit(3), "crash", "exit status 3"),
}  # fmt: skip


def faulty(fault: Callable[[], object]) -> Parser:
    """A parser that reads its valid sample, and runs into a fault, below a function of the product, for any other."""

    def use(_: object) -> None:
        fault()

    def read(file: Path) -> None:
        if file.read_bytes() != b"{}":
            to_json(object(), default=use)

    return Parser("faulty", lambda folder: (folder / "x.json").write_text("{}"), ("x.json",), read)


@pytest.mark.parametrize("name", FAULTS)
def test_each_kind_of_fault_is_found(name: str) -> None:
    fault, kind, what = FAULTS[name]
    report = fuzz(faulty(fault), seed=5, inputs=2, limits=SMALL)
    assert [(found.seed, found.file) for found in report.findings] == [(5, "x.json"), (6, "x.json")]
    for found in report.findings:
        assert (found.kind, found.what) == (kind, what)
        if name not in ("slow", "resident", "killed", "vanish"):  # which leave no traceback
            assert found.where.startswith("data/json_text.py:") and found.where.endswith(" to_json")
    assert report.inputs == report.count(kind) == 2 and report.read == 0


def test_what_is_read_or_refused_is_no_finding() -> None:
    for fault, n_read in ((refuse, 0), (lambda: None, 3)):
        report = fuzz(faulty(fault), inputs=3, limits=SMALL)
        assert (report.inputs, report.read, report.findings) == (3, n_read, [])


def test_a_sample_that_is_refused_tests_nothing() -> None:
    with pytest.raises(AssertionError, match="valid sample is refused"):
        fuzz(Parser("closed", lambda folder: (folder / "x").touch(), ("x",), lambda file: refuse()), inputs=1)


def test_a_seed_gives_the_same_input_again(tmp_path: Path) -> None:
    """Also in another folder, and at another time: the samples are the same bytes."""
    for name, parser in PARSERS.items():
        first, second = (write_sample(parser, tmp_path / name / folder) for folder in ("first", "second"))
        assert first == second, name
    assert input_of(parser, first, 3) == input_of(parser, second, 3) != input_of(parser, first, 4)


@pytest.mark.parametrize("name", PARSERS)
def test_mutations_change_files(name: str, tmp_path: Path) -> None:
    parser = PARSERS[name]
    originals = write_sample(parser, tmp_path / "sample")
    for file in parser.files:
        found = [mutate(originals[file], file, Random(seed)) for seed in range(40)]
        assert len(set(found) - {originals[file]}) > 25
    assert {Path(file).suffix for file in parser.files} - {"", ".model"} <= KINDS.keys()


def test_archives_are_packed_so_that_torch_reads_them(tmp_path: Path) -> None:
    """Otherwise every mutated one would be refused for its packing."""
    torch.save({"a": torch.arange(5)}, tmp_path / "x.pth")
    with zipfile.ZipFile(tmp_path / "x.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    assert torch.load(io.BytesIO(zip_of(members)))["a"].tolist() == [0, 1, 2, 3, 4]
    with zipfile.ZipFile(io.BytesIO(zip_of(members, "x/data/0"))) as archive:
        assert archive.getinfo("x/data/0").file_size == BOMB > 1000 * len(deflated_zeros())
        with archive.open("x/data/0") as bomb:
            assert bomb.read(1 << 20) == bytes(1 << 20)
