"""Score an encoder: compare each head's most probable labels of documents or words with the gold labels.

    examples ─► prepare ─► balanced over ranks ─► packed rows ─► heads ─► labels ─► gathered, in order ─►
    compute_metrics

A class field has its most probable label, a multi field every label that is more probable than not (above 0.5). A token
field's tags (``O``, ``B-time``, ``I-time``) give one type per word, as decoders write them: for the main score equal
neighbours form one entity. The strict score keeps the boundaries in the tags. A word without sub-words in the model's
input (truncated, or tokenized to nothing) is Other and counted as missing. No example is dropped.

Packing changes the order of the examples. That does not change the answers, because tokens attend only to their own
document (`model/attention.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from data.answers import iob2
from data.encoder.rows import build_batch, dummy_batch
from data.encoder.samples import AnyTokenizer, SampleSet, prepare, tag_set
from data.packing import pack, padded_length
from data.tasks import ClassField, MultiField, TokenField
from eval.finite import finite_rows, logits_error
from eval.gather import Share
from eval.job import BatchSize, RequestLengths, ScoringJob, ScoringRanks, divide
from eval.metrics import Labels
from eval.partial import PartialAnswers
from eval.probabilities import DIGITS, N_TOP, Top, as_stored, most_probable
from eval.results import Prediction
from eval.together import Stopped, any_rank


@torch.no_grad()
def answer(
    model: nn.Module,
    job: ScoringJob,
    ranks: ScoringRanks,
    progress: Callable[[int], None] | None = None,
    partial: PartialAnswers | None = None,
) -> Share:
    """This rank's share of the answers to the job's examples: the heads' most probable labels, without dropout.

    Args:
        model: maps ``(tokens, positions, doc_ids, output_index)`` to logits by field, as `model.encoder.Encoder`; its
            heads are exactly the task's fields.
        progress: called with the number of examples newly finished on this rank.
        partial: keeps each answer as it comes; examples that it has an answer to are left out.

    Raises:
        NotFinite: the model gives NaN or infinity for an example.
    """
    samples = prepare_samples(job)
    rows = rows_by_rank(samples.lengths, ranks.world_size, job.max_batch_tokens, partial.done if partial else ())
    own = rows[ranks.rank]
    answers: dict[int, Prediction] = {}
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    try:
        for indices in own:
            any_rank(True, ranks.passes, ranks.device, ranks.stop)
            batch = build_batch(samples, [indices]).to(ranks.device)
            logits = model(batch.tokens, batch.positions, batch.doc_ids, batch.index)
            not_finite = _first_not_finite(samples, indices, logits)
            if not_finite is not None:
                raise logits_error(model, job.examples[not_finite])
            found = dict(zip(indices, _read(job, samples, indices, logits), strict=True))
            answers.update(found)
            if partial is not None:
                partial.add(found)
            if progress is not None:
                progress(len(indices))
        # Every rank knows the number of rows of all ranks, so dummy passes need no communication.
        for _ in range(max(map(len, rows)) - len(own) if ranks.sharded else 0):
            any_rank(True, ranks.passes, ranks.device, ranks.stop)
            batch = dummy_batch(samples).to(ranks.device)
            model(batch.tokens, batch.positions, batch.doc_ids, batch.index)
    except Stopped:
        return Share.without_end()
    finally:
        model.train(was_training)
    seconds = time.perf_counter() - start
    computed = int(samples.lengths[list(answers)].sum())
    return Share(list(answers), list(answers.values()), seconds, computed)


def prepare_samples(job: ScoringJob) -> SampleSet:
    """Tokenize the job's examples."""
    assert job.prompt is None and isinstance(job.tokenizer, AnyTokenizer), "an encoder is not prompted"
    return prepare(
        job.examples, job.task, job.tokenizer, job.max_length, with_labels=False, cache_dir=job.cache_dir
    )  # fmt: skip


def request_lengths(job: ScoringJob) -> RequestLengths:
    """Lengths of the job's documents."""
    lengths = prepare_samples(job).lengths.tolist()
    return RequestLengths(0, lengths, [0] * len(lengths))


def batch_sizes(lengths: RequestLengths, n_ranks: int, max_batch_tokens: int) -> list[list[BatchSize]]:
    """The rows that each of ``n_ranks`` passes through the model, in order."""
    bodies = np.asarray(lengths.bodies)
    return [
        [BatchSize(len(row), padded_length(int(bodies[row].sum()))) for row in rows]
        for rows in rows_by_rank(bodies, n_ranks, max_batch_tokens)
    ]


def rows_by_rank(
    lengths: np.ndarray, n_ranks: int, max_batch_tokens: int, done: Collection[int] = ()
) -> list[list[list[int]]]:
    """For each rank its rows; a row is the list of indices of its examples. Examples in ``done`` are left out."""
    return [_rows(lengths, own, max_batch_tokens) for own in divide(lengths, n_ranks, done)]


def _rows(lengths: np.ndarray, indices: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of sample indices; a sample longer than ``capacity`` gets its own row."""
    packed = pack(np.minimum(lengths[list(indices)], capacity), capacity)
    return [[indices[k] for k in row] for row in packed]


def _first_not_finite(samples: SampleSet, indices: Sequence[int], logits: dict[str, Tensor]) -> int | None:
    """The first of a row's samples with NaN or infinity in its logits; None if there is none."""
    for field, own in logits.items():
        finite = finite_rows(own).tolist()
        if not all(finite):
            sample_of = [i for i in indices for _ in range(int(samples.n_outputs(field)[i]))]
            return sample_of[finite.index(False)]
    return None


def _read(job: ScoringJob, samples: SampleSet, indices: Sequence[int], logits: dict[str, Tensor]) -> list[Prediction]:
    """The answers to one row's samples, in the row's order.

    Args:
        logits: per class or multi field [documents, labels], per token field [words in the input, tags].
    """
    labels: list[Labels] = [{} for _ in indices]
    bio: list[dict[str, tuple[str, ...]]] = [{} for _ in indices]
    top: list[dict[str, Top]] = [{} for _ in indices]
    log_probs: list[dict[str, list[float]]] = [{} for _ in indices]
    multi_top: list[dict[str, Top]] = [{} for _ in indices]
    n_missing = [0] * len(indices)
    n_labels: list[dict[str, int]] = [{} for _ in indices]
    for field in job.task.fields:
        if isinstance(field, ClassField):
            for k, own_logits in enumerate(logits[field.name].double().cpu().numpy()):
                top[k][field.name] = most_probable(field, own_logits)
                labels[k][field.name] = str(top[k][field.name][0][0])
                log_probs[k][field.name] = as_stored(own_logits)
        elif isinstance(field, MultiField):
            for k, (chosen, likeliest) in enumerate(_more_probable_than_not(field, logits[field.name])):
                labels[k][field.name] = chosen
                multi_top[k][field.name] = likeliest
        else:
            in_input = [samples.first(i) >= 0 for i in indices]  # per document, [words] bool
            tags = iter(_most_probable_tags(field, logits[field.name]))
            for k, seen in enumerate(in_input):
                own = [next(tags) if word_seen else "O" for word_seen in seen.tolist()]
                bio[k][field.name] = iob2(own)
                labels[k][field.name] = tuple(field.other if tag == "O" else tag[2:] for tag in own)
                if not seen.all():
                    n_labels[k][field.name] = int(seen.sum())
                    n_missing[k] += int((~seen).sum())
            assert next(tags, None) is None, "a tag that belongs to no word"
    names, examples = {field.name for field in job.task.fields}, job.examples
    return [
        Prediction(
            id=examples[i].id,
            gold={name: label for name, label in examples[i].labels.items() if name in names},
            gold_bio={name: tags for name, tags in examples[i].bio.items() if name in names},
            raw="",
            parsed=labels[k],
            parsed_bio=bio[k],
            truncated=bool(samples.truncated[i]),
            n_prompt_tokens=int(samples.lengths[i]),
            n_missing=n_missing[k],
            n_labels=n_labels[k],
            top=top[k],
            log_probs=log_probs[k],
            multi_top=multi_top[k],
        )
        for k, i in enumerate(indices)
    ]


def _more_probable_than_not(field: MultiField, logits: Tensor) -> list[tuple[tuple[str, ...], Top]]:
    """Per document its labels, and its most probable labels with probabilities; ``logits``: [documents, labels]."""
    found = []
    for row in logits.float().sigmoid().tolist():
        order = sorted(range(len(row)), key=lambda i: -row[i])
        chosen = [i for i in range(len(row)) if row[i] > 0.5]
        shown = order[: max(N_TOP, len(chosen))]
        top: Top = [[field.labels[i], round(row[i], DIGITS)] for i in shown]
        found.append((tuple(field.labels[i] for i in chosen), top))
    return found


def _most_probable_tags(field: TokenField, logits: Tensor) -> list[str]:
    """Per word its most probable tag; ``logits``: [words, tags]."""
    tags = tag_set(field)
    return [tags[index] for index in logits.argmax(-1).tolist()]
