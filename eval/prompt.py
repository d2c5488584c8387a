"""The prompt with which a decoder is scored, and the task that goes with it.

A checkpoint that was fine-tuned here contains its task (``task.json``) and its prompt (``prompt.json``: template,
few-shot examples, row length). It is scored with exactly that prompt, and options that contradict it are errors. Any
other checkpoint gets the prompt that fine-tuning would have given it. So scores before and after fine-tuning differ
only because the weights differ.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from checkpoints_tools.registry import ApiModel, ModelSpec
from data.decoder.fewshot import PROMPT_FILE, PromptSpec, choose_shots, cut_shots
from data.decoder.templates import Choice, pick_template
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.example import Example
from data.source import load_examples
from data.task_file import read_task
from data.tasks import TASKS, Task, TokenField, get_task
from eval.config import EvalConfig
from eval.encoder.task import needs_toml


def stored_prompt(folder: Path, options: EvalConfig, labelled: bool = True) -> PromptSpec | None:
    """The prompt that the checkpoint was fine-tuned with; None if it has none or with ``--new_prompt``.

    Args:
        labelled: as of `eval.setup.open_model`; only a program that scores has ``--new_prompt``.

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
        other = ", or add --new_prompt to score with a prompt that it was not trained on" if labelled else ""
        raise UserError(
            f"{'; '.join(wrong)} ({folder / PROMPT_FILE}). Omit the option to use the stored prompt{other}."
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
    stored.build(task, scored=labelled)  # raises if the task has changed and now gives another prompt
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
        examples = load_split(task, "train", options, missing)
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


def load_split(task: Task, split: str, options: EvalConfig, missing: list[str]) -> list[Example] | None:
    """The task's examples. In a plan without ``--data``, a built-in task may have none: ``missing`` says so."""
    try:
        return load_examples(task, split, options.data)
    except UserError:
        if not options.plan or options.data is not None or task.custom is not None:
            raise
        missing += [text for text in [f"no data of {task.dataset}"] if text not in missing]
        return None
