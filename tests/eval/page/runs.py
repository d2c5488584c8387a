"""Scored runs for the tests of pages, and what a page says when it is read as a browser reads it."""

from __future__ import annotations

from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from data.answers import Parsed
from data.example import Example, hash_examples
from data.lenient import read_leniently
from data.tasks import Task
from eval.metrics import Labels
from eval.results import (
    Prediction,
    Results,
    count_oddities,
    field_kinds,
    label_sets,
    measure,
    other_labels,
    write_run,
)

VOID = {"meta", "link", "br", "col"}


def predicted(task: Task, example: Example, raw: str, **more: Any) -> Prediction:
    """An answer's text, read as `eval.decoder.score.read_answer` reads it."""
    found = task.read(raw, example.words)
    gold = {field.name: example.labels[field.name] for field in task.fields}
    names = ("n_missing", "n_extra", "n_unknown", "n_not_found", "n_labels")
    counts = {name: getattr(found, name) for name in names}
    return Prediction(example.id, gold, raw, found.labels, unparsed=found.unparsed, gold_bio=dict(example.bio),
                      parsed_bio=found.bio, lenient=_changed(found, read_leniently(task, raw, example.words, found)),
                      **counts, **more)  # fmt: skip


def _changed(strict: Parsed, lenient: Parsed) -> Labels:
    return {name: labels for name, labels in lenient.labels.items() if labels != strict.labels[name]}


def scored(
    folder: Path, task: Task, examples: Sequence[Example], predictions: Sequence[Prediction], **about: Any
) -> Path:
    """Write a run that has these predictions."""
    with_probabilities = any(p.log_probs for p in predictions)
    known = {
        "system": "a model", "task": task.name, "fields": field_kinds(task), "data": task.dataset, "split": "test",
        "metrics": measure(task, examples, predictions), "counts": count_oddities(predictions),
        "examples": hash_examples(examples), "labels": label_sets(task) if with_probabilities else {},
        "others": other_labels(task),
    }  # fmt: skip
    write_run(folder, Results(**(known | about)), predictions)
    return folder


class Read(HTMLParser):
    """Reads a page, and notes what a browser would find in it.

    Attributes:
        elements: names and attributes of all elements.
        texts: what is shown, one entry for each piece.
        problems: elements that are not closed, or closed in another order.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.problems: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f"{name} is open" for name in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"{tag} is closed")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def named(self, name: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def check_harmless(page: str) -> Read:
    """A page that is well formed, runs nothing and loads nothing."""
    read = Read(page)
    assert not read.problems
    for tag, attributes in read.elements:
        assert tag not in ("script", "iframe", "img", "object", "embed", "base", "form", "image"), tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("href", "src", "xlink:href"):
                assert value.startswith(("#", "data:,")), (tag, value)
            assert name.startswith("xmlns") or "://" not in value or name in ("title",), (tag, name, value)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids)), "names are unique"
    assert "url(http" not in page and "@import" not in page
    return read
