"""Score a decoder: prompt, decode, read the answer, compare with the gold labels.

    examples ─► prepare ─► balanced over ranks ─► greedy_decode ─► Task.read ─► gathered, in order ─►
    compute_metrics

Models are scored the same way before and after fine-tuning. Every example gets an answer: long documents are
truncated, and no example is dropped. Several ranks share the examples; rank 0 returns all answers in the given order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from torch import nn

from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import stop_tokens
from data.decoder.tokenizer import Tokenizer
from data.example import Example
from data.lenient import read_leniently
from data.tasks import ClassField, Task
from eval.decoder.decode import Decoded, NotFiniteLogits, batches, greedy_decode
from eval.decoder.labels import Answered, decode_labels, label_batches, valid_answers
from eval.decoder.tree_passes import grouped_by_size
from eval.finite import logits_error
from eval.gather import Share
from eval.job import BatchSize, RequestLengths, ScoringJob, ScoringRanks, TrieLoad, divide
from eval.partial import PartialAnswers
from eval.probabilities import as_stored, most_probable
from eval.results import Prediction
from eval.together import Stopped

BUDGET_MARGIN = 8  # tokens beyond the longest form of the longest answer, for other white space and a fence's language


@dataclass(frozen=True)
class Requests:
    """A job's requests, ready for decoding.

    Attributes:
        samples: their tokens.
        reserved: for each, the tokens that its document leaves to its answer if ``max_length`` is short.
        limits: for each, the maximum tokens of its answer: those of its longest form, or fewer if ``max_length`` leaves
            fewer.
    """

    samples: SampleSet
    reserved: Sequence[int]
    limits: Sequence[int]


def answer(
    model: nn.Module,
    job: ScoringJob,
    ranks: ScoringRanks,
    progress: Callable[[int], None] | None = None,
    partial: PartialAnswers | None = None,
) -> Share:
    """This rank's share of the answers that ``model`` decodes to the job's examples.

    Args:
        progress: called with the number of examples newly finished on this rank.
        partial: keeps each answer as it comes; examples that it has an answer to are not decoded.

    Raises:
        UserError: the prompt leaves no space for any document in ``max_length``.
        NotFinite: the model gives NaN or infinity for an example.
    """
    assert job.prompt is not None, "a decoder is prompted"
    requests = prepare_requests(job)
    samples, limits = requests.samples, requests.limits
    n_shortened = sum(limit < reserved for limit, reserved in zip(limits, requests.reserved, strict=True))
    own = divide(samples.lengths, ranks.world_size, partial.done if partial else ())[ranks.rank]
    bodies = [samples.body(i).tolist() for i in own]
    answers: dict[int, Prediction] = {}
    seconds_reading = 0.0

    def finished(found: Mapping[int, Decoded] | Mapping[int, Answered]) -> None:
        nonlocal seconds_reading
        begin = time.perf_counter()
        new = {own[k]: _read(job, samples, own[k], decoded) for k, decoded in found.items()}
        answers.update(new)
        if partial is not None:
            partial.add(new)
        if progress is not None:
            progress(len(new))
        seconds_reading += time.perf_counter() - begin

    tokenizer, prefix, own_limits = cast(Tokenizer, job.tokenizer), samples.prefix.tolist(), [limits[i] for i in own]
    how: dict[str, Any] = {
        "device": ranks.device,
        "max_batch_tokens": job.max_batch_tokens,
        "group": ranks.passes,
        "finished": finished,
        "stop": ranks.stop,
    }
    decoded: Sequence[Decoded | Answered]
    start = time.perf_counter()
    try:
        if job.decode == "labels":
            words, valid = [job.examples[i].words for i in own], valid_answers(job.task, job.prompt, tokenizer)
            decoded = decode_labels(model, prefix, bodies, words, own_limits, valid, **how)
        else:
            decoded = greedy_decode(model, prefix, bodies, own_limits, stop_tokens(job.prompt, tokenizer), **how)
    except Stopped:
        return Share.without_end()
    except NotFiniteLogits as error:
        raise logits_error(model, job.examples[own[error.request]]) from None
    seconds = time.perf_counter() - start - seconds_reading
    computed = (len(samples.prefix) if own else 0) + sum(map(len, bodies)) + sum(answer.n_fed for answer in decoded)
    return Share(own, [answers[i] for i in own], seconds, computed, {"limit_shortened": n_shortened})


def prepare_requests(job: ScoringJob) -> Requests:
    """Tokenize the job's examples, and compute the maximum length of each answer.

    An answer may have the longest of its forms. A model that was fine-tuned writes the shortest, and hardly longer ones
    than it learned: a list of all labels, or of every word as an entity, would cut documents that its training took
    whole. So these are reserved at most; a longer answer gets what the document leaves.

    Raises:
        UserError: the prompt leaves no space for any document in ``max_length``.
    """
    assert job.prompt is not None, "a decoder is prompted"
    tokenizer = cast(Tokenizer, job.tokenizer)
    if job.max_new_tokens is None:
        budgets = answer_budgets(job.task, tokenizer, job.examples)
        reserved = [written if job.fine_tuned else longest for written, longest in budgets]
        if job.fine_tuned and job.answer_tokens is not None:
            reserved = [min(n, job.answer_tokens + BUDGET_MARGIN) for n in reserved]
    else:
        reserved = [job.max_new_tokens] * len(job.examples)
        budgets = [(n, n) for n in reserved]
    samples = prepare(
        job.examples,
        job.task,
        job.prompt,
        tokenizer,
        job.max_length,
        with_labels=False,
        max_new_tokens=reserved,
        cache_dir=job.cache_dir,
    )
    left = (job.max_length - len(samples.prefix) - samples.lengths).tolist()  # for each answer, after its document
    return Requests(samples, reserved, [min(longest, n) for (_, longest), n in zip(budgets, left, strict=True)])


def request_lengths(job: ScoringJob) -> RequestLengths:
    """Lengths of the job's requests.

    Raises:
        UserError: see `prepare_requests`.
    """
    requests = prepare_requests(job)
    assert job.prompt is not None, "a decoder is prompted"
    labels = job.decode == "labels"
    tries = valid_answers(job.task, job.prompt, cast(Tokenizer, job.tokenizer)).load if labels else None
    return RequestLengths(len(requests.samples.prefix), requests.samples.lengths.tolist(), requests.limits, tries)


def batch_sizes(lengths: RequestLengths, n_ranks: int, max_batch_tokens: int) -> list[list[BatchSize]]:
    """The batches that each of ``n_ranks`` decodes, in order."""
    ranks = []
    for own in divide(lengths.bodies, n_ranks):
        bodies, limits = [lengths.bodies[i] for i in own], [lengths.limits[i] for i in own]
        if lengths.tries is None:
            grouped = batches(bodies, limits, max_batch_tokens)
            ranks.append([_size([(bodies[i], limits[i]) for i in batch]) for batch in grouped])
        else:
            ranks.append(
                [
                    size
                    for batch in label_batches(bodies, limits, lengths.tries, max_batch_tokens)
                    for size in _passes([(bodies[i], limits[i]) for i in batch], lengths.tries, max_batch_tokens)
                ]
            )
    return ranks


def _size(requests: Sequence[tuple[int, int]]) -> BatchSize:
    """Of a batch of requests with these bodies and limits."""
    longest, limit = max(body for body, _ in requests), max(limit for _, limit in requests)
    return BatchSize(len(requests), sum(body for body, _ in requests), longest + limit, limit)


def _passes(requests: Sequence[tuple[int, int]], tries: TrieLoad, max_batch_tokens: int) -> Iterator[BatchSize]:
    """Of the passes over a batch with ``--decode labels``; a field after the first one feeds a body's last token."""
    longest, limit = max(body for body, _ in requests), max(limit for _, limit in requests)
    slot_length = longest + tries.written(limit) if tries.stores else 0
    for k, field in enumerate(tries.fields):
        n_tokens, n_outputs = field or (0, 1)
        sizes = [((body if k == 0 else 1) + n_tokens, n_outputs) for body, _ in requests]
        groups = grouped_by_size(sizes, max_batch_tokens, tries.max_outputs)
        for group in groups:
            is_written = field is None and group is groups[-1]
            yield BatchSize(
                n_requests=len(requests),
                n_tokens=sum(sizes[i][0] for i in group),
                slot_length=slot_length,
                n_new_tokens=limit if is_written else 0,
                n_outputs=n_outputs * len(group) if field is not None else 0,
            )


def answer_budgets(task: Task, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[tuple[int, int]]:
    """Tokens of each example's longest answer with a margin: as training writes it, and in the longest form."""
    n_tokens = cache(lambda text: len(tokenizer.encode(text)))
    found = []
    for example in examples:
        written, *others = (n_tokens(text) + BUDGET_MARGIN for text in task.longest_forms(example.words, n_tokens))
        found.append((written, max(written, *others)))
    return found


def _read(job: ScoringJob, samples: SampleSet, i: int, answer: Decoded | Answered) -> Prediction:
    tokenizer = cast(Tokenizer, job.tokenizer)
    if isinstance(answer, Decoded):
        raw, n_tokens = tokenizer.decode(answer.tokens), len(answer.tokens) + answer.stopped
    else:
        raw = job.task.join(answer.values)
        n_tokens = len(tokenizer.encode(raw)) + 1
    prediction = read_answer(
        job.task,
        job.examples[i],
        raw,
        truncated=bool(samples.truncated[i]),
        stopped=answer.stopped,
        n_prompt_tokens=len(samples.prefix) + samples.length(i),
        n_new_tokens=n_tokens,
    )
    if isinstance(answer, Answered):
        for field in job.task.fields:
            if isinstance(field, ClassField):
                found = answer.log_probs[field.name].numpy()
                prediction.top[field.name] = most_probable(field, found)
                prediction.log_probs[field.name] = as_stored(found)
    return prediction


def read_answer(
    task: Task,
    example: Example,
    raw: str,
    *,
    truncated: bool,
    stopped: bool,
    n_prompt_tokens: int,
    n_new_tokens: int,
) -> Prediction:
    """Read an answer's text into labels, whatever wrote it. The arguments are the attributes of `Prediction`."""
    parsed = task.read(raw, example.words)
    lenient = read_leniently(task, raw, example.words, parsed).labels
    return Prediction(
        id=example.id,
        gold={field.name: example.labels[field.name] for field in task.fields if field.name in example.labels},
        gold_bio={name: tags for name, tags in example.bio.items() if name in {f.name for f in task.fields}},
        raw=raw,
        parsed=parsed.labels,
        parsed_bio=parsed.bio,
        unparsed=parsed.unparsed,
        truncated=truncated,
        stopped=stopped,
        n_prompt_tokens=n_prompt_tokens,
        n_new_tokens=n_new_tokens,
        n_missing=parsed.n_missing,
        n_extra=parsed.n_extra,
        n_unknown=parsed.n_unknown,
        n_not_found=parsed.n_not_found,
        n_labels=parsed.n_labels,
        lenient={name: labels for name, labels in lenient.items() if labels != parsed.labels[name]},
    )
