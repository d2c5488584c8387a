"""The tokens that a checkpoint adds to its vocabulary, and which of them a document may produce.

Added tokens are of two kinds:

- A *word* extends the vocabulary: ``Covfefe``, a run of spaces. It is produced wherever its text occurs, as the
  reference implementation does (`transformers`: ``tokenizer.json`` read by the `tokenizers` library).
- A *control* token is structure: it opens, closes, separates or pads what a model reads. A document never produces one.
  It is encoded as if the tokenizer had no control tokens at all, neither as added tokens nor in the vocabulary.

A token is control if one of these holds; anything else is a word:

- a file flags it as special, or lists it in additional_special_tokens or extra_special_tokens
- a file names it as bos, eos, unk, sep, pad, cls or mask token
- a SentencePiece model has it as a control piece, or a rank file reserves it
- it looks like one (`looks_like_control`): ``<|im_end|>``, ``<s>``, ``<<SYS>>``, ``[INST]``

The reference, asked to encode special tokens as text (``split_special_tokens=True``), differs in three points: it
produces tokens that look like control but are not flagged; it produces control tokens that ordinary merges lead to, or
that are whole words of the vocabulary; and it finds no word inside a control token's text.

A padding or unknown token that is a letter of the vocabulary (``"!"``) remains ordinary text: text cannot be written
without it, and padding is known by its position. The unknown token's id is still produced for what has no token.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from data.errors import UserError
from data.tokenizer_files import parse_json, token_text

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
REMEDY = "the vocabulary and the added tokens are from different checkpoints. Download both again."
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
UNKNOWN = "unknown token"


@dataclass(frozen=True)
class AddedTokens:
    """What `read_added_tokens` returns.

    Attributes:
        words: entries as in the ``added_tokens`` of a ``tokenizer.json``: id, content, flags; in the order of ids.
        control: text → id of every control token, also of those that the vocabulary has.
    """

    words: list[dict[str, Any]]
    control: dict[str, int]


def looks_like_control(text: str) -> bool:
    """Whether a token is written like a control token: ``<...>`` or ``[...]`` around letters, or ``<|...|>`` within."""
    text = text.strip().strip("\u2581").strip()
    if BYTE.fullmatch(text):
        return False
    in_brackets = text[:1] + text[-1:] in ("<>", "[]") and any(map(str.isalpha, text[1:-1]))
    return in_brackets or re.search(r"<\|.+\|>", text, re.DOTALL) is not None


def read_added_tokens(
    files: Mapping[str, bytes],
    path: Path,
    vocabulary: Mapping[str, int],
    listed: Iterable[dict[str, Any]] = (),
    roles: Mapping[str, str] | None = None,
    n_vocabulary: int | None = None,
    reserved: Collection[int] = (),
) -> AddedTokens:
    """Collect the added tokens of all files of a tokenizer and sort them into words and control tokens.

    Args:
        files: contents by name; added_tokens.json, special_tokens_map.json and tokenizer_config.json are read.
        path: the tokenizer's main file, for messages.
        vocabulary: text → id of the main file's tokens.
        listed: the ``added_tokens`` of tokenizer.json.
        roles: text → role of tokens that are control without one of these files saying so.
        n_vocabulary: number of the main file's tokens; default: that of ``vocabulary``.
        reserved: ids of the vocabulary that wait for a name; an added token may give one.

    Raises:
        UserError: an id that the reference would not give this token, two entries that contradict each other, or a
            control token without which text cannot be written.
    """
    roles = {**_named(files, path.parent), **(roles or {})}
    tokens = _collect(files, path.parent, listed, roles)
    by_id = {i: text for text, i in vocabulary.items()}
    next_id = len(vocabulary) if n_vocabulary is None else n_vocabulary
    words, control = [], {text: vocabulary[text] for text in roles if text in vocabulary}
    for token in tokens:
        text, i = token["content"], token["id"]
        expected = vocabulary.get(text, next_id)
        owner = by_id.get(i)
        is_alias = token["special"] and (owner in control or owner is not None and looks_like_control(owner))
        if i == expected and owner in (text, None):
            next_id += text not in vocabulary
        elif i in reserved:
            control.pop(owner or "", None)
        elif not is_alias:
            taken = f"{i} is that of {owner!r}" if owner is not None else f"the next free id is {next_id}"
            raise UserError(
                f"{path}: the added token {text!r} should have id {i}, but "
                f"{f'its id in the vocabulary is {expected}' if text in vocabulary else taken}: {REMEDY}"
            )
        by_id[i] = text
        if token["special"]:
            control[text] = i
        elif not BYTE.fullmatch(text):
            words.append(token)
    for text in [text for text in control if len(text) == 1 and text in vocabulary]:
        role = roles.get(text, "special")
        if role not in ("pad", "unk"):
            raise UserError(
                f"{path}: the {role} token {text!r} is also a letter of the vocabulary, without which documents cannot "
                "be written. Name another token in tokenizer_config.json."
            )
        del control[text]
    return AddedTokens(sorted(words, key=lambda token: token["id"]), control)


def _named(files: Mapping[str, bytes], folder: Path) -> dict[str, str]:
    """Text → role of the tokens that special_tokens_map.json and tokenizer_config.json name."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config = parse_json(files, name, folder)
        for key in ("additional_special_tokens", "extra_special_tokens"):
            extra = config.get(key) or []
            extra = extra.values() if isinstance(extra, dict) else extra
            found |= dict.fromkeys(map(token_text, extra), "special")
        found |= {token_text(config.get(f"{role}_token")): role for role in ROLES}
    found.pop("", None)
    return found


def _collect(
    files: Mapping[str, bytes], folder: Path, listed: Iterable[dict[str, Any]], roles: Mapping[str, str]
) -> list[dict[str, Any]]:
    """The added tokens of all files, each once: those of tokenizer.json in its order, then the others by id."""
    found: dict[str, dict[str, Any]] = {}
    names = ("added_tokens.json", "tokenizer_config.json")
    beside = [token for name in names for token in _entries(files, name, folder)]
    for token in [*listed, *sorted(beside, key=lambda token: token["id"])]:
        if not (text := token["content"]):  # the library ignores it
            continue
        is_special = bool(token.get("special")) or text in roles or looks_like_control(text)
        flags = {flag: bool(token.get(flag, flag == "normalized" and not is_special)) for flag in FLAGS}
        entry = {"id": token["id"], "content": text, **flags, "special": is_special}
        old = found.setdefault(text, entry)
        old["special"] |= is_special
        compared = ("id", *(flag for flag in FLAGS if flag in token and not old["special"]))
        if differing := [name for name in compared if entry[name] != old[name]]:
            raise UserError(
                f"{folder}: the files of the tokenizer give the added token {text!r} the {differing[0]} "
                f"{old[differing[0]]} and {entry[differing[0]]}. Write the same into all of them: that with which "
                "the model was trained."
            )
    return list(found.values())


def _entries(files: Mapping[str, bytes], name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """The added tokens of added_tokens.json or tokenizer_config.json."""
    content = parse_json(files, name, folder)
    if name == "added_tokens.json":
        yield from ({"id": i, "content": text} for text, i in content.items())
    else:
        yield from ({**token, "id": int(i)} for i, token in (content.get("added_tokens_decoder") or {}).items())


# --- with the tokenizers library --------------------------------------------------------------------------------------


@contextmanager
def refusals_named(where: Path | str, remedy: str = "download it again") -> Iterator[None]:
    """Turn what the tokenizers library raises, also the panics of its Rust code, into a UserError that names the file.

    A panic is a BaseException, which no ``except Exception`` catches; its class cannot be imported.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{where} is refused by the tokenizers library ({error}): {remedy}.") from error


class Library:
    """A tokenizer of the library that has the words among the added tokens, and no control token.

    Args:
        spec: the content of a ``tokenizer.json`` of type BPE or WordPiece; what adds, cuts or pads is ignored.
        added: its added tokens.
        path: the tokenizer's main file, for messages.
    """

    def __init__(self, spec: dict[str, Any], added: AddedTokens, path: Path) -> None:
        model, hidden = dict(spec["model"]), added.control
        # The library numbers added tokens itself, by the size of the vocabulary. So control tokens leave a name behind
        # that no document has: a random one.
        names = {text: f"{UNKNOWN} {secrets.token_hex(8)}" for text in hidden.keys() & model["vocab"].keys()}
        model["vocab"] = {names.get(text, text): i for text, i in model["vocab"].items()}
        unknown = names.get(model.get("unk_token"), model.get("unk_token"))
        if model.get("dropout"):
            raise UserError(
                f"{path}: dropout is {model['dropout']}, so the same text gets other ids each time. Set it to null."
            )
        model["unk_token"] = unknown if model["type"] == "WordPiece" or unknown in model["vocab"] else None
        if model["type"] == "BPE":
            n = len(model.get("continuing_subword_prefix") or "")
            pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or [])
            model["merges"] = [
                [a, b] for a, b in pairs if a not in hidden and b not in hidden and a + b[n:] not in hidden
            ]
        bare = {**spec, "version": "1.0", "model": model, "added_tokens": added.words}
        bare |= dict.fromkeys(("truncation", "padding", "post_processor"))
        for part in ("normalizer", "pre_tokenizer", "decoder"):
            bare.setdefault(part, None)
        with refusals_named(path):
            self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(bare))
        given = {self._tokenizer.token_to_id(token["content"]): token["id"] for token in added.words}
        self._stated = {number: i for number, i in given.items() if number != i}
        if self._stated.keys() & model["vocab"].values():
            raise UserError(f"{path}: ids are missing in the vocabulary, and there are added tokens: {REMEDY}")

        self._path = path

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        with refusals_named(self._path):  # some broken settings are noticed only here
            return self._as_stated(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_words(self, words: list[str]) -> tuple[list[int], list[int | None]]:
        """Ids of words, each encoded separately, and for each id the index of its word."""
        with refusals_named(self._path):
            encoding = self._tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
            return self._as_stated(encoding.ids), encoding.word_ids

    def _as_stated(self, ids: list[int]) -> list[int]:
        return [self._stated.get(i, i) for i in ids] if self._stated else ids

    def decode(self, ids: list[int]) -> str:
        """Text of ids of the vocabulary."""
        return self._tokenizer.decode(ids, skip_special_tokens=False)


class WordFinder:
    """Cuts a text at added words, as the tokenizers library does, for the kinds of tokenizers that it does not read.

    Args:
        normalizer: of a ``tokenizer.json``, for the words that are found in normalized text.
    """

    def __init__(self, words: list[dict[str, Any]], path: Path, normalizer: dict[str, Any] | None = None) -> None:
        self._ids = [-1, *(token["id"] for token in words)]  # by the library's own numbers
        model = {"type": "WordLevel", "vocab": {UNKNOWN: 0}, "unk_token": UNKNOWN}
        listed = [{**token, "id": number} for number, token in enumerate(words, start=1)]
        spec = {"version": "1.0", "model": model, "added_tokens": listed, "normalizer": normalizer}
        with refusals_named(path):
            self._finder = tokenizers.Tokenizer.from_str(json.dumps(spec)) if words else None

    def cut(self, text: str) -> Iterator[str | int]:
        """The parts of a text in order: ordinary text, and the ids of words."""
        if self._finder is None:
            yield text
            return
        found = self._finder.encode(text, add_special_tokens=False)
        for number, (start, end) in zip(found.ids, found.offsets, strict=True):
            yield self._ids[number] if number else text[start:end]
