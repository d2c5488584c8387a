"""Write a checkpoint folder: tensors streamed to sharded safetensors, in a folder that appears only when complete."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from checkpoints_tools.checksums import write_checksums
from checkpoints_tools.json_files import write_json
from data.decoder.fewshot import PromptSpec
from data.errors import UserError
from data.files.durable import sync, sync_folder

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class TrainedOn:
    """The task that a model was trained on. Each architecture stores in an export what it needs of it.

    Attributes:
        prompt_spec: the prompt; None for encoders.
        labels: by field, the labels of its head's outputs, in order (tags for a token field).
        max_length: the longest document in tokens, special tokens included.
    """

    prompt_spec: PromptSpec | None = None
    labels: dict[str, list[str]] | None = None
    max_length: int | None = None


def require_finite(name: str, stored: torch.Tensor, original: Callable[[], torch.Tensor]) -> None:
    """Check a tensor that is about to be written.

    Args:
        name: its name in the file.
        stored: the tensor in the dtype of the file.
        original: returns the same before it was cast; called only for the message.

    Raises:
        UserError: it has NaN or infinite values, from before or from the cast. A model with them gives no sensible
            answer, and a file does not show it.
    """
    if all_finite(stored):
        return
    before = original()
    if not all_finite(before):
        raise UserError(f"{name} holds NaN or infinite values: the weights are damaged, or training diverged.")
    largest, limit = before.abs().max().item(), torch.finfo(stored.dtype).max
    kind = str(stored.dtype).removeprefix("torch.")
    raise UserError(
        f"{name} holds a value of size {largest:,.6g}, and {kind} stores none above {limit:,.6g}: it would become "
        "infinite. Choose another dtype; fp32 stores all of them."
    )


def all_finite(tensor: torch.Tensor) -> torch.Tensor:
    """A bool on the tensor's device: no value is NaN or infinite. Needs no memory, unlike ``tensor.isfinite()``."""
    if not tensor.numel():
        return torch.tensor(True, device=tensor.device)
    return torch.stack(tensor.aminmax()).isfinite().all()


class ShardWriter:
    """Writes tensors into ``model-0000X-of-0000Y.safetensors`` and an index; holds at most one shard in memory.

    These are Hugging Face's names; a single file is called ``model.safetensors`` and has no index. The number of shards
    is known only at the end, so `close` renames them from temporary names.

    Raises:
        UserError: in `add` and `close`, if the disk is full.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        assert shard_bytes > 0
        self.folder, self.shard_bytes = folder, shard_bytes
        self.held: dict[str, torch.Tensor] = {}
        self.held_bytes = self.total_bytes = self.total_parameters = 0
        self.shards: list[list[str]] = []

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor under its final name. If it does not fit the current shard, that shard is written first."""
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
            number = re.search(r"os error (\d+)", str(error))
            cause = OSError(int(number[1]), "") if number else None
            raise UserError(f"{path} could not be written: {error}. Free disk space and try again.") from cause
        path.chmod(0o644)  # safetensors creates files that only their owner can read
        self.shards.append(list(self.held))
        self.held, self.held_bytes = {}, 0

    def close(self) -> list[Path]:
        """Write the last shard, give the shards their final names, write the index; return the weight files."""
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
    """Raise UserError if ``folder`` is a file or not empty, so that nothing is overwritten."""
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} exists and is not empty; remove it or name another folder")
    if folder.is_symlink():
        raise UserError(
            f"{folder} is a link, which a finished folder cannot replace; name the folder that it is to be in"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} exists and is a file; name a folder to write to")


@contextlib.contextmanager
def staged_folder(folder: Path | str) -> Iterator[Path]:
    """A temporary folder to write into, beside ``folder``; renamed to ``folder`` on success and removed on failure.

    So ``folder`` is complete and on the disk whenever it exists. It gets checksums of all files.

    Raises:
        UserError: ``folder`` is not empty, or cannot be written.
    """
    folder = Path(folder).absolute()
    refuse_non_empty(folder)
    staging = folder.with_name(f".{folder.name}.partial-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        try:
            yield staging
            write_checksums(staging)
            sync_folder(staging)
            if folder.exists():
                folder.rmdir()  # it is empty; os.rename to an existing folder fails on some systems
            staging.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error}. Nothing was kept of it.") from error
