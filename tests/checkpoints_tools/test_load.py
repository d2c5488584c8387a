"""A Hugging Face folder gives the logits that transformers gives; a bad one is refused with a message that helps."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints_tools import load, progress
from checkpoints_tools.convert import convert
from checkpoints_tools.folder import check_folder
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.load import check_fits_preset, load_pretrained
from checkpoints_tools.registry import get_model_spec
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from model.llama import Llama


@pytest.mark.parametrize(
    ("changes", "scaled"),
    [
        ({}, False),
        ({"tie_word_embeddings": True}, False),
        ({"num_key_value_heads": 6}, False),
        ({"num_key_value_heads": 1, "head_dim": 12}, False),
        ({}, True),
    ],
    ids=["gqa", "tied", "mha", "mqa-wide-heads", "llama3-scaling"],
)
def test_logits_equal_transformers(hf_folder, helpers, changes, scaled):
    if scaled:
        changes = {**changes, "rope_scaling": helpers.scaling}
    folder, reference = hf_folder(**changes)
    stored = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in stored) is not changes.get("tie_word_embeddings", False)
    tokens = helpers.tokens()
    expected = helpers.hf(reference, tokens)
    found = helpers.ours(helpers.load(folder), tokens)
    assert expected.std() > 0.5  # logits that say something
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    if scaled:  # and the scaling matters at this length
        unscaled = helpers.random_hf_model()
        assert (helpers.hf(unscaled, tokens) - expected).abs().max() > 0.05


def test_many_files_equal_one(hf_folder, helpers):
    one, reference = hf_folder(name="one")
    many, _ = hf_folder(name="many", shard_size="60KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    tokens = helpers.tokens()
    assert torch.equal(helpers.ours(helpers.load(many), tokens), helpers.ours(helpers.load(one), tokens))
    (many / "model.safetensors.index.json").unlink()  # the numbering alone says that all are there
    assert len(check_folder(many).tensors) == len(reference.state_dict())


def test_casts_to_the_parameters_dtype(hf_folder, helpers):
    folder, reference = hf_folder(dtype=torch.bfloat16)
    model = helpers.load(folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.embed.weight, reference.model.embed_tokens.weight.float())
    assert helpers.load(folder, torch.bfloat16).embed.weight.dtype == torch.bfloat16


def test_old_stored_frequencies_and_stored_tied_head_are_accepted(hf_folder, helpers):
    folder, _ = hf_folder(tie_word_embeddings=True)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    helpers.load(folder)
    tensors["lm_head.weight"][300, 0] += 1
    save_file(tensors, path)
    with pytest.raises(UserError, match="ties the head"):
        helpers.load(folder)
    with pytest.raises(UserError, match="ties the head"):
        convert(folder, folder.with_name("out"))


def test_pytorchs_own_file_gives_the_same_model(hf_folder, helpers):
    folder, reference = hf_folder(tie_word_embeddings=True)
    expected = helpers.ours(helpers.load(folder), helpers.tokens())
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, folder / "pytorch_model.bin")
    assert torch.equal(helpers.ours(helpers.load(folder), helpers.tokens()), expected)


def test_progress_and_speed_are_logged(hf_folder, helpers, caplog, monkeypatch):
    monkeypatch.setattr("data.progress.LOG_INTERVAL", 0.0)  # seconds
    folder, reference = hf_folder()
    with caplog.at_level(logging.INFO):
        helpers.load(folder)
    *lines, last = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(reference.state_dict())
    for line in lines:
        assert re.fullmatch(r"loading weights: 0.0 of 0.0 GB, [\d.]+ GB/s, about 0 s left", line)
    assert re.fullmatch(rf"loaded {folder}: 0.00 GB read in [\d.]+ s \([\d.]+ s/GB\)", last)
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    helpers.load(folder)
    assert not caplog.records  # one rank speaks for all


def test_progress_counts_up_to_all_that_is_read(hf_folder, helpers, monkeypatch):
    bars = []

    def watched(*args: object, **options: object) -> progress.ByteProgress:
        bars.append(progress.ByteProgress(*args, **options))
        return bars[-1]

    monkeypatch.setattr(load, "ByteProgress", watched)
    folder, reference = hf_folder(dtype=torch.bfloat16)
    helpers.load(folder)  # into fp32: what is read counts, not what it becomes
    assert bars[0].done == bars[0].total == sum(2 * p.numel() for p in reference.parameters())


# --- bad folders ------------------------------------------------------------------------------------------------------


def test_missing_folder_says_how_to_get_it(tmp_path, hf_folder):
    hf_folder(name="other")
    with pytest.raises(UserError) as error:
        check_folder(tmp_path / "nowhere", get_model_spec("llama3_70b"))
    message = str(error.value)
    assert "hf download meta-llama/Meta-Llama-3-70B-Instruct" in message and "gated" in message
    assert str(tmp_path / "other") in message  # the checkpoint that is there
    with pytest.raises(UserError, match="hf download HuggingFaceTB/SmolLM2-135M-Instruct") as error:
        check_folder(tmp_path / "nowhere", get_model_spec("smollm2_135m"))
    assert "gated" not in str(error.value)


def test_folder_without_config_or_weights(tmp_path, hf_folder):
    folder, _ = hf_folder()
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no safetensors file"):
        check_folder(folder)
    (folder / "training_args.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="has .bin files, none of which"):
        check_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="no config.json.*tokenizer.json"):
        check_folder(folder)


def test_other_formats_name_the_converter(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="checkpoints_tools.convert"):
        check_folder(tmp_path)


def test_half_downloaded(hf_folder):
    folder, _ = hf_folder(shard_size="60KB")
    files = sorted(folder.glob("*.safetensors"))
    for gone in files[1:3]:
        gone.unlink()
    cache = folder / ".cache" / "huggingface" / "download"
    cache.mkdir(parents=True)
    (cache / "abc.incomplete").touch()
    with pytest.raises(UserError) as error:
        check_folder(folder)
    message = str(error.value)
    assert f"2 of its {len(files)} weight files are missing" in message
    assert files[1].name in message and files[2].name in message and files[0].name not in message
    assert "1 unfinished downloads" in message and "hf download" in message
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=f"2 of its {len(files)} weight files are missing"):
        check_folder(folder)


def test_damaged_files_are_all_named(hf_folder):
    folder, _ = hf_folder(shard_size="60KB")
    a, b, c, d, *_ = sorted(folder.glob("*.safetensors"))
    a.write_bytes(a.read_bytes()[:-1])
    b.write_bytes(b"")
    c.write_bytes(c.read_bytes()[:20])
    d.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 100\n")
    with pytest.raises(UserError) as error:
        check_folder(folder)
    lines = [line for line in str(error.value).splitlines() if line.startswith("  - ")]
    assert len(lines) == 4
    for line, path, word in zip(lines, (a, b, c, d), ("truncated", "empty", "header", "git lfs pull"), strict=True):
        assert path.name in line and word in line


def test_missing_unexpected_and_misshapen_tensors_are_all_named(hf_folder, helpers):
    folder, _ = hf_folder()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(47)
    tensors["score.weight"] = torch.ones(2, 48)
    tensors["model.layers.3.mlp.up_proj.weight"] = torch.ones(100, 48)  # a layer too many
    save_file(tensors, path)
    with pytest.raises(UserError) as error:
        helpers.load(folder)
    message = str(error.value)
    for part in [
        "4 problems",
        "missing: layers.1.ffn.w3.weight [100, 48]",
        "wrong shape: norm.weight is [47], the config says [48]",
        "unexpected: score.weight [2, 48]",
        "unexpected: layers.3.ffn.w3.weight",
    ]:
        assert part in message


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_one_line_says_what_all_names_have_in_front(hf_folder, helpers, tmp_path, prefix):
    folder, _ = hf_folder()
    tensors = load_file(folder / "model.safetensors")
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    for use in (helpers.load, lambda folder: convert(folder, tmp_path / "out")):
        with pytest.raises(UserError) as error:
            use(folder)
        first, line = str(error.value).splitlines()
        assert "1 problem)" in first
        assert line.startswith(
            f"  - {len(tensors)} names have '{prefix}' in front ({prefix}lm_head.weight; the model has"
        )


def test_beside_a_prefix_only_what_remains_is_listed(hf_folder, helpers):
    folder, _ = hf_folder()
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file({f"module.{name}": t for name, t in tensors.items()} | {"extra": torch.ones(1)},
              folder / "model.safetensors")  # fmt: skip
    with pytest.raises(UserError) as error:
        helpers.load(folder)
    _, *lines = str(error.value).splitlines()
    assert lines[1:] == ["  - missing: norm.weight [48]", "  - unexpected: extra [1]"]


def test_every_kind_of_problem_is_shown(hf_folder, helpers):
    """Of names that have nothing to do with the model's: not twenty missing ones alone."""
    folder, _ = hf_folder()
    tensors = load_file(folder / "model.safetensors")
    save_file({f"x{i}": tensor for i, tensor in enumerate(tensors.values())}, folder / "model.safetensors")
    with pytest.raises(UserError) as error:
        helpers.load(folder)
    lines = str(error.value).splitlines()[1:]
    shown = {kind: sum(line.startswith(f"  - {kind}") for line in lines) for kind in ("missing", "unexpected", "...")}
    assert shown == {"missing": 10, "unexpected": 10, "...": 2}
    assert f"... and {len(tensors) - 10} more unexpected" in lines[-1]


def test_buffers_of_rotary_embeddings_are_left_whatever_they_are_called(hf_folder, helpers, caplog):
    folder, reference = hf_folder()
    path = folder / "model.safetensors"
    extra = {
        "model.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(9, 8),
        "model.layers.1.self_attn.rotary_emb.cos_cached": torch.ones(9, 8),
        "freqs_cis": torch.ones(9, 4, dtype=torch.float64),  # a dtype that weights may not have
    }
    save_file(load_file(path) | extra, path)
    with caplog.at_level(logging.INFO):
        model = helpers.load(folder)
    said = [m for m in caplog.messages if m.startswith("not read")]
    assert len(said) == 1 and "model.layers.{i}.self_attn.rotary_emb.cos_cached, model.rotary_emb.inv_freq" in said[0]
    tokens = helpers.tokens()
    torch.testing.assert_close(helpers.ours(model, tokens), helpers.hf(reference, tokens), atol=2e-5, rtol=1e-5)


def test_a_tied_matrix_stored_under_the_heads_name(hf_folder, helpers, tmp_path):
    """A tensor that is shared is stored once, under either of its names."""
    folder, reference = hf_folder(tie_word_embeddings=True)
    path, tokens = folder / "model.safetensors", helpers.tokens()
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, path)
    expected = helpers.hf(reference, tokens)
    torch.testing.assert_close(helpers.ours(helpers.load(folder), tokens), expected, atol=2e-5, rtol=1e-5)
    convert(folder, tmp_path / "out")
    assert "model.embed_tokens.weight" in load_file(tmp_path / "out" / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match="missing: embed.weight"):
        helpers.load(folder)


def test_an_old_index_beside_a_whole_file(hf_folder, helpers, caplog):
    """The whole file is read, as by transformers; whether or not the files that the index lists are there."""
    folder, _ = hf_folder(seed=1, shard_size="60KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    _, reference = hf_folder(seed=2, name="whole")
    shutil.copyfile(folder.with_name("whole") / "model.safetensors", folder / "model.safetensors")
    tokens = helpers.tokens()
    for there in (shards, shards[:2], []):
        for path in set(shards) - set(there):
            path.unlink(missing_ok=True)
        caplog.clear()
        found = helpers.ours(helpers.load(folder), tokens)
        torch.testing.assert_close(found, helpers.hf(reference, tokens), atol=2e-5, rtol=1e-5)
        assert "reading model.safetensors, not the files that model.safetensors.index.json lists" in caplog.text
    index = {"weight_map": dict.fromkeys(reference.state_dict(), "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))  # its own: nothing to warn of
    caplog.clear()
    check_folder(folder)
    assert not caplog.text


def test_an_index_of_safetensors_beside_a_whole_pytorch_file(hf_folder, helpers, caplog):
    folder, reference = hf_folder(shard_size="60KB")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    torch.save(reference.state_dict(), folder / "pytorch_model.bin")
    tokens = helpers.tokens()
    torch.testing.assert_close(
        helpers.ours(helpers.load(folder), tokens), helpers.hf(reference, tokens), atol=2e-5, rtol=1e-5
    )
    assert "reading pytorch_model.bin; no file that model.safetensors.index.json lists is there" in caplog.text


def test_files_of_two_checkpoints_without_an_index(hf_folder):
    folder, _ = hf_folder(shard_size="60KB")
    (folder / "model.safetensors.index.json").unlink()
    first = min(folder.glob("model-*.safetensors"))
    shutil.copyfile(first, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(
        UserError, match=r"files of 2 checkpoints and no .*index.json: model-\*-of-00002.safetensors and"
    ):
        check_folder(folder)


def test_index_that_lists_what_no_file_holds(hf_folder):
    folder, _ = hf_folder(shard_size="60KB")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra.weight"] = index["weight_map"]["model.norm.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match="model.extra.weight"):
        check_folder(folder)


def test_quantized_weights_are_refused(hf_folder):
    folder, _ = hf_folder()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="I8"):
        check_folder(folder)


def test_a_config_of_another_model_is_refused(hf_folder, tmp_path):
    folder, _ = hf_folder()
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    raw = json.loads((other / "config.json").read_text())
    raw["rope_parameters"]["rope_theta"] = 10_000.0  # the shapes are the same
    (other / "config.json").write_text(json.dumps(raw))
    model = Llama(read_config(folder))
    with pytest.raises(UserError, match=r"rope_theta: 10000.0 \(expected 500.0\)"):
        load_pretrained(model, other)
    load_pretrained(model, other, check_config=False)


def test_whether_a_checkpoint_is_the_model_it_is_called_by():
    Knows = SimpleNamespace  # a tokenizer, as far as this check looks at one
    preset, debug = get_model_spec("llama3_8b"), get_model_spec("llama_debug")
    check_fits_preset(dataclasses.replace(preset.config, max_position=9), Knows(vocab_size=128_000), preset, "folder")
    other = dataclasses.replace(preset.config, n_layers=3, vocab_size=7)
    with pytest.raises(UserError, match=r"folder .*--model llama3_8b: n_layers.*vocab_size.*--allow_mismatch"):
        check_fits_preset(other, Knows(vocab_size=7), preset, "folder")
    check_fits_preset(other, Knows(vocab_size=7), preset, "folder", allow_mismatch=True)
    check_fits_preset(other, Knows(vocab_size=7), get_model_spec("llama"), "folder")  # no numbers of its own
    # A debug model has the vocabulary of its tokenizer; trained on, it is still that model.
    check_fits_preset(dataclasses.replace(debug.config, vocab_size=900), Knows(vocab_size=900), debug, "folder")
    with pytest.raises(UserError, match="folder: the tokenizer has 901 tokens, the model's embedding only 900"):
        check_fits_preset(dataclasses.replace(debug.config, vocab_size=900), Knows(vocab_size=901), debug, "folder")


def test_a_fine_tuned_folder_that_lost_the_name_of_its_first_token_is_refused(hf_folder, helpers, tmp_path):
    """A folder with a prompt; before fine-tuning it is taken as it is."""
    folder, _ = hf_folder()
    spec, config = get_model_spec("llama"), read_config(folder)
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_id is None
    check_fits_preset(config, tokenizer, spec, folder)
    (folder / "prompt.json").write_text("{}")
    with pytest.raises(UserError, match=r"began with token 256 \(bos_token_id in config.json\).* begins with no token"):
        check_fits_preset(config, tokenizer, spec, folder)


def test_a_padding_token_beyond_the_embedding_is_only_warned_of(hf_folder, helpers, caplog):
    """As after fine-tuning elsewhere, which added the token and did not resize the embedding."""
    folder, _ = hf_folder(vocab_size=258)
    tokenizer = helpers.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    ours, spec = load_tokenizer(folder), get_model_spec("llama")
    assert (ours.vocab_size, ours.pad_id) == (259, 258)
    check_fits_preset(read_config(folder), ours, spec, folder)
    assert "padding token (id 258) is beyond the model's embedding of 258 tokens" in caplog.text
    tokenizer.add_tokens(["<turn>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="the tokenizer has 260 tokens"):
        check_fits_preset(read_config(folder), load_tokenizer(folder), spec, folder)
    ours.eos_id = 258  # it ends answers, so it is needed
    with pytest.raises(UserError, match="the tokenizer has 259 tokens"):
        check_fits_preset(read_config(folder), ours, spec, folder)
