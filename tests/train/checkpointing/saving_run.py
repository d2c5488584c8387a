"""Saves on two ranks: who writes what, one rank's failure, a folder not shared, and the memory of an export.

``saving_run.py OUT`` on two ranks: rank 0 writes OUT/saved.json with what all ranks saw.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from benchmarks.host_memory import AnonymousPeak
from checkpoints_tools.checksums import read_checksums
from checkpoints_tools.writer import ShardWriter
from data.errors import UserError
from model.llama import LlamaConfig
from tests.train.tiny_run import TIED, VOCAB, make_trainer
from train.checkpointing import checkpoint, disk_space, saver, tensors
from train.checkpointing.saver import SaveFailed
from train.errors import RunStopped
from train.parallel.distributed import World, place, run_guarded, start
from train.parallel.mesh import MeshShape

# 11 MB of weights and states, so that headers and names hardly count.
SMALL = LlamaConfig(dim=192, n_layers=2, n_heads=6, n_kv_heads=2, ffn_dim=512, vocab_size=VOCAB, head_dim=32)


def everyone(value: Any) -> list[Any]:
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def who_writes(shape: MeshShape, world: World, output: Path) -> dict[str, Any]:
    """Save in the background; sizes of the files, of each rank's copy and of each rank's shards."""
    trainer = make_trainer(output, place(world.device, shape), model_config=SMALL, async_save="on", steps=1)
    trainer.train_step(trainer.setup.loader.step(0))

    def gathered(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was gathered")

    real, DTensor.full_tensor = DTensor.full_tensor, gathered
    trainer._save()
    trainer.saver.finish()
    DTensor.full_tensor = real
    folder = checkpoint.newest_complete(trainer.checkpoints)
    shards = [
        t.to_local() for p in trainer.model.parameters() for t in (p, *trainer.optimizer.state[p].values()) if t.ndim
    ]
    return {
        "files": [(folder / f"__{rank}_0.distcp").stat().st_size for rank in range(world.size)],
        "copies": everyone(trainer.saver.copy.n_bytes),
        "shards": everyone(sum(t.numel() * 4 for t in shards)),
        "whole": 12 * sum(p.numel() for p in trainer.model.parameters()),
        "expected": everyone(trainer.saver.sizes.checkpoint)[0],
        "real": disk_space.folder_bytes(folder),
    }


def one_fails(world: World, output: Path) -> list[str]:
    """Rank 1's disk is full at the second save; what each rank says, and where it stopped."""
    real, n_bytes = saver._WatchedStream.write, [0]

    def write(stream: saver._WatchedStream, data: Any) -> int:
        if world.rank == 1 and ".step_000004" in str(stream.raw.name):
            n_bytes[0] += len(memoryview(data).cast("B"))
            if n_bytes[0] > 50_000:
                error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                stream.files.error = stream.files.error or error
                raise error
        return real(stream, data)

    saver._WatchedStream.write = write
    trainer = make_trainer(output, world, model_config=TIED, async_save="on", steps=300, save_every=2)
    try:
        trainer.run()
    except SaveFailed as error:
        return everyone([str(error), trainer.step, sorted(p.name for p in trainer.checkpoints.iterdir())])
    finally:
        saver._WatchedStream.write = real
    raise AssertionError("nothing failed")


def too_little_space_on_rank_0(world: World, output: Path) -> list[str]:
    trainer = make_trainer(output, world, async_save="on", steps=4, save_every=2)
    real, disk_space.free_bytes = disk_space.free_bytes, lambda folder: 1000
    try:
        trainer.run()
    except RunStopped as error:
        return everyone(str(error))
    finally:
        disk_space.free_bytes = real
    raise AssertionError("there was enough space")


def not_shared(world: World, output: Path) -> list[str]:
    disk_space.SHARED_WAIT_SECONDS = 0.5
    try:
        make_trainer(output / str(world.rank), world)
    except Exception as error:
        return everyone(f"{type(error).__name__}: {error}")
    raise AssertionError("each has a folder of its own")


def one_file_is_damaged(world: World, output: Path) -> dict[str, Any]:
    """A bit of rank 1's file flips: what all ranks find before a run resumes, and what each says when it loads."""
    trainer = make_trainer(output, world, model_config=SMALL, steps=1)
    trainer._save()
    folder = checkpoint.newest_complete(trainer.checkpoints)
    whole, written = everyone(checkpoint.damage_of(folder)), sorted(read_checksums(folder))
    file = folder / "__1_0.distcp"
    if world.is_main:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    dist.barrier()

    def loaded() -> str:
        try:
            tensors.load_model(folder, trainer.model)
            tensors.load_optimizer(folder, trainer.model, trainer.optimizer)
        except UserError as error:
            return str(error)
        return "loaded"

    listed = sorted(path.name for path in folder.iterdir())
    return {
        "whole": whole,
        "written": written,
        "listed": listed,
        "found": everyone(checkpoint.damage_of(folder)),
        "complete": everyone(checkpoint.newest_complete(trainer.checkpoints) == folder),
        "said": everyone(loaded()),
        "bytes": file.stat().st_size,
    }


def export_memory(world: World, output: Path) -> dict[str, Any]:
    """Stream a model of 24 matrices of 16 MB, sharded by rows, into files of 48 MB, as `export_hf` does."""
    from checkpoints_tools import export

    # The C library keeps freed blocks below 32 MB for later; what is measured here is what is held.
    m_mmap_threshold = -3
    ctypes.CDLL(None).mallopt(m_mmap_threshold, 1 << 20)
    shape = (2048, 2048)
    model = [(f"layers.{n}.w", DTensor.from_local(torch.randn(1024, 2048), world.mesh, [Shard(0)])) for n in range(24)]
    stream: Iterator[tuple[str, Tensor]] = iter(model)
    output.mkdir(exist_ok=True)
    dist.barrier()
    with AnonymousPeak() as memory:
        if world.is_main:
            writer = ShardWriter(output, 48 * 2**20)
            for name, tensor in stream:
                writer.add(name, export._gather(name, tensor, None))
            files = writer.close()
        else:
            for name, tensor in stream:
                export._gather(name, tensor, None)
        dist.barrier()
    return {
        "rises": everyone(memory.bytes),
        "tensor": 4 * shape[0] * shape[1],
        "whole": 24 * 4 * shape[0] * shape[1],
        "n_files": len(files) if world.is_main else None,
    }


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    world = start(torch.device("cpu"))
    found = {
        "sharded": who_writes(MeshShape(shard=2), world, out / "sharded"),
        "replicated": who_writes(MeshShape(replicate=2), world, out / "replicated"),
        "one_fails": one_fails(world, out / "one_fails"),
        "too_little_space": too_little_space_on_rank_0(world, out / "too_little_space"),
        "not_shared": not_shared(world, out / "not_shared"),
        "damaged": one_file_is_damaged(world, out / "damaged"),
        "export": export_memory(world, out / "export"),
    }
    if world.is_main:
        (out / "saved.json").write_text(json.dumps(found))


if __name__ == "__main__":
    run_guarded(main)
