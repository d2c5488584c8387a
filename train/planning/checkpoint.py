"""Read a checkpoint's config and tokenizer for a plan: as in a run, but weights and tokenizer may be missing."""

from __future__ import annotations

import logging
from pathlib import Path

from checkpoints_tools.architectures import ModelConfig, Tokenizer, as_family
from checkpoints_tools.formats import is_meta_folder
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.load import check_family, refuse_meta
from checkpoints_tools.meta_pth import open_meta
from checkpoints_tools.registry import ModelSpec
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.errors import UserError

log = logging.getLogger(__name__)


def find_config(spec: ModelSpec, folder: Path | None) -> tuple[ModelConfig, str | None]:
    """The config that `checkpoints_tools.load.open_checkpoint` reads in ``folder``; without a checkpoint, the preset's.

    A Hugging Face folder needs no weights for this. A folder in Meta's format needs them for sizes that ``params.json``
    omits.

    Returns:
        The config; and a sentence if it is the preset's, otherwise None.

    Raises:
        UserError: the checkpoint is damaged or of another architecture; or it is missing and the preset has no config.
    """
    found: ModelConfig | None = None
    if folder is not None and (folder / "config.json").is_file():
        found = as_family(read_config(folder), spec.family)
    elif folder is not None and is_meta_folder(folder) and any(folder.glob("consolidated.*.pth")):
        refuse_meta(folder, spec)
        found = open_meta(folder).config
    if found is not None and folder is not None:
        check_family(found, spec, folder)
        return found, None
    where = "no checkpoint was given"
    if folder is not None:
        where = f"{folder} contains neither a config.json nor a checkpoint in Meta's format"
    if spec.config is None:
        raise UserError(f"model = {spec.name} takes its config from --checkpoint, but {where}.")
    return spec.config, f"the model's config is the preset's, because {where}"


def find_tokenizer(spec: ModelSpec, folder: Path | None) -> Tokenizer | None:
    """The tokenizer in ``folder``, which need not contain weights; None if there is no tokenizer."""
    if folder is None or not folder.is_dir():
        return None
    try:
        return spec.architecture.load_tokenizer(tokenizer_folder(folder))
    except UserError as error:
        log.info("no tokenizer: %s", error)
        return None
