"""The exception for users' mistakes."""

from __future__ import annotations

import difflib
import errno
import json
from collections.abc import Iterable
from typing import Any, ClassVar

from data.characters import look_the_same

SHOWN = 60  # characters of a value in a message
DISK_FULL = 4  # exit status; a study then goes on later instead of noting that a cell has failed
LISTED = 100  # names in a message at most: a training split has thousands of ids


class UserError(ValueError):
    """A mistake in the user's command line, configuration, checkpoint or data.

    The message names the setting or file, the value found and what to do. The entry points print it without a
    traceback and exit with its ``status``. Our own bugs are caught by ``assert`` instead.
    """

    usual_status: ClassVar[int] = 2

    @property
    def status(self) -> int:
        """The exit status: `DISK_FULL` of an error that was raised from an OSError about space or a quota."""
        cause = self.__cause__
        is_full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        return DISK_FULL if is_full else self.usual_status


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error message: ``" Did you mean 'x'?"`` if a known name is close, then the known names.

    Of a name that looks like a known one it says in which characters the two differ.
    """
    known = list(dict.fromkeys(known))  # a study's own names may be those of models and tasks
    more = f", ... ({len(known):,} in all)" if len(known) > LISTED else ""
    listed = f" Known: {', '.join(known[:LISTED])}{more}."
    twin = next((other for other in known if look_the_same(name, other)), None)
    if twin is not None:
        return f" It looks like {twin!r}, but is {ascii(name)} instead of {ascii(twin)}.{listed}"
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint}{listed}"


def shortened(text: str, limit: int = SHOWN) -> str:
    """A text for a message, of which no more characters are shown than the limit."""
    return text if len(text) <= limit else f"{text[:limit]}..."


def as_json(value: Any) -> str:
    """A value for a message, as JSON writes it, or as Python does what JSON cannot; shortened."""
    try:
        return shortened(json.dumps(value))
    except TypeError:  # bytes, sets and others that a cell may have as Python writes them
        return shortened(repr(value))
