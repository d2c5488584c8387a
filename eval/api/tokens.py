"""How many tokens a text is for a closed model: counted with tiktoken's vocabulary, or estimated from its characters.

Nothing is downloaded. A vocabulary is used if tiktoken has it in its cache folder, with the contents that tiktoken
expects. What was sent and written in the end is in the server's ``usage``; these counts are for the estimate before,
and for the length to which documents are cut.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiktoken import Encoding, get_encoding

# The files that tiktoken downloads: their folder, and the SHA-256 of each (tiktoken_ext/openai_public.py).
FOLDER = "https://openaipublic.blob.core.windows.net/encodings"
SHA256 = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
CHARACTERS = 4  # per token of English text
ESTIMATED_SHARE = 0.75  # none of the 7,532 test posts of 20 Newsgroups then passes GPT-4's or GPT-3.5's context
# tiktoken overflows its stack on longer runs of one kind of character; none of its tokens is this long.
MAX_RUN = 25_000

# A message's tokens around its text, and those that open the answer (OpenAI's cookbook, gpt-3.5-turbo to gpt-4o).
PER_MESSAGE, PER_REQUEST = 4, 3
SURPLUS = 64  # what a server's chat template may add to that, in the most that a request can cost

# What OpenAI's vocabularies never join to one token: words, groups of three digits, signs, and gaps.
_PIECE = re.compile(r"[^\W\d_]+|\d{1,3}|_|[^\w\s]+|\s\s+|\n")


@dataclass(frozen=True)
class Counter:
    """Counts tokens.

    Attributes:
        how: what counts them, for messages.
        count: text → tokens.
        length: text → tokens, for what has to fit. Not less than ``count``.
        cut: (text, n) → a beginning of the text, about as long as ``length`` n allows.
        share: the part of a model's context that ``length`` may fill.
    """

    how: str
    count: Callable[[str], int]
    length: Callable[[str], int]
    cut: Callable[[str, int], str]
    share: float = 1.0

    def of_messages(self, messages: Iterable[dict[str, str]]) -> int:
        """Tokens of a request's messages."""
        return sum(self.count(message["content"]) + PER_MESSAGE for message in messages) + PER_REQUEST

    def length_of_messages(self, messages: Iterable[dict[str, str]]) -> int:
        """The same for what has to fit."""
        return sum(self.length(message["content"]) + PER_MESSAGE for message in messages) + PER_REQUEST


class Characters:
    """A tokenizer whose tokens are four characters each: what `data.decoder.fewshot.cut_shots` needs of one.

    Few-shot examples are cut with it even where a vocabulary is at hand, so that a prompt is the same everywhere.
    """

    def encode(self, text: str) -> list[str]:
        return [text[i : i + CHARACTERS] for i in range(0, len(text), CHARACTERS)]

    def decode(self, tokens: Iterable[str]) -> str:
        return "".join(tokens)


def counter_for(vocabulary: str) -> Counter:
    """The counter of a model.

    Args:
        vocabulary: tiktoken's name of its vocabulary; empty: not known.
    """
    if not vocabulary:
        return by_characters("the vocabulary is not known")
    path = cached_file(vocabulary)
    if path is None:
        return by_characters(f"tiktoken has no {vocabulary} in its cache")
    # tiktoken would download a file with other contents anew.
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256[vocabulary]:
        return by_characters(f"the file in tiktoken's cache is not {vocabulary}")
    return by_vocabulary(get_encoding(vocabulary))


def cached_file(vocabulary: str) -> Path | None:
    """The file of a vocabulary in tiktoken's cache, if there is one."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    path = Path(folder) / hashlib.sha1(f"{FOLDER}/{vocabulary}.tiktoken".encode()).hexdigest()
    return path if folder and path.is_file() else None


def by_vocabulary(encoding: Encoding) -> Counter:
    """Exact counts."""

    def encode(text: str) -> list[int]:
        parts = [text[i : i + MAX_RUN] for i in range(0, len(text), MAX_RUN)]
        return [token for part in parts for token in encoding.encode_ordinary(part)]

    def cut(text: str, n: int) -> str:
        tokens = encode(text)
        if len(tokens) <= n:
            return text
        for kept in range(n, 0, -1):
            # The last token may end inside a character, and the beginning of a text may get other tokens.
            beginning = encoding.decode(tokens[:kept]).rstrip("\ufffd")
            if count(beginning) <= n:
                return beginning
        return ""

    def count(text: str) -> int:
        return len(encode(text))

    return Counter(f"tiktoken, {encoding.name}", count, count, cut)


def by_characters(why: str) -> Counter:
    """Estimates: characters / 4.

    Encoded files and tables in posts have fewer characters a token. So what has to fit is measured by its words,
    numbers, signs and gaps if these are more, and may fill three quarters of a context.
    """

    def count(text: str) -> int:
        return -(-len(text) // CHARACTERS)

    def length(text: str) -> int:
        return max(count(text), len(_PIECE.findall(text)))

    def cut(text: str, n: int) -> str:
        low, high = 0, min(len(text), n * CHARACTERS)  # characters that fit, and that may
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if length(text[:middle]) <= n else (low, middle - 1)
        return text[:low]

    return Counter(f"characters / {CHARACTERS}: {why}", count, length, cut, ESTIMATED_SHARE)


def most_tokens(messages: Sequence[dict[str, str]]) -> int:
    """More tokens than a request's messages can have: each token is at least a byte."""
    n_bytes = sum(len(message["content"].encode()) for message in messages)
    return n_bytes + len(messages) * PER_MESSAGE + PER_REQUEST + SURPLUS
