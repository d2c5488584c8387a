"""The options of ``train.py``, the recipes of the model sizes, and every check that needs no process group.

Values are decided in layers: the defaults below < the recipe of the model's size < ``--config file.toml`` < the
command line (`train/options.py`). All problems are found before anything starts and reported together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from checkpoints_tools.registry import MODELS, get_model_spec
from data.errors import UserError
from data.tasks import TASKS, get_task
from train import options
from train.optim.optimizer import OPTIMIZERS
from train.parallel.distributed import resolve_device, resolve_precision

OnOff = Literal["on", "off"]


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
    list_labels: OnOff = "on"
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
    packing: OnOff = "on"
    """Lay several samples end to end in one row; off: one padded sample a row."""
    share_prefix: OnOff = "on"
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
    offload_states: OnOff = "off"
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
    activation_offload: OnOff = "off"
    """Keep the blocks' saved inputs in host memory between forward and backward (needs full checkpointing)."""
    compile: OnOff = "off"
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
    export: OnOff = "on"
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

# What means nothing to an encoder, which has no prompt and writes nothing, and what means nothing to a decoder.
DECODER_ONLY = ("template", "list_labels", "shots", "shot_tokens", "share_prefix", "max_new_tokens")
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


def load_config(argv: Sequence[str]) -> TrainConfig:
    """Resolve the configuration from the command line and the layers below it.

    Raises:
        UserError: one message with every problem found: unknown options and keys, values of the wrong type or out
            of range, unknown models and tasks, contradictions.
    """
    problems: list[str] = []
    from_argv = options.read_argv(argv, TrainConfig, problems)
    if "-h" in argv or "--help" in argv:
        options.parse(TrainConfig, ["--help"], TrainConfig(), DESCRIPTION)
    from_toml: dict[str, Any] = {}
    if from_argv.get("config") is not None:
        from_toml = options.read_toml(from_argv["config"], TrainConfig, problems)

    model = from_argv.get("model", from_toml.get("model", ""))
    recipe = recipe_for(model, from_argv.get("task", from_toml.get("task", "")))
    layers = [recipe, from_toml, from_argv]
    for i, upper in enumerate(layers):
        for name, other in (("steps", "epochs"), ("epochs", "steps")):
            if upper.get(name) is not None and upper.get(other) is None:
                for lower in layers[:i]:
                    lower.pop(other, None)
        if upper.get("steps") is not None and upper.get("epochs") is not None:
            problems.append(f"steps = {upper['steps']} and epochs = {upper['epochs']}: give one of the two.")

    config = options.build(TrainConfig, layers)
    complained = bool(problems)
    problems += find_problems(config)
    options.report(problems)
    assert not complained
    parsed = options.parse(TrainConfig, argv, options.build(TrainConfig, layers[:2]), DESCRIPTION)
    assert parsed == config, "tyro and read_argv read the command line differently"
    return resolve_auto(config)


def recipe_for(model: str, task: str) -> dict[str, Any]:
    """The option values of a model's recipe; none for a model that is not known."""
    if model not in MODELS:
        return {}
    spec = MODELS[model]
    recipe = dict(RECIPES[spec.recipe], checkpoint=spec.default_checkpoint)
    if spec.recipe == "encoder":
        recipe["epochs"] = ENCODER_EPOCHS[TASKS[task].dataset] if task in TASKS else OTHER_EPOCHS
    return recipe


def resolve_auto(config: TrainConfig) -> TrainConfig:
    """Replace "auto" by what it means on this machine, so that the saved configuration says what ran."""
    train, optim = config.train, config.optim
    device = "cuda" if config.plan.plan else resolve_device(train.device)  # a plan is one for GPUs
    # On GPUs "auto" stays until the plan has counted what there is to fit (`train.planning.plan.settle_optimizer`).
    name = "adamw" if optim.optim == "auto" and device == "cpu" else optim.optim
    stores_bf16 = name != "auto" and OPTIMIZERS[name].weights == torch.bfloat16
    precision = "bf16" if stores_bf16 else resolve_precision(train.precision, device)
    return replace(config, optim=replace(optim, optim=name), train=replace(train, device=device, precision=precision))


def find_problems(config: TrainConfig) -> list[str]:
    """Everything wrong with a configuration that can be seen without opening data or weights."""
    problems: list[str] = []

    def must(ok: bool, name: str, want: str) -> None:
        if not ok:
            problems.append(f"{name} = {options.flatten(config)[name]}: must be {want}.")

    known_model = False
    try:
        if not config.model.model:
            raise UserError(f"no --model given. Known: {', '.join(MODELS)}.")
        get_model_spec(config.model.model)
        known_model = True
    except UserError as error:
        problems.append(str(error))
    try:
        if not config.data.task:
            raise UserError(f"no --task given. Known: {', '.join(TASKS)}, or a TOML file that describes your own.")
        get_task(config.data.task, config.data.joint_order)
    except UserError as error:
        problems.append(str(error))

    batch, optim, train, ckpt = config.batch, config.optim, config.train, config.checkpoint
    must(config.data.shots >= 0, "shots", "0 or more")
    must(config.data.shot_tokens >= 1, "shot_tokens", "at least 1")
    must(config.data.limit is None or config.data.limit >= 1, "limit", "at least 1")
    must(batch.batch_size >= 1, "batch_size", "at least 1")
    must(batch.row_length >= 16, "row_length", "at least 16")
    must(batch.max_length is None or batch.max_length >= 3, "max_length", "at least 3")
    must(batch.max_length is None or batch.max_length <= batch.row_length, "max_length", "at most row_length")
    must(batch.micro_rows is None or batch.micro_rows >= 1, "micro_rows", "at least 1")
    if train.precision == "fp32" and optim.optim != "auto" and OPTIMIZERS[optim.optim].weights == torch.bfloat16:
        problems.append(f"optim = {optim.optim} stores the weights in bf16: precision = fp32 does not go with it.")
    must(0 < optim.lr < 1, "lr", "between 0 and 1")
    must(optim.warmup_steps >= 0, "warmup_steps", "0 or more")
    must(0 <= optim.beta1 < 1, "beta1", "in [0, 1)")
    must(0 <= optim.beta2 < 1, "beta2", "in [0, 1)")
    must(optim.eps > 0, "eps", "above 0")
    must(optim.weight_decay >= 0, "weight_decay", "0 or more")
    must(optim.clip >= 0, "clip", "0 (off) or more")
    must(train.steps is None or train.steps >= 1, "steps", "at least 1")
    must(train.epochs is None or train.epochs > 0, "epochs", "above 0")
    must(train.seed >= 0, "seed", "0 or more")
    must(config.parallel.tp >= 1, "tp", "at least 1")
    must(config.parallel.nodes is None or config.parallel.nodes >= 1, "nodes", "at least 1")
    must(config.plan.gpus is None or config.plan.gpus >= 1, "gpus", "at least 1")
    must(ckpt.save_every >= 0, "save_every", "0 (only at the end) or more")
    must(ckpt.keep >= 1, "keep", "at least 1")
    must(0 <= config.eval.holdout < 1, "holdout", "in [0, 1)")
    must(config.eval.eval_every >= 0, "eval_every", "0 (off) or more")
    must(config.eval.max_new_tokens is None or config.eval.max_new_tokens >= 1, "max_new_tokens", "at least 1")
    must(config.log.log_every >= 1, "log_every", "at least 1")
    if train.activation_offload == "on" and train.activation_checkpointing != "full":
        problems.append(
            "activation_offload = on moves the one input that a block saves under full checkpointing: give "
            f"--activation_checkpointing full (it is {train.activation_checkpointing})."
        )
    if train.steps is not None and optim.warmup_steps >= train.steps:
        problems.append(f"warmup_steps = {optim.warmup_steps} leaves nothing of steps = {train.steps}.")
    if known_model and train.steps is None and train.epochs is None:
        problems.append("neither steps nor epochs is set, and the model's recipe has none: give one.")
    if config.eval.eval_every and not config.eval.holdout:
        problems.append(f"eval_every = {config.eval.eval_every} needs held-out examples: give --holdout, e.g. 0.05.")
    if config.eval.holdout and not config.eval.eval_every:
        problems.append(f"holdout = {config.eval.holdout} is never scored: give --eval_every.")
    if known_model and get_model_spec(config.model.model).kind == "encoder" and config.parallel.tp > 1:
        problems.append(f"tp = {config.parallel.tp}: an encoder's matrices are not split. Leave it out.")
    if known_model:
        problems += _checkpoint_problems(config) + _problems_of_kind(config)
    return problems


def _problems_of_kind(config: TrainConfig) -> list[str]:
    """Options for the other kind of model; a value that is the default changes nothing and passes."""
    spec, given, default = get_model_spec(config.model.model), options.flatten(config), options.flatten(TrainConfig())
    if spec.kind == "encoder":
        names, why = DECODER_ONLY, "is for decoders; {} is an encoder: no prompt, no text, heads only. Leave it out."
    else:
        names, why = ENCODER_ONLY, "is for encoders; {} is a decoder, which has no heads. Leave it out."
    wrong = [name for name in names if given[name] != default[name]]
    if spec.kind == "decoder" and "max_length" in wrong:
        why += " Its longest input is row_length."
    return [f"{name} = {given[name]} {why.format(spec.name)}" for name in wrong]


def _checkpoint_problems(config: TrainConfig) -> list[str]:
    spec = get_model_spec(config.model.model)
    if config.model.init == "random" and not spec.recipe.endswith("debug"):
        return [f"init = random is for debug models; {spec.name} starts from its pretrained weights."]
    if config.model.checkpoint is None:
        return [f"model = {spec.name} is whatever its folder holds: give --checkpoint, a Hugging Face folder."]
    return []
