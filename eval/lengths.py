"""How long the requests of a scoring run are: counted as the run counts them, or assumed where that cannot be done."""

from __future__ import annotations

import numpy as np

from eval.decoder.score import BUDGET_MARGIN
from eval.job import RequestLengths
from eval.score import request_lengths
from eval.setup import ScoringSetup
from train.planning.workload import assume_samples

TEST_SPLITS = {"20ng": 7532, "massive": 2974}  # examples


def find_lengths(setup: ScoringSetup) -> tuple[RequestLengths, str | None]:
    """The lengths of what ``setup`` scores; where they had to be assumed, with a sentence that says so.

    Raises:
        UserError: see `eval.score.request_lengths`.
    """
    if not setup.missing:
        return request_lengths(setup.job), None
    n_shots = len(setup.prompt.shots) if setup.prompt is not None else setup.options.shots or 0
    samples, said = assume_samples(setup.task, setup.config, n_shots, setup.max_length, setup.examples)
    if setup.examples is not None:
        n = len(setup.examples)
    else:
        n = min(setup.options.limit or len(samples), TEST_SPLITS.get(setup.task.dataset, len(samples)))
    places = np.linspace(0, len(samples) - 1, n).astype(int)  # in order of length: the longest is among them
    prefix, lengths, budget = len(samples.prefix), samples.costs[places], 0
    if setup.spec.kind == "decoder":
        lengths = lengths - samples.label_lengths[places]
        budget = setup.options.max_new_tokens or int(samples.label_lengths.max()) + BUDGET_MARGIN
    limits = np.clip(setup.max_length - prefix - lengths, 0, budget)
    sentence = f"examples ({' and '.join(setup.missing)}): {n:,}, like the training data's {said}"
    return RequestLengths(prefix, lengths.tolist(), limits.tolist()), sentence
