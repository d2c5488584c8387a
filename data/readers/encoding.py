"""What the bytes of a text are that is not in the expected encoding, and what to do about it.

Nothing is guessed: a wrong guess would change texts without a word. Text is UTF-8 unless the user names another
encoding, which is possible for tables only. Every reader of text that users write asks this file what to tell them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import PurePath

from data.commands import quoted
from data.errors import UserError, nearest

UTF8 = "utf-8"
KEEP_BYTES = "data.keep_bytes"
"""An error handler for decoding and encoding: bytes without a meaning become lone surrogates, and bytes again."""

START = 4096  # bytes at the beginning of a file that tell what it is
EVIDENCE = 2**18  # bytes of lines that are not UTF-8 that tell the encoding of a whole text
SHOWN = 16  # characters on both sides of the first byte in question

# Encodings of several bytes per character, by their marks, and by order.
_MARKS = {
    codecs.BOM_UTF32_LE: ("utf-32", "utf-32-le"),
    codecs.BOM_UTF32_BE: ("utf-32", "utf-32-be"),
    codecs.BOM_UTF16_LE: ("utf-16", "utf-16-le"),
    codecs.BOM_UTF16_BE: ("utf-16", "utf-16-be"),
}
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
_PACKED = _NO_TEXT[b"\x1f\x8b"]
_PACKED_TABLE = "compressed with gzip. Give a file the ending .gz; unpack a stream first (gunzip)"
# Western text is far more frequent than all others, and its other letters stand alone among ASCII.
_WESTERN = "windows-1252"
_BYTES, _RUNS = re.compile(rb"[\x80-\xff]+"), re.compile(rb"[\x80-\xff]{3,}")
ALONE = 20  # in Western text fewer than one in so many bytes beyond ASCII are in a run of three or more
_OTHERS = ("windows-1251", "shift_jis", "gb18030", "big5", "euc-kr")
_LAST = ("windows-1250", "macintosh", *_OTHERS)  # the second has a character for every byte
_COMMON = (UTF8, "utf-16", _WESTERN, "latin-1", "windows-1250", *_OTHERS, "macintosh")
_NOT_FOR_TABLES = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "utf-7")
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
        utf8_elsewhere = not content[:first].isascii() or mostly_utf8(content.splitlines())
        problem = not_utf8(line, file, utf8_elsewhere)
        raise UserError(f"{name}, line {number}: {problem}") from error


def not_text(start: bytes, file: str, can_be_named: bool = False) -> str:
    """What a file is whose first bytes are not those of a text in UTF-8 or in an encoding of one byte; else empty.

    Args:
        file: what the command calls the file; "-" for a stream.
        can_be_named: a table, for which the user can name another encoding, and which is unpacked while it is read.
    """
    for mark, what in _NO_TEXT.items():
        if start.startswith(mark):
            return f"this is no text, but {_PACKED_TABLE if can_be_named and what == _PACKED else what}."
    if b"\0" in start and start.startswith(_UTF16_AS_LATIN1):
        return (
            f"this was UTF-16 and was converted as if it were Latin-1. Convert the original: {_command('utf-16', file)}"
        )
    encoding = (_wide(start) or ("",))[0].replace("-le", "le").replace("-be", "be")
    if not encoding:
        return ""
    named = f" {_name_it(encoding)} Or" if can_be_named else ""
    return (
        f"this is {encoding[:6].upper()}, and UTF-8 is {'expected' if named else 'needed'}.{named} "
        f"{'c' if named else 'C'}onvert it: {_command(encoding, file)}"
    )


def _wide(start: bytes) -> tuple[str, ...]:
    """The names of the encoding of two or four bytes per character that a text begins in; empty if in none."""
    for mark, encodings in _MARKS.items():
        if start.startswith(mark):
            return encodings
    if b"\0" not in start or len(start) < 4:
        return ()
    first, second, third, fourth = ((four := start[i::4]).count(0) * 2 > len(four) for i in range(4))
    encoding = _ZEROS.get((first, second, third, fourth))
    return (encoding,) if encoding else ()


def not_utf8(line: bytes, file: str, utf8_elsewhere: bool | None, can_be_named: bool = False) -> str:
    """What to do about a line that is not UTF-8: where, and how it reads in the encoding that it probably has.

    Args:
        file, can_be_named: as in `not_text`.
        utf8_elsewhere: lines before it have characters beyond ASCII in UTF-8, or most lines that have any; None: those
            before it have not, and those after it are not known.
    """
    try:
        line.decode()
    except UnicodeDecodeError as error:
        start = error.start
    else:
        return ""
    found = f"not UTF-8 (byte {line[start]:#04x})"
    if utf8_elsewhere or _is_mostly_utf8(line):
        return (
            f"{found}, but other characters of the file are: correct this line. To convert the file would damage them."
        )
    return _which(found, _probable(line, start), file, can_be_named, utf8_elsewhere is None)


def mostly_utf8(lines: Iterable[bytes]) -> bool:
    """Whether more lines beyond ASCII are UTF-8 than not; of a line with both, what most of its characters are."""
    return sum(1 if _is_mostly_utf8(line) else -1 for line in lines if not line.isascii()) > 0


def _is_mostly_utf8(line: bytes) -> bool:
    good = line.decode(UTF8, "ignore")
    n_bad = len(line.decode(UTF8, "surrogateescape")) - len(good)  # bytes
    return len(good) - len(good.encode("ascii", "ignore")) > n_bad


def _which(
    found: str, readings: dict[str, str], file: str, can_be_named: bool = False, may_be_one_line: bool = False
) -> str:
    """What was found, how it reads in each encoding, and what to do; also if it may be the only line of its kind."""
    is_clear = len(readings) == 1
    right = next(iter(readings)) if is_clear else "ENCODING"
    named = f"{_name_it(right)} Or convert the file" if can_be_named else "Convert the file"
    conditions = ["that is right"] * is_clear + ["no line after it is UTF-8"] * may_be_one_line
    if conditions:
        named = f"if {' and '.join(conditions)}, {named[0].lower()}{named[1:]}"
    parted, source = ";" if conditions else ".", "" if is_clear else " from the right one"
    return f"{found}. It reads {_shown(readings)}{parted} {named}{source}: {_command(right, file)}"


def probable_encoding(lines: Iterable[bytes], name: str, file: str, advice: str) -> tuple[str, str]:
    """The encoding of a text, for a program that proposes one: UTF-8, or the only probable one of a text that is not.

    Encodings of one byte per character cannot be told from each other: with single letters beyond ASCII it is
    Windows-1252, also for Polish, which is not. So a person has to see how the text reads.

    Args:
        lines: of the text, with their line breaks.
        name, file: what messages and commands call it.
        advice: for a text that reads as well in several encodings.

    Returns:
        Its name, and how the line with the most characters beyond ASCII reads in it, around the first of these; empty
        for UTF-8.

    Raises:
        UserError: no text; several encodings are as probable; UTF-8 with wrong bytes in between.
    """
    n_utf8, n_wrong = 0, 0  # lines beyond ASCII that are UTF-8, and that are not
    wrong, most = b"", 0  # the latter; bytes beyond ASCII in the one that has most
    first_wrong: tuple[int, bytes] | None = None
    richest: tuple[int, UnicodeDecodeError] | None = None
    for number, line in enumerate(lines, start=1):
        if number == 1:
            if wide := _wide(line[:START]):
                return wide[0], line[:START].decode(wide[0], "ignore")[:SHOWN].strip("\ufeff")
            if problem := not_text(line[:START], file, can_be_named=True):
                raise UserError(f"{name}: {problem}")
        try:
            n_utf8 += not line.decode().isascii()
        except UnicodeDecodeError as error:
            if n_utf8 and not n_wrong:
                raise UserError(f"{name}, line {number}: {not_utf8(line, file, True)}") from error
            n_wrong += 1
            first_wrong = first_wrong or (number, line)
            if len(wrong) < EVIDENCE:
                wrong += line
                beyond = sum(byte > 127 for byte in line)
                most, richest = (beyond, (number, error)) if beyond > most else (most, richest)
    if richest is None or first_wrong is None:
        return UTF8, ""
    if n_utf8 > n_wrong:  # in a text of two bytes a character some lines are UTF-8 by chance, not most
        raise UserError(f"{name}, line {first_wrong[0]}: {not_utf8(first_wrong[1], file, True)}")
    number, first = richest
    readings = _readings(first.object, first.start, tuple(_probable(wrong, 0)))
    if len(readings) > 1:
        problem = _which(f"not UTF-8 (byte {first.object[first.start]:#04x})", readings, file)
        raise UserError(f"{name}, line {number}: {problem} {advice}") from first
    return next(iter(readings.items()))


def _probable(text: bytes, start: int) -> dict[str, str]:
    """By encoding, how lines that are not UTF-8 read around a wrong byte, for the probable ones."""
    beyond, together = (sum(map(len, re.findall(pattern, text))) for pattern in (_BYTES, _RUNS))
    candidates = (_WESTERN, *_OTHERS) if together * ALONE > beyond else (_WESTERN,)
    return _readings(text, start, candidates) or _readings(text, start, _LAST)


def _shown(readings: dict[str, str]) -> str:
    return ", ".join(f"{text!r} in {encoding}" for encoding, text in readings.items())


def _name_it(encoding: str) -> str:
    return f'Write encoding = "{encoding}" in the task\'s file, or give --encoding {encoding} to predict.py.'


# ------------------------------------------------------------------------------- encodings that the user has named


def check_encoding(encoding: str) -> None:
    """A UserError, without its place, unless this is the name of an encoding for tables."""
    try:
        known = codecs.lookup(encoding).name
        printable = bytes(range(32, 127))
        is_for_tables = known not in map(_known, _NOT_FOR_TABLES) and (
            is_wide(encoding) or printable.decode(encoding) == printable.decode("ascii")
        )
    except (LookupError, UnicodeError, ValueError, TypeError):
        is_for_tables = False
    if not is_for_tables:
        raise UserError(f"{encoding!r} is no encoding that tables are read in.{nearest(encoding, _COMMON)}")


def _known(encoding: str) -> str:
    return codecs.lookup(encoding).name


def is_utf8(encoding: str) -> bool:
    return _known(encoding) in ("utf-8", "utf-8-sig")


def is_wide(encoding: str) -> bool:
    """Whether every character has two or four bytes."""
    return _known(encoding).startswith(("utf-16", "utf-32"))


def not_as_named(start: bytes, encoding: str) -> str:
    """What a file is whose first bytes are not those of a text in the encoding that was named; else empty."""
    if start.startswith(tuple(_NO_TEXT)):
        return not_text(start, "", can_be_named=True)
    found, instead = _wide(start), ""
    if start.startswith(codecs.BOM_UTF8):
        instead = UTF8
    elif is_wide(encoding) and b"\0" not in start and not found:
        # Every line break, comma and space of such a text has a zero.
        instead = "" if not start else UTF8 if _is_start_of_utf8(start) else _WESTERN
    elif found and _known(encoding) not in map(_known, found):
        instead = found[0]
    elif not found and _known(encoding) in ("utf-16", "utf-32"):
        return (
            f"encoding = {encoding!r} needs a byte-order mark at the start, and the file has none. Name the order of "
            f'the bytes: "{encoding}-le" or "{encoding}-be".'
        )
    if not instead:
        return ""
    return f"encoding = {encoding!r}, but this looks like {instead}. {set_right(instead)}"


def _is_start_of_utf8(start: bytes) -> bool:
    try:
        codecs.getincrementaldecoder(UTF8)().decode(start)  # not final: the last character may be cut
    except UnicodeDecodeError:
        return False
    return True


def set_right(encoding: str) -> str:
    """What to do if a table is in this encoding, and another one was named."""
    return "Omit encoding: UTF-8 is the default." if encoding == UTF8 else _name_it(encoding)


def undecodable(line: str, encoding: str) -> str:
    """What to do about bytes that the encoding does not have, in a line that was decoded with `KEEP_BYTES`."""
    found = _KEPT.search(line)
    if found is None:
        return ""
    problem = f"not {encoding} (byte {ord(found[0]) & 0xFF:#04x})"
    if is_wide(encoding):
        return f"{problem}: the file is damaged here, or not {encoding} from here on."
    content = line.encode(encoding, KEEP_BYTES)
    readings = _readings(content, len(line[: found.start()].encode(encoding, KEEP_BYTES)), (UTF8, *_COMMON))
    if UTF8 in readings:
        return f"{problem}. It reads {readings[UTF8]!r} in UTF-8. {set_right(UTF8)}"
    shown = _shown(readings) or "in no encoding that is known here"
    return f"{problem}. It reads {shown}. Name the right one, or correct the line."


_KEPT = re.compile("[\udc00-\udcff]")


def _keep_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeDecodeError):
        return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end
    assert isinstance(error, UnicodeEncodeError)
    wrong = error.object[error.start : error.end]
    return bytes(ord(character) & 0xFF if _KEPT.match(character) else ord("?") for character in wrong), error.end


codecs.register_error(KEEP_BYTES, _keep_bytes)


# ------------------------------------------------------------------------------------------- what both of them say


def wrongly_converted(line: str) -> str:
    """What is suspicious about the characters of a line of UTF-8; empty if nothing."""
    if (found := _WINDOWS_AS_LATIN1.search(line)) is None:
        return ""
    return (
        f"control character U+{ord(found[0]):04X}, as in Windows-1252 that was converted as if it were Latin-1. If so, "
        f"convert the original: iconv -f {_WESTERN} -t utf-8"
    )


def wrongly_read(line: str, encoding: str) -> str:
    """What is suspicious about the characters of a line in an encoding that was named; empty if nothing."""
    if is_wide(encoding):
        return wrongly_converted(line)
    if (found := _WINDOWS_AS_LATIN1.search(line)) is None:
        return ""
    return f"control character U+{ord(found[0]):04X} in {encoding}. This is probably {_WESTERN}. {_name_it(_WESTERN)}"


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
    if path.suffix.lower() == ".gz":
        unpacked = PurePath(path.stem)
        target = quoted(f"{unpacked.stem}.utf8{unpacked.suffix}")
        return f"gunzip -c {quoted(file)} | iconv -f {encoding} -t utf-8 > {target}"
    return f"iconv -f {encoding} -t utf-8 {quoted(file)} > {quoted(f'{path.stem}.utf8{path.suffix}')}"
