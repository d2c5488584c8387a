"""Answer with a valid answer, and say how probable each label is (``--decode labels``).

The fields are answered in their order, each given the answers before it:

    class field    the probability of every label of its set, and the most probable one. All labels of all documents of
                   a batch are in one pass (`eval.decoder.tree_passes`)
    other fields   lists: written greedily, with the tokens of valid answers only (`eval.decoder.writing`)

Between fields a request goes back to the end of its body: the tokens of an answer are those of its whole text, which
may be others than those of its parts. They are fed again with the next field.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.decoder.label_tokens import LabelTokens, Value, recurs
from data.decoder.templates import Prompt
from data.decoder.tokenizer import Tokenizer
from data.decoder.valid_tokens import ValidTokens
from data.tasks import ClassField, Task
from eval.decoder.decode import MAX_BATCH_SIZE, Forward, Passes, batches, prefill_prefix, run_passes
from eval.decoder.kv_cache import PrefixCache, SlotCache
from eval.decoder.tree_passes import Room, Waiting, score_tries
from eval.decoder.trie import TokenTrie, build_tries
from eval.decoder.writing import write
from eval.job import TrieLoad

MAX_LOGITS = 1 << 28  # of one pass: 512 MiB in bf16


@dataclass
class Answered:
    """The answer to one request.

    Attributes:
        values: each field's answer, as its format writes it.
        log_probs: for each class field the log-probabilities of its labels, in their order, [L] fp64; they are
            normalized over the labels.
        stopped: the model wrote all of it; False if a list was completed at its limit.
        n_fed: tokens that the model has read for it after the body, those of labels that were not chosen included.
    """

    values: list[Value] = field(default_factory=list)
    log_probs: dict[str, Tensor] = field(default_factory=dict)
    stopped: bool = True
    n_fed: int = 0


def max_outputs(vocab_size: int) -> int:
    """Upper bound on the rows of logits of a pass."""
    return max(1, MAX_LOGITS // vocab_size)


class ValidAnswers:
    """The valid answers of a task as tokens, for one prompt and tokenizer.

    Raises:
        UserError: a tokenizer whose tokens have unknown bytes, if there are lists to write.
    """

    def __init__(self, task: Task, prompt: Prompt, tokenizer: Tokenizer) -> None:
        self.task = task
        self.labels = LabelTokens(task, prompt, tokenizer)
        self.has_lists = any(not isinstance(task_field, ClassField) for task_field in task.fields)
        self.tokens = ValidTokens(task, prompt, tokenizer) if self.has_lists else None
        self.max_outputs = max_outputs(tokenizer.vocab_size)
        self._kept = lru_cache(maxsize=1024)(self._tries)

    def tries(self, before: tuple[Value, ...]) -> list[TokenTrie]:
        """The labels of the field after those that are answered."""
        return self._kept(before) if recurs(self.task, before) else self._tries(before)

    def _tries(self, before: tuple[Value, ...]) -> list[TokenTrie]:
        return build_tries(self.labels.of(before), self.max_outputs)

    @cached_property
    def load(self) -> TrieLoad:
        """The largest trie of each field, if all fields before it have their first label."""
        sizes, before, n_tries = list[tuple[int, int] | None](), list[Value](), 0
        for task_field in self.task.fields:
            if isinstance(task_field, ClassField):
                tries = self.tries(tuple(before))
                n_tries += len(tries)
                sizes.append((max(len(trie.tokens) for trie in tries), max(len(trie.outputs) for trie in tries)))
            else:
                sizes.append(None)
            before.append(self.labels.placeholder(task_field))
        return TrieLoad(tuple(sizes), self.max_outputs, stores=n_tries > 1 or None in sizes)


@lru_cache(maxsize=1)
def valid_answers(task: Task, prompt: Prompt, tokenizer: Tokenizer) -> ValidAnswers:
    """The valid answers, built once for jobs with the same prompt, such as the parts of a file."""
    return ValidAnswers(task, prompt, tokenizer)


def decode_labels(
    model: nn.Module,
    prefix: Sequence[int],
    bodies: Sequence[Sequence[int]],
    words: Sequence[Sequence[str]],
    max_new_tokens: Sequence[int],
    answers: ValidAnswers,
    *,
    device: torch.device | str = "cpu",
    max_batch_tokens: int = 4096,
    max_batch_size: int = MAX_BATCH_SIZE,
    group: dist.ProcessGroup | None = None,
    finished: Callable[[Mapping[int, Answered]], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Answered]:
    """Answer every request with a valid answer. The other arguments are those of `eval.decoder.decode.greedy_decode`.

    Args:
        words: of each request's document; for token fields.
        max_new_tokens: for each request, the limit of a list, from the answer's first token on.

    Raises:
        UserError: see `data.decoder.label_tokens.LabelTokens`.
        NotFiniteLogits: the model gives NaN or infinity.
        Stopped: ``stop`` was true.
    """
    results = [Answered() for _ in bodies]

    def passes() -> Passes:
        if not bodies:
            return
        cache = PrefixCache(len(prefix))
        if len(prefix):
            yield from prefill_prefix(prefix, cache, device)
        lengths, load = [len(body) for body in bodies], answers.load
        for batch in label_batches(lengths, max_new_tokens, load, max_batch_tokens, max_batch_size):
            written = load.written(max(max_new_tokens[i] for i in batch))
            slots = SlotCache(len(batch), max(lengths[i] for i in batch) + written) if load.stores else None
            room = Room(cache, slots, max_batch_tokens, load.max_outputs, device)
            requests = [_Request(i, list(bodies[i]), list(words[i]), max_new_tokens[i], results[i]) for i in batch]
            yield from _answer(requests, answers, room)
            if finished is not None:
                finished({i: results[i] for i in batch})

    run_passes(model, passes(), device, group, stop)
    return results


def label_batches(
    lengths: Sequence[int],
    limits: Sequence[int],
    load: TrieLoad,
    max_batch_tokens: int,
    max_batch_size: int = MAX_BATCH_SIZE,
) -> list[list[int]]:
    """Group requests as `eval.decoder.decode.batches` does, with a trie, or a written answer if longer, after each."""
    return batches(lengths, [load.longest(limit) for limit in limits], max_batch_tokens, max_batch_size)


@dataclass
class _Request:
    index: int
    body: list[int]
    words: list[str]
    limit: int
    answer: Answered


def _answer(requests: Sequence[_Request], answers: ValidAnswers, room: Room) -> Generator[Forward, Tensor, None]:
    waiting = [Waiting(request.index, slot, 0, list(request.body)) for slot, request in enumerate(requests)]
    last = answers.task.fields[-1]
    for task_field in answers.task.fields:
        before = [tuple(request.answer.values) for request in requests]
        if isinstance(task_field, ClassField):
            tries = [answers.tries(values) for values in before]
            scores = yield from score_tries(waiting, tries, room)
            for request, own, score in zip(requests, tries, scores, strict=True):
                request.answer.n_fed += sum(len(trie.tokens) for trie in own)
                request.answer.log_probs[task_field.name] = score - score.logsumexp(0)
                request.answer.values.append(task_field.labels[int(score.argmax())])
        else:
            assert answers.tokens is not None
            writings = [
                answers.tokens.start(values, request.words) for values, request in zip(before, requests, strict=True)
            ]
            limits = [request.limit for request in requests]
            complete = yield from write(waiting, writings, limits, room, is_last=task_field is last)
            for state, request, writing, is_complete in zip(waiting, requests, writings, complete, strict=True):
                assert writing.value is not None
                request.answer.n_fed += max(0, state.n_stored - len(request.body))
                request.answer.values.append(writing.value)
                request.answer.stopped &= is_complete
        for state, request in zip(waiting, requests, strict=True):
            state.n_stored = min(state.n_stored, len(request.body) - 1)
            state.tokens = request.body[state.n_stored :]
