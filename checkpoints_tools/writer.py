"""Writing a checkpoint folder: sharded safetensors as they stream by, and a folder that appears only when complete."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from checkpoints_tools.json_files import write_json
from data.decoder.fewshot import PromptSpec
from data.errors import UserError

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class TrainedOn:
    """What an export says of the task that its model was trained on, as far as its architecture has use for it.

    Attributes:
        prompt_spec: what stands around every document; None for encoders.
        labels: by field, what each output of its head stands for, in order (of a token field the tags).
        max_length: the longest document in tokens, special tokens included.
    """

    prompt_spec: PromptSpec | None = None
    labels: dict[str, list[str]] | None = None
    max_length: int | None = None


class ShardWriter:
    """Writes tensors into ``model-0000X-of-0000Y.safetensors`` plus the index; holds at most one shard in memory.

    Hugging Face's naming: a single file is called ``model.safetensors`` and has no index. How many shards there
    will be is known only at the end, so they are written under temporary names and renamed by `close`.

    Raises:
        UserError: the disk is full; from `add` and `close`.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        assert shard_bytes > 0
        self.folder, self.shard_bytes = folder, shard_bytes
        self.held: dict[str, torch.Tensor] = {}
        self.held_bytes = self.total_bytes = self.total_parameters = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take one tensor under its final name; writes a shard out first when this one would overfill it."""
        size = tensor.numel() * tensor.element_size()
        if self.held and self.held_bytes + size > self.shard_bytes:
            self._flush()
        self.held[name] = tensor.detach().cpu().contiguous()
        self.held_bytes += size
        self.total_bytes += size
        self.total_parameters += tensor.numel()

    def _flush(self) -> None:
        path = self.folder / f"part-{len(self.shards) + 1:05d}.safetensors"
        try:
            save_file(self.held, path, metadata={"format": "pt"})
        except SafetensorError as error:
            if "I/O error" not in str(error):
                raise
            raise UserError(f"{path} could not be written: {error}. Make room there and do it again.") from None
        path.chmod(0o644)  # safetensors creates files only their owner can read
        self.shards.append(list(self.held))
        self.held, self.held_bytes = {}, 0

    def close(self) -> list[Path]:
        """Write what is left, give the shards their final names, write the index; returns the weight files."""
        if self.held:
            self._flush()
        n = len(self.shards)
        names = ["model.safetensors"] if n == 1 else [f"model-{k + 1:05d}-of-{n:05d}.safetensors" for k in range(n)]
        for k, name in enumerate(names):
            (self.folder / f"part-{k + 1:05d}.safetensors").rename(self.folder / name)
        if n > 1:
            where = {tensor: name for name, held in zip(names, self.shards, strict=True) for tensor in held}
            totals = {"total_parameters": self.total_parameters, "total_size": self.total_bytes}
            write_json(self.folder / "model.safetensors.index.json", {"metadata": totals, "weight_map": where})
        return [self.folder / name for name in names]


def refuse_non_empty(folder: Path) -> None:
    """UserError when ``folder`` holds anything (or is a file): nothing is ever overwritten."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty; remove it or name another folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} exists and is a file; name a folder to write to")


@contextlib.contextmanager
def staged_folder(folder: Path | str) -> Iterator[Path]:
    """A new folder beside ``folder`` to write into, renamed to it on success and removed on failure.

    So a folder under its final name is always complete, whatever interrupted the writing.
    """
    folder = Path(folder).absolute()
    refuse_non_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        yield staging
        if folder.exists():
            folder.rmdir()  # empty, as checked; os.rename onto it would fail on some systems
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
