"""Packing: the layout of rows, the attention rule, and that each sample has the same context as alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from data.decoder.rows import build_row, collate, dummy_batch
from data.decoder.samples import SampleSet
from data.packing import IGNORE, balance_costs, balance_counts, pack, padded_length


def make_samples(bodies: list[list[int]], labels: list[list[int]], prefix: list[int]) -> SampleSet:
    chunks = [body + label for body, label in zip(bodies, labels, strict=True)]
    label_end = np.cumsum([len(chunk) for chunk in chunks])
    return SampleSet(
        prefix=np.array(prefix, dtype=np.int32),
        ids=[f"s{i}" for i in range(len(chunks))],
        tokens=np.array([t for chunk in chunks for t in chunk], dtype=np.int32),
        body_end=label_end - np.array([len(label) for label in labels]),
        label_end=label_end,
        document_tokens=np.array([len(body) for body in bodies], dtype=np.int32),
        truncated=np.zeros(len(chunks), dtype=bool),
    )


def random_samples(n: int, n_prefix: int, seed: int = 0, longest: int = 12) -> SampleSet:
    """All tokens of the set are different, so that each one identifies its origin."""
    rng = np.random.default_rng(seed)
    supply = iter(range(1, 1_000_000))
    prefix = [next(supply) for _ in range(n_prefix)]
    bodies = [[next(supply) for _ in range(rng.integers(1, longest))] for _ in range(n)]
    labels = [[next(supply) for _ in range(rng.integers(1, 6))] for _ in range(n)]
    return make_samples(bodies, labels, prefix)


def sees(positions: np.ndarray, doc_ids: np.ndarray) -> np.ndarray:
    """The attention rule, pair by pair."""
    n = len(doc_ids)
    return np.array([[j <= i and (doc_ids[j] == doc_ids[i] or doc_ids[j] == 0) for j in range(n)] for i in range(n)])


# ------------------------------------------------------------------------------------------------------------ rows


def test_row_is_the_one_drawn_in_the_docstring():
    P0, P1, P2, a, b, c, X, Y, Z, E = range(10, 20)
    samples = make_samples([[a, b], [c]], [[X, E], [Y, Z, E]], [P0, P1, P2])
    row = build_row(samples, [0, 1], share_prefix=True, length=12)
    i = IGNORE
    assert row.tokens.tolist() == [P0, P1, P2, a, b, X, c, Y, Z, 0, 0, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 0, 0, 0]
    assert row.doc_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, -1, -1, -1]
    assert row.targets.tolist() == [i, i, i, i, X, E, Y, Z, E, i, i, i]
    assert row.n_real_tokens == 9
    assert row.sample_ids == ["s0", "s1"]


def test_row_without_sharing_repeats_the_prefix_and_has_no_document_0():
    P0, P1, a, b, c, X, E = range(10, 17)
    samples = make_samples([[a, b], [c]], [[X, E], [E]], [P0, P1])
    row = build_row(samples, [1, 0], share_prefix=False)
    i = IGNORE
    assert row.tokens.tolist() == [P0, P1, c, P0, P1, a, b, X]
    assert row.positions.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert row.doc_ids.tolist() == [1, 1, 1, 2, 2, 2, 2, 2]
    assert row.targets.tolist() == [i, i, E, i, i, i, X, E]


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("n_prefix", [0, 1, 7])
def test_each_sample_sees_itself_alone_and_predicts_its_whole_label(share_prefix: bool, n_prefix: int):
    samples = random_samples(30, n_prefix)
    extra = n_prefix if not share_prefix else 0
    rows = pack(samples.costs + extra, 60)
    assert max(len(row) for row in rows) >= 3, "the test is about rows of several documents"
    for indices in rows:
        row = build_row(samples, indices, share_prefix, length=80)
        visible = sees(row.positions, row.doc_ids)
        for doc, i in enumerate(indices, start=1):
            sequence = np.concatenate([samples.prefix, samples.body(i), samples.label(i)])
            inputs, n_label = sequence[:-1], len(samples.label(i))
            own = np.flatnonzero(row.doc_ids == doc)
            for at in own:
                # The tokens it attends to, in the order of positions, are those before it in the sample alone.
                context = np.flatnonzero(visible[at])
                position = row.positions[at]
                assert row.positions[context].tolist() == list(range(position + 1))
                assert row.tokens[context].tolist() == inputs[: position + 1].tolist()
                is_label = position >= len(inputs) - n_label
                assert row.targets[at] == (sequence[position + 1] if is_label else IGNORE)
            assert row.positions[own[-1]] == len(inputs) - 1
            assert (row.targets[own] != IGNORE).sum() == n_label
        padding = row.doc_ids == -1
        assert padding.any() and (row.targets[padding] == IGNORE).all() and visible[padding].any(axis=1).all()
        assert (row.targets[row.doc_ids == 0] == IGNORE).all()


def test_sample_without_a_label_has_no_target():
    samples = make_samples([[5, 6], [7]], [[], []], [1])
    row = build_row(samples, [0, 1], share_prefix=True)
    assert row.tokens.tolist() == [1, 5, 6, 7]
    assert (row.targets == IGNORE).all()


def test_row_that_does_not_fit_its_length_is_our_bug():
    samples = random_samples(3, 4)
    with pytest.raises(AssertionError, match="do not fit"):
        build_row(samples, [0, 1, 2], share_prefix=True, length=5)


# --------------------------------------------------------------------------------------------------------- batches


def test_collate_pads_to_the_longest_row_and_indexes_every_target():
    samples = random_samples(7, 3)
    rows = [build_row(samples, [0, 1, 2, 3], True), build_row(samples, [4], True), build_row(samples, [5, 6], True)]
    batch = collate(rows)
    B, T = batch.tokens.shape
    assert (B, T) == (3, max(len(row.tokens) for row in rows)) and len({len(row.tokens) for row in rows}) == 3
    for name in ("positions", "doc_ids", "targets"):
        assert getattr(batch, name).shape == (B, T)
    for b, row in enumerate(rows):
        n = len(row.tokens)
        assert batch.tokens[b, :n].tolist() == row.tokens.tolist() and not batch.tokens[b, n:].any()
        assert (batch.doc_ids[b, n:] == -1).all() and (batch.targets[b, n:] == IGNORE).all()
    assert batch.targets.reshape(-1)[batch.target_index].tolist() == [t for i in range(7) for t in samples.label(i)]
    assert len(batch.target_index) == samples.label_lengths.sum()
    assert batch.n_real_tokens == 3 * 3 + samples.costs.sum()
    assert batch.sample_ids == samples.ids and not batch.dummy
    dtypes = [batch.tokens.dtype, batch.positions.dtype, batch.targets.dtype, batch.target_index.dtype]
    assert dtypes == [torch.int64] * 4 and batch.doc_ids.dtype == torch.int32


def test_dummy_batch_has_a_valid_document_and_nothing_to_predict():
    batch = dummy_batch()
    assert batch.dummy and batch.n_real_tokens == 0 and batch.sample_ids == []
    assert len(batch.target_index) == 0 and (batch.targets == IGNORE).all()
    assert sees(batch.positions[0].numpy(), batch.doc_ids[0].numpy()).any(axis=1).all()


def test_to_moves_tensors_only():
    batch = collate([build_row(random_samples(2, 2), [0, 1], True)]).to("meta")
    assert batch.tokens.device.type == batch.target_index.device.type == "meta"
    assert batch.sample_ids == ["s0", "s1"]


# ------------------------------------------------------------------------------------------- packing and balancing


def test_pack_places_every_item_once_and_fills_rows():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        capacity = int(rng.integers(10, 200))
        lengths = rng.integers(1, capacity + 1, rng.integers(1, 80))
        rows = pack(lengths, capacity)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        loads = [int(lengths[row].sum()) for row in rows]
        assert max(loads) <= capacity
        # First fit: no item of a later row would fit in an earlier one.
        for k, row in enumerate(rows):
            assert all(loads[earlier] + lengths[row].min() > capacity for earlier in range(k))


def test_pack_is_deterministic_and_keeps_the_order_of_equals():
    assert pack([5, 5, 5, 5, 5], 10) == [[0, 1], [2, 3], [4]]
    assert pack([3, 7, 2, 8, 10], 10) == [[4], [3, 2], [1, 0]]
    assert pack([], 10) == []


def test_pack_refuses_what_cannot_fit():
    with pytest.raises(AssertionError, match="does not fit"):
        pack([3, 11], 10)


def test_costs_are_balanced():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        costs = rng.integers(1, 1000, rng.integers(1, 100))
        n_ranks = int(rng.integers(1, 12))
        ranks = balance_costs(costs, n_ranks)
        assert len(ranks) == n_ranks
        assert sorted(i for rank in ranks for i in rank) == list(range(len(costs)))
        loads = [costs[rank].sum() for rank in ranks]
        best = max(costs.sum() / n_ranks, costs.max())
        assert max(loads) <= best + (1 - 1 / n_ranks) * costs.max()
        if len(costs) > n_ranks:
            assert max(loads) - min(loads) <= costs.max()


def test_ranks_stay_empty_when_items_run_out():
    assert balance_costs([4, 9], 4) == [[1], [0], [], []]


def test_padded_lengths_are_few_and_close():
    lengths = [padded_length(n) for n in range(1, 16385)]
    assert all(a >= n for n, a in enumerate(lengths, start=1)) and lengths == sorted(lengths)
    assert all(a - n < 64 for n, a in enumerate(lengths[:1024], start=1))
    assert all(a < 1.125 * n for n, a in enumerate(lengths, start=1) if n > 256)
    assert len(set(lengths)) == 16 + 6 * 8  # multiples of 16 up to 256, then eight per power of two
    assert [padded_length(n) for n in (1, 16, 17, 513, 1025)] == [16, 16, 32, 576, 1152]
    assert padded_length(1990, limit=2000) == 2000 and padded_length(100, limit=2000) == 112


@pytest.mark.parametrize(("n", "world_size"), [(0, 3), (1, 4), (7, 2), (100, 3), (101, 8)])
def test_balanced_counts_give_every_item_to_one_rank(n, world_size):
    rng = random.Random(n)
    lengths = [rng.randint(1, 300) for _ in range(n)]
    ranks = balance_counts(lengths, world_size)
    assert sorted(i for rank in ranks for i in rank) == list(range(n))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1
    if n >= 100:
        loads = [sum(lengths[i] for i in rank) for rank in ranks]
        assert max(loads) < 1.1 * min(loads)


def test_balanced_counts():
    assert balance_counts([9, 8, 7, 6, 5, 4], 2) == [[0, 3, 4], [1, 2, 5]]
