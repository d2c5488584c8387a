"""Score a model of either kind: calls the scoring code of decoders or of encoders."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from eval.decoder import score as decoder_score
from eval.encoder import score as encoder_score
from eval.gather import ScoreResult
from eval.job import BatchSize, RequestLengths, ScoringJob, ScoringRanks

# Both modules define `score`, `request_lengths` and `batch_sizes`.
SCORERS = {"decoder": decoder_score, "encoder": encoder_score}


def score(
    model: nn.Module,
    job: ScoringJob,
    ranks: ScoringRanks | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScoreResult:
    """Score ``model`` on the job's examples: a decoder by its decoded answers, an encoder by its heads.

    Args:
        ranks: None: a single process on the CPU.
        progress: called with the number of examples newly finished on this rank.

    Raises:
        UserError: see `eval.decoder.score.score`.
    """
    return SCORERS[job.kind].score(model, job, ranks or ScoringRanks(), progress)


def request_lengths(job: ScoringJob) -> RequestLengths:
    """Lengths of the job's requests; tokenizes them or reads them from the cache, as `score` does.

    Raises:
        UserError: see `eval.decoder.score.score`.
    """
    return SCORERS[job.kind].request_lengths(job)


def batch_sizes(kind: str, lengths: RequestLengths, n_ranks: int, max_batch_tokens: int) -> list[list[BatchSize]]:
    """The batches that each of ``n_ranks`` runs, as `score` groups them."""
    return SCORERS[kind].batch_sizes(lengths, n_ranks, max_batch_tokens)
