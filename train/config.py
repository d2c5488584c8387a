"""The options of ``train.py`` with their defaults, and the recipes of the model sizes.

`train.resolve.load_config` lays recipe, TOML file and command line over the defaults. Here PyTorch is not imported, so
that the help is there at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro


@dataclass(frozen=True)
class ModelOptions:
    model: str = ""
    """Which model: a preset's name (see checkpoints_tools/registry.py)."""
    checkpoint: Path | None = None
    """Hugging Face folder to start from (weights, config.json, tokenizer); default: checkpoints/<model>."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random: start from random weights (debug models only; the checkpoint folder gives the tokenizer)."""
    head: Literal["linear", "dense"] = "linear"
    """What an encoder's class heads are: one linear layer, as in the paper (section 5.4), or what transformers puts on
    top (dense layer, tanh, projection), which its RobertaForSequenceClassification can load."""
    allow_mismatch: bool = False
    """Take the checkpoint's own config.json even where it differs from the preset."""


@dataclass(frozen=True)
class DataOptions:
    task: str = ""
    """Which task: a name (20ng_20, 20ng_7, 20ng_joint, massive_intent, massive_slots, massive_joint) or a TOML file."""
    data: str | None = None
    """Where the data set lies: a path, or 'sample' for the embedded one; default: where data.download puts it."""
    template: Literal["auto", "llama2", "llama3", "chatml", "smollm2", "plain"] = "auto"
    """Chat template; auto: the checkpoint's own as far as its tokenizer tells, else the preset's."""
    joint_order: Literal["listing", "section"] = "listing"
    """Order of a joint task's answers: the paper's listings or its section 5.6."""
    list_labels: bool = True
    """List the labels in the instruction, as the paper does; off leaves them to fine-tuning, for a shorter prompt."""
    shots: int = 0
    """Few-shot examples in the prompt (the paper uses 0 and 5)."""
    shot_tokens: int = 256
    """Each few-shot document is cut to this many tokens."""
    limit: int | None = None
    """Use only this many training examples (chosen by seed)."""
    cache_dir: Path | None = None
    """Where tokenized data is cached by content; default: .cache/prepared beside the code."""


@dataclass(frozen=True)
class BatchOptions:
    batch_size: int = 8
    """Samples (or rows, see batch_unit) per optimizer step, over all ranks."""
    batch_unit: Literal["samples", "rows"] = "samples"
    """What batch_size counts. The paper's 'batch size of 8' does not say."""
    row_length: int = 2048
    """Longest input in tokens, prompt and answer together; also the capacity of a packed row."""
    max_length: int | None = None
    """Longest document of an encoder in tokens, special tokens included; default: 512, or as many as the model has
    positions for, or row_length if that is less."""
    packing: bool = True
    """Lay several samples end to end in one row; off: one padded sample a row."""
    share_prefix: bool = True
    """Compute the prompt's common prefix once a row instead of once a sample."""
    micro_rows: int | None = None
    """Rows in one forward pass of a rank, more passes accumulate gradients; default: 1 packed row, or as many
    unpacked ones as row_length holds."""


@dataclass(frozen=True)
class OptimOptions:
    optim: Literal["auto", "adamw", "adamw_sr", "adamw_sr_bf16", "adamw_sr_8bit"] = "auto"
    """What AdamW stores numbers in. adamw: everything in fp32, 16 bytes a parameter. adamw_sr, adamw_sr_bf16,
    adamw_sr_8bit: weights and gradients in bf16, with stochastic rounding; states in fp32, bf16 or eight bits: 12, 8 or
    6 bytes a parameter in all. auto: the first of these that fits the GPUs, by --plan's arithmetic; on a CPU adamw."""
    offload_states: bool = False
    """Keep the optimizer's states in host memory: they visit the GPU in each step (on a CPU, nothing is gained)."""
    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes from its peak to zero."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.95
    """AdamW's second-moment decay."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices (never of the norms)."""
    clip: float = 1.0
    """Largest gradient norm; 0 turns clipping off."""


@dataclass(frozen=True)
class TrainOptions:
    steps: int | None = None
    """Optimizer steps (instead of epochs)."""
    epochs: float | None = None
    """Passes over the training data (instead of steps)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: compute in bf16 over the weights that optim stores, fp32 or bf16. fp32: everything in fp32. auto: bf16 on
    CUDA, on CPUs that multiply it in hardware (AVX512-BF16, AMX), and wherever optim stores bf16 weights; fp32 on other
    CPUs, which emulate it several times slower."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """Recompute in the backward pass: nothing, all but matrix products and attention, or whole blocks."""
    activation_offload: bool = False
    """Keep the blocks' saved inputs in host memory between forward and backward (needs full checkpointing)."""
    compile: bool = False
    """torch.compile every block (CUDA only)."""
    seed: int = 0
    """Seed of the data order, the choice of few-shot and held-out examples, dropout, and random weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is any, else the CPU."""


@dataclass(frozen=True)
class ParallelOptions:
    tp: int = 1
    """Ranks that split each matrix among them and work on the same samples (tensor parallelism, inside a machine);
    FSDP2 shards over the others."""
    sharding: Literal["full", "hybrid"] = "full"
    """full: one copy of the model over all ranks. hybrid: one on each machine, gradients summed across machines."""
    nodes: int | None = None
    """Machines for hybrid sharding; default: as torchrun says. Another number cuts the ranks into that many groups."""


@dataclass(frozen=True)
class CheckpointOptions:
    output: Path = Path("runs/default")
    """Run folder: config, log, checkpoints, export."""
    resume: bool = False
    """Continue from the newest complete checkpoint in the run folder."""
    save_every: int = 500
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Keep this many newest checkpoints."""
    async_save: Literal["auto", "on", "off"] = "auto"
    """Write checkpoints while training goes on, from a copy of weights and states in host memory. auto: on with CUDA
    where the copy takes at most half of the free host memory, else off."""
    export: bool = True
    """Write a Hugging Face folder at the end of the run."""
    export_dtype: Literal["bf16", "fp32"] = "bf16"
    """Number format of the exported weights."""


@dataclass(frozen=True)
class EvalOptions:
    holdout: float = 0.0
    """Fraction of the training examples held out for periodic scoring (they are not trained on)."""
    eval_every: int = 0
    """Steps between scorings of the held-out examples, by greedy decoding (an encoder: by its heads); the best model is
    kept in best/."""
    max_new_tokens: int | None = None
    """Longest answer in tokens in held-out scoring; default: per example, what its longest valid answer needs."""


@dataclass(frozen=True)
class LogOptions:
    log_every: int = 10
    """Steps between printed lines when there is no terminal (log.jsonl gets every step)."""
    tensorboard: bool = False
    """Write TensorBoard event files to the run folder as well."""


@dataclass(frozen=True)
class PlanOptions:
    plan: bool = False
    """Say what the run would need and cost, and whether it fits; then end, with status 1 if it does not. Needs
    no GPU and no weights."""
    gpu: Literal["a100-80g", "h100-80g", "h200"] = "a100-80g"
    """GPU that --plan is for."""
    gpus: int | None = None
    """GPUs in all that --plan is for; default: as many as torchrun started ranks, else 8."""


@dataclass(frozen=True)
class TrainConfig:
    config: Path | None = None
    """TOML file with options (as the saved config.toml); the command line wins over it."""
    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    batch: BatchOptions = field(default_factory=BatchOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    parallel: ParallelOptions = field(default_factory=ParallelOptions)
    checkpoint: CheckpointOptions = field(default_factory=CheckpointOptions)
    eval: EvalOptions = field(default_factory=EvalOptions)
    log: LogOptions = field(default_factory=LogOptions)
    plan: PlanOptions = field(default_factory=PlanOptions)
    optim_reason: tyro.conf.Suppress[str] = ""
    """No option: why ``--optim auto`` chose what ``optim`` says; empty where the optimizer was named."""


# By ModelSpec.recipe. "large" and "small" are the paper's (sections 5.4 and 5.7); the others are ours.
RECIPES: dict[str, dict[str, Any]] = {
    "large": dict(
        steps=8000, batch_size=8, lr=1e-6, row_length=16_384, activation_checkpointing="full", save_every=500
    ),
    "small": dict(
        steps=4000, batch_size=8, lr=1e-6, row_length=16_384, activation_checkpointing="full", save_every=500
    ),
    "smollm2": dict(epochs=1.0, batch_size=32, lr=1e-4, row_length=2048),
    "debug": dict(steps=100, batch_size=8, lr=1e-3, row_length=2048),
    # The paper's for RoBERTa, with the number of epochs by data set below; beta2, the packed row and fp32 are ours.
    "encoder": dict(batch_size=32, lr=1e-5, beta2=0.999, row_length=4096, export_dtype="fp32"),
    "encoder_debug": dict(steps=100, batch_size=8, lr=1e-3, beta2=0.999, row_length=512, export_dtype="fp32"),
}
ENCODER_EPOCHS = {"20ng": 10.0, "massive": 20.0}
OTHER_EPOCHS = 10.0  # a user's own task

# What means nothing to an encoder, in either program: it has no prompt and writes no text.
PROMPT_OPTIONS = ("template", "list_labels", "shots", "shot_tokens", "max_new_tokens")
DECODER_ONLY = (*PROMPT_OPTIONS, "share_prefix")
ENCODER_ONLY = ("head", "max_length")

# May change between a run and its resumption; everything else would change the numbers.
FREE_ON_RESUME = frozenset(
    "config output resume save_every keep async_save export export_dtype eval_every max_new_tokens log_every"
    " tensorboard cache_dir device activation_checkpointing activation_offload tp sharding nodes"
    " offload_states plan gpu gpus"
    # Where the files lie; that they hold the same is checked by hashes (`train/setup.py`).
    " checkpoint data".split()
)

DESCRIPTION = "Fine-tune a model on a text-classification task. Run alone or under torchrun."
