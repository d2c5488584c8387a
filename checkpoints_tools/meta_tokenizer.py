"""Copy the ``tokenizer.model`` of Meta's downloads and write the ``tokenizer.json`` that transformers and vLLM read.

Llama 2's is a SentencePiece model, Llama 3's is tiktoken's text file of ranks. Both give each token a score or a rank,
which decides the order of merges; a ``tokenizer.json`` lists the merges in order. So every way to split a token into
two tokens becomes a merge, in the order of the tokens' scores or ranks. The algorithm is then the same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from checkpoints_tools.tokenizer_files import byte_level_tokenizer, copy_tokenizer, write_tokenizer_files
from data import sentencepiece_model
from data.added_tokens import refusals_named
from data.errors import UserError
from data.files import limits
from data.files.documents import read_bytes
from data.rank_file import is_rank_file, llama3_special_tokens, read_ranks

Piece = TypeVar("Piece", str, bytes)

log = logging.getLogger(__name__)

REMEDY = "name the folder of a tokenizer.json with --tokenizer"
# The settings of a SentencePiece model that `sentencepiece_tokenizer` can write.
LLAMA2 = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalizes": False,
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "escape_whitespaces": True,
    "treat_whitespace_as_suffix": False,
    "bos piece": "<s>",
    "eos piece": "</s>",
    "unk piece": "<unk>",
    "user-defined pieces": 0,
}


def write_meta_tokenizer(source: Path, folder: Path, max_length: int) -> None:
    """Copy ``tokenizer.model`` and write ``tokenizer.json`` and ``tokenizer_config.json`` beside it.

    Raises:
        UserError: no ``tokenizer.model`` in ``source`` or in the folder above it (as in Llama 2's download).
    """
    found = [place / "tokenizer.model" for place in (source, source.parent) if (place / "tokenizer.model").is_file()]
    if not found:
        raise UserError(f"no tokenizer.model in {source} or the folder above it; name one with --tokenizer")
    copy_tokenizer(found[0], folder)
    write_tokenizer_json(folder, max_length, origin=found[0])


def write_tokenizer_json(
    folder: Path, max_length: int, eos: int | None = None, origin: Path | str | None = None, remedy: str = REMEDY
) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` for the ``tokenizer.model`` in a folder.

    A ``tokenizer_config.json`` that the folder has is kept.

    Args:
        eos: the token that ends a text; None: that of the family's chat models.
        origin: the file that messages name; None: the one in the folder, which may be only for now.
        remedy: what messages say to do.

    Raises:
        UserError: a SentencePiece model with other settings than Llama 2's: its ids would be others.
    """
    model = folder / "tokenizer.model"
    content, origin = read_bytes(model, limits.VOCABULARY_BYTES), origin or model
    with refusals_named(origin, remedy):
        if not is_rank_file(content):
            named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
            tokenizer = sentencepiece_tokenizer(model, origin, remedy)
        else:
            named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
            ranks = read_ranks(content, model)
            _check_lengths(origin, ranks)
            tokenizer = llama3_tokenizer(ranks)
    if eos is not None:
        named["eos_token"] = cast(str, tokenizer.id_to_token(eos))
    if (folder / "tokenizer_config.json").exists():
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")  # see tokenizer_files
    else:
        write_tokenizer_files(folder, tokenizer, named, max_length, chat_template=None)


def complete_tokenizer(
    folder: Path, max_length: int, eos: int | None = None, origin: Path | str | None = None, remedy: str = REMEDY
) -> None:
    """Write the ``tokenizer.json`` that a folder with a ``tokenizer.model`` lacks; log a warning if it cannot be.

    transformers cannot read Meta's file of ranks, and of a SentencePiece model it makes another order of merges: runs
    of spaces get other tokens. A file of ranks whose tokens a ``tokenizer_config.json`` names is left as it is.

    Args: see `write_tokenizer_json`.
    """
    names, model = {path.name for path in folder.iterdir()}, folder / "tokenizer.model"
    if "tokenizer.model" not in names or "tokenizer.json" in names:
        return
    if "tokenizer_config.json" in names and is_rank_file(read_bytes(model, limits.VOCABULARY_BYTES)):
        return
    try:
        write_tokenizer_json(folder, max_length, eos, origin, remedy)
    except UserError as error:  # no reason to lose what was made
        log.warning("warning: the new folder has no tokenizer.json; transformers may give other ids: %s", error)


def _check_lengths(path: Path | str, tokens: Iterable[str | bytes]) -> None:
    longest = max(map(len, tokens), default=0)
    if longest > limits.TOKEN_BYTES:
        raise UserError(f"{path} has a token of length {longest:,}; the limit is {limits.TOKEN_BYTES}.")


def all_merges(pieces: Iterable[Piece], known: dict[Piece, int], order: Callable[[Any], Any]) -> list[tuple]:
    """Every split of every piece into two known pieces, in the order of ``pieces``, then by the sort key ``order``."""
    merges = []
    for piece in pieces:
        cuts = ((piece[:i], piece[i:]) for i in range(1, len(piece)))
        merges += sorted((cut for cut in cuts if cut[0] in known and cut[1] in known), key=order)
    return merges


def llama3_tokenizer(ranks: dict[bytes, int]) -> Tokenizer:
    """Llama 3's tokenizer from its rank file."""
    letters = byte_alphabet()
    spell = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = all_merges(sorted(ranks, key=ranks.__getitem__), ranks, lambda cut: (ranks[cut[0]], ranks[cut[1]]))
    special = llama3_special_tokens()
    vocab = {spell[token]: rank for token, rank in ranks.items()}
    vocab |= {name: len(ranks) + i for i, name in enumerate(special)}
    return byte_level_tokenizer(
        vocab,
        [(spell[a], spell[b]) for a, b in merges],
        "llama-bpe",
        [AddedToken(name, special=True, normalized=False) for name in special],
        bos=special[0],
    )


def byte_alphabet() -> list[str]:
    """GPT-2's character for each byte: the same in Latin-1 if that is printable, else the next one from U+0100."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def piece_of(model: sentencepiece.SentencePieceProcessor, role: str) -> str | None:
    """The piece with a role, None if there is none."""
    i = getattr(model, f"{role}_id")()
    return model.id_to_piece(i) if i >= 0 else None


def sentencepiece_tokenizer(path: Path, origin: Path | str, remedy: str) -> Tokenizer:
    """Llama 2's tokenizer: SentencePiece BPE with byte fallback and a space added before the text."""
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        pieces = [model.id_to_piece(i) for i in range(model.vocab_size())]
    except Exception as error:  # of the library
        raise UserError(f"{origin} is neither a rank file nor a SentencePiece model ({error})") from None
    _check_lengths(origin, pieces)
    content = read_bytes(path, limits.VOCABULARY_BYTES)
    settings = dataclasses.asdict(sentencepiece_model.read_settings(content))
    named = {f"{role} piece": piece_of(model, role) for role in ("bos", "eos", "unk")}
    defined = {"user-defined pieces": sentencepiece_model.piece_types(content).count(sentencepiece_model.USER_DEFINED)}
    for name, value in (settings | named | defined).items():
        if value != LLAMA2[name]:
            raise UserError(
                f"{origin}: {name} is {value!r}. A tokenizer.json can only be written for {LLAMA2[name]!r}, as in "
                f"Llama 2's model: {remedy}."
            )
    vocab = {piece: i for i, piece in enumerate(pieces)}
    control = [i for i in range(len(pieces)) if model.is_control(i) or model.is_unknown(i)]
    ordinary = [i for i in range(len(pieces)) if i not in control and not model.is_byte(i)]
    # Runs of spaces all have the lowest score; the longer run is merged first.
    ordinary.sort(key=lambda i: (-model.get_score(i), -len(pieces[i]), i))
    merges = all_merges((pieces[i] for i in ordinary), vocab, lambda cut: (-len(cut[0]), vocab[cut[0]]))
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token=pieces[model.unk_id()], fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bos = pieces[model.bos_id()]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, model.bos_id())]
    )
    tokenizer.add_special_tokens([AddedToken(pieces[i], special=True, normalized=False) for i in control])
    return tokenizer
