"""Lengths of a scoring run's requests: counted as in the run, or assumed if tokenizer or data are missing."""

from __future__ import annotations

import logging

import numpy as np

from data.source import DATA_SETS
from data.tasks import ClassField, Field
from eval.decoder.labels import max_outputs
from eval.decoder.score import BUDGET_MARGIN
from eval.job import RequestLengths, TrieLoad
from eval.score import request_lengths
from eval.setup import ScoringSetup
from train.planning.workload import assume_samples

log = logging.getLogger(__name__)

# Tokens of an answer that is indented, as a multiple of those on one line, and of a code fence. Llama's tokenizers need
# up to 1.34 and 5 on the paper's tasks.
LONGEST_FORM, FENCE = 1.5, 6
CHARACTERS_OF_TOKEN = 3  # at least, in a label


def find_lengths(setup: ScoringSetup) -> tuple[RequestLengths, str | None]:
    """The lengths of the requests that ``setup`` scores; if they are assumed, also a sentence that says so.

    Raises:
        UserError: see `eval.score.request_lengths`.
    """
    if not setup.missing:
        return request_lengths(setup.job), None
    n_shots = len(setup.prompt.shots) if setup.prompt is not None else setup.options.shots or 0
    samples, description = assume_samples(setup.task, setup.config, n_shots, setup.max_length, setup.examples)
    if setup.examples is not None:
        n = len(setup.examples)
    else:
        n = min(setup.options.limit or len(samples), DATA_SETS[setup.task.dataset].n_test)
    indices = np.linspace(0, len(samples) - 1, n).astype(int)  # sorted by length, so the longest is included
    prefix, lengths, budget = len(samples.prefix), samples.costs[indices], 0
    if setup.spec.kind == "decoder":
        lengths = lengths - samples.label_lengths[indices]
        longest_form = int(LONGEST_FORM * samples.label_lengths.max()) + FENCE
        budget = setup.options.max_new_tokens or longest_form + BUDGET_MARGIN
    limits = np.clip(setup.max_length - prefix - lengths, 0, budget)
    sentence = f"examples ({' and '.join(setup.missing)}): {n:,}, with the lengths of the training data: {description}"
    tries = _assume_tries(setup) if setup.options.decode == "labels" else None
    return RequestLengths(prefix, lengths.tolist(), limits.tolist(), tries), sentence


def _assume_tries(setup: ScoringSetup) -> TrieLoad:
    """The tries of a task's labels without a tokenizer: their characters, and that all tokens before are the same."""

    def size(field: Field) -> tuple[int, int] | None:
        n = sum(len(label) // CHARACTERS_OF_TOKEN + 2 for label in field.labels)
        return (n, n) if isinstance(field, ClassField) else None

    fields = tuple(map(size, setup.task.fields))
    return TrieLoad(fields, max_outputs(setup.config.vocab_size), stores=len(fields) > 1 or None in fields)


def warn_of_length(setup: ScoringSetup) -> None:
    """Log how many of a decoder's inputs are longer than the model was trained for, if any, as training does."""
    limit = setup.config.max_position
    if setup.max_length <= limit:
        return
    lengths = request_lengths(setup.job)
    n_longer = sum(
        lengths.prefix + body + answer > limit for body, answer in zip(lengths.bodies, lengths.limits, strict=True)
    )
    if n_longer:
        log.warning("warning: row_length %d exceeds the %d tokens the model was trained for; %d of %d inputs may be "
                    "longer with their answers.", setup.max_length, limit, n_longer, len(lengths.bodies))  # fmt: skip
