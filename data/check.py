"""Look for what spoils training or scoring in a task's labelled texts, before a run does.

    python -m data.check TASK [--data PATH] [--checkpoint DIR] [--row_length N]

TASK is a task file (``mine.toml``) or the name of a built-in task. The texts are read as training reads them. With
``--checkpoint`` they are also tokenized, and every label must come back from the tokenizer.

The report has a table of the splits, one of each field's labels, and findings: errors, which spoil training or scoring,
and warnings, which are worth knowing. Status: 0 no error, 1 an error, 2 something cannot be read.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.table import Table

from data import progress, terminal
from data.command_line import cli
from data.errors import UserError
from data.files.documents import permitted
from data.files.paths import PathText, parsed_paths
from data.findings import Facts, Finding, facts_of, findings
from data.readers.custom_examples import NOTES, UNUSED_LABELS
from data.source import load_examples, nothing_to_score, splits_of
from data.tasks import Field, TokenField, get_task
from data.terminal import literal, say, show

LABELS_SHOWN = 40  # rows of a table of labels
ORDER = ("train", "dev", "test")  # of the columns


@dataclass
class CheckArgs:
    """Look for what spoils training or scoring in a task's labelled texts."""

    task: Annotated[PathText, tyro.conf.Positional]
    """A task file (.toml), or the name of a built-in task."""
    data: PathText | None = None
    """Built-in tasks: a copy of the release, or 'sample'. A task file names its own data."""
    checkpoint: Path | None = None
    """A folder with a tokenizer, such as an export: counts tokens, and checks that every label comes back."""
    row_length: int | None = None
    """With --checkpoint: tokens that an example may have. Default: 2048; of an encoder 512, or its positions; of an
    export with heads what they were trained on."""


class _Messages(logging.Handler):
    """Keeps the readers' warnings and notes for the report, without those that `findings` has as well, and prints
    progress."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == progress.__name__:
            say(record.getMessage(), "stderr")
        elif record.name == NOTES:
            self.notes.append(record.getMessage())
        elif record.levelno >= logging.WARNING and record.name != UNUSED_LABELS:
            self.warnings.append(record.getMessage().removeprefix("warning: "))


def check(name: str, data: str | None = None, checkpoint: Path | None = None, row_length: int | None = None) -> bool:
    """Print the report.

    Args:
        name: a task file, or the name of a built-in task.
        data: as of `data.source.load_examples`.
        checkpoint: a folder with a tokenizer.
        row_length: how many tokens an example may have; None: as in training by default.

    Returns:
        Whether there is no error.

    Raises:
        UserError: texts or a tokenizer that cannot be read; names the problem of each split.
    """
    messages = _Messages()
    terminal.give_logs(messages)
    task = get_task(name)
    counter, found = None, list[Finding]()
    if checkpoint is not None:
        from data.token_counts import open_counter  # imports torch, which takes seconds

        counter = open_counter(checkpoint, task, row_length)
        found += counter.lost()
    start = time.perf_counter()
    splits, problems = list[Facts](), list[str]()
    for split in sorted(splits_of(task), key=ORDER.index):
        try:
            examples = load_examples(task, split, data)
        except UserError as error:
            problems.append(str(error))
            continue
        if not examples:
            found.append(Finding(True, f"{split} has no examples."))
            continue
        facts = facts_of(split, examples, task)
        if counter is not None:
            try:
                facts.tokens, facts.longest_row = counter.count(examples, split), counter.longest_row
            except UserError as error:  # too short for the prompt
                found.append(Finding(True, f"training would stop: {error}"))
                counter = None
        splits.append(facts)
        del examples  # a split may be most of the memory
    if note := nothing_to_score(task):
        found.append(Finding(False, note))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    seconds = time.perf_counter() - start

    n = sum(map(len, splits))
    say(f"{task.name}: {n:,} examples, read in {seconds:.1f} s")
    if splits:
        show(splits_table(splits, counter.describe() if counter is not None else ""))
        for field in task.fields:
            show(labels_table(splits, field))
        found += findings(splits, task)
    for note in messages.notes:
        say(f"note: {note}")
    return report([Finding(False, text) for text in dict.fromkeys(messages.warnings)] + found)


def splits_table(splits: Sequence[Facts], what_tokens: str = "tokens") -> Table:
    """A column for each split: how many examples and different texts, and how long they are.

    Args:
        what_tokens: are counted.
    """
    rows = {"examples": [f"{len(facts):,}" for facts in splits]}
    rows["different texts"] = [f"{len(np.unique(facts.texts)):,}" for facts in splits]
    rows["characters of a text: median"] = [_quantile(facts.characters, 50) for facts in splits]
    rows["99% have at most"] = [_quantile(facts.characters, 99) for facts in splits]
    rows["the longest"] = [_quantile(facts.characters, 100) for facts in splits]
    table = Table("", *(facts.split for facts in splits))
    counted = [(facts.tokens, facts.longest_row) for facts in splits if facts.tokens is not None]
    if len(counted) == len(splits):
        rows[f"{what_tokens}: median"] = [_quantile(tokens, 50) for tokens, _ in counted]
        rows["99% need at most"] = [_quantile(tokens, 99) for tokens, _ in counted]
        rows["the longest needs"] = [_quantile(tokens, 100) for tokens, _ in counted]
        rows[f"more than {counted[0][1]:,}, cut"] = [f"{(tokens > most).sum():,}" for tokens, most in counted]
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cells in rows.items():
        table.add_row(literal(name), *cells)
    return table


def _quantile(lengths: np.ndarray, percent: int) -> str:
    return f"{np.percentile(lengths, percent, method='inverted_cdf'):,.0f}"


def labels_table(splits: Sequence[Facts], field: Field) -> Table:
    """How many texts (words) of each split have each label that occurs: the most frequent and, of many, the rarest."""
    is_token = isinstance(field, TokenField)
    table = Table()
    table.add_column(literal(f"{field.name}, in {'words' if is_token else 'texts'}"), overflow="fold")
    for facts in splits:
        table.add_column(facts.split, justify="right")
    own = [facts.counts[field.name] for facts in splits]
    labels = sorted(set[str]().union(*own), key=lambda label: ([-counts[label] for counts in own], label))
    totals = [counts.total() if is_token else len(facts) for counts, facts in zip(own, splits, strict=True)]
    n_frequent = LABELS_SHOWN * 3 // 4
    for i, label in enumerate(labels):
        if len(labels) > LABELS_SHOWN and n_frequent <= i < n_frequent + len(labels) - LABELS_SHOWN:
            if i == n_frequent:
                table.add_row(f"... {len(labels) - LABELS_SHOWN:,} more")
            continue
        shares = (
            f"{counts[label]:,} ({counts[label] / total:6.1%})" for counts, total in zip(own, totals, strict=True)
        )
        table.add_row(literal(label), *shares)
    return table


def report(found: Sequence[Finding]) -> bool:
    """Print the findings, errors first; return whether there is no error."""
    errors, warnings = ([f for f in found if f.is_error is kind] for kind in (True, False))
    for finding in (*errors, *warnings):
        say(f"{'error' if finding.is_error else 'warning'}: {finding.text}")
    counts = [f"{len(own)} {what}{'' if len(own) == 1 else 's'}" for own, what in
              ((errors, "error"), (warnings, "warning")) if own]  # fmt: skip
    say(" and ".join(counts) if counts else "nothing found")
    return not errors


def main(argv: list[str] | None = None) -> int:
    terminal.open_streams()
    args = cli(CheckArgs, argv, prog="python -m data.check")
    try:
        args = parsed_paths(args)
        if args.row_length is not None and args.checkpoint is None:
            raise UserError(f"--row_length {args.row_length} is for --checkpoint: without a tokenizer nothing is cut.")
        if args.row_length is not None and args.row_length < 1:
            raise UserError(f"--row_length {args.row_length}: must be 1 or more.")
        with permitted():
            fine = check(args.task, args.data, args.checkpoint, args.row_length)
    except UserError as error:
        terminal.say(f"error: {error}", "stderr")
        return error.status
    except KeyboardInterrupt:
        return 130
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(terminal.status_of(main()))
