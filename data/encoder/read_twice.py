"""A decoder's tokenizer as that of a model with heads, which reads each document twice (`model/llama_heads.py`)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from data.decoder.templates import MARKS
from data.decoder.tokenizer import Tokenizer as DecoderTokenizer
from data.decoder.tokenizer import load_tokenizer as load_decoder_tokenizer
from data.encoder.frame import Frame

BEFORE = "Rewrite the sentence:"
BETWEEN = "\nThe rewritten sentence:"
AFTER = '\nThe topic of this text, in one word: "'


class TwiceTokenizer:
    """The interface of `data.encoder.tokenizer.Tokenizer`, as far as samples need it.

    Every document begins with a space, since in both readings it follows a word.

    Attributes:
        frame: the tokens around a document's two readings. It begins with the tokenizer's beginning of a text, unless
            that is the beginning of a turn of a chat (SmolLM2's ``<|im_start|>``).
        pad_id: fills a row; nothing attends to it.
        vocab_size, fingerprint: as of the other tokenizers.
    """

    pad_id = 0

    def __init__(self, tokenizer: DecoderTokenizer) -> None:
        self.decoder = tokenizer
        self.vocab_size = tokenizer.vocab_size
        begins_turn = tokenizer.bos_id in {tokenizer.special.get(mark) for mark in MARKS}
        begin = () if tokenizer.bos_id is None or begins_turn else (tokenizer.bos_id,)
        before, between, after = (tuple(tokenizer.encode(text)) for text in (BEFORE, BETWEEN, AFTER))
        self.frame = Frame((*begin, *before), after, between)
        self.fingerprint = hashlib.sha256(f"{self.frame} {tokenizer.fingerprint}".encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self.decoder.encode(f" {text}")

    def encode_words(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids of words, each tokenized separately, and the index of each word's first sub-word; -1 if it has none.

        A space is no sub-word: Llama's tokenizers have one of its own before a digit, which is the same for all words.
        """
        ids: list[int] = []
        first = []
        for word in words:
            own = self.encode(word) if word else []
            is_space = len(own) > 1 and not self.decoder.decode(own[:1]).strip()
            first.append(len(ids) + is_space if own else -1)
            ids += own
        return ids, first

    def save(self, folder: Path) -> None:
        """Write the decoder's files, byte for byte."""
        self.decoder.save(folder)


def load_tokenizer(folder: Path | str) -> TwiceTokenizer:
    """Load the tokenizer of a decoder's checkpoint folder.

    Raises:
        UserError: as `data.decoder.tokenizer.load_tokenizer`.
    """
    return TwiceTokenizer(load_decoder_tokenizer(Path(folder)))
