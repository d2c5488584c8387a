"""Baselines: the majority class, and TF-IDF with logistic regression (scikit-learn).

    python -m eval.baselines --task massive_joint --data sample --output runs/baselines

trains both on the training split and scores them on the test split, with the same metrics as models. It writes two runs
in the format of ``eval.py``: ``<output>/majority`` and ``<output>/tfidf_lr``.

A class field is predicted from the document's word 1- and 2-grams, and each label of a multi field by itself (one
against the rest). A token field is predicted word by word, from the
word, its prefix, suffix and shape, and two words on each side.
"""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from data.command_line import cli
from data.errors import UserError
from data.example import Example, hash_examples
from data.files.paths import PathText, parsed_paths
from data.source import draw_to_score, draw_to_train, holdout, load_examples
from data.tasks import ClassField, MultiField, Task, TokenField, get_task
from eval.metrics import Labels, compute_metrics
from eval.output import check_free, output_folder
from eval.provenance import hash_texts, versions
from eval.report import compare_command, show_comparison
from eval.results import Prediction, Results, field_kinds, other_labels, write_run
from train.parallel.distributed import run_guarded, set_up_logging

log = logging.getLogger(__name__)

SYSTEMS = {"majority": "majority class", "tfidf_lr": "TF-IDF + logistic regression"}
INVERSE_REGULARIZATION = 10.0  # scikit-learn's C; the default of 1 underfits TF-IDF features, which are small
Label = str | tuple[str, ...]  # of one example
_Label = TypeVar("_Label", str, tuple[str, ...])
MAX_FEATURES = 200_000  # the most frequent n-grams; all 1.5 million of 20NG would need gigabytes and change little


@dataclass(frozen=True)
class BaselineConfig:
    task: PathText
    """Which task: a name or a TOML file."""
    data: PathText | None = None
    """The data set: a path, or 'sample' for the embedded one; default: the folder that data.download writes to."""
    split: Literal["dev", "test"] | None = None
    """The examples to score; default: test. Training is always on the training split."""
    holdout: float = 0.0
    """Score this part of the training split instead, and train on the rest: the same as train.py holds out. Without
    --split."""
    limit: int | None = None
    """Train on only this many examples: those that train.py --limit draws."""
    score_limit: int | None = None
    """Score only this many examples: those that eval.py --limit draws."""
    output: Path = Path("runs/baselines")
    """Folder for the two runs."""
    seed: int = 0
    """Seed of the optimizer and of the draws."""


def majority(task: Task, train: Sequence[Example], test: Sequence[Example]) -> list[Labels]:
    """The most frequent label of each class field and set of labels of each multi field.

    For every word it is the most frequent type (in practice: Other).
    """
    columns: dict[str, Sequence[Label]] = {}
    for field in task.fields:
        if isinstance(field, TokenField):
            kind = _most_frequent(kind for example in train for kind in example.word_labels(field.name))
            columns[field.name] = [(kind,) * len(example.labels[field.name]) for example in test]
        elif isinstance(field, MultiField):
            columns[field.name] = [_most_frequent(example.label_set(field.name) for example in train)] * len(test)
        else:
            columns[field.name] = [_most_frequent(example.class_label(field.name) for example in train)] * len(test)
    return _by_example(columns, len(test))


def _most_frequent(labels: Iterable[_Label]) -> _Label:
    counts = Counter(labels)
    return max(sorted(counts), key=counts.__getitem__)


def _by_example(columns: Mapping[str, Sequence[Label]], n: int) -> list[Labels]:
    return [{name: column[i] for name, column in columns.items()} for i in range(n)]


def tfidf_lr(task: Task, train: Sequence[Example], test: Sequence[Example], seed: int = 0) -> list[Labels]:
    """One logistic regression per field, for a multi field one per label."""
    columns: dict[str, Sequence[Label]] = {}
    with warnings.catch_warnings():  # many labels are still classes, and not numbers
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        for field in task.fields:
            if isinstance(field, MultiField):
                columns[field.name] = _choose_labels(field, train, test, seed)
            else:
                fit = _classify_documents if isinstance(field, ClassField) else _classify_words
                columns[field.name] = fit(field.name, train, test, seed)
    return _by_example(columns, len(test))


def _regression(seed: int) -> LogisticRegression:
    return LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=1000, random_state=seed % 2**32)  # it takes no more


def _word_vectors() -> TfidfVectorizer:
    # Keep words of one letter ("i", "a"), because utterances are short.
    return TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", max_features=MAX_FEATURES
    )


def _have_words(examples: Sequence[Example]) -> bool:
    return any(re.search(r"\w", example.text) for example in examples)


def _classify_documents(name: str, train: Sequence[Example], test: Sequence[Example], seed: int) -> list[str]:
    gold = [example.class_label(name) for example in train]
    if len(set(gold)) == 1 or not _have_words(train):  # scikit-learn needs two classes, and a word
        return [_most_frequent(gold)] * len(test)
    classifier = make_pipeline(_word_vectors(), _regression(seed)).fit([example.text for example in train], gold)
    return [str(label) for label in classifier.predict([example.text for example in test])]


def _choose_labels(
    field: MultiField, train: Sequence[Example], test: Sequence[Example], seed: int
) -> list[tuple[str, ...]]:
    if not _have_words(train):
        return [_most_frequent(example.label_set(field.name) for example in train)] * len(test)
    vectorizer = _word_vectors()
    vectors = vectorizer.fit_transform([example.text for example in train])
    new = vectorizer.transform([example.text for example in test])
    columns = []
    for label in field.labels:
        gold = [label in example.label_set(field.name) for example in train]
        is_constant = len(set(gold)) == 1  # scikit-learn needs both
        columns.append(gold[:1] * len(test) if is_constant else _regression(seed).fit(vectors, gold).predict(new))
    return [
        tuple(label for label, has in zip(field.labels, row, strict=True) if has) for row in zip(*columns, strict=True)
    ]


def _classify_words(name: str, train: Sequence[Example], test: Sequence[Example], seed: int) -> list[tuple[str, ...]]:
    gold = [kind for example in train for kind in example.word_labels(name)]
    features = [f for example in train for f in word_features(example.words)]
    assert len(features) == len(gold), "one type per word"
    if len(set(gold)) == 1:
        return [(gold[0],) * len(example.words) for example in test]
    classifier = make_pipeline(DictVectorizer(), _regression(seed)).fit(features, gold)
    flat = [f for example in test for f in word_features(example.words)]
    predicted = iter([str(kind) for kind in classifier.predict(flat)] if flat else [])
    return [tuple(next(predicted) for _ in example.words) for example in test]


def word_features(words: Sequence[str], window: int = 2) -> list[dict[str, float]]:
    """Sparse features of each word: the word, its prefix, suffix and shape, and its neighbours by distance."""
    lowered = [word.lower() for word in words]
    rows = []
    for i, word in enumerate(words):
        low = lowered[i]
        features = {"bias": 1.0, f"prefix={low[:3]}": 1.0, f"suffix={low[-3:]}": 1.0}
        features["digits"] = float(any(c.isdigit() for c in word))
        features["capital"] = float(word[:1].isupper())
        for distance in range(-window, window + 1):
            at = i + distance
            neighbour = lowered[at] if 0 <= at < len(words) else "<edge>"
            features[f"{distance}={neighbour}"] = 1.0
        if i:
            features[f"pair={lowered[i - 1]} {low}"] = 1.0
        rows.append(features)
    return rows


def run_baselines(config: BaselineConfig) -> list[Results]:
    """Train, score and write both baselines.

    Raises:
        UserError: unknown task, missing data, nothing to train on, or output folders that cannot be written or have
            other results.
    """
    for name in ("limit", "score_limit"):
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"{name} = {value}: must be at least 1.")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed = {config.seed}: must be 0 or more, and below 2**63.")  # as train.py has it
    if config.holdout and config.split is not None:
        raise UserError(
            f"holdout = {config.holdout:g} scores a part of the training split, and split = {config.split} another "
            "one. Give one of the two."
        )
    task = get_task(config.task)
    train = load_examples(task, "train", config.data)
    split = config.split or "test"
    if config.holdout:
        train, test = holdout(train, config.holdout, config.seed)
    else:
        test = load_examples(task, split, config.data)
    if config.limit is not None and config.limit < len(train):
        train = draw_to_train(train, config.limit, config.seed)
    if config.score_limit is not None and config.score_limit < len(test):
        test = draw_to_score(test, config.score_limit, config.seed)
    if not train or not test:
        raise UserError(f"{task.name}: {len(train)} training and {len(test)} {split} examples; both are needed.")
    with ExitStack() as stack:
        new = {key: _about(config, task, system, train, test) for key, system in SYSTEMS.items()}
        for key, results in new.items():
            stack.enter_context(output_folder(config.output / key))
            check_free(config.output / key, results)
        for key, results in new.items():
            _run(config, task, key, results, train, test)
    return list(new.values())


def _about(config: BaselineConfig, task: Task, system: str, train: list[Example], test: list[Example]) -> Results:
    """The results but for the figures."""
    return Results(
        system=system,
        task=task.name,
        fields=field_kinds(task),
        others=other_labels(task),
        data=Path(config.data).name if config.data else task.dataset,
        split="train, held out" if config.holdout else config.split or "test",
        metrics={},
        settings={"seed": config.seed, "train_examples": len(train)},
        versions=versions(),
        examples=hash_examples(test),
        texts=hash_texts(test, task.name),
    )


def _run(
    config: BaselineConfig, task: Task, key: str, results: Results, train: list[Example], test: list[Example]
) -> None:
    """Train and score one baseline; completes and writes its results."""
    start = time.perf_counter()
    answers = majority(task, train, test) if key == "majority" else tfidf_lr(task, train, test, config.seed)
    results.settings["train_and_predict_seconds"] = seconds = time.perf_counter() - start
    names = {field.name for field in task.fields}
    predictions = [
        Prediction(
            id=example.id,
            gold={name: value for name, value in example.labels.items() if name in names},
            gold_bio={name: tags for name, tags in example.bio.items() if name in names},
            raw="",
            parsed=answer,
        )
        for example, answer in zip(test, answers, strict=True)
    ]
    results.metrics = compute_metrics(task, test, predictions)
    write_run(config.output / key, results, predictions)
    log.info("%s: %.1f s, written to %s", results.system, seconds, config.output / key)


def main() -> None:
    set_up_logging()
    config = cli(
        BaselineConfig,
        prog="python -m eval.baselines",
        description="Train and score the baselines: majority class, and TF-IDF with logistic regression.",
    )
    config = parsed_paths(config)
    show_comparison(run_baselines(config))
    folders = [config.output / key for key in SYSTEMS]
    log.info("To see a scored model beside them, add its folder to:\n  %s", compare_command(*folders))


if __name__ == "__main__":
    run_guarded(main)
