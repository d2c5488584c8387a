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
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from data.decoder.prompts import Prompt, encode_pieces
from data.decoder.samples import SampleSet, prepare
from data.decoder.tokenizer import Tokenizer
from data.example import Example
from data.packing import balance_counts
from data.tasks import Task, TokenField
from eval.decoder.decode import Decoded, greedy_decode
from eval.decoder.parse import parse_answer
from eval.gather import ScoreResult, Share, gather_scores
from eval.results import Prediction

BUDGET_MARGIN = 8  # tokens an answer may have beyond the longest valid one: white space, quotes, a code fence


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
    own = balance_counts(samples.lengths, world_size)[rank]
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
    share = Share(own, answers, seconds, computed)
    return gather_scores(task, examples, share, {"limit_shortened": n_shortened}, rank, world_size, group)


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
