"""How the ranks are laid out: which hold replicas of the weights, which shard one copy, which split each matrix.

::

    replicate x shard x tensor, the last dimension varying fastest; here 8 ranks on 2 machines

    rank                       machine 0: 0 1 2 3   machine 1: 4 5 6 7
    full sharding     shard               0 1 2 3              4 5 6 7    one copy of the weights over all ranks
    hybrid sharding   replicate           0 0 0 0              1 1 1 1    one copy on each machine
                      shard               0 1 2 3              0 1 2 3
    full, tp 2        shard               0 0 1 1              2 2 3 3    one copy over all ranks, each matrix split in
                      tensor              0 1 0 1              0 1 0 1    two, and both parts sharded

The ranks of one tensor group work on the same samples, different groups on different ones. How a model is distributed
over the mesh is in `train/parallel/parallelize.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from data.errors import UserError
from train.launched import launched

Sharding = Literal["full", "hybrid"]


@dataclass(frozen=True)
class MeshShape:
    """Ranks along each dimension of the device mesh.

    Attributes:
        replicate: copies of the model.
        shard: ranks over which one copy's parameters are sharded (FSDP2).
        tensor: ranks over which each matrix is split (tensor parallelism).
    """

    replicate: int = 1
    shard: int = 1
    tensor: int = 1

    @property
    def n_ranks(self) -> int:
        return self.replicate * self.shard * self.tensor

    @property
    def n_data(self) -> int:
        """Ranks that work on different samples."""
        return self.replicate * self.shard

    def describe(self) -> str:
        """E.g. ``replicate 2 x shard 8``."""
        return " x ".join(f"{name} {n}" for name, n in self._dimensions().items())

    def build(self, device_type: str) -> DeviceMesh:
        """The device mesh, without dimensions of size 1, except "shard", which is always included."""
        dimensions = self._dimensions()
        return init_device_mesh(device_type, tuple(dimensions.values()), mesh_dim_names=tuple(dimensions))

    def _dimensions(self) -> dict[str, int]:
        sizes = {"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}
        return {name: n for name, n in sizes.items() if n > 1 or name == "shard"}


def data_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The dimensions over which FSDP2 shards and replicates: all but "tensor"."""
    names = mesh.mesh_dim_names or ()
    return mesh[tuple(name for name in names if name != "tensor")] if "tensor" in names else mesh


def lay_out(
    n_ranks: int, *, tp: int = 1, sharding: Sharding = "full", nodes: int | None = None, per_node: int | None = None
) -> MeshShape:
    """The mesh shape for ``n_ranks`` ranks and these options.

    Args:
        tp, sharding, nodes: the options of ``train.py``; ``nodes`` None means the actual number of machines.
        per_node: ranks on this machine; None: all ranks.

    Raises:
        UserError: the numbers are not divisible, or hybrid sharding is asked for on one machine.
    """
    per_node = per_node or n_ranks
    if nodes is None:
        nodes = n_ranks // per_node
    elif n_ranks % nodes:
        raise UserError(f"--nodes {nodes}: {n_ranks} ranks do not divide evenly into {nodes} groups.")
    if sharding == "hybrid" and nodes == 1:
        raise UserError(
            f"--sharding hybrid replicates the model across machines, but all {n_ranks} rank(s) are on one. Omit the "
            "option, start torchrun on several machines, or divide the ranks into groups with --nodes."
        )
    for where, n in (("a machine has", per_node), (f"--nodes {nodes} leaves", n_ranks // nodes)):
        if n % tp:
            raise UserError(
                f"--tp {tp}: the ranks that split a matrix must be on one machine, and {where} {n} rank(s), which "
                f"{tp} does not divide. Start torchrun with --nproc_per_node {tp}, or a multiple of it."
            )
    replicate = nodes if sharding == "hybrid" else 1
    return MeshShape(replicate, n_ranks // replicate // tp, tp)


def lay_out_world(*, tp: int = 1, sharding: Sharding = "full", nodes: int | None = None) -> MeshShape:
    """`lay_out` for the ranks that torchrun started (one without torchrun); needs no process group.

    Raises:
        UserError: see `lay_out` and `launched`; or the machines have different numbers of ranks.
    """
    place = launched()
    n_ranks, per_node, machines = place.size, place.local_size, place.machines
    if per_node * machines != n_ranks:
        raise UserError(
            f"{n_ranks} ranks on {machines} machines, and {per_node} of them on this one: start torchrun with the same "
            "--nproc_per_node on every machine."
        )
    return lay_out(n_ranks, tp=tp, sharding=sharding, nodes=nodes, per_node=per_node)
