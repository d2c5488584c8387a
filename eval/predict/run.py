"""Label a file: read rows, answer them chunk by chunk, write each chunk when it is done.

Rank 0 reads and writes; the ranks share the texts of a chunk. So the output is in the order of the input, at most one
chunk is in memory, and an interrupted run loses at most one chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist

from checkpoints_tools.hf_config import DTYPES
from data import terminal
from data.example import Example
from data.readers.tables import PLAIN
from data.task_file import task_hash
from data.template import TextTemplate
from eval.config import EvalConfig
from eval.job import ScoringRanks
from eval.memory import ScoringLoad, check_fits, usable_now
from eval.predict.classifier import Classifier, Result, decoding_of, model_name
from eval.predict.columns import columns_of, to_columns
from eval.predict.config import PredictConfig
from eval.predict.inputs import Input, Row, columns_of_records, hash_of, is_read_once, open_input
from eval.predict.outputs import STANDARD_OUTPUT, Output, OutputClosed, open_output
from eval.predict.partial import CALIBRATION, kept_rows, partial_path
from eval.progress import RowProgress
from eval.score import request_lengths
from eval.setup import ModelSetup, build_model, open_model
from eval.weights import fingerprint
from train import stopping
from train.launched import env_rank
from train.parallel.distributed import World, pick_device, resolve_precision, start
from train.parallel.mesh import lay_out_world

log = logging.getLogger("eval")

CHUNK_ROWS = 1000
CHUNK_CHARACTERS = 4_000_000  # of the texts; a longer text is a chunk by itself
SHOWN = 5  # rows without an answer that are named at the end

# Options on which the answers or their columns depend, besides checkpoint and input.
IDENTIFYING = ("text_column", "format", "prefix", "model", "slot_answer", "list_labels", "template",
               "row_length", "max_length", "max_new_tokens", "abstain_below")  # fmt: skip


@dataclass
class Summary:
    """What happened to the rows of this run.

    Attributes:
        n_rows, n_truncated: rows that were written, and those whose text was cut.
        n_longer: rows whose text is, with prompt and answer, longer than the model was trained for.
        n_not_stopped: rows whose answer was cut at its token limit.
        n_unsure: rows with a label that is not given because it is not probable enough.
        n_unreadable: records whose text could not be read, also those that were done before an interruption.
        problems: the first rows without an answer, each with its location and the reason.
        n_problems: how many there are.
    """

    n_rows: int = 0
    n_truncated: int = 0
    n_longer: int = 0
    n_not_stopped: int = 0
    n_unsure: int = 0
    n_unreadable: int = 0
    n_problems: int = 0
    problems: tuple[str, ...] = ()

    def add(self, row: Row, result: Result) -> None:
        self.n_rows += 1
        self.n_truncated += result.truncated
        self.n_longer += result.exceeds_positions
        self.n_not_stopped += not result.stopped
        self.n_unsure += bool(result.unsure) and not result.error
        self.n_unreadable += row.unreadable
        if result.error:
            self.n_problems += 1
            if len(self.problems) < SHOWN:
                self.problems += (f"{row.where}: {result.error}",)

    def describe(self) -> str:
        """A line about all rows, and one for each of the first that have no answer."""
        rows = "1 row" if self.n_rows == 1 else f"{self.n_rows:,} rows"
        line = f"{rows}, {self.n_rows - self.n_problems - self.n_unsure:,} with all labels"
        if self.n_unsure:
            line += f"; {self.n_unsure:,} with a label that is not probable enough to be given"
        if self.n_truncated:
            line += f"; {self.n_truncated:,} texts were cut to the model's maximum length"
        if self.n_not_stopped:
            line += f"; {self.n_not_stopped:,} answers ran into their limit of tokens"
        if self.n_problems:
            line += f"; {self.n_problems:,} without, of which the first:" if self.n_problems > SHOWN else "; without:"
        return "\n".join([line, *(f"  {problem}" for problem in self.problems)])


def predict(options: PredictConfig) -> Summary:
    """Label ``options.input`` into ``options.output``. Under torchrun, the same on every rank.

    Raises:
        UserError: a checkpoint, task, input or output that cannot be used.
        OutputClosed: on rank 0, the reader of standard output wants no more.
    """
    device, shape = pick_device(options.device), lay_out_world(tp=options.tp)
    setup = open_model(_eval_options(options), labelled=False)
    precision = resolve_precision(options.precision, device.type)
    with ExitStack() as stack, stopping.saying(lambda: _kept(options)):
        files = stack.enter_context(_open_files(options, setup, precision)) if env_rank() == 0 else None
        if files is not None and device.type == "cuda":
            examples = [Example("", row.text, {}) for row in files.first if row.text is not None]
            load = ScoringLoad(setup.spec, setup.config, DTYPES[precision],
                               request_lengths(setup.job_of(examples, None)), options.batch_tokens)  # fmt: skip
            check_fits(load, options.tp, shape.n_data, usable_now(device))
        world = start(device, shape)
        model = build_model(setup, precision, device, world.mesh["tensor"] if options.tp > 1 else None)
        # Labels on a terminal are their own progress.
        silent = options.output == STANDARD_OUTPUT and terminal.is_terminal("stdout")
        return _label_all(Classifier(model, setup, device), files, world, options.prefix, world.is_main and not silent)


def _eval_options(options: PredictConfig) -> EvalConfig:
    assert options.checkpoint is not None
    same = ("checkpoint", "task", "slot_answer", "list_labels", "template", "row_length", "max_length",
            "max_new_tokens", "abstain_below", "batch_tokens", "tp")  # fmt: skip
    given = {name: getattr(options, name) for name in same}
    model = options.model or model_name(options.checkpoint)
    return EvalConfig(model=model, decode=decoding_of(model, options.decode), **given)


@dataclass
class _Files:
    """The open input and output of rank 0.

    Attributes:
        first, rest: the rows that are left to do.
        n_unreadable: records among the rows that were done before whose text could not be read.
    """

    input: Input
    output: Output
    first: list[Row]
    rest: Iterator[Row]
    n_unreadable: int


@contextmanager
def _open_files(options: PredictConfig, setup: ModelSetup, precision: str) -> Iterator[_Files]:
    defaults = (setup.task.text_column, "text")
    names = columns_of(setup.task, options.prefix, setup.with_probabilities, options.abstain_below is not None)
    template = TextTemplate(setup.task.text_template) if setup.task.text_template else None
    with open_input(
        options.input,
        options.format,
        options.text_column,
        defaults,
        dialect=options.dialect,
        template=template,
        words_column=(options.text_column or setup.task.text_column) if setup.task.has_words else None,
        conll_columns=setup.task.conll_columns,
    ) as opened:
        identity = None
        if opened.path is not None and options.output != STANDARD_OUTPUT:
            identity = {"input": hash_of(opened.path), "checkpoint": fingerprint(setup.weights.path)}
            identity["task"] = task_hash(setup.task)  # not its path, whose contents may have changed
            identity |= {name: str(getattr(options, name)) for name in IDENTIFYING} | {"precision": precision}
            if setup.calibration is not None:  # the one that is used
                fitted = setup.calibration.temperatures.items()
                identity[CALIBRATION] = ", ".join(f"{name} {temperature}" for name, temperature in sorted(fitted))
            if setup.prompt is not None:
                identity["decode"] = setup.options.decode
            if opened.format == "tsv":
                identity["tsv_quoting"] = str(options.tsv_quoting)
            # Only if they are given: outputs that were begun before these options can be continued.
            identity |= {name: value for name in ("delimiter", "encoding")
                         if (value := getattr(options, name)) != getattr(PLAIN, name)}  # fmt: skip
            if options.conll_columns:
                identity["conll_columns"] = "\t".join(options.conll_columns)
        with open_output(options.output, opened.columns, names, options.output_format, identity, opened.path,
                         records=columns_of_records(opened, options.dialect)) as output:  # fmt: skip
            if output.n_written:
                log.info("continuing after the %d rows that are done", output.n_written)
            n_unreadable = 0
            for row in islice(opened.rows, output.n_written):
                n_unreadable += row.unreadable
                if row.unreadable and n_unreadable <= SHOWN:
                    log.info("  %s: %s", row.where, row.error)
            yield _Files(opened, output, list(_take(opened.rows)), opened.rows, n_unreadable)


def _take(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows of the next chunk."""
    n_characters = 0
    for n, row in enumerate(rows, 1):
        yield row
        n_characters += len(row.text or "")
        if n >= CHUNK_ROWS or n_characters >= CHUNK_CHARACTERS:
            return


def _label_all(classifier: Classifier, files: _Files | None, world: World, prefix: str, show_progress: bool) -> Summary:
    ranks, summary = ScoringRanks.of(world), Summary(n_unreadable=files.n_unreadable if files is not None else 0)
    task, setup = classifier.task, classifier.setup
    more = setup.with_probabilities, setup.options.abstain_below is not None
    n_done, closed = files.output.n_written if files is not None else 0, False
    part = files.input.progress if files is not None else lambda: None
    with RowProgress(part, show_progress, n_done) as progress:
        for chunk, texts in _chunks(files, world):
            progress.read(len(chunk))
            before = progress.done
            # The other ranks finish about as many texts as this one.
            answers = iter(classifier.label(texts, ranks, lambda n: progress.advance(n * world.shape.n_data)))
            if files is None:
                continue
            found = [Result.unanswered(task, row.error) if row.text is None else next(answers) for row in chunk]
            is_csv = files.output.format == "csv"
            columns = (to_columns(result, task, prefix, *more, is_csv) for result in found)
            try:
                files.output.write(zip(chunk, columns, strict=True))
                files.output.flush()
            except OutputClosed:
                files.rest = iter(())  # then the next chunk is the end, on every rank
                closed = True
            for row, result in zip(chunk, found, strict=True):
                summary.add(row, result)
            progress.advance(before + len(chunk) - progress.done)
    if closed:
        raise OutputClosed
    if files is not None:
        files.output.finish()
    classifier.warn_of_length(summary.n_longer)
    return summary


def _chunks(files: _Files | None, world: World) -> Iterator[tuple[list[Row], list[str]]]:
    """Each chunk's rows (on rank 0) and texts (on every rank)."""
    chunk = files.first if files is not None else []
    while True:
        # None ends the loop on every rank. A chunk without a text is no end.
        shared: list[Any] = [[row.text for row in chunk if row.text is not None] if chunk else None]
        if world.size > 1:
            dist.broadcast_object_list(shared, src=0)
        if shared[0] is None:
            return
        yield chunk, shared[0]
        chunk = list(_take(files.rest)) if files is not None else []


def _kept(options: PredictConfig) -> str:
    """A sentence about the rows that are done, if the program is ended now; empty if there are none to go on with."""
    output = Path(options.output)
    partial = partial_path(output)
    return kept_rows(output, not is_read_once(options.input)) if partial.exists() and partial.stat().st_size else ""
