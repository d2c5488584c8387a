"""The samples of step ``n`` and their ranks and rows: a pure function of the seed and ``n``.

There is no state between steps, so a resumed run continues with the next number. There is no communication either::

    order of the epoch ─► the step's samples ─► distributed ─► packed into rows ─► micro-batches
    (seed, epoch)         (seed, n)             by length      up to row_length    equally many per rank

``batch_unit="samples"``: the epochs' orders are concatenated, and step ``n`` has the samples ``[n * batch_size,
(n + 1) * batch_size)``. So every step has exactly ``batch_size`` samples, and every sample occurs once per epoch. A
step may contain the end of one epoch and the beginning of the next. A step's samples do not depend on packing, prefix
sharing or ranks.

``batch_unit="rows"``: the epoch's samples are packed into the fewest rows of about equal length (`balance_costs`), and
a step has ``batch_size`` rows. The order of the rows is random, and samples of equal length are exchanged at random.
The number of rows is the same in every epoch.

Under FSDP all ranks gather parameters together, so every pass takes as long as its slowest rank. Therefore samples are
distributed by length, and each rank's rows are ordered longest first. A rank with fewer micro-batches than another runs
dummies, which have no target. Every rank knows all lengths, so it computes the loss's global counts without
communication.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
import torch

from data.batch import Batch, Row, Samples
from data.errors import UserError
from data.packing import balance_costs, balance_counts, pack, padded_length


@dataclass
class StepPlan:
    """One step's distribution: ``ranks[rank][micro_batch][row]`` is the list of the row's sample indices."""

    ranks: list[list[list[Row]]]

    @property
    def n_micro_batches(self) -> int:
        return max(len(micro_batches) for micro_batches in self.ranks)

    @property
    def rows(self) -> list[Row]:
        return [row for micro_batches in self.ranks for rows in micro_batches for row in rows]


@dataclass
class StepBatch:
    """This rank's part of a step, and counts over all ranks and micro-batches.

    Attributes:
        batches: this rank's micro-batches, filled up with dummies to an equal number on every rank.
        n_label_tokens: by field, label tokens on all ranks.
        total_weights: by field, their weights, summed: the denominators of the fields' losses. Without weights it is
            their number.
        sample_ids: ids of the samples on all ranks.
        row_prefix: tokens of the shared prefix at the start of every row; 0 without sharing.
        row_lengths: for every row on all ranks, the tokens of each sample, without a shared prefix.
        epoch: number of passes over the data set after this step.
        n_examples: number of samples on all ranks.
        n_real_tokens: tokens on all ranks that are not padding, a shared prefix counted once per row.
        n_tokens: tokens that all ranks compute, padding and dummies included.
    """

    batches: list[Batch]
    n_label_tokens: dict[str, int]
    total_weights: dict[str, float]
    sample_ids: list[str]
    row_prefix: int
    row_lengths: list[np.ndarray]
    epoch: float
    n_examples: int
    n_real_tokens: int
    n_tokens: int


class StepLoader:
    """The steps of a training run by number, from 0.

    Args:
        samples: from ``prepare`` of `data.decoder.samples` or `data.encoder.samples`, each at most a row long.
        batch_size: samples or rows of a step, over all ranks.
        batch_unit: ``"samples"`` or ``"rows"``.
        row_length: maximum number of tokens in a row, prefix included.
        packing: False: one sample per row (for comparison).
        share_prefix: True: the prefix once per row; False: once per sample. Without packing both are the same.
        micro_rows: rows per forward pass. ``None``: 1 with packing; without packing, as many padded rows as have at
            most ``row_length`` tokens together.
        seed: seed of the samples' order.
        rank, world_size: index of this process, and number of processes.

    Raises:
        UserError: no samples, fewer samples than ranks, or a setting out of range.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        row_length: int,
        batch_unit: str = "samples",
        packing: bool = True,
        share_prefix: bool = True,
        micro_rows: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(samples, batch_size, batch_unit, micro_rows, world_size)
        assert 0 <= rank < world_size
        self.samples = samples
        self.batch_size = batch_size
        self.batch_unit = batch_unit
        self.row_length = row_length
        self.packing = packing
        self.share_prefix = share_prefix
        self.micro_rows = micro_rows
        self.seed = seed
        self.rank = rank
        self.world_size = world_size

        n_prefix = len(samples.prefix)
        self.row_prefix = n_prefix if share_prefix else 0  # prefix tokens, once per row
        self._costs = samples.costs + (0 if share_prefix else n_prefix)  # [S] tokens each sample adds to a row
        self._capacity = row_length - self.row_prefix
        assert self._costs.max() <= self._capacity, (
            f"a sample of {self._costs.max()} tokens for rows of {self._capacity}: prepared for a longer row"
        )
        # At any time only a few epochs are in use: this one, the next one, and the prefetcher's.
        self._units_of_epoch = lru_cache(maxsize=4)(self._epoch_units)
        self._n_rows = self._fewest_balanced_rows() if batch_unit == "rows" and packing else len(samples)

    @property
    def units_per_epoch(self) -> int:
        """Number of samples or rows (``batch_unit``) in one pass over the data."""
        return len(self.samples) if self.batch_unit == "samples" else self._n_rows

    def n_steps_for(self, epochs: float) -> int:
        """Number of steps in ``epochs`` passes over the data, rounded up so that no sample is omitted at the end."""
        return max(1, ceil(round(epochs * self.units_per_epoch / self.batch_size, 6)))

    # ------------------------------------------------------------------------------------------ the step's samples

    def _epoch_units(self, epoch: int) -> list[Row]:
        """The epoch's samples (as rows of one) or packed rows, in the order of the steps."""
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.samples))
        if self.batch_unit == "samples" or not self.packing:
            return [[i] for i in order.tolist()]
        rows = balance_costs(self._costs[order], self._n_rows)
        return [order[rows[r]].tolist() for r in rng.permutation(len(rows))]

    def _fewest_balanced_rows(self) -> int:
        """The smallest number of rows for which `balance_costs` exceeds no row's capacity.

        The number depends only on the samples' lengths, so it is the same in every epoch. Balanced rows mix long and
        short samples. With first-fit, the last rows would have short samples only.
        """
        costs = self._costs

        def fits(n: int) -> bool:
            return max(costs[row].sum() for row in balance_costs(costs, n)) <= self._capacity

        # A row holds at most one sample of more than half its capacity. More rows never make the longest one longer, so
        # the number is found by bisection; one row per sample always fits.
        least = max(ceil(int(costs.sum()) / self._capacity), int((costs * 2 > self._capacity).sum()))
        return least + bisect_left(range(least, len(costs)), True, key=fits)

    def _units(self, n: int) -> list[Row]:
        start = n * self.batch_size
        units: list[Row] = []
        while len(units) < self.batch_size:
            epoch, at = divmod(start + len(units), self.units_per_epoch)
            units += self._units_of_epoch(epoch)[at : at + self.batch_size - len(units)]
        return units

    # ------------------------------------------------------------------------------------- their ranks and rows

    def plan(self, n: int) -> StepPlan:
        """Distribute the samples of step ``n`` over ranks, micro-batches and rows."""
        return self._plan(self._units(n))

    def _plan(self, units: list[Row]) -> StepPlan:
        if self.batch_unit == "rows":
            by_rank = balance_counts([self.row_tokens(row) for row in units], self.world_size)
            return StepPlan([self._micro_batches([units[i] for i in own]) for own in by_rank])
        indices = np.array([i for unit in units for i in unit])
        ranks = []
        for own in balance_costs(self._costs[indices], self.world_size):
            on_rank = indices[own]
            rows = pack(self._costs[on_rank], self._capacity) if self.packing else [[i] for i in range(len(on_rank))]
            ranks.append(self._micro_batches([on_rank[row].tolist() for row in rows]))
        return StepPlan(ranks)

    def _micro_batches(self, rows: list[Row]) -> list[list[Row]]:
        """Group rows, longest first: rows of one micro-batch, and of one pass on all ranks, have similar lengths."""
        rows = sorted(rows, key=self.row_tokens, reverse=True)
        groups: list[list[Row]] = []
        for row in rows:
            if groups and len(groups[-1]) < self._most_rows(groups[-1][0]):
                groups[-1].append(row)
            else:
                groups.append([row])
        return groups

    def _most_rows(self, longest: Row) -> int:
        if self.micro_rows is not None:
            return self.micro_rows
        return 1 if self.packing else max(1, self.row_length // self.padded([longest]))

    # ----------------------------------------------------------------------------------------------------- counting

    def row_lengths(self, row: Row) -> np.ndarray:
        """``[samples]`` tokens that each sample adds to a row; without sharing this includes the prefix."""
        return self._costs[row]

    def row_tokens(self, row: Row) -> int:
        """Tokens of a row, a shared prefix included, before padding."""
        return self.row_prefix + int(self.row_lengths(row).sum())

    def padded(self, rows: Sequence[Row], at_least: int = 0) -> int:
        """The length to which the rows of one micro-batch are padded, not less than ``at_least``."""
        return max(at_least, padded_length(max(self.row_tokens(row) for row in rows), self.row_length))

    def computed_tokens(self, rows: Sequence[Row], at_least: int = 0) -> int:
        """Tokens that a micro-batch of these rows computes, padding included."""
        return len(rows) * self.padded(rows, at_least)

    def count_outputs(self, rows: Sequence[Row]) -> int:
        """Number of output positions of these rows, over all fields."""
        return int(sum(self.samples.label_lengths[row].sum() for row in rows))

    def count_tokens(self, plan: StepPlan, at_least: int = 0) -> tuple[int, int]:
        """Count a step's tokens on all ranks: those that are not padding, and all that are computed with dummies."""
        micro_batches = [rows for rank in plan.ranks for rows in rank]
        n_dummies = len(plan.ranks) * plan.n_micro_batches - len(micro_batches)
        computed = sum(self.computed_tokens(rows, at_least) for rows in micro_batches)
        return sum(map(self.row_tokens, plan.rows)), computed + n_dummies * padded_length(1)

    # --------------------------------------------------------------------------------------------------- the step

    def step(self, n: int) -> StepBatch:
        """Build this rank's part of step ``n``, counted from 0."""
        assert n >= 0
        return self._build(self.plan(n), (n + 1) * self.batch_size / self.units_per_epoch)

    def worst_case(self) -> StepBatch:
        """A step that needs the memory of the largest real step, the same on every rank.

        Each pass has the maximum number of tokens, which activations grow with. Logits grow with labels: it has as many
        as two greedy ways to fill a row find, which may be less than the maximum where a row holds a few samples only.
        If a step may have several passes, this one has two: the second runs while the first one's gradients are in
        memory. Otherwise it has one, because gradients are a large part of a big model's memory.
        """
        rows, length = self.worst_rows()
        passes = [rows] * (2 if self.accumulates else 1)
        return self._build(StepPlan([passes] * self.world_size), epoch=0.0, at_least=length)

    def worst_rows(self) -> tuple[list[Row], int]:
        """The rows of each of `worst_case`'s passes, and the length to which they are padded."""
        labels, costs = self.samples.label_lengths, self._costs
        if self.packing:
            max_samples = self._most_units if self.batch_unit == "samples" else len(self.samples)  # in a row
            content = min(self._capacity, int(self._longest(max_samples).sum()))
            length, n_rows = padded_length(self.row_prefix + content, self.row_length), self.micro_rows or 1
        else:  # a few long samples may have fewer tokens than many short ones
            max_samples = 1
            lengths = {self.padded([[i]]) for i in np.unique(costs, return_index=True)[1].tolist()}
            rows_of = {n: min(self._most_units, self.micro_rows or max(1, self.row_length // n)) for n in lengths}
            length = max(lengths, key=lambda n: (n * rows_of[n], n))
            n_rows = rows_of[length]

        def fill(priority: np.ndarray) -> Row:  # add samples by decreasing priority while they fit
            row: Row = []
            free = min(self._capacity, length - self.row_prefix)
            for i in np.repeat(np.argsort(-priority, kind="stable"), self._times_in_step).tolist():
                if len(row) < max_samples and costs[i] <= free:
                    row.append(i)
                    free -= costs[i]
            return row

        row = max(fill(labels), fill(labels / costs), key=lambda row: labels[row].sum())
        return [row] * min(n_rows, self._most_units), length

    @property
    def _most_units(self) -> int:
        """The maximum number of samples or rows (``batch_unit``) on one rank in a step."""
        if self.batch_unit == "rows":
            return ceil(self.batch_size / self.world_size)
        # `balance_costs` gives every rank one sample before any gets a second.
        return max(1, self.batch_size - self.world_size + 1)

    @property
    def _times_in_step(self) -> int:
        """How often a sample may occur in a step, which may contain the end of an epoch and the start of the next."""
        return 1 + ceil(self.batch_size / self.units_per_epoch) if self.batch_unit == "samples" else 1

    def _longest(self, n: int) -> np.ndarray:
        """The costs of the ``n`` longest samples that a step may contain."""
        return np.repeat(np.sort(self._costs)[::-1], self._times_in_step)[:n]

    @property
    def accumulates(self) -> bool:
        """Whether a rank may run several passes in a step, the second while the first one's gradients are in memory."""
        if self._most_units <= self._most_rows([int(self._costs.argmax())]):  # all rows fit one pass
            return False
        if self.batch_unit == "rows" or not self.packing:
            return True
        # `balance_costs` gives a rank less than an equal part plus one sample. If that fits one row, there is one pass.
        total = self._longest(self.batch_size).sum()
        return bool(min(total, total / self.world_size + self._costs.max()) > self._capacity)

    def _build(self, plan: StepPlan, epoch: float, at_least: int = 0) -> StepBatch:
        batches = []
        for rows in plan.ranks[self.rank]:
            batches.append(self.samples.batch(rows, self.share_prefix, self.padded(rows, at_least)))
        batches += [self.samples.dummy() for _ in range(plan.n_micro_batches - len(batches))]

        indices = [i for row in plan.rows for i in row]
        n_real_tokens, n_tokens = self.count_tokens(plan, at_least)
        return StepBatch(
            batches=batches,
            n_label_tokens=self.samples.count_targets(indices),
            total_weights=self.samples.sum_weights(indices),
            sample_ids=[self.samples.ids[i] for i in indices],
            row_prefix=self.row_prefix,
            row_lengths=[self.row_lengths(row) for row in plan.rows],
            epoch=epoch,
            n_examples=len(indices),
            n_real_tokens=n_real_tokens,
            n_tokens=n_tokens,
        )

    def prefetch(self, start: int, stop: int, depth: int = 2) -> Iterator[StepBatch]:
        """Yield steps ``start .. stop - 1``, built up to ``depth`` ahead in a thread; with CUDA, in pinned memory."""
        pin = torch.cuda.is_available()

        def build(n: int) -> StepBatch:
            step = self.step(n)
            if pin:
                step.batches = [batch.pin_memory() for batch in step.batches]
            return step

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader") as pool:
            ahead = deque(pool.submit(build, n) for n in range(start, min(start + depth, stop)))
            upcoming = iter(range(start + depth, stop))
            try:
                while ahead:
                    step = ahead.popleft().result()
                    if (n := next(upcoming, None)) is not None:
                        ahead.append(pool.submit(build, n))
                    yield step
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _check(samples: Samples, batch_size: int, batch_unit: str, micro_rows: int | None, world_size: int) -> None:
    if not len(samples):
        raise UserError("There are no samples to train on: the data set, or its selected part, is empty.")
    if len(samples) < world_size:
        raise UserError(
            f"Fewer samples than ranks: {len(samples)} samples for {world_size} ranks. "
            f"Start at most {len(samples)} processes (--nproc_per_node), or use more data."
        )
    if batch_unit not in ("samples", "rows"):
        raise UserError(f"--batch_unit {batch_unit!r} is not one of: samples, rows.")
    if batch_size < 1:
        raise UserError(f"--batch_size {batch_size}: a step needs at least 1 of --batch_unit {batch_unit}.")
    if micro_rows is not None and micro_rows < 1:
        raise UserError(f"--micro_rows {micro_rows}: a forward pass needs at least 1 row.")
