"""The exception for users' mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from data.characters import look_the_same


class UserError(ValueError):
    """A mistake in the user's command line, configuration, checkpoint or data.

    The message names the setting or file, the value found and what to do. The entry points print it without a
    traceback and exit with status 2. Our own bugs are caught by ``assert`` instead.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for an error message: ``" Did you mean 'x'?"`` if a known name is close, then all known names.

    Of a name that looks like a known one it says in which characters the two differ.
    """
    known = list(known)
    twin = next((other for other in known if look_the_same(name, other)), None)
    if twin is not None:
        return f" It looks like {twin!r}, but is {ascii(name)} instead of {ascii(twin)}. Known: {', '.join(known)}."
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{hint} Known: {', '.join(known)}."
