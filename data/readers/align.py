"""Give the words of an utterance of MASSIVE the slots of its annotation, also where the two have other words.

The kinds of lines whose words differ:

- ``letter_case``: the words differ in capitals only. Each word takes the label at the same index.
- ``spelling``: the number of words is the same, but some differ. Equal words (ignoring case) are matched in order.
  Words between two matches are paired by index: ``rihanna`` takes the label of ``rihana``.
- ``word_count``: the number of words differs. Where it also differs between two matches, a word takes the label of the
  annotated word that contains more than half of its letters in one piece: ``comcast`` is in ``@comcast``, ``harry``
  and ``potter`` are in ``harrypotter``. If there is no such word, it takes Other.

``entities_lost`` counts the bracketed entities that no word of the utterance received. A word that touches two
brackets (``[person : ann][date : monday]`` without a space between) belongs to the first.
"""

from __future__ import annotations

import difflib
from collections import Counter
from dataclasses import dataclass


@dataclass(frozen=True)
class AnnotatedWord:
    """A word of the annotated utterance, its slot type and the number of its bracket; None outside brackets."""

    text: str
    slot: str | None
    bracket: int | None


def align(
    words: list[str], annotated: list[AnnotatedWord], n_entities: int, other: str, counts: Counter[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The slot types and BIO tags of the utterance's words.

    Args:
        words: of the plain utterance.
        annotated: of the annotated one.
        n_entities: number of its brackets.
        other: the type of words outside brackets.
        counts: this line's mismatches are added to it, by the kinds above.
    """
    theirs = [word.text for word in annotated]
    if words == theirs:
        matched: list[AnnotatedWord | None] = list(annotated)
    else:
        folded, their_folded = [w.casefold() for w in words], [w.casefold() for w in theirs]
        same_number = len(words) == len(theirs)
        kind = "letter_case" if folded == their_folded else "spelling" if same_number else "word_count"
        counts[kind] += 1
        matched = _match(folded, their_folded, annotated)

    brackets = [word.bracket if word else None for word in matched]
    counts["entities_lost"] += n_entities - len(set(brackets) - {None})
    slots = tuple(word.slot if word and word.slot else other for word in matched)
    bio = tuple(
        "O" if bracket is None else f"{'I' if i and brackets[i - 1] == bracket else 'B'}-{slots[i]}"
        for i, bracket in enumerate(brackets)
    )
    return slots, bio


def _match(words: list[str], theirs: list[str], annotated: list[AnnotatedWord]) -> list[AnnotatedWord | None]:
    """The annotated word that matches each word, by the rules at the top of this file; None where there is none."""
    matched: list[AnnotatedWord | None] = [None] * len(words)
    blocks = difflib.SequenceMatcher(None, words, theirs, autojunk=False).get_opcodes()
    for _, start, end, their_start, their_end in blocks:
        if end - start == their_end - their_start:
            matched[start:end] = annotated[their_start:their_end]
            continue
        for i in range(start, end):
            shared = [_shared_letters(words[i], theirs[j]) for j in range(their_start, their_end)]
            if shared and max(shared) * 2 > len(words[i]):
                matched[i] = annotated[their_start + shared.index(max(shared))]
    return matched


def _shared_letters(a: str, b: str) -> int:
    """Length of the longest run of letters that both words contain."""
    return difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match().size
