"""A model can write only valid answers, whatever its logits: each is read back without a correction."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from data.answers import Parsed
from data.decoder.prompts import build_prompt
from data.decoder.templates import encode_pieces
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.decoder.valid_tokens import ValidTokens, Writing
from data.errors import UserError
from data.tasks import TASKS, ClassField, Field, MultiField, Task, TokenField
from tests.decoder_tokenizers import LOSSY, write_tiny_sentencepiece

KINDS = ("time", "time zone", "naïve", '"x"', "a", "a: b", "a: b c", "日本", "B-x", "Other")
OWN = (
    {answer: Task("own", "custom", (TokenField("t", KINDS, "none", answer),)) for answer in ("list", "bio", "spans")}
    | {
        f"joint, {answer}": Task(
            "own",
            "custom",
            (ClassField("c", KINDS), TokenField("t", KINDS, "none", answer), ClassField("d", ("x", "y"))),
        )
        for answer in ("list", "bio", "spans")
    }
    | {
        "labels": Task("own", "custom", (MultiField("m", KINDS),)),
        "joint, labels": Task(
            "own", "custom", (ClassField("c", KINDS), MultiField("m", KINDS), ClassField("d", ("x",)))
        ),
    }
)
PAPER = {
    f"{name}, {answer}": TASKS[name].with_slot_answer(answer)
    for name in ("massive_slots", "massive_joint")
    for answer in ("list", "bio", "spans")
}
WORDS = [
    "wake",
    "b:",
    "b",
    'say"x"',
    "back\\slash",
    "日本",
    "é",
    "b:",
    "wake",
    "me",
    "a",
    "wake",
    "\ud800",
    "p.m.",
    "x\x00",
]


def values_of(task: Task, rng: random.Random) -> list[str]:
    first = task.fields[0]
    return [rng.choice(first.labels)] if isinstance(first, ClassField) else []


def some_labels(field: Field, n_words: int, rng: random.Random) -> str | tuple[str, ...]:
    if isinstance(field, ClassField):
        return rng.choice(field.labels)
    if isinstance(field, MultiField):
        return tuple(label for label in field.labels if rng.random() < 0.3)
    return tuple(rng.choices((field.other, *field.labels), k=n_words))


def write(
    valid: ValidTokens, before: list[str], words: list[str], rng: random.Random, limit: int
) -> tuple[Writing, list[int]]:
    """What a model with random logits writes; a random token is mostly a short one, so long ones are preferred."""
    writing = valid.start(before, words)
    tokens = list(writing.forced)
    while writing.value is None and len(tokens) < limit:
        allowed = writing.next_tokens()
        assert allowed == sorted(set(allowed))
        token = max(rng.sample(allowed, min(len(allowed), rng.choice([1, 3]))), key=lambda i: len(valid.pieces[i]))
        writing.add(token)
        tokens.append(token)
    return writing, tokens


def same_text(decoded: str, written: bytes) -> bool:
    """Whether a text is that of these bytes; libraries differ in how many U+FFFD they write for parts of characters."""
    return "\ufffd".join(filter(None, decoded.split("\ufffd"))) == "\ufffd".join(
        filter(None, written.decode(errors="replace").split("\ufffd"))
    )


def whole(valid: ValidTokens, before: list[str], writing: Writing) -> str:
    rest = [field.labels[0] for field in valid.task.fields[len(before) + 1 :]]
    return valid.task.join([*before, writing.value, *rest])


@pytest.mark.parametrize("name", [*OWN, *PAPER])
def test_random_logits_write_only_valid_answers(tiny_tokenizer: Tokenizer, name: str) -> None:
    task = (OWN | PAPER)[name]
    valid = ValidTokens(task, build_prompt(task, "plain"), tiny_tokenizer)
    rng = random.Random(0)
    values, n_finished = set(), 0
    for _ in range(150):
        words = rng.choices(WORDS, k=rng.choice([0, 1, 2, 5, 9]))
        before = values_of(task, rng)
        writing, tokens = write(valid, before, words, rng, limit=rng.choice([20, 60, 1000]))
        if writing.value is None:
            writing.finish()
            n_finished += 1
        parsed = task.read(whole(valid, before, writing), words)
        assert parsed.unparsed == ()
        assert (parsed.n_missing, parsed.n_extra, parsed.n_unknown, parsed.n_not_found) == (0, 0, 0, 0)
        if "labels" in name:  # in their order, each once
            assert task.write(parsed.labels) == whole(valid, before, writing)
        # What is said to be written is what the tokens say.
        written = b"".join(valid.pieces[i] for i in tokens)
        assert (valid.prompt.lead + whole(valid, before, writing)).encode().startswith(written)
        assert same_text(tiny_tokenizer.decode(tokens), written)
        values.add(writing.value)
    assert len(values) > 15 and 0 < n_finished < 150


@pytest.mark.parametrize("name", [*OWN, *PAPER])
def test_what_training_writes_may_be_written(tiny_tokenizer: Tokenizer, name: str) -> None:
    task = (OWN | PAPER)[name]
    valid = ValidTokens(task, build_prompt(task, "plain"), tiny_tokenizer)
    rng = random.Random(0)
    n_checked = 0
    for _ in range(100):
        words = rng.choices(WORDS[:5] + ["p.m.", "x"], k=rng.choice([0, 1, 2, 5, 9]))
        labels: dict = {field.name: some_labels(field, len(words), rng) for field in task.fields}
        before = [labels[task.fields[0].name]] if isinstance(task.fields[0], ClassField) else []
        answer = task.write(labels, words)
        if task.read(answer, words) != Parsed(labels, ()) or ("spans" in name and '"a: b' in answer):
            continue  # spans with words that occur more than once, or of a type that begins like another
        writing = valid.start(before, words)
        tokens = encode_pieces(valid.prompt.answer(answer), tiny_tokenizer)
        assert tokens[: len(writing.forced)] == writing.forced
        for token in tokens[len(writing.forced) :]:
            if writing.value is not None:
                break
            assert token in writing.next_tokens()
            writing.add(token)
        field = task.fields[len(before)]
        assert writing.value == tuple(field.format.write(labels[field.name], words))
        n_checked += 1
    assert n_checked > 50


@pytest.mark.parametrize("kind", LOSSY)
def test_words_of_fields_before_that_the_tokenizer_changes(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tiny_sentencepiece(tmp_path, **LOSSY[kind]))
    words = ["nine", "\u2581", "\u2581\u2581", "\u00bd", "wait\u2026", "\u65e5"]
    before = [tuple(f"time: {' '.join(words[i:k])}" for i, k in ((0, 1), (1, 4), (4, 6)))]
    nexts: list[tuple[Field, list[tuple[str, ...]]]] = [
        (MultiField("m", ("low", "high")), [(), ("high",), ("low", "high")]),
        (TokenField("u", ("time",), "none", "spans"), [(), ("time: nine",)]),
        (TokenField("u", ("time", "a"), "none"), [("time", "none", "none", "a", "a", "none")]),
    ]
    for field, values in nexts:
        for rest in ((), (ClassField("c", ("x",)),)):
            task = Task("own", "custom", (TokenField("t", ("time", "name"), "none", "spans"), field, *rest))
            valid = ValidTokens(task, build_prompt(task, "plain"), tokenizer)
            for value in values:
                answer = task.join([*before, value, *(f.labels[0] for f in rest)])
                tokens = encode_pieces(valid.prompt.answer(answer), tokenizer)
                assert answer not in tokenizer.decode(tokens)
                writing = valid.start(before, words)
                assert tokens[: len(writing.forced)] == writing.forced
                for token in tokens[len(writing.forced) :]:
                    if writing.value is None:
                        assert token in writing.next_tokens()
                        writing.add(token)
                assert writing.value == value


def test_what_is_kept_for_all_texts_does_not_grow_with_them(tiny_tokenizer: Tokenizer) -> None:
    fields = TokenField("t", ("time", "a"), "none", "spans"), MultiField("m", KINDS), TokenField("u", KINDS, "none")
    task = Task("own", "custom", fields)
    valid = ValidTokens(task, build_prompt(task, "plain"), tiny_tokenizer)
    within, lengths = valid.within, list[int]()
    valid.within = lambda token, text: (lengths.append(len(text)), within(token, text))[1]
    kept = []
    for n in range(4):
        words = [f"w{n}", f"word{n}", "x" * 5000]
        writing = valid.start([], words)
        for _ in range(40):
            going_on = [i for i in writing.next_tokens() if b"]" not in valid.pieces[i]]
            writing.add(max(going_on, key=lambda i: len(valid.pieces[i])))
        writing.finish()
        assert writing.value
        values = [writing.value, ("a",)]
        for k in (1, 2):
            following = valid.start(values[:k], words)
            assert following.next_tokens()
            following.finish()
        kept.append([cached.cache_info().currsize for cached in (valid.edges, valid.begin, valid.next)])
    assert kept[0] == kept[-1] and kept[0][0] > 0
    assert max(lengths) == valid.longest + 1 < 1000


def test_no_more_than_what_may_follow_is_offered(tiny_tokenizer: Tokenizer) -> None:
    """Every token of the vocabulary, tried one by one, at every step of some answers."""
    fields = (
        ClassField("c", KINDS),
        TokenField("t", ("time", "tin", "naïve"), "none", "spans"),
        ClassField("d", ("x",)),
    )
    task = Task("own", "custom", fields)
    valid = ValidTokens(task, build_prompt(task, "plain"), tiny_tokenizer)
    words, rng = ["9", "p.m.", "9", "pm"], random.Random(0)
    answers = all_answers(task, "naïve", words)
    for _ in range(4):
        writing = valid.start(["naïve"], words)
        text = b"".join(valid.pieces[i] for i in writing.forced)
        while writing.value is None:
            begun = {answer for answer in answers if answer.startswith(text)}
            may = [i for i, p in valid.pieces.items() if p and any(a.startswith(text + p) for a in begun)]
            assert writing.next_tokens() == sorted(may)
            token = rng.choice(may)
            writing.add(token)
            text += valid.pieces[token]


def all_answers(task: Task, label: str, words: list[str]) -> list[bytes]:
    """All valid answers up to the key of the last field."""
    kinds = task.fields[1].labels

    def spans(start: int) -> list[list[str]]:
        found: list[list[str]] = [[]]
        phrases = {
            tuple(words[i:k]): (i, k) for i in reversed(range(start, len(words))) for k in range(i + 1, len(words) + 1)
        }
        for phrase, (_, end) in phrases.items():
            found += [[f"{kind}: {' '.join(phrase)}", *rest] for kind in kinds for rest in spans(end)]
        return found

    return [(" " + task.join([label, value, "x"])[: -len('"x"}')]).encode() for value in spans(0)]


def test_a_character_that_no_token_has_ends_the_answer_early(tmp_path: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["[] time: nine am \"name\": other"] * 4), model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=60, model_type="bpe", hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    tokenizer = load_tokenizer(tmp_path)
    task = Task("own", "custom", (TokenField("t", ("time",), "other", "spans"),))
    valid = ValidTokens(task, build_prompt(task, "plain"), tokenizer)
    writing = valid.start([], ["日本"])
    while allowed := [i for i in writing.next_tokens() if valid.pieces[i] != b"]"]:
        writing.add(allowed[-1])
    writing.finish()
    assert writing.value == ("time: 日本",)


def test_the_bytes_of_tokens(tiny_tokenizer: Tokenizer) -> None:
    check_pieces(tiny_tokenizer)


@pytest.mark.parametrize("name", ["llama2", "llama3", "smollm2"])
def test_the_bytes_of_real_tokens(name: str, request: pytest.FixtureRequest) -> None:
    check_pieces(request.getfixturevalue(name))


def check_pieces(tokenizer: Tokenizer) -> None:
    pieces, rng = tokenizer.pieces(), random.Random(0)
    assert not set(pieces) & set(tokenizer.special.values())
    assert len(pieces) > 0.9 * (tokenizer.vocab_size - len(tokenizer.special))
    for _ in range(3000):
        ids = rng.choices(sorted(pieces), k=3)
        assert same_text(tokenizer.decode(ids), b"".join(pieces[i] for i in ids))
    for text in ["wake me at nine", 'naïve 日本 \n\t {"a": 1}', "  two  spaces "]:
        assert b"".join(pieces[i] for i in tokenizer.encode(text)).decode() == text


def test_a_decoder_of_another_kind_is_refused(tiny_folder: dict[str, Path], tmp_path: Path) -> None:
    spec = json.loads((tiny_folder["json"] / "tokenizer.json").read_text(encoding="utf-8"))
    spec["decoder"] = {"type": "BPEDecoder", "suffix": "</w>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    with pytest.raises(UserError, match="the decoder is .*BPEDecoder.*give --decode free"):
        load_tokenizer(tmp_path).pieces()
