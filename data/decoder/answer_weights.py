"""The weight in the loss of every token of a decoder's answers, from the weights of labels (`data.class_weights`).

The tokens that write a field's label have the weight of this label, all other tokens 1::

    bare label      all tokens, the end of the turn too: it is what tells "date" from "date time"
    joint answer    from the first token that writes any of the label to the one with its closing quotation mark

    {" task 1 ":  " date _time ",  " task 2 ":  " x "}        weights 2 of date_time, 3 of x
      1    1 1  1 1    2     2  2   1    1 1  1 1 3  3

So a label weighs on what its probability consists of (`data.decoder.label_tokens`), and the format is learned from all
examples alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from data.class_weights import ClassWeights
from data.decoder.label_tokens import Value, beginning, n_tokens_of
from data.decoder.samples import SampleSet
from data.decoder.templates import Prompt, encode_pieces
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.example import Example
from data.tasks import Field, Task

Places = dict[str, slice]  # of the tokens that write a field's label, by field


def answer_weights(
    samples: SampleSet,
    examples: Sequence[Example],
    task: Task,
    prompt: Prompt,
    tokenizer: Tokenizer,
    weights: ClassWeights,
) -> np.ndarray:
    """``[L]`` fp32: the weights of all samples' label tokens, sample by sample.

    Args:
        samples: the tokenized ``examples``, with labels.

    Raises:
        UserError: the tokenizer changes an answer so much that the tokens of its label cannot be found.
    """
    n_end = len(encode_pieces(prompt.end, tokenizer))
    parts = [np.zeros(0, dtype=np.float32)]
    known: dict[tuple[Value, ...], Places] = {}
    for i, example in enumerate(examples):
        ids = samples.label(i)
        part = np.ones(len(ids), dtype=np.float32)
        values = tuple(_value(field, example) for field in task.fields)
        if not task.is_joint:
            known[values] = {task.fields[0].name: slice(0, len(ids))}
        elif values not in known:
            known[values] = _places(ids[: len(ids) - n_end].tolist(), values, task, prompt, tokenizer, weights)
        for name, by_label in weights.items():
            part[known[values][name]] = by_label[example.class_label(name)]
        parts.append(part)
    return np.concatenate(parts)


def _value(field: Field, example: Example) -> Value:
    written = field.format.write(example.labels[field.name], example.words)
    return written if isinstance(written, str) else tuple(written)


def _places(
    ids: list[int],
    values: tuple[Value, ...],
    task: Task,
    prompt: Prompt,
    tokenizer: Tokenizer,
    weighted: Mapping[str, object],
) -> Places:
    """Where a joint answer's tokens write the labels of the weighted fields."""
    # Some tokenizers change some characters of a text, always in the same way: compare what they make of it.
    text = prompt.lead + task.join(values)
    lossless = tokenizer.decode(ids) == text

    def written(start: str) -> str:
        return start if lossless else tokenizer.decode(tokenizer.encode(start))

    found: Places = {}
    for k, field in enumerate(task.fields):
        if field.name not in weighted:
            continue
        opening = written(prompt.lead + beginning(task, (*values[:k], ""))[: -len('"')])
        closing = written(prompt.lead + beginning(task, values[: k + 1]))
        start, end = n_tokens_of(ids, opening, tokenizer), n_tokens_of(ids, closing, tokenizer)
        if not tokenizer.decode(ids[:end]).startswith(closing):
            raise UserError(
                f"class_weights: the tokenizer makes {ascii(tokenizer.decode(ids))} of the answer {ascii(text)}, so "
                f"the tokens of field {field.name!r} cannot be found. Omit the field's weights."
            )
        # The token with the opening quotation mark may also write the label's first letters.
        found[field.name] = slice(start - (tokenizer.decode(ids[:start]) != opening), end)
    return found
