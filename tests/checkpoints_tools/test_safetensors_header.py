"""Headers of safetensors files, indexes that lie, and tensors that several files have."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tools.folder import check_folder
from checkpoints_tools.load import open_checkpoint
from checkpoints_tools.safetensors_header import read_header
from data.errors import UserError


def entry(begin: Any = 0, end: Any = 24, shape: Any = (2, 3), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def with_header(path: Path, header: Any, n_bytes: int = 24, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return written(path, struct.pack("<Q", len(text) if length is None else length) + text + bytes(n_bytes))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"hello", "not a safetensors"),
        (struct.pack("<Q", 4) + b"{..}", "damaged"),
        (struct.pack("<Q", 2) + b"{}" + b"x", "damaged"),
        (struct.pack("<Q", 7) + b'{"a":1}', "damaged header: a: the document must be an object; it is 1"),
        (struct.pack("<Q", 2**62), "not a safetensors"),
        (struct.pack("<Q", 1000) + b"{}", "truncated: its header alone has 1,008 bytes"),
    ],
)
def test_files_that_are_no_safetensors(tmp_path, content, word):
    with pytest.raises(UserError, match=word):
        read_header(written(tmp_path / "x.safetensors", content))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(dtype=[])}, "header: a: dtype must be a text"),
        ({"a": entry(shape="aa")}, "header: a: shape must be a list; it is 'aa'"),
        ({"a": entry(shape=[2, "x"])}, r"header: a: shape\[1\] must be a whole number; it is 'x'"),
        ({"a": entry(shape=[2, -3])}, "at least 0; it is -3"),
        ({"a": entry(shape=[10**30])}, "at most 1,099,511,627,776"),
        ({"a": entry(shape=[1] * 9)}, "header: a: shape"),
        ({"a": entry(shape=[3, 3])}, "a has bytes 0 to 24, .* the shape .3, 3. has 36 bytes"),
        ({"a": entry(dtype="F16")}, "F16 of the shape .2, 3. has 12 bytes"),
        ({"a": entry(end="x")}, r"data_offsets\[1\] must be a whole number"),
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [24]}}, "header: a: data_offsets"),
        ({"a": {"dtype": "F32", "shape": [2, 3]}}, "data_offsets is missing"),
        ({"a": entry(), "b": entry()}, "b has bytes 0 to 24, but the tensor before it ends at 24"),
        ({"a": entry(12, 24, [3])}, "a has bytes 12 to 24, but the tensor before it ends at 0"),
        ({"a": entry(24, 12, [0]), "b": entry()}, "a has bytes 24 to 12"),
        ({"a": entry(end=36)}, "truncated: it has .* its header says"),
        (b"[" * 100_000, "nested more than 64 levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits|out of range"),
        ({f"t{i}": entry(0, 0, [0]) for i in range(20_001)}, "20,001 tensors; the limit for one file is 20,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "header",
)
def test_headers_that_lie(header, message, tmp_path):
    with pytest.raises(UserError, match=f"x.safetensors.*{message}"):
        read_header(with_header(tmp_path / "x.safetensors", header))


def test_a_dtype_that_only_the_library_refuses(hf_folder):
    """A buffer that is not read may have any dtype; the library refuses the file when it is opened."""
    folder, _ = hf_folder()
    content = (folder / "model.safetensors").read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length
    header["model.layers.0.self_attn.rotary_emb.inv_freq"] = entry(end, end, [0], "Q7")
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    source = open_checkpoint(folder)
    with pytest.raises(UserError, match="model.safetensors cannot be read as safetensors"):
        source.read("embed.weight")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": ["a"]}, "index.json: weight_map must be an object; it is .'a'."),
        ({"weight_map": {"a": 3}}, "index.json: weight_map.* must be a text"),
        ({"weight_map": {"a": "../x.safetensors"}}, "lists '../x.safetensors', which is not the name of a file beside"),
        ({"weight_map": {"a": "/etc/passwd"}}, "lists '/etc/passwd', which is not"),
        ({"weight_map": {"a": ".."}}, "lists '..', which is not"),
        ({"weight_map": {"a": "x\0"}}, "which is not the name of a file"),
        ({"weight_map": {"a": "x" * 5000}}, "lists 'x{100}', which is not the name of a file"),
        ({}, "lists no files"),
    ],
)
def test_indexes_that_lie(index, message, hf_folder):
    folder, _ = hf_folder(shard_size="60KB")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        check_folder(folder)


@pytest.mark.parametrize("holder", ["first", "last"])
def test_of_two_files_with_a_tensor_the_one_in_the_index_is_read(holder, hf_folder, caplog):
    folder, model = hf_folder(shard_size="60KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(folder.glob("model-*.safetensors"))
    right, wrong = (files[0], files[-1]) if holder == "first" else (files[-1], files[0])
    expected = model.state_dict()["model.norm.weight"].clone()
    for path in files:
        tensors = load_file(path)
        tensors.pop("model.norm.weight", None)
        if path in (right, wrong):
            tensors["model.norm.weight"] = expected if path == right else expected + 1
        save_file(tensors, path)
    index["weight_map"]["model.norm.weight"] = right.name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(open_checkpoint(folder).read("norm.weight")[:], expected)
    both = f"{files[0].name} and {files[-1].name}"
    assert f"1 tensor(s) are in several files, such as model.norm.weight in {both}; reading those that" in caplog.text

    del index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    message = f"{both} have model.norm.weight; remove the wrong one"
    with pytest.raises(UserError, match=message):
        check_folder(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=message):
        check_folder(folder)


def test_a_buffer_that_is_not_read_may_be_in_several_files(hf_folder, caplog):
    folder, _ = hf_folder(shard_size="60KB")
    for path in sorted(folder.glob("model-*.safetensors")):
        save_file(load_file(path) | {"model.rotary_emb.inv_freq": torch.ones(4)}, path)
    (folder / "model.safetensors.index.json").unlink()
    check_folder(folder)
    assert not caplog.text


def test_a_name_that_counts_files_without_end(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / f"model-00001-of-{10**12}.safetensors").touch()
    with pytest.raises(UserError, match="one of 1,000,000,000,000 files; the limit is 10,000"):
        check_folder(tmp_path)
