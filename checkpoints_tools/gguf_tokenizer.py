"""Write the tokenizer of a GGUF file as Hugging Face tokenizer files.

A GGUF file stores the vocabulary, the merges, and the *name* of the pre-tokenizer, the rule that splits text before
merging. (llama.cpp has these rules in code; ours are `tokenizer_files.PRE_TOKENIZERS`.) Only byte-level BPE is
supported; for a SentencePiece vocabulary (Llama 2) give the original ``tokenizer.model``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from checkpoints_tools.tokenizer_files import (
    IGNORE_MERGES,
    PRE_TOKENIZERS,
    byte_level_tokenizer,
    write_tokenizer_files,
)
from data.errors import UserError, nearest

# Values of tokenizer.ggml.token_type.
ORDINARY, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def write_gguf_tokenizer(metadata: dict[str, Any], folder: Path, where: str) -> None:
    """Write the tokenizer that a GGUF file's metadata describes.

    Raises:
        UserError: the tokenizer is not byte-level BPE, its pre-tokenizer is unknown, or its data is missing.
    """
    remedy = "give the model's original tokenizer file or folder with --tokenizer"
    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2":
        raise UserError(
            f"{where} holds a tokenizer of kind {kind!r}; only 'gpt2' (byte-level BPE) is supported: {remedy}"
        )
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{where} has the unknown pre-tokenizer {pre!r}.{nearest(pre, PRE_TOKENIZERS)} Otherwise {remedy}."
        )
    lacking = [key for key in ("tokens", "merges") if f"tokenizer.ggml.{key}" not in metadata]
    if lacking:
        raise UserError(f"{where} lacks its tokenizer's {' and '.join(lacking)}: {remedy}")
    tokens = metadata["tokenizer.ggml.tokens"]
    types = metadata.get("tokenizer.ggml.token_type", [ORDINARY] * len(tokens))
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    added = [
        AddedToken(token, special=types[i] == CONTROL, normalized=False)
        for token, i in vocab.items()
        if types[i] in (CONTROL, USER_DEFINED)
    ]
    named = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if index is not None:
            named[f"{name}_token"] = tokens[index]
    # llama.cpp's default is BOS before the text for Llama 3's pre-tokenizer, and none for our other ones.
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", pre in IGNORE_MERGES)
    bos = named.get("bos_token") if add_bos else None
    tokenizer = byte_level_tokenizer(vocab, merges, pre, added, bos)
    chat_template = metadata.get("tokenizer.chat_template")
    write_tokenizer_files(folder, tokenizer, named, metadata["llama.context_length"], chat_template)
