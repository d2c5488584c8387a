"""Small encoder tokenizers for tests, trained on whatever text, in the layouts that checkpoints bring them in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer

ROBERTA_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def write_roberta(root: Path, texts: Sequence[str], vocab_size: int = 3000) -> dict[str, Path]:
    """One byte-level BPE in three folders: two files, transformers' one file, and that as it was first written."""
    transformers = pytest.importorskip("transformers")
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=ROBERTA_SPECIAL, show_progress=False)
    folders = {name: root / name for name in ("files", "json", "old_json")}
    for folder in folders.values():
        folder.mkdir()
    bpe.save_model(str(folders["files"]))
    transformers.RobertaTokenizerFast.from_pretrained(folders["files"]).save_pretrained(folders["json"])
    spec = json.loads((folders["json"] / "tokenizer.json").read_text())
    del spec["model"]["type"], spec["pre_tokenizer"]["use_regex"]
    spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    spec["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folders["old_json"] / "tokenizer.json").write_text(json.dumps(spec))
    return folders


def write_bert(folder: Path, texts: Sequence[str], vocab_size: int = 3000) -> Path:
    """A WordPiece vocab.txt with letters in both cases, accents and Chinese characters, and nothing beside it."""
    texts = [*texts, *["Été ÉCOLE été école 日本 日本語 naïve"] * 9]
    wordpiece = BertWordPieceTokenizer(lowercase=False, strip_accents=False, handle_chinese_chars=False)
    wordpiece.train_from_iterator(texts, vocab_size=vocab_size, show_progress=False)
    wordpiece.save_model(str(folder))
    return folder


def copy_of(folder: Path, target: Path, **files: str | bytes) -> Path:
    """A copy of a folder with some files (named ``tokenizer_config_json=``, ...) written anew."""
    shutil.copytree(folder, target)
    for name, content in files.items():
        stem, _, ending = name.rpartition("_")
        content = content.encode() if isinstance(content, str) else content
        (target / f"{stem}.{ending}").write_bytes(content)
    return target
