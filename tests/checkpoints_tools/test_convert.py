"""The converter as a command: what it recognizes, what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints_tools import convert as convert_module
from checkpoints_tools.carried import read_carried
from checkpoints_tools.convert import convert, main, open_source
from checkpoints_tools.export import export_hf
from checkpoints_tools.file_hashes import weights_of
from checkpoints_tools.formats import OF_A_RUN
from checkpoints_tools.hf_config import read_token_ids
from checkpoints_tools.writer import staged_folder
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from train.resolve import load_config
from train.setup import open_run


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_convert_load_export_load_is_bit_for_bit(hf_folder, helpers, tmp_path, tied, dtype):
    folder, _ = hf_folder(tie_word_embeddings=tied, rope_scaling=helpers.scaling, dtype=dtype)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    source = convert(folder, tmp_path / "converted", shard_bytes=50_000)
    assert source.format == "Hugging Face folder" and source.dtype == dtype
    assert len(list((tmp_path / "converted").glob("*.safetensors"))) > 3
    model = helpers.load(tmp_path / "converted", dtype)
    tokenizer = load_tokenizer(tmp_path / "converted")
    export_hf(model, model.config, tokenizer, tmp_path / "exported", shard_bytes=50_000)
    tokens = helpers.tokens()
    expected = helpers.hf(reference, tokens)
    for name in ("converted", "exported"):
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")
        assert again.dtype == dtype
        assert torch.equal(helpers.hf(again, tokens), expected)
        assert AutoTokenizer.from_pretrained(tmp_path / name).encode("hello") == tokenizer.encode("hello")
        assert again.generation_config.eos_token_id == 257 and again.generation_config.bos_token_id == 256


def test_dtype_is_what_was_asked_for(hf_folder, tmp_path):
    folder, reference = hf_folder()
    convert(folder, tmp_path / "out", dtype="bf16")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert torch.equal(stored["model.norm.weight"], reference.model.norm.weight.bfloat16())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


@pytest.mark.parametrize(("common", "n_dtypes"), [("float16", 2), ("bfloat16", 3), ("float32", 1)])
def test_a_folder_of_several_dtypes_keeps_every_value(hf_folder, helpers, tmp_path, common, n_dtypes):
    """Whatever config.json says: what its dtype stores exactly gets it, all else keeps its own."""
    folder, _ = hf_folder()
    tensors = load_file(folder / "model.safetensors")
    kinds = (torch.float16, torch.bfloat16, torch.float32)
    tensors = {name: tensor.to(kinds[i % 3]) for i, (name, tensor) in enumerate(tensors.items())}
    tensors["model.norm.weight"] = torch.full((48,), 1.5)  # exact in all of them
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"dtype": common}))
    source = convert(folder, tmp_path / "out")
    assert source.dtype == getattr(torch, common)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == tensors.keys() and all(torch.equal(stored[n].float(), tensors[n].float()) for n in tensors)
    for name, tensor in tensors.items():
        assert stored[name].dtype in (source.dtype, tensor.dtype)
    assert stored["model.norm.weight"].dtype == source.dtype
    assert len({tensor.dtype for tensor in stored.values()}) == n_dtypes
    before, after = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (folder, tmp_path / "out"))
    tokens = helpers.tokens()
    expected = helpers.hf(before, tokens)
    assert torch.equal(helpers.hf(after, tokens), expected)
    torch.testing.assert_close(helpers.ours(helpers.load(tmp_path / "out"), tokens), expected, atol=2e-5, rtol=1e-5)


def test_values_that_the_dtype_cannot_store_are_refused(hf_folder, tmp_path, capsys):
    """fp16 ends at 65,504, bf16 and fp32 near 3.4e38: a cast beyond that gives infinity without a word."""
    folder, reference = hf_folder(dtype=torch.bfloat16)
    with torch.no_grad():
        reference.model.layers[1].mlp.up_proj.weight[3, 4] = -70_000
    reference.save_pretrained(folder)
    assert main([str(folder), str(tmp_path / "out"), "--dtype", "fp16"]) == 2
    message = capsys.readouterr().err
    assert "model.layers.1.mlp.up_proj.weight holds a value of size 70,144, and float16 stores none above" in message
    assert "Traceback" not in message and [path.name for path in tmp_path.iterdir()] == ["hf"]
    convert(folder, tmp_path / "fp32", dtype="fp32")
    assert load_file(tmp_path / "fp32" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"].min() < -70_000
    with torch.no_grad():
        reference.model.layers[1].mlp.up_proj.weight[3, 4] = torch.inf
    reference.save_pretrained(folder)
    with pytest.raises(UserError, match="model.layers.1.mlp.up_proj.weight holds NaN or infinite values"):
        convert(folder, tmp_path / "keep")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (1e5, torch.float16, "1e\\+05, and float16 stores none above 65,504|100,000, and float16"),
        (3.4e38, torch.bfloat16, "and bfloat16 stores none above"),
        (torch.nan, None, "NaN or infinite"),
    ],
)
def test_an_export_is_finite(hf_folder, helpers, tmp_path, value, dtype, message):
    model = helpers.load(hf_folder()[0])
    with torch.no_grad():
        model.layers[2].attention.wo.weight[0, 1] = value
    with pytest.raises(UserError, match=f"model.layers.2.self_attn.o_proj.weight holds .*({message})"):
        export_hf(model, model.config, load_tokenizer(tmp_path / "hf"), tmp_path / "out", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_no_file_is_larger_than_asked_and_the_index_is_right(hf_folder, tmp_path):
    folder, _ = hf_folder()
    largest = 100 * 48 * 4
    convert(folder, tmp_path / "out", shard_bytes=largest)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {}
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        assert os.stat(path).st_mode & 0o444 == 0o444
        tensors = load_file(path)
        size = sum(t.numel() * 4 for t in tensors.values())
        assert size <= largest or len(tensors) == 1
        found |= dict.fromkeys(tensors, path.name)
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in _tensors(folder).values())


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_several_ends_of_turn_survive(hf_folder, tmp_path):
    folder, _ = hf_folder()
    (folder / "generation_config.json").write_text(
        '{"bos_token_id": 256, "eos_token_id": [257, 9], "temperature": 0.6}'
    )
    convert(folder, tmp_path / "out")
    assert read_token_ids(tmp_path / "out") == {"bos_token_id": 256, "eos_token_id": [257, 9]}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6


def test_what_the_checkpoint_says_beyond_what_we_use_is_carried_over(hf_folder, helpers, tmp_path, caplog):
    folder, _ = hf_folder()
    raw = json.loads((folder / "config.json").read_text())
    more = {"pad_token_id": 9, "attention_dropout": 0.25, "initializer_range": 0.5, "sep_token_id": 999, "mine": [1]}
    (folder / "config.json").write_text(json.dumps(raw | more | {"auto_map": {"AutoModel": "code.py"}}))
    generation = {"pad_token_id": 9, "eos_token_id": [8, 257, 400], "do_sample": True, "top_p": 0.9, "max_length": 77}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    model = helpers.load(folder)
    carried = read_carried(folder)
    export_hf(model, model.config, load_tokenizer(folder), tmp_path / "out", carried=carried)
    convert(folder, tmp_path / "converted")
    for name in ("out", "converted"):
        found = json.loads((tmp_path / name / "config.json").read_text())
        assert {key: found.get(key) for key in more} == more | {"sep_token_id": None}
        assert "auto_map" not in found and "rope_parameters" not in found and found["rope_theta"] == 500.0
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert loaded.config.pad_token_id == 9 and loaded.generation_config.max_length == 77
    assert "sep_token_id is 999, but the model has 301 tokens" in caplog.text
    trained, converted = (
        json.loads((tmp_path / name / "generation_config.json").read_text()) for name in ("out", "converted")
    )
    # A fine-tuned model answers with the most probable token; the ends of its training come first.
    assert trained["eos_token_id"] == [257, 8] and trained["do_sample"] is False and "top_p" not in trained
    assert (
        converted["eos_token_id"] == [8, 257]
        and converted["do_sample"] is True
        and converted["top_p"] == 0.9
        and converted["pad_token_id"] == 9
    )


def test_ends_of_an_answer_in_config_json_alone_are_carried_over(hf_folder, helpers, tmp_path):
    folder, _ = hf_folder()
    raw = json.loads((folder / "config.json").read_text()) | {"eos_token_id": [8, 257, 3]}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "generation_config.json").unlink()
    model = helpers.load(folder)
    export_hf(model, model.config, load_tokenizer(folder), tmp_path / "out", carried=read_carried(folder))
    trained = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert trained["eos_token_id"] == [257, 8, 3]


def test_each_tensor_is_read_once(hf_folder, tmp_path, monkeypatch):
    """Reading one of a GGUF file computes it."""
    folder, _ = hf_folder()
    reads = Counter()
    original = convert_module.open_source

    def counting(*args, **kwargs):
        source = original(*args, **kwargs)
        read = source.read
        monkeypatch.setattr(source, "read", lambda name: reads.update([name]) or read(name), raising=False)
        return source

    monkeypatch.setattr(convert_module, "open_source", counting)
    convert(folder, tmp_path / "out")
    assert set(reads.values()) == {1}


def test_nothing_is_overwritten(hf_folder, tmp_path):
    folder, _ = hf_folder()
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("x")
    with pytest.raises(UserError, match="not empty"):
        convert(folder, out)
    assert [path.name for path in out.iterdir()] == ["precious.txt"]
    with pytest.raises(UserError, match="is a file"):
        convert(folder, out / "precious.txt")
    (out / "precious.txt").unlink()
    convert(folder, out)  # an empty folder is fine
    assert (out / "config.json").is_file()


def test_an_interrupted_conversion_leaves_nothing(hf_folder, tmp_path, monkeypatch):
    folder, _ = hf_folder()
    written = []

    def stop(self: object, name: str, tensor: torch.Tensor) -> None:
        written.append(name)
        if len(written) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(convert_module.ShardWriter, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        convert(folder, tmp_path / "out")
    assert len(written) == 5  # it really was interrupted halfway
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_an_interrupt_is_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert_module, "convert", interrupted)
    assert main([str(tmp_path), str(tmp_path / "new")]) == 130
    assert capsys.readouterr().err == f"stopped; {tmp_path / 'new'} was not made.\n"


def test_sigterm_ends_a_conversion_and_leaves_nothing(hf_folder, tmp_path, monkeypatch, capsys):
    folder, _ = hf_folder()
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(convert_module.ShardWriter, "add", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert main([str(folder), str(tmp_path / "out")]) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "was not made" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize("named", [False, True], ids=["of the source", "of --tokenizer"])
def test_a_tokenizer_file_that_cannot_be_read_is_named(hf_folder, tmp_path, named):
    folder, _ = hf_folder()
    unreadable = folder / "tokenizer.json"
    unreadable.unlink()
    unreadable.symlink_to("/proc/self/mem")  # a file of which reading the first byte fails, also for root
    with pytest.raises(UserError) as error:
        convert(folder, tmp_path / "out", tokenizer=unreadable if named else None)
    assert str(error.value) == f"cannot read {unreadable}: Input/output error."
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n", "a Git LFS pointer"),
        (b'{"model": {"type": "Unigram", "vocab": []}}', "cannot be used: tokenizer.json [^/]*Unigram"),
        (b'{"model"', "cannot be used: tokenizer.json: not JSON"),
        (None, "cannot be used: the tokenizer has 258 tokens, the model's embedding only 250"),
    ],
    ids=["pointer", "unknown kind", "truncated", "too large"],
)
def test_the_new_folder_has_a_tokenizer_that_can_be_used(
    hf_folder, helpers, tmp_path, monkeypatch, content, message, capsys
):
    folder, _ = hf_folder(vocab_size=250 if content is None else 301, bos_token_id=1, eos_token_id=2)
    if content is not None:
        (folder / "tokenizer.json").write_bytes(content)
    monkeypatch.setattr(convert_module.ShardWriter, "add", lambda *_: pytest.fail("a tensor was written before"))
    with pytest.raises(UserError, match=message) as error:
        convert(folder, tmp_path / "out")
    assert str(folder) in str(error.value) and ".partial" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    monkeypatch.undo()
    if content is not None:  # as the message advises
        helpers.tokenizer().save_pretrained(tmp_path / "good")
        assert main([str(folder), str(tmp_path / "out"), "--tokenizer", str(tmp_path / "good")]) == 0


def test_staged_folder_appears_at_the_end(tmp_path):
    with staged_folder(tmp_path / "a" / "b") as staging:
        (staging / "x").write_text("x")
        assert not (tmp_path / "a" / "b").exists()
    assert (tmp_path / "a" / "b" / "x").read_text() == "x"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "is none of"),
        (lambda path: path.write_text("hello"), "not a GGUF file"),
        (lambda path: path.write_text(""), "not a GGUF file"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, make, message):
    make(tmp_path / "x")
    with pytest.raises(UserError, match=message):
        open_source(tmp_path / "x")


def test_a_file_of_a_folder_names_the_folder(hf_folder):
    folder, _ = hf_folder()
    with pytest.raises(UserError, match=f"name its folder: {folder}"):
        open_source(folder / "model.safetensors")


def test_command_line(hf_folder, tmp_path, capsys):
    folder, _ = hf_folder()
    assert main([str(folder), str(tmp_path / "out"), "--dtype", "bf16", "--shard_gb", "0.0001"]) == 0
    said = capsys.readouterr().out
    assert "Hugging Face folder" in said
    words = shlex.split(said.splitlines()[-1])
    config = load_config(words[2:])  # what train.py makes of them
    assert words[1].endswith("train.py") and config.model.checkpoint == tmp_path / "out"
    assert open_run(config).spec.name == config.model.model == "llama"
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert main([str(folder), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    for size in ("0", "1e-10", "nan", "inf"):
        assert main([str(folder), str(tmp_path / "new"), "--shard_gb", size]) == 2
        assert f"--shard_gb is {float(size)}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(folder), str(tmp_path / "new"), "--dtype", "int4"])


def test_what_an_export_says_of_its_run_goes_with_the_weights(hf_folder, tmp_path, capsys):
    """And not with the tokenizer: else other weights would look fine-tuned, and these would not."""
    folder, _ = hf_folder()
    base = Path(shutil.copytree(folder, tmp_path / "base"))
    contents = {name: f'{{"of": "{name}"}}' for name in OF_A_RUN}
    assert {"task.json", "prompt.json", "training.json", "trained_texts.npy", "calibration.json"} < contents.keys()
    contents["calibration.json"] = json.dumps({"weights": weights_of(folder), "of": "calibration.json"})
    for name, text in contents.items():
        (folder / name).write_text(text)

    def found(name: str, **options: Any) -> dict[str, str]:
        convert(options.pop("source", folder), tmp_path / name, **options)
        new = tmp_path / name
        files = {path.name: path.read_text() for path in new.iterdir() if path.name in OF_A_RUN}
        if "calibration.json" in files:  # by its own hash of the new files
            assert json.loads(files["calibration.json"])["weights"] == weights_of(new)
            files["calibration.json"] = contents["calibration.json"]
        return files

    assert found("kept", shard_bytes=50_000) == contents
    assert found("tokenizer", tokenizer=base) == contents
    assert found("other weights", source=base, tokenizer=folder) == {}
    assert "calibration" not in capsys.readouterr().out
    (folder / "training.json").unlink()
    assert found("cast", dtype="bf16").keys() == contents.keys() - {"calibration.json", "training.json"}
    assert "calibration.json is left out, as it is for other weights" in capsys.readouterr().out
    (folder / "calibration.json").write_text(json.dumps({"weights": "of another model"}))
    assert "calibration.json" not in found("stale")
