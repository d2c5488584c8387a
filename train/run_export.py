"""The model of a run as a Hugging Face folder, with its task, its prompt, a model card and the run's options."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from checkpoints_tools.export import export_hf
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.json_files import write_json
from data.encoder.samples import output_labels
from train import options
from train.checkpointing import run_folder
from train.checkpointing.checkpoint import TRAINING_FILE
from train.config import TrainConfig
from train.model_card import model_card
from train.scorer import Calibrated
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
    calibrated: Calibrated | None = None,
) -> None:
    """Write ``folder``, replacing that of an earlier step once it is on the disk. Collective.

    See `train/checkpointing/run_folder.py`.

    Args:
        step, figures: the steps taken and the last held-out figures, for the model card.
        about: contents of ``best.json``.
        calibrated: of this model.
    """

    def add(new: Path) -> None:
        setup.save_task(new)
        (new / "README.md").write_text(model_card(config, setup, step, figures), encoding="utf-8")
        given = {name: value for name, value in options.flatten(config).items() if name not in MACHINE_OPTIONS}
        given["task"] = setup.task.name  # task.json has its content
        write_json(
            new / TRAINING_FILE, {"options": given, "optim_reason": config.optim_reason, "identity": setup.identity}
        )
        if about is not None:
            write_json(new / "best.json", about)
        if calibrated is not None:
            calibrated.save(new)

    new, is_main = run_folder.new_folder(folder), dist.get_rank() == 0
    if is_main:
        run_folder.discard(new, ours=True)
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
        add=add,
    )
    if is_main:
        run_folder.replace_export(folder)
        log.info("exported %s", folder)
    dist.barrier()
