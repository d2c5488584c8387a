"""Files that are written over more than one run: cut anywhere, killed, full disks, other identities, two processes."""

from __future__ import annotations

import csv
import hashlib
import json
import signal
import subprocess
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pytest

from data.errors import UserError
from eval.kept_lines import sha256_of
from eval.predict.inputs import Row, open_input
from eval.predict.outputs import FORMATS, open_output
from tests.eval.predict.rows import COLUMNS, IDENTITY, PREDICTED, ROOT, ROWS, WRITER, one, partial, write


@pytest.mark.parametrize("format", FORMATS)
def test_cut_at_every_byte(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    ends = []  # after each row
    for n in range(1, len(ROWS) + 1):
        write(path, ROWS[:n], finish=False)
        ends.append(partial(path).stat().st_size)
    complete = partial(path).read_bytes()
    assert ends == sorted(set(ends)) and ends[-1] == len(complete) > 130
    skipped = []
    for cut in range(len(complete) + 1):
        partial(path).write_bytes(complete[:cut])
        skipped.append(write(path))
        assert path.read_bytes() == complete
        assert not partial(path).exists() and not (tmp_path / f"out.{format}.partial.json").exists()
        path.unlink()
        (tmp_path / f"out.{format}.partial.json").write_text(json.dumps(IDENTITY))
    assert skipped == [sum(end <= cut for end in ends) for cut in range(len(complete) + 1)]


@pytest.mark.parametrize("format", FORMATS)
def test_what_follows_the_last_complete_record_is_cut_off(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    write(path, ROWS[:3], finish=False)
    with open(partial(path), "ab") as file:
        file.write(bytes(5000))  # as after a power failure
    assert write(path) == 3
    write(tmp_path / f"again.{format}")
    assert path.read_bytes() == (tmp_path / f"again.{format}").read_bytes()


def test_a_huge_cell_is_continued_after(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    rows = one({"text": "x" * (limit + 1), "n": 1}) * 2
    write(tmp_path / "out.csv", rows[:1], finish=False)
    assert write(tmp_path / "out.csv", rows) == 1 and csv.field_size_limit() == limit


@pytest.mark.parametrize("format", FORMATS)
def test_another_identity(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    write(path, ROWS[:3], finish=False)
    before = partial(path).read_bytes()
    for identity, message in (
        ({**IDENTITY, "checkpoint": "xyz"}, "another checkpoint: 'def', and not 'xyz'"),
        ({"input": "abc"}, "another checkpoint: 'def', and not none"),
        ({**IDENTITY, "prefix": "p_"}, "another prefix: none, and not 'p_'"),
        (None, "cannot be continued with an input that is read only once"),
    ):
        with pytest.raises(
            UserError, match=f"{path}.partial (is|was) .*{message}.*Remove that file to start over, or give"
        ):
            write(path, identity=identity)
    with pytest.raises(UserError, match="has another format or other columns"):
        write(path, format="csv" if format == "jsonl" else "jsonl")
    identity_file = tmp_path / f"out.{format}.partial.json"
    assert json.loads(identity_file.read_text()) == IDENTITY
    for content in (None, "{", "3"):
        identity_file.unlink() if content is None else identity_file.write_text(content)
        with pytest.raises(UserError, match="cannot be continued: .*partial.json, .* is missing or damaged"):
            write(path)
    identity_file.write_text(json.dumps(IDENTITY))
    assert partial(path).read_bytes() == before
    assert write(path) == 3


def test_a_partial_file_without_rows_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    for content in (b"", b"text,n,la", b"text,n,label,error\n", b"text,n,label,error\nhalf"):
        partial(path).write_bytes(content)
        (tmp_path / "out.csv.partial.json").write_text('{"input": "another"}' if content else '{"in')
        assert write(path) == 0
        path.unlink()


def test_an_input_that_is_read_once(tmp_path: Path) -> None:
    assert write(tmp_path / "out.csv", identity=None) == 0
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]


def test_a_partial_file_that_was_removed_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(UserError, match="out.csv.partial was removed, renamed or replaced"):
        with open_output(path, COLUMNS, PREDICTED, identity=IDENTITY) as output:
            output.write(ROWS)
            partial(path).unlink()
            write(path, finish=False)  # another process could begin: the lock was on the file that was removed
            output.finish()
    assert write(path) == len(ROWS)


def test_an_output_that_appears_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="out.csv: this is an existing file"):
        with open_output(tmp_path / "out.csv", COLUMNS, PREDICTED) as output:
            output.write(ROWS)
            (tmp_path / "out.csv").write_text("precious")
            output.finish()
    assert (tmp_path / "out.csv").read_text() == "precious" and partial(tmp_path / "out.csv").stat().st_size > 50


def test_a_disk_that_fills(small_disk: Path) -> None:
    path = small_disk / "out.csv"
    (small_disk / "other").write_bytes(bytes(26 << 20))
    rows = [ROWS[1]] * 200_000
    with pytest.raises(UserError, match="cannot write .*partial: No space left.* same command continues"):
        write(path, rows)
    (small_disk / "other").unlink()
    assert 1000 < write(path, rows) < 200_000
    assert path.read_bytes().count(b"two\n") == 200_000


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_process_and_a_second_one(tmp_path: Path, format: str) -> None:
    path = tmp_path / f"out.{format}"
    command = [sys.executable, "-c", WRITER, str(path), "100000", "0.001"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        flushed = [int(process.stderr.readline()) for _ in range(5)][-1]
        with pytest.raises(UserError, match=f"{path}.partial: another process is writing it"):
            write(path)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    rows = [(Row("", {"text": f"line\n{i}", "n": i}, ""), {"label": "x", "error": None}) for i in range(100_000)]
    assert flushed <= write(path, rows) < 100_000
    with open(path, encoding="utf-8", newline="") as file:
        read = csv.DictReader(file) if format == "csv" else map(json.loads, file)
        assert [int(row["n"]) for row in read] == list(range(100_000))


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    def peak_bytes(n: int, format: str) -> int:
        source, path = tmp_path / f"{n}.jsonl", tmp_path / f"{n}-out.{format}"
        source.write_text("".join(f'{{"text": "a text of some length", "n": {i}}}\n' for i in range(n)))
        tracemalloc.start()
        for limit in (n // 2, n):
            with open_input(source) as found, open_output(path, found.columns, PREDICTED, identity={}) as output:
                assert output.n_written == (0 if limit < n else n // 2)
                rows = islice(found.rows, output.n_written, limit)
                output.write((row, {"label": "x", "error": None}) for row in rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert partial(path).read_bytes().count(b"\n") == n + (format == "csv")
        return peak

    for format in FORMATS:
        peak_bytes(100, format)  # caches of the first call
        assert peak_bytes(20_000, format) < peak_bytes(2000, format) + 50_000


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 << 20))
    assert sha256_of(tmp_path / "file") == hashlib.sha256(bytes(3 << 20)).hexdigest()
    with pytest.raises(UserError, match="cannot read .*none"):
        sha256_of(tmp_path / "none")
