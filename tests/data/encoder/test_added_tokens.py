"""Added tokens of encoders' tokenizers: words get the ids of transformers, control tokens none from a document."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from tokenizers import AddedToken

from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from tests.added_tokens import LOOK_ALIKES, WORDS, assert_equal_ids, mixed_texts
from tests.encoder_tokenizers import copy_of

transformers = pytest.importorskip("transformers")


def class_of(folder):
    return transformers.RobertaTokenizerFast if (folder / "merges.txt").is_file() else transformers.BertTokenizerFast


@pytest.fixture(params=["files", "tokenizer.json"])
def either_layout(request, encoder_folder, tmp_path):
    """RoBERTa or BERT, as its own files or as transformers saves it."""
    if request.param == "files":
        return encoder_folder
    class_of(encoder_folder).from_pretrained(encoder_folder).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.mark.parametrize(
    "flags",
    [{}, {"single_word": True}, {"lstrip": True, "rstrip": True}, {"normalized": False}],
    ids=["plain", "single_word", "strip", "not normalized"],
)
@pytest.mark.parametrize("place", ["tokenizer.json", "added_tokens_decoder"])
def test_words_equal_transformers(place, flags, encoder_folder, tmp_path):
    source, words = class_of(encoder_folder), [*WORDS, "##ing", "X-ray vision"]
    reference = source.from_pretrained(encoder_folder)
    reference.add_tokens([AddedToken(word, **flags) for word in words])
    if place == "tokenizer.json":
        folder = tmp_path / "saved"
        reference.save_pretrained(folder)
    else:
        known = source.from_pretrained(encoder_folder).get_vocab()
        new = [word for word in words if word not in known]
        decoder = {str(len(known) + i): {"content": word} | flags for i, word in enumerate(new)}
        config = json.dumps({"added_tokens_decoder": decoder})
        folder = copy_of(encoder_folder, tmp_path / "copy", tokenizer_config_json=config)
        reference = source.from_pretrained(folder)
    split = source.from_pretrained(folder, add_prefix_space=True, split_special_tokens=True)
    reference = source.from_pretrained(folder, split_special_tokens=True)
    ours, texts = load_encoder_tokenizer(folder), mixed_texts()
    assert reference.convert_tokens_to_ids("Covfefe") in ours.encode("a Covfefe b")
    assert_equal_ids(ours.encode, lambda text: reference(text, add_special_tokens=False).input_ids, texts)
    for listed in [text.split() for text in texts[::3] if text.strip()]:
        encoding = split(listed, is_split_into_words=True, add_special_tokens=False)
        assert ours.encode_words(listed)[0] == encoding.input_ids, listed


@pytest.mark.parametrize("copied", [False, True])
def test_added_tokens_that_look_like_control_are_text(copied, either_layout, tmp_path):
    plain = load_encoder_tokenizer(either_layout)
    names = [name for name in LOOK_ALIKES if name != "[CLS]"]
    ids = {name: plain.vocab_size + i for i, name in enumerate([*names, "Covfefe"])}
    ours = load_encoder_tokenizer(copy_of(either_layout, tmp_path / "added", added_tokens_json=json.dumps(ids)))
    if copied:  # as for a data loader's process
        ours = copy.deepcopy(pickle.loads(pickle.dumps(ours)))
    word = ids.pop("Covfefe")
    control = {*ids.values(), ours.cls_id, ours.sep_id, ours.pad_id, ours.mask_id}
    for text in [*names, "".join(names), "wake".join(names), *mixed_texts(40)]:
        expected = plain.encode(text)
        assert "Covfefe" in text or "covfefe" in text or ours.encode(text) == expected
        assert not control & {*ours.encode(text), *ours.encode_words(text.split())[0]}
    assert word in ours.encode("a Covfefe") and ours.vocab_size == word + 1


def test_an_added_cls_that_is_not_flagged_special_is_text(bert_folder, tmp_path):
    """A file may list the tokens of a role with ``special: false``: transformers then finds them in a document."""
    transformers.BertTokenizerFast.from_pretrained(bert_folder).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["added_tokens"] = [token | {"special": False} for token in spec["added_tokens"]]
    path.write_text(json.dumps(spec))
    ours, plain = load_encoder_tokenizer(tmp_path / "saved"), load_encoder_tokenizer(bert_folder)
    text = "[CLS] wake [SEP] me [MASK][PAD][UNK]"
    assert ours.encode(text) == plain.encode(text) and ours.cls_id == plain.cls_id
    assert not {ours.cls_id, ours.sep_id, ours.pad_id, ours.mask_id} & {*ours.encode(text)}


def test_control_tokens_that_are_words_of_the_vocabulary_are_text(bert_folder, tmp_path):
    """WordPiece looks up whole words: a padding token without brackets would come out of a document."""
    vocabulary = (bert_folder / "vocab.txt").read_text().replace("[PAD]", "padding").replace("[UNK]", "unknown")
    config = json.dumps({"pad_token": "padding", "unk_token": "unknown"})
    ours = load_encoder_tokenizer(
        copy_of(bert_folder, tmp_path / "a", vocab_txt=vocabulary, tokenizer_config_json=config)
    )
    plain = load_encoder_tokenizer(bert_folder)
    assert (ours.pad_id, ours.unk_id) == (plain.pad_id, plain.unk_id)
    assert "\npadding\n" not in (bert_folder / "vocab.txt").read_text()
    for text in ("padding", "unknown", "a PADDING, unknown paddings"):
        assert ours.encode(text) == plain.encode(text) and ours.pad_id not in ours.encode(text)
    assert ours.encode("x" * 101) == [ours.unk_id]


def test_a_panic_of_the_library_is_a_message(roberta_folders, tmp_path):
    spec = json.loads((roberta_folders["json"] / "tokenizer.json").read_text())
    spec["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    folder = copy_of(roberta_folders["json"], tmp_path / "a", tokenizer_json=json.dumps(spec))
    with pytest.raises(
        UserError, match=r"tokenizer\.json is refused by the tokenizers library \(Precompiled.*download"
    ):
        load_encoder_tokenizer(folder)
