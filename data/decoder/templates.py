"""Chat templates: how each model family writes a user's turn and the answer to it, as text and special tokens.

What stands in the turn is the prompt's text (`data.decoder.prompts`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from data.decoder.tokenizer import Tokenizer
from data.errors import UserError

log = logging.getLogger(__name__)

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
        UserError: the tokenizer lacks a special token: the chat template is for another model, or the tokenizer's files
            do not name the end of a text.
    """
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, Text):
            ids += tokenizer.encode(piece.text)
        elif piece.name == "bos":
            ids += [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        else:
            i = tokenizer.eos_id if piece.name == "eos" else tokenizer.special.get(piece.name)
            if i is None and piece.name == "eos":
                stated = tokenizer.stated_eos
                found = f"{stated!r}, which is none of its special tokens" if stated else "none"
                raise UserError(
                    "The chat template needs the token that ends a text. The tokenizer's files name "
                    f'{found}. Name it in tokenizer_config.json, as in {{"eos_token": "</s>"}}.'
                )
            if i is None:
                raise UserError(
                    f"The chat template needs the special token {piece.name!r}, which this tokenizer does not have. "
                    f"Choose the template of this model's family, or 'plain'. Known: {', '.join(LOCAL_TEMPLATES)}."
                )
            ids.append(i)
    return ids


def stop_tokens(prompt: Prompt, tokenizer: Tokenizer) -> set[int]:
    """Ids that end an answer: end-of-text, and the first token that the prompt puts after a label."""
    stops = {tokenizer.eos_id} if tokenizer.eos_id is not None else set()
    return stops | set(encode_pieces(prompt.end, tokenizer)[:1])


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

# The templates for a model whose weights are here.
LOCAL_TEMPLATES = tuple(name for name in TEMPLATES if name != MESSAGES)

# For listings that have [INST] and [/INST] themselves, and the answer on the line below: without these three of ours.
INST_WRITTEN = {
    "llama2": replace(TEMPLATES["llama2"], opening=(Special("<s>"), Text(" ")), closing=(), lead="\n"),
    "plain": replace(TEMPLATES["plain"], lead="\n"),
}


class Choice(NamedTuple):
    """A chat template, why it was chosen, and whether the checkpoint's files leave no doubt about it."""

    template: str
    why: str
    is_sure: bool = True


# A part of a model family's Jinja template -> our template; and the end of an answer, which its vocabulary has.
MARKS = {"<|start_header_id|>": "llama3", "<|im_start|>": "chatml", "[INST]": "llama2"}
ENDS = {"<|eot_id|>": "llama3", "<|im_end|>": "chatml"}


def choose_template(tokenizer: Tokenizer, otherwise: str = "plain") -> Choice:
    """The chat template that a checkpoint was trained with, guessed from its tokenizer.

    Base and chat models of a family share a vocabulary. A chat model has a Jinja template, or ends a text with the end
    of an answer. A base model has neither and never saw the template's tokens: it gets "plain".

    Args:
        otherwise: the template if there is a Jinja template of an unknown kind, or no sign of any: Llama 2's base and
            chat models may have the same files.
    """
    source = tokenizer.chat_template
    if source:
        found = next((name for mark, name in MARKS.items() if mark in source), None)
        if found is None:
            why = "the checkpoint's own chat template is of a kind that is not known here, and is not used"
            return Choice(otherwise, why, is_sure=False)
        if found == "chatml" and TEMPLATES["smollm2"].default_system in source:
            found = "smollm2"
        return Choice(found, "recognized in the checkpoint's chat template")
    for end, name in ENDS.items():
        if end not in tokenizer.special:
            continue
        if tokenizer.stated_eos == end:
            return Choice(name, f"the tokenizer has no chat template, but its texts end with {end}, as a chat model's")
        if not tokenizer.stated_eos:
            why = f"the tokenizer has {end}, and its files do not say whether the model is a base or a chat model"
            return Choice(name, why, is_sure=False)
        why = f"a base model: the tokenizer has no chat template, and its texts end with {tokenizer.stated_eos}"
        return Choice("plain", why)
    is_plain = otherwise == "plain"
    return Choice(otherwise, "the checkpoint has no chat template" + ("" if is_plain else "; the preset's"), is_plain)


def pick_template(given: str, tokenizer: Tokenizer, otherwise: str) -> Choice:
    """The template of an option's value: a name, or "auto" for that of `choose_template`; logs a doubtful choice."""
    if given != "auto":
        return Choice(given, "--template")
    choice = choose_template(tokenizer, otherwise)
    if not choice.is_sure:
        log.warning("warning: template '%s' for the prompt: %s. --template chooses another; a base model needs plain.",
                    choice.template, choice.why)  # fmt: skip
    return choice


def template_for(tokenizer: Tokenizer, otherwise: str = "plain") -> str:
    """The name of the chat template that `choose_template` finds."""
    return choose_template(tokenizer, otherwise).template


def to_messages(prompt: Prompt, document: str) -> list[dict[str, str]]:
    """The messages for a chat API: a prompt of the template `MESSAGES` around a document."""
    messages: list[dict[str, str]] = []
    for piece in (*prompt.prefix, Text(document), *prompt.suffix):
        if isinstance(piece, Special):
            messages.append({"role": piece.name, "content": ""})
        else:
            messages[-1]["content"] += piece.text
    return messages
