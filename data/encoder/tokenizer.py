"""Text and words to token ids for encoders: RoBERTa's byte-level BPE and BERT's WordPiece.

A tokenizer is read from the files of a Hugging Face checkpoint, the first of these that exists:

    tokenizer.json               either kind, complete in one file
    vocab.json + merges.txt      RoBERTa's byte-level BPE
    vocab.txt                    BERT's WordPiece

The `tokenizers` package splits and merges, so ids are those of ``RobertaTokenizerFast`` and ``BertTokenizerFast``. This
module reads and checks the files, and finds the word of each sub-word. Three rules:

- Nothing is added, and nothing in a document is special: ``<s>`` or ``[SEP]`` in a post is ordinary text
  (``split_special_tokens`` in transformers). Callers put `cls_id` and `sep_id` around the ids. Which added tokens are
  special, and which are words that a document has: `data.added_tokens`.
- No space is added in front of a text: RoBERTa has different tokens for ``"news"`` at the start of a text and
  ``" news"`` inside it, and was pretrained so. Checkpoints with ``add_prefix_space: true`` in tokenizer_config.json get
  a space. Words given one by one always get one, because in a text they follow another word.
- Where tokenizer_config.json and tokenizer.json disagree (lower-casing, accents, Chinese characters, the space in
  front), tokenizer_config.json is used, as in transformers; also there the first three mean nothing to the classes of
  `NO_OPTIONS`. What tokenizer_config.json does not say is as in tokenizer.json, where transformers takes the default of
  the class.

Documents are cut in `data.encoder.samples` and packed in `data.packing`; decoders' tokenizers are in
`data.decoder.tokenizer`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

from data.added_tokens import Library, read_added_tokens
from data.characters import whole_characters
from data.encoder.frame import Frame
from data.errors import UserError
from data.files.listing import files_found
from data.json_text import to_json
from data.tokenizer_files import damaged, parse_json, read_files, token_text

TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""All files that an encoder's tokenizer may have; `Tokenizer.save` copies those that exist."""

# The default special tokens of each kind; special_tokens_map.json and tokenizer_config.json may give others.
SPECIAL_TOKENS = {
    "BPE": {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"},
    "WordPiece": {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"},
}
# For each option of tokenizer_config.json: the part of tokenizer.json that has it, and its name there.
OPTIONS = {
    "do_lower_case": ("BertNormalizer", "lowercase"),
    "strip_accents": ("BertNormalizer", "strip_accents"),
    "tokenize_chinese_chars": ("BertNormalizer", "handle_chinese_chars"),
    "add_prefix_space": ("ByteLevel", "add_prefix_space"),
}
# Classes of tokenizer_config.json that normalize as tokenizer.json says.
NO_OPTIONS = ("PreTrainedTokenizerFast", "TokenizersBackend")
# Options of BertJapaneseTokenizer -> the only value with which it is BERT's tokenizer.
JAPANESE = {"word_tokenizer_type": "basic", "subword_tokenizer_type": "wordpiece"}
# Only special tokens are in vocab.json without a merge: RoBERTa has 9. Many more mean that merges.txt is cut off.
MAX_WITHOUT_MERGE = 100

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BERT_NORMALIZER = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,  # None: the same as lowercase
    "lowercase": True,
}


class Tokenizer:
    """The tokenizer of an encoder's checkpoint folder; made by :func:`load_tokenizer`.

    Attributes:
        vocab_size: one more than the largest id; a model's embedding may be larger (padded), never smaller.
        cls_id: opens a document (``<s>``, ``[CLS]``).
        sep_id: closes it (``</s>``, ``[SEP]``).
        frame: both, around a document.
        pad_id: fills a row.
        unk_id: replaces a word that WordPiece cannot split into sub-words; byte-level BPE never needs it.
        mask_id: hides a token in pretraining; None if the vocabulary has none.
        fingerprint: hash of the files; equal fingerprints give equal ids.
    """

    vocab_size: int
    cls_id: int
    sep_id: int
    frame: Frame
    pad_id: int
    unk_id: int
    mask_id: int | None
    fingerprint: str

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        self.files = files
        self._folder = folder
        config = _settings(files, folder)
        named = {**parse_json(files, "special_tokens_map.json", folder), **config}
        if "tokenizer.json" in files:
            main, spec = "tokenizer.json", _read_json(files, folder)
        elif {"vocab.json", "merges.txt"} <= files.keys():
            main, spec = "vocab.json", _read_bpe(files, folder)
        else:
            main, spec = "vocab.txt", _read_wordpiece(files, folder)
        kind = spec["model"]["type"]
        names = {role: token_text(named.get(f"{role}_token")) or text for role, text in SPECIAL_TOKENS[kind].items()}
        if kind == "WordPiece":
            spec["model"]["unk_token"] = names["unk"]
        is_plain = main == "tokenizer.json" and config.get("tokenizer_class") in NO_OPTIONS
        for option, (part, name) in OPTIONS.items():
            if option in config and not (is_plain and part == "BertNormalizer"):
                _set(spec, part, name, config[option])

        path, vocabulary = folder / main, spec["model"]["vocab"]
        roles = {text: role for role, text in names.items()}
        added = read_added_tokens(files, path, vocabulary, spec.get("added_tokens") or [], roles)
        known = vocabulary | {token["content"]: token["id"] for token in added.words} | added.control
        missing = [f"{role} ({text})" for role, text in names.items() if text not in known and role != "mask"]
        if missing:
            raise UserError(
                f"{folder / main} lacks the special tokens {', '.join(missing)} that an encoder needs. If it has other "
                "names for them, tokenizer_config.json must give these (cls_token, sep_token, pad_token, unk_token). "
                "If this is the tokenizer of a decoder such as Llama, choose a decoder model."
            )
        if kind == "BPE" and (lacking := set(pre_tokenizers.ByteLevel.alphabet()) - vocabulary.keys()):
            if any(text.endswith("</w>") for text in vocabulary):  # GPT's and XLM's BPE, of characters
                raise _unsupported(path, kind)
            raise damaged(path, f"incomplete: {len(lacking)} of the 256 bytes have no token")
        spec["decoder"] = None
        self._texts = Library(spec, added, path)
        _set(spec, "ByteLevel", "add_prefix_space", True)
        self._words = Library(spec, added, path)

        self.cls_id, self.sep_id, self.pad_id, self.unk_id = (
            known[names[role]] for role in ("cls", "sep", "pad", "unk")
        )
        self.frame = Frame((self.cls_id,), (self.sep_id,))
        self.mask_id = known.get(names["mask"])
        self.vocab_size = max(known.values()) + 1
        content = b"\0".join(part for name in sorted(files) for part in (name.encode(), files[name]))
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens; half a surrogate pair becomes U+FFFD."""
        return self._texts.encode(whole_characters(text))

    def encode_words(self, words: Sequence[str]) -> tuple[list[int], list[int]]:
        """Ids of words, each tokenized separately, and the index of each word's first sub-word.

        Args:
            words: as in ``text.split()``; an empty list gives two empty lists.

        Returns:
            The ids of all words, concatenated and without special tokens. And for each word the index of its first
            sub-word in these ids, or -1 if the word has no sub-word. With RoBERTa only an empty string has none. BERT
            drops invisible characters, so a word of only control or zero-width characters has none, nor (if accents
            are stripped) a word of only combining marks. The caller decides what to do with such words.
        """
        assert not isinstance(words, str), "a list of words is needed; use encode() for a text"
        ids, word_of = self._words.encode_words([whole_characters(word) for word in words])
        first = [-1] * len(words)
        for place, word in enumerate(word_of):
            assert word is not None, "no special tokens were added"
            if first[word] < 0:
                first[word] = place
        return ids, first

    def save(self, folder: Path | str, max_length: int | None = None) -> None:
        """Write the files this tokenizer was read from, byte for byte.

        Args:
            max_length: written to tokenizer_config.json as ``model_max_length``, the only change; None: no change.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        if max_length is not None:
            name = "tokenizer_config.json"
            config = parse_json(self.files, name, self._folder) | {"model_max_length": max_length}
            (folder / name).write_text(to_json(config, indent=2) + "\n", encoding="utf-8")


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Load the tokenizer of an encoder's checkpoint folder.

    Raises:
        UserError: no tokenizer there, a file that is damaged or of an unsupported kind, or a vocabulary without the
            special tokens.
    """
    folder = Path(folder)
    files = read_files(folder, TOKENIZER_FILES)
    if not ("tokenizer.json" in files or "vocab.txt" in files or {"vocab.json", "merges.txt"} <= files.keys()):
        raise UserError(
            f"No encoder's tokenizer in {folder}: looked for tokenizer.json, for vocab.json with merges.txt (RoBERTa) "
            f"and for vocab.txt (BERT); found: {files_found(folder)}. A Hugging Face checkpoint includes one: "
            "`hf download FacebookAI/roberta-base --local-dir DIR`."
        )
    return Tokenizer(files, folder)


# --- from files to the format of tokenizer.json -----------------------------------------------------------------------


def _read_json(files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    spec = parse_json(files, "tokenizer.json", folder)
    # The oldest files do not name their type of model.
    kind = spec["model"].setdefault("type", "BPE" if "merges" in spec["model"] else "WordPiece")
    if kind not in SPECIAL_TOKENS or (kind == "BPE" and not _parts(spec, "ByteLevel")):
        raise _unsupported(path, kind)
    return spec


def _unsupported(path: Path, kind: str) -> UserError:
    return UserError(
        f"{path} holds a tokenizer of type {kind!r}{' that is not byte-level' * (kind == 'BPE')}; only "
        "byte-level BPE (RoBERTa) and WordPiece (BERT) are supported."
    )


def _read_bpe(files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    vocabulary = _vocabulary(files, folder / "vocab.json")
    path = folder / "merges.txt"
    merges = []
    for number, line in enumerate(_lines(files["merges.txt"], path), start=1):
        if line.startswith("#version") or not line:
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(text in vocabulary for text in (*pair, "".join(pair))):
            raise damaged(path, f"broken in line {number} (expected two tokens of vocab.json that join to a third)")
        merges.append(pair)
    made = {"".join(pair) for pair in merges}
    unmade = sum(len(text) > 1 and text not in made for text in vocabulary)
    if unmade > MAX_WITHOUT_MERGE:
        raise damaged(path, f"incomplete: no merge makes {unmade:,} of the {len(vocabulary):,} tokens of vocab.json")
    model = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    return {"normalizer": None, "pre_tokenizer": dict(BYTE_LEVEL), "model": model}


def _read_wordpiece(files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    lines = _lines(files["vocab.txt"], folder / "vocab.txt")
    model = {
        "type": "WordPiece",
        "vocab": {line.rstrip(): i for i, line in enumerate(lines)},
        "unk_token": SPECIAL_TOKENS["WordPiece"]["unk"],
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    }
    return {"normalizer": dict(BERT_NORMALIZER), "pre_tokenizer": {"type": "BertPreTokenizer"}, "model": model}


def _vocabulary(files: dict[str, bytes], path: Path) -> dict[str, int]:
    vocabulary = parse_json(files, "vocab.json", path.parent)
    if len(set(vocabulary.values())) < len(vocabulary):
        raise damaged(path, "not a vocabulary (expected an object of tokens with different ids)")
    return vocabulary


def _lines(content: bytes, path: Path) -> list[str]:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise damaged(path, f"not UTF-8 ({error})") from error
    lines = text.replace("\r\n", "\n").split("\n")  # not splitlines: it splits at characters that tokens may hold
    return lines if lines[-1] else lines[:-1]


def _settings(files: dict[str, bytes], folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with its options checked. Only strip_accents may be null (the same as lower-casing)."""
    config = parse_json(files, "tokenizer_config.json", folder)
    for option, bert in JAPANESE.items():
        if config.get(option, bert) != bert:
            raise UserError(
                f"{folder / 'tokenizer_config.json'}: {option} is {json.dumps(config[option])}, of Japanese BERTs. "
                f"Only BERT's own tokenizer is supported, with {json.dumps(bert)}."
            )
    for option in OPTIONS:
        value = config.get(option)
        if not (isinstance(value, bool) or (value is None and (option == "strip_accents" or option not in config))):
            raise UserError(
                f"{folder / 'tokenizer_config.json'}: {option} must be true or false, found {json.dumps(value)}."
            )
    return config


# --- from that format to a tokenizer ----------------------------------------------------------------------------------


def _parts(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """All normalizers and pre-tokenizers of one type, also within sequences."""
    found, todo = [], [spec.get("normalizer"), spec.get("pre_tokenizer")]
    while todo:
        node = todo.pop() or {}
        if node.get("type") == kind:
            found.append(node)
        todo += [*node.get("normalizers", []), *node.get("pretokenizers", [])]
    return found


def _set(spec: dict[str, Any], kind: str, name: str, value: bool | None) -> None:
    for part in _parts(spec, kind):
        part[name] = value
