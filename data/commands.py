"""Command lines of our programs, to be pasted into the shell that a program was started from."""

from __future__ import annotations

import os
import shlex
import shutil
import string
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def command(
    script: str, options: Mapping[str, object], *, ranks: int = 1, nodes: int = 1, given: Sequence[str] = ()
) -> str:
    """A quoted command line that starts one of our scripts.

    Args:
        script: its name, such as ``eval.py``.
        options: values by option name; options that are None or False are omitted, True is a switch, a tuple has
            several values.
        ranks: on a machine; with more than one, under torchrun.
        nodes: with more than one machine, the rendezvous is left open.
        given: the words of other options.
    """
    if nodes > 1:
        start = [*torchrun(), "--nnodes", str(nodes), "--nproc_per_node", str(ranks), "..."]
    else:
        start = [python()] if ranks == 1 else [*torchrun(), "--nproc_per_node", str(ranks)]
    words = [*start, ours(script), *given]
    for name, value in options.items():
        if value is None or value is False:
            continue
        values = () if value is True else value if isinstance(value, tuple) else (value,)
        words += [f"--{name}", *map(str, values)]
    return " ".join(map(quoted, words))


def without(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The words of a command line without these options and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word[2:].split("=")[0] in names
        if not dropping:
            kept.append(word)
    return kept


def quoted(word: str) -> str:
    """A word of a command line as a shell reads it, in letters that a terminal shows and that can be copied from it.

    Other letters, such as those that the encoding of standard output lacks, are written as their bytes: ``$'\\xff'``,
    which bash, zsh and ksh read.
    """
    try:
        word.encode(sys.stdout.encoding or "utf-8", errors="strict")
        if word.isprintable():
            return shlex.quote(word)
    except UnicodeEncodeError:
        pass
    safe = set(b"/._-+=:,@%" + string.ascii_letters.encode() + string.digits.encode())
    return "$'" + "".join(chr(byte) if byte in safe else f"\\x{byte:02x}" for byte in os.fsencode(word)) + "'"


def ours(name: str) -> str:
    """The path of one of our files: its name below the project's folder, if that is the current one."""
    return name if Path(name).exists() and Path(name).samefile(ROOT / name) else str(ROOT / name)


def python() -> str:
    """The word that runs this interpreter: its name if the shell finds it by that, else its path."""
    names = [name for name in ("python", "python3") if _is_this_interpreter(shutil.which(name))]
    return names[0] if names else sys.executable


def torchrun() -> list[str]:
    """The words that run this interpreter's torchrun."""
    found = shutil.which("torchrun")
    ours = found is not None and _folder(found) == _folder(sys.executable)
    return ["torchrun"] if ours else [python(), "-m", "torch.distributed.run"]


def _is_this_interpreter(path: str | None) -> bool:
    # The folder too: the interpreters of two virtual environments are links to the same file.
    return path is not None and _folder(path) == _folder(sys.executable) and os.path.samefile(path, sys.executable)


def _folder(path: str) -> str:
    return os.path.realpath(os.path.dirname(path))
