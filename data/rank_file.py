"""A tiktoken rank file, Llama 3's ``tokenizer.model``: its tokens, how they split a text, and the special tokens of
Llama 3, which the file does not list."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

from data.tokenizer_files import damaged

# How Llama 3 splits text before merging bytes (published with the model; also in its tokenizer.json).
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3's rank file lists ordinary tokens only; 256 special ones follow, of which these have names.
LLAMA3_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
N_LLAMA3_SPECIAL = 256
# tiktoken overflows its stack on longer texts or runs. The reference cuts at the same points, so ids are equal.
MAX_CHUNK = 400_000
MAX_RUN = 25_000


def is_rank_file(content: bytes) -> bool:
    """Whether a ``tokenizer.model`` is a tiktoken rank file, by its first line; else it is a SentencePiece model."""
    return re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", content) is not None


def read_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    """Read a tiktoken rank file: one line per token, its bytes in base64 and its rank.

    Raises:
        UserError: a broken line, or ranks that are not those of a vocabulary.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise damaged(path, f"broken in line {number} (expected `base64 rank`)") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise damaged(path, f"incomplete: {len(ranks):,} tokens whose ranks are not 0 to {len(ranks) - 1:,}")
    return ranks


def llama3_special_tokens() -> list[str]:
    """Llama 3's special tokens in the order of their ids, which follow the last rank (Meta's tokenizer.py)."""
    reserved = iter(f"<|reserved_special_token_{i}|>" for i in range(N_LLAMA3_SPECIAL))
    return [LLAMA3_SPECIAL[i] if i in LLAMA3_SPECIAL else next(reserved) for i in range(N_LLAMA3_SPECIAL)]


def chunks(text: str) -> Iterator[str]:
    """Cut a text every MAX_CHUNK characters; within a chunk, cut runs of (non-)spaces every MAX_RUN."""
    for start in range(0, len(text), MAX_CHUNK):
        chunk = text[start : start + MAX_CHUNK]
        done = 0
        if len(chunk) > MAX_RUN:
            for run in re.finditer(rf"\s{{{MAX_RUN + 1},}}|\S{{{MAX_RUN + 1},}}", chunk):
                for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                    yield chunk[done:cut]
                    done = cut
        yield chunk[done:]
