"""What a run was scored on, and with which versions, as ``results.json`` has it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from data.example import Example
from data.json_text import to_json


def versions() -> dict[str, str]:
    """Versions that can change a figure."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "numpy", "scikit-learn", "seqeval", "tokenizers", "sentencepiece", "tiktoken"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def place_of(id: str, task: str) -> str:
    """An example's id without the task's name, with which ids of a user's own task begin."""
    return id.removeprefix(f"{task}/")


def hash_texts(examples: Sequence[Example], task: str) -> str:
    """A hash of the texts and where they are from, in any order: the same for two tasks on the same files.

    White space does not count, which texts and lists of their words have in other places.
    """
    found = sorted((place_of(example.id, task), "".join(example.text.split())) for example in examples)
    return hashlib.sha256(to_json(found, ascii_only=True).encode()).hexdigest()
