"""GGUF: a small file written in the test, and the real SmolLM2, against transformers reading the same file itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from checkpoints_tools.convert import convert, open_source
from checkpoints_tools.folder import check_folder
from checkpoints_tools.hf_config import read_config, read_token_ids
from checkpoints_tools.key_maps import LLAMA_GGUF, LLAMA_HF, to_theirs
from checkpoints_tools.registry import get_model_spec
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from model.llama import LlamaConfig, RopeScaling, rope_frequencies


def permute_as_llama_cpp(weight: np.ndarray, n_heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows."""
    halves = weight.reshape(n_heads, 2, weight.shape[0] // n_heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    helpers,
    quantize: gguf.GGMLQuantizationType | None = None,
    rope_freqs: np.ndarray | None = None,
    leave_out: str = "",
    **metadata: object,
) -> Path:
    """A GGUF file of a Hugging Face model, as llama.cpp's converter writes one."""
    config = model.config
    writer = gguf.GGUFWriter(path, metadata.pop("arch", "llama"))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(metadata.pop("n_heads", config.num_attention_heads))
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    backend = helpers.tokenizer().backend_tokenizer
    vocab = sorted(backend.get_vocab(), key=backend.get_vocab().__getitem__)
    n_pad = config.vocab_size - len(vocab)
    writer.add_tokenizer_model(metadata.pop("tokenizer_model", "gpt2"))
    writer.add_tokenizer_pre(metadata.pop("pre", "smollm"))
    merged = ["Ġt", "he"]
    writer.add_token_list(vocab + merged + [f"[PAD{i}]" for i in range(n_pad - 2)])
    writer.add_token_types(metadata.pop("types", [1] * 256 + [3, 4] + [1] * 2 + [5] * (n_pad - 2)))
    writer.add_token_merges(metadata.pop("merges", ["Ġ t", "h e"]))
    writer.add_bos_token_id(metadata.pop("bos", 256))
    writer.add_eos_token_id(metadata.pop("eos", 257))
    writer.add_chat_template("{{ messages[0]['content'] }}")
    for key, value in metadata.items():
        writer.add_key_value(key.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        theirs = to_theirs(name, {LLAMA_HF[ours]: gguf for ours, gguf in LLAMA_GGUF.items()})
        if theirs == leave_out:
            continue
        values = tensor.numpy().astype(np.float32)
        if "q_proj" in name:
            values = permute_as_llama_cpp(values, config.num_attention_heads)
        if "k_proj" in name:
            values = permute_as_llama_cpp(values, config.num_key_value_heads)
        if quantize is None or values.ndim == 1:
            writer.add_tensor(theirs, values)
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(values, quantize), raw_dtype=quantize)
    if rope_freqs is not None:
        writer.add_tensor("rope_freqs.weight", rope_freqs.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_logits_equal_the_model_the_file_was_made_from(tmp_path, helpers, tied):
    model = helpers.random_hf_model(tie_word_embeddings=tied)
    path = write_gguf(tmp_path / "model.bin", model, helpers)  # the name does not matter
    assert helpers.tiny["num_key_value_heads"] not in (1, helpers.tiny["num_attention_heads"])
    source = convert(path, tmp_path / "out")
    assert source.config.tie_embeddings is tied and source.dtype == torch.float32
    tokens = helpers.tokens()
    torch.testing.assert_close(
        helpers.ours(helpers.load(tmp_path / "out"), tokens), helpers.hf(model, tokens), atol=2e-5, rtol=1e-5
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(helpers.hf(theirs, tokens), helpers.hf(model, tokens))  # nothing was cast: bit for bit


def test_unpermuted_rows_would_be_noticed(tmp_path, helpers, monkeypatch):
    monkeypatch.setattr("checkpoints_tools.gguf_file.interleaved_to_half", lambda weight, n_heads: weight)
    model = helpers.random_hf_model()
    convert(write_gguf(tmp_path / "x.gguf", model, helpers), tmp_path / "out")
    tokens = helpers.tokens()
    found = helpers.ours(helpers.load(tmp_path / "out"), tokens)
    assert (found - helpers.hf(model, tokens)).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_1"])
def test_dtype_is_the_smallest_that_is_exact(tmp_path, helpers, kind):
    model = helpers.random_hf_model(hidden_size=96, intermediate_size=64, head_dim=32)  # quantized in blocks of 32
    path = write_gguf(tmp_path / "x.gguf", model, helpers, gguf.GGMLQuantizationType[kind])
    expected = {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    assert open_source(path).dtype == expected
    convert(path, tmp_path / "out")
    tokens = helpers.tokens()
    found = helpers.ours(helpers.load(tmp_path / "out"), tokens)
    error = (found - helpers.hf(model, tokens)).abs().mean() / found.std()
    assert 0 < error < {"F16": 0.004, "BF16": 0.03, "Q8_0": 0.08, "Q4_1": 0.6}[kind]


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_every_value_is_kept(tmp_path, helpers, kind):
    """llama.cpp always stores norms in fp32; transformers reads the same file."""
    model = helpers.random_hf_model(hidden_size=96, intermediate_size=64, head_dim=32)
    with torch.no_grad():
        model.model.norm.weight.fill_(1.5)  # exact in fp16 and bf16
    path = write_gguf(tmp_path / "x.gguf", model, helpers, gguf.GGMLQuantizationType[kind])
    source = convert(path, tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for n, t in stored.items() if not n.endswith("norm.weight")} == {source.dtype}
    assert stored["model.norm.weight"].dtype == source.dtype
    rounded = stored["model.layers.0.input_layernorm.weight"]
    assert rounded.dtype == torch.float32 and not torch.equal(rounded.half().float(), rounded)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf", dtype=torch.float32).eval()
    expected = theirs.state_dict()
    assert all(torch.equal(tensor.float(), expected[name]) for name, tensor in stored.items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    tokens = helpers.tokens()
    assert torch.equal(helpers.hf(again, tokens), helpers.hf(theirs, tokens))
    found = helpers.ours(helpers.load(tmp_path / "out"), tokens)
    torch.testing.assert_close(found, helpers.hf(theirs, tokens), atol=2e-5, rtol=1e-5)


def test_scaled_frequencies_are_recognized(tmp_path, helpers):
    model = helpers.random_hf_model(rope_theta=500_000.0, max_position_embeddings=131_072)
    plain = LlamaConfig(48, 1, 6, 3, 8, 8, rope_theta=500_000.0)
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    divisors = rope_frequencies(plain) / rope_frequencies(dataclasses.replace(plain, rope_scaling=scaling))
    assert 1 < divisors.unique().numel()
    path = write_gguf(tmp_path / "x.gguf", model, helpers, rope_freqs=divisors.numpy())
    assert open_source(path).config.rope_scaling == scaling
    path = write_gguf(tmp_path / "ones.gguf", model, helpers, rope_freqs=np.ones(4))
    assert open_source(path).config.rope_scaling is None
    path = write_gguf(tmp_path / "odd.gguf", model, helpers, rope_freqs=np.array([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(UserError, match="not Llama 3.1's"):
        open_source(path)


def test_tokenizer_and_companions(tmp_path, helpers):
    path = write_gguf(tmp_path / "x.gguf", helpers.random_hf_model(), helpers)
    convert(path, tmp_path / "out")
    ours, theirs = load_tokenizer(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (ours.bos_id, ours.eos_id, ours.vocab_size) == (256, 257, 260)  # unused places are left out
    text = "a the 12 cats, then 3"
    assert ours.encode(" the") == [258, 259]
    assert ours.encode(text) == theirs.encode(text) and theirs.decode(theirs.encode(text)) == text
    assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert theirs.eos_token == "<|end|>" and theirs.model_max_length == 512


def test_a_folder_with_one_gguf(tmp_path, helpers):
    inner = tmp_path / "package" / "data"
    inner.mkdir(parents=True)
    write_gguf(inner / "x.gguf", helpers.random_hf_model(), helpers)
    assert open_source(tmp_path / "package").path == inner / "x.gguf"
    (inner / "config.json").write_text("{}")  # as folders of the hub have it
    assert open_source(inner).format == "GGUF file"
    (inner / "x.gguf").rename(inner / "x.GGUF")
    assert open_source(tmp_path / "package").path == open_source(inner).path == inner / "x.GGUF"
    with pytest.raises(UserError, match="holds a GGUF file; convert it first"):
        check_folder(inner)
    (inner / "y.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="2 GGUF files; name one"):
        open_source(tmp_path / "package")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "gpt2"}, "holds a 'gpt2' model"),
        ({"n_heads": 7}, "contradicts itself"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"llama__rope__scaling__type": "yarn"}, "'yarn'"),
        ({"llama__rope__scaling__factor": 4.0}, "'linear'"),
        ({"llama__rope__scale_linear": 4.0}, "'linear'"),
        ({"split__count": 2}, "one of 2 parts"),
        ({"leave_out": "token_embd.weight"}, "lacks .*token_embd"),
        ({"leave_out": "blk.1.ffn_up.weight"}, r"missing: layers.1.ffn.w3.weight \[100, 48\]"),
        ({"pre": "qwen2"}, "pre-tokenizer 'qwen2'.*--tokenizer"),
        ({"tokenizer_model": "llama"}, "kind 'llama'.*--tokenizer"),
        ({"bos": 301}, "bos_token_id is 301, but the file has 301 tokens.*--tokenizer"),
        ({"eos": 70_000}, "eos_token_id is 70000, but the file has 301 tokens"),
        ({"tokenizer__ggml__eot_token_id": "end"}, "eot_token_id is 'end'"),
        ({"types": [1] * 7}, "301 tokens, but the types of 7"),
        ({"merges": ["Ġ t", "h é"]}, "the merge 'h é', which does not join two of its tokens"),
        ({"merges": ["Ġt"]}, "the merge 'Ġt', which does not"),
    ],
)
def test_files_we_cannot_use(tmp_path, helpers, changes, message):
    path = write_gguf(tmp_path / "x.gguf", helpers.random_hf_model(), helpers, **changes)
    with pytest.raises(UserError, match=message):
        convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "neutral", "other"),
    [
        ("attention__causal", True, False),
        ("attention__clamp_kqv", 0.0, 8.0),
        ("attention__max_alibi_bias", 0.0, 8.0),
        ("attention__output_scale", 1.0, 0.5),
        ("attention__scale", 8**-0.5, 1 / 8),
        ("attention__shared_kv_layers", 0, 1),
        ("attention__sliding_window", 512, 511),  # the context has 512
        ("attention__temperature_scale", 0.0, 0.125),
        ("attn_logit_softcapping", 0.0, 50.0),
        ("embedding_scale", 1.0, 12.0),
        ("expert_shared_count", 0, 1),
        ("final_logit_softcapping", 0.0, 30.0),
        ("logit_scale", 1.0, float("nan")),
        ("residual_scale", 0.0, 0.25),
        ("rope__scaling__attn_factor", 1.0, 1.25),
        ("use_parallel_residual", False, True),
    ],
)
def test_what_a_llama_does_not_compute_is_refused(tmp_path, helpers, name, neutral, other):
    model = helpers.random_hf_model()
    assert (model.config.head_dim, model.config.max_position_embeddings) == (8, 512)
    plain = open_source(write_gguf(tmp_path / "plain.gguf", model, helpers)).config
    path = write_gguf(tmp_path / "neutral.gguf", model, helpers, **{f"llama__{name}": neutral})
    assert open_source(path).config == plain
    path = write_gguf(tmp_path / "other.gguf", model, helpers, **{f"llama__{name}": other})
    key = "llama." + name.replace("__", ".")
    with pytest.raises(UserError, match=f"does not compute: {key} = {other}"):
        open_source(path)


@pytest.mark.parametrize("value", [301, -1], ids=["beyond the tokens", "none"])
def test_a_padding_token_that_the_file_does_not_have_is_left_out(tmp_path, helpers, caplog, value):
    changes = {"tokenizer__ggml__padding_token_id": value, "tokenizer__ggml__unknown_token_id": value}
    path = write_gguf(tmp_path / "x.gguf", helpers.random_hf_model(), helpers, **changes)
    convert(path, tmp_path / "out")
    assert f"padding_token_id is {value}, which is none of its 301 tokens" in caplog.text
    assert read_token_ids(tmp_path / "out") == {"bos_token_id": 256, "eos_token_id": 257}
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.pad_token is None and theirs.eos_token == "<|end|>"
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_beginning_that_is_none_and_wrong_ids_beside_another_tokenizer(tmp_path, helpers):
    path = write_gguf(tmp_path / "none.gguf", helpers.random_hf_model(), helpers, bos=2**32 - 1)
    convert(path, tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").bos_id is None
    path = write_gguf(tmp_path / "wrong.gguf", helpers.random_hf_model(), helpers, eos=9999)
    helpers.tokenizer().save_pretrained(tmp_path / "tokenizer")
    convert(path, tmp_path / "other", tokenizer=tmp_path / "tokenizer")
    assert read_token_ids(tmp_path / "other") == {"bos_token_id": 256}


@pytest.mark.parametrize("keep", [3, 100, 5000, -1000])
def test_truncated_file(tmp_path, helpers, keep):
    path = write_gguf(tmp_path / "x.gguf", helpers.random_hf_model(), helpers)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match="not a complete GGUF file|is not a GGUF file"):
        open_source(path)


# --- the real file ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "out"
    convert(smollm2_gguf, folder)
    return folder


def test_smollm2_equals_transformers_reading_the_same_file(smollm2_gguf, smollm2, helpers):
    assert read_config(smollm2) == get_model_spec("smollm2_135m").config
    theirs = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()
    ours = helpers.load(smollm2)
    text = "wake me up at five am this week, and then again at 1234567. é 日本 🙂\n\n\tdef f(x): return x**2\n" * 2
    tokens = torch.tensor([load_tokenizer(smollm2).encode(text)])
    expected, found = helpers.hf(theirs, tokens), helpers.ours(ours, tokens)
    assert expected.std() > 1
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


TEXTS = [
    "wake me up at 5am",
    "12345, 3.14 and 2024-01-01",
    "  two  spaces\n\n\tand tabs",
    "naïve 日本語 🙂👩‍👩‍👧",
    "it's",
]


@pytest.mark.slow  # transformers takes long to read a vocabulary from a GGUF file
def test_smollm2_tokenizer_equals_transformers_reading_the_same_file(smollm2_gguf, smollm2):
    ours = load_tokenizer(smollm2)
    theirs = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS]


def test_smollm2_tokenizer(smollm2):
    ours = load_tokenizer(smollm2)
    theirs = AutoTokenizer.from_pretrained(smollm2)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text)
        assert ours.decode(ids) == theirs.decode(ids) == text
    # Every digit is a piece of its own: the rule 'smollm', which no merge may cross.
    assert len(ours.encode("12345")) == 5
    assert {name: ours.special[name] for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")} == {
        "<|endoftext|>": 0,
        "<|im_start|>": 1,
        "<|im_end|>": 2,
    }
    assert "SmolLM" in theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
