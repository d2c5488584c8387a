"""A tiny tokenizer of each kind that decoders have, made here."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

TRAINING_TEXT = [
    "Beginning of News, end of the news: wake me up at nine am on friday.",
    "From: someone@example.com Subject: Re: the price of that car (was: cars)",
    "Lines: 12\n\n> In article <123@x.y> she writes that the label is rec.autos\n\tand so it is.",
] * 4


def write_tiny_sentencepiece(folder: Path, **changed: object) -> Path:
    import sentencepiece

    model = io.BytesIO()
    settings = {
        "vocab_size": 400,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "hard_vocab_limit": False,
        "minloglevel": 3,
    } | changed
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TRAINING_TEXT), model_writer=model, **settings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


def write_tiny_rank_file(folder: Path) -> Path:
    tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the", b"in", b"ing", b" \n", b"\n\n", b"er"]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_text("\n".join(lines) + "\n")
    return folder


def write_tiny_json(folder: Path) -> Path:
    from tokenizers import AddedToken, ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        TRAINING_TEXT,
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    bpe.add_tokens([AddedToken("<tool>", special=False), AddedToken("    ", special=False)])
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|im_end|>"}, "chat_template": "<|im_start|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


LOSSY = {  # settings of SentencePiece with which it changes ordinary characters
    "U+2581": {},
    "NFKC": {"normalization_rule_name": "nmt_nfkc"},
    "joined spaces": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "no bytes": {"byte_fallback": False, "required_chars": '{}[]"_/'},
}

TINY = {
    "sentencepiece": write_tiny_sentencepiece,
    "rank_file": write_tiny_rank_file,
    "json": write_tiny_json,
}
