"""JSON as this program writes it. It is valid: Python would also write NaN and infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any


def to_json(
    value: Any, indent: int | None = None, ascii_only: bool = False, default: Callable[[Any], Any] | None = None
) -> str:
    """A value as JSON.

    Args:
        indent, default: see `json.dumps`.
        ascii_only: other characters are escaped.

    Raises:
        ValueError: NaN or infinity; the message says where.
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=default)
    except ValueError:
        found = _not_finite(value, "")
        if found is None:
            raise
        raise ValueError(f"{found} is NaN or infinite, which JSON does not have") from None


def _not_finite(value: Any, path: str) -> str | None:
    """Where in a value the first number is that JSON does not have: ``cost.seconds``, ``top[0][1]``."""
    if isinstance(value, float) and not math.isfinite(value):
        return path.removeprefix(".") or "the value"
    items: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        items = [(f".{key}", item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"[{i}]", item) for i, item in enumerate(value)]
    return next((found for name, item in items if (found := _not_finite(item, path + name))), None)
