"""The model of a run as a Hugging Face folder, with its task, its prompt, a model card and the run's options."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from checkpoints_tools.checksums import read_checksums, write_checksums
from checkpoints_tools.export import export_hf
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.json_files import write_json
from data.encoder.samples import output_labels
from train import options
from train.checkpointing.checkpoint import TRAINING_FILE
from train.config import TrainConfig
from train.model_card import model_card
from train.setup import MACHINE_OPTIONS, Setup, longest_input

log = logging.getLogger(__name__)


def export_run(
    model: nn.Module,
    config: TrainConfig,
    setup: Setup,
    folder: Path,
    step: int,
    figures: dict[str, float] | None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write ``folder``, replacing that of an earlier step. Collective.

    Args:
        step, figures: the steps taken and the last held-out figures, for the model card.
        about: contents of ``best.json``.
    """
    new, is_main = folder.parent / f".{folder.name}.new", dist.get_rank() == 0
    if is_main:
        shutil.rmtree(new, ignore_errors=True)
    dist.barrier()
    export_hf(
        model,
        setup.model_config,
        setup.tokenizer,
        new,
        DTYPES[config.checkpoint.export_dtype],
        setup.prompt_spec,
        labels=output_labels(setup.task),
        max_length=longest_input(config, setup.model_config),
        carried=setup.carried,
    )
    if is_main:
        setup.save_task(new)
        (new / "README.md").write_text(model_card(config, setup, step, figures), encoding="utf-8")
        given = {name: value for name, value in options.flatten(config).items() if name not in MACHINE_OPTIONS}
        given["task"] = setup.task.name  # task.json has its content
        write_json(new / TRAINING_FILE, {"options": given, "optim_reason": config.optim_reason})
        if about is not None:
            write_json(new / "best.json", about)
        write_checksums(new, known=read_checksums(new))  # of the files that are new since export_hf
        shutil.rmtree(folder, ignore_errors=True)
        new.rename(folder)
        log.info("exported %s", folder)
    dist.barrier()
