"""Packed encoder rows: every document complete, with its positions, index and targets; and steps made of such rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.encoder.rows import Batch as EncoderBatch
from data.encoder.rows import build_batch as encoder_batch
from data.encoder.samples import SampleSet as EncoderSampleSet
from data.loader import StepLoader
from tests.encoder_samples import PAD, make_encoder_samples


def test_the_drawing_at_the_top_of_the_file() -> None:
    samples = EncoderSampleSet(
        ids=["one", "two"],
        tokens=np.array([8, 10, 11, 9, 8, 12, 13, 9]),
        end=np.array([4, 8]),
        word_end=np.array([2, 4]),
        first_places=np.array([1, 2, 1, -1]),
        targets={"topic": np.array([5, 6]), "slots": np.array([1, 2, 3, 4])},
        document_tokens=np.array([2, 3]),
        truncated=np.array([False, True]),
        kinds={"topic": "class", "slots": "token"},
        pad_id=PAD,
    )
    batch = encoder_batch(samples, [[0, 1]], length=10)
    assert batch.tokens.tolist() == [[8, 10, 11, 9, 8, 12, 13, 9, PAD, PAD]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 0]]
    assert batch.doc_ids.tolist() == [[1, 1, 1, 1, 2, 2, 2, 2, -1, -1]]
    assert {name: index.tolist() for name, index in batch.index.items()} == {"topic": [0, 4], "slots": [1, 2, 5]}
    assert {name: t.tolist() for name, t in batch.targets.items()} == {"topic": [5, 6], "slots": [1, 2, 3]}
    assert batch.sample_ids == ["one", "two"] and batch.n_real_tokens == 8
    two_rows = encoder_batch(samples, [[1], [0]])
    assert two_rows.tokens.shape == (2, 16) and two_rows.index["slots"].tolist() == [1, 17, 18]


def documents_of(samples: EncoderSampleSet, batch: EncoderBatch) -> dict[str, tuple]:
    """By sample id: its tokens, positions, and for each field (index in its document, target)."""
    found, T = {}, batch.tokens.shape[1]
    ids = iter(batch.sample_ids)
    for b in range(len(batch.tokens)):
        for doc in sorted(set(batch.doc_ids[b].tolist()) - {-1}):
            at = (batch.doc_ids[b] == doc).nonzero().flatten()
            outputs = {
                field: [
                    (place - b * T - int(at[0]), target)
                    for place, target in zip(places.tolist(), batch.targets[field].tolist(), strict=True)
                    if place // T == b and place % T in at.tolist()
                ]
                for field, places in batch.index.items()
            }
            found[next(ids)] = (batch.tokens[b, at].tolist(), batch.positions[b, at].tolist(), outputs)
    assert next(ids, None) is None
    return found


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("options", [{}, {"packing": False}, {"batch_unit": "rows", "batch_size": 3}])
def test_steps_hold_complete_samples_and_count_by_field(options: dict, ranks: int) -> None:
    samples = make_encoder_samples()
    settings = {"batch_size": 12, "row_length": 50, "seed": 3, "world_size": ranks, **options}
    loaders = [StepLoader(samples, rank=rank, **settings) for rank in range(ranks)]
    seen, several = [], False
    for n in range(loaders[0].n_steps_for(1)):
        steps = [loader.step(n) for loader in loaders]
        batches = [batch for step in steps for batch in step.batches]
        assert len({len(step.batches) for step in steps}) == 1
        counts = {field: sum(len(batch.index[field]) for batch in batches) for field in samples.kinds}
        assert all(step.n_label_tokens == counts for step in steps)
        assert sum(batch.n_real_tokens for batch in batches) == steps[0].n_real_tokens
        assert sum(batch.tokens.numel() for batch in batches) == steps[0].n_tokens
        for batch in batches:
            several |= int(batch.doc_ids.max()) > 1
            for name, (tokens, positions, outputs) in documents_of(samples, batch).items():
                i = samples.ids.index(name)
                first = samples.first(i)
                assert tokens == samples.document(i).tolist() and positions == list(range(len(tokens)))
                assert outputs["topic"] == [(0, samples.targets["topic"][i])]
                assert outputs["slots"] == list(zip(first[first >= 0], samples.target("slots", i), strict=True))
                seen.append(name)
    assert several == options.get("packing", True) and set(seen) == set(samples.ids)
    assert (samples.first_places < 0).any() and samples.lengths[0] == 2


@pytest.mark.parametrize("multi", [False, True])
def test_dummy_and_worst_case(multi: bool) -> None:
    samples = make_encoder_samples(multi=multi)
    dummy = samples.dummy()
    assert dummy.dummy and dummy.n_real_tokens == 0 and (dummy.doc_ids == -1).all()
    assert all(
        len(places) == 0 and places.dtype == torch.int64 for places in [*dummy.index.values(), *dummy.targets.values()]
    )
    if multi:
        assert dummy.targets["marks"].shape == (0, 4)
    moved = dummy.to("cpu")
    assert moved.index.keys() == dummy.index.keys() and moved.tokens.equal(dummy.tokens)
    load = StepLoader(samples, batch_size=12, row_length=50)
    worst = load.worst_case().batches[0]
    assert worst.tokens.shape == (1, 50) and len(worst.index["topic"]) > 1
    steps = [batch for n in range(20) for batch in load.step(n).batches]
    outputs = lambda batch: sum(len(index) for index in batch.index.values())  # noqa: E731
    assert max(map(outputs, steps)) <= outputs(worst) and max(b.tokens.shape[1] for b in steps) <= 50


def test_a_multi_field_has_a_row_of_targets_for_each_document() -> None:
    samples = make_encoder_samples(multi=True)
    batch = encoder_batch(samples, [[3, 1], [7]])
    assert batch.index["marks"].equal(batch.index["topic"]) and batch.targets["marks"].dtype == torch.int64
    assert batch.targets["marks"].tolist() == samples.targets["marks"][[3, 1, 7]].astype(int).tolist()
    assert samples.count_targets([3, 1, 7])["marks"] == 3


def test_without_labels_there_is_an_index_but_no_targets() -> None:
    samples = make_encoder_samples()
    samples.targets = {}
    batch = encoder_batch(samples, [[0, 1]])
    assert batch.targets == {} and len(batch.index["topic"]) == 2
