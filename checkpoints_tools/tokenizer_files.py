"""The tokenizer files of a checkpoint folder: find them, copy them, or build them from a vocabulary and merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from checkpoints_tools.formats import is_meta_folder
from checkpoints_tools.json_files import write_json
from data.errors import UserError
from data.files.listing import files_found
from data.rank_file import LLAMA3_SPLIT
from data.tokenizer_files import read_files

# Each of these is a tokenizer.
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
# Files that are copied with a tokenizer.
COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
# What to do about a folder that has lost a file of its tokenizer.
RESTORE = "Restore tokenizer_config.json, for example from the folder that this one was copied from."


def _gpt2() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def _single_digits() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]


def _llama3() -> list[pre_tokenizers.PreTokenizer]:
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    return [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


# llama.cpp's name (tokenizer.ggml.pre) of a rule that splits text before merging -> the rule
PRE_TOKENIZERS = {
    "gpt-2": _gpt2,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
}
# With these a piece that is in the vocabulary becomes one token without merging, as in tiktoken.
IGNORE_MERGES = ("llama-bpe", "llama3", "llama-v3")


def tokenizer_folder(folder: Path) -> Path:
    """The folder of a checkpoint's tokenizer: the same, or the one above it (as in Meta's download of Llama 2)."""
    if is_meta_folder(folder) and not any((folder / name).is_file() for name in TOKENIZERS):
        return folder.parent if any((folder.parent / name).is_file() for name in TOKENIZERS) else folder
    return folder


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy a tokenizer (one file, or all tokenizer files of a folder) into a folder.

    Raises:
        UserError: no tokenizer in ``source``, or a file that cannot be read or is a Git LFS pointer.
    """
    if source.is_file():
        if source.name not in TOKENIZERS:
            raise UserError(f"{source} is not a tokenizer file; known names: {', '.join(TOKENIZERS)}")
        files = read_files(source.parent, [source.name])
    else:
        files = read_files(source, TOKENIZERS + COMPANIONS)
        if not files.keys() & set(TOKENIZERS):
            raise UserError(
                f"{source} has no tokenizer ({' or '.join(TOKENIZERS)}); name another folder with --tokenizer. "
                f"Found: {files_found(source)}."
            )
    for name, content in files.items():
        (folder / name).write_bytes(content)


def byte_level_tokenizer(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    pre: str,
    added: list[AddedToken],
    bos: str | None = None,
) -> Tokenizer:
    """Build a byte-level BPE tokenizer.

    Args:
        vocab: token, written in GPT-2's printable alphabet for bytes → id.
        merges: in order of priority.
        pre: key into `PRE_TOKENIZERS`.
        added: special and other tokens that are never split; all of them are in ``vocab``.
        bos: token to add before every text that is encoded with special tokens.
    """
    tokenizer = Tokenizer(models.BPE(vocab, merges, ignore_merges=pre in IGNORE_MERGES))
    parts = PRE_TOKENIZERS[pre]()
    tokenizer.pre_tokenizer = parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    if bos is None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, vocab[bos])]
        )
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    return tokenizer


def write_tokenizer_files(
    folder: Path, tokenizer: Tokenizer, named: dict[str, str], max_length: int, chat_template: str | None
) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, if there is a template, ``chat_template.jinja``.

    Args:
        named: ``bos_token``, ``eos_token``, ``unk_token``, ``pad_token`` → the token's text.
        max_length: context length, for ``model_max_length``.
        chat_template: Jinja source; written to both places, because older readers know only ``tokenizer_config.json``.
    """
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # an OSError on a full disk
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        **named,
    }
    if chat_template:
        config["chat_template"] = chat_template
        (folder / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)
