"""Read the ``config.json`` of a Hugging Face folder: the part that all architectures share.

``model_type`` names the architecture, whose entry in `checkpoints_tools.registry` has the parser for the rest.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from msgspec import Struct, to_builtins

from checkpoints_tools.architectures import ARCHITECTURES, ModelConfig
from checkpoints_tools.shapes import TokenIds
from data.errors import UserError
from data.files.documents import read_json, shaped

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class _Kind(Struct):
    """What a ``config.json`` says of the architecture."""

    model_type: str | None = None
    architectures: list[str] | None = None


class _TokenIds(Struct, omit_defaults=True):
    """The token ids in ``config.json`` and ``generation_config.json``."""

    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None
    pad_token_id: TokenIds = None


def read_config(folder: Path | str) -> ModelConfig:
    """Read and validate ``config.json`` of a folder.

    Raises:
        UserError: no such file, an architecture that is not in `ARCHITECTURES`, or contradictory numbers (all in one
            message).
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"no config.json in {folder}: not a checkpoint folder, or an incomplete download")
    raw = read_json(path)
    kind: _Kind = shaped(raw, str(path), _Kind)
    # The model_type of an architecture that starts from another's folders is the other's.
    known = [name for name, architecture in ARCHITECTURES.items() if not architecture.starts_from]
    if kind.model_type not in known:
        stated = "".join(kind.architectures or []).lower()
        likely = next((name for name in known if stated.startswith(name)), known[0])
        advice = f'. If it is one of these, add it to the file, as in "model_type": "{likely}"'
        raise UserError(
            f"{path} is not a model we can run: model_type is {kind.model_type!r} and architectures "
            f"{kind.architectures or []}; this code runs {', '.join(map(repr, known))}"
            f"{advice if kind.model_type is None else ''}"
        )
    return ARCHITECTURES[kind.model_type].parse_config(raw, str(path))


def read_dtype(folder: Path | str) -> torch.dtype | None:
    """The weights' dtype according to ``config.json``; None if it does not say."""
    raw = read_json(Path(folder) / "config.json")
    return DTYPES.get(str(raw.get("torch_dtype") or raw.get("dtype") or "").removeprefix("torch."))


def read_token_ids(folder: Path | str) -> dict[str, int | list[int]]:
    """Those of ``bos_token_id``, ``eos_token_id`` (one or several) and ``pad_token_id`` that the folder states.

    ``generation_config.json`` overrides ``config.json``: Llama 3 Instruct lists its end-of-turn token only there.
    """
    found: dict[str, int | list[int]] = {}
    for name in ("config.json", "generation_config.json"):
        path = Path(folder) / name
        if path.is_file():
            found |= to_builtins(read_json(path, _TokenIds))
    return found


def differences(found: ModelConfig, expected: ModelConfig, ignore: tuple[str, ...] = ()) -> list[str]:
    """Where two configs differ, one line per field: ``"n_kv_heads: 8 (expected 32)"``.

    If the architectures differ, that is the only line: their numbers have different meanings.
    """
    if found.family != expected.family:
        return [f"architecture: {found.family} (expected {expected.family})"]
    pairs = [
        (field.name, getattr(found, field.name), getattr(expected, field.name)) for field in dataclasses.fields(found)
    ]
    return [f"{name}: {a} (expected {b})" for name, a, b in pairs if a != b and name not in ignore]
