"""How a run ends other than by finishing."""

from __future__ import annotations

from data.errors import UserError


class RunStopped(UserError):
    """Training cannot go on: memory does not suffice, or the loss is no number any more. Status 3, no traceback."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the step was finished and a checkpoint saved. Exit status 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
