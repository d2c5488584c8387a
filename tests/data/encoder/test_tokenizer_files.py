"""Files of encoders' tokenizers: saved unchanged, damaged ones named, other kinds refused."""

from __future__ import annotations

import json
import shutil

import pytest
from tokenizers import ByteLevelBPETokenizer

from data.encoder.tokenizer import load_tokenizer as load_encoder_tokenizer
from data.errors import UserError
from tests.encoder_tokenizers import copy_of


def test_save_writes_the_same_files(roberta_folders, bert_folder, tmp_path):
    for name, source in {**roberta_folders, "bert": bert_folder}.items():
        ours = load_encoder_tokenizer(source)
        ours.save(tmp_path / name)
        assert {p.name: p.read_bytes() for p in source.iterdir()} == {
            p.name: p.read_bytes() for p in (tmp_path / name).iterdir()
        }
        again = load_encoder_tokenizer(tmp_path / name)
        assert again.fingerprint == ours.fingerprint and again.encode("the é") == ours.encode("the é")


def test_the_fingerprint_is_of_the_content(bert_folder, tmp_path):
    before = load_encoder_tokenizer(bert_folder).fingerprint
    changed = copy_of(bert_folder, tmp_path / "a", tokenizer_config_json='{"do_lower_case": false}')
    lower = load_encoder_tokenizer(changed).fingerprint
    (changed / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert len({before, lower, load_encoder_tokenizer(changed).fingerprint}) == 3
    (changed / "tokenizer_config.json").unlink()
    (changed / "pytorch_model.bin").write_text("not the tokenizer's")
    assert load_encoder_tokenizer(changed).fingerprint == before


def test_tokenizer_json_is_preferred_and_windows_line_ends_are_read(roberta_folders, bert_folder, tmp_path):
    folder = copy_of(roberta_folders["json"], tmp_path / "both", vocab_txt="[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    assert load_encoder_tokenizer(folder).vocab_size == 3000
    for source in (roberta_folders["files"], bert_folder):
        folder = copy_of(source, tmp_path / f"{source.name}_windows")
        for path in folder.glob("*.txt"):
            path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        ours = load_encoder_tokenizer(folder)
        assert ours.encode("wake me up") == load_encoder_tokenizer(source).encode("wake me up")


def test_a_folder_without_tokenizer_says_what_was_looked_for(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"vocab\.json with merges\.txt.*vocab\.txt.*found: vocab\.json.*hf download"):
        load_encoder_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        load_encoder_tokenizer(tmp_path / "nothing")


def test_a_decoders_tokenizer_is_refused(tmp_path):
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["wake me"], vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"lacks the special tokens cls \(<s>\).*such as Llama"):
        load_encoder_tokenizer(tmp_path)


UNIGRAM = json.dumps({"version": "1.0", "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}})
CHARACTERS = json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}})


@pytest.mark.parametrize(
    ("kind", "name", "content", "message"),
    [
        ("json", "tokenizer.json", b'{"model": {"vocab"', "not JSON"),
        ("json", "tokenizer.json", b"[]", "must be an object"),
        ("json", "tokenizer.json", b"\xff\xfe", "byte 1 is not UTF-8"),
        ("json", "tokenizer.json", b'{"model": {"vocab": {"a": -1}}}', "model.vocab.* at least 0"),
        ("json", "tokenizer.json", b'{"model": {"type": 5, "vocab": {}}}', "model.type must be a text; it is 5"),
        ("json", "tokenizer.json", b'{"model": {"vocab": {}, "merges": ["ab"]}}', r"model.merges\[0\]"),
        ("json", "tokenizer.json", b'{"model": {"vocab": {}, "merges": [["a", 1]]}}', "must be a text; it is 1"),
        ("json", "tokenizer.json", b"[" * 5000, "nested more than 64 levels"),
        ("json", "tokenizer.json", b"9" * 5000, "more than 64 digits"),
        ("json", "tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("json", "tokenizer.json", UNIGRAM.encode(), "type 'Unigram'; only byte-level BPE"),
        ("json", "tokenizer.json", CHARACTERS.encode(), "type 'BPE' that is not byte-level"),
        ("json", "tokenizer_config.json", b"{", "not JSON"),
        ("json", "tokenizer_config.json", b"[]", "must be an object"),
        ("json", "special_tokens_map.json", b"3", "must be an object; it is 3"),
        ("files", "vocab.json", b'{"a": ', "not JSON"),
        ("files", "vocab.json", b"[]", "must be an object"),
        ("files", "vocab.json", b'{"a": "b"}', "must be a whole number, not a text"),
        ("files", "vocab.json", b'{"a": 1, "b": 1}', "not a vocabulary"),
        ("files", "merges.txt", b"#version: 0.2\n\xc4\xa0 t\nbroken", "broken in line 3"),
        ("files", "merges.txt", b"q \xc4\xa0zzz\n", "broken in line 1"),
        ("files", "merges.txt", b"\xff\xfe", "not UTF-8"),
        ("files", "merges.txt", b"", r"incomplete: no merge makes 2,7\d\d of the 3,000 tokens"),
        ("files", "tokenizer_config.json", b'{"add_prefix_space": "yes"}', "must be true or false, found \"yes\""),
        ("bert", "vocab.txt", b"", r"lacks the special tokens cls \(\[CLS\]\), sep"),
        ("bert", "vocab.txt", b"\xff\xfe[CLS]", "not UTF-8"),
        ("bert", "tokenizer_config.json", b'{"do_lower_case": null}', "do_lower_case must be true or false"),
        ("bert", "added_tokens.json", b"[]", "must be an object"),
        ("bert", "tokenizer_config.json", b'{"word_tokenizer_type": "mecab"}', 'is "mecab".* with "basic"'),
        ("bert", "tokenizer_config.json", b'{"subword_tokenizer_type": "character"}', 'with "wordpiece"'),
        ("bert", "tokenizer_config.json", b'{"added_tokens_decoder": {"7": "a"}}', "decoder.* must be an object"),
        ("bert", "tokenizer_config.json", b'{"added_tokens_decoder": [7]}', "decoder must be an object or null"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(kind, name, content, message, roberta_folders, bert_folder, tmp_path):
    folder = shutil.copytree(bert_folder if kind == "bert" else roberta_folders[kind], tmp_path / "damaged")
    (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        load_encoder_tokenizer(folder)
    assert str(folder / name) in str(raised.value)


def test_merges_cut_short_are_noticed(roberta_folders, tmp_path):
    """Most cuts leave a valid last line, so the tokens that no merge makes are counted."""
    content = (roberta_folders["files"] / "merges.txt").read_bytes()
    for share in (0.2, 0.5, 0.9):
        cut = content[: int(len(content) * share)].rpartition(b"\n")[0]
        with pytest.raises(UserError, match="incomplete: no merge makes"):
            load_encoder_tokenizer(copy_of(roberta_folders["files"], tmp_path / str(share), merges_txt=cut))


def test_a_vocabulary_without_some_bytes_is_refused(roberta_folders, tmp_path):
    vocabulary = json.loads((roberta_folders["files"] / "vocab.json").read_text())
    for rare in ("Ń", "ł"):  # how byte-level BPE writes the bytes 0xAD and 0xA0, which begin no character
        del vocabulary[rare]
    folder = copy_of(roberta_folders["files"], tmp_path / "a", vocab_json=json.dumps(vocabulary))
    with pytest.raises(UserError, match="incomplete: 2 of the 256 bytes have no token"):
        load_encoder_tokenizer(folder)


def test_a_vocabulary_of_characters_is_not_called_damaged(roberta_folders, tmp_path):
    """Such as HerBERT's: its files have the same names, and a mark ends a word."""
    names = ["<s>", "</s>", "<pad>", "<unk>", "a", "b</w>", "ab</w>"]
    vocabulary = json.dumps({name: i for i, name in enumerate(names)})
    files = {"vocab_json": vocabulary, "merges_txt": "#version: 0.2\na b</w>\n"}
    folder = copy_of(roberta_folders["files"], tmp_path / "a", **files)
    with pytest.raises(UserError, match="vocab.json holds a tokenizer of type 'BPE' that is not byte-level"):
        load_encoder_tokenizer(folder)
