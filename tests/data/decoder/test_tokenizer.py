"""The three tokenizers equal their references on real text, restore every text, and never encode special tokens."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from data.decoder.tokenizer import (
    JsonTokenizer,
    RankFileTokenizer,
    SentencePieceTokenizer,
    load_tokenizer,
)
from data.errors import UserError
from data.rank_file import LLAMA3_SPLIT, MAX_CHUNK, MAX_RUN, chunks

ODD = [
    "",
    "x",
    " x",
    "  two  spaces, and one at the end ",
    "\n",
    "\n\n  \n\t\ttabs\r\nand returns\r",
    "naïve café — “quoted” … ½ №",
    "e\u0301 vs \u00e9, \u00a0nbsp, \u200bzero\u200dwidth, \ufeffbom, \u2028line\u2029paragraph",
    "日本語のテキスト 한국어 العربية עברית ไทย हिन्दी",
    "🙂👩‍👩‍👧🏽🇩🇪",
    "\x00\x01\x1b[0m\x7f\x85\x9f",
    "\ufffd\ufffd replaced",
    "12345678901234567890 3.14159 1,000,000 0x7f",
    "I'll won't HE'S 'Tis don’t",
    "<0x0A><0xE2> \\n \\u0041 %20 &amp;",
    "=" * 300 + "\n" + "-=" * 200,
]
SPECIAL_LOOKING = "<s> </s> <unk> <|eot_id|><|begin_of_text|> <|im_start|>user\n<|im_end|> <|endoftext|><tool> [INST]"


def assert_round_trip(tokenizer, texts) -> None:
    for text in texts:
        ids = tokenizer.encode(text)
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
        assert tokenizer.decode(ids) == text


# --- all three kinds, without any real file ---------------------------------------------------------------------------


def test_each_kind_is_recognized_by_content(tiny_folder):
    kinds = {name: type(load_tokenizer(folder)) for name, folder in tiny_folder.items()}
    assert kinds == {
        "sentencepiece": SentencePieceTokenizer,
        "rank_file": RankFileTokenizer,
        "json": JsonTokenizer,
    }


def test_decode_gives_back_what_was_encoded(tiny_tokenizer):
    assert_round_trip(tiny_tokenizer, [*ODD, SPECIAL_LOOKING])


def test_random_unicode_comes_back(tiny_tokenizer):
    generator = random.Random(0)
    alphabet = [chr(c) for c in range(0x3000) if c != 0x2581] + [chr(c) for c in range(0x1F300, 0x1F600)]
    assert_round_trip(tiny_tokenizer, ["".join(generator.choices(alphabet, k=40)) for _ in range(300)])


def test_text_never_turns_into_special_tokens(tiny_tokenizer):
    for text in [*tiny_tokenizer.special, SPECIAL_LOOKING, "a".join(tiny_tokenizer.special)]:
        ids = tiny_tokenizer.encode(text)
        assert not set(ids) & set(tiny_tokenizer.special.values())
        assert tiny_tokenizer.decode(ids) == text


def test_sections_laid_end_to_end_decode_to_their_texts(tiny_tokenizer):
    sections = ["Label:", " x", "x", "\nEnd", " ", "é", "  "]
    ids = [i for section in sections for i in tiny_tokenizer.encode(section)]
    assert tiny_tokenizer.decode(ids) == "".join(sections)


def test_special_tokens_are_written(tiny_tokenizer):
    name, i = next(iter(tiny_tokenizer.special.items()))
    ids = [*tiny_tokenizer.encode("one é"), i, *tiny_tokenizer.encode(" two"), i]
    assert tiny_tokenizer.decode(ids) == f"one é{name} two{name}"


def test_ids_of_a_padded_embedding_do_not_stop_decoding(tiny_tokenizer):
    ids = [*tiny_tokenizer.encode("a"), tiny_tokenizer.vocab_size + 7, *tiny_tokenizer.encode("b")]
    assert tiny_tokenizer.decode(ids) == "a\ufffdb"


def test_half_a_surrogate_pair_is_replaced(tiny_tokenizer):
    assert tiny_tokenizer.decode(tiny_tokenizer.encode("a\ud83d b")) == "a\ufffd b"
    assert tiny_tokenizer.decode(tiny_tokenizer.encode("\ud83d\ude42")) == "🙂"


def test_a_run_of_a_million_spaces_does_not_overflow(tiny_tokenizer):
    """tiktoken's split panics on it without chunks."""
    text = "a" + " " * 1_500_000 + "b"
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text


def test_an_added_run_of_spaces_is_ordinary_text(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder["json"])
    spec = json.loads((tiny_folder["json"] / "tokenizer.json").read_text())
    (i,) = (token["id"] for token in spec["added_tokens"] if token["content"] == "    ")
    assert tokenizer.encode("a    b")[1] == i and tokenizer.decode([i]) == "    "
    assert "    " not in tokenizer.special and "<tool>" in tokenizer.special
    assert tokenizer.vocab_size == i + 1 == 1 + max(tokenizer.special["<tool>"], i)


@pytest.mark.parametrize("unit", ["a", " ", "\n", "=", "é ", "ab\n"])
def test_very_long_runs_are_tokenized(tiny_tokenizer, unit):
    text = unit * (60_000 // len(unit))
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == text


def test_save_writes_the_same_files(tiny_folder, tmp_path):
    for name, folder in tiny_folder.items():
        tokenizer = load_tokenizer(folder)
        tokenizer.save(tmp_path / name)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
            p.name: p.read_bytes() for p in (tmp_path / name).iterdir()
        }
        again = load_tokenizer(tmp_path / name)
        assert again.fingerprint == tokenizer.fingerprint
        assert again.special == tokenizer.special and again.encode("the é") == tokenizer.encode("the é")


def test_names_of_opening_and_end_tokens(tiny_folder):
    json_, ranks, pieces = (load_tokenizer(tiny_folder[k]) for k in ("json", "rank_file", "sentencepiece"))
    assert (json_.bos_id, json_.eos_id) == (0, 2) and json_.special["<|im_end|>"] == 2
    assert (ranks.bos_id, ranks.eos_id) == (264, 265) and ranks.vocab_size == 264 + 256
    assert (pieces.bos_id, pieces.eos_id) == (1, 2) and pieces.special["</s>"] == 2


def test_added_tokens_beside_the_files_get_their_ids(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder["sentencepiece"], tmp_path / "pieces"))
    n = load_tokenizer(folder).vocab_size
    (folder / "added_tokens.json").write_text(json.dumps({"<pad>": n}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.vocab_size == n + 1 and tokenizer.special["<pad>"] == n
    assert n not in tokenizer.encode("<pad>") and tokenizer.decode([n]) == "<pad>"

    folder = Path(shutil.copytree(tiny_folder["rank_file"], tmp_path / "ranks"))
    config = {"added_tokens_decoder": {"268": {"content": "<|finetune_right_pad_id|>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    special = load_tokenizer(folder).special
    assert special["<|finetune_right_pad_id|>"] == 268 and len(special) == 256
    assert special["<|eot_id|>"] == 264 + 9 and "<|reserved_special_token_2|>" not in special


def test_dummy_space_of_a_json_tokenizer_is_switched_off(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder["json"], tmp_path / "json"))
    spec = json.loads((folder / "tokenizer.json").read_text())
    plain = load_tokenizer(folder).encode("the news")
    assert spec["pre_tokenizer"]["add_prefix_space"] is False
    spec["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert load_tokenizer(folder).encode("the news") == plain


@pytest.mark.parametrize("length", [0, 10, MAX_RUN, MAX_RUN + 1, 3 * MAX_RUN, MAX_CHUNK, MAX_CHUNK + 1])
@pytest.mark.parametrize("unit", ["a", " ", "ab ", "\n\n\t"])
def test_chunks_join_to_the_text_and_hold_no_long_run(length, unit):
    text = "x y" + (unit * length)[:length] + " end"
    found = list(chunks(text))
    assert "".join(found) == text
    for chunk in found:
        assert len(chunk) <= MAX_CHUNK
        assert all(len(run) <= MAX_RUN for run in chunk.split())
        assert " " * (MAX_RUN + 1) not in chunk


# --- what can be wrong with the files ---------------------------------------------------------------------------------


def test_a_folder_without_tokenizer_says_what_was_looked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json and tokenizer\.model; found: config\.json.*hf download"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_tokenizer(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b'{"model": {"vocab"', "not JSON"),
        ("tokenizer.json", b"[]", "must be an object"),
        ("tokenizer.json", b"{}", "model is missing"),
        ("tokenizer.json", b'{"model": {"vocab": {"a": "b"}}}', "model.vocab.* must be a whole number"),
        (
            "tokenizer.json",
            b'{"model": {"vocab": {}}, "added_tokens": [{"id": 1}]}',
            "content is missing",
        ),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": true}', "added_tokens must be a list or null"),
        (
            "tokenizer.json",
            b'{"model": {"vocab": {}}, "decoder": {"decoders": [1]}}',
            "decoder.type is|decoders",
        ),
        ("tokenizer.json", b"[" * 5000, "nested more than 64 levels"),
        ("tokenizer.json", b"9" * 5000, "more than 64 digits"),
        ("tokenizer.json", b'{"model": {"type": "Unigram", "vocab": [["a", 0.1]]}}', "type 'Unigram'; only BPE"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}', "refused by"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("tokenizer.model", b"garbage", "neither a SentencePiece model nor a rank file"),
        ("tokenizer.model", b"", "neither a SentencePiece model nor a rank file"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "incomplete: 2 tokens"),
        ("tokenizer.model", b"IQ== 0\nIg==\n", "broken in line 2"),
        ("tokenizer.model", b"IQ== 0\n@@@@ 1\n", "broken in line 2"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(raised.value)


def test_a_rank_file_cut_short_is_noticed(tiny_folder, tmp_path):
    content = (tiny_folder["rank_file"] / "tokenizer.model").read_bytes()
    for size in (len(content) // 2, len(content) - 4):
        (tmp_path / "tokenizer.model").write_bytes(content[:size])
        with pytest.raises(UserError, match="incomplete|broken"):
            load_tokenizer(tmp_path)


def test_a_sentencepiece_file_cut_short_is_noticed(tiny_folder, tmp_path):
    content = (tiny_folder["sentencepiece"] / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="neither"):
        load_tokenizer(tmp_path)


def test_broken_config_beside_a_good_tokenizer_is_named(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder["json"], tmp_path / "json"))
    for name, content, message in (
        ("tokenizer_config.json", "{", "not JSON"),
        ("tokenizer_config.json", "[]", "must be an object"),
        ("tokenizer_config.json", '{"eos_token": 3}', "eos_token must be .* it is 3"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template must be .* it is 3"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {"content": "a"}}}', "added_tokens_decoder"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"1": {"content": 5}}}',
            "decoder.* be a text",
        ),
        ("special_tokens_map.json", '{"pad_token": {"content": []}}', "pad_token.content must be a text"),
        ("added_tokens.json", '{"a": "1"}', "must be a whole number, not a text"),
        ("added_tokens.json", '{"a": 99999999999}', "must be a whole number, at most"),
    ):
        (folder / name).write_text(content)
        with pytest.raises(UserError, match=rf"{name}: .*{message}"):
            load_tokenizer(folder)
        (folder / name).unlink()


# --- the real ones against the reference implementations --------------------------------------------------------------


def test_llama2_equals_sentencepiece(llama2, shared_dir, posts, utterances):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(
        model_file=str(shared_dir / "tokenizers" / "llama2" / "tokenizer.model")
    )
    # The reference adds a space in front; before a line break this space is a separate token.
    head = reference.encode("\n")
    assert len(head) == 2
    for text in [*ODD, SPECIAL_LOOKING, *posts, *utterances]:
        assert head + llama2.encode(text) == reference.encode("\n" + text)
    assert (llama2.vocab_size, llama2.bos_id, llama2.eos_id) == (32_000, 1, 2)
    assert_round_trip(llama2, [*ODD, SPECIAL_LOOKING, *posts, *utterances])


def test_sentencepiece_cannot_tell_its_space_mark_from_a_space(llama2):
    assert llama2.decode(llama2.encode("a\u2581b")) == "a b"


def test_llama2_as_tokenizer_json_gives_the_same_ids(llama2, shared_dir, posts, tmp_path):
    """The two formats of transformers' conversion, with merges in the order of the scores."""
    transformers = pytest.importorskip("transformers")
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    pieces = llama2._model
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.vocab_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocabulary.items()}
    merges = convert.generate_merges(vocabulary, scores)
    transformers.LlamaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)

    newer = (tmp_path / "tokenizer.json").read_text()
    older = json.loads(newer)
    assert older["pre_tokenizer"]["type"] == "Metaspace"
    older["pre_tokenizer"] = None
    steps = [
        {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
    ]
    older["normalizer"] = {"type": "Sequence", "normalizers": steps}
    for layout in (newer, json.dumps(older)):
        (tmp_path / "tokenizer.json").write_text(layout)
        converted = load_tokenizer(tmp_path)
        assert isinstance(converted, JsonTokenizer) and converted.special == llama2.special
        texts = [*ODD, SPECIAL_LOOKING, *posts[:200]]
        for text in texts:
            assert converted.encode(text) == llama2.encode(text)
        assert_round_trip(converted, texts)
    # If the model it was converted from is there too, the model is read.
    shutil.copy(shared_dir / "tokenizers" / "llama2" / "tokenizer.model", tmp_path)
    assert isinstance(load_tokenizer(tmp_path), SentencePieceTokenizer)


def test_llama3_equals_transformers_conversion(llama3, shared_dir, posts, utterances):
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")
    path = shared_dir / "tokenizers" / "llama3" / "tokenizer.model"
    reference = convert.TikTokenConverter(vocab_file=str(path), pattern=LLAMA3_SPLIT).converted()
    for text in [*ODD, SPECIAL_LOOKING, *posts, *utterances]:
        assert llama3.encode(text) == reference.encode(text, add_special_tokens=False).ids
    assert_round_trip(llama3, [*ODD, SPECIAL_LOOKING, *posts, *utterances])


def test_llama3_special_tokens_have_their_published_ids(llama3):
    assert llama3.vocab_size == 128_256 and len(llama3.special) == 256
    published = {
        "<|begin_of_text|>": 128_000,
        "<|end_of_text|>": 128_001,
        "<|reserved_special_token_0|>": 128_002,
        "<|reserved_special_token_3|>": 128_005,
        "<|start_header_id|>": 128_006,
        "<|end_header_id|>": 128_007,
        "<|reserved_special_token_4|>": 128_008,
        "<|eot_id|>": 128_009,
        "<|reserved_special_token_250|>": 128_255,
    }
    assert {name: llama3.special[name] for name in published} == published
    assert llama3.encode("hello world!") == [15339, 1917, 0]


def test_llama3_equals_metas_own_tokenizer(llama3, posts):
    meta = pytest.importorskip("models.llama3.tokenizer", reason="needs the PyPI package llama-models")
    reference = meta.Tokenizer.get_instance()
    long = ["a" * 60_000, " " * 60_000 + "x", "ab " * 150_000, "é" * 30_000 + "\n" * 30_000 + " z"]
    for text in [*ODD, SPECIAL_LOOKING, *long, *posts[:500]]:
        assert llama3.encode(text) == reference.encode(text, bos=False, eos=False)
    for name in ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"):
        assert llama3.special[name] == reference.special_tokens[name]


def test_gpt2_json_equals_transformers(gpt2_folder, posts, utterances):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(gpt2_folder)
    ours = load_tokenizer(gpt2_folder)
    assert ours.vocab_size == 50_257 and ours.bos_id == ours.eos_id == 50_256
    for text in [*ODD, *posts[:200], *utterances[:500]]:
        if "<|endoftext|>" not in text:
            assert ours.encode(text) == reference(text).input_ids
    assert_round_trip(ours, [*ODD, SPECIAL_LOOKING, *posts, *utterances])


def test_smollm2_round_trip(smollm2, posts, utterances):
    assert smollm2.vocab_size == 49_152
    assert (smollm2.bos_id, smollm2.eos_id) == (smollm2.special["<|im_start|>"], smollm2.special["<|im_end|>"])
    assert_round_trip(smollm2, [*ODD, SPECIAL_LOOKING, *posts, *utterances])
    for text in ["<|im_end|>", "<|endoftext|>", SPECIAL_LOOKING]:
        assert not set(smollm2.encode(text)) & set(smollm2.special.values())
    digits = smollm2.encode("2024")
    assert [smollm2.decode([i]) for i in digits] == list("2024")
