"""How an architecture's matrices may be split over ranks, Megatron's way (Shoeybi et al., 2019): plans as plain data.

A `TensorPlan` names modules and says what becomes of each; `train/parallel/tensor_parallel.py` carries it out with
PyTorch's tools, for training and for scoring. A linear layer's weight is [outputs, inputs]:

| split           | dimension of the weight | each rank                                                                |
|-----------------|-------------------------|--------------------------------------------------------------------------|
| "by output"     | 0                       | computes some of the outputs; the next matrix has to be split "by input" |
| "by input"      | 1                       | computes a part of every output; the parts are summed over the ranks     |
| "look-up"       | 0, of an embedding      | looks up its own token ids, zeros for the others; the results are summed |
| "all outputs"   | 0                       | computes some of the outputs; they are gathered from all ranks           |

What a plan does not name is the same on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["by output", "by input", "look-up", "all outputs"]


@dataclass(frozen=True)
class TensorPlan:
    """How to split one architecture.

    Attributes:
        block: within a block, module name → how its weight is split.
        shared_inputs: within a block, modules whose input several matrices split "by output" read → how many inputs
            the module takes, of which that is the first. The matrices' partial gradients of it are added up before they
            are summed over the ranks, once and not once a matrix.
        vocabulary: the same as ``block`` for what is in no block; it applies only where the output matrix is not the
            embedding.
        divides: the config's numbers that every rank has to get an equal, whole share of → their name in messages.
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
