"""A decoder with heads, from a folder that transformers saved to an export that transformers reads."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from checkpoints_tools.architectures import with_frame
from checkpoints_tools.carried import read_carried
from checkpoints_tools.export import export_hf
from checkpoints_tools.heads import heads_for
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.llama_heads import without_heads
from checkpoints_tools.load import check_family, check_fits_preset, load_pretrained, open_checkpoint
from checkpoints_tools.registry import get_model_spec
from data.encoder.read_twice import load_tokenizer
from data.encoder.samples import output_labels
from data.errors import UserError
from data.tasks import ClassField, Task, TokenField
from model.llama import LlamaConfig
from model.llama_heads import HeadedLlama, HeadedLlamaConfig
from tests.checkpoints_tools.conftest import TINY, tiny_tokenizer

SPEC = get_model_spec("llama_heads")
TIMES = TokenField("time", ("time", "Other"), other="Other")
TASK = Task("own", "own", (ClassField("mood.now", ("good", "bad")), TIMES))
LABELS = output_labels(TASK)


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def base(request, hf_folder, tmp_path: Path):
    folder, theirs = hf_folder(tie_word_embeddings=request.param)
    tiny_tokenizer().save_pretrained(folder)
    return folder, theirs.model


def headed(folder: Path) -> HeadedLlama:
    """The model for the task, loaded from a folder."""
    model = HeadedLlama(SPEC.architecture.with_task(open_checkpoint(folder, SPEC).config, TASK, "linear", folder))
    load_pretrained(model, folder, SPEC)
    return model.eval()


def states_of(model: HeadedLlama) -> torch.Tensor:
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        return model(tokens, tokens, torch.ones(1, 12, dtype=torch.int32))


def export(model: HeadedLlama, base: Path, folder: Path) -> Path:
    export_hf(model, model.config, load_tokenizer(base), folder, labels=LABELS, max_length=99)
    return folder


def test_training_starts_from_any_llama(base) -> None:
    folder, theirs = base
    model = headed(folder)
    assert isinstance(read_config(folder), LlamaConfig) and not isinstance(read_config(folder), HeadedLlamaConfig)
    assert model.config.heads == heads_for(TASK)
    with torch.no_grad():
        expected = theirs(input_ids=torch.arange(12)[None]).last_hidden_state
    torch.testing.assert_close(states_of(model), expected, atol=1e-4, rtol=1e-4)
    again = headed(folder)  # new heads depend on the seed alone
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert model.heads["mood_now"].out.weight.shape == (2, 2 * TINY["hidden_size"])
    assert model.heads["time"].out.weight.shape == (5, TINY["hidden_size"])


def test_an_export_is_read_by_transformers_and_by_us(base, tmp_path: Path) -> None:
    folder, _ = base
    model = headed(folder)
    out = export(model, folder, tmp_path / "export")
    again = headed(out)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name
    config = read_config(out)
    assert isinstance(config, HeadedLlamaConfig) and config == model.config
    with torch.no_grad():
        theirs = AutoModel.from_pretrained(out, dtype=torch.float32)(input_ids=torch.arange(12)[None])
    torch.testing.assert_close(states_of(model), theirs.last_hidden_state, atol=1e-4, rtol=1e-4)
    written = json.loads((out / "config.json").read_text())
    assert written["model_type"] == "llama" and written["architectures"] == ["LlamaModel"]
    assert (written["bos_token_id"], written["eos_token_id"]) == (256, 257)
    written["heads"]["frame"][1] = "Again:"
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="trained on texts in another frame than this code's: .*'Again:'"):
        read_config(tmp_path)
    assert written["heads"]["max_length"] == 99 and written["heads"]["fields"][0]["labels"] == ["good", "bad"]
    assert not any(name.startswith(("lm_head", "model.")) for name in load_file(out / "model.safetensors"))


def test_an_export_states_the_frame_that_its_mean_leaves_out(base, tmp_path: Path) -> None:
    """The first exports did not, and left out the first token alone: they are read as they were trained."""
    folder, _ = base
    tokenizer, plain = load_tokenizer(folder), open_checkpoint(folder, SPEC).config
    assert with_frame(plain, tokenizer).frame == (22, 24, 39)  # bytes, and the beginning of a text
    model = HeadedLlama(SPEC.architecture.with_task(with_frame(plain, tokenizer), TASK, "linear", folder))
    load_pretrained(model, folder, SPEC)
    out = export(model, folder, tmp_path / "export")
    config = read_config(out)
    check_fits_preset(config, tokenizer, SPEC, out)
    assert config == model.config == with_frame(config, tokenizer)
    path, written = out / "config.json", json.loads((out / "config.json").read_text())
    assert written["heads"]["frame_tokens"] == [22, 24, 39]
    written["heads"]["frame_tokens"][1] = 23
    path.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"in training \[22, 23, 39\] tokens .*there are \[22, 24, 39\]. Restore both"):
        check_fits_preset(read_config(out), tokenizer, SPEC, out)
    del written["heads"]["frame_tokens"]
    path.write_text(json.dumps(written))
    check_fits_preset(read_config(out), tokenizer, SPEC, out)
    assert read_config(out).frame == (1, 0, 0) == with_frame(read_config(out), tokenizer).frame


def test_an_embedding_that_is_stored_as_the_output_matrix(base, tmp_path: Path) -> None:
    """safetensors stores shared tensors under one of their names."""
    folder, _ = base
    expected = states_of(headed(folder))
    tensors = load_file(folder / "model.safetensors")
    is_tied = "lm_head.weight" not in tensors
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if is_tied:
        torch.testing.assert_close(states_of(headed(folder)), expected)
    else:
        with pytest.raises(UserError, match="missing: embed.weight"):
            headed(folder)


def test_a_tensor_under_two_names_is_refused(base) -> None:
    folder, _ = base
    tensors = load_file(folder / "model.safetensors")
    tensors["embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"unexpected: (model\.)?embed_tokens.weight"):
        headed(folder)


def test_a_padding_token_beyond_the_embedding(base, caplog: pytest.LogCaptureFixture) -> None:
    """As for decoders: fine-tuning elsewhere often adds one."""
    folder, _ = base
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(TINY["vocab_size"] - len(tokenizer))])
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.save_pretrained(folder)
    found = load_tokenizer(folder)
    assert found.vocab_size == TINY["vocab_size"] + 1
    check_fits_preset(open_checkpoint(folder, SPEC).config, found, SPEC, folder)
    assert "the tokenizer's padding token" in caplog.text and "is beyond the model's embedding" in caplog.text


def test_an_export_that_lost_the_name_of_its_first_token(base, tmp_path: Path) -> None:
    """Every text would lack its first token, and get other labels."""
    folder, _ = base
    out = export(headed(folder), folder, tmp_path / "export")
    config = read_config(out)
    check_fits_preset(config, load_tokenizer(out), SPEC, out)
    (out / "tokenizer_config.json").unlink()
    assert load_tokenizer(out).frame.size == load_tokenizer(folder).frame.size - 1
    with pytest.raises(UserError, match=r"began with token 256 .*begins with no token.*Restore tokenizer_config"):
        check_fits_preset(config, load_tokenizer(out), SPEC, out)
    written = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(written | {"bos_token_id": None}))  # it was trained so
    check_fits_preset(config, load_tokenizer(out), SPEC, out)
    (folder / "tokenizer_config.json").unlink()
    check_fits_preset(open_checkpoint(folder, SPEC).config, load_tokenizer(folder), SPEC, folder)  # before fine-tuning


def test_no_first_token_is_carried_over_to_a_model_that_had_none(base, tmp_path: Path) -> None:
    folder, _ = base
    (folder / "tokenizer_config.json").unlink()
    model, tokenizer, carried = headed(folder), load_tokenizer(folder), read_carried(folder)
    assert tokenizer.decoder.bos_id is None and carried.config["bos_token_id"] == 256
    export_hf(model, model.config, tokenizer, tmp_path / "out", labels=LABELS, max_length=99, carried=carried)
    assert "bos_token_id" not in json.loads((tmp_path / "out" / "config.json").read_text())
    check_fits_preset(read_config(tmp_path / "out"), load_tokenizer(tmp_path / "out"), SPEC, tmp_path / "out")


def test_what_does_not_fit_is_refused(base, tmp_path: Path) -> None:
    folder, _ = base
    out = export(headed(folder), folder, tmp_path / "export")
    config, with_task = open_checkpoint(out, SPEC).config, SPEC.architecture.with_task
    with pytest.raises(UserError, match="head = mean is for encoders: the heads of a decoder are of one kind"):
        with_task(config, TASK, "mean", out)
    turned = replace(TASK, fields=(ClassField("mood.now", ("bad", "good")), TIMES))
    with pytest.raises(UserError, match="labels of field 'mood.now' are not those of task own: their order differs"):
        with_task(config, turned, "linear", out)
    more = replace(TASK, fields=(ClassField("mood.now", ("good", "bad", "so so")), TIMES))
    with pytest.raises(UserError, match="More labels than the head was trained for: 3, the head has 2"):
        with_task(config, more, "linear", out)
    tensors = load_file(out / "model.safetensors")
    save_file({k: x for k, x in tensors.items() if k != "heads.time.out.bias"}, tmp_path / "model.safetensors")
    (out / "checksums.json").unlink(missing_ok=True)
    (tmp_path / "model.safetensors").replace(out / "model.safetensors")
    with pytest.raises(UserError, match="missing: heads.time.out.bias"):
        headed(out)
    save_file(tensors | {"heads.other.out.bias": torch.zeros(5)}, out / "model.safetensors")
    with pytest.raises(UserError, match="unexpected: heads.other.out.bias"):
        headed(out)


def test_the_two_kinds_of_llama_are_told_apart(base, tmp_path: Path, minilm_folder: Path) -> None:
    folder, _ = base
    out = export(headed(folder), folder, tmp_path / "export")
    with pytest.raises(UserError, match="'llama_heads' architecture, --model llama is of 'llama'. --model llama_heads"):
        check_family(open_checkpoint(out, get_model_spec("llama")).config, get_model_spec("llama"), out)
    with pytest.raises(UserError, match="holds a model of the 'bert' architecture, --model llama_heads is of"):
        check_family(open_checkpoint(minilm_folder, SPEC).config, SPEC, minilm_folder)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text("{}")
    (tmp_path / "meta" / "consolidated.00.pth").write_bytes(b"")
    with pytest.raises(UserError, match="Meta's format, which --model llama_heads does not read. Convert it first"):
        open_checkpoint(tmp_path / "meta", SPEC)


@pytest.mark.parametrize(
    "heads, message",
    [
        ({"head": "linear", "fields": [{"name": "a", "kind": "class", "labels": []}]}, "heads.*labels"),
        ({"head": "linear", "fields": [{"name": "a", "kind": "class", "labels": ["x"]}] * 2}, "two fields of one name"),
        ({"head": "cubic", "fields": []}, "heads.*head"),
        ({"head": "linear", "fields": [], "frame_tokens": [4, -1, 12]}, "heads.*frame_tokens"),
        ({"head": "linear", "fields": [], "frame_tokens": [4, 12]}, "heads.*frame_tokens"),
    ],
)
def test_damaged_heads(heads: object, message: str, hf_folder) -> None:
    folder, _ = hf_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"heads": heads}))
    with pytest.raises(UserError, match=re.compile(message, re.S)):
        read_config(folder)


def test_heads_are_added_to_numbers_alone() -> None:
    plain = LlamaConfig(dim=48, n_layers=1, n_heads=6, n_kv_heads=3, ffn_dim=100, vocab_size=301, tie_embeddings=True)
    found = without_heads(plain)
    assert vars(found) == vars(plain) | {"heads": (), "frame": (1, 0, 0)}
