"""From options to what is to be scored: task, prompt, examples and model; everything is checked before weights load.

A checkpoint that was fine-tuned here brings ``prompt.json``: task, template, few-shot examples and row length. It is
scored with exactly that prompt, and options that contradict it are errors. Any other checkpoint gets the prompt that
fine-tuning would have given it, so that "before" and "after" differ in the weights alone.

An encoder has no prompt: its heads say what it can be scored on (`eval/encoder/task.py`).
"""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from checkpoints_tools.encoder_config import read_head_labels, read_max_length
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.json_files import read_json
from checkpoints_tools.load import check_family, check_fits_preset, load_pretrained, open_checkpoint
from checkpoints_tools.registry import ModelSpec, get_model_spec
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.decoder.fewshot import PROMPT_FILE, PromptSpec, choose_shots, cut_shots
from data.decoder.prompts import template_for
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.encoder.samples import LONGEST_DOCUMENT
from data.encoder.tokenizer import Tokenizer as EncoderTokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from data.example import Example
from data.source import load_examples
from data.tasks import TASKS, Task, get_task
from eval.config import EvalConfig
from eval.decoder.tensor_parallel import to_plain_tensors
from eval.encoder.task import encoder_task, from_label_sets
from model.encoder import EncoderConfig, Head
from model.llama import LlamaConfig, RopeScaling
from train.checkpointing.checkpoint import RUN_FILE, TRAINING_FILE, load_model, read_state, what_is_missing
from train.config import RECIPES
from train.parallel.tensor_parallel import apply_tensor_parallel, check_divides

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """Where weights come from.

    Attributes:
        path: what holds them: a Hugging Face folder, or a training checkpoint.
        base: the Hugging Face folder with the tokenizer; for a training checkpoint, the one its run started from.
        is_training: ``path`` is a training checkpoint.
    """

    path: Path
    base: Path
    is_training: bool

    @property
    def name(self) -> str:
        """What tells this folder from its like: a run's export is called after the run."""
        parts = [part for part in self.path.resolve().parts if part not in ("checkpoints", "runs")]
        generic = self.is_training or parts[-1] in ("export", "best")
        return "-".join(parts[-2:]) if generic else parts[-1]


@dataclass(frozen=True)
class EvalPlan:
    """What a run of ``eval.py`` will do, all names resolved.

    Attributes:
        prompt: None for an encoder.
        row_length: longest input in tokens; for an encoder longest document.
    """

    spec: ModelSpec
    config: LlamaConfig | EncoderConfig
    weights: Weights
    tokenizer: Tokenizer | EncoderTokenizer
    task: Task
    prompt: PromptSpec | None
    fine_tuned: bool
    examples: list[Example]
    row_length: int
    name: str
    output: Path


def make_plan(options: EvalConfig) -> EvalPlan:
    """Resolve the options; loads data and tokenizer, no weights.

    Raises:
        UserError: a missing or damaged checkpoint, one that is not the model's, options that contradict the stored
            prompt, missing or broken data.
    """
    assert options.checkpoint is not None
    spec = get_model_spec(options.model)
    weights = find_weights(options.checkpoint)
    config = _model_config(weights, spec)
    is_encoder = isinstance(config, EncoderConfig)
    check_family(config, spec, weights.path)
    tokenizer = load_encoder_tokenizer(weights.base) if is_encoder else load_tokenizer(tokenizer_folder(weights.base))
    check_fits_preset(config, tokenizer, spec, weights.path, options.allow_mismatch)
    if options.tp > 1:
        check_divides(config, options.tp)
    if is_encoder:
        labels = _head_labels(weights, config)
        task, prompt, fine_tuned = encoder_task(options.task, config, labels, weights.path), None, True
        row_length = _document_length(options, weights, config)
    else:
        stored = stored_prompt(weights.path, options)
        task, prompt = (stored_task(options, stored), stored) if stored else new_prompt(options, spec, tokenizer)
        fine_tuned = stored is not None
        row_length = options.row_length or prompt.row_length or RECIPES[spec.recipe]["row_length"]
    examples = load_examples(task, options.split, options.data)
    if prompt is not None:
        examples = _without_shots(examples, prompt)
    if options.limit is not None and options.limit < len(examples):
        chosen = random.Random(options.seed).sample(range(len(examples)), options.limit)
        examples = [examples[i] for i in sorted(chosen)]
    if not examples:
        raise UserError(f"no {options.split} examples of {task.dataset} to score.")
    # Shots tell a decoder's runs apart; an encoder has none.
    name, folder = weights.name, f"{weights.name}-{task.name}"
    if prompt is not None:
        name, folder = f"{name}, {len(prompt.shots)}-shot", f"{folder}-{len(prompt.shots)}shot"
    return EvalPlan(
        spec=spec,
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        task=task,
        prompt=prompt,
        fine_tuned=fine_tuned,
        examples=examples,
        row_length=row_length,
        name=options.name or name,
        output=options.output or Path("runs/eval") / folder,
    )


def find_weights(folder: Path) -> Weights:
    """Recognize what kind of checkpoint a folder is.

    Raises:
        UserError: an incomplete training checkpoint; a run folder is told which of its checkpoints can be scored.
    """
    if (folder / RUN_FILE).is_file():
        missing = what_is_missing(folder)
        if missing is not None:
            raise UserError(f"training checkpoint {folder} is incomplete ({missing}). Score another, or the export.")
        base = Path(read_state(folder).config["checkpoint"])
        if not base.is_dir():
            raise UserError(
                f"training checkpoint {folder} holds weights only; its tokenizer is that of {base}, which its run "
                "started from and which is not there. Put it back, or score the run's export."
            )
        return Weights(folder, base, is_training=True)
    if not (folder / "config.json").is_file() and (folder / "checkpoints").is_dir():
        inside = [
            p for p in (folder / "export", folder / "best", *sorted(folder.glob("checkpoints/step_*"))) if p.is_dir()
        ]
        listed = ", ".join(map(str, inside)) or "none yet"
        raise UserError(f"'{folder}' is a run folder. Give --checkpoint one of its checkpoints: {listed}.")
    return Weights(folder, folder, is_training=False)


def trained_with(weights: Weights) -> dict[str, str] | None:
    """The optimizer that made the weights, and why ``--optim auto`` chose it, if it did; None where nothing says so."""
    if weights.is_training:
        state = read_state(weights.path)
        options, reason = state.config, state.optim_reason
    elif (weights.path / TRAINING_FILE).is_file():
        found = read_json(weights.path / TRAINING_FILE)
        options, reason = found.get("options"), found.get("optim_reason", "")
        if not isinstance(options, dict):
            return None  # another program's file of this name
    else:
        return None
    return {"optim": options.get("optim", ""), "optim_reason": reason}


def _model_config(weights: Weights, spec: ModelSpec) -> LlamaConfig | EncoderConfig:
    """What the weights' own folder says; checks that it is whole."""
    if not weights.is_training:
        return open_checkpoint(weights.base, spec).config
    numbers = dict(read_state(weights.path).identity["model_config"])
    if "heads" in numbers:
        return EncoderConfig(**{**numbers, "heads": tuple(Head(**head) for head in numbers["heads"])})
    if numbers["rope_scaling"] is not None:
        numbers["rope_scaling"] = RopeScaling(**numbers["rope_scaling"])
    return LlamaConfig(**numbers)


def _head_labels(weights: Weights, config: EncoderConfig) -> dict[str, list[str]]:
    """By head, what each of its outputs stands for."""
    if weights.is_training:
        return from_label_sets(config.heads, read_state(weights.path).labels)
    return read_head_labels(read_json(weights.path / "config.json"))


def _document_length(options: EvalConfig, weights: Weights, config: EncoderConfig) -> int:
    """Tokens that an encoder's documents are cut to.

    Raises:
        UserError: more than the model has positions for.
    """
    if options.max_length is not None and options.max_length > config.max_position:
        raise UserError(
            f"--max_length {options.max_length}: {weights.path} has positions for documents of {config.max_position} "
            "tokens at most."
        )
    if weights.is_training:
        trained = read_state(weights.path).config
        stored, row_length = trained["max_length"], trained["row_length"]
    else:
        stored, row_length = read_max_length(read_json(weights.path / "config.json")), LONGEST_DOCUMENT
    return options.max_length or stored or min(LONGEST_DOCUMENT, config.max_position, row_length)


def stored_prompt(folder: Path, options: EvalConfig) -> PromptSpec | None:
    """The prompt the checkpoint was fine-tuned with, unless it has none or a new one is asked for.

    Raises:
        UserError: an option contradicts it.
    """
    if options.new_prompt or not (folder / PROMPT_FILE).is_file():
        return None
    stored = PromptSpec.load(folder / PROMPT_FILE)
    task = get_task(options.task, options.joint_order or stored.joint_order).name if options.task else stored.task
    wanted = {
        "task": (task, stored.task),
        "shots": (options.shots, len(stored.shots)),
        "list_labels": (options.list_labels, stored.list_labels),
        "joint_order": (options.joint_order, stored.joint_order),
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
            f"{'; '.join(wrong)} ({folder / PROMPT_FILE}). Leave the option away to score it on the prompt it knows, "
            "or add --new_prompt to score it on one it never saw."
        )
    return stored


def stored_task(options: EvalConfig, stored: PromptSpec) -> Task:
    if not options.task and stored.task not in TASKS:
        raise UserError(
            f"the checkpoint was fine-tuned on a task of your own, '{stored.task}': give its TOML file with --task."
        )
    task = get_task(options.task or stored.task, stored.joint_order)
    stored.build(task)  # a task that gives another prompt by now shows here
    return task


def new_prompt(options: EvalConfig, spec: ModelSpec, tokenizer: Tokenizer) -> tuple[Task, PromptSpec]:
    """The prompt for a checkpoint without one: the model's template, few-shot examples by seed.

    Raises:
        UserError: no task given, or not enough training examples to choose from.
    """
    if not options.task:
        raise UserError(f"no --task given, and the checkpoint stores none. Known: {', '.join(TASKS)}, or a TOML file.")
    order = options.joint_order or "listing"
    task = get_task(options.task, order)
    shots: list[Example] = []
    if options.shots:
        chosen = choose_shots(load_examples(task, "train", options.data), task, options.shots, options.seed)
        shots = cut_shots(chosen, tokenizer, options.shot_tokens)
    template = options.template
    if template == "auto":  # as in training
        template = template_for(tokenizer, spec.chat_template)
    prompt = PromptSpec(
        task=task.name,
        template=template,
        joint_order=order,
        shots=tuple(shots),
        seed=options.seed,
        shot_tokens=options.shot_tokens,
        list_labels=options.list_labels is not False,
    )
    prompt.build(task)  # an unknown template shows here
    return task, prompt


def _without_shots(examples: list[Example], prompt: PromptSpec) -> list[Example]:
    """Scoring training examples: those whose answers stand in the prompt are no test of anything."""
    shown = {shot.id for shot in prompt.shots}
    kept = [example for example in examples if example.id not in shown]
    if len(kept) < len(examples):
        log.info("not scored: %d examples that the prompt shows with their answers", len(examples) - len(kept))
    return kept


def build_model(
    plan: EvalPlan, precision: str, device: torch.device, tensor_mesh: DeviceMesh | None = None
) -> nn.Module:
    """The model with its weights, whole on this device, or split over the ranks of ``tensor_mesh``."""
    build = partial(plan.spec.build, plan.config)
    with torch.device("meta"):
        model = build().to(DTYPES[precision])
    if tensor_mesh is not None:
        apply_tensor_parallel(model, tensor_mesh)
    assert not list(model.buffers()), "to_empty leaves buffers as garbage"
    model.to_empty(device=device)
    if plan.weights.is_training:
        load_model(plan.weights.path, model)
    else:
        load_pretrained(model, plan.weights.path, plan.spec, check_config=False)
    if tensor_mesh is not None:
        model = to_plain_tensors(model, build, tensor_mesh)
    return model.eval()
