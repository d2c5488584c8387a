"""Count examples, labels, words, slot entities and anomalies of all six tasks, as Markdown.

    python -m benchmarks.data_counts --newsgroups 20news-bydate.tar.gz --massive en-US.jsonl

The counts are of the loaders' output, which training and scoring use. Words are ``text.split()``.
"""

from __future__ import annotations

import hashlib
import platform
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.answers import entities
from data.command_line import cli
from data.errors import UserError
from data.example import Example
from data.readers.massive import INTENTS, MISMATCHES, OTHER, SLOT_TYPES, UTTERANCES_IN_RELEASE, read_massive
from data.readers.newsgroups import GROUPS, POSTS_IN_RELEASE, ROOTS, read_newsgroups
from data.tasks import TASKS, ClassField, Task
from data.terminal import open_streams

SPLITS = {"20ng": tuple(POSTS_IN_RELEASE), "massive": tuple(UTTERANCES_IN_RELEASE)}
Splits = dict[str, list[Example]]


@dataclass
class CountArgs:
    """Count both data sets and write a Markdown page."""

    newsgroups: Path
    """20news-bydate.tar.gz or its folder."""
    massive: Path
    """A JSON-lines file in MASSIVE's format, its folder or the release tarball."""
    massive_name: str = "MASSIVE-format (SLURP)"
    """Name of that data; use "MASSIVE 1.1 en-US" only for the release itself."""
    output: Path = Path(__file__).resolve().parent / "results" / "data_counts.md"
    """The page to write."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: the first column left-aligned, the others right-aligned, with thousands separators."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    lines = [list(header), ["---"] + ["---:"] * (len(header) - 1), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def label_counts(examples: list[Example], field: str) -> Counter[str]:
    """The count of each label: one an example for a class field, one a word for a token field."""
    counts: Counter[str] = Counter()
    for example in examples:
        value = example.labels[field]
        counts.update([value] if isinstance(value, str) else value)
    return counts


def task_row(task: Task, splits: Splits) -> list[object]:
    """A task's name, numbers of labels and of labels without a training example, then examples and words by split."""
    labels, unseen = [], []
    for field in task.fields:
        in_train = label_counts(splits["train"], field.name)
        labels.append(str(len(field.labels)) + ("" if isinstance(field, ClassField) else f" and {field.other}"))
        unseen.append(str(sum(in_train[label] == 0 for label in field.labels)))
    row: list[object] = [f"`{task.name}`", " + ".join(labels), " + ".join(unseen)]
    for split in ("train", "dev", "test"):
        row.append(len(splits[split]) if split in splits else "none")
    for split in ("train", "dev", "test"):
        row.append(sum(len(example.words) for example in splits[split]) if split in splits else "none")
    return row


def merged_entities(slots: Sequence[str]) -> int:
    """Entities in the paper's scheme, in which equal neighbours form one entity."""
    return len(entities(slots, OTHER))


def moved_answers(examples: list[Example]) -> int:
    """Examples whose answer of spans is read back at other places, because of repeated words (`data.answers.Spans`)."""
    task = TASKS["massive_slots"].with_slot_answer("spans")
    return sum(
        task.read(task.write(example.labels, example.words), example.words).labels["slots"] != example.labels["slots"]
        for example in examples
    )


def newsgroup_tables(splits: Splits) -> str:
    groups = {split: label_counts(examples, "group") for split, examples in splits.items()}
    roots = {split: label_counts(examples, "root") for split, examples in splits.items()}
    words = {split: sorted(len(example.words) for example in examples) for split, examples in splits.items()}
    parts = [
        "## 20 Newsgroups\n",
        table(("group", *splits), ([f"`{group}`", *(groups[split][group] for split in splits)] for group in GROUPS)),
        table(("root", *splits), ([f"`{root}`", *(roots[split][root] for split in splits)] for root in ROOTS)),
        table(
            ("words in a post", *splits),
            [
                ["fewest", *(found[0] for found in words.values())],
                ["median", *(f"{statistics.median(found):,g}" for found in words.values())],
                ["mean", *(f"{statistics.mean(found):,.1f}" for found in words.values())],
                ["most", *(found[-1] for found in words.values())],
            ],
        ),
    ]
    return "\n".join(parts)


def massive_tables(splits: Splits, name: str) -> str:
    intents = {split: label_counts(examples, "intent") for split, examples in splits.items()}
    words = {split: label_counts(examples, "slots") for split, examples in splits.items()}
    bracketed = {
        split: Counter(tag[2:] for example in examples for tag in example.bio["slots"] if tag.startswith("B-"))
        for split, examples in splits.items()
    }
    merged = [sum(merged_entities(example.labels["slots"]) for example in splits[split]) for split in splits]
    header = ("slot type", *(f"entities, {split}" for split in splits), *(f"words, {split}" for split in splits))
    by_split = (*(bracketed[split] for split in splits), *(words[split] for split in splits))
    rows: list[list[object]] = [[f"`{slot}`", *(count[slot] for count in by_split)] for slot in SLOT_TYPES]
    rows += [
        ["all slots", *(sum(count[slot] for slot in SLOT_TYPES) for count in by_split)],
        [f"`{OTHER}`", *("" for _ in splits), *(words[split][OTHER] for split in splits)],
    ]
    parts = [
        f"## {name}: intents\n",
        table(
            ("intent", *splits), ([f"`{intent}`", *(intents[split][intent] for split in splits)] for intent in INTENTS)
        ),
        f"## {name}: slots\n",
        "Entities are counted by the gold brackets. Where equal neighbours form one entity, as in the paper's score, "
        f"there are {', '.join(f'{count:,} ({split})' for count, split in zip(merged, splits, strict=True))}.\n",
        table(header, rows),
    ]
    return "\n".join(parts)


def oddity_table(header: str, counts: dict[str, Counter[str]], names: dict[str, str]) -> str:
    rows = ([text, *(count[kind] for count in counts.values())] for kind, text in names.items())
    return table((header, *counts), rows)


def describe(path: Path) -> str:
    """The file's name and checksum, which identify the data without a path of this machine."""
    if not path.is_file():
        return f"the folder `{path.name}`"
    with path.open("rb") as file:
        return f"`{path.name}`, SHA-256 `{hashlib.file_digest(file, 'sha256').hexdigest()}`"


def page(args: CountArgs) -> str:
    """The complete page."""
    readers = {"20ng": (read_newsgroups, args.newsgroups), "massive": (read_massive, args.massive)}
    splits: dict[str, Splits] = {"20ng": {}, "massive": {}}
    counts: dict[str, dict[str, Counter[str]]] = {"20ng": {}, "massive": {}}
    for name, (read, path) in readers.items():
        for split in SPLITS[name]:
            splits[name][split], counts[name][split] = read(path, split)
    for split, examples in splits["massive"].items():
        counts["massive"][split]["moved"] = moved_answers(examples)

    header = ("task", "labels", "of them not in train", "train", "dev", "test")
    header += tuple(f"words, {split}" for split in ("train", "dev", "test"))
    sizes = ", ".join(f"{count:,} {split}" for split, count in UTTERANCES_IN_RELEASE.items())
    command = "python -m benchmarks.data_counts --newsgroups PATH --massive PATH"
    parts = [
        "# What is in the data\n",
        f"Written by `{command}` under Python {platform.python_version()}; do not edit.\n",
        f"- 20 Newsgroups, bydate: {describe(args.newsgroups)}\n- {args.massive_name}: {describe(args.massive)}\n",
        f"{args.massive_name} is what the `massive_*` tasks are counted on here. MASSIVE 1.1 en-US itself has {sizes} "
        "utterances; figures on other data are not figures on it.\n",
        "## The six tasks\n",
        "Examples and words (`text.split()`) by split. Tasks on one data set share its examples; labels of several "
        "fields are joined by +.\n",
        table(header, (task_row(task, splits[task.dataset]) for task in TASKS.values())),
        "## What is odd in it\n",
        "No example is dropped for any of this; `data/readers/newsgroups.py` and `data/readers/massive.py` say what is "
        "done.\n",
        oddity_table(
            "20 Newsgroups, posts",
            counts["20ng"],
            {
                "empty": "empty",
                "not_ascii": "with bytes outside ASCII (read as Latin-1)",
                "looks_utf8": "of those, valid as UTF-8",
                "carriage_returns": "with carriage returns (made line ends)",
            },
        ),
        oddity_table(
            f"{args.massive_name}, utterances",
            counts["massive"],
            {
                "empty": "empty",
                **{kind: f"annotation does not match: {kind.replace('_', ' ')}" for kind in MISMATCHES},
                "entities_lost": "entities that no word took",
                "moved": "answers of spans that are read back at another place (repeated words)",
            },
        ),
        newsgroup_tables(splits["20ng"]),
        massive_tables(splits["massive"], args.massive_name),
    ]
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    open_streams()
    args = cli(CountArgs, argv, prog="python -m benchmarks.data_counts")
    try:
        text = page(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(text, encoding="utf-8")
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
