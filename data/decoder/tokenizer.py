"""Text to token ids and back: SentencePiece, tiktoken rank files and byte-level BPE behind one small interface.

Every section of a prompt is tokenized separately (`data.decoder.prompts`), so all three kinds follow the same rules:

- ``encode`` adds nothing: no beginning-of-text token, and no space at the front or after an added word (SentencePiece
  adds one by default, which would put a space into the middle of every prompt).
- ``encode`` treats all input as ordinary text: the characters ``<|eot_id|>`` in a document get the tokens of these
  characters, never the special token. Special tokens enter a prompt by name, through ``special``. Which added tokens
  are special, and which are words that a document has: `data.added_tokens`.
- Otherwise ids equal the reference's: the sentencepiece and tiktoken packages, and `transformers` for tokenizer.json.
- ``decode(encode(text)) == text``, with three exceptions that the reference implementations have too. SentencePiece
  writes a space as U+2581, so this character is decoded as a space. A tokenizer that normalizes Unicode or joins runs
  of spaces (none of the Llama family does; OpenLLaMA's first one joins spaces) returns the text that it made of it. A
  character without a token is lost, unless the tokenizer falls back to bytes, as all of the Llama family do.

The tokens that open and close a chat turn are in `data.decoder.templates`; files are converted in `checkpoints_tools`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Hashable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data import rank_file, sentencepiece_model
from data.added_tokens import AddedTokens, Library, WordFinder, looks_like_control, read_added_tokens
from data.characters import whole_characters
from data.decoder.pieces import json_pieces, sentence_pieces
from data.errors import UserError
from data.files.listing import files_found
from data.tokenizer_files import damaged, parse_json, read_files, token_text

# All files that a tokenizer may have; `save` copies those that exist.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


class Tokenizer(Hashable, Protocol):
    """The interface of all tokenizers.

    Attributes:
        vocab_size: one more than the largest id; a model's embedding may be larger (padded), never smaller.
        bos_id: the token that begins a text, None if the tokenizer has none.
        eos_id: the token that ends a text. The end of a chat turn may be another token (`data.decoder.templates`).
        pad_id: the padding token, None if there is none; nothing here uses it.
        stated_eos: the text of the token that ends a text, if a configuration states it; else empty.
        special: the id of every special token, by its text. No text is encoded to one of these.
        chat_template: the Jinja source that came with the tokenizer, "" if none did.
        fingerprint: hash of the defining files; equal fingerprints give equal ids.
    """

    vocab_size: int
    bos_id: int | None
    eos_id: int | None
    pad_id: int | None
    stated_eos: str
    special: dict[str, int]
    chat_template: str
    fingerprint: str

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int]) -> str: ...

    def pieces(self) -> dict[int, bytes]: ...

    def save(self, folder: Path) -> None: ...


class _FileTokenizer:
    """Shared by the three kinds: their files, added and special tokens, and checks.

    Args:
        files: contents by name.
        ordinary: ids that the kind's own ``_decode`` knows.
        added: the added tokens.
    """

    def __init__(self, files: dict[str, bytes], ordinary: Collection[int], added: AddedTokens) -> None:
        self.files = files
        self.special = special = added.control
        self._text = {token["id"]: token["content"] for token in added.words if token["id"] not in ordinary}
        self._text |= {i: text for text, i in special.items()}
        self._ordinary = ordinary
        self.vocab_size = max([*ordinary, *self._text], default=-1) + 1
        self.fingerprint = hashlib.sha256(b"\0".join(files[name] for name in sorted(files))).hexdigest()
        config = parse_json(files, "tokenizer_config.json")
        names = {**parse_json(files, "special_tokens_map.json"), **config}
        self.bos_id = special.get(token_text(names.get("bos_token")))
        self.stated_eos = token_text(names.get("eos_token")) or ""
        self.eos_id = special.get(self.stated_eos)
        self.pad_id = special.get(token_text(names.get("pad_token")))
        self.chat_template = _chat_template(files, config)

    def encode(self, text: str) -> list[int]:
        """Token ids of ordinary text; half a surrogate pair (possible in JSON data) becomes U+FFFD."""
        return self._encode(whole_characters(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens included; an id without a token (padded embeddings) becomes U+FFFD."""
        parts: list[str] = []
        run: list[int] = []  # ordinary tokens are decoded together: a character may span several
        for i in ids:
            if i in self._ordinary and i not in self._text:
                run.append(i)
                continue
            parts.append(self._decode(run))
            run = []
            parts.append(self._text.get(i, "\ufffd"))
        parts.append(self._decode(run))
        return "".join(parts)

    def pieces(self) -> dict[int, bytes]:
        """The UTF-8 bytes of every token but the special ones, by id; one token may have a part of a character.

        Raises:
            UserError: the bytes of this tokenizer's tokens are not known.
        """
        words = {i: text.encode() for i, text in self._text.items() if text not in self.special}
        return {i: piece for i, piece in self._pieces().items() if i not in self._text} | words

    def save(self, folder: Path) -> None:
        """Write the files this tokenizer was read from, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    def _pieces(self) -> dict[int, bytes]:
        raise NotImplementedError


class SentencePieceTokenizer(_FileTokenizer):
    """Llama 2's ``tokenizer.model``: BPE over characters with byte fallback; other models with their own settings.

    If the model joins runs of spaces (``remove_extra_whitespaces``), the library also drops the spaces at both ends of
    a text. Here one space is left at each end, because sections are parts of a longer text.
    """

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        model, path = files["tokenizer.model"], folder / "tokenizer.model"
        pieces = _processor(model, path)
        vocabulary = _vocabulary(pieces, path)
        types = sentencepiece_model.piece_types(model)
        fixed = (sentencepiece_model.CONTROL, sentencepiece_model.UNKNOWN)
        defined = sentencepiece_model.USER_DEFINED
        control = {
            text: "control"
            for text, i in vocabulary.items()
            if types[i] in fixed or (types[i] == defined and looks_like_control(text))
        }
        spec = parse_json(files, "tokenizer.json")  # a conversion; it may have more added tokens
        added = _read_added_tokens(files, path, vocabulary, spec, control)
        super().__init__(files, range(len(vocabulary)), added)
        words = [token for token in added.words if types[token["id"] :][:1] != [defined]]
        self._words = WordFinder(words, path, _without_dummy_space(spec.get("normalizer")))

        hidden = [i for i in added.control.values() if i < len(types) and types[i] not in fixed]
        model = sentencepiece_model.with_control_pieces(model, hidden)
        settings = sentencepiece_model.read_settings(model)
        plain = sentencepiece_model.with_normalizer(model, add_dummy_prefix=False, remove_extra_whitespaces=False)
        self._model = _processor(plain, path)
        self._joins_spaces = settings.remove_extra_whitespaces
        if self._joins_spaces:
            change = sentencepiece_model.with_normalizer
            self._joined = _processor(change(model, add_dummy_prefix=False), path)
            self._spaced = _processor(change(plain, escape_whitespaces=False), path)
            self._normalized = _processor(change(plain, normalizes=False), path)
        if self.bos_id is None and pieces.bos_id() >= 0:
            self.bos_id = pieces.bos_id()
        if self.eos_id is None and pieces.eos_id() >= 0:
            self.eos_id = pieces.eos_id()

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._words.cut(text):
            ids += self._encode_part(part) if isinstance(part, str) else [part]
        return ids

    def _encode_part(self, text: str) -> list[int]:
        if not self._joins_spaces:
            return self._model.encode(text)
        spaced, joined = self._spaced.normalize(text), self._joined.normalize(text)
        before = " " * spaced.startswith(" ")
        after = " " * (spaced.endswith(" ") and bool(joined))
        return self._normalized.encode(before + joined + after)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids) if ids else ""

    def _pieces(self) -> dict[int, bytes]:
        model, ids = self._model, range(self._model.vocab_size())
        unused = {i for i in ids if model.is_control(i) or model.is_unknown(i) or model.is_unused(i)}
        return sentence_pieces({model.id_to_piece(i): i for i in ids if i not in unused})


class RankFileTokenizer(_FileTokenizer):
    """Llama 3's ``tokenizer.model``: one ``base64-bytes rank`` per line, merged by rank, as tiktoken reads them.

    Llama 3.1 gives names to three more of the reserved tokens, without changing ids. If there is a
    ``tokenizer_config.json``, its names are used.
    """

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        import tiktoken

        ranks = rank_file.read_ranks(files["tokenizer.model"], folder / "tokenizer.model")
        n, path = len(ranks), folder / "tokenizer.model"
        reserved = {name: n + i for i, name in enumerate(rank_file.llama3_special_tokens())}
        vocabulary = {token.decode(): rank for token, rank in ranks.items() if token.isascii()}
        control = dict.fromkeys(reserved, "control")
        ids, size = range(n, n + rank_file.N_LLAMA3_SPECIAL), n + rank_file.N_LLAMA3_SPECIAL
        added = read_added_tokens(files, path, vocabulary | reserved, (), control, n_vocabulary=size, reserved=ids)
        self._bpe = tiktoken.Encoding(
            name=str(folder), pat_str=rank_file.LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens={}
        )
        self._words = WordFinder(added.words, path)
        super().__init__(files, range(n), added)
        if self.bos_id is None:
            self.bos_id = n
        if self.eos_id is None:
            self.eos_id = n + 1

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._words.cut(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                ids += (i for chunk in rank_file.chunks(part) for i in self._bpe.encode_ordinary(chunk))
        return ids

    def _decode(self, ids: list[int]) -> str:
        return self._bpe.decode(ids)

    def _pieces(self) -> dict[int, bytes]:
        return {i: self._bpe.decode_single_token_bytes(i) for i in self._ordinary}


class JsonTokenizer(_FileTokenizer):
    """``tokenizer.json`` of the Hugging Face ``tokenizers`` library, BPE only: SmolLM2, Llama 3, GPT-2, RoBERTa.

    The library finds added tokens anywhere in its input. So it gets a copy of the file without control tokens, whose
    ids are looked up here. The steps that add or strip a space at the front are also removed.
    """

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        path = folder / "tokenizer.json"
        spec = parse_json(files, "tokenizer.json", folder)
        vocabulary, kind = spec["model"]["vocab"], spec["model"].setdefault("type", "BPE")
        if kind != "BPE" or not isinstance(vocabulary, dict):
            raise UserError(
                f"{path} holds a tokenizer of type {kind!r}; only BPE is supported (Llama, SmolLM2, GPT-2, RoBERTa)."
            )
        unknown = spec["model"].get("unk_token")
        added = _read_added_tokens(files, path, vocabulary, spec, {unknown: "unk"} if unknown else {})
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            spec[part] = _without_dummy_space(spec.get(part))
        self._library = Library(spec, added, path)
        self._read_pieces = partial(json_pieces, vocabulary, spec["decoder"], path)
        super().__init__(files, frozenset(vocabulary.values()), added)

    def _encode(self, text: str) -> list[int]:
        return self._library.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self._library.decode(ids)

    def _pieces(self) -> dict[int, bytes]:
        return self._read_pieces()


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder; its kind is recognized by content.

    A ``tokenizer.json`` is preferred, unless it is a conversion of a SentencePiece model in the same folder.

    Raises:
        UserError: no tokenizer there, or a file that is damaged or of an unknown kind.
    """
    folder = Path(folder)
    files = read_files(folder, TOKENIZER_FILES)
    has_model = "tokenizer.model" in files
    if "tokenizer.json" in files and not (has_model and _is_conversion(files, folder)):
        return JsonTokenizer(files, folder)
    if not has_model:
        raise UserError(
            f"No tokenizer in {folder}: looked for tokenizer.json and tokenizer.model; found: {files_found(folder)}. "
            "A Hugging Face checkpoint includes one: `hf download REPO --local-dir DIR` (Llama: the Instruct or "
            "chat repository, after accepting its licence). Meta's downloads have a tokenizer.model beside the .pth "
            "files or one folder above. For a GGUF file, `python -m checkpoints_tools.convert SRC DST` extracts it."
        )
    if rank_file.is_rank_file(files["tokenizer.model"]):
        return RankFileTokenizer(files, folder)
    return SentencePieceTokenizer(files, folder)


def _processor(model: bytes, path: Path) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except Exception as error:  # of the library
        raise damaged(path, "neither a SentencePiece model nor a rank file") from error


def _vocabulary(processor: Any, path: Path) -> dict[str, int]:
    try:
        return {processor.id_to_piece(i): i for i in range(processor.vocab_size())}
    except UnicodeDecodeError as error:
        raise damaged(path, f"damaged: a piece is not UTF-8 ({error})") from error


def _is_conversion(files: dict[str, bytes], folder: Path) -> bool:
    """Whether the tokenizer.json is of the SentencePiece model beside it: the same tokens, but for added ones."""
    model, path = files["tokenizer.model"], folder / "tokenizer.model"
    if not re.search(rb'"byte_fallback"\s*:\s*true', files["tokenizer.json"]) or rank_file.is_rank_file(model):
        return False
    vocabulary = parse_json(files, "tokenizer.json", folder)["model"]["vocab"]
    return vocabulary == _vocabulary(_processor(model, path), path)


def _chat_template(files: dict[str, bytes], config: dict[str, Any]) -> str:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", "replace")
    template = config.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template", "") for t in template}
        template = named.get("default") or next(iter(named.values()), "")
    return template


def _read_added_tokens(
    files: dict[str, bytes], path: Path, vocabulary: dict[str, int], spec: dict[str, Any], roles: dict[str, str]
) -> AddedTokens:
    """The added tokens of a tokenizer; ``spec`` is its tokenizer.json, or empty."""
    added = read_added_tokens(files, path, vocabulary, spec.get("added_tokens") or [], roles)
    if not _adds_space(spec.get("normalizer")):
        return added
    if "Llama" in str(parse_json(files, "tokenizer_config.json").get("tokenizer_class")):
        # transformers builds the parts of this class anew, without a normalizer.
        words = [token | {"normalized": False} for token in added.words]
    else:
        # The space is also added to the words that are normalized: the library finds them only behind one.
        words = [token | {"content": " " * token["normalized"] + token["content"]} for token in added.words]
    return AddedTokens(words, added.control)


def _adds_space(node: dict[str, Any] | None) -> bool:
    """Whether a normalizer of a ``tokenizer.json`` adds a space at the front."""
    node = node or {}
    return node.get("type") == "Prepend" or any(map(_adds_space, node.get("normalizers") or []))


def _without_dummy_space(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """A part of a ``tokenizer.json`` without the steps that add or strip a space at the front."""
    if node is None or node["type"] in ("Prepend", "Strip"):
        return None
    node = dict(node)
    for children in ("normalizers", "pretokenizers", "decoders"):
        if children in node:
            node[children] = [kept for child in node[children] if (kept := _without_dummy_space(child))]
    if node["type"] in ("ByteLevel", "Metaspace"):
        node["add_prefix_space"] = False
        if "prepend_scheme" in node:
            node["prepend_scheme"] = "never"
    return node
