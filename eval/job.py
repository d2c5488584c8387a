"""What is scored, and by which ranks: the arguments of `eval.score.answer` and `score`.

`eval/setup.py` creates them for ``eval.py``, `eval/held_out.py` inside a training run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

from data.decoder.templates import Prompt
from data.decoder.tokenizer import Tokenizer
from data.encoder.samples import AnyTokenizer as EncoderTokenizer
from data.example import Example
from data.packing import balance_counts
from data.tasks import Task
from train.parallel.distributed import World

BATCH_TOKENS = 4096  # default for a decoding batch or an encoder's row


@dataclass(frozen=True)
class ScoringJob:
    """What is scored; the same on every rank.

    Attributes:
        tokenizer: the checkpoint's, for its kind of model.
        max_length: maximum tokens of an input; documents are truncated to fit. A decoder's input is prompt and answer,
            an encoder's the document with its special tokens.
        prompt: None for an encoder. A decoder prefills the prompt's prefix once per rank, not once per example.
        max_new_tokens: maximum tokens of a decoder's answer, without the end-of-turn token. None: each example's
            longest valid answer in its longest form, and a margin (`eval.decoder.score.answer_budgets`).
        decode: "free": a decoder writes whatever it finds most probable; "labels": valid answers only, with the
            probabilities of labels (`eval.decoder.labels`).
        temperatures: by class field, the temperature of its probabilities; a missing one is 1. `eval/score.py` applies
            them, and ``abstain_below``, to all answers at the end.
        abstain_below: mark labels that are less probable than this; None: mark none.
        fine_tuned: the model learned this prompt; see `eval.decoder.score.prepare_requests`.
        answer_tokens: the longest answer that it learned, in tokens; None: unknown.
        max_batch_tokens: maximum tokens of a decoding batch, answers included, or of an encoder's row. A longer example
            is a batch by itself; with 1, every example is.
        cache_dir: folder for caching tokenized examples; None: no caching.
    """

    task: Task
    tokenizer: Tokenizer | EncoderTokenizer
    examples: Sequence[Example]
    max_length: int
    prompt: Prompt | None = None
    max_new_tokens: int | None = None
    max_batch_tokens: int = BATCH_TOKENS
    cache_dir: Path | None = None
    fine_tuned: bool = False
    answer_tokens: int | None = None
    decode: Literal["free", "labels"] = "free"
    temperatures: Mapping[str, float] = field(default_factory=dict)
    abstain_below: float | None = None

    @property
    def kind(self) -> Literal["decoder", "encoder"]:
        """The kind of model: decoders have a prompt, encoders do not."""
        return "encoder" if self.prompt is None else "decoder"


@dataclass(frozen=True)
class ScoringRanks:
    """The ranks that share the examples, and this rank's index.

    Attributes:
        rank, world_size: among those that share the examples. Ranks that hold slices of one replica count once.
        group: their process group; None: all ranks.
        sharded: the model's forward pass is collective (FSDP2), so all ranks must run the same number of passes.
        passes: the ranks that run each forward pass together; None: each rank runs its own.
        stop: asked between forward passes; if it is true on any rank, there is no result (`eval.together.Stopped`).
    """

    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    sharded: bool = False
    passes: dist.ProcessGroup | None = None
    stop: Callable[[], bool] | None = None

    @classmethod
    def of(cls, world: World, sharded: bool = False, stop: Callable[[], bool] | None = None) -> ScoringRanks:
        """Share the examples among the data ranks of ``world``."""
        passes = None
        if sharded and world.size > 1:
            passes = dist.group.WORLD
        elif stop is not None and world.shape.tensor > 1:  # without it these ranks need not agree on anything
            passes = world.mesh["tensor"].get_group()
        return cls(world.device, world.data_rank, world.shape.n_data, world.data_group, sharded, passes, stop)


@dataclass(frozen=True)
class TrieLoad:
    """What a request feeds and stores besides its body with ``--decode labels``.

    Attributes:
        fields: in the order of the answer; of a class field the tokens of its largest trie of labels, and the rows of
            logits that are read. None: a token field, whose answer is written token by token.
        max_outputs: upper bound on the rows of logits of a pass; a request with more is alone in it.
        stores: a request takes part in several passes, so its tokens are kept in a cache.
    """

    fields: tuple[tuple[int, int] | None, ...]
    max_outputs: int
    stores: bool

    def longest(self, limit: int) -> int:
        """The most tokens after a body, if an answer that is written has at most ``limit``."""
        return max(self.written(limit), *(field[0] for field in self.fields if field is not None), 0)

    def written(self, limit: int) -> int:
        """The tokens of a written answer, and one place for the slots without a new token; 0 without such a field."""
        return limit + 1 if None in self.fields else 0


@dataclass(frozen=True)
class RequestLengths:
    """Lengths of a job's requests, in tokens.

    Attributes:
        prefix: the prefix that all requests share; 0 for an encoder.
        bodies: for each example, the tokens after the prefix; for an encoder, the document.
        limits: for each example, its maximum answer; 0 for an encoder.
        tries: what each request feeds for its labels; None: their probabilities are not computed.
    """

    prefix: int
    bodies: Sequence[int]
    limits: Sequence[int]
    tries: TrieLoad | None = None


@dataclass(frozen=True)
class BatchSize:
    """Size of one batch: requests that are decoded together, or documents that share an encoder's row.

    With ``--decode labels`` that of one pass over a batch, or over a part of it; so a batch has several.

    Attributes:
        n_requests: requests or documents of the batch.
        n_tokens: tokens of all bodies; with tries, tokens of the pass; for an encoder, tokens of the row with its
            padding.
        slot_length: tokens of each request's slot in the cache, longest body + maximum answer; 0 without a cache.
        n_new_tokens: maximum answer that is written token by token after the pass.
        n_outputs: rows of logits of a pass over tries; 0 without: then one for each request.
    """

    n_requests: int
    n_tokens: int
    slot_length: int = 0
    n_new_tokens: int = 0
    n_outputs: int = 0


def divide(lengths: Sequence[int] | np.ndarray, n_ranks: int, done: Collection[int] = ()) -> list[list[int]]:
    """Divide the examples over ``n_ranks``: for each rank the indices of its examples, without those that are done."""
    left = [i for i in range(len(lengths)) if i not in done]
    return [[left[k] for k in part] for part in balance_counts([lengths[i] for i in left], n_ranks)]
