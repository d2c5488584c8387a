"""The work in the steps of a run, counted on the task's own samples if available, else on assumed ones.

The task's own samples need data and a tokenizer. If one of them is not downloaded yet, samples are generated from the
counts below, and the plan says so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from checkpoints_tools.architectures import ModelConfig, architecture_of, costs_of
from data.batch import Row
from data.example import Example
from data.loader import StepLoader
from data.tasks import Task, TokenField
from model.costs import Costs

COUNTED_STEPS = 400  # of a longer run only this many steps, evenly spaced, are counted

# Training splits, counted with the Llama 3 tokenizer: number of documents; mean, median and longest in tokens.
# 20 Newsgroups is the version by date. MASSIVE 1.1 has 11,514 utterances; their lengths are those of the 7,268 in the
# MASSIVE-format SLURP data.
DATA_SETS = {"20ng": (11_314, 550.5, 315.0, 45_931), "massive": (11_514, 7.1, 7.0, 26)}
# Prompts, counted the same way (`benchmarks/results/tokens_per_example.md`): prefix with zero and five shots, mean and
# longest label.
PROMPTS = {
    "20ng_20": (170, 1416, 5, 8),
    "20ng_7": (69, 1240, 2, 2),
    "20ng_joint": (287, 1535, 18, 21),
    "massive_intent": (343, 491, 4, 6),
    "massive_slots": (310, 535, 22, 81),
    "massive_joint": (681, 1013, 35, 95),
}
SUFFIX = 14  # tokens between document and answer
FRAME = 24  # tokens around the two readings of a document by a decoder with heads
WORDS_IN_UTTERANCE = 7
CHARACTERS_IN_TOKEN = 4


class AssumedSamples:
    """Samples that have lengths only, which is what `StepLoader` needs to plan steps.

    Document lengths are log-normal, which fits posts well (of 20 Newsgroups, 99% are shorter than 3,951 tokens; the
    log-normal with the same mean and median says 3,700).

    Args:
        documents: their number, and their mean, median and longest in tokens.
        prefix, added: tokens before each document, and between it and its answer.
        label: tokens of an answer on average, and of the longest 1% of answers.
        max_tokens: of a sample, prefix included.
    """

    def __init__(
        self, documents: tuple[int, float, float, int], prefix: int, added: int, label: tuple[int, int], max_tokens: int
    ) -> None:
        n, mean, median, longest = documents
        spread = math.sqrt(2 * math.log(max(mean / median, 1.001)))
        quantiles = np.array([statistics.NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
        tokens = np.round(median * np.exp(spread * quantiles)).astype(np.int64)
        tokens[-1] = longest
        self.ids = [f"assumed {i}" for i in range(n)]
        self.prefix = np.zeros(prefix, dtype=np.int32)
        self.label_lengths = np.full(n, label[0], dtype=np.int64)
        self.label_lengths[-max(1, n // 100) :] = label[1]
        self.costs = np.minimum(tokens + added + self.label_lengths, max_tokens - prefix)

    def __len__(self) -> int:
        return len(self.ids)


def assume_samples(
    task: Task,
    config: ModelConfig,
    shots: int,
    longest: int,
    examples: Sequence[Example] | None,
) -> tuple[AssumedSamples, str]:
    """Generate samples of a task from the counts above, and a sentence that describes them.

    Args:
        longest: maximum tokens of an input.
        examples: the training data, if only the tokenizer is missing.
    """
    n, mean, median, longest_document = DATA_SETS.get(task.dataset, (1000, 300.0, 200.0, longest))
    source = "as counted with the Llama 3 tokenizer" if task.name in PROMPTS else "a guess"
    if task.name not in PROMPTS and examples:
        lengths = [len(example.text) / CHARACTERS_IN_TOKEN for example in examples]
        n, longest_document = len(lengths), math.ceil(max(lengths))
        mean, median = max(statistics.mean(lengths), 1.0), max(statistics.median(lengths), 1.0)
        source = f"at {CHARACTERS_IN_TOKEN} characters a token, and a guess at the prompt"
    documents = n, mean, median, longest_document
    text = f"{n:,} documents of {mean:,.0f} tokens on average (median {median:,.0f}, longest {longest_document:,})"
    if architecture_of(config).kind == "encoder":  # no prompt, no answer
        words = any(isinstance(field, TokenField) for field in task.fields)
        outputs = len(task.fields) + (WORDS_IN_UTTERANCE if words else 0)
        around = 2
        if architecture_of(config).is_decoder_with_heads:
            documents, around = (n, 2 * mean, 2 * median, 2 * longest_document), FRAME
            text += f", each read twice, with {FRAME} around"
        samples = AssumedSamples(documents, 0, around, (outputs, longest if words else outputs), longest)
    else:
        prefix, with_five, label, longest_label = PROMPTS.get(task.name, (500, 2000, 20, 100))
        prefix += (with_five - prefix) * shots // 5
        prefix = min(prefix, longest // 2)
        samples = AssumedSamples(documents, prefix, SUFFIX, (label, longest_label), longest)
        text += f", a prompt of {prefix:,} before them, answers of {label} ({longest_label} at most)"
    return samples, f"{text}; {source}"


@dataclass(frozen=True)
class RankPass:
    """What one rank computes in one pass.

    Attributes:
        tokens: padding included.
        outputs: positions with a label.
        pairs: (query, key) pairs that attention computes.
    """

    tokens: int
    outputs: int
    pairs: int


@dataclass(frozen=True)
class Workload:
    """The work in a run's steps.

    Attributes:
        total_steps, epochs: of the run.
        steps: for each counted step, the work of the slowest rank in each pass.
        samples, real_tokens, computed_tokens, flops: average of a step over all ranks; operations as in
            `model.costs.Costs.step_flops`, without recomputation.
        worst, worst_rows: the largest pass that the loader can build, and its number of rows.
        longest_id, longest_tokens: the longest sample, prefix included.
        truncated: documents that were cut to fit; None if samples are assumed.
    """

    total_steps: int
    epochs: float
    steps: list[list[RankPass]]
    samples: float
    real_tokens: float
    computed_tokens: float
    flops: float
    worst: RankPass
    worst_rows: int
    longest_id: str
    longest_tokens: int
    truncated: int | None


def count_workload(loader: StepLoader, config: ModelConfig, total_steps: int) -> Workload:
    """Count the work in the steps of ``loader``, in up to `COUNTED_STEPS` of them."""
    samples, costs = loader.samples, costs_of(config)
    counted = max(1, min(total_steps, COUNTED_STEPS))  # one also of a run that takes no step
    n_samples, real, computed, flops = 0, 0, 0, 0.0
    steps: list[list[RankPass]] = []
    for n in np.linspace(0, max(0, total_steps - 1), counted).astype(int).tolist():
        plan = loader.plan(n)
        n_samples += sum(map(len, plan.rows))
        step_real, step_computed = loader.count_tokens(plan)
        real, computed = real + step_real, computed + step_computed
        flops += pass_flops(config, replace(_rank_pass(loader, costs, plan.rows), tokens=step_real))
        passes = []
        for m in range(plan.n_micro_batches):
            rows = max((rank[m] for rank in plan.ranks if m < len(rank)), key=loader.computed_tokens)
            passes.append(_rank_pass(loader, costs, rows))
        steps.append(passes)
    rows, length = loader.worst_rows()
    longest = int(np.argmax(samples.costs))
    # One sample fills the row, which makes attention most expensive; rows of many short samples cost less.
    pairs = costs.attended_pairs(0, [np.array([length])] * len(rows))
    truncated = getattr(samples, "truncated", None)
    return Workload(
        total_steps=total_steps,
        epochs=total_steps * loader.batch_size / loader.units_per_epoch,
        steps=steps,
        samples=n_samples / counted,
        real_tokens=real / counted,
        computed_tokens=computed / counted,
        flops=flops / counted,
        worst=RankPass(len(rows) * length, loader.count_outputs(rows), pairs),
        worst_rows=len(rows),
        longest_id=samples.ids[longest],
        longest_tokens=int(samples.costs[longest]) + len(samples.prefix),
        truncated=None if truncated is None else int(truncated.sum()),
    )


def _rank_pass(loader: StepLoader, costs: Costs, rows: Sequence[Row]) -> RankPass:
    """The pass of a micro-batch with these rows."""
    pairs = costs.attended_pairs(loader.row_prefix, map(loader.row_lengths, rows))
    return RankPass(loader.computed_tokens(rows), loader.count_outputs(rows), pairs)


def pass_flops(config: ModelConfig, work: RankPass, recompute: bool = False) -> float:
    """FLOPs of forward and backward; ``recompute`` adds the blocks' forward pass a second time."""
    costs = costs_of(config)
    flops = costs.step_flops(work.tokens, costs.divide_outputs(work.outputs), work.pairs)
    blocks = costs.step_flops(work.tokens, costs.divide_outputs(0), work.pairs)
    return flops + (blocks / 3 if recompute else 0.0)
