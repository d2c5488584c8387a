"""Read the files of a tokenizer; shared by decoders and encoders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from data.errors import UserError
from data.files import limits
from data.files.documents import parse_json as parse_document
from data.files.documents import read_bytes, readable, shaped

_Id = Annotated[int, msgspec.Meta(ge=0, lt=limits.TOKENS)]
_Ids = Annotated[dict[str, _Id], msgspec.Meta(max_length=limits.TOKENS)]
_Merge = Annotated[str, msgspec.Meta(pattern=" ")]  # of two tokens with a space between them
_IdText = Annotated[str, msgspec.Meta(pattern="^[0-9]{1,9}$")]


class _Content(msgspec.Struct):
    """A special token with its flags."""

    content: str = ""


class _Added(msgspec.Struct):
    """An added token; without an id where that is its key."""

    content: str
    special: bool = False
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


class _AddedWithId(_Added, kw_only=True):
    id: _Id


class _SpecialTokens(msgspec.Struct):
    bos_token: str | _Content | None = None
    eos_token: str | _Content | None = None
    unk_token: str | _Content | None = None
    sep_token: str | _Content | None = None
    pad_token: str | _Content | None = None
    cls_token: str | _Content | None = None
    mask_token: str | _Content | None = None
    additional_special_tokens: list[str | _Content] | None = None
    extra_special_tokens: list[str | _Content] | dict[str, str | _Content] | None = None


class _Template(msgspec.Struct):
    name: str = ""
    template: str = ""


class _Config(_SpecialTokens):
    chat_template: str | list[_Template] | None = None
    added_tokens_decoder: dict[_IdText, _Added] | None = None


class _Step(msgspec.Struct):
    """A normalizer, pre-tokenizer or decoder."""

    type: str
    normalizers: list[_Step] = []
    pretokenizers: list[_Step] = []
    decoders: list[_Step] = []


class _Model(msgspec.Struct):
    vocab: _Ids | list[Any]  # a list: of Unigram, which is refused by its type
    type: str = ""
    unk_token: str | None = None
    continuing_subword_prefix: str | None = None
    merges: list[_Merge | tuple[str, str]] = []


class _Tokenizer(msgspec.Struct):
    model: _Model
    added_tokens: list[_AddedWithId] | None = None
    normalizer: _Step | None = None
    pre_tokenizer: _Step | None = None
    decoder: _Step | None = None


# What is used of each file.
_SHAPES: dict[str, Any] = {
    "tokenizer.json": _Tokenizer,
    "vocab.json": _Ids,
    "tokenizer_config.json": _Config,
    "special_tokens_map.json": _SpecialTokens,
    "added_tokens.json": _Ids,
}


def read_files(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The contents of the named files that exist in the folder, by name.

    Raises:
        UserError: one of them cannot be read, is too large, or is a Git LFS pointer.
    """
    files = {}
    with readable(folder):
        for name in names:
            if (folder / name).is_file():
                limit = limits.DOCUMENT_BYTES if name.endswith(".json") else limits.VOCABULARY_BYTES
                files[name] = read_bytes(folder / name, limit)
    for name, content in files.items():
        if content.startswith(b"version https://git-lfs"):
            raise damaged(folder / name, "a Git LFS pointer, not the file itself (`git lfs pull` fetches it)")
    return files


def damaged(path: Path, what: str) -> UserError:
    """The error for an unusable tokenizer file; ``what`` says why."""
    return UserError(f"{path} ({path.stat().st_size:,} bytes) is {what}: download it again.")


def parse_json(files: Mapping[str, bytes], name: str, folder: Path | None = None) -> dict[str, Any]:
    """A JSON file's value, checked for what is used of it; ``{}`` if the file is missing.

    Args:
        folder: where it was read, for messages.

    Raises:
        UserError: not JSON, or a wrong type.
    """
    if name not in files:
        return {}
    where = str(folder / name) if folder else f"{name} of the tokenizer"
    found = parse_document(files[name], where, dict[str, Any])
    shaped(found, where, _SHAPES[name])
    return found


def token_text(token: str | dict[str, Any] | None) -> str:
    """The text of a token as Hugging Face configs write it: a string, or a dict with flags."""
    return token.get("content", "") if isinstance(token, dict) else token or ""
