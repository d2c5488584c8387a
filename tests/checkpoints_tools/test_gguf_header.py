"""GGUF files whose numbers lie: refused at once, without taking memory."""

from __future__ import annotations

import struct
import time

import gguf
import numpy as np
import pytest
import torch

from checkpoints_tools.convert import open_source
from checkpoints_tools.gguf_header import read_gguf
from data.errors import UserError

ARRAY, STRING, UINT8, UINT32 = 9, 8, 0, 4


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def tensor(
    name: str = "t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, dims: int | None = None
) -> bytes:
    dims = len(shape) if dims is None else dims
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", dims, *shape, kind, offset)


def file(*parts: bytes, tensors: int = 0, keys: int = 0, version: bytes = b"\3\0\0\0", data: bytes = b"") -> bytes:
    head = b"GGUF" + version + struct.pack("<QQ", tensors, keys) + b"".join(parts)
    return head + bytes(-len(head) % 32) + data


def one(kind: int, value: bytes) -> bytes:
    return file(key("a", kind, value), keys=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(one(ARRAY, array(UINT8, 2**40)), "lists of more than 2,000,000 values", id="list"),
        pytest.param(one(ARRAY, array(STRING, 10**6)), "it ends at byte", id="list of texts"),
        pytest.param(one(ARRAY, array(UINT32, 10**6)), "within a value of 4,000,000 bytes", id="numbers"),
        pytest.param(one(ARRAY, array(ARRAY, 1, array(UINT8, 0))), "a list of the unknown type 9", id="lists"),
        pytest.param(one(STRING, struct.pack("<Q", 2**62)), "a text of 4,6", id="text"),
        pytest.param(one(STRING, struct.pack("<Q", 10**6)), "within a value of 1,000,000", id="short text"),
        pytest.param(one(STRING, text(b"\x80")), "utf-8", id="not UTF-8"),
        pytest.param(one(77, b""), "metadata of the unknown type 77", id="type"),
        pytest.param(file(key("a", UINT8, b"1") * 2, keys=2), "'a' is there twice", id="key twice"),
        pytest.param(file(keys=2**60), "the limit for each is 20,000", id="keys"),
        pytest.param(file(tensors=2**60), "the limit for each is 20,000", id="tensors"),
        pytest.param(file(tensor() * 2, tensors=2, data=bytes(16)), "'t' is there twice", id="tensor twice"),
        pytest.param(file(tensor(dims=2**31), tensors=1), "a tensor of 2,147,483,648 dimensions", id="dimensions"),
        pytest.param(file(tensor(shape=(2**40, 2**40)), tensors=1), "a tensor of the shape", id="shape"),
        pytest.param(file(tensor(shape=(0, 2**63)), tensors=1), "a tensor of the shape", id="empty shape"),
        pytest.param(file(tensor(shape=()), tensors=1), "t has the shape", id="no shape"),
        pytest.param(file(tensor(shape=(2**30,)), tensors=1, data=bytes(64)), "but t ends at 4,294,967", id="data"),
        pytest.param(file(tensor(offset=2**63), tensors=1, data=bytes(64)), "but t ends at 9,2", id="offset"),
        pytest.param(file(tensor(kind=999), tensors=1, data=bytes(64)), "999 is not a valid", id="tensor type"),
        pytest.param(file(tensor(kind=2), tensors=1, data=bytes(64)), "Q4_0 has blocks of 32", id="blocks"),
        pytest.param(file(key("general.alignment", UINT32, bytes(4)), keys=1), "alignment is 0", id="alignment"),
        pytest.param(file(version=b"\0\0\0\3"), "it is big-endian", id="big-endian"),
        pytest.param(file(version=b"\1\0\0\0"), "version 1; known", id="version"),
        pytest.param(b"GGU", "does not begin|ends at byte", id="magic"),
        pytest.param(b"", "is empty", id="empty"),
    ],
)  # fmt: skip
def test_numbers_that_lie(content, message, tmp_path):
    (tmp_path / "x.gguf").write_bytes(content)
    start = time.perf_counter()
    with pytest.raises(UserError, match=f"x.gguf.*{message}"):
        read_gguf(tmp_path / "x.gguf")
    assert time.perf_counter() - start < 1


def test_as_the_library_reads_it(tmp_path):
    """Every type of metadata, an alignment, and tensors of three types."""
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(name, 100)
    writer.add_float32("float", 0.5), writer.add_float64("double", 1e300), writer.add_bool("bool", True)
    writer.add_string("text", "é"), writer.add_array("texts", ["a", "日本"]), writer.add_array("numbers", [1, -2])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_custom_alignment(64)
    values = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    writer.add_tensor("plain", values), writer.add_tensor("half", values.astype(np.float16))
    writer.add_tensor("quantized", gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q8_0)  # fmt: skip
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    reader = gguf.GGUFReader(path)
    metadata, tensors = read_gguf(path)
    assert metadata == {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert list(tensors) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        ours = tensors[theirs.name]
        assert ours.shape == (3, 64) and ours.type == theirs.tensor_type
        assert np.array_equal(ours.content, theirs.data.view(np.uint8)), theirs.name


@pytest.mark.parametrize(
    ("name", "form", "value", "message"),
    [
        ("llama.block_count", "<I", 10**9, "llama.block_count must be a whole number, at most 1,000; it is 1000000000"),
        ("llama.embedding_length", "<I", 2**31, "llama.embedding_length must be a whole number, at most 1,048,576"),
        ("llama.attention.head_count", "<I", 0, "llama.attention.head_count must be a whole number, at least 1"),
        ("llama.rope.freq_base", "<f", float("nan"), "llama.rope.freq_base must be a number, "),
        ("llama.rope.freq_base", "<f", float("inf"), "llama.rope.freq_base must be a number, "),
        ("llama.attention.layer_norm_rms_epsilon", "<f", float("nan"), "rms_epsilon must be a number, "),
    ],
)
def test_metadata_that_lies(name, form, value, message, tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1), writer.add_context_length(8), writer.add_embedding_length(8), writer.add_head_count(2)
    writer.add_feed_forward_length(8), writer.add_layer_norm_rms_eps(1e-5), writer.add_rope_freq_base(500.0)
    writer.add_tensor("token_embd.weight", torch.ones(9, 8).numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    assert open_source(path, own_tokenizer=False).config.dim == 8
    content = path.read_bytes()
    place = content.index(text(name)) + len(text(name)) + 4
    path.write_bytes(content[:place] + struct.pack(form, value) + content[place + 4 :])
    with pytest.raises(UserError, match=f"x.gguf lacks .*{message}"):
        open_source(path, own_tokenizer=False)
