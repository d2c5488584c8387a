"""Packing: which items share a row, which rank gets them, and the lengths to which rows are padded.

The paper calls packing "row padding": samples are laid end to end in a row, and only the end of the row is padded. How
a row is laid out is in `data.decoder.rows` and `data.encoder.rows`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

IGNORE = -100  # the target of a position that predicts nothing; the default of torch's cross_entropy
SHARED_DOC = 0  # the prefix, which every document of the row attends to
PADDING_DOC = -1


def pack(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[list[int]]:
    """Put items into rows of ``capacity`` by first-fit decreasing, which uses at most 11/9 of the fewest rows + 1.

    Items of equal length keep their order and nothing is random, so equal input gives equal rows.

    Args:
        lengths: tokens of each item, at most ``capacity``.
        capacity: tokens of a row that items can use.

    Returns:
        The rows, each a list of indices into ``lengths``, longest item first.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert lengths.size == 0 or lengths.max() <= capacity, (
        f"an item of {lengths.max()} tokens does not fit a row of {capacity}; prepare() cuts documents to fit"
    )
    rows: list[list[int]] = []
    free = np.empty(lengths.size, dtype=np.int64)  # free[r] = tokens left in row r
    for i in np.argsort(-lengths, kind="stable").tolist():
        fits = free[: len(rows)] >= lengths[i]
        row = int(fits.argmax()) if fits.any() else len(rows)
        if row == len(rows):
            rows.append([])
            free[row] = capacity
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def balance_costs(costs: Sequence[int] | np.ndarray, n_ranks: int) -> list[list[int]]:
    """Distribute items over ``n_ranks`` so that the ranks' total costs are about equal.

    Longest processing time first (Graham, 1969): the most expensive remaining item goes to the least loaded rank. The
    most loaded rank then has at most 4/3 of the least possible cost. Ties go to the lower index and the lower rank.
    Some ranks may get no items.
    """
    order = np.argsort(-np.asarray(costs, dtype=np.int64), kind="stable").tolist()
    ranks: list[list[int]] = [[] for _ in range(n_ranks)]
    heap = [(0, rank) for rank in range(n_ranks)]  # (cost so far, rank)
    for i in order:
        cost, rank = heap[0]
        ranks[rank].append(i)
        heapq.heapreplace(heap, (cost + int(costs[i]), rank))
    return ranks


def balance_counts(costs: Sequence[int] | np.ndarray, n_ranks: int) -> list[list[int]]:
    """Distribute items over ``n_ranks`` so that their numbers differ by one at most.

    In order of decreasing cost, forth and back over the ranks: costs 9 8 7 6 5 4 for two ranks give 9 6 5 and 8 7 4.
    The total costs are less equal than with `balance_costs`.
    """
    order = np.argsort(-np.asarray(costs, dtype=np.int64), kind="stable").tolist()
    ranks: list[list[int]] = [[] for _ in range(n_ranks)]
    for k, i in enumerate(order):
        turn, rank = divmod(k, n_ranks)
        ranks[rank if turn % 2 == 0 else n_ranks - 1 - rank].append(i)
    return ranks


def padded_length(n: int, limit: int | None = None) -> int:
    """Round a row's length up to one of eight lengths between two powers of two (below 256: multiples of 16).

    Few distinct shapes are better for allocators, kernels and compilers. The padding is under 64 tokens for lengths up
    to 1,024, under 1,024 up to 16,384, and about 4% on average. ``limit`` (the row length) is never exceeded.
    """
    step = max(16, (1 << max(n - 1, 0).bit_length()) // 16)
    rounded = -(-max(n, 1) // step) * step
    return rounded if limit is None else max(n, min(rounded, limit))
