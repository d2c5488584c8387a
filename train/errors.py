"""Exceptions that end a run early."""

from __future__ import annotations

from data.errors import UserError


class RunStopped(UserError):
    """Training cannot continue, e.g. out of memory or a loss that is NaN or infinite. Exit status 3, no traceback."""

    usual_status = 3


class NotFinite(UserError):
    """A model's logits or weights are NaN or infinite: nothing can be read from them, and they are not saved."""


class Interrupted(Exception):
    """A signal arrived (`train/stopping.py`), and what was to be kept is saved. Exit status 128 + signal."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
