"""Prompts: the paper's listings 1-12 as sections of text and special tokens, in each model family's chat template.

A prompt is the same text around every document of a run:

    prefix    [chat opening] [system text] instruction, label list, examples, "Beginning of <<News>>"
    document  the example's own text
    suffix    "End of <<News>>", the cue "Label:", [chat closing]
    answer    `Task.write(labels, words)` and the end-of-turn token

Each section is tokenized separately and the ids are concatenated. So the prefix has the same ids for every document,
and truncating a document moves no boundary. The wording is that of the listings, with their mistakes corrected
("Bellow", "classifity", quotation marks that never open). Two things differ: "utter text" is "utterance text", and all
lists of labels have one format. The listings have no answers of spans (`data.answers`): their wording is ours. Few-shot
examples are chosen in `data.decoder.fewshot`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from data.decoder.tokenizer import Tokenizer
from data.errors import UserError, nearest
from data.example import Example
from data.tasks import ClassField, Field, Task, TokenField

# --- pieces -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """Ordinary text: it is never tokenized to a special token."""

    text: str


@dataclass(frozen=True)
class Special:
    """A special token by its text, or by its role: "bos" (omitted if the tokenizer has none) or "eos"."""

    name: str


Piece = Text | Special


@dataclass(frozen=True)
class Prompt:
    """The sections around the document and the answer.

    Attributes:
        prefix: everything up to the document.
        suffix: everything between the document and the answer.
        end: the end-of-turn token that follows the answer; a decoder stops at it.
        lead: the text between the template's last token and the answer. It is tokenized with the answer, because
            tokenizers join a space to the word after it.
    """

    prefix: tuple[Piece, ...]
    suffix: tuple[Piece, ...]
    end: tuple[Piece, ...]
    lead: str = ""

    def answer(self, text: str) -> tuple[Piece, ...]:
        """The last section: what the model is trained to write after the suffix, including the end of turn."""
        return (Text(self.lead + text), *self.end)


def encode_pieces(pieces: Iterable[Piece], tokenizer: Tokenizer) -> list[int]:
    """Token ids of pieces, concatenated.

    Raises:
        UserError: the tokenizer lacks a special token: the chat template is for another model.
    """
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, Text):
            ids += tokenizer.encode(piece.text)
        elif piece.name == "bos":
            ids += [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        else:
            i = tokenizer.eos_id if piece.name == "eos" else tokenizer.special.get(piece.name)
            if i is None:
                raise UserError(
                    f"The chat template needs the special token {piece.name!r}, which this tokenizer does not have. "
                    f"Choose the template of this model's family, or 'plain'. Known: {', '.join(TEMPLATES)}."
                )
            ids.append(i)
    return ids


def join_texts(pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """Join adjacent texts, so that they are tokenized together, and drop empty ones."""
    joined: list[Piece] = []
    for piece in pieces:
        if isinstance(piece, Text) and joined and isinstance(joined[-1], Text):
            joined[-1] = Text(joined[-1].text + piece.text)
        elif piece != Text(""):
            joined.append(piece)
    return tuple(joined)


# --- chat templates ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Turn:
    """A prompt's text, before a chat template surrounds it: ``system``, then ``before`` + document + ``after``.

    ``system`` is empty where a listing has no system text.
    """

    system: str
    before: str
    after: str


@dataclass(frozen=True)
class ChatTemplate:
    """How a model family writes one user turn, with or without system text, and the answer to it.

    ``opening + [system_opening + system text + system_closing] + user_opening + user text + closing + lead + answer
    + end``. ``default_system`` is used where a prompt has no system text.
    """

    opening: tuple[Piece, ...]
    system_opening: tuple[Piece, ...]
    system_closing: tuple[Piece, ...]
    user_opening: tuple[Piece, ...]
    closing: tuple[Piece, ...]
    end: tuple[Piece, ...]
    lead: str = ""
    default_system: str = ""

    def build(self, turn: Turn) -> Prompt:
        """The sections of a user turn."""
        system = turn.system or self.default_system
        head = (*self.system_opening, Text(system), *self.system_closing) if system else ()
        return Prompt(
            prefix=join_texts((*self.opening, *head, *self.user_opening, Text(turn.before))),
            suffix=join_texts((Text(turn.after), *self.closing)),
            end=self.end,
            lead=self.lead,
        )


def _header(role: str) -> tuple[Piece, ...]:
    return Special("<|start_header_id|>"), Text(role), Special("<|end_header_id|>"), Text("\n\n")


def _chatml(default_system: str = "") -> ChatTemplate:
    return ChatTemplate(
        opening=(),
        system_opening=(Special("<|im_start|>"), Text("system\n")),
        system_closing=(Special("<|im_end|>"), Text("\n")),
        user_opening=(Special("<|im_start|>"), Text("user\n")),
        closing=(Special("<|im_end|>"), Text("\n"), Special("<|im_start|>"), Text("assistant\n")),
        end=(Special("<|im_end|>"),),
        default_system=default_system,
    )


MESSAGES = "messages"

TEMPLATES: dict[str, ChatTemplate] = {
    # The space before [INST] is SentencePiece's dummy space, which the reference leaves in place there.
    "llama2": ChatTemplate(
        opening=(Special("<s>"), Text(" [INST] ")),
        system_opening=(Text("<<SYS>>\n"),),
        system_closing=(Text("\n<</SYS>>\n\n"),),
        user_opening=(),
        closing=(Text(" [/INST]"),),
        end=(Special("</s>"),),
        lead=" ",
    ),
    "llama3": ChatTemplate(
        opening=(Special("<|begin_of_text|>"),),
        system_opening=_header("system"),
        system_closing=(Special("<|eot_id|>"),),
        user_opening=_header("user"),
        closing=(Special("<|eot_id|>"), *_header("assistant")),
        end=(Special("<|eot_id|>"),),
    ),
    "chatml": _chatml(),
    # SmolLM2's template is ChatML with this system text if a conversation has none.
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    # For base models: only the text.
    "plain": ChatTemplate(
        opening=(Special("bos"),),
        system_opening=(),
        system_closing=(Text("\n"),),
        user_opening=(),
        closing=(),
        end=(Special("eos"),),
        lead=" ",
    ),
    # For a server that has the model's own template (`eval/api`): each special token begins a message of that role.
    MESSAGES: ChatTemplate(
        opening=(),
        system_opening=(Special("system"),),
        system_closing=(),
        user_opening=(Special("user"),),
        closing=(),
        end=(),
    ),
}


def template_for(tokenizer: Tokenizer, otherwise: str = "plain") -> str:
    """The name of the chat template that a checkpoint was trained with, guessed from its tokenizer.

    The guess is from the tokenizer's Jinja template or, if it has none, from its special tokens. ``otherwise`` is
    returned if neither is conclusive: Llama 2's base and chat models share one tokenizer.
    """
    source, special = tokenizer.chat_template, tokenizer.special
    if "<|start_header_id|>" in source or (not source and "<|eot_id|>" in special):
        return "llama3"
    if "<|im_start|>" in source or (not source and "<|im_start|>" in special):
        return "smollm2" if TEMPLATES["smollm2"].default_system in source else "chatml"
    return "llama2" if "[INST]" in source else otherwise


def to_messages(prompt: Prompt, document: str) -> list[dict[str, str]]:
    """The messages for a chat API: a prompt of the template `MESSAGES` around a document."""
    messages: list[dict[str, str]] = []
    for piece in (*prompt.prefix, Text(document), *prompt.suffix):
        if isinstance(piece, Special):
            messages.append({"role": piece.name, "content": ""})
        else:
            messages[-1]["content"] += piece.text
    return messages


# --- wording ----------------------------------------------------------------------------------------------------------

_NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def build_prompt(task: Task, template: str, shots: Sequence[Example] = (), list_labels: bool = True) -> Prompt:
    """The prompt of a task in a chat template, a key of `TEMPLATES`. The other arguments are those of `build_turn`.

    Raises:
        UserError: unknown template.
    """
    if template not in TEMPLATES:
        raise UserError(f"Unknown chat template '{template}'.{nearest(template, TEMPLATES)}")
    return TEMPLATES[template].build(build_turn(task, shots, list_labels))


def build_turn(task: Task, shots: Sequence[Example] = (), list_labels: bool = True) -> Turn:
    """The text of a task's prompt (listings 1, 2, 5, 7, 9, 11; with shots: 3, 4, 6, 8, 10, 12).

    Args:
        shots: few-shot examples with their labels, shown in this order.
        list_labels: False omits the lists of labels, which all listings have. Fine-tuning teaches the labels anyway,
            and the lists are four fifths of the prompt of MASSIVE's joint task.
    """
    opening, instruction = _opening(task), _instruction(task, list_labels)
    system = opening if task.opening_is_system else ""
    sections = [instruction if system else f"{opening}\n{instruction}"]
    if shots:
        sections.append(f"Below are some examples with the correct {_what(task)}:")
        listed = "\n\n".join(_shot(task, shot) for shot in shots)
        sections.append(f"Beginning of <<Examples>>\n{listed}\nEnd of <<Examples>>")
    sections.append(f"Output the {_answer_noun(task)} only and absolutely nothing else.\nNow it is your turn.")
    sections.append(f"Beginning of <<{task.document_name}>>\n")
    after = f"\nEnd of <<{task.document_name}>>\n\n{_cue(task)}"
    return Turn(system, "\n\n".join(sections), after)


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


def _is_spans(field: Field) -> bool:
    return isinstance(field, TokenField) and field.answer == "spans"


def _verb(field: Field, noun: str, listed: bool) -> str:
    labels = ", ".join(repr(label) for label in field.labels)
    if _is_spans(field):  # ours: the paper's listings have only lists
        which = f"words in the {noun} that have one of the labels in the list [{labels}]"
        return f"find the {which if listed else f'{field.name} in the {noun}'}"
    what = "it" if isinstance(field, ClassField) else f"each of the words in the {noun}"
    return f"classify {what} " + (f"as one of the labels in the list [{labels}]" if listed else f"by {field.name}")


def _right(field: Field, listed: bool) -> str:
    if isinstance(field, ClassField):
        return "the correct label in the list" if listed else "the correct label"
    return "the list of the correct labels"


def _slot_rule(field: Field, listed: bool, newline: bool = False) -> str:
    if isinstance(field, ClassField):
        return ""
    gap = "\n" if newline else " "
    if _is_spans(field):
        return f'{gap}Write each as "label: words" into the slots list, in the order of the text.{gap}' + (
            "If there are none, the list is empty."
        )
    which = "labels in the list" if listed else "labels"
    return (
        f"{gap}If none of the {which} are correct, then output the label for that word as "
        f'"{field.other}".{gap}Put all the labels in the slots list.'
    )


def _what(task: Task) -> str:
    bare_slots = not task.is_joint and not isinstance(task.fields[0], ClassField)
    return "slot filling classification" if bare_slots else "classification"


def _answer_noun(task: Task) -> str:
    if task.is_joint:
        return f"{_number(len(task.fields))} json fields"
    return "label" if isinstance(task.fields[0], ClassField) else "Slots"


def _cue(task: Task) -> str:
    if task.is_joint:
        return "Output:"
    return "Label:" if isinstance(task.fields[0], ClassField) else "Slots:"


def _shot(task: Task, shot: Example) -> str:
    """A few-shot example, in the same format as the real document, with the answer after the cue."""
    name = task.document_name
    return (
        f"Beginning of <<{name}>>\n{shot.text}\nEnd of <<{name}>>\n\n{_cue(task)} {task.write(shot.labels, shot.words)}"
    )
