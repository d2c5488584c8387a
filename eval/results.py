"""Write and read the output folder of a scored run.

    results.json        one object: what was scored, how, and the figures (see `Results`)
    predictions.jsonl   one line per example: {"id", "gold", "raw", "parsed", "unparsed", "truncated",
                        "n_prompt_tokens", "n_new_tokens", "top", ...}

Decoders, encoders, baselines and combined runs all use this format, so that all can be compared and combined.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec

from data.errors import UserError
from data.example import Example
from data.files import limits
from data.files.documents import parse_line, read_json, read_lines, shaped
from data.json_text import to_json
from data.tasks import ClassField, Field, FieldKind, MultiField, TokenField
from eval.calibration import COLDEST, HOTTEST
from eval.kept_lines import sha256_of, writable
from eval.metrics import HasFields, Labels, compute_metrics, main_figure
from eval.probabilities import answered_figures, probability_figures, unsure_of, with_probabilities

RESULTS, PREDICTIONS = "results.json", "predictions.jsonl"
TRAINED_ON = "trained_on"  # in `Results.counts`: examples with a text of the checkpoint's training data

Name = Annotated[str, msgspec.Meta(max_length=limits.NAME_CHARACTERS)]  # characters of what tables show
LogProb = Annotated[float, msgspec.Meta(le=0, ge=-1e9)]
Temperature = Annotated[float, msgspec.Meta(ge=COLDEST, le=HOTTEST)]
Tag = Annotated[str, msgspec.Meta(pattern="^(O$|[BI]-)")]


@dataclass
class Prediction:
    """A system's answer to one example.

    Attributes:
        gold: labels by field name.
        gold_bio: gold entity boundaries by token-field name (see :class:`data.example.Example`).
        raw: the emitted text, unchanged; empty for systems that emit no text.
        parsed: labels by field name, None if the field is unparsed.
        parsed_bio: entity boundaries in the answer, by token-field name, as ``gold_bio``; missing if it has none.
        unparsed: names of the fields that could not be parsed.
        lenient: the fields for which the lenient reading (`data.lenient`) found other labels than ``parsed``, with
            these labels. None from systems that emit no text, and in older files.
        truncated: the document was cut to fit.
        stopped: the answer ended with a stop token, not at its token limit.
        n_prompt_tokens: tokens before the answer, the shared prefix included.
        n_new_tokens: tokens emitted, the end-of-turn token included.
        n_missing, n_extra, n_unknown, n_not_found: words without a label, labels without a word, labels outside the
            set, and spans that are not in the text (see :class:`data.answers.Parsed`). An encoder's missing words are
            those without a sub-word in the (cut) document. Sums over all fields.
        n_labels: by token-field name, the number of labels in the answer, where it is not that of the words; older
            files lack it.
        top: by class-field name, the most probable labels with their probabilities, in decreasing order:
            ``[[label, p], ...]``. Only from systems that compute probabilities: encoders, and decoders with
            ``--decode labels``. At the temperature of the checkpoint's calibration, if it has one.
        log_probs: by class-field name, the log-probabilities of all labels, in the order of `Results.labels`, without
            temperature. Only where ``top`` is.
        abstained: the class fields of which the label is not given, because it is not probable enough
            (``--abstain_below``). ``parsed`` has it nevertheless.
        multi_top: by multi-field name, the most probable labels with the probability of each by itself: all labels that
            were given, and at least `eval.probabilities.N_TOP`. Only from encoders.
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
    gold_bio: dict[str, tuple[Tag, ...]] = field(default_factory=dict)
    n_missing: int = 0
    n_extra: int = 0
    n_unknown: int = 0
    n_not_found: int = 0
    top: dict[str, list[list[str | float]]] = field(default_factory=dict)
    lenient: Labels | None = None
    parsed_bio: dict[str, tuple[Tag, ...]] = field(default_factory=dict)
    log_probs: dict[str, list[LogProb]] = field(default_factory=dict)
    abstained: tuple[str, ...] = ()
    multi_top: dict[str, list[list[str | float]]] = field(default_factory=dict)
    n_labels: dict[str, int] = field(default_factory=dict)

    @property
    def labels(self) -> Labels:
        """The same as ``parsed``, for :func:`eval.metrics.compute_metrics`."""
        return self.parsed

    @property
    def bio(self) -> dict[str, tuple[str, ...]]:
        """The same as ``parsed_bio``, for :func:`eval.metrics.compute_metrics`."""
        return self.parsed_bio

    @property
    def read_leniently(self) -> Prediction:
        """The answer with the labels of the lenient reading, which has no boundaries."""
        lenient = self.lenient or {}
        bio = {name: tags for name, tags in self.parsed_bio.items() if name not in lenient}
        return dataclasses.replace(self, parsed=self.parsed | lenient, parsed_bio=bio)

    @property
    def example(self) -> Example:
        """The gold labels as an example (without text, which is not stored)."""
        return Example(self.id, "", self.gold, self.gold_bio)


@dataclass
class Results:
    """The content of ``results.json``.

    Attributes:
        system: a name for tables.
        task: name of the task.
        fields: field name → ``"class"``, ``"multi"`` or ``"token"``, in the task's order.
        model, checkpoint: names of the preset and of the checkpoint folder; empty for baselines.
        shots: number of few-shot examples in the prompt.
        prompt: the content of ``prompt.json``; None if there is no prompt.
        data, split: name of the examples' source, and their split.
        metrics: see `measure`.
        counts: problems in documents and answers; see :class:`eval.gather.ScoreResult`.
        cost: seconds and tokens, in total and per example.
        settings: all other settings: precision, lengths, seed.
        versions: Python, the packages that can change the figures, and the platform.
        weights: hash of the weights (:func:`eval.weights.hash_weights`); empty for systems without any, and in older
            files.
        predictions: SHA-256 of the ``predictions.jsonl`` of the same scoring, made by `write_run`; empty in older
            files.
        examples: hash of the examples with their gold labels (`hash_examples`); empty in older files.
        texts: hash of their texts alone (`hash_texts`); empty in older files.
        labels: by class field with probabilities, its labels, in the order of ``Prediction.log_probs``.
        others: by token field, what a word outside entities has for a label; older files lack it, and "Other" is taken.
    """

    system: Name
    task: Name
    fields: Annotated[dict[Name, FieldKind], msgspec.Meta(min_length=1, max_length=limits.FIELDS)]
    data: Name
    split: Name
    metrics: dict[str, Any]
    model: Name = ""
    checkpoint: Name = ""
    shots: int = 0
    prompt: dict[str, Any] | None = None
    counts: dict[str, int] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    weights: str = ""
    predictions: str = ""
    examples: str = ""
    texts: str = ""
    labels: dict[Name, list[str]] = field(default_factory=dict)
    others: dict[Name, Name] = field(default_factory=dict)

    @property
    def temperatures(self) -> dict[str, float]:
        """By class field, the temperature of its probabilities; without those that have none.

        Raises:
            UserError: the setting has another form.
        """
        found = self.settings.get("temperature") or {}
        return shaped(found, f"{RESULTS}: settings.temperature", dict[str, Temperature])


class _Figures(msgspec.Struct):
    """The figures of `Results.metrics` that tables show, of one reading of the answers."""

    n_examples: int
    n_unparsed: int
    exact_match: float
    fields: dict[str, dict[str, int | float | dict[str, dict[str, int | float]] | None]]


class _Metrics(_Figures):
    lenient: _Figures | None = None


def measure(
    task: HasFields,
    examples: Sequence[Example],
    predictions: Sequence[Prediction],
    temperatures: Mapping[str, float] | None = None,
    abstain_below: float | None = None,
) -> dict[str, Any]:
    """The metrics of a run (:func:`eval.metrics.compute_metrics`).

    If answers are text, ``"lenient"`` has the same of the lenient reading (`data.lenient`). If class fields have
    probabilities, their figures have those of `eval.probabilities.probability_figures`, and ``"coverage"`` the curves.
    With ``abstain_below`` there is also ``"abstaining"`` (`eval.probabilities.answered_figures`); all other figures are
    those of all answers.

    Args:
        temperatures: by class field, those of the probabilities.
        abstain_below: the threshold with which the predictions were marked (`mark_unsure`).
    """
    metrics = compute_metrics(task, examples, predictions)
    fields = with_probabilities(task.fields, predictions)
    for own in fields:
        gold = [example.class_label(own.name) for example in examples]
        found, curve = probability_figures(own, gold, predictions, (temperatures or {}).get(own.name))
        metrics["fields"][own.name] |= found
        metrics.setdefault("coverage", {})[own.name] = curve
    if abstain_below is not None:
        metrics["abstaining"] = {"below": abstain_below} | answered_figures(task, examples, predictions, fields)
    if any(p.lenient is not None for p in predictions):
        metrics["lenient"] = compute_metrics(task, examples, [p.read_leniently for p in predictions])
    return metrics


def mark_unsure(predictions: Sequence[Prediction], below: float | None) -> None:
    """Mark the labels that are not given, because they are less probable than ``below``; None: all are given."""
    for prediction in predictions:
        prediction.abstained = unsure_of(prediction, below) if below is not None else ()


def count_oddities(predictions: Sequence[Prediction]) -> dict[str, int]:
    """Sums of the answers' flags and counts, for ``Results.counts``."""
    return {
        "truncated": sum(p.truncated for p in predictions),
        "not_stopped": sum(not p.stopped for p in predictions),
        "labels_missing": sum(p.n_missing for p in predictions),
        "labels_extra": sum(p.n_extra for p in predictions),
        "labels_unknown": sum(p.n_unknown for p in predictions),
        "spans_not_found": sum(p.n_not_found for p in predictions),
    }


@dataclass(frozen=True)
class StoredTask:
    """The fields of a scored run, without label sets: what metrics and tables need."""

    name: str
    fields: tuple[Field, ...]


def field_kinds(task: HasFields) -> dict[str, FieldKind]:
    return {field.name: field.kind for field in task.fields}


def other_labels(task: HasFields) -> dict[str, str]:
    """`Results.others` of a task."""
    return {f.name: f.other for f in task.fields if isinstance(f, TokenField)}


def label_sets(task: HasFields) -> dict[str, list[str]]:
    """The labels of each class field: `Results.labels` of a run with probabilities."""
    return {f.name: list(f.labels) for f in task.fields if isinstance(f, ClassField)}


def stored_task(results: Results) -> StoredTask:
    """The fields of a scored run."""
    fields: list[Field] = []
    for name, kind in results.fields.items():
        labels = tuple(results.labels.get(name, ()))
        if kind == "token":
            fields.append(TokenField(name, labels, results.others.get(name, TokenField.other)))
        else:
            fields.append((ClassField if kind == "class" else MultiField)(name, labels))
    return StoredTask(results.task, tuple(fields))


def write_run(folder: Path, results: Results, predictions: Sequence[Prediction]) -> None:
    """Write both files; existing ones are replaced when both are complete and on the disk.

    ``results`` gets the hash of the predictions, so that `read_results` notices a pair of two scorings. If the process
    is killed between the two, there are predictions without results.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        new = {name: folder / new_name(name) for name in (PREDICTIONS, RESULTS)}
        _write(new[PREDICTIONS], (to_json(dataclasses.asdict(prediction)) + "\n" for prediction in predictions))
        results.predictions = sha256_of(new[PREDICTIONS])
        _write(new[RESULTS], [to_json(dataclasses.asdict(results), indent=2) + "\n"])
        (folder / RESULTS).unlink(missing_ok=True)
        for name, path in new.items():
            path.replace(folder / name)


def new_name(name: str) -> str:
    """The name of one of the two files until both are complete."""
    return f".{name}.new"


def _write(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(texts)
        file.flush()
        os.fsync(file.fileno())


def folder_of(run: Path) -> Path:
    """The folder of a scored run, which may be given by its ``results.json``."""
    return run.parent if run.name == RESULTS and run.is_file() else run


def read_results(folder: Path) -> Results:
    """Read ``results.json`` of a run, given by its folder or this file.

    Raises:
        UserError: the folder has none, or one in another format, or one beside the predictions of another scoring.
    """
    path = folder_of(folder) / RESULTS
    if not path.is_file():
        raise UserError(
            f"'{folder}' is not a scored run: it has no {RESULTS}. Give the --output folder of eval.py; if its scoring "
            "was interrupted, score again."
        )
    results = read_json(path, Results)
    metrics: _Metrics = shaped(results.metrics, f"{path}: metrics", _Metrics)
    for figures in filter(None, (metrics, metrics.lenient)):
        for name, kind in results.fields.items():
            if not isinstance(figures.fields.get(name, {}).get(main_figure(kind)), int | float):
                raise UserError(f"{path}: metrics.fields.{name}.{main_figure(kind)} is missing. Score again.")
    predictions = path.parent / PREDICTIONS
    if results.predictions and predictions.is_file() and sha256_of(predictions) != results.predictions:
        raise UserError(
            f"'{predictions}' is not of the scoring that wrote {RESULTS} beside it: another was interrupted between "
            "the two, or a file was replaced or changed. Score again."
        )
    return results


def read_predictions(folder: Path, results: Results | None = None) -> list[Prediction]:
    """All of ``predictions.jsonl``; see `each_prediction`."""
    return list(each_prediction(folder, results))


def each_prediction(folder: Path, results: Results | None = None) -> Iterator[Prediction]:
    """Read ``predictions.jsonl`` line by line, for files that are too large to keep.

    Args:
        results: of the same scoring, if the predictions are to be scored.

    Raises:
        UserError: no such file, or a line that is not a prediction of these fields (the message has its number).
    """
    path = folder_of(folder) / PREDICTIONS
    if not path.is_file():
        raise UserError(f"'{folder}' has no {PREDICTIONS}, the answers. Score again.")
    for where, line in read_lines(path):
        prediction: Prediction = parse_line(line, where, Prediction)
        if results is not None:
            for name, kind in results.fields.items():
                _check_field(prediction, name, kind, where)
                _check_probabilities(prediction, name, results.labels.get(name, []), where)
        yield prediction


def _check_field(prediction: Prediction, name: str, kind: FieldKind, where: str) -> None:
    """Refuse labels of another kind of field, and boundaries of another number of words."""
    gold, wanted = prediction.gold.get(name), str if kind == "class" else tuple
    others = (prediction.parsed.get(name), (prediction.lenient or {}).get(name))
    if not isinstance(gold, wanted) or not all(labels is None or isinstance(labels, wanted) for labels in others):
        what = {"class": "a label", "multi": "a list of labels", "token": "one label for each word"}[kind]
        raise UserError(f"{where}: gold and parsed must have {what} of {name!r}. Score again.")
    for tags in (prediction.gold_bio.get(name), prediction.parsed_bio.get(name)):
        if tags is not None and len(tags) != len(gold or ()):
            raise UserError(f"{where}: {len(tags)} boundaries of {name!r} for {len(gold or ())} words. Score again.")


def _check_probabilities(prediction: Prediction, name: str, labels: Sequence[str], where: str) -> None:
    """Refuse probabilities of other labels than those of the results."""
    if name not in prediction.log_probs:
        return
    best = next(iter(prediction.top.get(name, [])), [])
    is_pair = len(best) == 2 and isinstance(best[1], int | float) and 0 <= best[1] <= 1
    if not is_pair or len(prediction.log_probs[name]) != len(labels) or prediction.gold[name] not in labels:
        raise UserError(
            f"{where}: gold, top and log_probs of {name!r} must be of the {len(labels)} labels in {RESULTS}. "
            "Score again."
        )
