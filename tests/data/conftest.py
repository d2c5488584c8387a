"""Tokenizers for the tests of this folder: tiny ones made here, and the real ones if they are available."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.decoder.tokenizer import Tokenizer, load_tokenizer
from tests.decoder_tokenizers import TINY
from tests.encoder_tokenizers import write_bert, write_roberta


@pytest.fixture(scope="session", params=TINY)
def tiny_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(TINY[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name)) for name, write in TINY.items()}


@pytest.fixture(scope="session")
def llama2(shared_dir: Path) -> Tokenizer:
    return load_tokenizer(shared_dir / "tokenizers" / "llama2")


@pytest.fixture(scope="session")
def llama3(shared_dir: Path) -> Tokenizer:
    return load_tokenizer(shared_dir / "tokenizers" / "llama3")


@pytest.fixture(scope="session")
def gpt2_folder(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's GPT-2 files as a tokenizer.json, written by transformers."""
    transformers = pytest.importorskip("transformers")
    source, folder = shared_dir / "tokenizers" / "gpt2_bpe", tmp_path_factory.mktemp("gpt2")
    vocabulary = json.loads((source / "encoder.json").read_text())
    merges = [tuple(line.split()) for line in (source / "vocab.bpe").read_text().splitlines()[1:] if line]
    transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2_template(smollm2_gguf: Path) -> str:
    """The chat template inside the SmolLM2 checkpoint."""
    gguf = pytest.importorskip("gguf")
    return gguf.GGUFReader(smollm2_gguf).fields["tokenizer.chat_template"].contents()


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """SmolLM2's tokenizer from its GGUF: unchanged vocabulary and merges, digits split one by one."""
    gguf = pytest.importorskip("gguf")
    fields = gguf.GGUFReader(smollm2_gguf).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    spec = {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "special": True}
            | dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == 3  # control
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": fields["tokenizer.ggml.merges"].contents(),
        },
    }
    config = {
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"].contents()],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"].contents()],
        "chat_template": fields["tokenizer.chat_template"].contents(),
    }
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def posts(shared_dir: Path) -> list[str]:
    """708 real newsgroup posts from all groups: unusual bytes, long quotes, tables, uuencoded parts."""
    from data.source import load_examples

    return [example.text for example in load_examples("20ng", "train", shared_dir / "data")][::16]


@pytest.fixture(scope="session")
def utterances(shared_dir: Path) -> list[str]:
    """2,000 real MASSIVE utterances."""
    from data.source import load_examples

    return [example.text for example in load_examples("massive", "train", shared_dir / "data")][:2000]


@pytest.fixture(scope="session")
def sample_texts() -> tuple[list[str], list[list[str]]]:
    """The embedded sample: 120 posts, and 416 utterances as words."""
    from data.source import load_examples

    posts = [example.text for split in ("train", "test") for example in load_examples("20ng", split, "sample")]
    utterances = [example.words for example in load_examples("massive", "train", "sample")]
    assert len(posts) >= 100 and len(utterances) >= 400
    return posts, utterances


@pytest.fixture(scope="session")
def roberta_folders(sample_texts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    posts, utterances = sample_texts
    return write_roberta(tmp_path_factory.mktemp("roberta"), [*posts, *(" ".join(words) for words in utterances)])


@pytest.fixture(scope="session")
def bert_folder(sample_texts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    posts, utterances = sample_texts
    return write_bert(tmp_path_factory.mktemp("bert"), [*posts, *(" ".join(words) for words in utterances)])


@pytest.fixture(scope="session", params=["roberta", "bert"])
def encoder_folder(request: pytest.FixtureRequest, roberta_folders: dict[str, Path], bert_folder: Path) -> Path:
    return roberta_folders["files"] if request.param == "roberta" else bert_folder
