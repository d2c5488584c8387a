"""The options of ``train.py`` with their defaults, and the recipes: by model, with other values for one's own tasks.

There an encoder's head depends on its folder as well (`train.resolve.recipe_of`).

`train.resolve.load_config` applies recipe, TOML file and command line on top of the defaults. This file does not import
PyTorch, so that ``--help`` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from data.files.paths import PathText


@dataclass(frozen=True)
class ModelOptions:
    model: str = ""
    """Name of a model preset (see checkpoints_tools/registry.py)."""
    checkpoint: Path | None = None
    """Checkpoint folder to start from, in Hugging Face's or Meta's format; default: checkpoints/<model>."""
    init: Literal["pretrained", "random"] = "pretrained"
    """random: start from random weights (debug models only). The tokenizer comes from the checkpoint folder."""
    head: Literal["linear", "dense", "mean"] = "linear"
    """An encoder's class and multi heads. linear: one linear layer on the first token, as in the paper (section 5.4).
    mean: the same on the mean of all tokens. dense: dense layer, tanh and projection, which
    RobertaForSequenceClassification of transformers can load. The default for a task of your own follows the
    checkpoint: the kind of the heads that it has, or mean if it is of sentence-transformers and takes the mean."""
    allow_mismatch: bool = False
    """Use the checkpoint's config.json even if it differs from the preset."""


@dataclass(frozen=True)
class DataOptions:
    task: PathText = ""
    """Task name (20ng_20, 20ng_7, 20ng_joint, massive_intent, massive_slots, massive_joint), or a TOML file."""
    data: PathText | None = None
    """Path of the data set, or 'sample' for the embedded one; default: the folder that data.download fills."""
    template: Literal["auto", "llama2", "llama3", "chatml", "smollm2", "plain"] = "auto"
    """Chat template; auto: detected from the checkpoint's tokenizer, else the preset's."""
    joint_order: Literal["listing", "section"] = "listing"
    """Order of a joint task's answers: as in the paper's listings, or as in its section 5.6."""
    slot_answer: Literal["list", "spans"] | None = None
    """How a decoder answers one label per word. list: a label for each, as in the paper; spans: the entities with their
    words, which small models learn sooner. Default: the task's own, which is list for the paper's tasks."""
    list_labels: bool = True
    """List the labels in the instruction, as the paper does. off: shorter prompt; fine-tuning learns the labels."""
    slot_tags: Literal["types", "bio"] = "types"
    """What the list of slot_answer has for each word: its type (the paper's section 5.8), or a BIO tag (5.1.2)."""
    wording: Literal["clean", "paper"] = "clean"
    """Text of the prompt. paper: the paper's listings word by word. clean: the same with their mistakes corrected."""
    shots: int = 0
    """Few-shot examples in the prompt (the paper uses 0 and 5)."""
    shots_choice: Literal["balanced", "random", "ids"] = "balanced"
    """How they are chosen from the training split. balanced: labels take turns; random; ids: those of shot_ids."""
    shots_seed: int | None = None
    """Seed of their choice; default: seed."""
    shot_ids: tuple[str, ...] = ()
    """Ids of the few-shot examples, for shots_choice ids."""
    shot_tokens: int = 256
    """Each few-shot document is cut to this many tokens."""
    limit: int | None = None
    """Use only this many training examples (chosen by seed)."""
    cache_dir: Path | None = None
    """Folder for cached tokenized data; default: .cache/prepared next to the code."""


@dataclass(frozen=True)
class BatchOptions:
    batch_size: int = 8
    """Samples (or rows, see batch_unit) per optimizer step, over all ranks."""
    batch_unit: Literal["samples", "rows"] = "samples"
    """What batch_size counts. The paper does not say for its batch size of 8."""
    row_length: int = 2048
    """Maximum input length in tokens, prompt and answer together; also the capacity of a packed row."""
    max_length: int | None = None
    """Maximum document length of an encoder in tokens, special tokens included; default: the smallest of 512 (of
    llama_heads 2048), row_length and the model's number of positions."""
    packing: bool = True
    """Pack several samples end to end into one row; off: one padded sample per row."""
    share_prefix: bool = True
    """Compute the prompt's common prefix once per row instead of once per sample."""
    micro_rows: int | None = None
    """Rows in one forward pass of a rank; gradients accumulate over passes. Default: 1 packed row, or as many unpacked
    rows as fit in row_length tokens."""


@dataclass(frozen=True)
class OptimOptions:
    optim: Literal["auto", "adamw", "adamw_sr", "adamw_sr_bf16", "adamw_sr_8bit"] = "auto"
    """Number formats of AdamW. adamw: all in fp32, 16 bytes per parameter. adamw_sr, adamw_sr_bf16, adamw_sr_8bit: bf16
    weights and gradients with stochastic rounding, and fp32, bf16 or 8-bit states: 12, 8 or 6 bytes per parameter.
    auto: the first that fits the GPUs according to --plan; adamw on a CPU."""
    offload_states: bool = False
    """Keep optimizer states in host memory and copy them to the GPU for each update (no benefit on a CPU)."""
    lr: float = 1e-6
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate decays from its peak to zero; constant: it does not."""
    warmup_steps: float = 0
    """Steps of linear warm-up; below 1, their part of all steps."""
    beta1: float = 0.9
    """AdamW's first-moment decay."""
    beta2: float = 0.95
    """AdamW's second-moment decay."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms are not decayed."""
    clip: float = 1.0
    """Maximum gradient norm; 0 turns clipping off."""


@dataclass(frozen=True)
class TrainOptions:
    steps: int | None = None
    """Optimizer steps (instead of epochs). 0, with fit_heads: only the new heads are trained."""
    epochs: float | None = None
    """Passes over the training data (instead of steps)."""
    min_steps: int = 0
    """With epochs only: at least so many optimizer steps, however few the examples. Epochs given by you have no such
    minimum, unless you give this too."""
    fit_heads: bool = False
    """Before the first step, fit new heads to the training examples by logistic regression, on what the checkpoint as
    it is gives. On in the recipes for tasks of your own and of llama_heads; the paper's encoders start with random
    heads. With --steps 0 nothing else is trained."""
    class_weights: tuple[str, ...] = ()
    """Weights of labels in the loss, for data in which some are rare. balanced: n / (labels * count), for every field
    with one label a text. FIELD=balanced: for this field. LABEL=2.5 (or FIELD:LABEL=2.5): given; its others weigh 1."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16: compute in bf16; optim says how weights are stored. fp32: everything in fp32. auto: bf16 on CUDA, on CPUs
    with bf16 hardware (AVX512-BF16, AMX) and with bf16 weights; else fp32, as emulated bf16 is several times slower.
    A resumed run keeps what auto was where it began."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What to recompute in the backward pass: nothing; all except matrix products and attention; or entire blocks."""
    activation_offload: bool = False
    """Move the blocks' saved inputs to host memory between forward and backward (needs full checkpointing)."""
    compile: bool = False
    """torch.compile every block (CUDA only)."""
    seed: int = 0
    """Seed of the data order, the choice of few-shot and held-out examples, dropout, and random weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""


@dataclass(frozen=True)
class ParallelOptions:
    tp: int = 1
    """Tensor parallelism: number of ranks, on one machine, that split each matrix and work on the same samples. FSDP2
    shards over the remaining ranks."""
    sharding: Literal["full", "hybrid"] = "full"
    """full: shard the model over all ranks. hybrid: shard it on each machine, and sum gradients across machines."""
    nodes: int | None = None
    """Machines for hybrid sharding; default: torchrun's. Another number divides the ranks into that many groups."""


@dataclass(frozen=True)
class CheckpointOptions:
    output: Path = Path("runs/default")
    """Run folder: config, log, checkpoints, export."""
    resume: Literal["on", "off", "auto"] = "off"
    """Continue from the newest complete checkpoint in the run folder (--resume alone means on). auto: the same if there
    is one, else start, so that one command starts the run and continues it after any end."""
    save_every: int = 500
    """Steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Number of checkpoints to keep, the newest ones."""
    async_save: Literal["auto", "on", "off"] = "auto"
    """Write checkpoints in the background, from a copy of weights and states in host memory. auto: on with CUDA if the
    copy takes at most half of the free host memory, else off."""
    export: bool = True
    """Write a Hugging Face folder at the end of the run."""
    export_dtype: Literal["bf16", "fp32"] = "bf16"
    """Number format of the exported weights."""


@dataclass(frozen=True)
class EvalOptions:
    holdout: float = 0.0
    """Fraction of the training examples held out for periodic scoring (they are not trained on)."""
    eval_every: int = 0
    """Score the held-out examples every so many steps, by greedy decoding or an encoder's heads, and with fit_heads
    before the first step too; 0: never. The best model is kept in best/."""
    patience: int | None = None
    """End the training after so many held-out scorings in a row that are no better than the best before them, and
    export the best model instead of the last; default: train to the last step and export that model."""
    max_new_tokens: int | None = None
    """Maximum answer length in tokens in held-out scoring; default: enough for each example's longest valid answer."""


@dataclass(frozen=True)
class LogOptions:
    log_every: int = 10
    """Steps between printed lines. log.jsonl gets every step, and so does the line below the bar on a terminal."""
    tensorboard: bool = False
    """Write TensorBoard event files to the run folder as well."""


@dataclass(frozen=True)
class PlanOptions:
    plan: bool = False
    """Print the memory and time that the run would need, then exit, with status 1 if it does not fit. Needs no GPU and
    no weights."""
    gpu: Literal["a100-80g", "h100-80g", "h200"] = "a100-80g"
    """GPU type for --plan."""
    gpus: int | None = None
    """Number of GPUs for --plan; default: the ranks that torchrun started, else 8. A machine has 8."""


@dataclass(frozen=True)
class TrainConfig:
    config: Path | None = None
    """TOML file with options, such as a saved config.toml; the command line overrides it."""
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
    """Not an option: why ``--optim auto`` chose ``optim``; empty if the user named an optimizer."""
    as_typed: tyro.conf.Suppress[tuple[tuple[str, str], ...]] = ()
    """Not an option: the paths with ``~`` or a variable as the user wrote them, by option; the options have the paths
    that they stand for."""


# By ModelSpec.recipe. "large" and "small" are the paper's (sections 5.4 and 5.7); the others, and OWN_TASK, are ours.
RECIPES: dict[str, dict[str, Any]] = {
    "large": dict(
        steps=8000, batch_size=8, lr=1e-6, row_length=16_384, activation_checkpointing="full", save_every=500
    ),
    "small": dict(
        steps=4000, batch_size=8, lr=1e-6, row_length=16_384, activation_checkpointing="full", save_every=500
    ),
    "smollm2": dict(epochs=1.0, batch_size=32, lr=1e-4, row_length=2048),
    "debug": dict(steps=100, batch_size=8, lr=1e-3, row_length=2048),
    # The paper's for RoBERTa; epochs by data set are below. beta2, the packed row and fp32 are ours.
    "encoder": dict(batch_size=32, lr=1e-5, beta2=0.999, row_length=4096, export_dtype="fp32"),
    # Ours, for decoders with heads; see docs/few_labels.md.
    "decoder_heads": dict(epochs=3.0, fit_heads=True, batch_size=16, lr=3e-5, row_length=4096),
    "encoder_debug": dict(steps=100, batch_size=8, lr=1e-3, beta2=0.999, row_length=512, export_dtype="fp32"),
}
ENCODER_EPOCHS = {"20ng": 10.0, "massive": 20.0}
# By recipe: what is different for a user's own task, which may have few examples (docs/few_labels.md).
OWN_TASK: dict[str, dict[str, Any]] = {
    "encoder": dict(epochs=10.0, fit_heads=True),
    # The paper's 8,000 steps would be hundreds of passes. The rate is what others fine-tune such models with.
    "large": dict(steps=None, epochs=3.0, min_steps=40, lr=1e-5),
    "small": dict(steps=None, epochs=3.0, min_steps=40, lr=1e-5),
    "smollm2": dict(epochs=3.0, min_steps=40, batch_size=16, lr=3e-4),
}

# Options of both programs for decoders only: an encoder has no prompt and writes no text.
PROMPT_OPTIONS = ("template", "slot_answer", "slot_tags", "list_labels", "wording", "shots", "shots_choice",
                  "shots_seed", "shot_ids", "shot_tokens", "max_new_tokens")  # fmt: skip
DECODER_ONLY = (*PROMPT_OPTIONS, "share_prefix")
ENCODER_ONLY = ("head", "max_length", "fit_heads")

# Options that may change when a run is resumed; any other would change its results.
FREE_ON_RESUME = frozenset(
    "config output resume save_every keep async_save export export_dtype eval_every patience max_new_tokens log_every"
    " tensorboard cache_dir device activation_checkpointing activation_offload tp sharding nodes"
    " offload_states plan gpu gpus"
    # It acts before the first step only. Runs of older code have no value of it, and can be resumed.
    " fit_heads"
    # Paths; hashes check that the contents are the same (`train/setup.py`).
    " checkpoint data task".split()
)

_OF_RECIPES = sorted({option for recipe in (*RECIPES.values(), *OWN_TASK.values()) for option in recipe})
DESCRIPTION = f"""Fine-tune a model on a text-classification task. Run alone or under torchrun.

The model's recipe for the task has other defaults than those below for some of {", ".join(_OF_RECIPES)}. The run's
config.toml has every value used."""
