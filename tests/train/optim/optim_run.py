"""AdamW in fewer bits on device meshes of every kind, for tests: in this process, or as a script under torchrun.

``python optim_run.py OUT STAGE...`` goes on, on all ranks, with a run of each optimizer, stage by stage; rank 0 writes
OUT/STAGE.npz. Gradients are made up whole and cut into shards, so that every mesh has the very same ones and has to
come to the very same bits.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from data.errors import UserError
from model.llama import Llama, LlamaConfig
from tests.train.tiny_run import whole
from train.checkpointing.tensors import load_model, load_optimizer
from train.optim.formats import OPTIMIZERS
from train.optim.optimizer import allocate_states, build_optimizer, clip_gradients
from train.parallel.distributed import World, place, run_guarded, start
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import parallelize

# Wide enough for blocks, which two ranks of tensor parallelism cut between; three ranks do not divide the vocabulary.
NET = LlamaConfig(dim=256, n_layers=1, n_heads=4, n_kv_heads=2, ffn_dim=512, vocab_size=301, head_dim=64)
OPTIMS = [name for name, formats in OPTIMIZERS.items() if formats.weights == torch.bfloat16]

# In the order of a run. "one" is the single process of the test.
STAGES: dict[str, MeshShape] = {
    "full_8": MeshShape(shard=8),
    "full_4": MeshShape(shard=4),
    "hybrid": MeshShape(replicate=2, shard=2),
    "tp": MeshShape(shard=2, tensor=2),
    "one": MeshShape(),
}


def build(world: World, optim: str, offload: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = parallelize(lambda: Llama(NET), world.mesh, world.device, precision="bf16_weights")
    hyper = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, seed=5)
    return model, build_optimizer(model, formats=OPTIMIZERS[optim], offload_states=offload, **hyper)


def set_grads(model: nn.Module, step: int) -> None:
    """The gradients of a step: random ones of many magnitudes, the same whole ones on every mesh."""
    for number, p in enumerate(model.parameters()):
        generator = torch.Generator().manual_seed(1000 * step + number)
        full = torch.randn(p.shape, generator=generator) * 10 ** (-3 * torch.rand(p.shape, generator=generator))
        p.grad = distribute_tensor(full.to(p.dtype), p.device_mesh, p.placements, src_data_rank=None)


def run_stage(name: str, output: Path, world: World) -> dict[str, np.ndarray]:
    """One more step of each optimizer's run, and a checkpoint; returns all weights and states afterwards."""
    found: dict[str, np.ndarray] = {}
    for optim in OPTIMS:
        # Every other stage in host memory: that must change nothing.
        model, optimizer = build(world, optim, offload=name in ("full_4", "one"))
        done = len(list(output.glob(f"{optim}.*")))
        if done:
            load_model(output / f"{optim}.{done}", model)
            load_optimizer(output / f"{optim}.{done}", model, optimizer)
        set_grads(model, done)
        optimizer.step()
        dist.barrier()
        dcp.save(
            {"model": get_model_state_dict(model), "optim": get_optimizer_state_dict(model, optimizer)},
            checkpoint_id=output / f"{optim}.{done + 1}",
        )
        for parameter_name, parameter in model.named_parameters():
            found[f"{optim}/{parameter_name}"] = whole(parameter)
            for key, value in optimizer.state[parameter].items():
                found[f"{optim}/{parameter_name}/{key}"] = whole(value)
        found[f"{optim}/differing"] = np.array(replicas_that_differ(model))
    return found


def replicas_that_differ(model: nn.Module) -> int:
    """How many parameters are not the same, bit for bit, on ranks that hold the same part of them."""
    mine = {}
    for name, p in model.named_parameters():
        assert isinstance(p, DTensor)
        at = [
            c for c, placement in zip(p.device_mesh.get_coordinate(), p.placements, strict=True)
            if placement != Replicate()
        ]  # fmt: skip
        mine[name, tuple(at)] = p.to_local().detach().float().numpy().tobytes()
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    seen: dict = {}
    return sum(seen.setdefault(key, value) != value for one in everyone for key, value in one.items())


def rounding_patterns(world: World) -> np.ndarray:
    """Each rank's part of weights of 1 after a step of a third of a rounding interval: [ranks, elements of a part]."""
    weight = nn.Parameter(distribute_tensor(torch.ones(64, 64).bfloat16(), world.mesh, [Replicate(), Shard(0)]))
    module = nn.Module()
    module.register_parameter("weight", weight)
    optimizer = build_optimizer(
        module, lr=2.0**-8 / 3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, formats=OPTIMIZERS["adamw_sr"], seed=5
    )
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    local = weight.to_local().detach().float().contiguous()
    parts = [torch.empty_like(local) for _ in range(world.size)]
    dist.all_gather(parts, local)
    return torch.stack(parts).flatten(1).numpy()


def refusal(world: World) -> str:
    """What is said of a matrix whose rows two ranks cut in the middle of a block: 96 of 192 columns, blocks of 64."""
    module = nn.Module()
    weight = distribute_tensor(torch.zeros(64, 192).bfloat16(), world.mesh, [Shard(0), Shard(1)])
    module.register_parameter("weight", nn.Parameter(weight))
    optimizer = build_optimizer(
        module, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, formats=OPTIMIZERS["adamw_sr_8bit"]
    )
    try:
        allocate_states(optimizer)
    except UserError as error:
        return str(error)
    return ""


def clipped(world: World, optim: str) -> np.ndarray:
    """The norm that clipping found, and the norm that it left."""
    model, _ = build(world, optim)
    set_grads(model, 0)
    return np.array([clip_gradients(model, 1.0).item(), clip_gradients(model, 0.0).item()])


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    start(torch.device("cpu"))
    for name in sys.argv[2:]:
        world = place(torch.device("cpu"), STAGES[name])
        result = run_stage(name, out / "run", world)
        if name == "hybrid":
            result["patterns"] = rounding_patterns(world)
        if name == "tp":
            result["refusal"] = np.array(refusal(world))
        result["norms"] = clipped(world, "adamw_sr")
        if dist.get_rank() == 0:
            np.savez(out / f"{name}.npz", **result)


if __name__ == "__main__":
    run_guarded(main)
