"""What a plan reads of a checkpoint folder: what a run would read, but weights and tokenizer need not be there."""

from __future__ import annotations

import logging
from pathlib import Path

from checkpoints_tools.formats import is_meta_folder
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.load import check_family
from checkpoints_tools.meta_pth import open_meta
from checkpoints_tools.registry import ModelConfig, ModelSpec, Tokenizer
from checkpoints_tools.tokenizer_files import tokenizer_folder
from data.errors import UserError

log = logging.getLogger(__name__)


def find_config(spec: ModelSpec, folder: Path | None) -> tuple[ModelConfig, str | None]:
    """The config that `checkpoints_tools.load.open_checkpoint` reads in ``folder``, or the preset's without one.

    A Hugging Face folder needs no weights for it. A folder of Meta's does: what ``params.json`` leaves out is in them.

    Returns:
        The config, and where it is the preset's a sentence that says so, else None.

    Raises:
        UserError: a checkpoint that is damaged or of another architecture; or there is none, and the preset has no
            config.
    """
    found: ModelConfig | None = None
    if folder is not None and (folder / "config.json").is_file():
        found = read_config(folder)
    elif folder is not None and is_meta_folder(folder) and any(folder.glob("consolidated.*.pth")):
        found = open_meta(folder).config
    if found is not None and folder is not None:
        check_family(found, spec, folder)
        return found, None
    where = f"{folder} holds no config.json and no checkpoint of Meta's"
    if spec.config is None:
        raise UserError(f"model = {spec.name} is whatever its folder holds, and {where}.")
    return spec.config, f"the model's numbers are the preset's: {where}"


def find_tokenizer(spec: ModelSpec, folder: Path | None) -> Tokenizer | None:
    """The tokenizer in ``folder``, a checkpoint's or nothing but a tokenizer's; None where there is none."""
    if folder is None or not folder.is_dir():
        return None
    try:
        return spec.architecture.load_tokenizer(tokenizer_folder(folder))
    except UserError as error:
        log.info("no tokenizer: %s", error)
        return None
