"""A fine-tuned model as a classifier: texts in, typed labels out.

    classifier = Classifier.load("runs/default/export")
    results = classifier(["wake me at nine am on friday"])
    results[0]["intent"].label

The answers are those of ``eval.py`` on the same texts. ``predict.py`` runs it over files (`eval.predict.run`).
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import nn

from checkpoints_tools.hf_config import read_config
from checkpoints_tools.other_folders import describe
from checkpoints_tools.registry import get_model_spec
from data.answers import entities
from data.decoder.templates import stop_tokens
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError, shortened
from data.example import Example
from data.tasks import MultiField, Task, TokenField
from eval.config import EvalConfig, abstain_problems
from eval.decoder.score import Requests, prepare_requests
from eval.job import BATCH_TOKENS, ScoringRanks
from eval.predict.inputs import problem_of
from eval.results import Prediction
from eval.score import answer
from eval.setup import ModelSetup, build_model, open_model
from eval.weights import find_weights
from train.checkpointing.checkpoint import RUN_FILE, read_state
from train.parallel.distributed import pick_device, resolve_precision

log = logging.getLogger("eval")

RAW_SHOWN = 200  # characters of an answer in the error about it


@dataclass(frozen=True)
class Label:
    """The label of a class field.

    Attributes:
        probability: of this label; None from a decoder that writes freely, whose answers have no probability.
        next_best: the next most probable labels, in decreasing order; empty from such a decoder.
    """

    label: str
    probability: float | None = None
    next_best: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class LabelSet:
    """The labels of a multi field, in the order of the label set; none: the answer is that there is none.

    Attributes:
        probabilities: of each of these labels by itself; empty from a decoder, whose answers have no probability.
        next_best: the most probable other labels, in decreasing order; empty from a decoder.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...] = ()
    next_best: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Entity:
    """An entity of a token field: ``text`` is ``document[start:end]``, in characters."""

    type: str
    text: str
    start: int
    end: int


Value = Label | LabelSet | tuple[Entity, ...] | None


@dataclass(frozen=True)
class Result:
    """What the classifier says about one text. ``result["queue"]`` is short for ``result.fields["queue"]``.

    Attributes:
        fields: by field name, in the task's order: a `Label`, a `LabelSet`, or the entities of a token field. None if
            there is no answer; ``error`` says why, or the label is in ``unsure``.
        error: why at least one field has no answer that could be read; empty otherwise.
        truncated: the text was longer than the model's maximum input and was cut.
        exceeds_positions: prompt, text and answer have more tokens than the model was trained for.
        raw: a decoder's answer as it was written.
        stopped: the answer ended by itself, not at its token limit.
        unsure: by field name, the labels that are not given because they are not probable enough.
    """

    fields: dict[str, Value] = field(default_factory=dict)
    error: str = ""
    truncated: bool = False
    raw: str = ""
    stopped: bool = True
    unsure: dict[str, Label] = field(default_factory=dict)
    exceeds_positions: bool = False

    def __getitem__(self, name: str) -> Value:
        return self.fields[name]

    @classmethod
    def unanswered(cls, task: Task, error: str) -> Result:
        """A result without any label."""
        return cls(dict.fromkeys(field.name for field in task.fields), error)


class Classifier:
    """A model and its task. Create one with `load`. Calls from several threads run one after the other."""

    def __init__(self, model: nn.Module, setup: ModelSetup, device: torch.device | str) -> None:
        self.model, self.setup, self.device = model, setup, device
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        *,
        task: str = "",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["auto", "bf16", "fp32"] = "auto",
        batch_tokens: int = BATCH_TOKENS,
        decode: Literal["labels", "free"] | None = None,
        abstain_below: float | None = None,
    ) -> Classifier:
        """Load a checkpoint: a run's ``export`` or ``best`` folder, a training checkpoint, or any model with ``task``.

        Args:
            task: a task's name or TOML file; needed only for a model that was never fine-tuned.
            device: "auto" is CUDA if available.
            precision: number format of weights and compute; "auto" is bf16 with hardware support for it, else fp32.
            batch_tokens: maximum tokens in a batch.
            decode: what a decoder may write. "labels" (default): valid answers only, and the probabilities of a class
                field's labels. "free": anything.
            abstain_below: do not give labels that are less probable; they are in ``Result.unsure``.

        Raises:
            UserError: a missing or damaged checkpoint, or one without a task; or ``abstain_below`` outside of (0, 1],
                or without probabilities; another option with a value that it does not have.
        """
        _check("decode", decode, (None, "labels", "free"))
        _check("device", device, ("auto", "cpu", "cuda"))
        _check("precision", precision, ("auto", "bf16", "fp32"))
        if not isinstance(batch_tokens, int) or batch_tokens < 1:
            raise UserError(f"batch_tokens = {batch_tokens!r}: must be a whole number from 1 on.")
        if abstain_below is not None and not isinstance(abstain_below, int | float):
            raise UserError(f"abstain_below = {abstain_below!r}: must be a number.")
        path = Path(checkpoint)
        model = model_name(path)
        if problems := abstain_problems(abstain_below, decode):
            raise UserError(" ".join(problems))
        options = EvalConfig(model=model, checkpoint=path, task=task, batch_tokens=batch_tokens,
                             decode=decoding_of(model, decode), abstain_below=abstain_below)  # fmt: skip
        setup, place = open_model(options, labelled=False), pick_device(device)
        return cls(build_model(setup, resolve_precision(precision, place.type), place), setup, place)

    @property
    def task(self) -> Task:
        return self.setup.task

    # To serve a decoder with another program; a UserError for an encoder.

    def prompt_ids(self, text: str) -> list[int]:
        """A decoder's complete input for a text, as token ids."""
        samples = self._requests("prompt_ids", text).samples
        return [*samples.prefix.tolist(), *samples.body(0).tolist()]

    def max_new_tokens(self, text: str) -> int:
        """The number of tokens after which decoding the answer to a text stops: its longest valid answer, and a few."""
        (limit,) = self._requests("max_new_tokens", text).limits
        return limit

    def _requests(self, name: str, text: str) -> Requests:
        self._check_writes(name)
        return prepare_requests(self.setup.job_of([Example("0", text, {})], None))

    @property
    def stop_ids(self) -> set[int]:
        """The token ids that end a decoder's answer."""
        self._check_writes("stop_ids")
        job = self.setup.job_of([], None)
        assert job.prompt is not None
        return stop_tokens(job.prompt, cast(Tokenizer, job.tokenizer))

    def read(self, text: str, answer: str) -> Result:
        """The labels in an answer to a text that another program has decoded."""
        self._check_writes("read")
        labels = self.task.read(answer, text.split())
        found = Prediction("0", {}, answer, labels.labels, labels.unparsed, parsed_bio=labels.bio)
        return _result(self.task, text, found)

    def _check_writes(self, name: str) -> None:
        if self.setup.spec.kind != "decoder":
            raise UserError(f"{name} is for decoders: {self.setup.options.model} has heads and writes no answer.")

    def __call__(self, texts: Iterable[str]) -> list[Result]:
        """The labels of each text, in their order.

        Raises:
            TypeError: a string instead of a list of strings, or a text that is not a string.
        """
        if isinstance(texts, str):
            raise TypeError("give a list of texts: classifier([text])")
        texts = list(texts)
        wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise TypeError(f"text {wrong} is not a string but {type(texts[wrong]).__name__}")
        with self._lock:
            results = self.label(texts, ScoringRanks(self.device))
        self.warn_of_length(sum(result.exceeds_positions for result in results))
        return results

    def label(
        self, texts: Sequence[str], ranks: ScoringRanks, progress: Callable[[int], None] | None = None
    ) -> list[Result]:
        """The labels of each text; collective if several ranks share the texts: then empty on ranks other than 0."""
        problems = {i: problem for i, text in enumerate(texts) if (problem := problem_of(text))}
        asked = [Example(str(i), text, {}) for i, text in enumerate(texts) if i not in problems]
        found: dict[int, Prediction] = {}
        if asked:
            predictions = answer(self.model, self.setup.job_of(asked, None), ranks, progress)
            found = {int(prediction.id): prediction for prediction in predictions}
        if ranks.rank != 0:
            return []
        return [
            Result.unanswered(self.task, problems[i]) if i in problems else self._result_of(text, found[i])
            for i, text in enumerate(texts)
        ]

    def _result_of(self, text: str, found: Prediction) -> Result:
        n_tokens = found.n_prompt_tokens + found.n_new_tokens
        exceeds = n_tokens > self.setup.config.max_position
        return replace(_result(self.task, text, found), exceeds_positions=exceeds)

    def warn_of_length(self, n_longer: int) -> None:
        """Log how many texts are longer than the model was trained for, if there are any, as training does."""
        if n_longer:
            log.warning("warning: with prompt and answer, %d of the texts are longer than the %d tokens the model was "
                        "trained for.", n_longer, self.setup.config.max_position)  # fmt: skip


def _check(name: str, value: object, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise UserError(f"{name} = {value!r}: expected {' or '.join(map(repr, known))}.")


def _result(task: Task, text: str, found: Prediction) -> Result:
    values: dict[str, Value] = {}
    unsure: dict[str, Label] = {}
    for own in task.fields:
        labels = found.parsed[own.name]
        if labels is None:
            values[own.name] = None
        elif isinstance(own, TokenField):
            assert not isinstance(labels, str)
            values[own.name] = _entities(labels, own.other, text, found.parsed_bio.get(own.name))
        elif isinstance(own, MultiField):
            assert not isinstance(labels, str)
            found_labels = {str(label): float(p) for label, p in found.multi_top.get(own.name, [])}
            others = tuple((label, p) for label, p in found_labels.items() if label not in labels)
            values[own.name] = LabelSet(labels, tuple(found_labels[x] for x in labels if found_labels), others)
        else:
            top = [(str(label), float(p)) for label, p in found.top.get(own.name, [])]
            label = Label(str(labels), top[0][1] if top else None, tuple(top[1:]))
            values[own.name] = label
            if own.name in found.abstained:
                values[own.name], unsure[own.name] = None, label
    error = ""
    if found.unparsed:
        shown = shortened(found.raw, RAW_SHOWN)
        cut = "" if found.stopped else ", which was cut at its maximum length"
        error = f"no {' and '.join(found.unparsed)} could be read from the answer {shown!r}{cut}"
    return Result(values, error, found.truncated, found.raw, found.stopped, unsure)


def _entities(labels: Sequence[str], other: str, text: str, bio: Sequence[str] | None = None) -> tuple[Entity, ...]:
    words = [match.span() for match in re.finditer(r"\S+", text)]
    assert len(words) == len(labels), "the words of text.split()"
    spans = ((kind, words[first][0], words[end - 1][1]) for kind, first, end in entities(labels, other, bio))
    return tuple(Entity(kind, text[start:end], start, end) for kind, start, end in spans)


def model_name(folder: Path) -> str:
    """The ``--model`` of a checkpoint: that of its run, or its config's architecture.

    Raises:
        UserError: no checkpoint there, a run folder, or an architecture that is not implemented.
    """
    if not folder.is_dir():
        missing = f"no checkpoint folder at {folder}. Give a run's export, such as runs/default/export"
        raise UserError(f"{describe(folder) or missing}.")
    find_weights(folder, needed=False)  # raises for a run folder
    if (folder / RUN_FILE).is_file():
        return read_state(folder).config["model"]
    if (folder / "params.json").is_file():  # Meta's own files
        return "llama"
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no model: it has no config.json. Give a run's export.")
    return read_config(folder).family


def decoding_of(model: str, decode: Literal["labels", "free"] | None) -> Literal["labels", "free"]:
    """What a model may write, with the default of its kind.

    Raises:
        UserError: an encoder, which writes nothing.
    """
    if get_model_spec(model).kind == "decoder":
        return decode or "labels"
    if decode is not None:
        raise UserError(f"--decode {decode} is for decoders: {model} has heads, whose labels have probabilities.")
    return "free"
