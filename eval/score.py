"""Score a model: prompt, decode, read the answer back, compare with the gold labels.

    examples ─► prepare ─► dealt to ranks ─► greedy_decode ─► parse_answer ─► gathered, in order ─►
    compute_metrics

Nothing here knows whether a model was fine-tuned. Every example gets an answer, however long its document:
documents are truncated, examples never dropped. Several ranks split the examples; rank 0 returns them all in
the order given.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from data.example import Example
from data.packing import deal_in_turns
from data.prepare import SampleSet, prepare
from data.prompts import Prompt, encode_pieces
from data.tasks import Task, TokenField
from data.tokenizer import Tokenizer
from eval.decoder import Decoded, greedy_decode
from eval.metrics import compute_metrics
from eval.parse import parse_answer
from eval.results import Prediction, count_oddities

BUDGET_MARGIN = 8  # tokens an answer may have beyond the longest valid one: white space, quotes, a code fence


@dataclass
class ScoreResult:
    """What :func:`score_model` found.

    Attributes:
        predictions: one per example, in the order given; empty on ranks other than 0.
        metrics: see :func:`eval.metrics.compute_metrics`; the same on every rank.
        counts: ``truncated`` documents; answers ``not_stopped`` (cut by the limit on their length); in lists of labels,
            ``labels_missing``, ``labels_extra`` and ``labels_unknown``; and ``limit_shortened``, answers for which
            ``max_length`` has less room than the longest valid one needs.
        cost: ``seconds`` from the first forward pass to the last answer, on the slowest rank;
            ``seconds_per_example`` (seconds over all examples, so the ranks' and batches' parallelism is in
            it; with batches of one on one rank it is the latency of a call); and mean tokens per example:
            ``prompt_tokens`` (prefix included), ``computed_tokens`` (prefix counted once a rank) and
            ``new_tokens``.
    """

    predictions: list[Prediction]
    metrics: dict[str, Any]
    counts: dict[str, int]
    cost: dict[str, float]


def score_model(
    model: nn.Module,
    tokenizer: Tokenizer,
    task: Task,
    prompt: Prompt,
    examples: Sequence[Example],
    *,
    max_length: int,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    group: dist.ProcessGroup | None = None,
    sharded: bool = False,
    max_new_tokens: int | None = None,
    max_batch_tokens: int = 4096,
    cache_dir: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScoreResult:
    """Score ``model`` on ``examples`` by what it emits.

    Args:
        prompt: its prefix is prefilled once a rank, not once an example.
        max_length: prompt and answer together, in tokens; documents are truncated to it.
        rank, world_size, group: the ranks that split the examples (``group`` None: all of them).
        sharded: the model's forward pass is collective (FSDP2), so all ranks must run equally many.
        max_new_tokens: longest answer, the end-of-turn token not counted; default: by :func:`answer_budgets`.
        max_batch_tokens: bound on the tokens of a decoding batch; 1 decodes one example at a time.
        cache_dir: where tokenized examples are cached; None: nowhere.
        progress: called with the number of examples newly finished on this rank.

    Raises:
        UserError: the prompt leaves no room for any document in ``max_length``.
    """
    budgets = [max_new_tokens] * len(examples)
    if max_new_tokens is None:
        budgets = answer_budgets(task, tokenizer, examples)
    samples = prepare(
        examples, task, prompt, tokenizer, max_length, with_labels=False, max_new_tokens=budgets, cache_dir=cache_dir
    )
    room = (max_length - len(samples.prefix) - samples.lengths).tolist()  # what each document leaves for its answer
    limits = [min(budget, left) for budget, left in zip(budgets, room, strict=True)]
    n_shortened = sum(limit < budget for limit, budget in zip(limits, budgets, strict=True))
    own = deal_in_turns(samples.lengths, world_size)[rank]
    bodies = [samples.body(i).tolist() for i in own]

    start = time.perf_counter()
    decoded = greedy_decode(
        model,
        samples.prefix.tolist(),
        bodies,
        [limits[i] for i in own],
        stop_tokens(prompt, tokenizer),
        device=device,
        max_batch_tokens=max_batch_tokens,
        group=(group or dist.group.WORLD) if sharded and world_size > 1 else None,
        progress=progress,
    )
    seconds = time.perf_counter() - start

    answers = [_read(task, tokenizer, examples[i], samples, i, answer) for i, answer in zip(own, decoded, strict=True)]
    computed = (len(samples.prefix) if own else 0) + sum(map(len, bodies)) + sum(len(d.tokens) for d in decoded)
    gathered = _gather((own, answers, seconds, computed), rank, world_size, group)
    result = _assemble(task, examples, gathered, n_shortened) if rank == 0 else None
    return _share_figures(result, rank, world_size, group)


def answer_budgets(task: Task, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[int]:
    """Tokens each example's answer may have: the longest valid answer to it, and a margin.

    Every class field answers with its longest label, every token field with its longest type for each word.
    """
    longest: dict[str, str] = {}
    for field in task.fields:
        labels = [*field.labels, field.other] if isinstance(field, TokenField) else field.labels
        longest[field.name] = max(labels, key=lambda label: len(tokenizer.encode(label)))
    known: dict[tuple[int, ...], int] = {}

    def budget(example: Example) -> int:
        # Word counts by the gold labels, as everywhere else in scoring.
        n_words = tuple(len(example.labels[f.name]) for f in task.fields if isinstance(f, TokenField))
        if n_words not in known:
            counts = iter(n_words)
            labels = {
                f.name: (longest[f.name],) * next(counts) if isinstance(f, TokenField) else longest[f.name]
                for f in task.fields
            }
            known[n_words] = len(tokenizer.encode(task.write(labels))) + BUDGET_MARGIN
        return known[n_words]

    return [budget(example) for example in examples]


def stop_tokens(prompt: Prompt, tokenizer: Tokenizer) -> set[int]:
    """Ids that end an answer: the first token of what the prompt puts after a label, and the end of the
    text."""
    stops = {tokenizer.eos_id} if tokenizer.eos_id is not None else set()
    return stops | set(encode_pieces(prompt.end, tokenizer)[:1])


def _read(
    task: Task, tokenizer: Tokenizer, example: Example, samples: SampleSet, i: int, answer: Decoded
) -> Prediction:
    n_words = next((len(example.labels[f.name]) for f in task.fields if isinstance(f, TokenField)), 0)
    raw = tokenizer.decode(answer.tokens)
    parsed = parse_answer(task, raw, n_words)
    return Prediction(
        id=example.id,
        gold={field.name: example.labels[field.name] for field in task.fields},
        gold_bio={name: tags for name, tags in example.bio.items() if name in {f.name for f in task.fields}},
        raw=raw,
        parsed=parsed.labels,
        unparsed=tuple(parsed.unparsed),
        truncated=bool(samples.truncated[i]),
        stopped=answer.stopped,
        n_prompt_tokens=len(samples.prefix) + samples.length(i),
        n_new_tokens=len(answer.tokens) + answer.stopped,
        n_missing=parsed.n_missing,
        n_extra=parsed.n_extra,
        n_unknown=parsed.n_unknown,
    )


Share = tuple[list[int], list[Prediction], float, int]  # indices, answers, seconds, computed tokens


def _gather(share: Share, rank: int, world_size: int, group: dist.ProcessGroup | None) -> list[Share]:
    if world_size == 1:
        return [share]
    shares: list[Any] | None = [None] * world_size if rank == 0 else None
    dist.gather_object(share, shares, group=group, group_dst=0)
    return shares or []


def _assemble(task: Task, examples: Sequence[Example], shares: list[Share], n_shortened: int) -> ScoreResult:
    """Put the ranks' answers back into the order of the examples."""
    placed: dict[int, Prediction] = {}
    for indices, answers, _, _ in shares:
        placed.update(zip(indices, answers, strict=True))
    assert sorted(placed) == list(range(len(examples))), "an example was dropped or scored twice"
    assert sum(len(indices) for indices, *_ in shares) == len(examples), "an example was scored twice"
    predictions = [placed[i] for i in range(len(examples))]
    n = max(len(predictions), 1)
    seconds = max(seconds for _, _, seconds, _ in shares)
    return ScoreResult(
        predictions=predictions,
        metrics=compute_metrics(task, examples, predictions),
        counts=count_oddities(predictions) | {"limit_shortened": n_shortened},
        cost={
            "seconds": seconds,
            "seconds_per_example": seconds / n,
            "prompt_tokens": sum(p.n_prompt_tokens for p in predictions) / n,
            "computed_tokens": sum(computed for *_, computed in shares) / n,
            "new_tokens": sum(p.n_new_tokens for p in predictions) / n,
        },
    )


def _share_figures(
    result: ScoreResult | None, rank: int, world_size: int, group: dist.ProcessGroup | None
) -> ScoreResult:
    """Give every rank the figures (a trainer that keeps the best checkpoint decides on all ranks), not the
    answers."""
    if world_size > 1:
        figures = [(result.metrics, result.counts, result.cost) if result else None]
        dist.broadcast_object_list(figures, group=group, group_src=0)
        result = result or ScoreResult([], *figures[0])
    assert result is not None
    return result
