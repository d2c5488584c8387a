"""Open and check everything that a run needs, before the process group starts.

Problems of the checkpoint, the data, the run folder and the device are independent, so all are reported together. The
result is the same on every rank.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from checkpoints_tools.architectures import ModelConfig, with_frame
from checkpoints_tools.architectures import Tokenizer as AnyTokenizer
from checkpoints_tools.carried import Carried, read_carried
from checkpoints_tools.checksums import check_small_files
from checkpoints_tools.formats import OF_A_RUN
from checkpoints_tools.load import check_family, check_fits_preset, open_checkpoint
from checkpoints_tools.registry import ModelSpec, get_model_spec
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.class_weights import ClassWeights, describe_weights, read_weights, resolve_weights
from data.decoder.fewshot import PromptSpec
from data.decoder.samples import SampleSet
from data.decoder.templates import Prompt
from data.encoder.samples import SampleSet as EncoderSampleSet
from data.errors import UserError
from data.example import Example, hash_examples
from data.loader import StepLoader
from data.source import load_examples, nothing_to_score
from data.task_file import save_task, task_hash
from data.tasks import Task, get_task
from data.trained_texts import Hashes, hash_texts, read_trained_texts, save_trained_texts
from train import options, starting
from train.checkpointing import checkpoint, run_folder
from train.checkpointing.base import tokenizer_in_run
from train.config import TrainConfig
from train.launched import env_rank
from train.metrics import check_tensorboard
from train.parallel.distributed import pick_device
from train.parallel.mesh import MeshShape, lay_out_world
from train.parallel.tensor_parallel import check_divides
from train.training_data import (
    Kind,
    build_loader,
    count_steps,
    describe_few,
    describe_repeats,
    divide,
    hash_samples,
    prepare_samples,
    warn_of_length,
    weigh,
)

log = logging.getLogger(__name__)

# Paths, which may differ between machines. Hashes check the contents; every rank must see the files of rank 0.
MACHINE_OPTIONS = ("config", "checkpoint", "data", "task", "cache_dir", "output")


@dataclass(frozen=True)
class Setup:
    """The result of `open_run`.

    Attributes:
        prompt_spec, prompt: None for an encoder.
        held_out: examples for periodic scoring; they and the few-shot examples are not in ``samples``.
        identity: config and hashes that a checkpoint to resume from must match (`train/checkpointing/checkpoint.py`).
        resume_from: the checkpoint folder to continue from, or None.
        carried: what the files of the checkpoint to start from say, for the exports.
        class_weights: by field, the weights of labels in the loss; empty without ``--class_weights``.
        trained_texts: hashes of the texts whose answers the model sees, or saw before, each once: those of the
            checkpoint to start from, the few-shot examples, the samples. None: what was trained before is not known.
    """

    spec: ModelSpec
    model_config: ModelConfig
    tokenizer: AnyTokenizer
    task: Task
    prompt_spec: PromptSpec | None
    prompt: Prompt | None
    samples: SampleSet | EncoderSampleSet
    held_out: list[Example]
    loader: StepLoader
    total_steps: int
    device: torch.device
    mesh_shape: MeshShape
    identity: dict[str, Any]
    resume_from: Path | None
    carried: Carried = Carried()
    class_weights: ClassWeights = field(default_factory=dict)
    trained_texts: Hashes | None = None

    def save_task(self, folder: Path) -> None:
        """Write the task, and a decoder's prompt, into the run folder."""
        save_task(self.task, folder)
        if self.prompt_spec is not None:
            self.prompt_spec.save(folder)

    def save_with_model(self, folder: Path) -> None:
        """Write what a checkpoint and an export have beside the model: the same, and what it was trained on."""
        self.save_task(folder)
        if self.trained_texts is not None:
            save_trained_texts(self.trained_texts, folder)

    @property
    def labels(self) -> dict[str, list[str]]:
        """The label sets by field, as stored with checkpoints and exports."""
        return {field.name: list(field.labels) for field in self.task.fields}


def open_run(config: TrainConfig) -> Setup:
    """Open and check everything that ``config`` names.

    Raises:
        UserError: one message with every problem found.
    """
    problems: list[str] = []

    def attempt(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except UserError as error:
            problems.append(str(error))
            return None

    device = attempt(lambda: _open_device(config))
    parallel = config.parallel
    shape = attempt(lambda: lay_out_world(tp=parallel.tp, sharding=parallel.sharding, nodes=parallel.nodes))
    task = get_task(config.data.task, config.data.joint_order, config.data.slot_answer, config.data.slot_tags)
    model = attempt(lambda: _open_model(config, task))
    examples = attempt(lambda: load_examples(task, "train", config.data.data))
    attempt(lambda: _check_output(config, task))
    if config.log.tensorboard:
        attempt(check_tensorboard)
    options.report(problems)

    spec, model_config, tokenizer = model
    held_out, shots, examples = divide(examples, task, config)
    samples, prompt_spec = prepare_samples(config, spec, model_config, task, tokenizer, examples, shots)
    prompt = prompt_spec.build(task) if prompt_spec is not None else None
    if prompt_spec is not None:
        log.info("prompt: %s template (%s), %d shots", prompt_spec.template, prompt_spec.template_from,
                 len(prompt_spec.shots))  # fmt: skip
        warn_of_length(cast(SampleSet, samples), model_config, config)
    log.info("training data: %s", samples.describe())
    weights = resolve_weights(read_weights(config.train.class_weights, task, []), examples)
    if weights:
        log.info("%s", describe_weights(weights, task))
        weigh(samples, weights, examples, task, prompt, tokenizer)

    loader = build_loader(config, samples, rank=env_rank() // shape.tensor, world_size=shape.n_data)
    total_steps = count_steps(config, loader)
    if total_steps and (repeats := describe_repeats(loader)):
        log.warning("warning: %s", repeats)
    new_heads = partial(_can_fit_alone, config, spec, model_config)
    kind: Kind = "decoder with heads" if spec.architecture.is_decoder_with_heads else spec.kind
    if total_steps and (note := describe_few(task, examples, kind, new_heads)):
        log.info("note: %s", note)
    identity = {
        "model_config": dataclasses.asdict(model_config),
        "tokenizer": tokenizer_in_run(tokenizer, cast(Path, config.model.checkpoint), config.checkpoint.output),
        "training_data": hash_samples(samples),
        checkpoint.HELD_OUT: hash_examples(held_out),
        checkpoint.TASK_CONTENT: task_hash(task),
    }
    resume_from = None
    if checkpoint.steps_in(config.checkpoint.output / "checkpoints"):  # without --resume refused above
        resume_from = find_checkpoint(config, identity, task)
    elif starting.left_by_a_start(config.checkpoint.output):
        log.info("note: %s has what a start left that ended before its first checkpoint. Starting from step 1.",
                 config.checkpoint.output)  # fmt: skip
    if resume_from is None and (note := nothing_to_score(task)):
        log.info("note: %s", note)
    return Setup(
        spec=spec,
        model_config=model_config,
        tokenizer=tokenizer,
        task=task,
        prompt_spec=prompt_spec,
        prompt=prompt,
        samples=samples,
        held_out=held_out,
        loader=loader,
        total_steps=total_steps,
        device=device,
        mesh_shape=shape,
        identity=identity,
        resume_from=resume_from,
        carried=_carried(config),
        class_weights=weights,
        trained_texts=_trained_texts(config, resume_from, [*shots, *examples]),
    )


def _trained_texts(config: TrainConfig, resume_from: Path | None, examples: Sequence[Example]) -> Hashes | None:
    """Hashes of the examples' texts, and of those that the weights to start from were trained on; see `Setup`."""
    own, folder = np.unique(hash_texts(example.text for example in examples)), config.model.checkpoint
    if resume_from is not None:
        folder = resume_from
    elif folder is None or config.model.init != "pretrained":
        return own
    before = read_trained_texts(folder)
    if before is None:
        return None if any((folder / name).is_file() for name in OF_A_RUN) else own  # older code has fine-tuned it
    return np.union1d(before, own)


def _carried(config: TrainConfig) -> Carried:
    """The files of the checkpoint to start from. Random weights have none: a preset's config is not the folder's."""
    folder = config.model.checkpoint
    return read_carried(folder) if folder is not None and config.model.init == "pretrained" else Carried()


def _open_device(config: TrainConfig) -> torch.device:
    device = pick_device(config.train.device)
    if config.train.compile and device.type != "cuda":
        raise UserError("compile needs a CUDA device; there is none, or --device cpu was given.")
    return device


def _open_model(config: TrainConfig, task: Task) -> tuple[ModelSpec, ModelConfig, AnyTokenizer]:
    spec = get_model_spec(config.model.model)
    folder = config.model.checkpoint
    assert folder is not None, "find_problems refuses a configuration without a checkpoint"
    architecture = spec.architecture
    if config.model.init == "random":
        assert spec.config is not None, "find_problems allows random weights for presets only"
        check_small_files(folder)
        tokenizer = architecture.load_tokenizer(folder)
        found = dataclasses.replace(spec.config, vocab_size=tokenizer.vocab_size)
    else:
        found = open_checkpoint(folder, spec).config
        check_family(found, spec, folder)
        tokenizer = architecture.load_tokenizer(tokenizer_folder(folder))
        check_fits_preset(found, tokenizer, spec, folder, config.model.allow_mismatch)
    return spec, config_for_task(with_frame(found, tokenizer), spec, task, config), tokenizer


def _can_fit_alone(config: TrainConfig, spec: ModelSpec, model_config: ModelConfig) -> bool:
    """Whether ``--steps 0`` would be accepted, which fits new heads of one layer (`train/build.py`)."""
    if not config.train.fit_heads or config.model.head == "dense":
        return False
    fresh = open_checkpoint(cast(Path, config.model.checkpoint), spec, model_config).fresh
    return any(name.startswith("heads.") for name in fresh)


def config_for_task(found: ModelConfig, spec: ModelSpec, task: Task, config: TrainConfig) -> ModelConfig:
    """The checkpoint's config as the run trains it; an encoder gets the task's heads.

    Raises:
        UserError: the model does not divide over ``--tp``, ``max_length`` exceeds the position table, or the
            checkpoint's heads do not fit the task.
    """
    folder, longest = config.model.checkpoint, config.batch.max_length
    check_divides(found, config.parallel.tp)
    has_table = not spec.architecture.is_decoder_with_heads  # positions of a decoder are computed
    if longest is not None and longest > found.max_position and has_table:
        raise UserError(
            f"max_length = {longest}: {folder} has positions for documents of {found.max_position} tokens at most."
        )
    return spec.architecture.with_task(found, task, config.model.head, folder)


def _check_output(config: TrainConfig, task: Task) -> None:
    """Check that the run folder is new or holds the run to resume; nothing is ever overwritten."""
    output = config.checkpoint.output
    if output.exists() and not output.is_dir():
        raise UserError(f"output = {output}: that is a file. Name a folder.")
    run_folder.check(output)
    starting.check_folder(config, task)
    parent = next(p for p in (output, *output.absolute().parents) if p.exists())
    if not (parent.is_dir() and _writable(parent)):
        raise UserError(f"output = {output}: {parent} is not writable.")


def _writable(folder: Path) -> bool:
    import os

    return os.access(folder, os.W_OK | os.X_OK)


def find_checkpoint(config: TrainConfig, identity: dict[str, Any], task: Task, before: Path | None = None) -> Path:
    """The newest complete checkpoint of the run to resume, which must fit it.

    Args:
        before: look only at checkpoints that are older than this one.

    Raises:
        UserError: there is none, or it belongs to another run.
    """
    checkpoints = config.checkpoint.output / "checkpoints"
    folder = checkpoint.newest_complete(checkpoints, before)
    if folder is None:
        raise UserError(
            f"--resume: none of the checkpoints in {checkpoints} is complete and undamaged. Restore one from a copy, "
            "or start a new run in another --output."
        )
    state = checkpoint.read_state(folder)
    values = checkpoint.keep_optimizer(options.flatten(config), state)
    checkpoint.check_fits(state, values, identity, folder, task)
    return folder
