"""What is to be scored, and by which ranks: the arguments of every way of scoring.

`eval.score.score` takes both; what a model is scored on and how its ranks are laid out are decided elsewhere, in
`eval/setup.py` for ``eval.py`` and in `eval/held_out.py` inside a training run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from data.decoder.prompts import Prompt
from data.decoder.tokenizer import Tokenizer
from data.encoder.tokenizer import Tokenizer as EncoderTokenizer
from data.example import Example
from data.tasks import Task
from train.parallel.distributed import World

BATCH_TOKENS = 4096  # of a decoding batch or an encoder's row, unless something else is asked for


@dataclass(frozen=True)
class ScoringJob:
    """What is to be scored, the same on every rank.

    Attributes:
        tokenizer: the checkpoint's, of the model's kind.
        max_length: longest input in tokens; documents are truncated to it. A decoder's is prompt and answer together,
            an encoder's the document with its special tokens.
        prompt: None for an encoder. A decoder prefills the prompt's prefix once a rank, not once an example.
        max_new_tokens: longest answer of a decoder, the end-of-turn token not counted; None: as long as each example's
            longest valid answer (`eval.decoder.score.answer_budgets`).
        max_batch_tokens: most tokens of a decoding batch, answers included, or of an encoder's row; a longer example
            is a batch by itself, and with 1 every example is.
        cache_dir: where tokenized examples are cached; None: nowhere.
    """

    task: Task
    tokenizer: Tokenizer | EncoderTokenizer
    examples: Sequence[Example]
    max_length: int
    prompt: Prompt | None = None
    max_new_tokens: int | None = None
    max_batch_tokens: int = BATCH_TOKENS
    cache_dir: Path | None = None

    @property
    def kind(self) -> Literal["decoder", "encoder"]:
        """Whose job it is: a decoder is prompted, an encoder is not."""
        return "encoder" if self.prompt is None else "decoder"


@dataclass(frozen=True)
class ScoringRanks:
    """The ranks that share the examples, and this rank's place among them.

    Attributes:
        rank, world_size: among those that share the examples. Ranks that hold slices of one replica count once.
        group: their process group; None: all ranks.
        sharded: the model's forward pass is collective (FSDP2), so that all ranks must run equally many.
    """

    device: torch.device | str = "cpu"
    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None
    sharded: bool = False

    @classmethod
    def of(cls, world: World, sharded: bool = False) -> ScoringRanks:
        """This rank's place in ``world``, whose data ranks share the examples."""
        return cls(world.device, world.data_rank, world.shape.n_data, world.data_group, sharded)


@dataclass(frozen=True)
class RequestLengths:
    """How long the requests of a job are, in tokens.

    Attributes:
        prefix: what all of them begin with; 0 for an encoder.
        bodies: of each example, what follows the prefix; of an encoder the document.
        limits: of each example, the longest answer; of an encoder 0.
    """

    prefix: int
    bodies: Sequence[int]
    limits: Sequence[int]


@dataclass(frozen=True)
class BatchSize:
    """What one batch holds: requests that are decoded together, or documents that share an encoder's row.

    Attributes:
        n_requests: requests or documents.
        n_tokens: of all bodies together; of an encoder's row with its padding.
        slot_length: tokens for which each request has a place in the cache: longest body and longest answer; 0 for an
            encoder.
        n_new_tokens: longest answer.
    """

    n_requests: int
    n_tokens: int
    slot_length: int = 0
    n_new_tokens: int = 0
