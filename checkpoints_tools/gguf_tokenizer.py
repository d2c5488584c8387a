"""Write the tokenizer of a GGUF file as Hugging Face tokenizer files.

A GGUF file stores the vocabulary, the merges, and the *name* of the pre-tokenizer, the rule that splits text before
merging. (llama.cpp has these rules in code; ours are `tokenizer_files.PRE_TOKENIZERS`.) Only byte-level BPE is
supported; for a SentencePiece vocabulary (Llama 2) give the original ``tokenizer.model``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from tokenizers import AddedToken

from checkpoints_tools.tokenizer_files import (
    IGNORE_MERGES,
    PRE_TOKENIZERS,
    byte_level_tokenizer,
    write_tokenizer_files,
)
from data.added_tokens import refusals_named
from data.errors import UserError, nearest
from data.files.documents import shaped

log = logging.getLogger(__name__)

REMEDY = "give the model's original tokenizer file or folder with --tokenizer"
# Values of tokenizer.ggml.token_type.
ORDINARY, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
# llama.cpp's id of a token that does not exist, in signed and in unsigned fields.
NONE = (-1, 2**32 - 1)
# Of these nothing depends: this code pads by position, and byte-level BPE has a token for every text.
UNUSED_IDS = ("padding", "unknown")


class TokenizerFile(Struct):
    """What is read of the metadata about the tokenizer."""

    kind: str | None = field(name="tokenizer.ggml.model", default=None)
    pre: str = field(name="tokenizer.ggml.pre", default="default")
    tokens: list[str] | None = field(name="tokenizer.ggml.tokens", default=None)
    merges: list[str] | None = field(name="tokenizer.ggml.merges", default=None)
    types: list[int] | None = field(name="tokenizer.ggml.token_type", default=None)
    add_bos: bool | None = field(name="tokenizer.ggml.add_bos_token", default=None)
    chat_template: str | None = field(name="tokenizer.chat_template", default=None)


def read_special_ids(metadata: dict[str, Any], n_tokens: int, where: str, strict: bool) -> dict[str, int]:
    """The special tokens of a GGUF file, by llama.cpp's name: bos, eos, eot, unknown, padding.

    An id that means "none", or that is beyond the tokens and of no use, is left out with a warning.

    Args:
        n_tokens: number of the model's tokens.
        strict: the ids must be right. Otherwise wrong ones are left out, because another tokenizer has them.

    Raises:
        UserError: an id that is not the number of a token.
    """
    found: dict[str, int] = {}
    for name in ("bos", "eos", "eot", "unknown", "padding"):
        key = f"tokenizer.ggml.{name}_token_id"
        if key not in metadata:
            continue
        value = metadata[key]
        if isinstance(value, int) and 0 <= value < n_tokens:
            found[name] = value
        elif value in NONE or name in UNUSED_IDS or not strict:
            log.warning("warning: %s: %s is %r, which is none of its %d tokens: left out.", where, key, value, n_tokens)
        else:
            raise UserError(
                f"{where}: {key} is {value!r}, but the file has {n_tokens:,} tokens. It is damaged; {REMEDY}"
            )
    return found


def write_gguf_tokenizer(metadata: dict[str, Any], special: dict[str, int], folder: Path, where: str) -> None:
    """Write the tokenizer that a GGUF file's metadata describes.

    Args:
        special: see `read_special_ids`.

    Raises:
        UserError: the tokenizer is not byte-level BPE, its pre-tokenizer is unknown, or its data is missing or
            contradicts itself.
    """
    found: TokenizerFile = shaped(metadata, where, TokenizerFile)
    pre = found.pre
    if found.kind != "gpt2":
        raise UserError(
            f"{where} holds a tokenizer of kind {found.kind!r}; only 'gpt2' (byte-level BPE) is supported: {REMEDY}"
        )
    if pre not in PRE_TOKENIZERS:
        raise UserError(
            f"{where} has the unknown pre-tokenizer {pre!r}.{nearest(pre, PRE_TOKENIZERS)} Otherwise {REMEDY}."
        )
    lacking = [name for name in ("tokens", "merges") if getattr(found, name) is None]
    if lacking:
        raise UserError(f"{where} lacks its tokenizer's {' and '.join(lacking)}: {REMEDY}")
    tokens: list[str] = found.tokens or []
    types = found.types or [ORDINARY] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"{where} has {len(tokens):,} tokens, but the types of {len(types):,}: {REMEDY}")
    vocab = {token: i for i, token in enumerate(tokens) if types[i] != UNUSED}
    if len(vocab) < len(tokens) - sum(kind == UNUSED for kind in types):
        twice = next(token for i, token in enumerate(tokens) if types[i] != UNUSED and vocab[token] != i)
        raise UserError(f"{where} has the token {twice!r} twice: {REMEDY}")
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in found.merges or [])]
    bad = next((m for m in merges if not {*m, "".join(m)} <= vocab.keys()), None)
    if bad is not None:
        raise UserError(
            f"{where} has the merge {' '.join(bad).strip()!r}, which does not join two of its tokens: {REMEDY}"
        )
    turns = [special[name] for name in ("bos", "eos", "eot") if name in special]
    added = [
        AddedToken(token, special=types[i] == CONTROL or i in turns, normalized=False)
        for token, i in vocab.items()
        if types[i] in (CONTROL, USER_DEFINED) or i in turns
    ]
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    named = {theirs: tokens[special[name]] for name, theirs in names.items() if name in special}
    # llama.cpp's default is BOS before the text for Llama 3's pre-tokenizer, and none for our other ones.
    add_bos = pre in IGNORE_MERGES if found.add_bos is None else found.add_bos
    bos = named.get("bos_token") if add_bos else None
    with refusals_named(where, REMEDY):
        tokenizer = byte_level_tokenizer(vocab, merges, pre, added, bos)
    write_tokenizer_files(folder, tokenizer, named, metadata["llama.context_length"], found.chat_template)
