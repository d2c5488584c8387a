"""Tokenizers that are written as tokenizer.json: from GGUF with words and control tokens, from SentencePiece or not."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import ByteLevelBPETokenizer

from checkpoints_tools.convert import convert
from checkpoints_tools.export import export_hf
from checkpoints_tools.gguf_tokenizer import write_gguf_tokenizer
from checkpoints_tools.meta_tokenizer import complete_tokenizer, write_tokenizer_json
from data.decoder.fewshot import PromptSpec
from data.decoder.templates import TEMPLATES, encode_pieces
from data.decoder.tokenizer import JsonTokenizer, SentencePieceTokenizer, load_tokenizer
from data.errors import UserError
from model.llama import Llama, LlamaConfig
from tests.added_tokens import assert_equal_ids, mixed_texts
from tests.decoder_tokenizers import write_tiny_rank_file

TEXTS = ["Beginning of the news, end of the news: wake me up at nine am on friday."] * 4
ORDINARY, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
NAMES = ["<bos>", "<|im_end|>", "Covfefe", "xyzzy plugh", "turn"]
TYPES = [CONTROL, USER_DEFINED, USER_DEFINED, USER_DEFINED, ORDINARY]


@pytest.fixture
def metadata() -> dict[str, object]:
    """A GGUF file's tokenizer, in which the end of a turn is stored as an ordinary token."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, vocab_size=300, show_progress=False)
    model = json.loads(bpe.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, *NAMES],
        "tokenizer.ggml.token_type": [ORDINARY] * len(tokens) + TYPES,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "llama.context_length": 64,
    }


def test_words_and_control_tokens_of_a_gguf_file(metadata, tmp_path):
    transformers = pytest.importorskip("transformers")
    n = len(metadata["tokenizer.ggml.tokens"]) - len(NAMES)
    write_gguf_tokenizer(metadata, {"bos": n, "eot": n + 4}, tmp_path, "a.gguf")
    ours = load_tokenizer(tmp_path)
    assert ours.special == {"<bos>": n, "<|im_end|>": n + 1, "turn": n + 4} and ours.bos_id == n
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    assert {n + 2, n + 3} <= set(ours.encode("Covfefe, xyzzy plugh"))
    assert_equal_ids(ours.encode, lambda text: reference(text, add_special_tokens=False).input_ids, mixed_texts())
    for text in ("<bos>", "<|im_end|>", "turn", "a turn<|im_end|>returns"):
        assert not set(ours.special.values()) & set(ours.encode(text)) and ours.decode(ours.encode(text)) == text


def test_a_token_that_a_gguf_file_has_twice_is_refused(metadata, tmp_path):
    metadata["tokenizer.ggml.tokens"][-1] = "Covfefe"
    with pytest.raises(UserError, match=r"a\.gguf has the token 'Covfefe' twice: give .* --tokenizer"):
        write_gguf_tokenizer(metadata, {}, tmp_path, "a.gguf")
    metadata["tokenizer.ggml.token_type"][-1] = UNUSED
    write_gguf_tokenizer(metadata, {}, tmp_path, "a.gguf")
    assert len(load_tokenizer(tmp_path).encode("Covfefe")) == 1


# --- SentencePiece ----------------------------------------------------------------------------------------------------


def train(folder: Path, **options: object) -> Path:
    model = io.BytesIO()
    llama2 = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False} | {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, minloglevel=3, **(llama2 | options)
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def test_a_model_with_llama2s_settings_is_written(tmp_path):
    ours = load_tokenizer(train(tmp_path))
    write_tokenizer_json(tmp_path, 64)
    (tmp_path / "tokenizer.model").unlink()
    assert_equal_ids(load_tokenizer(tmp_path).encode, ours.encode, mixed_texts())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces is True.*written for False"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizes is True.*written for False"),
        ({"add_dummy_prefix": False}, "add_dummy_prefix is False.*written for True"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix is True"),
        ({"byte_fallback": False}, "byte_fallback is False"),
        ({"model_type": "unigram", "vocab_size": 290}, "model_type is 'unigram'.*written for 'bpe'"),
        ({"user_defined_symbols": ["Covfefe"]}, "user-defined pieces is 1.*written for 0"),
        ({"bos_id": -1}, "bos piece is None.*written for '<s>'"),
        ({"eos_piece": "<end>"}, "eos piece is '<end>'.*written for '</s>'"),
    ],
)
def test_a_model_with_other_settings_is_not_written_as_a_tokenizer_json(options, message, tmp_path):
    train(tmp_path, **options)
    with pytest.raises(UserError, match=rf"tokenizer\.model: {message}.*--tokenizer"):
        write_tokenizer_json(tmp_path, 64)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.model"]


LLAMA_CONFIG = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("n_added", [0, 2])
def test_a_model_with_a_config_gets_a_tokenizer_json_and_keeps_the_config(n_added, tmp_path):
    """transformers makes other merges of a ``tokenizer.model`` alone: of runs of spaces."""
    transformers = pytest.importorskip("transformers")
    n = load_tokenizer(train(tmp_path)).vocab_size
    config: dict[str, object] = dict(LLAMA_CONFIG)
    if n_added:
        flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
        added = [{"content": "[PAD]", "special": True}, {"content": "Covfefe", "special": False}]
        config |= {"pad_token": "[PAD]", "added_tokens_decoder": {str(n + i): a | flags for i, a in enumerate(added)}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    complete_tokenizer(tmp_path, 64)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == config
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, split_special_tokens=True)
    assert len(reference) == ours.vocab_size == n + n_added
    for text in ["a  wake   me\n    up", "news   at nine", *mixed_texts()[:50]]:
        if "Covfefe" not in text:  # transformers adds a space behind a word
            assert reference.encode("\n" + text, add_special_tokens=False) == reference.encode(
                "\n", add_special_tokens=False
            ) + ours.encode(text), text
    assert load_tokenizer(tmp_path).encode("news   at nine") == ours.encode("news   at nine")


@pytest.mark.parametrize("template", ["plain", "llama3"])
def test_the_export_of_a_rank_file_ends_a_text_as_in_training(template, tmp_path):
    """With another end of text, "plain" prompts of the export are not those of the training, and do not stop."""
    write_tiny_rank_file(tmp_path / "base")
    ours = load_tokenizer(tmp_path / "base")
    config = LlamaConfig(dim=8, n_layers=1, n_heads=1, n_kv_heads=1, ffn_dim=8, vocab_size=ours.vocab_size)
    model = Llama(config)
    model.init_weights()
    export_hf(model, config, ours, tmp_path / "export", prompt_spec=PromptSpec("20ng_7", template))
    exported = load_tokenizer(tmp_path / "export")
    assert isinstance(exported, JsonTokenizer) and exported.bos_id == ours.bos_id
    end = encode_pieces(TEMPLATES[template].end, ours)
    assert encode_pieces(TEMPLATES[template].end, exported) == end == [exported.eos_id]


def test_a_rank_file_whose_tokens_have_other_names_is_left_as_it_is(tmp_path):
    write_tiny_rank_file(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    complete_tokenizer(tmp_path, 64)
    assert not (tmp_path / "tokenizer.json").exists()


@pytest.mark.parametrize("named", [False, True])
def test_a_conversion_has_a_tokenizer_json(named, tmp_path):
    ours = load_tokenizer(train(tmp_path))
    sizes = {"dim": 8, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "ffn_dim": 8}
    config = LlamaConfig(vocab_size=ours.vocab_size, **sizes)
    model = Llama(config)
    model.init_weights()
    export_hf(model, config, ours, tmp_path / "base")
    (tmp_path / "base" / "checksums.json").unlink()
    (tmp_path / "base" / "tokenizer.json").unlink()
    convert(tmp_path / "base", tmp_path / "new", tokenizer=tmp_path / "tokenizer.model" if named else None)
    (tmp_path / "new" / "tokenizer.model").unlink()
    assert_equal_ids(load_tokenizer(tmp_path / "new").encode, ours.encode, mixed_texts()[:50])


def test_a_tokenizer_json_with_more_tokens_than_the_model_is_a_tokenizer_of_its_own(tmp_path):
    write_tokenizer_json(train(tmp_path), 64)
    before = load_tokenizer(tmp_path)
    assert isinstance(before, SentencePieceTokenizer), "it is a conversion"
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    spec["model"]["merges"].insert(0, ["k", "k"])
    spec["model"]["vocab"]["kk"] = before.vocab_size
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    extended = load_tokenizer(tmp_path)
    assert isinstance(extended, JsonTokenizer) and extended.vocab_size == before.vocab_size + 1
    assert extended.encode("kk") == [before.vocab_size] != before.encode("kk")


def test_an_export_without_a_tokenizer_json_is_said(tmp_path, caplog):
    (tmp_path / "source").mkdir()
    tokenizer = load_tokenizer(train(tmp_path / "source", remove_extra_whitespaces=True))
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, dim=16, n_layers=1, n_heads=2, n_kv_heads=2, ffn_dim=16, max_position=64
    )
    model = Llama(config)
    model.init_weights()
    with caplog.at_level(logging.WARNING):
        export_hf(model, config, tokenizer, tmp_path / "out")
    assert "warning: the new folder has no tokenizer.json" in caplog.text and "remove_extra_whitespaces" in caplog.text
    assert (
        "the checkpoint's tokenizer.model: remove_extra" in caplog.text
        and ": put a tokenizer.json beside it." in caplog.text
    )
    assert "--tokenizer" not in caplog.text and "partial" not in caplog.text, "train.py has no such option"
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert load_tokenizer(tmp_path / "out").encode("wake  me") == tokenizer.encode("wake me")

    caplog.clear()
    convert(tmp_path / "out", tmp_path / "converted")
    assert f"{tmp_path / 'out' / 'tokenizer.model'}: remove_extra" in caplog.text and "with --tokenizer." in caplog.text
    assert "partial" not in caplog.text
