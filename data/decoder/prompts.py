"""Prompts: the paper's listings 1-12 as sections of text, in a chat template (`data.decoder.templates`).

A prompt is the same text around every document of a run:

    prefix    [chat opening] [system text] instruction, label list, examples, "Beginning of <<News>>"
    document  the example's own text
    suffix    "End of <<News>>", the cue "Label:", [chat closing]
    answer    `Task.write(labels, words)` and the end-of-turn token

Each section is tokenized separately and the ids are concatenated. So the prefix has the same ids for every document,
and truncating a document moves no boundary.

There are two wordings. "clean" is that of the listings with their mistakes corrected ("Bellow", "classifity", quotation
marks that never open). Two things differ: "utter text" is "utterance text", and all lists of labels have one format.
"paper" has the listings word by word (`data.decoder.listings`). The listings have no answers of spans and of any number
of labels (`data.answers`): their wording is ours. Few-shot examples are chosen in `data.decoder.fewshot`.
"""

from __future__ import annotations

from collections.abc import Sequence

from data.answers import Spans, TagList, TypeList
from data.decoder import listings
from data.decoder.templates import INST_WRITTEN, LOCAL_TEMPLATES, TEMPLATES, Prompt, Turn
from data.errors import UserError, nearest
from data.example import Example
from data.tasks import ClassField, Field, MultiField, Task, TokenField

WORDINGS = ("clean", "paper")

_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def build_prompt(
    task: Task, template: str, shots: Sequence[Example] = (), list_labels: bool = True, wording: str = "clean"
) -> Prompt:
    """The prompt of a task in a chat template, a key of `TEMPLATES`. The other arguments are those of `build_turn`.

    Where a listing has ``[INST]`` in its text, it stands for that of Llama 2's template.

    Raises:
        UserError: unknown template; see `build_turn`.
    """
    if template not in TEMPLATES:
        raise UserError(f"Unknown chat template '{template}'.{nearest(template, LOCAL_TEMPLATES)}")
    turn, chat = build_turn(task, shots, list_labels, wording), TEMPLATES[template]
    if wording == "paper" and turn.before.startswith("[INST]"):
        chat = INST_WRITTEN.get(template, chat)
    return chat.build(turn)


def check_wording(wording: str, task: Task, list_labels: bool = True) -> None:
    """Raise UserError unless a task's prompt has this wording."""
    if wording not in WORDINGS:
        raise UserError(f"Unknown wording '{wording}'.{nearest(wording, WORDINGS)}")
    if wording == "clean":
        return
    slots = [field.answer for field in task.fields if isinstance(field, TokenField)]
    why = ""
    if task.custom is not None or task.name not in listings.LISTINGS:
        why = f"the paper has no listing for task {task.name}"
    elif not list_labels:
        why = "the paper's listings list the labels, and list_labels is off"
    elif "spans" in slots:
        why = "the paper's listings ask for a list of labels, and slot_answer is spans"
    elif task.name == "20ng_joint" and isinstance(task.fields[0], ClassField) and len(task.fields[0].labels) == 20:
        why = "the paper's listings have the seven-class task first, and joint_order is section"
    if why:
        raise UserError(f"wording paper: {why}. Give --wording clean, or change that.")


def build_turn(task: Task, shots: Sequence[Example] = (), list_labels: bool = True, wording: str = "clean") -> Turn:
    """The text of a task's prompt (listings 1, 2, 5, 7, 9, 11; with shots: 3, 4, 6, 8, 10, 12).

    Args:
        shots: few-shot examples with their labels, shown in this order.
        list_labels: False omits the lists of labels, which all listings have. Fine-tuning teaches the labels anyway,
            and the lists are four fifths of the prompt of MASSIVE's joint task.
        wording: one of `WORDINGS`.

    Raises:
        UserError: see `check_wording`.
    """
    check_wording(wording, task, list_labels)
    examples = "\n\n".join(_shot(task, shot) for shot in shots)
    if wording == "paper":
        return _listing(task, examples)
    opening, instruction = _opening(task), _instruction(task, list_labels)
    system = opening if task.opening_is_system else ""
    sections = [instruction if system else f"{opening}\n{instruction}"]
    if shots:
        sections.append(f"Below are some examples with the correct {_what(task)}:")
        sections.append(f"Beginning of <<Examples>>\n{examples}\nEnd of <<Examples>>")
    sections.append(f"Output the {_answer_noun(task)} only and absolutely nothing else.\nNow it is your turn.")
    sections.append(f"Beginning of <<{task.document_name}>>\n")
    after = f"\nEnd of <<{task.document_name}>>\n\n{_cue(task)}"
    return Turn(system, "\n\n".join(sections), after)


def _listing(task: Task, examples: str) -> Turn:
    """The task's listing. Its document and examples are inserted last, because they may contain placeholders."""
    listing = listings.LISTINGS[task.name]
    text = listing.text(with_shots=bool(examples))
    for field in task.fields:
        labels = _labels(field) if _outside(field) in (None, "Other") else f"{_labels(field)}, {_outside(field)!r}"
        own = listings.SLOTS if isinstance(field, TokenField) else listings.INTENTS
        for placeholder in (listings.LABELS, own):
            text = text.replace(placeholder, f"[{labels}]")
    before, after = text.split(f"{{{task.document_name}}}")
    return Turn(listing.system, before.replace(listings.EXAMPLES, examples), after)


def _labels(field: Field) -> str:
    return ", ".join(repr(label) for label in field.format.listed)


def label_lists(task: Task) -> list[str]:
    """The lists of labels as the prompt has them, unless ``list_labels`` is off."""
    return [_labels(field) for field in task.fields]


def _outside(field: Field) -> str | None:
    """What a list has for a word outside entities; None if the answer is no such list."""
    return field.format.outside if isinstance(field, TokenField) and isinstance(field.format, TypeList) else None


def _number(n: int) -> str:
    return _NUMBERS[n - 2] if n - 2 < len(_NUMBERS) else str(n)


def _opening(task: Task) -> str:
    noun = task.document_noun
    opening = f"You will be given {'an' if noun[0] in 'aeiou' else 'a'} {noun}."
    if task.instruction:
        opening += f"\n{task.instruction}"
    if not task.is_joint:
        return opening
    number = _number(len(task.fields))
    blank = ", ".join(f'"{key}": "{key}_label"' for key in task.keys)
    return (
        f"{opening}\nYou are given {number} classification tasks.\n"
        f"You should output the result as {number} json fields as {{{blank}}}"
    )


def _instruction(task: Task, listed: bool) -> str:
    noun = task.document_noun
    if not task.is_joint:
        (field,) = task.fields
        return f"Your task is to {_verb(field, noun, listed)}.{_slot_rule(field, listed, newline=True)}"
    sentences = []
    for i, (key, field) in enumerate(zip(task.keys, task.fields, strict=True)):
        ordinal = _ORDINALS[i] if i < len(_ORDINALS) else f"{i + 1}th"
        # Only the 20NG listings have this; with a system text, which gives the answer's format, it would be repeated.
        change = "" if task.opening_is_system else f" and change {key}_label to {_right(field, listed)}"
        sentences.append(
            f"In the {ordinal} task, given the {noun}, you are asked to {_verb(field, noun, listed)}{change}."
            f"{_slot_rule(field, listed)}"
        )
    return "\n".join(sentences)


def _verb(field: Field, noun: str, listed: bool) -> str:
    if isinstance(field.format, Spans):  # ours: the paper's listings have only lists
        which = f"words in the {noun} that have one of the labels in the list [{_labels(field)}]"
        return f"find the {which if listed else f'{field.name} in the {noun}'}"
    if isinstance(field, MultiField):  # ours too
        which = f"in the list [{_labels(field)}]" if listed else f"of {field.name}"
        return f"find all the labels {which} that are correct for it"
    what = "it" if isinstance(field, ClassField) else f"each of the words in the {noun}"
    if listed:
        return f"classify {what} as one of the labels in the list [{_labels(field)}]"
    return f"classify {what} by {field.name}" + (" in BIO tags" if isinstance(field.format, TagList) else "")


def _right(field: Field, listed: bool) -> str:
    if isinstance(field, ClassField):
        return "the correct label in the list" if listed else "the correct label"
    return "the list of the correct labels"


def _slot_rule(field: Field, listed: bool, newline: bool = False) -> str:
    if isinstance(field, ClassField):
        return ""
    gap = "\n" if newline else " "
    if isinstance(field.format, Spans):
        return f'{gap}Write each as "label: words" into the slots list, in the order of the text.{gap}' + (
            "If there are none, the list is empty."
        )
    if isinstance(field, MultiField):
        order = ", in the order of the list above" if listed else ""
        return (
            f"{gap}There can be several, or none. Put all of them in a JSON list{order}.{gap}"
            "If there are none, the list is empty."
        )
    which = "labels in the list" if listed else "labels"
    return (
        f"{gap}If none of the {which} are correct, then output the label for that word as "
        f'"{_outside(field)}".{gap}Put all the labels in the slots list.'
    )


def _what(task: Task) -> str:
    bare_slots = not task.is_joint and isinstance(task.fields[0], TokenField)
    return "slot filling classification" if bare_slots else "classification"


def _answer_noun(task: Task) -> str:
    if task.is_joint:
        return f"{_number(len(task.fields))} json fields"
    return {"class": "label", "multi": "list of labels", "token": "Slots"}[task.fields[0].kind]


def _cue(task: Task) -> str:
    if task.is_joint:
        return "Output:"
    return {"class": "Label:", "multi": "Labels:", "token": "Slots:"}[task.fields[0].kind]


def _shot(task: Task, shot: Example) -> str:
    """A few-shot example, in the same format as the real document, with the answer after the cue."""
    name = task.document_name
    return (
        f"Beginning of <<{name}>>\n{shot.text}\nEnd of <<{name}>>\n\n{_cue(task)} {task.write(shot.labels, shot.words)}"
    )
