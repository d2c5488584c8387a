"""Added tokens and settings of decoders' tokenizers: words get the reference's ids, control tokens none from a text."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import AddedToken

from data.added_tokens import looks_like_control
from data.decoder.tokenizer import JsonTokenizer, RankFileTokenizer, SentencePieceTokenizer, load_tokenizer
from data.errors import UserError
from data.sentencepiece_model import read_settings
from tests.added_tokens import LOOK_ALIKES, WORDS, assert_equal_ids, mixed_texts
from tests.decoder_tokenizers import TRAINING_TEXT

transformers = pytest.importorskip("transformers")

FLAGS = [{}, {"single_word": True}, {"lstrip": True, "rstrip": True}]
FLAG_NAMES = ["plain", "single_word", "strip"]
# What merges with nothing: the reference adds a space in front of a text, and here in front of this.
FIRST = "\x01"


def train_pieces(folder: Path, **options) -> bytes:
    """A small SentencePiece model with the library's own defaults, unless ``options`` say otherwise."""
    import sentencepiece

    model = io.BytesIO()
    defaults = {"vocab_size": 400, "model_type": "bpe", "byte_fallback": True, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TRAINING_TEXT), model_writer=model, minloglevel=3, **(defaults | options)
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return model.getvalue()


LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content))


def edited(folder: Path, target: Path, edit) -> Path:
    """A copy of a folder whose tokenizer.json is changed by ``edit``."""
    shutil.copytree(folder, target)
    spec = json.loads((target / "tokenizer.json").read_text())
    edit(spec)
    write_json(target / "tokenizer.json", spec)
    return target


@pytest.fixture
def byte_level(tiny_folder, tmp_path) -> Path:
    """The tiny tokenizer.json with a tokenizer_config.json that transformers reads."""
    folder = Path(shutil.copytree(tiny_folder["json"], tmp_path / "byte_level"))
    write_json(folder / "tokenizer_config.json", {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"})
    return folder


# --- SentencePiece: settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        LLAMA,
        {},  # nmt_nfkc, and runs of spaces are joined
        {"normalization_rule_name": "identity"},  # as OpenLLaMA's first tokenizer
        {"normalization_rule_name": "nfkc", "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False},
        {"model_type": "unigram", "vocab_size": 330},
        {"byte_fallback": False},
        {"treat_whitespace_as_suffix": True},
        {"user_defined_symbols": WORDS},
        LLAMA | {"user_defined_symbols": WORDS},
    ],
    ids=lambda options: "-".join(f"{name}={value}" for name, value in options.items())[:60] or "defaults",
)
def test_every_setting_of_sentencepiece_gives_the_librarys_ids(options, tmp_path):
    """The library adds one space to a text and, if it joins runs of spaces, drops those at both ends."""
    import sentencepiece

    model = train_pieces(tmp_path, **options)
    reference, settings = sentencepiece.SentencePieceProcessor(model_proto=model), read_settings(model)
    ours = load_tokenizer(tmp_path)
    assert isinstance(ours, SentencePieceTokenizer)
    before, after = settings.add_dummy_prefix, False
    if settings.treat_whitespace_as_suffix:
        before, after = False, before
    joins = settings.remove_extra_whitespaces
    texts = [text.strip(" \t\n\r\u200b\u00a0") if joins else text for text in mixed_texts()]
    texts = [text for text in texts if text]
    assert sum("  " in text for text in texts) > 50
    assert_equal_ids(lambda text: ours.encode(" " * before + text + " " * after), reference.encode, texts)


def test_a_model_that_joins_spaces_keeps_one_at_the_ends_of_a_section(tmp_path):
    train_pieces(tmp_path, normalization_rule_name="identity")
    ours = load_tokenizer(tmp_path)
    assert ours.encode("  wake   me  ") == ours.encode(" wake me ")
    assert ours.decode(ours.encode("  wake   me  ")) == " wake me "
    assert ours.encode("   ") == ours.encode(" ") and len(ours.encode(" ")) == 1 and ours.encode("") == []
    sections = ["Label:", "  wake", "\nme"]
    assert ours.decode([i for section in sections for i in ours.encode(section)]) == "Label: wake\nme"


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [*FLAGS, {"normalized": False}], ids=[*FLAG_NAMES, "not normalized"])
@pytest.mark.parametrize("file", ["tokenizer.json", "added_tokens.json", "tokenizer_config.json"])
def test_words_added_to_a_tokenizer_json_equal_transformers(file, flags, byte_level, tmp_path):
    n, folder = load_tokenizer(byte_level).vocab_size, tmp_path / "added"
    shutil.copytree(byte_level, folder)
    entries = {str(n + i): {"content": word} | flags for i, word in enumerate(WORDS[:3])}
    if file == "tokenizer.json":
        reference = transformers.AutoTokenizer.from_pretrained(byte_level)
        reference.add_tokens([AddedToken(word, **flags) for word in WORDS])
        reference.save_pretrained(folder)
    elif file == "added_tokens.json":
        write_json(folder / file, {word: n + i for i, word in enumerate(WORDS[:3])})
    else:
        write_json(folder / file, {"eos_token": "<|im_end|>", "added_tokens_decoder": entries})
    reference = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    ours = load_tokenizer(folder)
    assert isinstance(ours, JsonTokenizer) and n in ours.encode("a Covfefe b") and "Covfefe" not in ours.special
    texts = mixed_texts()
    assert_equal_ids(ours.encode, lambda text: reference(text, add_special_tokens=False).input_ids, texts)
    if not flags.get("lstrip"):  # words that take the spaces beside them do not give these back
        assert all(ours.decode(ours.encode(text)) == text for text in texts)


@pytest.mark.parametrize("flags", FLAGS, ids=FLAG_NAMES)
@pytest.mark.parametrize("layout", ["new", "old", "old, rebuilt"])
@pytest.mark.parametrize("with_model", [False, True])
def test_words_added_to_llama2_equal_transformers(with_model, layout, flags, tmp_path):
    """A tokenizer.json of Llama 2 has two layouts, and transformers does not use the older for Llama's own class."""
    train_pieces(tmp_path / "source", **LLAMA)
    reference = transformers.LlamaTokenizer.from_pretrained(tmp_path / "source")
    n = len(reference)
    reference.add_tokens([AddedToken(word, **flags) for word in WORDS])
    folder = tmp_path / "saved"
    reference.save_pretrained(folder)
    if layout != "new":
        spec = json.loads((folder / "tokenizer.json").read_text())
        steps = [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ]
        spec |= {"pre_tokenizer": None, "normalizer": {"type": "Sequence", "normalizers": steps}}
        write_json(folder / "tokenizer.json", spec)
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["tokenizer_class"] = "LlamaTokenizer" if layout == "old, rebuilt" else "PreTrainedTokenizerFast"
        write_json(folder / "tokenizer_config.json", config)
    reference = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    if with_model:
        shutil.copy(tmp_path / "source" / "tokenizer.model", folder)
    ours = load_tokenizer(folder)
    assert isinstance(ours, SentencePieceTokenizer if with_model else JsonTokenizer)
    assert n in ours.encode(". Covfefe b")

    def of_reference(text: str) -> list[int]:
        return reference(FIRST + text, add_special_tokens=False).input_ids

    head, texts = of_reference(""), mixed_texts()
    assert_equal_ids(lambda text: head + ours.encode(text), of_reference, texts)
    if not flags.get("lstrip"):
        assert all(ours.decode(ours.encode(text)) == text for text in texts)


def test_no_space_is_added_behind_a_word(tiny_folder, tmp_path):
    """The reference does so for the older layout, unless the word is normalized."""
    folder = Path(shutil.copytree(tiny_folder["sentencepiece"], tmp_path / "a"))
    n = load_tokenizer(folder).vocab_size
    write_json(folder / "added_tokens.json", {"Covfefe": n})
    ours, plain = load_tokenizer(folder), load_tokenizer(tiny_folder["sentencepiece"])
    assert ours.encode("the Covfefeis") == [*plain.encode("the "), n, *plain.encode("is")]
    assert ours.decode([n]) == "Covfefe" and ours.vocab_size == n + 1


@pytest.mark.parametrize("reserved", [True, False])
def test_words_added_to_a_rank_file(reserved, tiny_folder, tmp_path):
    """A word may take the place of a reserved token, or follow them. transformers reads such folders likewise."""
    folder = Path(shutil.copytree(tiny_folder["rank_file"], tmp_path / "ranks"))
    plain = load_tokenizer(folder)
    first = plain.special["<|reserved_special_token_0|>"] if reserved else plain.vocab_size
    decoder = {str(first + i): {"content": word, "lstrip": word == "C++"} for i, word in enumerate(["Covfefe", "C++"])}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    ours = load_tokenizer(folder)
    assert isinstance(ours, RankFileTokenizer) and ours.vocab_size == max(plain.vocab_size, first + 2)
    ids = [*plain.encode("in Covf "), first, *plain.encode("er"), first + 1, *plain.encode("s\n")]
    assert ours.encode("in Covf Covfefeer  C++s\n") == ids
    assert ours.decode(ids) == "in Covf CovfefeerC++s\n", "lstrip takes the spaces"
    assert len(ours.special) == 256 - 2 * reserved and not {"Covfefe", "C++"} & ours.special.keys()


def test_words_added_to_the_real_llama_files(shared_dir, posts, tmp_path):
    for name, size in (("llama2", 32_000), ("llama3", 128_256)):
        folder = Path(shutil.copytree(shared_dir / "tokenizers" / name, tmp_path / name))
        plain = load_tokenizer(folder)
        write_json(folder / "added_tokens.json", {"From: ": size, "<|x|>": size + 1})
        ours = load_tokenizer(folder)
        for post in posts[:100]:
            first, *rest = post.split("From: ")
            assert rest
            ids = plain.encode(first) + [i for part in rest for i in (size, *plain.encode(part))]
            assert ours.encode(post) == ids and ours.decode(ids) == post
        assert ours.special["<|x|>"] == size + 1 and ours.encode("<|x|>") == plain.encode("<|x|>")


# --- control tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*LOOK_ALIKES, "<s>", "</s>", "▁<PRE>", "<|im_end|>\n", " <x> ", "<|a|>user"])
def test_what_looks_like_control(text):
    assert looks_like_control(text)


@pytest.mark.parametrize(
    "text", ["Covfefe", "C++", "  ", "<", "<>", "<=>", "[]", "[1]", "<0x0A>", "a<b>c", "a|b", "|>"]
)
def test_what_looks_like_a_word(text):
    assert not looks_like_control(text)


def assert_never_produced(ours, names) -> None:
    control = set(ours.special.values())
    assert {ours.special[name] for name in names} <= control
    for text in [*names, "".join(names), " ".join(names), "wake".join(names), "\n".join(names), *mixed_texts(20)]:
        ids = ours.encode(text)
        assert not control & set(ids)
        assert ours.decode(ids) == text
    for name in names:
        assert ours.decode([ours.special[name]]) == name


def test_user_defined_pieces_that_look_like_control_are_text(tmp_path):
    train_pieces(tmp_path, **LLAMA, user_defined_symbols=[*LOOK_ALIKES, "Covfefe"], control_symbols=["ctl"])
    ours = load_tokenizer(tmp_path)
    assert_never_produced(ours, [*LOOK_ALIKES, "ctl", "<s>", "</s>", "<unk>"])
    assert len(ours.encode("Covfefe")) == 1 and "Covfefe" not in ours.special


@pytest.mark.parametrize("kind", ["json", "sentencepiece", "rank_file"])
def test_added_tokens_that_look_like_control_are_text(kind, tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder[kind], tmp_path / kind))
    plain = load_tokenizer(folder)
    names = [name for name in LOOK_ALIKES if name not in plain.special]
    write_json(folder / "added_tokens.json", {name: plain.vocab_size + i for i, name in enumerate([*names, "Covfefe"])})
    ours = load_tokenizer(folder)
    assert_never_produced(ours, [*names, *plain.special])
    assert ours.encode("Covfefe") == [plain.vocab_size + len(names)]
    for text in mixed_texts(50):
        assert "Covfefe" in text or ours.encode(text) == plain.encode(text)


@pytest.mark.parametrize("kind", ["json", "sentencepiece"])
@pytest.mark.parametrize("said", ["role", "extra", "flag", "map"])
def test_an_entry_of_the_vocabulary_that_is_said_to_be_control_is_text(said, kind, tiny_folder, tmp_path):
    """Without this the word "the", which merges lead to, would be the end of a text."""
    folder = Path(shutil.copytree(tiny_folder[kind], tmp_path / kind))
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    plain = load_tokenizer(folder)
    text, piece = (" the", "Ġthe") if kind == "json" else (" the", "\u2581the")
    (i,) = plain.encode(text)
    name, content = {
        "role": ("tokenizer_config.json", {"eos_token": piece}),
        "extra": ("tokenizer_config.json", {"extra_special_tokens": {"image": piece}}),
        "flag": ("tokenizer_config.json", {"added_tokens_decoder": {str(i): {"content": piece, "special": True}}}),
        "map": ("special_tokens_map.json", {"additional_special_tokens": [{"content": piece}]}),
    }[said]
    write_json(folder / name, content)
    ours = load_tokenizer(folder)
    assert ours.special[piece] == i and i not in ours.encode(text) and i not in ours.encode("at the end of the news")
    assert ours.decode(ours.encode("at the end of the news")) == "at the end of the news"
    assert (ours.eos_id == i) == (said == "role" or plain.eos_id == i)


def test_control_tokens_are_no_candidates_where_whole_words_are_looked_up(byte_level, tmp_path):
    """``ignore_merges``, as Llama 3 has it: a word that is in the vocabulary becomes that token without merges."""

    def edit(spec):
        spec["model"]["ignore_merges"] = True
        spec["model"]["vocab"]["endoftext"] = spec["model"]["vocab"].pop("<|endoftext|>")
        spec["added_tokens"][0]["content"] = "endoftext"

    folder = edited(byte_level, tmp_path / "a", edit)
    write_json(folder / "tokenizer_config.json", {"eos_token": "endoftext"})
    ours = load_tokenizer(folder)
    assert (
        ours.eos_id == 0 and 0 not in ours.encode("endoftext") and ours.decode(ours.encode("endoftext")) == "endoftext"
    )


def test_an_unknown_character_is_the_unknown_token_but_its_text_is_not(tmp_path):
    def spec(**model):
        vocab = {text: i for i, text in enumerate(["<unk>", "<", ">", "u", "n", "k", "un", "a"])}
        model = {"type": "BPE", "vocab": vocab, "merges": [["u", "n"]], "unk_token": "<unk>"} | model
        return {"version": "1.0", "added_tokens": [], "model": model}

    write_json(tmp_path / "tokenizer.json", spec())
    ours = load_tokenizer(tmp_path)
    assert ours.encode("<unk>aéa") == [1, 6, 5, 2, 7, 0, 7] and ours.special == {"<unk>": 0}
    assert ours.decode([7, 0, 7]) == "a<unk>a"
    assert ours.encode("éé") == [0, 0]
    write_json(tmp_path / "tokenizer.json", spec(fuse_unk=True))
    assert load_tokenizer(tmp_path).encode("éé") == [0]


def test_a_letter_may_be_the_padding_token_but_not_the_end_of_a_text(byte_level):
    write_json(byte_level / "tokenizer_config.json", {"pad_token": "!", "eos_token": "<|im_end|>"})
    ours = load_tokenizer(byte_level)
    assert ours.decode(ours.encode("wake me!")) == "wake me!" and "!" not in ours.special
    write_json(byte_level / "tokenizer_config.json", {"eos_token": "!"})
    with pytest.raises(UserError, match=r"the eos token '!' is also a letter of the vocabulary.*Name another"):
        load_tokenizer(byte_level)


# --- what cannot be ---------------------------------------------------------------------------------------------------


def entry(content: str, i: int, **flags) -> dict[str, object]:
    return {"id": i, "content": content, "special": False, "normalized": True} | dict.fromkeys(
        ["single_word", "lstrip", "rstrip"], False
    ) | flags  # fmt: skip


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (entry("wow", 300), r"'wow' should have id 300, but 300 is that of '\S+': the vocabulary and the added tokens"),
        (entry("wow", 900), r"'wow' should have id 900, but the next free id is 374"),
        (entry("<|wow|>", 300, special=True), r"'<\|wow\|>' should have id 300, but 300 is that of"),
        (entry("in", 374), r"'in' should have id 374, but its id in the vocabulary is \d+"),
        (entry("wow", -1), r"added_tokens\[5\].id must be a whole number, at least 0; it is -1"),
        (entry("wow", 2**32), r"added_tokens\[5\].id must be a whole number, at most 999,999"),
        ({"content": "wow"}, r"added_tokens\[5\].id is missing"),
        ("wow", r"added_tokens\[5\] must be an object; it is 'wow'"),
    ],
)
def test_an_added_token_with_an_id_that_the_reference_would_not_give_is_refused(token, message, byte_level, tmp_path):
    with pytest.raises(UserError, match=message):
        load_tokenizer(edited(byte_level, tmp_path / "a", lambda spec: spec["added_tokens"].append(token)))


def test_words_beside_a_vocabulary_with_gaps_are_refused(tmp_path):
    """The library numbers words by the size of the vocabulary, so theirs would be the id of another token."""
    normalizer = {"type": "Prepend", "prepend": "\u2581"}
    for word, message in (
        (entry("wow", 3), "'wow' should have id 3, but 3 is that of 'b'"),
        (entry("a", 1), "ids are"),
    ):
        model = {"type": "BPE", "vocab": {"\u2581": 0, "a": 1, "b": 3}, "merges": []}
        spec = {"version": "1.0", "model": model, "normalizer": normalizer, "added_tokens": [word]}
        write_json(tmp_path / "tokenizer.json", spec)
        with pytest.raises(UserError, match=f"{message}.*from different checkpoints"):
            load_tokenizer(tmp_path)


def test_an_added_token_that_the_vocabulary_has_already_is_found_as_a_word(byte_level, tmp_path):
    def edit(spec):
        spec["added_tokens"].append(entry("in", spec["model"]["vocab"]["in"]))

    folder = edited(byte_level, tmp_path / "a", edit)
    reference = transformers.AutoTokenizer.from_pretrained(folder, split_special_tokens=True)
    ours, plain = load_tokenizer(folder), load_tokenizer(byte_level)
    texts = ["in the inn", "in", "i n", "winning\ninin", "at in", "the line"]
    assert_equal_ids(ours.encode, lambda text: reference(text, add_special_tokens=False).input_ids, texts)
    assert any(ours.encode(text) != plain.encode(text) for text in texts), "the word is found before merges"
    assert [ours.decode(ours.encode(text)) for text in texts] == texts


def test_files_that_contradict_each_other_about_a_word_are_refused(byte_level, tmp_path):
    n = load_tokenizer(byte_level).vocab_size
    folder = edited(byte_level, tmp_path / "a", lambda spec: spec["added_tokens"].append(entry("Covfefe", n)))
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": {str(n): {"content": "Covfefe"}}})
    assert load_tokenizer(folder).encode("Covfefe") == [n]
    for change, message in (({"lstrip": True}, "the lstrip False and True"), ({}, f"the id {n} and {n + 1}")):
        decoder = {str(n + (not change)): {"content": "Covfefe"} | change}
        write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
        with pytest.raises(UserError, match=f"give the added token 'Covfefe' {message}"):
            load_tokenizer(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},  # only when it encodes
        {"model": {"continuing_subword_prefix": "éé"}},
    ],
    ids=["charsmap", "empty pattern", "prefix"],
)
def test_a_panic_of_the_library_is_a_message(change, byte_level, tmp_path):
    """It is a BaseException, which no ``except Exception`` catches."""

    def edit(spec):
        for name, value in change.items():
            spec[name] = spec[name] | value if name == "model" else value

    with pytest.raises(UserError, match=r"tokenizer\.json is refused by the tokenizers library \(.*\): download it"):
        load_tokenizer(edited(byte_level, tmp_path / "a", edit)).encode("a the Covfefe\u0301")


def test_random_merges_are_refused(byte_level, tmp_path):
    folder = edited(byte_level, tmp_path / "a", lambda spec: spec["model"].update(dropout=0.1))
    with pytest.raises(UserError, match=r"tokenizer\.json: dropout is 0\.1.*Set it to null"):
        load_tokenizer(folder)
