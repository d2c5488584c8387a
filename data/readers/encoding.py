"""What the bytes of a text are that is not UTF-8, and how to convert it without damage.

Nothing is converted here: a wrong guess would change texts without a word. Every reader of text that users write asks
this file what to tell them.
"""

from __future__ import annotations

import re
from pathlib import PurePath

from data.commands import quoted
from data.errors import UserError

START = 4096  # bytes at the beginning of a file that tell what it is
SHOWN = 16  # characters on both sides of the first byte in question

_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
# Which of four neighbouring bytes are mostly zero in text without a mark.
_ZEROS = {
    (False, True, False, True): "utf-16le",
    (True, False, True, False): "utf-16be",
    (False, True, True, True): "utf-32le",
    (True, True, True, False): "utf-32be",
}
_NO_TEXT = {
    b"\x1f\x8b": "compressed with gzip. Unpack it first (gunzip)",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard. Unpack it first (unzstd)",
    b"\xfd7zXZ\0": "compressed with xz. Unpack it first (unxz)",
    b"PK\x03\x04": "a zip archive or an Excel workbook. Unpack it, or save the sheet as CSV in UTF-8",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook. Save the sheet as CSV in UTF-8",
    b"PAR1\x15": "Parquet. Give it the ending .parquet",
}
# Western text is far more frequent than all others, and its other letters stand alone among ASCII.
_WESTERN = "windows-1252"
_OTHERS = ("windows-1251", "shift_jis", "gb18030", "big5", "euc-kr")
_LAST = ("macintosh", *_OTHERS)  # the first has a character for every byte
_UTF16_AS_LATIN1 = ("ÿþ".encode(), "þÿ".encode())
# Characters that nobody writes; in Windows-1252 their numbers are quotation marks, dashes and the euro sign.
_WINDOWS_AS_LATIN1 = re.compile("[\x80-\x84\x86-\x9f]")


def decode_utf8(content: bytes, name: str, file: str) -> str:
    """The text of a whole file, without a byte-order mark.

    Args:
        name, file: what messages and commands call it.

    Raises:
        UserError: it is not UTF-8; says what it is.
    """
    if problem := not_text(content[:START], file):
        raise UserError(f"{name}: {problem}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        first = content.rfind(b"\n", 0, error.start) + 1
        line, number = content[first:].partition(b"\n")[0], content.count(b"\n", 0, first) + 1
        problem = not_utf8(line, file, not content[:first].isascii())
        raise UserError(f"{name}, line {number}: {problem}") from error


def not_text(start: bytes, file: str) -> str:
    """What a file is whose first bytes are not those of a text in UTF-8 or in an encoding of one byte; else empty."""
    for mark, what in _NO_TEXT.items():
        if start.startswith(mark):
            return f"this is no text, but {what}."
    if b"\0" in start and start.startswith(_UTF16_AS_LATIN1):
        return (
            f"this was UTF-16 and was converted as if it were Latin-1. Convert the original: {_command('utf-16', file)}"
        )
    encoding = next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), None)
    if encoding is None and b"\0" in start and len(start) >= 4:
        fours = [start[i::4] for i in range(4)]
        first, second, third, fourth = (four.count(0) * 2 > len(four) for four in fours)
        encoding = _ZEROS.get((first, second, third, fourth))
    if encoding is None:
        return ""
    return f"this is {encoding[:6].upper()}, and UTF-8 is needed. Convert it: {_command(encoding, file)}"


def not_utf8(line: bytes, file: str, utf8_before: bool) -> str:
    """What to do about a line that is not UTF-8: where, and how it reads in the encoding that it probably has.

    Args:
        file: what the command calls the file; "-" for a stream.
        utf8_before: lines before it have characters beyond ASCII in UTF-8.
    """
    try:
        line.decode()
    except UnicodeDecodeError as error:
        start = error.start
    else:
        return ""
    found = f"not UTF-8 (byte {line[start]:#04x})"
    characters = line.decode("utf-8", "surrogateescape")
    n_bad = sum("\udc80" <= character <= "\udcff" for character in characters)
    n_good = sum(not character.isascii() for character in characters) - n_bad
    if utf8_before or n_good > n_bad:
        return (
            f"{found}, but other characters of the file are: correct this line. To convert the file would damage them."
        )
    candidates = (_WESTERN,) if not re.search(rb"[\x80-\xff]{3}", line) else (_WESTERN, *_OTHERS)
    readings = _readings(line, start, candidates) or _readings(line, start, _LAST)
    shown = ", ".join(f"{text!r} in {encoding}" for encoding, text in readings.items())
    if len(readings) == 1:
        return f"{found}. It reads {shown}; if that is right, convert the file: {_command(next(iter(readings)), file)}"
    return f"{found}. It reads {shown}. Convert the file from the right one: {_command('ENCODING', file)}"


def wrongly_converted(line: str) -> str:
    """What is suspicious about a line's characters; empty if nothing."""
    if (found := _WINDOWS_AS_LATIN1.search(line)) is None:
        return ""
    return (
        f"control character U+{ord(found[0]):04X}, as in Windows-1252 that was converted as if it were Latin-1. If so, "
        f"convert the original: iconv -f {_WESTERN} -t utf-8"
    )


def _readings(line: bytes, start: int, encodings: tuple[str, ...]) -> dict[str, str]:
    """By encoding, the text around a byte, for those in which the line is text."""
    readings = {}
    for encoding in encodings:
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError:
            continue
        place = len(line[:start].decode(encoding, "ignore"))
        readings[encoding] = text[max(place - SHOWN, 0) : place + SHOWN].strip()
    return readings


def _command(encoding: str, file: str) -> str:
    if file == "-":
        return f"iconv -f {encoding} -t utf-8"
    path = PurePath(file)
    return f"iconv -f {encoding} -t utf-8 {quoted(file)} > {quoted(f'{path.stem}.utf8{path.suffix}')}"
