"""Weights of a decoder's answer tokens: as by hand from the tokens' texts, and the loss as transformers gives it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from checkpoints_tools.registry import MODELS
from data.class_weights import ClassWeights
from data.decoder.answer_weights import answer_weights
from data.decoder.prompts import build_prompt
from data.decoder.rows import ANSWER
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import Prompt, encode_pieces
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.example import Example
from data.loader import StepLoader
from data.tasks import ClassField, Task, TokenField
from tests.decoder_tokenizers import TINY
from tests.reference import ours_from, reference
from train.loss import batch_loss

TEMPLATES = {"sentencepiece": "plain", "rank_file": "llama3", "json": "chatml"}
A = ClassField("a", ("date", "date_time", "日", 'say "x"'))
B = ClassField("b", ("th", "the", "ing"))
SLOTS = TokenField("slots", ("th", "date"), answer="spans")
BARE, JOINT = Task("bare", "custom", (A,)), Task("joint", "custom", (A, SLOTS, B))
OF_A = {"date": 0.5, "date_time": 2.0, "日": 3.0, 'say "x"': 0.0}
OF_B = {"th": 7.0, "the": 11.0, "ing": 13.0}


def made(task: Task, n: int = 12) -> list[Example]:
    rng = np.random.default_rng(1)
    found = []
    for i in range(n):
        words = [str(word) for word in rng.choice(["the", "日", "th", '"date"', "naïve"], rng.integers(1, 6))]
        slots = tuple(str(kind) for kind in rng.choice(["Other", "th", "date"], len(words)))
        labels = {"a": A.labels[i % 4], "b": B.labels[i % 3], "slots": slots}
        found.append(Example(str(i), " ".join(words), {field.name: labels[field.name] for field in task.fields}))
    return found


def weighted(task: Task, kind: str, folder: Path, weights: ClassWeights) -> tuple[SampleSet, Prompt, Tokenizer]:
    tokenizer = load_tokenizer(TINY[kind](folder))
    prompt = build_prompt(task, TEMPLATES[kind], list_labels=False)
    samples = prepare(made(task), task, prompt, tokenizer, 4096)
    samples.label_weights = answer_weights(samples, made(task), task, prompt, tokenizer, weights)
    return samples, prompt, tokenizer


def by_hand(ids: list[int], example: Example, prompt: Prompt, tokenizer: Tokenizer, weights: ClassWeights) -> list:
    """Each token's weight, from the bytes that the tokens before it, and it, write."""
    pieces, n_end = tokenizer.pieces(), len(encode_pieces(prompt.end, tokenizer))
    text = JOINT.write(example.labels, example.words)
    ends = np.cumsum([len(pieces[i]) for i in ids[: len(ids) - n_end]])
    assert b"".join(pieces[i] for i in ids[: len(ids) - n_end]) == (prompt.lead + text).encode()
    found = [1.0] * len(ids)
    for key, name in (("task1", "a"), ("task3", "b")):
        label = json.dumps(example.labels[name], ensure_ascii=False)  # with its quotation marks
        at = text.index(f'"{key}": {label}') + len(f'"{key}": ') + len(prompt.lead)
        first = len((prompt.lead + text)[: at + 1].encode())
        last = first + len(label[1:].encode())
        for k, end in enumerate(ends):
            start = ends[k - 1] if k else 0
            if end > first and start < last and name in weights:
                found[k] = weights[name][example.class_label(name)]
    return found


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("weights", [{"a": OF_A, "b": OF_B}, {"b": OF_B}], ids=["both", "one"])
def test_a_joint_answer(kind: str, weights: ClassWeights, tmp_path: Path) -> None:
    samples, prompt, tokenizer = weighted(JOINT, kind, tmp_path, weights)
    for i, example in enumerate(made(JOINT)):
        expected = by_hand(samples.label(i).tolist(), example, prompt, tokenizer, weights)
        found = samples.weights(i)
        assert found is not None and found.tolist() == pytest.approx(expected), example.labels
        assert samples.sum_weights([i, i]) == {ANSWER: pytest.approx(2 * sum(expected), rel=1e-6)}


class Pairs:
    """A tokenizer whose tokens are two characters each: some write a quotation mark and a letter beside it."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner, self.known = inner, list[str]()

    def encode(self, text: str) -> list[int]:
        pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
        self.known += [pair for pair in dict.fromkeys(pairs) if pair not in self.known]
        return [self.known.index(pair) for pair in pairs]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.known[i] for i in ids)

    def pieces(self) -> dict[int, bytes]:
        return {i: pair.encode() for i, pair in enumerate(self.known)}

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_a_token_that_writes_a_quotation_mark_and_a_letter(tmp_path: Path) -> None:
    tokenizer, weights = Pairs(load_tokenizer(TINY["json"](tmp_path))), {"a": OF_A, "b": OF_B}
    prompt = build_prompt(JOINT, "chatml", list_labels=False)
    samples = prepare(made(JOINT), JOINT, prompt, tokenizer, 4096)
    samples.label_weights = answer_weights(samples, made(JOINT), JOINT, prompt, tokenizer, weights)
    for i, example in enumerate(made(JOINT)):
        expected = by_hand(samples.label(i).tolist(), example, prompt, tokenizer, weights)
        assert samples.weights(i).tolist() == pytest.approx(expected), example.labels
    assert {'"t', 'h"'} <= set(tokenizer.known), "at both ends of a label"


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_bare_label_with_its_end(kind: str, tmp_path: Path) -> None:
    samples, _, _ = weighted(BARE, kind, tmp_path, {"a": OF_A})
    for i, example in enumerate(made(BARE)):
        found = samples.weights(i)
        assert found is not None and found.tolist() == [OF_A[example.class_label("a")]] * len(samples.label(i))


class Lossy:
    """A tokenizer that changes characters of a text, as those do that normalize it."""

    def __init__(self, inner: Tokenizer) -> None:
        self.inner = inner

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text.replace("ï", "i").replace("日", "??"))

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def test_a_tokenizer_that_changes_words(tmp_path: Path) -> None:
    tokenizer = Lossy(load_tokenizer(TINY["json"](tmp_path)))
    prompt = build_prompt(JOINT, "chatml", list_labels=False)
    samples = prepare(made(JOINT), JOINT, prompt, tokenizer, 4096)
    found = answer_weights(samples, made(JOINT), JOINT, prompt, tokenizer, {"b": OF_B})
    at = 0
    for i, example in enumerate(made(JOINT)):
        ids = samples.label(i).tolist()
        part = found[at : at + len(ids)]
        at += len(ids)
        written = tokenizer.decode([t for t, w in zip(ids, part, strict=True) if w != 1])
        assert example.class_label("b") in written and "task" not in written
        assert set(part.tolist()) == {1.0, OF_B[example.class_label("b")]}
    assert "ï" in JOINT.write(made(JOINT)[-1].labels, made(JOINT)[-1].words) or any(
        "ï" in example.text for example in made(JOINT)
    )


@pytest.mark.parametrize("task", [BARE, JOINT], ids=["bare", "joint"])
def test_the_loss_is_the_weighted_mean_of_transformers(task: Task, tmp_path: Path) -> None:
    """Each sample by itself, its label tokens' losses weighed by hand; and ours packed, accumulated, over two ranks."""
    weights = {"a": OF_A, "b": OF_B} if task is JOINT else {"a": OF_A}
    samples, _, tokenizer = weighted(task, "json", tmp_path, weights)
    config = dataclasses.replace(MODELS["llama_debug"].config, vocab_size=tokenizer.vocab_size)
    hf = reference(config)
    net = ours_from(hf, config)
    total = weight = 0.0
    for i in range(len(samples)):
        label = samples.label(i)
        ids = torch.from_numpy(np.concatenate([samples.prefix, samples.body(i), label]).astype(np.int64))
        with torch.no_grad():
            log_probs = hf(ids[None]).logits[0].log_softmax(-1)
        losses = -log_probs[-len(label) - 1 : -1].gather(1, ids[-len(label) :, None])[:, 0]
        of_sample = samples.weights(i)
        total, weight = total + float((losses * torch.from_numpy(of_sample)).sum()), weight + float(of_sample.sum())

    def loss(**settings: object) -> float:
        loaders = [
            StepLoader(samples, batch_size=len(samples), rank=rank, world_size=2, **settings) for rank in range(2)
        ]
        steps = [loader.step(0) for loader in loaders]
        assert steps[0].total_weights == steps[1].total_weights != steps[0].n_label_tokens
        with torch.no_grad():
            parts = [batch_loss(net, batch, step.total_weights) for step in steps for batch in step.batches]
        return float(sum(parts))

    longest = int(samples.costs.max()) + len(samples.prefix)
    for settings in (
        {"row_length": 4096},
        {"row_length": longest + 20, "micro_rows": 1},
        {"row_length": 4096, "packing": False},
    ):
        assert loss(**settings) == pytest.approx(total / weight, rel=1e-4)
