"""Tables from streams, their progress while they are read, and how much memory that takes."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import threading
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.readers.records import Record
from data.readers.tables import ENDINGS, ending_of, open_table

# One for each format, packed and not.
SOME_ENDINGS = list({(format, end.endswith(".gz")): end for end, format in reversed(ENDINGS.items())}.values())


def test_a_pipe_is_read_as_it_is_written() -> None:
    reading, writing = os.pipe()
    late = threading.Timer(5, os.close, (writing,))  # so that a reader that waits for the end fails
    late.start()
    with open(reading, "rb", buffering=0) as end:
        stream = io.BufferedReader(end)
        with open_table(stream, "lines", "standard input") as table:
            os.write(writing, b"a\nb\n")
            assert next(table.records) == Record("standard input, line 1", 1, {"text": "a"})
            assert late.is_alive() and table.progress() is None
            late.cancel()
            os.close(writing)
            assert [record.values["text"] for record in table.records] == ["b"]
        assert not stream.closed


def write_rows(path: Path, n: int) -> Path:
    if path.suffix == ".gz":
        plain = write_rows(path.with_suffix(""), n)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        return path
    rows = [{"text": f"a text of some length, number {i}", "n": i} for i in range(n)]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    elif path.suffix in (".conll", ".conllu"):
        rest = "\t_" * (9 if path.suffix == ".conll" else 8)
        path.write_text("".join(f"{row['n']}\t{row['text']}{rest}\n\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".txt":
        path.write_text("".join(f"{row['text']}\n" for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        path.write_text(f"text{mark}n\n" + "".join(f'"{row["text"]}"{mark}{row["n"]}\n' for row in rows))
    return path


@pytest.mark.parametrize("ending", SOME_ENDINGS)
def test_progress(tmp_path: Path, ending: str) -> None:
    path = write_rows(tmp_path / f"t{ending}", 10_000)
    with open_table(path, ENDINGS[ending]) as table:
        seen = [table.progress() for _ in table.records]
    assert len(seen) == 10_000 and seen == sorted(seen)
    # Of a packed file, the part of its packed bytes.
    assert seen[5000] == pytest.approx(0.5, abs=0.5 if path.suffix == ".gz" else 0.05) and seen[-1] == 1.0


def peak_bytes(path: Path) -> int:
    """Most bytes in use while reading a file: Python's and Arrow's."""
    tracemalloc.start()
    arrow = 0
    with open_table(path, ENDINGS[ending_of(path)]) as table:
        for number, _ in enumerate(table.records):
            if number % 100 == 0:
                arrow = max(arrow, pa.total_allocated_bytes())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak + arrow


SEVERAL = [
    ".csv",
    *(pytest.param(x, marks=pytest.mark.slow) for x in (".tsv", ".jsonl", ".json", ".txt", ".conll", ".csv.gz")),
]


@pytest.mark.parametrize("ending", SEVERAL)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str) -> None:
    few, many = (write_rows(tmp_path / f"{n}{ending}", n) for n in (2000, 200_000))
    assert many.stat().st_size > (400_000 if many.suffix == ".gz" else 6_000_000)
    peak_bytes(few)  # imports and caches of the first call
    small, large = peak_bytes(few), peak_bytes(many)
    assert large < small + 100_000, (small, large)


def test_memory_does_not_grow_with_the_row_groups_of_parquet(tmp_path: Path) -> None:
    path, noise = tmp_path / "t.parquet", random.Random(0)
    pq.write_table(pa.table({"text": [noise.randbytes(1000).hex() for _ in range(20_000)]}), path)
    assert pq.ParquetFile(path).num_row_groups == 1 and path.stat().st_size > 20_000_000
    assert peak_bytes(path) < 12_000_000  # a page, a dictionary and a batch, each once compressed
