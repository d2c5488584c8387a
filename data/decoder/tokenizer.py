"""Text to token ids and back: SentencePiece, tiktoken rank files and byte-level BPE behind one small interface.

Every section of a prompt is tokenized separately (`data.decoder.prompts`), so all three kinds follow the same rules:

- ``encode`` adds nothing: no beginning-of-text token, and no space at the front (SentencePiece adds one by default,
  which would put a space into the middle of every prompt).
- ``encode`` treats all input as ordinary text: the characters ``<|eot_id|>`` in a document get the tokens of these
  characters, never the special token. Special tokens enter a prompt by name, through ``special``.
- ``decode(encode(text)) == text``, with two exceptions that the reference implementations have too. SentencePiece
  writes a space as U+2581, so this character is decoded as a space. A ``tokenizer.json`` that normalizes Unicode (none
  of the Llama family does) returns normalized text.

The tokens that open and close a chat turn are in `data.decoder.templates`; files are converted in `checkpoints_tools`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from data.errors import UserError
from data.tokenizer_files import damaged, files_found, parse_json, read_files, token_text

# All files that a tokenizer may have; `save` copies those that exist.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)

# How Llama 3 splits text before merging bytes (published with the model; also in its tokenizer.json).
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Llama 3's rank file lists ordinary tokens only; 256 special ones follow, of which these have names.
LLAMA3_SPECIAL = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
N_LLAMA3_SPECIAL = 256
# tiktoken overflows its stack on longer texts or runs. The reference cuts at the same points, so ids are equal.
MAX_CHUNK = 400_000
MAX_RUN = 25_000


class Tokenizer(Protocol):
    """The interface of all tokenizers.

    Attributes:
        vocab_size: one more than the largest id; a model's embedding may be larger (padded), never smaller.
        bos_id: the token that begins a text, None if the tokenizer has none.
        eos_id: the token that ends a text. The end of a chat turn may be another token (`data.decoder.templates`).
        pad_id: the padding token, None if there is none; nothing here uses it.
        stated_eos: the text of the token that ends a text, if a configuration states it; else empty.
        special: the id of every special token, by its text.
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

    def save(self, folder: Path) -> None: ...


class _FileTokenizer:
    """Shared by the three kinds: their files, special tokens, and checks."""

    def __init__(self, files: dict[str, bytes], n_ordinary: int, special: dict[str, int]) -> None:
        self.files = files
        self.special = special
        self.vocab_size = max([n_ordinary - 1, *special.values()]) + 1
        self._special_text = {i: text for text, i in special.items()}
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
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return self._encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens included; an id without a token (padded embeddings) becomes U+FFFD."""
        parts: list[str] = []
        run: list[int] = []  # ordinary tokens are decoded together: a character may span several
        for i in ids:
            if self._is_ordinary(i):
                run.append(i)
                continue
            parts.append(self._decode(run))
            run = []
            parts.append(self._special_text.get(i, "\ufffd"))
        parts.append(self._decode(run))
        return "".join(parts)

    def save(self, folder: Path) -> None:
        """Write the files this tokenizer was read from, byte for byte."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def _is_ordinary(self, i: int) -> bool:
        return 0 <= i < self.vocab_size and i not in self._special_text

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def _decode(self, ids: list[int]) -> str:
        raise NotImplementedError


class SentencePieceTokenizer(_FileTokenizer):
    """Llama 2's ``tokenizer.model``: BPE over characters with byte fallback."""

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        import sentencepiece

        # The model file is a protobuf, in which a later value replaces an earlier one: this appends
        # `normalizer_spec { add_dummy_prefix: false, remove_extra_whitespaces: false }`.
        model = files["tokenizer.model"] + b"\x1a\x04\x18\x00\x20\x00"
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
            pieces = [self._model.id_to_piece(i) for i in range(self._model.vocab_size())]
        except Exception as error:  # its own, and a UnicodeDecodeError for a piece that is not UTF-8
            raise damaged(folder / "tokenizer.model", "neither a SentencePiece model nor a rank file") from error
        self._n_pieces = len(pieces)
        special = {text: i for i, text in enumerate(pieces) if self._model.is_control(i) or self._model.is_unknown(i)}
        special |= {text: i for text, i in _added_tokens(files).items() if i >= self._n_pieces}
        super().__init__(files, self._n_pieces, special)
        if self.bos_id is None and self._model.bos_id() >= 0:
            self.bos_id = self._model.bos_id()
        if self.eos_id is None and self._model.eos_id() >= 0:
            self.eos_id = self._model.eos_id()

    def _is_ordinary(self, i: int) -> bool:
        return 0 <= i < self._n_pieces and i not in self._special_text

    def _encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def _decode(self, ids: list[int]) -> str:
        return self._model.decode(ids) if ids else ""


class RankFileTokenizer(_FileTokenizer):
    """Llama 3's ``tokenizer.model``: one ``base64-bytes rank`` per line, merged by rank, as tiktoken reads them.

    Llama 3.1 gives names to three more of the reserved tokens, without changing ids. If there is a
    ``tokenizer_config.json``, its names are used.
    """

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        import tiktoken

        ranks = _read_ranks(files["tokenizer.model"], folder / "tokenizer.model")
        special, n_reserved = {}, 0
        for i in range(N_LLAMA3_SPECIAL):
            name = LLAMA3_SPECIAL.get(i)
            if name is None:
                name, n_reserved = f"<|reserved_special_token_{n_reserved}|>", n_reserved + 1
            special[name] = len(ranks) + i
        renamed = {i: text for text, i in _added_tokens(files).items() if i >= len(ranks)}
        special = {renamed.get(i, name): i for name, i in special.items()}
        self._bpe = tiktoken.Encoding(
            name=str(folder), pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=special
        )
        self._n_ranks = len(ranks)
        super().__init__(files, len(ranks), special)
        if self.bos_id is None:
            self.bos_id = len(ranks)
        if self.eos_id is None:
            self.eos_id = len(ranks) + 1

    def _is_ordinary(self, i: int) -> bool:
        return 0 <= i < self._n_ranks

    def _encode(self, text: str) -> list[int]:
        return [i for chunk in _chunks(text) for i in self._bpe.encode_ordinary(chunk)]

    def _decode(self, ids: list[int]) -> str:
        return self._bpe.decode(ids)


class JsonTokenizer(_FileTokenizer):
    """``tokenizer.json`` of the Hugging Face ``tokenizers`` library, BPE only: SmolLM2, Llama 3, GPT-2, RoBERTa.

    The library finds added tokens anywhere in its input. So it gets a copy of the file without them, and the ids of
    added tokens are looked up here. The steps that add or strip a space at the front are also removed.
    """

    def __init__(self, files: dict[str, bytes], folder: Path) -> None:
        import tokenizers

        path = folder / "tokenizer.json"
        spec = parse_json(files, "tokenizer.json", folder)
        vocabulary, kind = spec["model"]["vocab"], spec["model"].get("type", "BPE")
        if kind != "BPE" or not isinstance(vocabulary, dict):
            raise UserError(
                f"{path} holds a tokenizer of type {kind!r}; only BPE is supported (Llama, SmolLM2, GPT-2, RoBERTa)."
            )
        # Added tokens that are runs of spaces are ordinary text; all others are special.
        added = spec.get("added_tokens") or []
        kept = spec["added_tokens"] = [token for token in added if not token["content"].strip()]
        special = {token["content"]: token["id"] for token in added if token["content"].strip()}
        special |= {text: i for text, i in _added_tokens(files).items() if text.strip()}
        spec["model"]["vocab"] = {text: i for text, i in vocabulary.items() if text not in special}
        # The library renumbers added tokens unless the vocabulary has them.
        spec["model"]["vocab"] |= {token["content"]: token["id"] for token in kept}
        if spec["model"].get("unk_token") in special:
            spec["model"]["unk_token"] = None  # not needed: every BPE here falls back to bytes
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            spec[part] = _without_dummy_space(spec.get(part))
        spec["post_processor"] = spec["truncation"] = spec["padding"] = None
        try:
            self._bpe = tokenizers.Tokenizer.from_str(json.dumps(spec))
        except Exception as error:  # the library raises bare Exception
            raise damaged(path, f"refused by the tokenizers library: {error}") from error
        self._known = frozenset(self._bpe.get_vocab(with_added_tokens=True).values())
        super().__init__(files, max(self._known, default=-1) + 1, special)

    def _is_ordinary(self, i: int) -> bool:
        return i in self._known

    def _encode(self, text: str) -> list[int]:
        return self._bpe.encode(text, add_special_tokens=False).ids

    def _decode(self, ids: list[int]) -> str:
        return self._bpe.decode(ids, skip_special_tokens=False)


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """Load the tokenizer of a checkpoint folder; its kind is recognized by content.

    A ``tokenizer.json`` is preferred, unless it is a conversion of a SentencePiece model in the same folder.

    Raises:
        UserError: no tokenizer there, or a file that is damaged or of an unknown kind.
    """
    folder = Path(folder)
    files = read_files(folder, TOKENIZER_FILES)
    has_model = "tokenizer.model" in files
    if "tokenizer.json" in files:
        converted = re.search(rb'"byte_fallback"\s*:\s*true', files["tokenizer.json"])
        if not (has_model and converted):
            return JsonTokenizer(files, folder)
    if not has_model:
        raise UserError(
            f"No tokenizer in {folder}: looked for tokenizer.json and tokenizer.model; found: {files_found(folder)}. "
            "A Hugging Face checkpoint includes one: `hf download REPO --local-dir DIR` (Llama: the Instruct or "
            "chat repository, after accepting its licence). Meta's downloads have a tokenizer.model beside the .pth "
            "files or one folder above. For a GGUF file, `python -m checkpoints_tools.convert SRC DST` extracts it."
        )
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", files["tokenizer.model"]):
        return RankFileTokenizer(files, folder)
    return SentencePieceTokenizer(files, folder)


def _added_tokens(files: dict[str, bytes]) -> dict[str, int]:
    listed = parse_json(files, "tokenizer_config.json").get("added_tokens_decoder") or {}
    return parse_json(files, "added_tokens.json") | {token_text(token): int(i) for i, token in listed.items()}


def _chat_template(files: dict[str, bytes], config: dict[str, Any]) -> str:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", "replace")
    template = config.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        named = {t.get("name"): t.get("template", "") for t in template}
        template = named.get("default") or next(iter(named.values()), "")
    return template


def _read_ranks(content: bytes, path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except ValueError as error:
            raise damaged(path, f"broken in line {number} (expected `base64 rank`)") from error
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([b]) not in ranks for b in range(256)):
        raise damaged(path, f"incomplete: {len(ranks):,} tokens whose ranks are not 0 to {len(ranks) - 1:,}")
    return ranks


def _chunks(text: str) -> Iterator[str]:
    """Cut a text every MAX_CHUNK characters; within a chunk, cut runs of (non-)spaces every MAX_RUN."""
    for start in range(0, len(text), MAX_CHUNK):
        chunk = text[start : start + MAX_CHUNK]
        done = 0
        if len(chunk) > MAX_RUN:
            for run in re.finditer(rf"\s{{{MAX_RUN + 1},}}|\S{{{MAX_RUN + 1},}}", chunk):
                for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                    yield chunk[done:cut]
                    done = cut
        yield chunk[done:]


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
