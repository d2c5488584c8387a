"""Answers of a model of either kind, and their score: calls the code of decoders or of encoders."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from eval.decoder import score as decoder_score
from eval.encoder import score as encoder_score
from eval.gather import ScoreResult, gather_answers, gather_scores
from eval.job import BatchSize, RequestLengths, ScoringJob, ScoringRanks
from eval.partial import PartialAnswers
from eval.probabilities import set_temperatures
from eval.results import Prediction, mark_unsure

# Both modules define `answer`, `request_lengths` and `batch_sizes`.
SCORERS = {"decoder": decoder_score, "encoder": encoder_score}


def answer(
    model: nn.Module,
    job: ScoringJob,
    ranks: ScoringRanks | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[Prediction]:
    """The answers to the job's examples, which need no gold labels, in their order; empty on ranks other than 0.

    Args and errors as of `score`.
    """
    ranks = ranks or ScoringRanks()
    share = SCORERS[job.kind].answer(model, job, ranks, progress)
    answers = gather_answers(len(job.examples), share, ranks)
    set_temperatures(job.task.fields, answers, job.temperatures)
    mark_unsure(answers, job.abstain_below)
    return answers


def score(
    model: nn.Module,
    job: ScoringJob,
    ranks: ScoringRanks | None = None,
    progress: Callable[[int], None] | None = None,
    partial: PartialAnswers | None = None,
) -> ScoreResult:
    """Score ``model`` on the job's examples: a decoder by its decoded answers, an encoder by its heads.

    Args:
        ranks: None: a single process on the CPU.
        progress: called with the number of examples newly finished on this rank.
        partial: answers of an interrupted scoring, which are taken as they are, but for temperatures and abstaining:
            those of the job are applied to all answers at the end. It keeps the new ones as they come. None: they are
            kept nowhere.

    Raises:
        UserError, NotFinite: see `eval.decoder.score.answer`.
    """
    ranks = ranks or ScoringRanks()
    share = SCORERS[job.kind].answer(model, job, ranks, progress, partial)
    earlier = partial.answers if partial else {}
    return gather_scores(job.task, job.examples, share, ranks, earlier, job.temperatures, job.abstain_below)


def request_lengths(job: ScoringJob) -> RequestLengths:
    """Lengths of the job's requests; tokenizes them or reads them from the cache, as `score` does.

    Raises:
        UserError: see `eval.decoder.score.answer`.
    """
    return SCORERS[job.kind].request_lengths(job)


def batch_sizes(kind: str, lengths: RequestLengths, n_ranks: int, max_batch_tokens: int) -> list[list[BatchSize]]:
    """The batches that each of ``n_ranks`` runs, as `score` groups them."""
    return SCORERS[kind].batch_sizes(lengths, n_ranks, max_batch_tokens)
