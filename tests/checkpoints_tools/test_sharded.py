"""Training checkpoints are read as torch reads them, without what is in them being run, believed or read elsewhere."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
)

from checkpoints_tools.checksums import CHUNK, write_checksums
from checkpoints_tools.inspect import main as inspect_main
from checkpoints_tools.sharded import load_sharded, read_metadata
from data.errors import UserError
from data.files import limits

ROOT = Path(__file__).resolve().parents[2]
OLD = sorted((ROOT / "tests" / "old_files").rglob(".metadata"))
DATA = "__0_0.distcp"


class Touch:
    """A pickle that makes a file when it is loaded as pickles usually are."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(7, 5, generator=generator) for name in ("a", "b")}
    return {"model": weights, "optim": {"lr": 1e-3, "betas": (0.9, 0.95), "names": ["a"], "none": None}}


def empty() -> dict[str, Any]:
    weights = {name: torch.zeros(7, 5) for name in ("a", "b")}
    return {"model": weights, "optim": {"lr": 0.0, "betas": (), "names": [], "none": 1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dcp.save(state(), checkpoint_id=tmp_path / "step", no_dist=True)
    return tmp_path / "step"


def rewrite(folder: Path, change: Any) -> None:
    """Unpickle ``.metadata``, change it, and pickle it again."""
    found = pickle.loads((folder / ".metadata").read_bytes())
    (folder / ".metadata").write_bytes(pickle.dumps(change(found) or found))


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.parts[-4])
def test_metadata_is_read_as_torch_reads_it(path: Path) -> None:
    theirs, ours = pickle.loads(path.read_bytes()), read_metadata(path.parent)
    assert ours.storage_data == theirs.storage_data and len(ours.storage_data) > 50
    assert [index.index for index in ours.storage_data] == [index.index for index in theirs.storage_data]
    assert ours.state_dict_metadata.keys() == theirs.state_dict_metadata.keys()
    for name, entry in theirs.state_dict_metadata.items():
        found = ours.state_dict_metadata[name]
        assert type(found) is type(entry)
        if not isinstance(entry, BytesStorageMetadata):
            assert (found.size, found.chunks) == (entry.size, entry.chunks)
            assert found.properties.dtype == entry.properties.dtype


def test_a_state_is_read_as_torch_reads_it(folder: Path) -> None:
    theirs, ours = empty(), empty()
    dcp.load(theirs, checkpoint_id=folder, no_dist=True)
    load_sharded(folder, ours)
    assert ours["optim"] == theirs["optim"] == state()["optim"]
    for name, tensor in state()["model"].items():
        assert torch.equal(ours["model"][name], tensor)


def test_metadata_that_python_3_11_2_wrote(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names a member of an enumeration by getattr; other versions by its value."""
    kind, before = _MEM_FORMAT_ENCODING, read_metadata(folder)
    monkeypatch.setattr(kind, "__reduce_ex__", lambda self, protocol: (getattr, (kind, self.name)))
    rewrite(folder, lambda found: None)
    assert b"getattr" in (folder / ".metadata").read_bytes()
    assert read_metadata(folder) == before
    loaded = empty()
    load_sharded(folder, loaded)
    assert torch.equal(loaded["model"]["b"], state()["model"]["b"])


@pytest.mark.parametrize("arguments", [(Metadata, "x"), (_MEM_FORMAT_ENCODING, 1), (_MEM_FORMAT_ENCODING, "x", 0)])
def test_other_attributes_are_refused(folder: Path, arguments: tuple[Any, ...]) -> None:
    class Attribute:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, arguments

    (folder / ".metadata").write_bytes(pickle.dumps(Attribute()))
    with pytest.raises(UserError, match="calls builtins.getattr, which could run code; refused"):
        read_metadata(folder)


def test_code_in_the_metadata_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    for value in (Touch(tmp_path / "ran"), {"x": [Touch(tmp_path / "ran")]}):
        (folder / ".metadata").write_bytes(pickle.dumps(value))
        with pytest.raises(UserError, match=r"\.metadata holds more than tensors: it names posix.mknod, which could"):
            load_sharded(folder, empty())
        assert inspect_main([str(folder)]) == 2
        assert "it names posix.mknod" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    pickle.loads((folder / ".metadata").read_bytes())
    assert (tmp_path / "ran").exists(), "it would have run"


def test_code_in_a_value_is_refused(tmp_path: Path) -> None:
    harmful = state()
    harmful["optim"]["lr"] = Touch(tmp_path / "ran")
    dcp.save(harmful, checkpoint_id=tmp_path / "step", no_dist=True)
    with pytest.raises(UserError, match=rf"{DATA} holds more than tensors: it names posix.mknod"):
        load_sharded(tmp_path / "step", empty())
    assert not (tmp_path / "ran").exists()
    dcp.load(empty(), checkpoint_id=tmp_path / "step", no_dist=True)
    assert (tmp_path / "ran").exists(), "it would have run"


def outside(found: Metadata) -> None:
    found.storage_data = {key: _StorageInfo("../" + DATA, 0, 9) for key in found.storage_data}


def negative(found: Metadata) -> None:
    found.storage_data = {key: _StorageInfo(DATA, -5, 9) for key in found.storage_data}


def shared_lists(found: Metadata) -> None:
    """A small file that would become large: one list of parts for many tensors."""
    entry = found.state_dict_metadata["model.a"]
    entry.chunks = [ChunkStorageMetadata(torch.Size([0, 0]), torch.Size([7, 5]))] * 9
    found.state_dict_metadata["model.b"].chunks = entry.chunks


def no_tensor(found: Metadata) -> None:
    found.state_dict_metadata["model.a"].size = [7, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, "what it says of a tensor's place"),
        (negative, "what it says of a tensor's place"),
        (shared_lists, "what it says of a tensor is not"),
        (no_tensor, "what it says of a tensor is not"),
        (lambda found: BytesStorageMetadata(), "no Metadata where one belongs"),
        (lambda found: {1: 2}, "no Metadata where one belongs"),
        (lambda found: MetadataIndex("x"), "no Metadata where one belongs"),
        (lambda found: setattr(found, "storage_data", None), "a list of tensors or of their places is missing"),
    ],
)
def test_what_is_no_metadata(folder: Path, change, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        read_metadata(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x",
        b"\x80\x04K\x01r\xff\xff\xff\x7f.",  # the memo's place 2^31: Python's own unpickler takes 32 GB for it
        b"\x80\x04\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # a bytearray of 64 GB
        b"\x80\x04)" + b"2\x86" * 60 + b"}" + b"N\x86s.",
    ],
)
def test_damaged_metadata(folder: Path, content: bytes) -> None:
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(UserError, match=r"\.metadata"):
        read_metadata(folder)


def test_a_large_file_is_not_read(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(limits, "METADATA_BYTES", 100)
    with pytest.raises(UserError, match="larger than 100 bytes"):
        read_metadata(folder)


def test_changed_metadata_is_read_again(folder: Path) -> None:
    assert "model.a" in read_metadata(folder).state_dict_metadata
    rewrite(folder, lambda found: setattr(found, "state_dict_metadata", {}))
    assert read_metadata(folder).state_dict_metadata == {}


def test_values_that_are_cut_off_or_of_another_kind(folder: Path) -> None:
    rewrite(folder, lambda found: setattr(found, "storage_data", {k: v for k, v in found.storage_data.items()}))
    (folder / DATA).write_bytes((folder / DATA).read_bytes()[:-50])
    with pytest.raises(UserError, match=f"{DATA} is truncated"):
        load_sharded(folder, empty())


def test_what_is_read_is_checked_and_nothing_else(tmp_path: Path) -> None:
    values = {name: torch.randn(CHUNK // 2) for name in ("a", "b")}  # two chunks each, and a bit
    dcp.save({"model": values}, checkpoint_id=tmp_path, no_dist=True)
    write_checksums(tmp_path)
    place = read_metadata(tmp_path).storage_data[MetadataIndex("model.b", torch.Size([0]))]
    content = bytearray((tmp_path / DATA).read_bytes())
    damaged = place.offset + place.length // 2
    content[damaged] ^= 1
    (tmp_path / DATA).write_bytes(content)
    target = torch.zeros(CHUNK // 2)
    load_sharded(tmp_path, {"model": {"a": target}})
    assert torch.equal(target, values["a"])
    begin = damaged // CHUNK * CHUNK
    with pytest.raises(UserError, match=f"{DATA}, bytes {begin:,} to {begin + CHUNK - 1:,}"):
        load_sharded(tmp_path, {"model": {"b": target}})
