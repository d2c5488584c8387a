"""The checkpoint to score: the folders of its weights and tokenizer, and what they store about the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.checksums import CHECKSUMS, FileSums, check_small_files, read_checksums
from checkpoints_tools.file_hashes import WEIGHT_FILES, hash_files
from checkpoints_tools.formats import CALIBRATION_FILE, EXPORTS
from checkpoints_tools.heads import read_head_labels, read_max_length
from checkpoints_tools.load import check_family, open_checkpoint
from checkpoints_tools.registry import ModelSpec, get_model_spec
from checkpoints_tools.shapes import Layers, Positions, Vocabulary, Width
from checkpoints_tools.source import compare_tensors, expected_shapes, raise_problems
from data.decoder.fewshot import PROMPT_FILE
from data.errors import UserError
from data.files import limits
from data.files.documents import read_json, shaped
from data.task_file import TASK_FILE
from eval.encoder.task import from_label_sets
from model.llama_heads import HeadedConfig
from train.checkpointing.base import find_base
from train.checkpointing.checkpoint import RUN_FILE, TRAINING_FILE, read_state, what_is_missing
from train.checkpointing.run_folder import has_config
from train.planning.checkpoint import find_config


class _Numbers(msgspec.Struct):
    """What bounds the size of a stored model: it is built, without memory, before its tensors are compared."""

    dim: Width
    n_layers: Layers
    n_heads: Width
    ffn_dim: Width
    vocab_size: Vocabulary
    max_position: Positions
    head_dim: Annotated[int, msgspec.Meta(ge=0, le=limits.WIDTH)] = 0
    n_kv_heads: Width = 1


@dataclass(frozen=True)
class Weights:
    """Where the weights are.

    Attributes:
        path: the folder with the weights: a Hugging Face folder, or a training checkpoint.
        base: the Hugging Face folder with the tokenizer; for a training checkpoint, the one its run started from.
        is_training: ``path`` is a training checkpoint.
    """

    path: Path
    base: Path
    is_training: bool

    @property
    def name(self) -> str:
        """A name that distinguishes this folder from others: a run's export is named after the run."""
        parts = [part for part in self.path.resolve().parts if part not in ("checkpoints", "runs")]
        generic = self.is_training or parts[-1] in EXPORTS
        return "-".join(parts[-2:]) if generic else parts[-1]


def find_weights(folder: Path, needed: bool = True) -> Weights:
    """Detect the kind of checkpoint in a folder.

    Args:
        needed: weights and tokenizer will be loaded, so they must exist.

    Raises:
        UserError: an incomplete training checkpoint, or one without its tokenizer; a run folder: the message lists its
            checkpoints; or a file of the folder, or of the tokenizer's, differs from its checksums.
    """
    if (folder / RUN_FILE).is_file():
        missing = what_is_missing(folder) if needed else None
        if missing is not None:
            raise UserError(
                f"training checkpoint {folder} is incomplete or damaged ({missing}). Score another, or the export."
            )
        return Weights(folder, find_base(folder, needed), is_training=True)
    inside = [p for p in (folder / "export", folder / "best", *sorted(folder.glob("checkpoints/step_*"))) if p.is_dir()]
    if not (folder / "config.json").is_file() and (inside or has_config(folder)):
        listed = ", ".join(map(str, inside)) or "none yet"
        raise UserError(f"'{folder}' is a run folder. Give --checkpoint one of its checkpoints: {listed}.")
    check_small_files(folder)
    return Weights(folder, folder, is_training=False)


def trained_with(weights: Weights) -> dict[str, str] | None:
    """The optimizer that trained the weights, and why ``--optim auto`` chose it, if so. None if not recorded."""
    if weights.is_training:
        state = read_state(weights.path)
        options, reason = state.config, state.optim_reason
    elif (weights.path / TRAINING_FILE).is_file():
        found = read_json(weights.path / TRAINING_FILE)
        reason = found.get("optim_reason", "")
        if not isinstance(found.get("options"), dict):
            return None  # another program's file of this name
        options = found["options"]
    else:
        return None
    return {"optim": options.get("optim", ""), "optim_reason": reason}


def check_carries_task(weights: Weights, kind: str, new_prompt: bool) -> None:
    """Check that a checkpoint that was fine-tuned here still has its task, and a decoder its prompt.

    Without them another prompt would be built, and nobody would know why the model answers badly. Folders of older
    code, and of other programs, do not say that they were fine-tuned here, or never had the file.

    Args:
        new_prompt: the user asks for another prompt.

    Raises:
        UserError: a file is missing.
    """
    record = weights.path / (RUN_FILE if weights.is_training else TRAINING_FILE)
    if not record.is_file():
        return
    options = read_json(record).get("config" if weights.is_training else "options")
    if not isinstance(options, dict):  # another program's file of this name; `read_state` has checked ours
        return
    needed = [PROMPT_FILE] if kind == "decoder" and not new_prompt else []
    if "slot_answer" in options and not (kind == "decoder" and new_prompt):  # as old as this option
        needed.append(TASK_FILE)
    if missing := [name for name in needed if not (weights.path / name).is_file()]:
        files = " and ".join(missing)
        advice = " To score with a prompt that it was not trained on, give eval.py --new_prompt and --task."
        raise UserError(
            f"{weights.path} was fine-tuned here ({record.name} says so), but has no {files}: what it learned to "
            f"answer is not known. Restore {'it' if len(missing) == 1 else 'them'}, for example from the folder that "
            f"this one was copied from.{advice if kind == 'decoder' else ''}"
        )


def model_config(weights: Weights, spec: ModelSpec, needed: bool) -> tuple[ModelConfig, str | None]:
    """The model's config from the weights' folder; and if it is not there, a sentence that says what is assumed.

    Args:
        needed: the folder must be complete; otherwise the preset's config may replace a missing one.

    Raises:
        UserError: an incomplete folder, or one of another architecture.
    """
    if not weights.is_training:
        if not needed:
            return find_config(spec, weights.base)
        config = open_checkpoint(weights.base, spec).config
    else:
        state, where = read_state(weights.path), f"{weights.path / RUN_FILE}: identity.model_config"
        stored = state.identity["model_config"]
        shaped(stored, where, _Numbers)
        config = shaped(stored, where, get_model_spec(state.config["model"]).architecture.config_type)
        if needed:  # before memory for the model is allocated
            from torch.distributed.checkpoint.metadata import TensorStorageMetadata  # this takes a second

            from checkpoints_tools.sharded import read_metadata

            entries = read_metadata(weights.path).state_dict_metadata
            found = {
                name.removeprefix("model."): tuple(entry.size)
                for name, entry in entries.items()
                if name.startswith("model.") and isinstance(entry, TensorStorageMetadata)
            }
            raise_problems(str(weights.path), compare_tensors(found, expected_shapes(config), config.tie_embeddings))
    check_family(config, spec, weights.path)
    return config, None


def head_labels(weights: Weights, config: HeadedConfig) -> dict[str, list[str]]:
    """For each head, the labels of its outputs; empty if there are no heads."""
    if not config.heads:
        return {}
    if weights.is_training:
        labels = read_state(weights.path).labels
        if unlabelled := [head.name for head in config.heads if head.name not in labels]:
            raise UserError(f"{weights.path / RUN_FILE} is damaged: it has no labels for {', '.join(unlabelled)}.")
        return from_label_sets(config.heads, labels)
    return read_head_labels(weights.path / "config.json")


def trained_length(weights: Weights, config: HeadedConfig) -> int:
    """Maximum tokens of a document in an encoder's fine-tuning; if not recorded, the default of fine-tuning."""
    longest = architecture_of(config).longest_document
    if weights.is_training:
        trained = read_state(weights.path).config
        stored, row_length = trained["max_length"], trained["row_length"]
    else:
        path = weights.path / "config.json"  # missing only in a plan
        stored, row_length = read_max_length(path) if path.is_file() else None, longest
    return stored or min(longest, config.max_position, row_length)


def hash_weights(folder: Path) -> str:
    """A hash that tells a checkpoint's weights from others: of their checksums, which cover every byte and are compared
    with all that is read; or, if the folder has none, see `hash_files`."""
    weights = [path for path in folder.iterdir() if path.suffix in WEIGHT_FILES]
    sums = read_checksums(folder)
    if any(path.name not in sums for path in weights):
        return hash_files(weights)
    return hashlib.sha256(_listed({path.name: sums[path.name] for path in weights}).encode()).hexdigest()


def fingerprint(folder: Path) -> str:
    """A hash that tells a checkpoint's folder from others: of its files (see `hash_files`) and of their checksums.

    Neither model cards nor the calibration count, which can be written into any folder later.
    """
    sums = {name: own for name, own in read_checksums(folder).items() if name != CALIBRATION_FILE}
    later = (CALIBRATION_FILE, CHECKSUMS)
    files = hash_files(path for path in folder.iterdir() if path.suffix != ".md" and path.name not in later)
    return hashlib.sha256(f"{files}\n{_listed(sums)}".encode()).hexdigest()


def _listed(sums: Mapping[str, FileSums]) -> str:
    return "".join(f"{name} {own.bytes} {own.chunks}\n" for name, own in sorted(sums.items()))
