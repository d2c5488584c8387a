"""Answer with the most probable valid answer, and say how probable each label is (``--decode labels``).

For a class field: the probability of every label of its set, and the most probable one. All labels of all documents of
a batch are in one pass (`eval.decoder.tree_passes`). A field after another is answered given the answers before it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.decoder.label_tokens import LabelTokens, Value
from data.tasks import ClassField
from eval.decoder.decode import MAX_BATCH_SIZE, Forward, Passes, batches, prefill_prefix, run_passes
from eval.decoder.kv_cache import PrefixCache, SlotCache
from eval.decoder.tree_passes import Room, Waiting, score_tries
from eval.decoder.trie import build_tries

MAX_LOGITS = 1 << 28  # of one pass: 512 MiB in bf16


@dataclass
class Chosen:
    """The answer to one request.

    Attributes:
        values: each field's answer, as its format writes it.
        log_probs: for each class field the log-probabilities of its labels, in their order, [L] fp64; they are
            normalized over the labels.
    """

    values: list[Value] = field(default_factory=list)
    log_probs: dict[str, Tensor] = field(default_factory=dict)


def choose_labels(
    model: nn.Module,
    prefix: Sequence[int],
    bodies: Sequence[Sequence[int]],
    labels: LabelTokens,
    *,
    device: torch.device | str = "cpu",
    max_batch_tokens: int = 4096,
    max_batch_size: int = MAX_BATCH_SIZE,
    group: dist.ProcessGroup | None = None,
    finished: Callable[[Mapping[int, Chosen]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Chosen]:
    """The most probable label of each class field of every request. For the arguments see `greedy_decode`.

    Raises:
        NotFiniteLogits: the model gives NaN or infinity.
        Stopped: ``stop`` was true.
    """
    results = [Chosen() for _ in bodies]

    def passes() -> Passes:
        if not bodies:
            return
        cache = PrefixCache(len(prefix))
        if len(prefix):
            yield from prefill_prefix(prefix, cache, device)
        lengths = [len(body) for body in bodies]
        max_outputs = max(1, MAX_LOGITS // labels.tokenizer.vocab_size)
        for batch in batches(lengths, [_trie_size(labels)] * len(bodies), max_batch_tokens, max_batch_size):
            slots = None
            if len(labels.task.fields) > 1 or len(build_tries(labels.of(()), max_outputs)) > 1:
                slots = SlotCache(len(batch), max(lengths[i] for i in batch))
            room = Room(cache, slots, max_batch_tokens, max_outputs, device)
            waiting = [Waiting(i, slot, 0, list(bodies[i])) for slot, i in enumerate(batch)]
            yield from _answer(waiting, [results[i] for i in batch], labels, room)
            if finished is not None:
                finished({i: results[i] for i in batch})

    run_passes(model, passes(), device, group, stop)
    return results


def _answer(
    waiting: Sequence[Waiting], answers: Sequence[Chosen], labels: LabelTokens, room: Room
) -> Generator[Forward, Tensor, None]:
    for task_field in labels.task.fields:
        assert isinstance(task_field, ClassField)
        tries = {
            values: build_tries(labels.of(values), room.max_outputs) for values in {tuple(a.values) for a in answers}
        }
        scores = yield from score_tries(waiting, [tries[tuple(answer.values)] for answer in answers], room)
        for answer, score in zip(answers, scores, strict=True):
            answer.log_probs[task_field.name] = score - score.logsumexp(0)
            answer.values.append(task_field.labels[int(score.argmax())])


def _trie_size(labels: LabelTokens) -> int:
    """About the tokens of the largest trie of a task's labels."""
    before: list[Value] = []
    size = 1
    for task_field in labels.task.fields:
        tries = build_tries(labels.of(tuple(before)), 1 << 62)
        size = max(size, len(tries[0].tokens))
        before.append(task_field.labels[0])
    return size
