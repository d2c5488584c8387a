"""The tokens of every label of a class field: what a model has to write for it, and no more.

Training writes ``prompt.answer(task.write(labels))``, tokenized as one section (`data.decoder.samples`). So the tokens
of a label are those of such an answer, from its first token to the first one with which the label is over:

    bare label      lead + label, and the end-of-turn token
    joint answer    all to the token that writes the label's closing quotation mark, whatever else this token writes

    Llama 3             {" task 1 ":  " date ",                 the last token also writes the comma
                        {" task 1 ":  " date _time ",
    its last field      {" task 1 ":  " date ",  " task 2 ":  " x "}        or the bracket

Each ends with a token after which the label can become no other one: no label's tokens are the beginning of another's,
also if its text is (`date`, `date_time`). The probability of a label is that of its tokens, normalized over the label
set. All answers begin alike (with the lead, the bracket, the key, the fields before), so the tokens before the first
difference do not count. Other tokens of the same text, which training never writes, do not count either.

A field after another is answered given the answers to the fields before it. What comes after a field is not known: each
later field has its first label, a list that of a text of one word. This does not matter, because tokenizers do not join
anything across the quotation mark and the key between two fields.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from data.decoder.templates import Prompt, encode_pieces
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.tasks import ClassField, Field, Task, TokenField

WORD = "word"  # of the text whose labels stand in the place of later fields

Value = str | tuple[str, ...]  # a field's answer, as it is written


class LabelTokens:
    """The tokens of a task's labels, for one prompt and tokenizer.

    Raises:
        UserError: an answer that the tokenizer changes, or a label whose tokens are those of another.
    """

    def __init__(self, task: Task, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self.task, self.prompt, self.tokenizer = task, prompt, tokenizer
        self.end = encode_pieces(prompt.end, tokenizer)[:1]

    def of(self, before: tuple[Value, ...]) -> list[list[int]]:
        """For each label of the field after those that are answered, in the field's order: its tokens.

        Args:
            before: the answers to the fields before, each as its format writes it.
        """
        field = self.task.fields[len(before)]
        assert isinstance(field, ClassField)
        return [self._tokens((*before, label)) for label in field.labels]

    def _tokens(self, answers: tuple[Value, ...]) -> list[int]:
        if not self.task.is_joint:
            text = self.prompt.lead + str(answers[0])
            ids = self.tokenizer.encode(text)
            self._check(ids, text)
            return ids + self.end
        text = self.prompt.lead + self.task.join([*answers, *map(self.placeholder, self.task.fields[len(answers) :])])
        written = self.prompt.lead + beginning(self.task, answers)
        ids = self.tokenizer.encode(text)
        if self.tokenizer.decode(ids) != text:
            # Fields before may repeat words of the document that the tokenizer changes: this is only read again here.
            before = self.prompt.lead + beginning(self.task, answers[:-1])
            made = self.tokenizer.decode(self.tokenizer.encode(before))
            text, written = made + text[len(before) :], made + written[len(before) :]
        self._check(ids, text)
        return ids[: n_tokens_of(ids, written, self.tokenizer)]

    def placeholder(self, field: Field) -> Value:
        """An answer in the place of one that is not known yet."""
        labels = field.labels[0] if isinstance(field, ClassField) else (field.labels[0],)
        value = field.format.write(labels, [WORD])
        return value if isinstance(value, str) else tuple(value)

    def _check(self, ids: list[int], text: str) -> None:
        if self.tokenizer.decode(ids) != text:
            raise UserError(
                f"The model's tokenizer makes {ascii(self.tokenizer.decode(ids))} of the answer {ascii(text)}, so its "
                "labels have no probabilities. Rename the label, or give --decode free."
            )


def recurs(task: Task, before: Sequence[Value]) -> bool:
    """Whether many texts have these answers to the first fields: what follows from them is kept for all texts.

    An answer with an entry for a word, or with words, is that of one text, and is kept no longer than it.
    """
    return not any(value and isinstance(field, TokenField) for field, value in zip(task.fields, before, strict=False))


def n_tokens_of(ids: Sequence[int], written: str, tokenizer: Tokenizer) -> int:
    """How many tokens of an answer write its beginning ``written``, which ends with a quotation mark.

    The last of them decides alone: as the quotation mark is one byte, no part of it is in the tokens before.
    """
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if tokenizer.decode(ids[:middle]).startswith(written):
            high = middle
        else:
            low = middle + 1
    return low


def beginning(task: Task, answers: Sequence[Value]) -> str:
    """A joint answer up to the end of the last of these fields' values."""
    values = dict(zip(task.keys, answers, strict=False))
    return json.dumps(values, ensure_ascii=False)[: -len("}")]
