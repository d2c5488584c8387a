"""A tiny model of transformers', ours with the same weights, and documents to answer, for any task and tokenizer."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import torch

from checkpoints_tools.registry import MODELS
from data.decoder.prompts import build_prompt
from data.decoder.templates import Prompt, encode_pieces
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.tasks import ClassField, Task
from eval.decoder.labels import ValidAnswers
from model.llama import Llama
from tests.decoder_tokenizers import TINY
from tests.reference import ours_from, reference

TEMPLATE = {"sentencepiece": "plain", "rank_file": "llama3", "json": "chatml"}  # of each kind of tokenizer


@dataclasses.dataclass(frozen=True)
class Setting:
    task: Task
    prompt: Prompt
    tokenizer: Tokenizer
    hf: torch.nn.Module
    net: Llama
    prefix: list[int]
    bodies: list[list[int]]
    words: list[list[str]]

    def answers(self) -> ValidAnswers:
        return ValidAnswers(self.task, self.prompt, self.tokenizer)


class Models:
    """Both models for a kind of tokenizer."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.tokenizer = kind, load_tokenizer(TINY[kind](folder))
        config = dataclasses.replace(MODELS["llama_debug"].config, vocab_size=self.tokenizer.vocab_size)
        self.hf = reference(config)
        self.net = ours_from(self.hf, config)

    def setting(self, task: Task, n: int = 9, letters: str = "abc é日 \n") -> Setting:
        """Some documents to answer, of 0 to 10 words."""
        rng = random.Random(0)
        prompt = build_prompt(task, TEMPLATE[self.kind], list_labels=False)
        prefix, suffix = (encode_pieces(pieces, self.tokenizer) for pieces in (prompt.prefix, prompt.suffix))
        texts = ["".join(rng.choices(letters, k=rng.choice([1, 3, 20]))) for _ in range(n)]
        bodies = [self.tokenizer.encode(text) + suffix for text in texts]
        words = [text.split() for text in texts]
        return Setting(task, prompt, self.tokenizer, self.hf, self.net, prefix, bodies, words)


def tokens_of(setting: Setting, values: list[str]) -> list[int]:
    """The tokens of an answer up to the end of its last given value, found by reading every beginning of it."""
    task, tokenizer = setting.task, setting.tokenizer
    rest = [field.labels[0] if isinstance(field, ClassField) else [] for field in task.fields[len(values) :]]
    ids = encode_pieces(setting.prompt.answer(task.join([*values, *rest])), tokenizer)
    if len(task.fields) == 1:
        return ids[: len(ids) - len(setting.prompt.end) + 1]
    key = f'"task{len(values)}": '
    for n in range(len(ids)):
        text = tokenizer.decode(ids[:n])
        try:
            value, _ = json.JSONDecoder().raw_decode(text[text.index(key) + len(key) :])
        except ValueError:
            continue
        assert value == values[-1]
        return ids[:n]
    raise AssertionError(values)


@torch.no_grad()
def one_by_one(setting: Setting, body: list[int], before: list[str]) -> torch.Tensor:
    """The normalized log-probabilities of a field's labels, one pass of transformers for each."""
    field = setting.task.fields[len(before)]
    scores = []
    for label in field.labels:
        tokens = tokens_of(setting, [*before, label])
        ids = torch.tensor([*setting.prefix, *body, *tokens])
        log_probs = setting.hf(ids[None]).logits[0].double().log_softmax(-1)
        scores.append(log_probs[len(ids) - len(tokens) - 1 : -1].gather(1, torch.tensor(tokens)[:, None]).sum())
    return torch.stack(scores).log_softmax(0)
