"""From options to what is scored: task, prompt, examples and model. Everything is checked before weights load.

The same code sets up a run and its plan (``--plan``). For a plan, weights, tokenizer and data may be missing.

A decoder's prompt is chosen by `eval/prompt.py`. An encoder has none: its heads determine what it can be scored on
(`eval/encoder/task.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.architectures import Tokenizer as AnyTokenizer
from checkpoints_tools.heads import heads_for
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.load import check_fits_preset, load_pretrained
from checkpoints_tools.registry import ModelSpec, get_model_spec
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.decoder.fewshot import PromptSpec
from data.decoder.round_trip import check_labels
from data.decoder.tokenizer import Tokenizer
from data.encoder.samples import AnyTokenizer as EncoderTokenizer
from data.encoder.samples import check_stored_length
from data.errors import UserError
from data.example import Example
from data.readers.cut import TRAIN
from data.source import draw_to_score
from data.task_file import read_task
from data.tasks import Task, get_task
from data.trained_texts import hash_texts, read_trained_texts
from eval.config import EvalConfig
from eval.encoder.task import encoder_task, output_order
from eval.job import ScoringJob
from eval.output import default_output
from eval.prompt import load_split, new_prompt, stored_prompt, stored_task
from eval.stored_calibration import Calibration, calibration_of, check_can_fit
from eval.weights import Weights, check_carries_task, find_weights, head_labels, model_config, trained_length
from model.llama_heads import HeadedConfig
from model.meta import allocate, meta_device
from train.config import RECIPES
from train.planning.checkpoint import find_tokenizer
from train.training_data import CACHE_DIR

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSetup:
    """A checkpoint and its task, all names resolved; no weights.

    Attributes:
        tokenizer: None only in a plan for which it is missing.
        prompt: None for an encoder, and in a plan whose few-shot examples are missing.
        fine_tuned: the checkpoint contains its prompt or its heads.
        output_order: by field, the output of the stored head for each label of the task; empty if the orders are equal.
        max_length: longest input in tokens; see `eval.job.ScoringJob`.
        calibration: that of the checkpoint for this task and prompt; None: it has none, or there are no probabilities.
        assumed: a plan's assumptions about the model, one sentence each.
        missing: why a plan cannot count tokens; empty in a run.
    """

    options: EvalConfig
    spec: ModelSpec
    config: ModelConfig
    weights: Weights
    tokenizer: AnyTokenizer | None
    task: Task
    prompt: PromptSpec | None
    fine_tuned: bool
    output_order: dict[str, list[int]]
    max_length: int
    calibration: Calibration | None
    assumed: tuple[str, ...]
    missing: tuple[str, ...]

    def job_of(self, examples: Sequence[Example], cache_dir: Path | None) -> ScoringJob:
        """The job of answering these examples; only if nothing is missing."""
        assert self.tokenizer is not None, self.missing
        return ScoringJob(
            task=self.task,
            tokenizer=self.tokenizer,
            examples=examples,
            max_length=self.max_length,
            prompt=self.prompt.build(self.task) if self.prompt is not None else None,
            max_new_tokens=self.options.max_new_tokens,
            max_batch_tokens=self.options.batch_tokens,
            cache_dir=cache_dir,
            fine_tuned=self.fine_tuned,
            answer_tokens=self.prompt.answer_tokens if self.prompt is not None else None,
            decode=self.options.decode,
            temperatures=self.calibration.temperatures if self.calibration is not None else {},
            abstain_below=self.options.abstain_below,
        )

    @property
    def has_probabilities(self) -> bool:
        """Whether the labels of class fields get probabilities."""
        return self.spec.kind == "encoder" or self.options.decode == "labels"

    @property
    def with_probabilities(self) -> frozenset[str]:
        """The fields whose labels get probabilities."""
        kinds = {"class"} if self.has_probabilities else set()
        kinds |= {"multi"} if self.spec.kind == "encoder" else set()
        return frozenset(field.name for field in self.task.fields if field.kind in kinds)


@dataclass(frozen=True)
class ScoringSetup(ModelSetup):
    """What a run of ``eval.py`` scores.

    Attributes:
        examples: None only in a plan for which they are missing.
        limited: ``--limit`` left examples out.
        trained_on: how many of them have a text of the checkpoint's training data; None: it does not say.
        name: the run's name in tables.
    """

    examples: list[Example] | None
    limited: bool
    trained_on: int | None
    name: str
    output: Path

    @property
    def job(self) -> ScoringJob:
        """The scoring job; only if nothing is missing."""
        assert self.examples is not None, self.missing
        return self.job_of(self.examples, self.options.cache_dir or CACHE_DIR)


def open_scoring(options: EvalConfig) -> ScoringSetup:
    """Resolve the options; loads data and tokenizer, no weights.

    With ``--plan``, weights, tokenizer and data may be missing; the result says what is assumed instead.

    Raises:
        UserError: see `open_model`; missing or broken data.
    """
    found = open_model(options)
    _check_cut(found)
    if options.calibrate:
        check_can_fit(found.weights, options.split, found.fine_tuned)
    missing = list(found.missing)
    # A decoder's runs are named by their number of shots; an encoder has none.
    name, folder = found.weights.name, f"{found.weights.name}-{found.task.name}"
    if found.prompt is not None:
        name, folder = f"{name}, {len(found.prompt.shots)}-shot", f"{folder}-{len(found.prompt.shots)}shot"
    if options.decode != "free":
        name, folder = f"{name}, {options.decode}", f"{folder}-{options.decode}"
    if options.calibrate:
        folder += "-calibrate"
    if options.abstain_below is not None:
        folder += f"-abstain{options.abstain_below:g}"
    examples, limited = choose_examples(found.task, found.prompt, options, missing)
    return ScoringSetup(
        **vars(found)
        | {
            "examples": examples,
            "limited": limited,
            "trained_on": _count_trained_on(found, examples or []),
            "name": options.name or name,
            "output": options.output or default_output(folder, options.split, options.limit),
            "missing": tuple(missing),
        }
    )


def open_model(options: EvalConfig, labelled: bool = True) -> ModelSetup:
    """Find the checkpoint, its task and its prompt; loads the tokenizer, no weights.

    Args:
        labelled: the task's labelled examples are needed. Otherwise a user's own task is read from the checkpoint.

    Raises:
        UserError: a missing or damaged checkpoint, a checkpoint of another model or without a task, options that
            contradict the stored prompt.
    """
    assert options.checkpoint is not None
    spec, missing = get_model_spec(options.model), []
    weights = find_weights(options.checkpoint, needed=not options.plan)
    config, assumption = model_config(weights, spec, needed=not options.plan)
    check_carries_task(weights, spec.kind, options.new_prompt)
    assumed = [assumption] if assumption is not None else []
    order: dict[str, list[int]] = {}
    if options.plan:
        tokenizer = find_tokenizer(spec, weights.base)
    else:
        tokenizer = spec.architecture.load_tokenizer(tokenizer_folder(weights.base))
    if tokenizer is None:
        missing.append(f"no tokenizer in {weights.base}")
    elif not assumed:
        check_fits_preset(config, tokenizer, spec, weights.path, options.allow_mismatch if labelled else None)
    if spec.kind == "encoder":
        encoder = cast(HeadedConfig, config)
        if options.plan and options.task and (assumed or not encoder.heads):
            assumed.append(f"the heads that fine-tuning on {options.task} would add")
            task = get_task(options.task)
            config = spec.architecture.with_task(config, task, encoder.head, weights.path)
        else:
            labels = head_labels(weights, encoder)
            task = encoder_task(options.task, encoder, labels, weights.path, labelled)
            order = output_order(task, encoder, labels)
            if order:  # a head without a name gets the field's
                config = replace(encoder, heads=heads_for(task))
        prompt, fine_tuned = None, True
        max_length = _document_length(options, weights, encoder, cast(EncoderTokenizer | None, tokenizer))
    else:
        if options.tp > 1:
            from train.parallel.tensor_parallel import check_divides

            check_divides(config, options.tp)
        stored = stored_prompt(weights.path, options, labelled)
        if stored is not None:
            task, prompt = stored_task(options, stored, weights.path, labelled), stored
        else:
            task, prompt = new_prompt(options, spec, cast(Tokenizer | None, tokenizer), missing)
        if prompt is not None and tokenizer is not None:
            check_labels(task, prompt.build(task), cast(Tokenizer, tokenizer))
        fine_tuned = stored is not None
        trained_length = prompt.row_length if prompt is not None else None
        max_length = options.row_length or trained_length or RECIPES[spec.recipe]["row_length"]
    return ModelSetup(
        options=options,
        spec=spec,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        task=task,
        prompt=prompt,
        fine_tuned=fine_tuned,
        output_order=order,
        max_length=max_length,
        calibration=calibration_of(options, weights, task, prompt.build(task) if prompt is not None else None),
        assumed=tuple(assumed),
        missing=tuple(missing),
    )


def _check_cut(found: ModelSetup) -> None:
    """Refuse a split that another cut than that of training makes, or would make: it may have training examples."""
    task, split = found.task, found.options.split
    trained_on = read_task(found.weights.path)
    if trained_on is None or trained_on.name != task.name or task.custom is None:
        return
    if split not in task.custom.splits:
        where = "splits" if task.custom.dataset else "[files]"
        dev = " Or give --split dev." if "dev" in task.custom.splits else ""
        raise UserError(
            f"{task.custom.path}: no {split} examples, and {found.weights.path} was trained on the train files. Name "
            f"other labelled texts as {split} in {where}.{dev} To cut them from train, write [split] and train again."
        )
    if task.custom.cut is not None and split in task.custom.cut.fractions and task.split != trained_on.split:
        raise UserError(
            f"{found.weights.path} was trained with the split '{trained_on.split or 'none'}', and {task.custom.path} "
            f"has '{task.split}': its {split} examples may be among those that were trained on. Write [split] as it "
            f"was, or give the {split} examples as a file."
        )


def _count_trained_on(found: ModelSetup, examples: Sequence[Example]) -> int | None:
    """How many examples have a text of the checkpoint's training data, with a warning; None: it does not say."""
    known, task, split = read_trained_texts(found.weights.path), found.task, found.options.split
    if known is None:
        return None
    n = int(np.isin(hash_texts(example.text for example in examples), known).sum())
    if n and split != TRAIN:
        is_cut = task.custom is not None and task.custom.cut is not None and split in task.custom.cut.fractions
        why = (
            ". Either the table has changed, and [split] cuts it in other places, or it has equal texts. Score with "
            f"the table of the training, or name labelled texts that are new as {split} in [files]."
        )
        log.warning(
            "warning: %d of these %d %s texts (%.1f%%) are in the training data of %s: its answers to them say little "
            "of new text%s", n, len(examples), split, 100 * n / len(examples), found.weights.path,
            why if is_cut else ".",
        )  # fmt: skip
    return n


def choose_examples(
    task: Task, prompt: PromptSpec | None, options: EvalConfig, missing: list[str]
) -> tuple[list[Example] | None, bool]:
    """The split's examples that are not in the prompt; with ``--limit``, a seeded sample of them.

    Returns:
        the examples, and whether ``--limit`` left some out.
    """
    examples = load_split(task, options.split, options, missing)
    if examples is None:
        return None, False
    if prompt is not None:
        examples = _without_shots(examples, prompt)
    limited = options.limit is not None and options.limit < len(examples)
    if options.limit is not None and limited:
        examples = draw_to_score(examples, options.limit, options.seed)
    if not examples:
        raise UserError(f"no {options.split} examples of {task.dataset} to score.")
    return examples, limited


def _without_shots(examples: list[Example], prompt: PromptSpec) -> list[Example]:
    """Remove the prompt's few-shot examples: the prompt contains their answers."""
    in_prompt = {shot.id for shot in prompt.shots}
    kept = [example for example in examples if example.id not in in_prompt]
    if len(kept) < len(examples):
        log.info("not scored: %d examples whose answers are in the prompt", len(examples) - len(kept))
    return kept


def _document_length(
    options: EvalConfig, weights: Weights, config: HeadedConfig, tokenizer: EncoderTokenizer | None
) -> int:
    """Maximum tokens of an encoder's documents; longer ones are truncated.

    Raises:
        UserError: more than the model's position embeddings; or the stored length is too short for any document.
    """
    has_table = not architecture_of(config).is_decoder_with_heads  # positions of a decoder are computed
    if options.max_length is not None and options.max_length > config.max_position and has_table:
        raise UserError(
            f"--max_length {options.max_length}: {weights.path} has positions for documents of {config.max_position} "
            "tokens at most."
        )
    if options.max_length is not None:
        return options.max_length
    length = trained_length(weights, config)
    if tokenizer is not None and not weights.is_training:
        check_stored_length(length, tokenizer.frame, weights.path / "config.json")
    return length


def build_model(
    setup: ModelSetup, precision: str, device: torch.device, tensor_mesh: DeviceMesh | None = None
) -> nn.Module:
    """Build the model and load its weights: unsharded on ``device``, or tensor-parallel over ``tensor_mesh``.

    What only sharded tensors need is imported for them alone: it takes most of a second.
    """
    build = partial(setup.spec.build, setup.config)
    with meta_device():
        model = build().to(DTYPES[precision])
    if tensor_mesh is None:
        allocate(model, device)
    else:
        from train.parallel.tensor_parallel import apply_tensor_parallel

        apply_tensor_parallel(model, tensor_mesh)
        assert not list(model.buffers()), "to_empty leaves buffers uninitialized"
        model.to_empty(device=device)
    if setup.weights.is_training:
        from train.checkpointing.tensors import load_model

        load_model(setup.weights.path, model)
    else:
        load_pretrained(model, setup.weights.path, setup.spec, check_config=False)
        for head in cast(HeadedConfig, setup.config).heads if setup.spec.kind == "encoder" else ():
            if head.name in setup.output_order:
                _reorder_outputs(model.get_submodule(f"heads.{head.key}.out"), setup.output_order[head.name])
    if tensor_mesh is not None:
        from eval.decoder.tensor_parallel import to_plain_tensors

        model = to_plain_tensors(model, build, tensor_mesh)
    return model.eval()


@torch.no_grad()
def _reorder_outputs(layer: nn.Module, order: list[int]) -> None:
    """Number a head's outputs as the task numbers its labels."""
    for parameter in layer.parameters():
        parameter.copy_(parameter[order])
