"""From options to what is scored: task, prompt, examples and model. Everything is checked before weights load.

The same code sets up a run and its plan (``--plan``). For a plan, weights, tokenizer and data may be missing.

A checkpoint that was fine-tuned here contains its task (``task.json``) and, if it is a decoder, its prompt
(``prompt.json``: template, few-shot examples, row length). It is scored with exactly that prompt, and options that
contradict it are errors. Any other checkpoint gets the prompt that fine-tuning would have given it. So scores before
and after fine-tuning differ only because the weights differ.

An encoder has no prompt: its heads determine what it can be scored on (`eval/encoder/task.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from checkpoints_tools.encoder_config import heads_for
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.load import check_fits_preset, load_pretrained
from checkpoints_tools.registry import ApiModel, ModelConfig, ModelSpec, get_model_spec
from checkpoints_tools.registry import Tokenizer as AnyTokenizer
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.decoder.fewshot import PROMPT_FILE, PromptSpec, choose_shots, cut_shots
from data.decoder.round_trip import check_labels
from data.decoder.templates import Choice, pick_template
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.example import Example
from data.source import draw_to_score, load_examples
from data.task_file import read_task
from data.tasks import TASKS, Task, TokenField, get_task
from eval.config import EvalConfig
from eval.decoder.tensor_parallel import to_plain_tensors
from eval.encoder.task import encoder_task, needs_toml, output_order
from eval.job import ScoringJob
from eval.output import default_output
from eval.stored_calibration import Calibration, calibration_of, check_can_fit
from eval.weights import Weights, check_carries_task, find_weights, head_labels, model_config, trained_length
from model.encoder import EncoderConfig
from train.checkpointing.checkpoint import load_model
from train.config import RECIPES
from train.parallel.tensor_parallel import apply_tensor_parallel, check_divides
from train.planning.checkpoint import find_tokenizer
from train.setup import CACHE_DIR

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
        name: the run's name in tables.
    """

    examples: list[Example] | None
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
    return ScoringSetup(
        **vars(found)
        | {
            "examples": choose_examples(found.task, found.prompt, options, missing),
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
    check_carries_task(weights, spec.kind, options.new_prompt)
    config, assumption = model_config(weights, spec, needed=not options.plan)
    assumed = [assumption] if assumption is not None else []
    order: dict[str, list[int]] = {}
    if options.plan:
        tokenizer = find_tokenizer(spec, weights.base)
    else:
        tokenizer = spec.architecture.load_tokenizer(tokenizer_folder(weights.base))
    if tokenizer is None:
        missing.append(f"no tokenizer in {weights.base}")
    elif not assumed:
        check_fits_preset(config, tokenizer, spec, weights.path, options.allow_mismatch)
    if spec.kind == "encoder":
        encoder = cast(EncoderConfig, config)
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
        prompt, fine_tuned, max_length = None, True, _document_length(options, weights, encoder)
    else:
        check_divides(config, options.tp)
        stored = stored_prompt(weights.path, options)
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


def choose_examples(
    task: Task, prompt: PromptSpec | None, options: EvalConfig, missing: list[str]
) -> list[Example] | None:
    """The split's examples that are not in the prompt; with ``--limit``, a seeded sample of them."""
    examples = _load_examples(task, options.split, options, missing)
    if examples is None:
        return None
    if prompt is not None:
        examples = _without_shots(examples, prompt)
    if options.limit is not None and options.limit < len(examples):
        examples = draw_to_score(examples, options.limit, options.seed)
    if not examples:
        raise UserError(f"no {options.split} examples of {task.dataset} to score.")
    return examples


def _load_examples(task: Task, split: str, options: EvalConfig, missing: list[str]) -> list[Example] | None:
    """The task's examples. In a plan without ``--data``, missing ones are noted in ``missing``: returns None."""
    try:
        return load_examples(task, split, options.data)
    except UserError:
        if not options.plan or options.data is not None:
            raise
        missing += [text for text in [f"no data of {task.dataset}"] if text not in missing]
        return None


def _document_length(options: EvalConfig, weights: Weights, config: EncoderConfig) -> int:
    """Maximum tokens of an encoder's documents; longer ones are truncated.

    Raises:
        UserError: more than the model's position embeddings.
    """
    if options.max_length is not None and options.max_length > config.max_position:
        raise UserError(
            f"--max_length {options.max_length}: {weights.path} has positions for documents of {config.max_position} "
            "tokens at most."
        )
    return options.max_length or trained_length(weights, config)


def stored_prompt(folder: Path, options: EvalConfig) -> PromptSpec | None:
    """The prompt that the checkpoint was fine-tuned with; None if it has none or with ``--new_prompt``.

    Raises:
        UserError: an option contradicts it.
    """
    if options.new_prompt or not (folder / PROMPT_FILE).is_file():
        return None
    stored = PromptSpec.load(folder / PROMPT_FILE)
    task = get_task(options.task, options.joint_order or stored.joint_order).name if options.task else stored.task
    trained_on = read_task(folder)
    answers = {field.answer for field in trained_on.fields if isinstance(field, TokenField)} if trained_on else {"list"}
    lists = {"list" if answer == "bio" else answer for answer in answers}
    wanted = {
        "task": (task, stored.task),
        "shots": (options.shots, len(stored.shots)),
        "shots_choice": (options.shots_choice, stored.shots_choice),
        "shots_seed": (options.shots_seed, stored.seed),
        "shot_ids": (options.shot_ids or None, tuple(shot.id for shot in stored.shots)),
        "wording": (options.wording, stored.wording),
        "list_labels": (options.list_labels, stored.list_labels),
        "joint_order": (options.joint_order, stored.joint_order),
        "slot_answer": (options.slot_answer, " and ".join(sorted(lists)) or None),
        "slot_tags": (options.slot_tags, "bio" if "bio" in answers else "types"),
        "template": (None if options.template == "auto" else options.template, stored.template),
        "row_length": (options.row_length if stored.row_length else None, stored.row_length),
    }
    wrong = [
        f"--{name} {asked}, but the checkpoint was fine-tuned with {name} {had}"
        for name, (asked, had) in wanted.items()
        if asked is not None and asked != had
    ]
    if wrong:
        raise UserError(
            f"{'; '.join(wrong)} ({folder / PROMPT_FILE}). Omit the option to score with the stored prompt, "
            "or add --new_prompt to score with a prompt that it was not trained on."
        )
    return stored


def stored_task(options: EvalConfig, stored: PromptSpec, folder: Path, labelled: bool = True) -> Task:
    """The task that the checkpoint was fine-tuned on, with its label sets and the format of its answers.

    Raises:
        UserError: a task of the user's own without its TOML file, or one that has changed since.
    """
    trained_on = read_task(folder)
    if not options.task and stored.task not in TASKS:
        if labelled or trained_on is None:
            raise needs_toml(stored.task, trained_on)
        task = trained_on
    else:
        task = get_task(options.task or stored.task, stored.joint_order)
    formats = {field.name: field.answer for field in (trained_on or task).fields if isinstance(field, TokenField)}
    if trained_on is None:  # an older checkpoint: there were only lists
        formats = dict.fromkeys(formats, "list")
    fields = (replace(f, answer=formats.get(f.name, f.answer)) if isinstance(f, TokenField) else f for f in task.fields)
    task = replace(task, fields=tuple(fields))
    stored.build(task)  # raises if the task has changed and now gives another prompt
    return task


def new_prompt(
    options: EvalConfig, spec: ModelSpec | ApiModel, tokenizer: Tokenizer | None, missing: list[str]
) -> tuple[Task, PromptSpec | None]:
    """The prompt for a checkpoint without one: the model's template, few-shot examples by seed.

    Args:
        tokenizer: truncates the few-shot examples and determines the template; None only in a plan.
        missing: a plan adds a note here if the few-shot examples are missing; then there is no prompt.

    Raises:
        UserError: no task given, or too few training examples.
    """
    if not options.task:
        raise UserError(f"no --task given, and the checkpoint stores none. Known: {', '.join(TASKS)}, or a TOML file.")
    order = options.joint_order or "listing"
    task = get_task(options.task, order, options.slot_answer, options.slot_tags)
    shots: list[Example] = []
    choice, seed = (
        options.shots_choice or "balanced",
        options.seed if options.shots_seed is None else options.shots_seed,
    )
    if options.shots or options.shot_ids:
        examples = _load_examples(task, "train", options, missing)
        if examples is None:
            return task, None
        shots = choose_shots(examples, task, options.shots or 0, seed, choice, options.shot_ids)
        if tokenizer is not None:
            shots = cut_shots(shots, task, tokenizer, options.shot_tokens)
    if tokenizer is None and options.template == "auto":
        template = Choice(spec.chat_template, "the preset's: there is no tokenizer")
    else:  # as in training
        template = pick_template(options.template, cast(Tokenizer, tokenizer), spec.chat_template)
    prompt = PromptSpec(
        task=task.name,
        template=template.template,
        template_from=template.why,
        joint_order=order,
        shots=tuple(shots),
        seed=seed,
        shots_choice=choice,
        shot_tokens=options.shot_tokens,
        list_labels=options.list_labels is not False,
        wording=options.wording or "clean",
    )
    prompt.build(task)  # raises for an unknown template or a wording that the task does not have
    return task, prompt


def _without_shots(examples: list[Example], prompt: PromptSpec) -> list[Example]:
    """Remove the prompt's few-shot examples: the prompt contains their answers."""
    in_prompt = {shot.id for shot in prompt.shots}
    kept = [example for example in examples if example.id not in in_prompt]
    if len(kept) < len(examples):
        log.info("not scored: %d examples whose answers are in the prompt", len(examples) - len(kept))
    return kept


def build_model(
    setup: ModelSetup, precision: str, device: torch.device, tensor_mesh: DeviceMesh | None = None
) -> nn.Module:
    """Build the model and load its weights: unsharded on ``device``, or tensor-parallel over ``tensor_mesh``."""
    build = partial(setup.spec.build, setup.config)
    with torch.device("meta"):
        model = build().to(DTYPES[precision])
    if tensor_mesh is not None:
        apply_tensor_parallel(model, tensor_mesh)
    assert not list(model.buffers()), "to_empty leaves buffers uninitialized"
    model.to_empty(device=device)
    if setup.weights.is_training:
        load_model(setup.weights.path, model)
    else:
        load_pretrained(model, setup.weights.path, setup.spec, check_config=False)
        for head in setup.config.heads if isinstance(setup.config, EncoderConfig) else ():
            if head.name in setup.output_order:
                _reorder_outputs(model.get_submodule(f"heads.{head.key}.out"), setup.output_order[head.name])
    if tensor_mesh is not None:
        model = to_plain_tensors(model, build, tensor_mesh)
    return model.eval()


@torch.no_grad()
def _reorder_outputs(layer: nn.Module, order: list[int]) -> None:
    """Number a head's outputs as the task numbers its labels."""
    for parameter in layer.parameters():
        parameter.copy_(parameter[order])
