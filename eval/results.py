"""The folder a scored run leaves behind, and how to read it back.

    results.json        what was scored, how, and the figures: one object (`Results` says what is in it)
    predictions.jsonl   one line an example: {"id", "gold", "raw", "parsed", "unparsed", "truncated",
                        "n_prompt_tokens", "n_new_tokens", "top", ...}

Decoders, encoders, baselines and combined runs all write this one format, so that all can be compared and
combined.
"""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.example import Example
from data.tasks import ClassField, TokenField
from eval.metrics import HasFields, Labels

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"


@dataclass
class Prediction:
    """What a system answered to one example.

    Attributes:
        gold: labels by field name.
        gold_bio: the gold brackets' boundaries by token-field name (see :class:`data.example.Example`).
        raw: the text exactly as emitted; empty for systems that emit no text.
        parsed: labels by field name, None where the field could not be read.
        unparsed: names of the fields that could not be read.
        truncated: the document was cut to fit.
        stopped: the answer ended by itself, not by the limit on its length.
        n_prompt_tokens: tokens before the answer, the shared prefix included.
        n_new_tokens: tokens emitted, the end-of-turn token included.
        n_missing, n_extra, n_unknown: words without a label, labels without a word and labels outside the set, in a
            list that could be read (see :class:`eval.decoder.parse.Parsed`). An encoder's missing words are those of
            which no sub-word is within its reach.
        top: by class-field name, the likeliest labels with their probabilities, likeliest first, from systems that
            compute them (encoders): ``[[label, p], ...]``.
    """

    id: str
    gold: dict[str, str | tuple[str, ...]]
    raw: str
    parsed: Labels
    unparsed: tuple[str, ...] = ()
    truncated: bool = False
    stopped: bool = True
    n_prompt_tokens: int = 0
    n_new_tokens: int = 0
    gold_bio: dict[str, tuple[str, ...]] = field(default_factory=dict)
    n_missing: int = 0
    n_extra: int = 0
    n_unknown: int = 0
    top: dict[str, list[list[str | float]]] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """What :func:`eval.metrics.compute_metrics` reads of an answer."""
        return self.parsed

    @property
    def example(self) -> Example:
        """The gold side as an example (without its text, which is not stored)."""
        return Example(self.id, "", self.gold, self.gold_bio)


@dataclass
class Results:
    """What stands in ``results.json``.

    Attributes:
        system: a name for tables.
        task: name of the task.
        fields: field name → ``"class"`` or ``"token"``, in the task's order.
        model, checkpoint: the preset's and the checkpoint folder's name; empty for baselines.
        shots: few-shot examples in the prompt.
        prompt: the whole prompt specification, None where there is no prompt.
        data: where the examples came from, by name; split: which of them.
        metrics: see :func:`eval.metrics.compute_metrics`.
        counts: what was not as it should be; see :class:`eval.gather.ScoreResult`.
        cost: seconds and tokens, in all and per example.
        settings: everything else that was chosen: precision, lengths, seed.
        versions: Python, the packages that decide the figures, and the machine.
    """

    system: str
    task: str
    fields: dict[str, str]
    data: str
    split: str
    metrics: dict[str, Any]
    model: str = ""
    checkpoint: str = ""
    shots: int = 0
    prompt: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def count_oddities(predictions: Sequence[Prediction]) -> dict[str, int]:
    """What the answers' flags and counts add up to, for ``Results.counts``."""
    return {
        "truncated": sum(p.truncated for p in predictions),
        "not_stopped": sum(not p.stopped for p in predictions),
        "labels_missing": sum(p.n_missing for p in predictions),
        "labels_extra": sum(p.n_extra for p in predictions),
        "labels_unknown": sum(p.n_unknown for p in predictions),
    }


@dataclass(frozen=True)
class StoredTask:
    """The fields of a scored run, as far as metrics and tables need them: no label sets."""

    name: str
    fields: tuple[ClassField | TokenField, ...]


def field_kinds(task: HasFields) -> dict[str, str]:
    return {f.name: "token" if isinstance(f, TokenField) else "class" for f in task.fields}


def stored_task(results: Results) -> StoredTask:
    kinds = {"token": TokenField, "class": ClassField}
    return StoredTask(results.task, tuple(kinds[kind](name, ()) for name, kind in results.fields.items()))


def versions() -> dict[str, str]:
    """Versions that can change a figure."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in ("torch", "numpy", "scikit-learn", "seqeval", "tokenizers", "sentencepiece", "tiktoken"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def write_run(folder: Path, results: Results, predictions: Sequence[Prediction]) -> None:
    """Write both files; an older pair is replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / PREDICTIONS).open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(dataclasses.asdict(prediction), ensure_ascii=False) + "\n")
    text = json.dumps(dataclasses.asdict(results), indent=2, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")


def read_results(folder: Path) -> Results:
    """Read ``results.json``.

    Raises:
        UserError: the folder holds none, or one that is not ours.
    """
    path = folder / RESULTS if folder.is_dir() else folder
    if path.name != RESULTS or not path.is_file():
        raise UserError(f"'{folder}' is no scored run: no {RESULTS} in it. Give the --output folder of eval.py.")
    try:
        return Results(**json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise UserError(f"'{path}' is not a results file of this program: {error}. Score again.") from None


def read_predictions(folder: Path) -> list[Prediction]:
    """Read ``predictions.jsonl``.

    Raises:
        UserError: no such file, or a line that is not a prediction (named by its number).
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        raise UserError(f"'{folder}' holds no {PREDICTIONS}, which combining runs needs. Score again.")
    predictions = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                prediction = Prediction(**json.loads(line))
            except (json.JSONDecodeError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a prediction ({error}). Score again.") from None
            prediction.gold, prediction.parsed = _tuples(prediction.gold), _tuples(prediction.parsed)
            prediction.gold_bio, prediction.unparsed = _tuples(prediction.gold_bio), tuple(prediction.unparsed)
            predictions.append(prediction)
    return predictions


def _tuples(labels: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples: labels of token fields come back as lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in labels.items()}
