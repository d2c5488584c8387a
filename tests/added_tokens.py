"""Texts and checks for tests of added tokens: words that a document has, and control tokens that it never produces."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

WORDS = ["Covfefe", "xyzzy plugh", "naïve", "🙂", "C++", "the"]
_PIECES = [
    *WORDS, "covfefe", " ", "  ", "   ", "\n", "\t", "\r\n", "\u00a0", "news", "e\u0301", "é", "x", "12", ".", "日本",
    "wake me up", "a Covfefe b", " lead ", "trail  ", "ｆｕｌｌ", "\u200b",
]  # fmt: skip
# Not flagged special by anyone, but written like structure.
LOOK_ALIKES = ["<|im_end|>", "<|im_start|>", "[INST]", "[/INST]", "<<SYS>>", "<tool>", "</x>", "<|a b|>", "[CLS]"]


def mixed_texts(n: int = 250) -> list[str]:
    """Runs of spaces, line breaks, emoji, combining characters and `WORDS` in any order, some cut at any place."""
    generator = random.Random(0)
    texts = ["".join(generator.choices(_PIECES, k=generator.randint(1, 9))) for _ in range(n)]
    cut = [text[generator.randint(0, len(text)) :] for text in texts]
    return ["", *_PIECES, *texts, *(text[: generator.randint(0, len(text))] for text in cut)]


def assert_equal_ids(
    ours: Callable[[str], Sequence[int]], reference: Callable[[str], Sequence[int]], texts: Sequence[str]
) -> None:
    for text in texts:
        assert list(ours(text)) == list(reference(text)), repr(text)
