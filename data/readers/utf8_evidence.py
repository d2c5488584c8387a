"""Whether a text that was decoded as the user has said is UTF-8 in truth.

Where each byte is a character, UTF-8 is read without an error and wrongly: all of a file, or all but the few lines that
another program has added to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from data.readers.encoding import KEEP_BYTES, SHOWN, UTF8, is_wide, mostly_utf8, not_utf8, set_right

_BEYOND_ASCII = re.compile("[A-Za-z]*[^\\x00-\\x7f]+[A-Za-z]*")  # words or parts of them


class Utf8Evidence:
    """What the lines until now tell, or all lines where they can be read twice.

    More lines beyond ASCII have to be UTF-8 than not. One letter of a Western text is enough where each byte is a
    character: the byte is followed by ASCII. Two bytes that are one Chinese character may be one of UTF-8 by chance, so
    8 characters are needed, in any number of lines. A word that is repeated, such as a label, tells nothing new.
    Characters between ASCII letters count every time, because Chinese ones are hardly ever there.

    Args:
        encoding: that the user has named.
        all_lines: reads the text from its start; None if it can be read once.
    """

    def __init__(self, encoding: str, all_lines: Callable[[], Iterable[bytes]] | None = None) -> None:
        self.encoding, self.all_lines = encoding, all_lines
        self.is_single = len(b"\xe4\xbd".decode(encoding, "replace")) == 2
        self.needed = 1 if self.is_single else 8  # characters beyond ASCII
        self.lead = 0  # lines that are UTF-8, less those that are not
        self.is_utf8 = False if is_wide(encoding) else None  # what all lines tell; None: those until now decide
        self._words: set[str] = set()

    def problem(self, line: str) -> str:
        """What to do about this line beyond ASCII if the text is most likely UTF-8; else empty."""
        if self.is_utf8 is False:
            return ""
        content = line.encode(self.encoding, KEEP_BYTES)
        as_utf8 = self._add(content)
        if not as_utf8 and self.is_utf8 is None and self.all_lines is not None:
            self.is_utf8 = Utf8Evidence(self.encoding)._decide(self.all_lines())
        if not (self.is_utf8 or (self.is_utf8 is None and self._is_enough())):
            return ""
        return f"{self._both(line, as_utf8) if as_utf8 else not_utf8(content, '-', True)} {set_right(UTF8)}"

    def suspicion(self, line: str) -> str:
        """What is suspicious about this line beyond ASCII of a text that is most likely not UTF-8; empty if nothing."""
        if not self.is_single:
            return ""
        try:
            as_utf8 = line.encode(self.encoding, KEEP_BYTES).decode()
        except UnicodeDecodeError:
            return ""
        return f"{self._both(line, as_utf8)[:-1]}, but other lines are not UTF-8. Write all lines in one encoding."

    def _decide(self, lines: Iterable[bytes]) -> bool:
        for line in lines:
            if not line.isascii():  # some are a whole document
                self._add(line.decode(UTF8, "ignore").encode() if mostly_utf8([line]) else line)
        return self._is_enough()

    def _is_enough(self) -> bool:
        return self.lead > 0 and self.needed <= 0

    def _add(self, content: bytes) -> str:
        """Count a line, and return it; empty if it is not UTF-8."""
        try:
            as_utf8 = content.decode()
        except UnicodeDecodeError:
            self.lead -= 1
            return ""
        self.lead += 1
        for word in _BEYOND_ASCII.findall(as_utf8) if self.needed > 0 else ():
            if word not in self._words or (word[0].isascii() and word[-1].isascii()):
                self._words.add(word)
                self.needed -= sum(not character.isascii() for character in word)
        return as_utf8

    def _both(self, line: str, as_utf8: str) -> str:
        """How the line reads in both encodings, around its first character beyond ASCII."""
        first = next(i for i, character in enumerate(as_utf8) if not character.isascii())
        wrong, right = (text[max(first - SHOWN, 0) : first + SHOWN].strip() for text in (line, as_utf8))
        return f"encoding = {self.encoding!r} reads {wrong!r}, UTF-8 reads {right!r}."
