"""A cache file that is damaged or claims too much is not read; the arrays are built again."""

from __future__ import annotations

import io
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from data.cache import cached
from tests.children import peak_memory

KEY = "ab" * 32
READ = """
import sys; from data.cache import cached
print(cached(sys.argv[2], sys.argv[3], lambda: {"x": __import__("numpy").arange(3)})["x"].tolist())
"""


def header(shape: tuple[int, ...], descr: str = "<i8") -> bytes:
    stream = io.BytesIO()
    npy.write_array_header_2_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def array(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    npy.write_array(stream, values)
    return stream.getvalue()


CASES = {
    "packed zeros": (array(np.zeros(1 << 27, np.uint8)), zipfile.ZIP_DEFLATED),
    "a header that claims terabytes": (header((1 << 40,)), zipfile.ZIP_STORED),
    "a negative size": (header((-5,)), zipfile.ZIP_STORED),
    "large items": (header((8,), "V2000000000"), zipfile.ZIP_STORED),
    "objects": (header((1,), "|O"), zipfile.ZIP_STORED),
    "no header": (b"x" * 99, zipfile.ZIP_STORED),
    "cut off": (array(np.arange(9))[:-8], zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_read(tmp_path: Path, case: str) -> None:
    content, packing = CASES[case]
    with zipfile.ZipFile(tmp_path / f"samples-{KEY[:32]}.npz", "w", packing) as archive:
        archive.writestr("key.npy", array(np.frombuffer(KEY.encode(), np.uint8)), zipfile.ZIP_STORED)
        archive.writestr("x.npy", content)
    printed, peak = peak_memory(READ, str(tmp_path), KEY)
    assert printed == "[0, 1, 2]" and peak < 100 << 20, f"{peak >> 20} MiB"


def test_what_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def never() -> dict[str, np.ndarray]:
        raise AssertionError("it is cached")

    arrays = {"x": np.arange(5, dtype=np.int32), "empty": np.zeros((0, 3)), "yes": np.ones(2, bool)}
    cached(tmp_path, KEY, lambda: arrays)
    with caplog.at_level(logging.WARNING):
        found = cached(tmp_path, KEY, never)
    assert found.keys() == arrays.keys() and not caplog.text
    assert all(found[name].dtype == own.dtype and np.array_equal(found[name], own) for name, own in arrays.items())
