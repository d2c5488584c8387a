"""What the launcher says about this process: its rank among how many, and the launcher's own command line.

The variables are torchrun's; other launchers (mpirun, srun) can be told to set them. They also remain in shells and
images, one without the others. A process without ``RANK`` has no launcher, whatever else is there.

Nothing here is slow to import: programs ask before they import PyTorch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError


@dataclass(frozen=True)
class Launched:
    """The place of this process among those that were started together; by default it is alone.

    Attributes:
        local_rank: among the ranks of this machine; None: not said.
        local_size: ranks on this machine; all of them, if not said.
        machines: how many, as far as is said.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    local_size: int = 1
    machines: int = 1


def launched() -> Launched:
    """This process's place, from the environment.

    Raises:
        UserError: there is only half of what a launcher sets, or a value that cannot be.
    """
    if not os.environ.get("RANK"):
        return Launched()
    needed = ["WORLD_SIZE", *(["MASTER_ADDR", "MASTER_PORT"] if os.environ.get("WORLD_SIZE") != "1" else [])]
    if missing := [name for name in needed if not os.environ.get(name)]:
        raise UserError(
            f"the environment has RANK = {os.environ['RANK']}, but not {', '.join(missing)}: half of what a launcher "
            "sets. Start with torchrun, or let your launcher set all of RANK, WORLD_SIZE, MASTER_ADDR and "
            "MASTER_PORT. For a single process: unset RANK."
        )
    size = _number("WORLD_SIZE", least=1)
    if size > 1:
        _number("MASTER_PORT", least=0, most=65535)
    local_size = _number("LOCAL_WORLD_SIZE", least=1, most=size) if os.environ.get("LOCAL_WORLD_SIZE") else size
    return Launched(
        rank=_number("RANK", least=0, most=size - 1),
        size=size,
        local_rank=_number("LOCAL_RANK", least=0, most=local_size - 1) if os.environ.get("LOCAL_RANK") else None,
        local_size=local_size,
        machines=_number("GROUP_WORLD_SIZE", least=1) if os.environ.get("GROUP_WORLD_SIZE") else size // local_size,
    )


def _number(name: str, least: int, most: int | None = None) -> int:
    text = os.environ[name]
    if text.isascii() and text.isdigit() and least <= int(text) and (most is None or int(text) <= most):
        return int(text)
    wanted = f"{least} or more" if most is None else f"{least} to {most}"
    raise UserError(
        f"the environment has {name} = {text!r}: expected a whole number, {wanted}. Start with torchrun, which sets "
        "it. For a single process: unset RANK."
    )


def env_rank() -> int:
    """This process's rank, known before there is a process group; 0 without a launcher. Raises nothing."""
    return _or_alone().rank


def env_world_size() -> int:
    return _or_alone().size


def _or_alone() -> Launched:
    try:
        return launched()
    except UserError:
        return Launched()


def under_torchrun() -> bool:
    return bool(os.environ.get("RANK")) and "TORCHELASTIC_RUN_ID" in os.environ


def may_restart() -> bool:
    """Whether torchrun starts the same command again after a failure (--max-restarts)."""
    return under_torchrun() and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"


def torchrun_job() -> tuple[str, int]:
    """What is the same for all attempts of this torchrun and for no other one, and how many were before this one.

    The first is empty if it cannot be told. People give one ``--rdzv-id`` to all their jobs, and without it several
    machines have "none". But where the ranks of a torchrun meet stays the same over its restarts.
    """
    run = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    if not under_torchrun() or run == "none":
        return "", 0
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"{run} at {where}", int(count) if count.isdecimal() else 0


def words_of_parent() -> list[str]:
    """The command line of the process that started this one, such as torchrun; empty if it cannot be read."""
    try:
        content = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:  # not Linux, or it has died
        return []
    return [os.fsdecode(word) for word in content.split(b"\0")[:-1]]


def left_over() -> str | None:
    """A sentence about several ranks in the environment of a process that is alone."""
    size = os.environ.get("WORLD_SIZE", "")
    if os.environ.get("RANK") or size in ("", "1"):
        return None
    return f"WORLD_SIZE = {size} in the environment, but not RANK: no launcher started this process, so it works alone."
