"""Texts that look the same and are not: composed and decomposed letters, invisible characters, kinds of spaces."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

NO_TEXT = "half a character (an unpaired surrogate), or bytes that are not UTF-8"  # what `is_text` refuses

# Characters that show nothing, besides those of Unicode's categories Cc and Cf: fillers, blanks, variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0") | {chr(i) for i in range(0xFE00, 0xFE10)}
_JOINERS = re.compile("(?<=[\0-\u024f])[\u200c\u200d]|[\u200c\u200d](?=[\0-\u024f]|$)|^[\u200c\u200d]")

# Cyrillic and Greek letters that look like Latin ones.
_AS_LATIN = str.maketrans("АВЕКМНОРСТХаеорсухіјΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEKMHOPCTXaeopcyxijABEZHIKMNOPTYXo")


def appearance(text: str) -> str:
    """What a text has in common with all texts that look like it.

    Composed letters (NFC), one space for any run of spaces, none at the ends, and no invisible characters. Joiners
    within scripts that they change (Persian, Hindi, emoji) are kept, and so are the tags of flags.
    """
    if text.isascii() and text.isprintable():  # the same, faster
        return " ".join(text.split())
    text = _JOINERS.sub("", unicodedata.normalize("NFC", text))
    kept = "".join(character for character in text if character.isspace() or not _is_invisible(character))
    return " ".join(kept.split())


def _is_invisible(character: str) -> bool:
    if character in _BLANK:
        return True
    tag_or_joiner = character in "\u200c\u200d" or 0xE0020 <= ord(character) <= 0xE007F
    return unicodedata.category(character) in ("Cc", "Cf") and not tag_or_joiner


def by_appearance(texts: Iterable[str]) -> dict[str, str]:
    """The texts by themselves and by their appearance, for `find`."""
    texts = list(texts)
    return {appearance(text): text for text in texts} | {text: text for text in texts}


def find(text: str, known: dict[str, str]) -> str | None:
    """The known text that is this text or looks the same."""
    return known[text] if text in known else known.get(appearance(text))


def look_the_same(a: str, b: str) -> bool:
    """Whether two different texts cannot be told apart by eye, letters of other alphabets included."""
    return a != b and appearance(a).translate(_AS_LATIN) == appearance(b).translate(_AS_LATIN)


def is_one_line(text: str) -> bool:
    """Whether a text has no line break: LF or CR."""
    return "\n" not in text and "\r" not in text


def whole_characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs, which JSON can have and no file."""
    return text if is_text(text) else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_text(value: str) -> bool:
    """Whether a string can be encoded as UTF-8. Half a surrogate pair (``"\\ud800"``), valid in JSON, cannot,
    nor can the bytes of Parquet that are not UTF-8, which are read as such halves."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
