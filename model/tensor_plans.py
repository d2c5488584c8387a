"""Tensor parallelism as data: how an architecture's matrices are split over ranks (Megatron, Shoeybi et al., 2019).

A `TensorPlan` names modules and how each is split. `train/parallel/tensor_parallel.py` applies it with PyTorch's
`parallelize_module`, for training and for scoring. A linear layer's weight is [outputs, inputs]:

| split         | dimension of the weight | each rank                                                               |
|---------------|-------------------------|-------------------------------------------------------------------------|
| "by output"   | 0 (column-parallel)     | computes some of the outputs; the next matrix must be split "by input"  |
| "by input"    | 1 (row-parallel)        | computes a partial sum of every output; these are summed over the ranks |
| "look-up"     | 0, of an embedding      | looks up its own token ids, zeros for the others; results are summed    |
| "all outputs" | 0 (column-parallel)     | computes some of the outputs; they are gathered from all ranks          |

Modules that a plan does not name are replicated on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["by output", "by input", "look-up", "all outputs"]


@dataclass(frozen=True)
class TensorPlan:
    """How to split one architecture.

    Attributes:
        block: module name within a block → how its weight is split.
        shared_inputs: module name within a block → number of inputs of the module. Several matrices split "by output"
            read its first input. Their partial gradients of this input are added on each rank first, so that they are
            summed over the ranks once, not once per matrix.
        vocabulary: like ``block``, for modules outside the blocks; applies only if the output matrix is not the
            embedding.
        divides: numbers of the config that the number of ranks must divide → their name in messages.
    """

    block: dict[str, Split]
    shared_inputs: dict[str, int]
    vocabulary: dict[str, Split]
    divides: dict[str, str]


LLAMA = TensorPlan(
    block={
        "attention.wq": "by output",
        "attention.wk": "by output",
        "attention.wv": "by output",
        "attention.wo": "by input",
        "ffn.w1": "by output",
        "ffn.w3": "by output",
        "ffn.w2": "by input",
    },
    shared_inputs={"attention": 2, "ffn": 1},
    vocabulary={"embed": "look-up", "head": "all outputs"},
    divides={"n_kv_heads": "key/value heads", "ffn_dim": "hidden units"},
)
