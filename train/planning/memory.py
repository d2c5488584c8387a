"""How many bytes a training run needs on each GPU and on each machine: arithmetic, nothing is allocated.

`docs/memory.md` derives every line here by hand for llama3_70b. `benchmarks/memory_trace.py` compares the results with
PyTorch's own account of a step. Assumed are a GPU, FlexAttention, which never writes out the scores, and FSDP2 as
`train/parallel/parallelize.py` sets it up. A step needs what stays from step to step,

    weights + gradients + optimizer states        shards, 1 / shard of the model (blocks' matrices 1 / tensor of that)

plus temporary memory at its fullest moment. These moments can be the fullest:

    gather       embedding and head are gathered: once as received, once in their final layout
    loss         all blocks' saved activations, and the logits
    backward     saved activations; a recomputed block with the gradients of its widest place; gathered weights; one
                 block's gradients being reduced; the head's gradient, which waits for the embedding's
    root reduce  no activations; unsharded gradients of embedding and head, and a copy of them being reduced

In a step of several passes, the first pass's gradients are in memory during the later ones. In a step of one pass,
gradients grow while saved activations are freed. So the backward pass can be fullest at its beginning or at its end.

Shapes: E model width, A = H * D and KV = K * D widths of queries and of keys or values, F feed-forward width, V
vocabulary, T tokens of a pass (rows times their length), N label positions, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch

from checkpoints_tools.architectures import ModelConfig, architecture_of, blocks_of, costs_of
from checkpoints_tools.registry import ModelSpec
from model.costs import FP32
from model.meta import meta_device
from train.optim.formats import OptimFormat, StateFormat, state_bytes
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import RESHARD_FROM, ActivationCheckpointing
from train.planning.hardware import Bytes

# Saved inputs on the GPU at once when they are offloaded: one in use, one being copied back
# (`train/parallel/activation_offload.py`).
OFFLOAD_IN_FLIGHT = 2
# Host memory of one rank that is not counted otherwise: Python, PyTorch, CUDA and NCCL.
HOST_BASE = 4 * 2**30


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a model, in elements.

    Attributes:
        block: one block; ``block_tp`` of them are in the matrices that tensor parallelism splits.
        root: everything outside the blocks: embedding, last norm, head (of an encoder: heads).
        head: the output matrix of a decoder, whose gradient waits for the embedding's; 0 for an encoder.
        states: bytes of AdamW's states by format: of one block, and of the root.
    """

    block: int
    block_tp: int
    n_blocks: int
    root: int
    head: int
    states: dict[StateFormat, tuple[int, int]]

    @property
    def total(self) -> int:
        return self.block * self.n_blocks + self.root

    def block_on(self, mesh: MeshShape) -> int:
        """Elements of a block that one rank gathers."""
        return self.block - self.block_tp + self.block_tp // mesh.tensor

    def sharded(self, mesh: MeshShape) -> float:
        """Elements that one rank keeps."""
        return (self.block_on(mesh) * self.n_blocks + self.root) / mesh.shard

    def states_on(self, mesh: MeshShape, states: StateFormat) -> float:
        """Bytes of one rank's optimizer states."""
        block, root = self.states[states]
        return (block * self.block_on(mesh) / self.block * self.n_blocks + root) / mesh.shard


def count_parameters(spec: ModelSpec, config: ModelConfig) -> ParameterCounts:
    """Count a model's parameters on the meta device, which needs no memory."""
    with meta_device():
        model = spec.build(replace(config, n_layers=1))
    plan = architecture_of(config).tensor_plan
    block = blocks_of(model)[0]
    in_block = [p.shape for p in block.parameters()]
    in_root = [p.shape for name, p in model.named_parameters() if not name.startswith("layers.")]
    states = {
        name: (sum(state_bytes(s, name) for s in in_block), sum(state_bytes(s, name) for s in in_root))
        for name in get_args(StateFormat)
    }
    return ParameterCounts(
        block=sum(shape.numel() for shape in in_block),
        block_tp=sum(block.get_parameter(f"{name}.weight").numel() for name in plan.block) if plan else 0,
        n_blocks=config.n_layers,
        root=sum(shape.numel() for shape in in_root),
        head=costs_of(config).output_matrix,
        states=states,
    )


@dataclass(frozen=True)
class Settings:
    """What can be changed to make a run fit, except the length of rows.

    Attributes:
        optim: formats of weights and states; gradients have the weights' format.
        compute: format of activations and gathered weights.
    """

    optim: OptimFormat
    compute: torch.dtype = torch.bfloat16
    activation_checkpointing: ActivationCheckpointing = "full"
    activation_offload: bool = False
    offload_states: bool = False


@dataclass(frozen=True)
class Pass:
    """The size of one forward and backward pass of a rank.

    Attributes:
        tokens: T, rows times their length, padding included.
        outputs: N, positions at which logits are computed.
        accumulates: a step may have several passes, so the gradients of earlier ones are in memory.
    """

    tokens: int
    outputs: int
    accumulates: bool = True


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank on its GPU, and of all ranks of one machine in host memory.

    Attributes:
        weights, gradients, states: what stays from step to step; gradients until the end of the step.
        moments: temporary memory by moment and kind, including the gradients that exist at that moment.
        host: host memory of one machine, by kind.
    """

    weights: int
    gradients: int
    states: int
    moments: dict[str, Bytes]
    host: Bytes

    @property
    def fixed(self) -> int:
        return self.weights + self.gradients + self.states

    @property
    def fullest(self) -> str:
        """The moment that needs most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def peak(self) -> int:
        return self.weights + self.states + sum(self.moments[self.fullest].values())


def training_memory(
    config: ModelConfig,
    sizes: ParameterCounts,
    mesh: MeshShape,
    settings: Settings,
    work: Pass,
    ranks_per_node: int,
    background_save: bool = True,
) -> Memory:
    """The memory of a step with ``work`` on every rank.

    Args:
        background_save: checkpoints are written in the background, from a copy in host memory.
    """
    c, w = settings.compute.itemsize, settings.optim.weights.itemsize
    own = sizes.sharded(mesh)
    states = round(sizes.states_on(mesh, settings.optim.states))
    saved = _saved_inputs(config, settings, mesh, work)
    host = {"processes": ranks_per_node * HOST_BASE}
    if settings.activation_offload:
        buffer = 1 << (c * config.dim * work.tokens - 1).bit_length()  # pinned blocks have sizes that are powers of two
        host["offloaded activations"] = ranks_per_node * (config.n_layers - 1) * buffer
    if settings.offload_states:
        host["optimizer states"] = ranks_per_node * states
    if background_save:
        host["copy for a save in the background"] = ranks_per_node * round(own * w + states)
    return Memory(
        weights=round(own * w),
        gradients=round(own * w),
        states=0 if settings.offload_states else states,
        moments=_moments(config, sizes, mesh, settings, work, saved),
        host=host,
    )


def _saved_inputs(config: ModelConfig, settings: Settings, mesh: MeshShape, work: Pass) -> tuple[int, int]:
    """Bytes that a block saves for its backward pass, and how many blocks have them on the GPU at once."""
    tokens = costs_of(config).block_activations(settings.compute, mesh.tensor)
    if settings.activation_checkpointing == "full":
        n = min(config.n_layers, OFFLOAD_IN_FLIGHT) if settings.activation_offload else config.n_layers
        return tokens.input * work.tokens, n
    kept = tokens.kept if settings.activation_checkpointing == "selective" else tokens.saved
    return kept * work.tokens, config.n_layers


def _moments(
    config: ModelConfig,
    sizes: ParameterCounts,
    mesh: MeshShape,
    settings: Settings,
    work: Pass,
    saved: tuple[int, int],
) -> dict[str, Bytes]:
    c, T, costs = settings.compute.itemsize, work.tokens, costs_of(config)
    tokens = costs.block_activations(settings.compute, mesh.tensor)
    root, block, head = c * sizes.root, c * sizes.block_on(mesh), c * sizes.head
    all_blocks, (per_block, n_blocks) = block * sizes.n_blocks, saved
    sharded = mesh.shard > 1  # on one rank, gathering is a copy, and nothing is in transit
    # Models that are not resharded after forward (`train/parallel/parallelize.py`) have all blocks gathered, others the
    # block in use and the next one, which is arriving.
    keeps_unsharded = sizes.total < RESHARD_FROM
    gathered = root + (all_blocks if keeps_unsharded else block)
    arriving = block if sharded and not keeps_unsharded else 0
    # Gradients are reduced in the weights' format, a block's while the next block is computed.
    w = settings.optim.weights.itemsize
    reduced = w * sizes.block_on(mesh)
    last = head if sizes.root >= 2 * sizes.head else 0  # an untied head's gradient is freed last
    root_reduce = max((c + w) * sizes.root, (w + w / mesh.shard) * sizes.root + last)

    logits = 3 * FP32 * work.outputs * costs.logits_width  # log-probabilities, their gradient, the logits' gradient
    # Token ids, positions, document ids and targets, and tables computed from them.
    tables = T * (3 * 8 + 4 + costs.table_bytes)

    # A checkpointed block recomputes what it would have saved; its input stays until it has finished.
    current = (tokens.saved + tokens.widest + tokens.input) * T + c * config.dim * config.ffn_dim // mesh.tensor
    if settings.activation_checkpointing == "selective":
        current += 2 * tokens.input * T  # results of wo and w2, which replace nothing
    done = block + 2 * tokens.input * T  # at its end: gradients of all its weights, few activations
    # During the last block all blocks' saved activations are there. During the block before it, one block's fewer are
    # there, and the last block's gradients are being reduced.
    kept = per_block if settings.activation_checkpointing == "full" else 0
    waiting, reducing = (n_blocks - 1) * per_block + kept, 0
    if sizes.n_blocks > 1 and reduced > per_block:
        reducing = reduced
        gathered -= block if keeps_unsharded else 0
        waiting -= 0 if settings.activation_offload else per_block
    all_gradients = round(sizes.sharded(mesh) * w)
    of_block = round(sizes.block_on(mesh) * w / mesh.shard)
    of_blocks, accumulates = of_block * sizes.n_blocks, work.accumulates
    moments = {
        "gather": {
            "gradients": all_gradients if accumulates else 0,
            "gathered weights": (2 if sharded else 1) * root + (block if sharded else 0),
            "saved activations": c * config.dim * T + tables,
        },
        "loss": {
            "gradients": all_gradients if accumulates else 0,
            "gathered weights": root + (all_blocks if keeps_unsharded else 0),
            "saved activations": n_blocks * per_block + tables,
            "logits": logits + work.outputs * (FP32 + 2 * c) * config.dim,
        },
        "backward": {
            "gradients": all_gradients if accumulates else of_block if reducing else 0,
            "gathered weights": gathered + arriving,
            "gradients being reduced": reducing,
            "head's gradient": head,
            "saved activations": waiting + tables,
            "one block's activations and gradients": max(current, done),
        },
        "root reduce": {
            "gradients": all_gradients if accumulates else of_blocks,
            "unsharded gradients of embedding and head": round(root_reduce),
        },
    }
    if not accumulates and sizes.n_blocks > 1:
        # No block arrives during the first block. So the second block is fuller if an arriving block and a saved input
        # take more than one block's gradients.
        second = sizes.n_blocks > 2 and arriving + per_block > of_block
        moments["end of backward"] = {
            "gradients": of_blocks - of_block * (2 if second else 1),
            "gathered weights": root + block + (arriving if second else 0),
            "gradients being reduced": reduced,
            "head's gradient": head,
            "saved activations": kept + (per_block if second else 0) + tables,
            "one block's activations and gradients": max(current, done),
        }
    return moments
