"""Steps: the same samples for any ranks and rows, each once per epoch, equally loaded ranks, correct counts."""

from __future__ import annotations

import itertools
import threading
from collections import Counter

import numpy as np
import pytest
import torch

from data import loader as loader_module
from data.decoder.rows import ANSWER, Batch
from data.decoder.samples import SampleSet
from data.errors import UserError
from data.loader import StepLoader
from data.packing import IGNORE, balance_costs, padded_length

SETTINGS = list(itertools.product([True, False], [True, False]))  # packing, share_prefix
WORLD_SIZES = [1, 2, 3, 8]


def make_samples(n: int, n_prefix: int = 20, longest: int = 60, shortest: int = 2, seed: int = 0) -> SampleSet:
    """Lengths as unequal as real ones; label tokens are 1000 or more, so that they can be recognized."""
    rng = np.random.default_rng(seed)
    bodies = np.minimum(shortest - 1 + rng.geometric(0.1, n), longest)
    labels = rng.integers(1, 7, n)
    label_end = np.cumsum(bodies + labels)
    body_end = label_end - labels
    tokens = rng.integers(1, 1000, label_end[-1]).astype(np.int32)
    for i in range(n):
        tokens[body_end[i] : label_end[i]] += 1000
    prefix = rng.integers(1, 1000, n_prefix).astype(np.int32)
    return SampleSet(
        prefix, [f"s{i}" for i in range(n)], tokens, body_end, label_end, bodies.astype(np.int32), np.zeros(n, bool)
    )


def loader(samples: SampleSet, **options) -> StepLoader:
    return StepLoader(samples, **{"batch_size": 12, "row_length": 100, "seed": 3, **options})


def same_batches(a: list[Batch], b: list[Batch]) -> bool:
    names = ("tokens", "positions", "doc_ids", "targets", "target_index")
    return len(a) == len(b) and all(
        torch.equal(getattr(x, name), getattr(y, name)) for x, y in zip(a, b, strict=True) for name in names
    )


# ------------------------------------------------------------------------------------------------- which samples


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("packing", "share_prefix"), SETTINGS)
def test_a_step_has_the_same_samples_however_it_is_computed(packing: bool, share_prefix: bool, world_size: int):
    samples = make_samples(100)
    for n in (0, 1, 8, 50):  # step 8 ends one epoch and begins the next
        reference = loader(samples).step(n)
        assert len(reference.sample_ids) == 12
        for micro_rows in (None, 2):
            seen: list[str] = []
            targets: list[int] = []
            options = {"packing": packing, "share_prefix": share_prefix, "micro_rows": micro_rows}
            for rank in range(world_size):
                step = loader(samples, rank=rank, world_size=world_size, **options).step(n)
                assert sorted(step.sample_ids) == sorted(reference.sample_ids), "every rank names the whole step"
                assert step.n_label_tokens == reference.n_label_tokens
                for batch in step.batches:
                    seen += batch.sample_ids
                    targets += batch.targets.reshape(-1)[batch.target_index].tolist()
            assert sorted(seen) == sorted(reference.sample_ids), "dealt to exactly one rank"
            by_id = dict(zip(samples.ids, range(len(samples)), strict=True))
            assert sorted(targets) == sorted(t for s in seen for t in samples.label(by_id[s]))


@pytest.mark.parametrize("batch_unit", ["samples", "rows"])
@pytest.mark.parametrize("packing", [True, False])
def test_every_sample_comes_once_an_epoch(batch_unit: str, packing: bool):
    samples = make_samples(97)
    load = loader(samples, batch_size=5, batch_unit=batch_unit, packing=packing)
    stream = [load.plan(n).rows for n in range(3 * load.n_steps_for(1))]
    units = [1 if packing and batch_unit == "rows" else len(row) for rows in stream for row in rows]
    if packing and batch_unit == "rows":
        assert max(len(row) for rows in stream for row in rows) >= 3
        assert load.units_per_epoch < 97
    assert sum(units) >= 2 * load.units_per_epoch and load.units_per_epoch % 5, "a step spans two epochs"
    # The counts after k epochs' worth of whole steps: nobody is more than one ahead of another.
    seen = Counter()
    for n, rows in enumerate(stream):
        seen.update(i for row in rows for i in row)
        counts = [seen[i] for i in range(97)]
        assert max(counts) - min(counts) <= 1
        epochs = (n + 1) * 5 / load.units_per_epoch
        assert min(counts) == int(epochs + 1e-9)
        if n < 4:
            assert load.step(n).epoch == pytest.approx(epochs)


def test_epochs_and_seeds_differ_in_order():
    samples = make_samples(96)
    load = loader(samples)
    assert load.n_steps_for(1) == 8
    first, second = ([load.step(n).sample_ids for n in range(e * 8, e * 8 + 8)] for e in (0, 1))
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == sorted(samples.ids)
    assert all(set(a) != set(b) for a, b in zip(first, second, strict=True))
    assert set(loader(samples, seed=4).step(0).sample_ids) != set(first[0])


def test_batch_larger_than_the_data_set_goes_round_it_several_times():
    samples = make_samples(7)
    step = loader(samples, batch_size=17).step(0)
    assert step.n_examples == 17 and step.epoch == pytest.approx(17 / 7)
    assert sorted(Counter(step.sample_ids).values()) == [2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("batch_unit", ["samples", "rows"])
def test_a_step_depends_on_nothing_but_its_number(batch_unit: str):
    samples = make_samples(60)
    options = {"batch_unit": batch_unit, "batch_size": 7, "world_size": 2, "rank": 1}
    in_order = loader(samples, **options)
    steps = [in_order.step(n) for n in range(30)]
    rng = np.random.default_rng(0)
    fresh = loader(samples, **options)
    for n in rng.permutation(30).tolist() + [5, 5]:
        again = fresh.step(n)
        assert same_batches(again.batches, steps[n].batches)
        assert again.sample_ids == steps[n].sample_ids
    assert loader(samples, **options).step(29).sample_ids == steps[29].sample_ids, "resumed at 29"


@pytest.mark.parametrize(
    ("n", "batch_size", "epochs", "steps"),
    [(96, 12, 1, 8), (97, 12, 1, 9), (96, 12, 2.5, 20), (7268, 32, 1, 228), (96, 12, 1e-9, 1)],
)
def test_steps_of_a_number_of_epochs(n: int, batch_size: int, epochs: float, steps: int):
    assert loader(make_samples(n), batch_size=batch_size).n_steps_for(epochs) == steps


# ---------------------------------------------------------------------------------------------- ranks and counts


@pytest.mark.parametrize("batch_unit", ["samples", "rows"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize(("packing", "share_prefix"), SETTINGS)
def test_global_counts_are_the_sums_over_ranks(packing: bool, share_prefix: bool, world_size: int, batch_unit: str):
    samples = make_samples(50)
    options = {"packing": packing, "share_prefix": share_prefix, "batch_unit": batch_unit, "batch_size": 9}
    for n in range(4):
        ranks = [loader(samples, rank=r, world_size=world_size, **options).step(n) for r in range(world_size)]
        step = ranks[0]
        assert len({len(rank.batches) for rank in ranks}) == 1, "as many micro-batches on every rank"
        batches = [batch for rank in ranks for batch in rank.batches]
        assert step.n_label_tokens == {ANSWER: sum(len(batch.target_index) for batch in batches)}
        assert step.n_label_tokens == {ANSWER: sum(int((batch.targets != IGNORE).sum()) for batch in batches)}
        assert step.n_tokens == sum(batch.tokens.numel() for batch in batches)
        assert step.n_real_tokens == sum(batch.n_real_tokens for batch in batches)
        assert step.n_examples == len(step.sample_ids) == sum(len(batch.sample_ids) for batch in batches)
        for rank in ranks:
            assert (rank.n_label_tokens, rank.n_tokens, rank.n_real_tokens, rank.n_examples, rank.epoch) == (
                step.n_label_tokens,
                step.n_tokens,
                step.n_real_tokens,
                step.n_examples,
                step.epoch,
            )
        if batch_unit == "rows":
            assert sum(batch.tokens.shape[0] for batch in batches if not batch.dummy) == 9


def test_ranks_with_nothing_to_do_get_dummies():
    samples = make_samples(50)
    ranks = [loader(samples, batch_size=3, rank=r, world_size=8).step(0) for r in range(8)]
    assert [len(rank.batches) for rank in ranks] == [1] * 8
    assert sorted(rank.batches[0].dummy for rank in ranks) == [False] * 3 + [True] * 5
    for rank in ranks:
        (batch,) = rank.batches
        assert batch.dummy == (len(batch.sample_ids) == 0) == (len(batch.target_index) == 0)


def test_ranks_with_fewer_rows_get_dummies_behind_them():
    samples = make_samples(64, n_prefix=5, shortest=30)  # two fit in a row, and eight go to three ranks as 3, 3, 2
    uneven = 0
    for n in range(12):
        ranks = [loader(samples, batch_size=8, rank=r, world_size=3).step(n).batches for r in range(3)]
        for batches in ranks:
            kinds = [batch.dummy for batch in batches]
            assert kinds == sorted(kinds)
            lengths = [batch.tokens.shape[1] for batch in batches if not batch.dummy]
            assert lengths == sorted(lengths, reverse=True), "rows of one pass are alike on all ranks"
        uneven += len({sum(not batch.dummy for batch in batches) for batches in ranks}) > 1
    assert uneven, "some step had ranks with unequal numbers of rows"


def test_ranks_finish_together():
    samples = make_samples(2000)
    dealt, blind = [], []
    for n in range(20):
        plan = loader(samples, batch_size=64, world_size=4).plan(n)
        ranks = [np.array([i for rows in rank for row in rows for i in row]) for rank in plan.ranks]
        whole = np.concatenate(ranks)
        dealt.append(max(samples.costs[own].sum() for own in ranks) / samples.costs[whole].sum() * 4)
        blind.append(
            max(samples.costs[own].sum() for own in np.split(np.sort(whole), 4)) / samples.costs[whole].sum() * 4
        )
    assert max(dealt) < 1.03
    assert max(blind) > 1.15, "dealt blindly they would not have"


def test_rows_of_a_step_are_dealt_evenly():
    samples = make_samples(500)
    for n in range(5):
        plan = loader(samples, batch_unit="rows", batch_size=7, world_size=3).plan(n)
        assert sorted(len(rank) for rank in plan.ranks) == [2, 2, 3]


# ------------------------------------------------------------------------------------------------- rows and shapes


def test_rows_hold_several_documents_and_pad_little():
    samples = make_samples(500)
    load = loader(samples, batch_size=64, row_length=256)
    for n in range(5):
        plan, step = load.plan(n), load.step(n)
        assert max(len(row) for row in plan.rows) >= 3
        for rows, batch in zip(plan.ranks[0], step.batches, strict=True):
            assert batch.tokens.shape == (1, padded_length(20 + sum(samples.cost(i) for i in rows[0]), 256))
            assert batch.doc_ids.max() == len(rows[0])
        # 64 samples of about 12 tokens: without sharing each would bring 20 more
        alone = loader(samples, batch_size=64, row_length=256, share_prefix=False).step(n)
        assert alone.n_real_tokens - step.n_real_tokens == 20 * (64 - len(plan.rows))


def test_full_rows_in_rows_unit_have_one_number_in_every_epoch_and_are_level():
    samples = make_samples(400, longest=60)
    load = loader(samples, batch_unit="rows", batch_size=1, row_length=200)
    n_rows = load.units_per_epoch
    assert n_rows <= 1.1 * samples.costs.sum() / (200 - 20)
    compositions, longest = [], []
    for epoch in range(3):
        rows = [load.plan(n).rows for n in range(epoch * n_rows, (epoch + 1) * n_rows)]
        assert sorted(i for (row,) in rows for i in row) == list(range(400))
        costs = [sum(samples.cost(i) for i in row) for (row,) in rows]
        assert max(costs) <= 180 and max(costs) - min(costs) <= 60
        longest.append([max(samples.cost(i) for i in row) for (row,) in rows])
        compositions.append({tuple(sorted(row)) for (row,) in rows})
    assert compositions[0] != compositions[1] != compositions[2]
    assert longest[0] != longest[1] != longest[2] and longest[0] != sorted(longest[0], reverse=True), "shuffled"


@pytest.mark.parametrize(("seed", "row_length"), [(0, 200), (1, 97), (2, 130)])
def test_full_rows_are_the_fewest_that_fit(seed: int, row_length: int):
    """Bisection finds the same number as counting upwards."""
    samples = make_samples(120, longest=60, seed=seed)
    n_rows = loader(samples, batch_unit="rows", row_length=row_length).units_per_epoch
    capacity = row_length - 20

    def longest(n: int) -> int:
        return max(samples.costs[row].sum() for row in balance_costs(samples.costs, n))

    counted = next(n for n in range(1, 121) if longest(n) <= capacity)
    assert n_rows == counted and n_rows > 1


def test_full_rows_of_samples_longer_than_half_a_row_are_found_at_once(monkeypatch: pytest.MonkeyPatch):
    """Each needs a separate row; trying one number of rows after another would take long to find this."""
    samples = make_samples(2000, n_prefix=60, shortest=2, longest=40)
    dealt = []
    monkeypatch.setattr(loader_module, "balance_costs", lambda costs, n: dealt.append(n) or balance_costs(costs, n))
    load = loader(samples, batch_unit="rows", row_length=120, share_prefix=False)
    assert (samples.costs + 60).min() > 60 and load.units_per_epoch == 2000
    assert len(dealt) <= 12


def test_without_packing_a_row_is_one_padded_sample_and_micro_batches_keep_the_budget():
    samples = make_samples(100)
    load = loader(samples, packing=False, batch_size=32, row_length=200)
    plan, step = load.plan(0), load.step(0)
    assert all(len(row) == 1 for row in plan.rows) and len(plan.rows) == 32
    assert all(batch.tokens.numel() <= 200 for batch in step.batches)
    assert max(batch.tokens.shape[0] for batch in step.batches) >= 3
    shared = loader(samples, packing=False, batch_size=32, row_length=200, share_prefix=False).step(0)
    assert shared.n_tokens == step.n_tokens, "one document a row: sharing has nothing to share"
    fixed = loader(samples, packing=False, batch_size=32, row_length=200, micro_rows=5).step(0)
    assert [batch.tokens.shape[0] for batch in fixed.batches] == [5] * 6 + [2]


def test_micro_rows_stacks_packed_rows():
    samples = make_samples(300)
    one, three = (loader(samples, batch_size=40, micro_rows=k) for k in (1, 3))
    rows = one.plan(0).rows
    assert len(rows) >= 6 and three.plan(0).rows == rows
    assert [batch.tokens.shape[0] for batch in three.step(0).batches][:2] == [3, 3]


@pytest.mark.parametrize("batch_unit", ["samples", "rows"])
@pytest.mark.parametrize(("packing", "share_prefix"), SETTINGS)
def test_worst_case_bounds_every_step(packing: bool, share_prefix: bool, batch_unit: str):
    samples, several = make_samples(20, longest=70), set()
    for batch_size, world_size, row_length, micro_rows in itertools.product((4, 30), (1, 4), (100, 400), (None, 2)):
        options = {"packing": packing, "share_prefix": share_prefix, "batch_unit": batch_unit}
        options |= {"batch_size": batch_size, "row_length": row_length, "micro_rows": micro_rows}
        load = loader(samples, world_size=world_size, rank=world_size - 1, **options)
        worst = load.worst_case()
        for batch in worst.batches:
            assert not batch.dummy and batch.tokens.numel() <= row_length * (micro_rows or 1)
        n_targets = sum(len(batch.target_index) for batch in worst.batches)
        assert worst.n_label_tokens == {ANSWER: world_size * n_targets}, "the same on every rank"
        steps = [load.step(n).batches for n in range(4)]
        assert len(worst.batches) == 2 or max(map(len, steps)) == 1, options
        assert load.accumulates == (len(worst.batches) == 2)
        several.add(len(worst.batches))
        for batch in itertools.chain(*steps):
            assert batch.tokens.numel() <= worst.batches[0].tokens.numel(), options
            if packing:
                assert len(batch.target_index) <= len(worst.batches[0].target_index), options
    assert several == {1, 2}, "both cases occurred"


def test_the_worst_case_accumulates_only_where_steps_do():
    """A second pass costs 17 GB per GPU at 70B: the gradients of the first."""
    samples = make_samples(80, longest=70)
    few = {"batch_size": 4, "world_size": 4, "rank": 0}
    assert len(loader(samples, **few).worst_case().batches) == 1, "one sample a rank"
    assert len(loader(samples, **few | {"batch_size": 5}).worst_case().batches) == 2
    assert len(loader(samples, **few | {"batch_size": 5, "row_length": 1000}).worst_case().batches) == 1
    row = loader(samples, **few).worst_case().batches[0]
    assert len(row.sample_ids) == 1 and row.tokens.shape[1] >= 20 + samples.costs.max()


class Lengths:
    """The part of a sample set that planning needs."""

    def __init__(self, costs: list[int]) -> None:
        self.ids, self.prefix = [str(i) for i in range(len(costs))], np.zeros(0, dtype=np.int32)
        self.costs, self.label_lengths = np.array(costs), np.ones(len(costs), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)


def test_the_worst_pass_where_it_is_not_the_longest_samples():
    rows, length = loader(Lengths([60] + [48] * 9), packing=False, batch_size=8).worst_rows()
    assert (len(rows), length) == (2, 48), "two rows of 48 tokens are more than one of 64"
    assert loader(Lengths([60] + [48] * 9), packing=False, batch_size=2).accumulates, "two of 60 take two passes"
    rows, length = loader(Lengths([90, 10, 10]), batch_size=2, row_length=256).worst_rows()
    assert rows == [[0, 0]] and length == padded_length(180), "the end of an epoch and the beginning of the next"


# ------------------------------------------------------------------------------------------------------- prefetch


def test_prefetch_gives_the_same_steps_in_order():
    load = loader(make_samples(50))
    for n, step in enumerate(load.prefetch(4, 11), start=4):
        assert step.sample_ids == load.step(n).sample_ids
        assert same_batches(step.batches, load.step(n).batches)
    assert n == 10
    assert list(load.prefetch(5, 5)) == []


def test_prefetch_stops_its_thread_when_left_early_and_passes_errors_on(monkeypatch: pytest.MonkeyPatch):
    load = loader(make_samples(50))
    steps = load.prefetch(0, 1000)
    next(steps)
    assert any(thread.name.startswith("loader") for thread in threading.enumerate())
    steps.close()
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())

    def fail(n: int):
        raise MemoryError(f"step {n}")

    monkeypatch.setattr(load, "step", fail)
    with pytest.raises(MemoryError, match="step 0"):
        next(load.prefetch(0, 10))


# ---------------------------------------------------------------------------------------------------------- errors


def test_fewer_samples_than_ranks():
    with pytest.raises(UserError, match="3 samples for 8 ranks"):
        loader(make_samples(3), world_size=8)


def test_empty_data_set():
    samples = make_samples(2)
    nothing = SampleSet(samples.prefix, [], *(np.zeros(0, np.int64) for _ in range(5)))
    with pytest.raises(UserError, match="no samples"):
        loader(nothing)


@pytest.mark.parametrize(
    ("option", "value", "match"),
    [
        ("batch_size", 0, "batch_size 0"),
        ("batch_unit", "tokens", "batch_unit 'tokens' is not one of: samples, rows"),
        ("micro_rows", 0, "micro_rows 0"),
    ],
)
def test_settings_out_of_range(option: str, value: object, match: str):
    with pytest.raises(UserError, match=match):
        loader(make_samples(5), **{option: value})


def test_samples_prepared_for_a_longer_row_are_our_bug():
    with pytest.raises(AssertionError, match="longer row"):
        loader(make_samples(50), row_length=40)
