"""Loading never runs code: pickles that would, at every place that reads a PyTorch file, leave no trace."""

from __future__ import annotations

import io
import json
import pickle
import posix
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoints_tools.convert import convert
from checkpoints_tools.inspect import main as inspect
from checkpoints_tools.load import open_checkpoint
from checkpoints_tools.torch_files import load
from data.errors import UserError
from tests.meta_reference import random_weights, write_meta_folder

ROOT = Path(__file__).parents[2]


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def traps(marker: Path) -> dict[str, bytes]:
    """Pickles that write ``marker`` when Python's unpickler reads them, by how they do it."""
    code, shell = f"open({str(marker)!r}, 'w')", f"touch '{marker}'"
    system = b"cposix\nsystem\n"
    call = pickle.dumps(Calls(posix.system, shell), protocol=2)
    found = {
        "os.system by REDUCE": call,
        "the same in protocol 4": pickle.dumps({"a": Calls(posix.system, shell)}, protocol=4),
        "builtins.eval": pickle.dumps(Calls(eval, code), protocol=2),
        "builtins.exec in a list in a dict": pickle.dumps({"a": [1, Calls(exec, code)]}, protocol=2),
        "getattr of a module": b"\x80\x02cbuiltins\ngetattr\ncposix\n__dict__\n" + text("get") + b"\x86R0" + call[2:],
        "builtins.open": pickle.dumps(Calls(open, str(marker), "w"), protocol=2),
        "a pickle in bytes, loaded again": pickle.dumps(Calls(pickle.loads, call), protocol=4),
        "a dotted name": b"\x80\x04ctempfile\n_os.system\n" + text(shell) + b"\x85R.",
        "a module of torch": b"\x80\x04ctorch.hub\nos.system\n" + text(shell) + b"\x85R.",
        "INST": b"(S'" + shell.encode() + b"'\niposix\nsystem\n.",
        "OBJ": b"(" + system + b"S'" + shell.encode() + b"'\no.",
        "NEWOBJ": b"\x80\x02csubprocess\nPopen\n(" + text("touch") + text(str(marker)) + b"lp0\n0g0\n\x85\x81.",
        "BUILD, which calls __setstate__": b"\x80\x02cfunctools\npartial\ncfunctools\npartial\n\x85R("
        + system + b")}Nt" + b"b(" + text(shell) + b"lp1\n0" + text(shell) + b"\x85R.",
        "as a key": b"\x80\x02}" + system + text(shell) + b"\x85RK\x01s.",
        "as a persistent id": b"\x80\x02" + system + text(shell) + b"\x85RQ.",
        "behind STOP of another": pickle.dumps({}, protocol=2) + call,
    }  # fmt: skip
    return found


NAMES = list(traps(Path("x")))
# What Python's unpickler refuses as it is here, and torch's could be talked into.
NOT_BY_PYTHON = {
    "a module of torch",
    "getattr of a module",
    "NEWOBJ",
    "BUILD, which calls __setstate__",
    "as a persistent id",
}
NOT_BY_PYTHON |= {"behind STOP of another"}


def as_zip(path: Path, described: bytes, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"data.pkl": described, "version": b"3\n", "byteorder": b"little", **members}.items():
            archive.writestr(f"archive/{name}", content)


def as_old(path: Path, described: bytes, place: int = 3) -> None:
    """The format before PyTorch 1.6, with the pickle at one of its five places."""
    out = io.BytesIO()
    torch.save({}, out, _use_new_zipfile_serialization=False)
    parts, stream = [], io.BytesIO(out.getvalue())
    for _ in range(5):
        begin = stream.tell()
        pickle.load(stream)
        parts.append(out.getvalue()[begin : stream.tell()])
    path.write_bytes(b"".join([*parts[:place], described, *parts[place + 1 :]]))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_BY_PYTHON])
def test_the_traps_are_traps(name, tmp_path):
    found = subprocess.run([sys.executable, "-c", "import pickle, sys; pickle.load(sys.stdin.buffer)"],
                           input=traps(tmp_path / "ran")[name], capture_output=True)  # fmt: skip
    assert (tmp_path / "ran").exists(), found.stderr


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs(name, tmp_path):
    trap, path, marker = traps(tmp_path / "ran")[name], tmp_path / "pytorch_model.bin", tmp_path / "ran"
    for write in (as_zip, *(lambda p, t, i=i: as_old(p, t, i) for i in range(5)), lambda p, t: p.write_bytes(t)):
        write(path, trap)
        try:
            assert load(path) in ({}, None)  # what follows STOP is never reached
        except UserError as error:
            assert str(path) in str(error)
        else:
            assert name == "behind STOP of another"
        assert not marker.exists()


# --- every place that reads one ---------------------------------------------------------------------------------------


def bin_folder(folder: Path, trap: bytes, name: str = "pytorch_model.bin") -> Path:
    folder.mkdir()
    config = dict(model_type="llama", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 8}))
    as_zip(folder / name, trap)
    return folder


def sharded_folder(folder: Path, trap: bytes) -> Path:
    bin_folder(folder, trap, "part.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": "part.bin"}}))
    return folder


def meta_folder(folder: Path, trap: bytes) -> Path:
    write_meta_folder(folder, random_weights(), 2)
    as_zip(folder / "consolidated.01.pth", trap)
    return folder


TASK = """
name = "things"
text_column = "text"
instruction = "What is it?"
files = {train = "data.csv", test = "data.csv"}
fields = [{name = "label", type = "class", labels = ["fruit", "animal"]}]
"""
FOLDERS = {"bin": bin_folder, "sharded": sharded_folder, "Meta": meta_folder}


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_reader_refuses(kind, tmp_path, capsys):
    marker = tmp_path / "ran"
    folder = FOLDERS[kind](tmp_path / "folder", traps(marker)["os.system by REDUCE"])
    advice = r"refused\. If you trust [^.]* save its state_dict as safetensors\. The file was not read\.(\n|$)"
    with pytest.raises(UserError, match=f"names posix.system, which could run code; {advice}"):
        open_checkpoint(folder)
    with pytest.raises(UserError, match=r"names posix.system"):
        convert(folder, tmp_path / "converted")
    assert inspect([str(folder)]) == 2 and "names posix.system" in capsys.readouterr().err
    assert not marker.exists()


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_programs_refuse(program, tmp_path):
    marker = tmp_path / "ran"
    folder = bin_folder(tmp_path / "folder", traps(marker)["os.system by REDUCE"])
    (tmp_path / "data.csv").write_text("text,label\nan apple,fruit\na cat,animal\n")
    (tmp_path / "task.toml").write_text(TASK)
    command = [sys.executable, ROOT / program, "--model", "llama", "--checkpoint", str(folder), "--task", "task.toml"]
    done = subprocess.run([*map(str, command), "--output", "out"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "posix.system" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not marker.exists()


# --- what takes memory or time ----------------------------------------------------------------------------------------


def tensor(elements: int = 6, offset: Any = 0, sizes: Any = (2, 3), strides: Any = (3, 1), key: Any = "0") -> bytes:
    """A dict with one tensor, as torch.save would describe it."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", elements) if isinstance(value, Storage) else None

    out = io.BytesIO()
    arguments = (Storage(), offset, sizes, strides, False, {})
    Pickler(out, protocol=2).dump({"a": Calls(torch._utils._rebuild_tensor_v2, *arguments)})
    return out.getvalue()


def doubled(levels: int) -> Any:
    """A tuple of which every level has the one below twice: 2**levels values."""
    return (doubled_below := doubled(levels - 1), doubled_below) if levels else (1, 1)


def colliding(keys: int) -> bytes:
    """A dict whose keys all have the same hash."""
    return pickle.dumps({n * (2**61 - 1): 0 for n in range(keys)}, protocol=2)


def nested_tuples(levels: int) -> bytes:
    """A key of which every level has the one below twice: 2**levels values to hash."""
    return b"\x80\x02})" + b"".join(b"q\x00h\x00\x86" for _ in range(levels)) + b"K\x01s."


@pytest.mark.parametrize(
    ("described", "message"),
    [
        pytest.param(b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "names builtins.bytearray", id="bytearray"),
        pytest.param(b"\x80\x02ccollections\nCounter\n)R.", "names collections.Counter", id="Counter"),
        pytest.param(nested_tuples(60), "a tuple as a key", id="hash"),
        pytest.param(b"\x80\x02" + b"(" * 510_000, "more than 500,000 steps", id="steps"),
        pytest.param(b"\x80\x02]r\xff\xff\xff\xff.", "no dict of tensors", id="memo"),
        pytest.param(b"\x80\x02X\xff\xff\xff\x7fa", "truncated or damaged", id="text length"),
        pytest.param(b"\x80\x02\x8b\xff\xff\xff\x7f1.", "truncated or damaged", id="number length"),
        pytest.param(b"\x80\x02h\x05.", "truncated or damaged", id="no such memo"),
        pytest.param(b"\x80\x02R.", "truncated or damaged", id="empty stack"),
        pytest.param(b"\x80\x02t.", "truncated or damaged", id="no mark"),
        pytest.param(b"\x80\x02.", "truncated or damaged", id="nothing"),
        pytest.param(b"\x80\x02K\x01Q.", "what it says of a storage", id="persistent id"),
        pytest.param(b"\x80\x02K\x01)R.", "it calls a int", id="call of a number"),
        pytest.param(b"\x80\x02}K\x01a.", "adds to a dict as to a list", id="append to a dict"),
        pytest.param(b"\x80\x02]K\x01b.", "sets the state of a list", id="state of a list"),
        pytest.param(tensor(elements=10**11), "'0' has 24 bytes, but 100,000,000,000 elements", id="storage size"),
        pytest.param(tensor(elements=-1), "what it says of a storage", id="negative storage"),
        pytest.param(tensor(key="1"), "storage '1' is missing", id="storage missing"),
        pytest.param(tensor(key=["1"]), "what it says of a storage", id="storage key"),
        pytest.param(tensor(offset=1), "has a storage of 6 elements", id="offset"),
        pytest.param(tensor(offset=-1), "damaged: a tensor has the sizes", id="negative offset"),
        pytest.param(tensor(sizes=(3, 3)), "has a storage of 6 elements", id="sizes"),
        pytest.param(tensor(sizes=(10**9, 6), strides=(0, 1)), "expanded from 6 elements", id="expanded"),
        pytest.param(tensor(sizes=(10**30,), strides=(0,)), "damaged: a tensor has the sizes", id="huge"),
        pytest.param(tensor(sizes=(0, 2**40, 2), strides=(1, 1, 1)), "damaged: a tensor of sizes", id="empty, huge"),
        pytest.param(tensor(sizes=(1,) * 100, strides=(1,) * 100), "damaged: a tensor of sizes", id="dimensions"),
        pytest.param(tensor(sizes=(6,)), "damaged: a tensor has the sizes", id="strides missing"),
        pytest.param(tensor(sizes=("6", 1)), "damaged: a tensor has the sizes", id="size a text"),
        pytest.param(tensor(sizes=6), "what it says of a tensor", id="sizes a number"),
        pytest.param(tensor(sizes=(doubled(40), 1)), "more than 1,000 values", id="sizes doubled"),
        pytest.param(tensor(strides=(doubled(40), 1)), "more than 1,000 values", id="strides doubled"),
        pytest.param(tensor(key=doubled(40)), "more than 1,000 values", id="key doubled"),
        pytest.param(pickle.dumps({"a": [doubled(40)]}, protocol=2), "more than 500,000 values", id="value doubled"),
        pytest.param(colliding(1000), "more than 60 bits as a key", id="keys of one hash"),
    ],
)  # fmt: skip
def test_what_takes_memory_or_time(described, message, tmp_path):
    folder = bin_folder(tmp_path / "folder", described)
    as_zip(folder / "pytorch_model.bin", described, **{"data/0": bytes(24)})
    with pytest.raises(UserError, match=f"pytorch_model.bin.*({message})"):
        open_checkpoint(folder)
