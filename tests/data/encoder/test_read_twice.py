"""Documents that are read twice: the tokens around them, the places of words in the second reading, and cutting."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.encoder.read_twice import AFTER, BEFORE, BETWEEN, TwiceTokenizer, load_tokenizer
from data.encoder.samples import prepare
from data.errors import UserError
from data.example import Example
from data.tasks import ClassField, Task, TokenField
from tests.checkpoints_tools.conftest import tiny_tokenizer

MOODS = ClassField("mood", ("good", "bad"))
MOOD = Task("moods", "own", (MOODS,))
BOTH = Task("both", "own", (MOODS, TokenField("time", ("time", "Other"), other="Other")))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TwiceTokenizer:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_tokenizer().save_pretrained(folder)
    return load_tokenizer(folder)


def text_of(tokenizer: TwiceTokenizer, ids) -> str:
    return tokenizer.decoder.decode([int(i) for i in ids])


def test_a_sample_is_the_text_twice_and_a_question(tokenizer: TwiceTokenizer) -> None:
    samples = prepare([Example("1", "wake me", {"mood": "good"})], MOOD, tokenizer, 500)
    assert text_of(tokenizer, samples.document(0)) == f"<|begin|>{BEFORE} wake me{BETWEEN} wake me{AFTER}"
    assert samples.document_tokens[0] == len(" wake me") and not samples.truncated[0]


def test_words_are_found_in_the_second_reading(tokenizer: TwiceTokenizer) -> None:
    example = Example("1", "wake me at nine", {"mood": "bad", "time": ("Other", "Other", "Other", "time")})
    samples = prepare([example], BOTH, tokenizer, 500)
    ids = samples.document(0)
    ends = [*samples.first(0)[1:], len(ids) - len(AFTER)]
    words = [text_of(tokenizer, ids[a:b]) for a, b in zip(samples.first(0), ends, strict=True)]
    assert words == ["wake ", "me ", "at ", "nine"], "the space before a word is a token of its own here"
    assert samples.first(0)[0] > len(ids) / 2 - len(AFTER), "not in the first reading"


def test_the_frame_of_real_tokenizers(llama2, llama3, smollm2) -> None:
    """As `docs/training.md` has it; and a number's place is not the space that Llama's tokenizers put before it."""
    frames = {"llama2": 24, "llama3": 23, "smollm2": 23}
    for decoder, size in zip((llama2, llama3, smollm2), frames.values(), strict=True):
        found = TwiceTokenizer(decoder)
        assert found.frame.size == size
        ids, first = found.encode_words(["at", "9"])
        assert [decoder.decode([ids[place]]).strip() for place in first] == ["at", "9"]


@pytest.mark.parametrize("kept", [8, 5, 2])
def test_both_readings_are_cut_alike(tokenizer: TwiceTokenizer, kept: int) -> None:
    around = tokenizer.frame.size
    example = Example("1", "wake me at nine", {"mood": "bad", "time": ("Other",) * 4})
    for spare in (0, 1):  # a token that is too few for both readings
        samples = prepare([example], BOTH, tokenizer, around + 2 * kept + spare)
        text = " wake me at nine"[:kept]
        assert text_of(tokenizer, samples.document(0)) == f"<|begin|>{BEFORE}{text}{BETWEEN}{text}{AFTER}"
        assert samples.truncated[0] and samples.document_tokens[0] == 16
        places = samples.first(0)
        assert (places >= 0).tolist() == [True, kept > 5, False, False]
        again = len(f"{BEFORE}{text}{BETWEEN}") + 1  # where the second reading begins, in a tokenizer of bytes
        assert places[0] == again + 1 and (kept <= 5 or places[1] == again + 6), "a space is before each word"
    with pytest.raises(UserError, match=f"its {around} special tokens. It needs {around + 2} or more: --max_length"):
        prepare([example], BOTH, tokenizer, around + 1)


def test_a_space_is_no_sub_word(tokenizer: TwiceTokenizer) -> None:
    """Here each word begins with a token that is a space alone, as a number does with Llama's."""
    ids, first = tokenizer.encode_words(["9", "am", " "])
    assert text_of(tokenizer, ids) == " 9 am  " and first == [1, 3, 6], "and of the last word nothing else is there"


def test_a_chats_turn_is_no_beginning_of_a_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>"})
    tokenizer.save_pretrained(tmp_path)
    found = load_tokenizer(tmp_path)
    assert found.decoder.special["<|im_start|>"] == found.decoder.bos_id not in found.frame.before


def test_an_empty_text_and_words_without_tokens(tokenizer: TwiceTokenizer) -> None:
    samples = prepare([Example("1", "", {"mood": "good"})], MOOD, tokenizer, 500)
    assert text_of(tokenizer, samples.document(0)) == f"<|begin|>{BEFORE} {BETWEEN} {AFTER}"
    assert tokenizer.encode_words(["a", "", "b"]) == ([*tokenizer.encode("a"), *tokenizer.encode("b")], [1, -1, 3])


def test_the_cache_knows_the_frame(tokenizer: TwiceTokenizer, tmp_path: Path) -> None:
    example = [Example("1", "wake me", {"mood": "good"})]
    prepare(example, MOOD, tokenizer, 500, cache_dir=tmp_path)
    again = prepare(example, MOOD, tokenizer, 500, cache_dir=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 1 and again.document_tokens[0] == 8
    assert tokenizer.fingerprint != tokenizer.decoder.fingerprint
