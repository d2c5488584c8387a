"""What a model as it is makes of texts: means of its states, by transformers, for a regression on them."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

REPEATED = ("Rewrite the sentence:", "\nThe rewritten sentence:", '\nThe topic of this text, in one word: "')
_LOADING = threading.Lock()  # transformers changes PyTorch's default dtype while it loads a model


def _load(folder: Path, **how: Any) -> tuple[Any, Any]:
    with _LOADING:
        return AutoModel.from_pretrained(folder, **how).eval(), AutoTokenizer.from_pretrained(folder)


@functools.cache  # the test texts of all draws are the same
@torch.no_grad()
def embed(folder: Path, texts: tuple[str, ...], decoder: bool = False) -> torch.Tensor:
    """[texts, width] mean states of a text's tokens, by transformers.

    Of an encoder the last ones, brought to length 1. Of a decoder those after four fifths of its layers, since the last
    ones serve the next token, and without the first token's, which are huge and say nothing of the text.
    """
    model, tokenizer = _load(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    found: dict[int, torch.Tensor] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for at in range(0, len(order), 32):
        some = order[at : at + 32]
        inputs = tokenizer([texts[i] for i in some], padding=True, truncation=True, max_length=512, return_tensors="pt")
        states = model(**inputs, output_hidden_states=True).hidden_states
        hidden, mask = states[len(states) * 4 // 5 if decoder else -1], inputs["attention_mask"][..., None].clone()
        mask[:, 0] *= not decoder
        found |= zip(some, (hidden * mask).sum(1) / mask.sum(1).clamp(min=1), strict=True)
    result = torch.stack([found[i] for i in range(len(texts))])
    return result if decoder else torch.nn.functional.normalize(result, dim=1)


@functools.cache
@torch.no_grad()
def read_twice(folder: Path, texts: tuple[str, ...]) -> torch.Tensor:
    """[texts, 2, width] what a decoder makes of a text that it reads twice, by transformers in bf16.

    The first is the mean over both readings after four fifths of its layers, of which the second has seen the whole
    text. The second is the state after the last layer of a question's last token, after which the topic would be
    written. Both have length 1.
    """
    model, tokenizer = _load(folder, dtype=torch.bfloat16)
    found: dict[int, torch.Tensor] = {}
    begin, again, question = (tokenizer(part, add_special_tokens=False).input_ids for part in REPEATED)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for at in range(0, len(order), 16):
        some, ids = order[at : at + 16], []
        for i in some:
            text = tokenizer(f" {texts[i]}", add_special_tokens=False).input_ids
            ids.append([begin, text, again, text, question])
        rows = [torch.tensor([token for part in parts for token in part]) for parts in ids]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # what follows a row's end is not seen by it
        states = model(padded, output_hidden_states=True).hidden_states
        for row, (i, parts) in enumerate(zip(some, ids, strict=True)):
            ends = np.cumsum([len(part) for part in parts])
            inner, last = states[len(states) * 4 // 5][row].float(), states[-1][row, ends[4] - 1].float()
            mean = torch.cat([inner[ends[0] : ends[1]], inner[ends[2] : ends[3]]]).mean(0)
            found[i] = torch.nn.functional.normalize(torch.stack([mean, last]), dim=1)
    return torch.stack([found[i] for i in range(len(texts))])
