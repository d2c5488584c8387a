"""Made-up encoder samples for tests of packing and training."""

from __future__ import annotations

import numpy as np

from data.encoder.samples import SampleSet as EncoderSampleSet

PAD = 1


def make_encoder_samples(n: int = 40, seed: int = 0, vocab: int = 301, multi: bool = False) -> EncoderSampleSet:
    """Made-up documents with one class field of 7 labels and one token field of 5 tags; some words have no place.

    Args:
        multi: there is also a multi field, of 4 labels.
    """
    rng = np.random.default_rng(seed)
    lengths, n_words = rng.integers(2, 20, n), rng.integers(0, 5, n)
    lengths[0], n_words[0] = 2, 0  # an utterance of no words
    n_words = np.minimum(n_words, lengths - 2)
    first = [np.sort(1 + rng.permutation(length - 2)[:words]) for length, words in zip(lengths, n_words, strict=True)]
    places = np.concatenate(first).astype(np.int32)
    places[rng.random(len(places)) < 0.2] = -1
    samples = EncoderSampleSet(
        ids=[f"made/up/{i}" for i in range(n)],
        tokens=rng.integers(2, vocab, lengths.sum()).astype(np.int32),
        end=np.cumsum(lengths),
        word_end=np.cumsum(n_words),
        first_places=places,
        targets={"topic": rng.integers(0, 7, n), "slots": rng.integers(0, 5, n_words.sum())},
        document_tokens=(lengths - 2).astype(np.int32),
        truncated=np.zeros(n, dtype=bool),
        kinds={"topic": "class", "slots": "token"},
        pad_id=PAD,
    )
    if multi:
        samples.kinds["marks"] = "multi"
        samples.targets["marks"] = rng.random((n, 4)) < 0.4
        samples.__post_init__()  # counts outputs
    return samples
