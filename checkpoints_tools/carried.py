"""Carry over what a checkpoint's ``config.json`` and ``generation_config.json`` say and this code does not use.

An export or a conversion writes what it knows. Everything else that the checkpoint said, such as its padding token, is
added, unless it contradicts what was written or how the model was trained.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints_tools.json_files import write_json
from data.files.documents import read_json

log = logging.getLogger(__name__)

CONFIG, GENERATION = "config.json", "generation_config.json"
# What is written under another key, is about the heads, which the task decides, or is about the files left behind.
REPLACED = frozenset(
    "architectures auto_map classifier_dropout dtype finetuning_task heads id2label label2id num_labels problem_type"
    " quantization_config rope_parameters rope_scaling rope_theta torch_dtype transformers_version _name_or_path"
    " _from_model_config".split()
)
# What is written only because transformers has these defaults: here the checkpoint is right.
DEFAULTS = frozenset(["initializer_range", "use_cache"])
# How to choose among tokens. A fine-tuned model is trained and scored to answer with the most probable one.
CHOICE = frozenset(
    "do_sample temperature top_k top_p top_h min_p typical_p epsilon_cutoff eta_cutoff penalty_alpha num_beams"
    " num_beam_groups num_return_sequences diversity_penalty length_penalty early_stopping repetition_penalty"
    " encoder_repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids"
    " forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens sequence_bias guidance_scale"
    " exponential_decay_length_penalty remove_invalid_values renormalize_logits watermarking_config".split()
)
# What a fine-tuned model has from its training alone: an export names the token that began its texts, if one did.
TRAINED = CHOICE | {"bos_token_id"}


@dataclass(frozen=True)
class Carried:
    """The contents of a checkpoint's two files; empty if it has none, as in Meta's format."""

    config: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)


def read_carried(folder: Path) -> Carried:
    """Read both files of a folder."""
    return Carried(*(read_json(folder / name) if (folder / name).is_file() else {} for name in (CONFIG, GENERATION)))


def carry_over(carried: Carried, folder: Path, vocab_size: int, trained: bool) -> None:
    """Add to the files in ``folder`` what the checkpoint says beyond them.

    Args:
        vocab_size: token ids beyond it are left out with a warning: transformers could not load the folder.
        trained: the model was fine-tuned since. Then it chooses the most probable token, and the checkpoint's other
            ends of an answer remain ends.
    """
    # Some checkpoints list the ends of an answer in config.json alone.
    ends_there = _as_list(carried.generation.get("eos_token_id")) or _as_list(carried.config.get("eos_token_id"))
    for name, found in ((CONFIG, carried.config), (GENERATION, carried.generation)):
        if not (found or ends_there) or not (folder / name).is_file():
            continue
        written = read_json(folder / name)
        if name == GENERATION and not trained:
            written.pop("do_sample", None)
        kept = {
            key: value
            for key, value in found.items()
            if (key not in written or key in DEFAULTS) and key not in REPLACED and not (trained and key in TRAINED)
        }
        if name == GENERATION and trained and "eos_token_id" in written:
            others = [i for i in ends_there if type(i) is int]
            ends = dict.fromkeys(_as_list(written["eos_token_id"]) + others)
            written["eos_token_id"] = list(ends) if len(ends) > 1 else next(iter(ends))
        write_json(folder / name, _with_known_tokens(written | kept, name, vocab_size))


def _with_known_tokens(contents: dict[str, Any], name: str, vocab_size: int) -> dict[str, Any]:
    """The contents of a file without the ids of tokens that the model does not have."""
    found = dict(contents)
    for key in [key for key in contents if key.endswith("_token_id")]:
        ids = _as_list(contents[key])
        known = [i for i in ids if type(i) is int and 0 <= i < vocab_size]
        if len(known) < len(ids):
            log.warning("warning: %s of the checkpoint: %s is %r, but the model has %d tokens; left out.",
                        name, key, contents[key], vocab_size)  # fmt: skip
            found[key] = known if len(known) > 1 else known[0] if known else None
    return found


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
