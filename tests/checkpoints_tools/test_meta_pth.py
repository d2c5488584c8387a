"""Meta's checkpoints: logits equal those of Meta's algorithm (interleaved pairs), whatever the parts they come in.

The reference here is written after Meta's model.py (complex rotations, whole matrices) and shares no code with ours.
The parts are cut as fairscale's layers cut them.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path

import pytest
import sentencepiece
import tiktoken
import torch
import torch.nn.functional as F
from tiktoken.load import load_tiktoken_bpe
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from checkpoints_tools.convert import convert, open_source
from checkpoints_tools.meta_pth import ffn_width
from checkpoints_tools.meta_tokenizer import write_meta_tokenizer
from data.errors import UserError
from data.tokenizer import LLAMA3_SPLIT, load_tokenizer

PARAMS = dict(dim=64, n_layers=2, n_heads=16, n_kv_heads=8, multiple_of=16, norm_eps=1e-5, rope_theta=500.0)
VOCAB = 304  # 8 parts of 38
FFN = 176  # ffn_width(64, 16, None)
COLUMN_PARALLEL = ("wq", "wk", "wv", "w1", "w3", "output")
ROW_PARALLEL = ("wo", "w2")


def random_weights(tied: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return 0.15 * torch.randn(shape, generator=generator)

    dim, kv = PARAMS["dim"], PARAMS["dim"] // PARAMS["n_heads"] * PARAMS["n_kv_heads"]
    weights = {"tok_embeddings.weight": normal(VOCAB, dim), "norm.weight": 1 + normal(dim)}
    weights["output.weight"] = weights["tok_embeddings.weight"].clone() if tied else normal(VOCAB, dim)
    for i in range(PARAMS["n_layers"]):
        shapes = {
            "attention.wq": (dim, dim),
            "attention.wk": (kv, dim),
            "attention.wv": (kv, dim),
            "attention.wo": (dim, dim),
            "feed_forward.w1": (FFN, dim),
            "feed_forward.w3": (FFN, dim),
            "feed_forward.w2": (dim, FFN),
        }
        weights |= {f"layers.{i}.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        weights |= {f"layers.{i}.{name}.weight": 1 + normal(dim) for name in ("attention_norm", "ffn_norm")}
    return weights


def meta_logits(weights: dict[str, Tensor], tokens: Tensor, scaled: bool = False) -> Tensor:
    """The forward pass of Meta's model.py, in fp32."""
    H, K = PARAMS["n_heads"], PARAMS["n_kv_heads"]
    D = PARAMS["dim"] // H
    B, T = tokens.shape
    freqs = [PARAMS["rope_theta"] ** (-2 * j / D) for j in range(D // 2)]
    if scaled:  # apply_scaling, written out for one frequency
        low, high, factor, old = 1.0, 4.0, 8.0, 8192
        for j, freq in enumerate(freqs):
            wavelength = 2 * math.pi / freq
            if wavelength > old / low:
                freqs[j] = freq / factor
            elif wavelength >= old / high:
                smooth = (old / wavelength - low) / (high - low)
                freqs[j] = (1 - smooth) * freq / factor + smooth * freq
    turns = torch.polar(torch.ones(T, D // 2), torch.outer(torch.arange(T).float(), torch.tensor(freqs)))

    def rotate(x: Tensor) -> Tensor:  # [B, T, heads, D]
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], D // 2, 2))
        return torch.view_as_real(pairs * turns[:, None]).flatten(3)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + PARAMS["norm_eps"]) * weights[name]

    x = weights["tok_embeddings.weight"][tokens]
    future = torch.full((T, T), float("-inf")).triu(1)
    for i in range(PARAMS["n_layers"]):
        w = {name: weights[f"layers.{i}.attention.{name}.weight"] for name in ("wq", "wk", "wv", "wo")}
        y = norm(x, f"layers.{i}.attention_norm.weight")
        q = rotate((y @ w["wq"].T).view(B, T, H, D)).transpose(1, 2)
        k = rotate((y @ w["wk"].T).view(B, T, K, D)).repeat_interleave(H // K, 2).transpose(1, 2)
        v = (y @ w["wv"].T).view(B, T, K, D).repeat_interleave(H // K, 2).transpose(1, 2)
        scores = (q @ k.transpose(2, 3) / math.sqrt(D) + future).softmax(-1)
        x = x + (scores @ v).transpose(1, 2).reshape(B, T, -1) @ w["wo"].T
        f = {name: weights[f"layers.{i}.feed_forward.{name}.weight"] for name in ("w1", "w2", "w3")}
        y = norm(x, f"layers.{i}.ffn_norm.weight")
        x = x + (F.silu(y @ f["w1"].T) * (y @ f["w3"].T)) @ f["w2"].T
    return norm(x, "norm.weight") @ weights["output.weight"].T


def write_meta_folder(
    folder: Path, helpers, weights: dict[str, Tensor], n_parts: int = 1, embedding_dim: int = 0, **params: object
) -> Path:
    """Cut the weights as fairscale does and save them as Meta does."""
    folder.mkdir()
    for part in range(n_parts):
        held = {}
        for name, weight in weights.items():
            kind = name.split(".")[-2]
            dim = 0 if kind in COLUMN_PARALLEL else 1 if kind in ROW_PARALLEL else None
            if kind == "tok_embeddings":
                dim = embedding_dim
            held[name] = (weight if dim is None else weight.chunk(n_parts, dim)[part]).clone()
        held["rope.freqs"] = torch.ones(2)  # as in Llama 2's files
        torch.save(held, folder / f"consolidated.{part:02d}.pth")
    (folder / "params.json").write_text(json.dumps({**PARAMS, "vocab_size": -1, **params}))
    helpers.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer_folder(tmp_path: Path, helpers) -> Path:
    helpers.tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(("n_parts", "embedding_dim"), [(1, 0), (2, 0), (2, 1), (8, 0), (8, 1)])
def test_logits_equal_metas(tmp_path, helpers, tokenizer_folder, n_parts, embedding_dim, tied):
    weights = random_weights(tied)
    folder = write_meta_folder(tmp_path / "meta", helpers, weights, n_parts, embedding_dim)
    shape = torch.load(folder / "consolidated.00.pth")["tok_embeddings.weight"].shape
    assert shape[embedding_dim] * n_parts == (VOCAB, 64)[embedding_dim]  # it was cut that way
    source = convert(folder, tmp_path / "out", tokenizer=tokenizer_folder)
    assert source.format == f"Meta folder ({n_parts} part{'s' if n_parts > 1 else ''})"
    # A tied embedding is recognized where its parts can be compared to the head's.
    assert source.config.tie_embeddings == (tied and (embedding_dim == 0 or n_parts == 1))
    tokens = helpers.tokens(VOCAB)
    expected = meta_logits(weights, tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(helpers.ours(helpers.load(tmp_path / "out"), tokens), expected, atol=2e-5, rtol=1e-5)
    # And transformers reads the result as the same model.
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(helpers.hf(theirs, tokens), expected, atol=2e-5, rtol=1e-5)


def test_scaled_frequencies(tmp_path, helpers, tokenizer_folder, monkeypatch):
    monkeypatch.setitem(PARAMS, "rope_theta", 500_000.0)
    weights = random_weights()
    folder = write_meta_folder(tmp_path / "meta", helpers, weights, 2, use_scaled_rope=True)
    source = convert(folder, tmp_path / "out", tokenizer=tokenizer_folder)
    assert source.config.max_position == 131_072
    tokens = torch.randint(VOCAB, (1, 400), generator=torch.Generator().manual_seed(3))
    expected = meta_logits(weights, tokens, scaled=True)
    assert (expected - meta_logits(weights, tokens)).abs().max() > 1e-2  # the scaling shows
    torch.testing.assert_close(helpers.ours(helpers.load(tmp_path / "out"), tokens), expected, atol=5e-5, rtol=1e-5)


def test_unpermuted_rows_would_be_noticed(tmp_path, helpers, tokenizer_folder, monkeypatch):
    monkeypatch.setattr("checkpoints_tools.meta_pth.interleaved_to_half", lambda weight, n_heads: weight)
    weights = random_weights()
    convert(write_meta_folder(tmp_path / "meta", helpers, weights), tmp_path / "out", tokenizer=tokenizer_folder)
    tokens = helpers.tokens(VOCAB)
    assert (helpers.ours(helpers.load(tmp_path / "out"), tokens) - meta_logits(weights, tokens)).abs().max() > 0.1


def test_feed_forward_widths_of_the_real_models():
    assert ffn_width(4096, 256, None) == 11_008  # Llama 2 7B
    assert ffn_width(8192, 4096, 1.3) == 28_672  # Llama 2 and 3 70B
    assert ffn_width(4096, 1024, 1.3) == 14_336  # Llama 3 8B


# --- bad folders ------------------------------------------------------------------------------------------------------


def test_missing_parts(tmp_path, helpers):
    folder = write_meta_folder(tmp_path / "meta", helpers, random_weights(), 8)
    (folder / "consolidated.03.pth").unlink()
    with pytest.raises(UserError, match=r"half downloaded: consolidated.03.pth missing"):
        open_source(folder)
    for part in (4, 5, 6, 7):
        (folder / f"consolidated.{part:02d}.pth").unlink()
    with pytest.raises(UserError, match=r"that makes 8 parts"):  # 00 to 02 have no gap
        open_source(folder)
    for path in folder.glob("*.pth"):
        path.unlink()
    with pytest.raises(UserError, match=r"no consolidated.NN.pth"):
        open_source(folder)
    by_columns = write_meta_folder(tmp_path / "columns", helpers, random_weights(), 8, embedding_dim=1)
    (by_columns / "consolidated.07.pth").unlink()
    with pytest.raises(UserError, match=r"in each of 7 parts"):
        open_source(by_columns)


def test_truncated_part(tmp_path, helpers):
    folder = write_meta_folder(tmp_path / "meta", helpers, random_weights(), 2)
    path = folder / "consolidated.01.pth"
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"consolidated.01.pth .*truncated"):
        open_source(folder)


class Trap:
    def __reduce__(self) -> tuple:
        return (print, ("this must not run",))


def test_code_in_a_part_is_refused(tmp_path, helpers, capsys):
    folder = write_meta_folder(tmp_path / "meta", helpers, random_weights())
    torch.save({"x": Trap()}, folder / "consolidated.00.pth", pickle_module=pickle)
    capsys.readouterr()
    with pytest.raises(UserError, match="could run code"):
        open_source(folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_heads": 7}, "do not divide"),
        ({"dim": None}, "dim is None"),
        ({"vocab_size": 299}, "vocab_size is 299, the embedding has 304 rows"),
        ({"quantization_args": {"scheme": "int4"}}, "quantization_args"),
    ],
)
def test_contradictory_params(tmp_path, helpers, params, message):
    folder = write_meta_folder(tmp_path / "meta", helpers, random_weights(), **params)
    with pytest.raises(UserError, match=message):
        open_source(folder)


def test_tensors_that_do_not_fit_the_params(tmp_path, helpers, tokenizer_folder):
    folder = write_meta_folder(tmp_path / "meta", helpers, random_weights(), 2, multiple_of=64)
    with pytest.raises(UserError, match=r"layers.0.ffn.w1.weight is \[176, 64\], the config says \[192, 64\]"):
        convert(folder, tmp_path / "out", tokenizer=tokenizer_folder)
    assert not (tmp_path / "out").exists()


def test_parts_of_two_checkpoints(tmp_path, helpers, tokenizer_folder):
    folder = write_meta_folder(tmp_path / "meta", helpers, random_weights(), 2)
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
    folder = write_meta_folder(tmp_path / "meta", helpers, random_weights())
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
