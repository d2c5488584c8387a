"""Meta's checkpoints: logits equal those of Meta's algorithm (interleaved pairs), whatever the parts they come in.

Meta's algorithm and a writer of its files: `tests.meta_reference`. Sharded models: `test_meta_load.py`.
"""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import torch
from tiktoken.load import load_tiktoken_bpe
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints_tools.convert import convert, open_source
from checkpoints_tools.meta_pth import ffn_width
from checkpoints_tools.meta_tokenizer import write_meta_tokenizer
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from data.rank_file import LLAMA3_SPLIT
from tests.meta_reference import PARAMS, VOCAB, meta_logits, random_weights, write_meta_folder


@pytest.fixture
def tokenizer_folder(tmp_path: Path, helpers) -> Path:
    helpers.tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("n_parts", "embedding_dim"), [(1, 0), (2, 0), (2, 1), (8, 0), (8, 1)])
def test_logits_equal_metas(tmp_path, helpers, tokenizer_folder, n_parts, embedding_dim, tied):
    weights = random_weights(tied)
    folder = write_meta_folder(tmp_path / "meta", weights, n_parts, embedding_dim)
    shape = torch.load(folder / "consolidated.00.pth")["tok_embeddings.weight"].shape
    assert shape[embedding_dim] * n_parts == (VOCAB, 64)[embedding_dim]  # it was cut that way
    source = convert(folder, tmp_path / "out", tokenizer=tokenizer_folder)
    assert source.format == f"Meta folder ({n_parts} part{'s' if n_parts > 1 else ''})"
    # A tied embedding is recognized where its parts can be compared to the head's.
    assert source.config.tie_embeddings == (tied and (embedding_dim == 0 or n_parts == 1))
    tokens = helpers.tokens(VOCAB)
    expected = meta_logits(weights, tokens)
    assert expected.std() > 0.5
    found = helpers.ours(helpers.load(tmp_path / "out"), tokens)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert torch.equal(helpers.ours(helpers.load(folder), tokens), found)  # without conversion
    # And transformers reads the result as the same model.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(helpers.hf(theirs, tokens), expected, atol=2e-5, rtol=1e-5)


def test_scaled_frequencies(tmp_path, helpers, tokenizer_folder, monkeypatch):
    monkeypatch.setitem(PARAMS, "rope_theta", 500_000.0)
    weights = random_weights()
    folder = write_meta_folder(tmp_path / "meta", weights, 2, use_scaled_rope=True)
    source = convert(folder, tmp_path / "out", tokenizer=tokenizer_folder)
    assert source.config.max_position == 131_072
    tokens = torch.randint(VOCAB, (1, 400), generator=torch.Generator().manual_seed(3))
    expected = meta_logits(weights, tokens, scaled=True)
    assert (expected - meta_logits(weights, tokens)).abs().max() > 1e-2  # the scaling shows
    torch.testing.assert_close(helpers.ours(helpers.load(tmp_path / "out"), tokens), expected, atol=5e-5, rtol=1e-5)


def test_unpermuted_rows_would_be_noticed(tmp_path, helpers, tokenizer_folder, monkeypatch):
    monkeypatch.setattr("checkpoints_tools.meta_pth.interleaved_to_half", lambda weight, n_heads: weight)
    weights = random_weights()
    convert(write_meta_folder(tmp_path / "meta", weights), tmp_path / "out", tokenizer=tokenizer_folder)
    tokens = helpers.tokens(VOCAB)
    assert (helpers.ours(helpers.load(tmp_path / "out"), tokens) - meta_logits(weights, tokens)).abs().max() > 0.1


def test_feed_forward_widths_of_the_real_models():
    assert ffn_width(4096, 256, None) == 11_008  # Llama 2 7B
    assert ffn_width(8192, 4096, 1.3) == 28_672  # Llama 2 and 3 70B
    assert ffn_width(4096, 1024, 1.3) == 14_336  # Llama 3 8B


# --- bad folders ------------------------------------------------------------------------------------------------------


def test_missing_parts(tmp_path, helpers):
    folder = write_meta_folder(tmp_path / "meta", random_weights(), 8)
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(UserError, match=r"incomplete: consolidated.03.pth missing"):
        open_source(folder)
    for part in (4, 5, 6, 7):
        (folder / f"consolidated.{part:02d}.pth").unlink()
    with pytest.raises(UserError, match=r"that makes 8 parts"):  # 00 to 02 have no gap
        open_source(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(UserError, match=r"no consolidated.NN.pth"):
        open_source(folder)
    by_columns = write_meta_folder(tmp_path / "columns", random_weights(), 8, embedding_dim=1)
    (by_columns / "consolidated.07.pth").unlink()
    with pytest.raises(UserError, match=r"in each of 7 parts"):
        open_source(by_columns)


def test_truncated_part(tmp_path, helpers):
    folder = write_meta_folder(tmp_path / "meta", random_weights(), 2)
    for path in folder.glob("*.pth"):
        path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"(?s)consolidated.00.pth .*truncated.*consolidated.01.pth .*truncated"):
        open_source(folder)


class Trap:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_code_in_a_part_is_refused(tmp_path, helpers, capsys):
    folder = write_meta_folder(tmp_path / "meta", random_weights())
    torch.save({"x": Trap()}, folder / "consolidated.00.pth", pickle_module=pickle)
    capsys.readouterr()
    with pytest.raises(UserError, match="could run code"):
        open_source(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_heads": 7}, "do not divide"),
        ({"dim": None}, "dim must be a whole number; it is None"),
        ({"vocab_size": 299}, "vocab_size is 299, but the embedding has 304 rows"),
        (
            {"multiple_of": "many", "norm_eps": -1},
            "norm_eps must be .* above 0; it is -1; multiple_of must be .*'many'",
        ),
        ({"rope_theta": True}, "rope_theta must be a number; it is True"),
        ({"n_layers": 10**12}, "n_layers must be a whole number, at most 1,000; it is 1000000000000"),
        ({"dim": 10**12}, "dim must be a whole number, at most 1,048,576"),
        ({"ffn_dim_multiplier": 1e29}, "make a feed-forward width of"),
        ({"n_heads": 64}, "dim 64 and n_heads 64 make heads of width 1; it must be even"),
        ({"n_kv_heads": [2]}, r"n_kv_heads must be a whole number or null; it is \[2\]"),
        ({"vocab_size": "x"}, "vocab_size must be a whole number; it is 'x'"),
        ({"quantization_args": {"scheme": "int4"}}, "quantization_args"),
        ({"sliding_window": 8}, "sliding_window is 8; a Llama does not compute it"),
        ({"logits_scaling": 8}, "logits_scaling is 8.0; a Llama does not compute it"),
    ],
)
def test_contradictory_params(tmp_path, helpers, params, message):
    folder = write_meta_folder(tmp_path / "meta", random_weights(), **params)
    with pytest.raises(UserError, match=message):
        open_source(folder)


def test_tensors_that_do_not_fit_the_params(tmp_path, helpers, tokenizer_folder):
    folder = write_meta_folder(tmp_path / "meta", random_weights(), 2, multiple_of=64)
    with pytest.raises(UserError, match=r"layers.0.ffn.w1.weight is \[176, 64\], the config says \[192, 64\]"):
        convert(folder, tmp_path / "out", tokenizer=tokenizer_folder)
    assert not (tmp_path / "out").exists()


def test_parts_of_two_checkpoints(tmp_path, helpers, tokenizer_folder):
    folder = write_meta_folder(tmp_path / "meta", random_weights(), 2)
    part = torch.load(folder / "consolidated.01.pth")
    part["norm.weight"] += 1
    torch.save(part, folder / "consolidated.01.pth")
    with pytest.raises(UserError, match="disagree on norm.weight"):
        convert(folder, tmp_path / "out", tokenizer=tokenizer_folder)
    del part["norm.weight"]
    torch.save(part, folder / "consolidated.01.pth")
    with pytest.raises(UserError, match="different tensors: norm.weight"):
        open_source(folder)


# --- tokenizers -------------------------------------------------------------------------------------------------------

ODD_TEXT = [
    "wake me up at 5am, at 1234567 and 3.14",
    "  leading,   inner and trailing spaces   ",
    "\n\ttabs\t\tand\n\n\nnewlines\r\n \n x",
    "don't WE'LL i'm",
    "naïve café, 日本語テキスト, العربية, ру́сский, 👩‍👩‍👧‍👦 🇩🇪, \u200b\ufeff, e\u0301",
    "=" * 300 + "\n" + "-" * 77 + " " * 100 + ">>>> quoted\n" * 3,
    "x" * 1000,
    "\x00\x01\x7f\x80",
    "",
]


@pytest.mark.parametrize("family", ["llama2", "llama3"])
def test_tokenizer_json_equals_the_original(shared_dir, tmp_path, family):
    folder = tmp_path / family
    folder.mkdir()
    original = shared_dir / "tokenizers" / family / "tokenizer.model"
    write_meta_tokenizer(original.parent, folder, 4096)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    if family == "llama2":
        reference = sentencepiece.SentencePieceProcessor(model_file=str(original)).encode
        assert (len(theirs), ours.bos_id, ours.eos_id) == (32_000, 1, 2)
    else:
        ranks = load_tiktoken_bpe(str(original))
        plain = tiktoken.Encoding("llama3", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={})
        reference = plain.encode_ordinary
        assert (len(theirs), ours.bos_id, ours.special["<|eot_id|>"]) == (128_256, 128_000, 128_009)
        assert theirs.convert_tokens_to_ids(["<|start_header_id|>", "<|eot_id|>"]) == [128_006, 128_009]
    for text in ODD_TEXT:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == (reference(text) if text else []), text
        assert theirs.decode(ids) == text
        assert ours.decode(ours.encode(text)) == text
    assert theirs.encode("hi")[0] == ours.bos_id


def test_no_tokenizer_is_an_error_unless_one_is_named(tmp_path, helpers, tokenizer_folder):
    folder = write_meta_folder(tmp_path / "meta", random_weights())
    with pytest.raises(UserError, match="--tokenizer"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--tokenizer"):
        convert(folder, tmp_path / "out", tokenizer=tmp_path)
    shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path / "odd.json")
    with pytest.raises(UserError, match="odd.json is not a tokenizer file"):
        convert(folder, tmp_path / "out", tokenizer=tmp_path / "odd.json")
    convert(folder, tmp_path / "out", tokenizer=tokenizer_folder / "tokenizer.json")
    assert load_tokenizer(tmp_path / "out").decode([0]) != ""
