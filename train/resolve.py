"""Read and check the options of ``train.py``: layers, recipes, and what "auto" means on this machine.

Values come from layers: the defaults < the recipe of the model's size < ``--config file.toml`` < the command line
(`train/options.py`). Problems that show without data, weights or a process group are all reported together, before
anything starts.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints_tools.heads import usual_head
from checkpoints_tools.registry import ModelSpec, get_model_spec, model_names
from data.class_weights import read_weights
from data.decoder.fewshot import shots_problems
from data.decoder.prompts import check_wording
from data.errors import UserError
from data.files.paths import expand
from data.tasks import TASKS, get_task
from train import options
from train.checkpointing import run_folder
from train.checkpointing.checkpoint import read_state, steps_in
from train.config import DECODER_ONLY, ENCODER_EPOCHS, ENCODER_ONLY, OWN_TASK, RECIPES, TrainConfig
from train.config_file import written
from train.optim.formats import OPTIMIZERS
from train.parallel.distributed import resolve_device, resolve_precision

log = logging.getLogger(__name__)


def load_config(argv: Sequence[str]) -> TrainConfig:
    """Resolve the configuration from the command line and the layers below it.

    Raises:
        UserError: one message with every problem found: unknown names, wrong types, values out of range,
            contradictions.
    """
    problems: list[str] = []
    layers = options.read_layers(TrainConfig, argv, problems)
    given = options.parse(TrainConfig, [words for layer in layers for words in layer])
    recipe = options.build(TrainConfig, [recipe_of(given)])
    layers = [_steps_or_epochs(layer, problems) for layer in layers]
    config = _expand_paths(options.parse(TrainConfig, [words for layer in layers for words in layer], recipe), problems)
    options.report(problems + options.text_problems(config) + find_problems(config))
    return resolve_auto(config)


def _expand_paths(config: TrainConfig, problems: Sequence[str]) -> TrainConfig:
    expanded = options.expand_paths(config, problems)
    found = options.flatten(expanded)
    typed = tuple((name, str(value)) for name, value in options.flatten(config).items() if value != found[name])
    return replace(expanded, as_typed=typed)


def _steps_or_epochs(layer: list[options.Words], problems: list[str]) -> list[options.Words]:
    """Let ``steps`` or ``epochs`` in a layer replace the other of the two, and ``min_steps``, in lower layers."""
    given = options.parse(TrainConfig, layer).train
    if given.steps is not None and given.epochs is not None:
        problems.append(f"steps = {given.steps} and epochs = {given.epochs}: give one of the two.")
    elif given.steps is not None:
        return [["--epochs=None"], ["--min_steps=0"], *layer]
    elif given.epochs is not None:
        return [["--steps=None"], ["--min_steps=0"], *layer]
    return layer


def recipe_of(config: TrainConfig) -> dict[str, Any]:
    """The option values of the recipe for a configuration's model, task and checkpoint; empty for an unknown model."""
    if config.model.model not in model_names():
        return {}
    spec, task = get_model_spec(config.model.model), config.data.task
    recipe = dict(RECIPES[spec.recipe], checkpoint=spec.default_checkpoint)
    if task not in TASKS:
        recipe |= OWN_TASK.get(spec.recipe, {})
    elif spec.recipe == "encoder":
        recipe["epochs"] = ENCODER_EPOCHS[TASKS[task].dataset]
    folder = config.model.checkpoint or spec.default_checkpoint
    has_kinds = spec.kind == "encoder" and not spec.architecture.is_decoder_with_heads  # a decoder's are of one kind
    if has_kinds and folder is not None and task not in TASKS:  # the paper's heads are linear
        with suppress(UserError):  # a variable that is not set: `_expand_paths` says so, together with other problems
            recipe["head"] = _usual_head(config, Path(expand(str(folder))))
    return recipe


def _usual_head(config: TrainConfig, folder: Path) -> str:
    """The head that a folder is for; if a run to resume has lost the folder, the head that the run has."""
    stored = {} if folder.is_dir() else _stored_options(config, Path(expand(str(config.checkpoint.output))))
    return stored.get("head") or usual_head(folder)


def _stored_options(config: TrainConfig, output: Path) -> dict[str, Any]:
    """The options in the newest checkpoint of a run to resume; empty if there is none."""
    for step in reversed(steps_in(output / "checkpoints")) if config.checkpoint.resume != "off" else ():
        with suppress(UserError):  # the newest may be damaged
            return read_state(step).config
    return {}


def resolve_auto(config: TrainConfig) -> TrainConfig:
    """Replace "auto" by what it means on this machine, so that the saved configuration records what ran.

    A run to resume keeps what it meant where the run began.
    """
    train, stored = config.train, _stored_options(config, config.checkpoint.output)
    device = "cuda" if config.plan.plan else resolve_device(train.device)  # plans are made for GPUs
    # On GPUs "auto" stays until the work has been counted (`train.planning.plan.settle_optimizer`).
    if config.optim.optim == "auto" and device == "cpu":
        usual = "adamw", "the default on CPUs, everything in fp32"
        config = choose_optim(config, *((stored["optim"], "that of the run to resume") if stored else usual))
    name = config.optim.optim
    stores_bf16 = name != "auto" and OPTIMIZERS[name].weights == torch.bfloat16
    here = "bf16" if stores_bf16 else resolve_precision(train.precision, device)
    precision = resolve_precision(stored["precision"], device) if stored and train.precision == "auto" else here
    if precision != here:
        log.info("precision: %s, as where the run began; a run that starts here has %s", precision, here)
    found: dict[str, Any] = {"device": device, "precision": precision}
    return replace(config, train=replace(train, **found))


def describe_settings(config: TrainConfig) -> str:
    """The settings that are not the recipe's, one per line, and where all of them are."""
    recipe = options.flatten(options.build(TrainConfig, [recipe_of(config)]))
    lines = []
    for name, value in options.flatten(config).items():
        if name == "head" and value != "linear" and value == recipe[name]:
            lines.append(f"  head = {written(value)} (as the checkpoint's folder says)")
        if value == recipe[name] or value is None:  # None: of steps and epochs, the one that is replaced by the other
            continue
        if name == "min_steps" and not value:  # the user named steps or epochs
            continue
        usual = "" if recipe[name] in (None, "", ()) else f" (recipe: {written(recipe[name])})"
        why = f" ({config.optim_reason})" if name == "optim" and config.optim_reason else usual
        lines.append(f"  {name} = {written(value)}{why}")
    where = run_folder.config_file(config.checkpoint.output)
    return "\n".join([f"settings that are not those of {config.model.model}'s recipe ({where} has all):", *lines])


def choose_optim(config: TrainConfig, name: str, why: str) -> TrainConfig:
    """Replace ``--optim auto`` by the chosen optimizer, and record the reason."""
    reason = f"chosen by --optim auto: {why}; --optim {name} pins it"
    chosen: dict[str, Any] = {"optim": name}
    return replace(config, optim=replace(config.optim, **chosen), optim_reason=reason)


def find_problems(config: TrainConfig) -> list[str]:
    """Find all problems in a configuration that show without opening data or weights."""
    problems: list[str] = []

    def must(ok: bool, name: str, want: str) -> None:
        if not ok:
            problems.append(f"{name} = {options.flatten(config)[name]}: must be {want}.")

    known_model = False
    try:
        if not config.model.model:
            raise UserError(f"no --model given. Known: {', '.join(model_names())}.")
        get_model_spec(config.model.model)
        known_model = True
    except UserError as error:
        problems.append(str(error))
    try:
        if not config.data.task:
            raise UserError(f"no --task given. Known: {', '.join(TASKS)}, or a TOML file that describes your own.")
        data = config.data
        task = get_task(data.task, data.joint_order, data.slot_answer, data.slot_tags)
        check_wording(data.wording, task, data.list_labels)
        read_weights(config.train.class_weights, task, problems)
    except UserError as error:
        problems.append(str(error))

    batch, optim, train, ckpt = config.batch, config.optim, config.train, config.checkpoint
    must(config.data.shots >= 0, "shots", "0 or more")
    must(config.data.shots_seed is None or config.data.shots_seed >= 0, "shots_seed", "0 or more")
    problems += shots_problems(config.data.shots_choice, config.data.shot_ids, config.data.shots)
    must(config.data.shot_tokens >= 1, "shot_tokens", "at least 1")
    must(config.data.limit is None or config.data.limit >= 1, "limit", "at least 1")
    must(batch.batch_size >= 1, "batch_size", "at least 1")
    must(batch.row_length >= 16, "row_length", "at least 16")
    must(batch.max_length is None or batch.max_length >= 3, "max_length", "at least 3")
    must(batch.max_length is None or batch.max_length <= batch.row_length, "max_length", "at most row_length")
    must(batch.micro_rows is None or batch.micro_rows >= 1, "micro_rows", "at least 1")
    if train.precision == "fp32" and optim.optim != "auto" and OPTIMIZERS[optim.optim].weights == torch.bfloat16:
        problems.append(f"optim = {optim.optim} stores the weights in bf16, which contradicts precision = fp32.")
    must(0 < optim.lr < 1, "lr", "between 0 and 1")
    warmup = optim.warmup_steps
    must(warmup >= 0 and (warmup < 1 or warmup % 1 == 0), "warmup_steps", "0 or more, and whole from 1 on")
    must(0 <= optim.beta1 < 1, "beta1", "in [0, 1)")
    must(0 <= optim.beta2 < 1, "beta2", "in [0, 1)")
    must(0 < optim.eps < math.inf, "eps", "above 0, and finite")
    must(0 <= optim.weight_decay < math.inf, "weight_decay", "0 or more, and finite")
    must(optim.clip >= 0, "clip", "0 (off) or more")
    heads_alone = train.steps == 0 and train.fit_heads
    zero = "0 is for models with heads and --fit_heads, which then fits the heads alone"
    if heads_alone:
        zero = "a plan needs steps, and fitting the heads alone has none: omit --steps 0 or --plan"
    must(
        train.steps is None or train.steps >= 1 or (heads_alone and not config.plan.plan),
        "steps",
        "at least 1" if train.steps else f"at least 1; {zero}",
    )
    if train.steps is not None and train.min_steps:
        problems.append(f"min_steps = {train.min_steps} is for epochs: give --epochs, or --steps alone.")
    if train.fit_heads and config.model.init == "random":
        problems.append("fit_heads fits heads on a pretrained model: omit it with --init random.")
    must(train.epochs is None or 0 < train.epochs < math.inf, "epochs", "above 0, and finite")
    must(train.min_steps >= 0, "min_steps", "0 or more")
    must(0 <= train.seed < 2**63, "seed", "0 or more, and below 2**63")
    must(config.parallel.tp >= 1, "tp", "at least 1")
    must(config.parallel.nodes is None or config.parallel.nodes >= 1, "nodes", "at least 1")
    must(config.plan.gpus is None or config.plan.gpus >= 1, "gpus", "at least 1")
    must(ckpt.save_every >= 0, "save_every", "0 (only at the end) or more")
    must(ckpt.keep >= 1, "keep", "at least 1")
    must(0 <= config.eval.holdout < 1, "holdout", "in [0, 1)")
    must(config.eval.eval_every >= 0, "eval_every", "0 (off) or more")
    must(config.eval.patience is None or config.eval.patience >= 1, "patience", "at least 1")
    must(config.eval.max_new_tokens is None or config.eval.max_new_tokens >= 1, "max_new_tokens", "at least 1")
    must(config.log.log_every >= 1, "log_every", "at least 1")
    if train.activation_offload and train.activation_checkpointing != "full":
        problems.append(
            "activation_offload needs full activation checkpointing: give "
            f"--activation_checkpointing full (it is {train.activation_checkpointing})."
        )
    if train.steps is not None and 1 <= warmup > train.steps - 1:
        problems.append(f"warmup_steps = {warmup:g} must be less than steps = {train.steps}.")
    if known_model and train.steps is None and train.epochs is None:
        problems.append("neither steps nor epochs is set, and the model's recipe has none: give one.")
    if config.eval.eval_every and not config.eval.holdout:
        problems.append(f"eval_every = {config.eval.eval_every} needs held-out examples: give --holdout, e.g. 0.05.")
    if config.eval.holdout and not config.eval.eval_every:
        problems.append(f"holdout = {config.eval.holdout} is never scored: give --eval_every.")
    if config.eval.patience is not None and not config.eval.eval_every:
        problems.append(
            f"patience = {config.eval.patience} counts held-out scorings, and there are none: give --holdout and "
            "--eval_every."
        )
    if known_model and get_model_spec(config.model.model).kind == "encoder" and config.parallel.tp > 1:
        problems.append(f"tp = {config.parallel.tp}: matrices of a model with heads are not split. Omit it.")
    if known_model:
        problems += _checkpoint_problems(config)
        problems += problems_of_kind(config, get_model_spec(config.model.model), DECODER_ONLY, ENCODER_ONLY)
    return problems


def problems_of_kind(
    config: Any, spec: ModelSpec, decoder_only: Sequence[str], encoder_only: Sequence[str]
) -> list[str]:
    """Options of either program that are for the other kind of model and not at their defaults."""
    given, default = options.flatten(config), options.flatten(type(config)())
    if spec.kind == "encoder":
        what = "one with heads" if spec.architecture.is_decoder_with_heads else "an encoder"
        names, why = decoder_only, f"is for decoders; {spec.name} is {what}, which has no prompt and writes no text."
    else:
        names, why = (
            encoder_only,
            f"is for encoders; {spec.name} is a decoder, which has no heads; row_length bounds its input.",
        )
    return [f"{name} = {given[name]} {why} Omit it." for name in names if given[name] != default[name]]


def _checkpoint_problems(config: TrainConfig) -> list[str]:
    spec = get_model_spec(config.model.model)
    if config.model.init == "random" and not spec.recipe.endswith("debug"):
        return [f"init = random is for debug models; {spec.name} starts from its pretrained weights."]
    if config.model.checkpoint is None:
        return [f"model = {spec.name} is whatever its folder holds: give --checkpoint, its folder."]
    return []
