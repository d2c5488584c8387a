"""PyTorch files of both formats give what ``torch.load`` gives; archives that lie are refused."""

from __future__ import annotations

import io
import random
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from checkpoints_tools.torch_files import load, load_tensors
from data.errors import UserError


def contents() -> dict:
    """Tensors of every dtype and of every form that a state dict may have."""
    torch.manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
              torch.int8, torch.uint8, torch.bool, torch.complex64)  # fmt: skip
    base = torch.randn(6, 8)
    return {
        **{str(dtype): (torch.randn(3, 5) * 9).to(dtype) for dtype in dtypes},
        "a view": base[1:4, 2:6],
        "transposed": base.T,
        "the same storage": base,
        "a number": torch.tensor(3.0),
        "empty": torch.ones(0, 4),
        "a parameter": nn.Parameter(torch.randn(2, 2)),
        "ones dimension expanded": torch.arange(4).expand(1, 4),
    }


@pytest.mark.parametrize("archive", [True, False])
def test_as_torch_load(archive, tmp_path):
    torch.save(contents(), tmp_path / "a.bin", _use_new_zipfile_serialization=archive)
    expected, found = torch.load(tmp_path / "a.bin"), load_tensors(tmp_path / "a.bin")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and found[name].stride() == tensor.stride(), name
        assert torch.equal(found[name], tensor), name


def test_state_dicts_and_other_values(tmp_path):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    torch.save(model.state_dict(), tmp_path / "a.bin")
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in load_tensors(tmp_path / "a.bin").items()
    )
    torch.save({"8 bits": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "a.bin")
    assert load_tensors(tmp_path / "a.bin")["8 bits"].dtype == torch.float8_e4m3fn
    values = {"python": random.getstate(), "cuda": None, "rates": [1.5, True, -3, 2**70], 7: {"nested": ("é",)}}
    torch.save(values | {"torch": torch.get_rng_state()}, tmp_path / "a.bin")
    found = load(tmp_path / "a.bin")
    assert torch.equal(found.pop("torch"), torch.get_rng_state()) and found == values
    with pytest.raises(UserError, match="no dict of tensors by name"):
        load_tensors(tmp_path / "a.bin")


def rewritten(path: Path, compression: int = zipfile.ZIP_STORED, **changed: bytes) -> None:
    """Write an archive again with other contents of some members."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, changed.get(entry.filename.partition("/")[2], old.read(entry)))


def patched(path: Path, at: int, content: bytes) -> None:
    old = path.read_bytes()
    at = at % len(old)
    path.write_bytes(old[:at] + content + old[at + len(content) :])


def directory(path: Path) -> int:
    return path.read_bytes().index(b"PK\x01\x02")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: rewritten(p, zipfile.ZIP_DEFLATED), "data.pkl in it is compressed or encrypted"),
        (lambda p: rewritten(p, byteorder=b"big"), "big-endian"),
        (lambda p: rewritten(p, **{"data/0": bytes(23)}), "has 23 bytes, but 6 elements of 4 bytes are stated"),
        (lambda p: zipfile.ZipFile(p, "w").close(), "torch.save did not write it: 0 data.pkl"),
        (lambda p: patched(p, -10, struct.pack("<I", 2**30)), "its directory has 1,073,741,824 bytes"),
        (lambda p: patched(p, -10, struct.pack("<II", 2**32 - 1, 2**32 - 1)), "truncated or damaged"),
        (lambda p: patched(p, directory(p) + 42, b"\xff\xff\xff\x7f"), "truncated or damaged"),
        (lambda p: patched(p, directory(p) + 20, b"\xff\xff\xff\x7f" * 2), "not where it should"),
        (lambda p: patched(p, 0, b"PK\x03\x05"), "truncated or damaged"),
        (lambda p: p.write_bytes(b"PK\x03\x04"), "truncated"),
    ],
)  # fmt: skip
def test_archives_that_lie(damage, message, tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": torch.ones(2, 3)}, path)
    rewritten(path)
    assert load(path)["a"].sum() == 6
    damage(path)
    with pytest.raises(UserError, match=f"a.bin.*{message}"):
        load(path)


def test_old_format_that_lies(tmp_path):
    path = tmp_path / "a.bin"
    torch.save({"a": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for old, new in (
        (struct.pack("<q", 6), struct.pack("<q", 2**62)),
        (b"K\x06N", b"K\x07N"),
        (b"M\xe9\x03", b"M\xea\x03"),
    ):
        assert old in whole
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(UserError, match=r"a\.bin.*damaged"):
            load(path)
