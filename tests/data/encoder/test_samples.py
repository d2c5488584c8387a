"""Encoder samples: special tokens, cutting, where words begin, and which targets they get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from checkpoints_tools.heads import heads_for
from data.encoder.samples import SampleSet as EncoderSampleSet
from data.encoder.samples import prepare as prepare_encoder
from data.encoder.samples import tag_set
from data.encoder.tokenizer import Tokenizer as EncoderTokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from data.example import Example
from data.source import load_examples
from data.tasks import SLOTS, TASKS, ClassField, MultiField, Task, TokenField
from model.encoder import Head

COLORS = Task("own", "custom", (ClassField("mood", ("good", "bad")), TokenField("slots", ("time", "time-zone"))))


@pytest.fixture
def tokenizer(encoder_folder: Path) -> EncoderTokenizer:
    return load_encoder_tokenizer(encoder_folder)


def example(text: str, types: str, mood: str = "bad", bio: str = "") -> Example:
    labels = {"mood": mood, "slots": tuple(types.split())}
    return Example(f"own/{text}", text, labels, {"slots": tuple(bio.split())} if bio else {})


def assert_same(a: EncoderSampleSet, b: EncoderSampleSet) -> None:
    assert a.ids == b.ids and a.kinds == b.kinds and a.targets.keys() == b.targets.keys()
    for name in ("tokens", "end", "word_end", "first_places", "document_tokens", "truncated"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name, values in a.targets.items():
        np.testing.assert_array_equal(values, b.targets[name])


def test_tags_and_heads() -> None:
    assert tag_set(COLORS.fields[1]) == ("O", "B-time", "I-time", "B-time-zone", "I-time-zone")
    assert len(tag_set(SLOTS)) == 111 and len(set(tag_set(SLOTS))) == 111
    assert heads_for(COLORS) == (Head("mood", "class", 2), Head("slots", "token", 5))
    assert [h.n_labels for h in heads_for(TASKS["20ng_joint"])] == [7, 20]


def test_real_utterances(tokenizer: EncoderTokenizer) -> None:
    task = TASKS["massive_joint"]
    examples = load_examples(task, "train", "sample")
    samples = prepare_encoder(examples, task, tokenizer, 64)
    assert not samples.truncated.any() and (samples.first_places > 0).all()
    tags = tag_set(SLOTS)
    for i, one in enumerate(examples):
        ids, first = tokenizer.encode_words(one.words)
        assert samples.document(i).tolist() == [tokenizer.cls_id, *ids, tokenizer.sep_id]
        assert samples.first(i).tolist() == [place + 1 for place in first]
        assert [task.fields[0].labels[n] for n in samples.target("intent", i)] == [one.labels["intent"]]
        assert tuple(tags[n] for n in samples.target("slots", i)) == one.bio["slots"]
    assert samples.n_outputs("slots").sum() == sum(len(e.words) for e in examples)
    assert (samples.n_outputs("intent") == 1).all()


def test_whole_text_without_a_token_field(tokenizer: EncoderTokenizer) -> None:
    task = TASKS["20ng_joint"]
    examples = load_examples(task, "test", "sample")[:20]
    samples = prepare_encoder(examples, task, tokenizer, 40)
    for i, one in enumerate(examples):
        ids = tokenizer.encode(one.text)
        assert samples.document(i).tolist() == [tokenizer.cls_id, *ids[:38], tokenizer.sep_id]
        assert samples.truncated[i] == (len(ids) > 38) and samples.document_tokens[i] == len(ids)
        assert len(samples.first(i)) == 0
        assert task.fields[1].labels[samples.target("group", i)[0]] == one.labels["group"]
    assert samples.truncated.any() and samples.lengths.max() == 40
    assert f"{int(samples.truncated.sum())} truncated" in samples.describe()


def test_words_cut_off_are_not_targets(tokenizer: EncoderTokenizer) -> None:
    one = example("nine to nine", "time Other time-zone")
    whole = prepare_encoder([one], COLORS, tokenizer, 99)
    last = int(whole.first(0)[2])  # the index of the last word, at which sep is if the sample is cut there
    cut = prepare_encoder([one], COLORS, tokenizer, last + 1)
    assert cut.first(0).tolist() == [*whole.first(0)[:2], -1] and cut.truncated[0]
    assert cut.document(0)[-1] == tokenizer.sep_id and cut.lengths[0] == last + 1
    assert cut.target("slots", 0).tolist() == [1, 0] and cut.kept_words.tolist() == [2]
    assert "1 words truncated" in cut.describe()
    np.testing.assert_array_equal(prepare_encoder([one], COLORS, tokenizer, last + 2).first(0), whole.first(0))


def test_a_word_without_sub_words_and_a_text_without_words(bert_folder: Path) -> None:
    tokenizer = load_encoder_tokenizer(bert_folder)
    examples = [example("nine \u200b", "time time"), example("", "", "good"), example(" \t ", "")]
    samples = prepare_encoder(examples, COLORS, tokenizer, 20)
    assert samples.first(0).tolist() == [1, -1] and not samples.truncated.any()
    assert samples.target("slots", 0).tolist() == [1]
    for i in (1, 2):
        assert samples.document(i).tolist() == [tokenizer.cls_id, tokenizer.sep_id] and len(samples.first(i)) == 0
        assert len(samples.target("slots", i)) == 0 and samples.target("mood", i).tolist() == [i - 1]


def test_neighbours_join_unless_brackets_say_otherwise(tokenizer: EncoderTokenizer) -> None:
    words, types = "nine ten am to", "time time time-zone Other"
    joined, apart = example(words, types), example(words, types, bio="B-time B-time B-time-zone O")
    samples = prepare_encoder([joined, apart], COLORS, tokenizer, 30)
    assert samples.target("slots", 0).tolist() == [1, 2, 3, 0]
    assert samples.target("slots", 1).tolist() == [1, 1, 3, 0]


def test_labels_of_a_multi_field(tokenizer: EncoderTokenizer) -> None:
    task = Task("own", "custom", (MultiField("marks", ("x", "y", "z")), ClassField("mood", ("good", "bad"))))
    examples = [Example(str(i), "nine to nine", {"marks": marks, "mood": "bad"}) for i, marks in enumerate(
        [("x", "z"), (), ("y",)]
    )]  # fmt: skip
    samples = prepare_encoder(examples, task, tokenizer, 30)
    assert samples.targets["marks"].tolist() == [[True, False, True], [False] * 3, [False, True, False]]
    assert samples.kinds == {"marks": "multi", "mood": "class"} and samples.label_lengths.tolist() == [2, 2, 2]
    assert heads_for(task) == (Head("marks", "multi", 3), Head("mood", "class", 2))
    assert prepare_encoder([], task, tokenizer, 30).targets["marks"].shape == (0, 3)


def test_without_labels(tokenizer: EncoderTokenizer) -> None:
    one = Example("own/1", "nine to nine", {})
    samples = prepare_encoder([one], COLORS, tokenizer, 30, with_labels=False)
    assert samples.targets == {} and samples.kinds == {"mood": "class", "slots": "token"} and len(samples.first(0)) == 3
    with pytest.raises(UserError, match="no label"):
        prepare_encoder([one], COLORS, tokenizer, 30)


def test_a_row_too_short_for_any_document(tokenizer: EncoderTokenizer) -> None:
    with pytest.raises(UserError, match="has none left beside its 2 special tokens. It needs 3 or more: --max_length"):
        prepare_encoder([], COLORS, tokenizer, 2)


def test_second_time_is_read_from_the_cache(tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = [example("nine to nine", "time Other time"), example("", "")]
    kept = prepare_encoder(examples, COLORS, tokenizer, 30, cache_dir=tmp_path)
    assert_same(kept, prepare_encoder(examples, COLORS, tokenizer, 30))
    prepare_encoder(examples, COLORS, tokenizer, 4, cache_dir=tmp_path)
    prepare_encoder(examples[::-1], COLORS, tokenizer, 30, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 3
    monkeypatch.setattr(EncoderTokenizer, "encode_words", None)
    assert_same(kept, prepare_encoder(examples, COLORS, tokenizer, 30, cache_dir=tmp_path))
