"""Write options as TOML: a run's ``config.toml``. `train/options.py` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit

from train.options import flatten, options_of, sections_of


def to_toml(config: Any, comments: Mapping[str, str] | None = None) -> str:
    """Write an options object as TOML, section by section; options that are None are omitted.

    Args:
        comments: by option, a comment to write after its value.

    Paths are written as the user wrote them (``as_typed``): on another machine ``$SCRATCH`` is another folder.
    """
    document = tomlkit.document()
    tables = {section: tomlkit.table() for section in sections_of(type(config))}
    values = flatten(config) | dict(getattr(config, "as_typed", ()))
    for option in options_of(type(config)).values():
        if (value := values[option.name]) is None:
            continue
        item = _item(value)
        if comment := (comments or {}).get(option.name):
            item.comment(comment)
        (tables[option.section] if option.section else document).add(option.name, item)
    for section, table in tables.items():
        document.add(section, table)
    return tomlkit.dumps(document)


def written(value: Any) -> str:
    """An option's value as in TOML."""
    return _item(value).as_string()


def _item(value: Any) -> tomlkit.items.Item:
    return tomlkit.item(str(value) if isinstance(value, Path) else value)
