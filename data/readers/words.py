"""Texts that are given word by word, as lists in a ``tokens`` column or as the lines of a CoNLL file."""

from __future__ import annotations

from typing import Any

from data.errors import UserError, as_json


def joined(words: Any) -> str:
    """The words of a list with a space between; its words are then those of ``text.split()``.

    Raises:
        UserError: no list of texts, or a word that is empty or has a space in it. Without its place.
    """
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"must be a list of words, found {as_json(words)}.")
    for number, word in enumerate(words, 1):
        if word.split() != [word]:
            kind = "has a space within or around it" if word.strip() else "is blank"
            raise UserError(
                f"has {word!r} as word {number} of {len(words)}, which {kind}. Words are parted by spaces: join its "
                "parts (with _, for example), or make them words with labels of their own."
            )
    return " ".join(words)
