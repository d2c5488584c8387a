"""The files of a folder, for messages that say what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

SHOWN = 12  # names in a message
COPY_LINKS = "The files that links name were not copied with them: copy the folder again, with `cp -rL`"


def files_found(folder: Path, names: Iterable[str] | None = None) -> str:
    """Names of files; of a link that leads nowhere also where, and then a sentence that says what to do.

    Args:
        names: the names; None: of all that the folder has, at most `SHOWN` of them.
    """
    if names is None and not folder.is_dir():
        return "no such folder"
    names = list(names) if names is not None else sorted(os.listdir(folder))[:SHOWN]
    links = {name: link_of(folder / name) for name in names}
    listed = ", ".join(f"{name} ({link})" if link else name for name, link in links.items()) or "nothing"
    return f"{listed}. {COPY_LINKS}" if any(links.values()) else listed


def link_of(path: Path) -> str:
    """``a link to TARGET, which does not exist``; empty if the path is anything else."""
    return f"a link to {os.readlink(path)}, which does not exist" if path.is_symlink() and not path.exists() else ""
