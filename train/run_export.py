"""The model of a run as a Hugging Face folder, with its task, its prompt, a model card and the run's options."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from checkpoints_tools.checksums import read_checksums, sums_of
from checkpoints_tools.export import export_hf
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.json_files import write_json
from checkpoints_tools.writer import staged_folder
from data.encoder.samples import output_labels
from data.errors import UserError
from data.files.documents import read_json
from train import options
from train.best import read_best
from train.checkpointing import run_folder
from train.checkpointing.checkpoint import TRAINING_FILE, Training
from train.config import TrainConfig
from train.errors import RunStopped
from train.model_card import model_card
from train.scorer import Calibrated
from train.setup import MACHINE_OPTIONS, Setup
from train.training_data import longest_input

log = logging.getLogger(__name__)


def export_best(best: Path, folder: Path, dtype: str) -> None:
    """Make ``folder`` a copy of ``best``, the best model of the run, as `export_run` has written it. Collective.

    Args:
        dtype: of ``--export_dtype``. A note says if ``best`` has another one.

    Raises:
        RunStopped: there is no such model any more, or its files are damaged.
    """
    problem: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            _copy(best, folder, dtype)
        except UserError as error:
            problem = [str(error)]
    dist.broadcast_object_list(problem, src=0)
    if problem[0] is not None:
        raise RunStopped(f"the best model was not exported: {problem[0]}")


def _copy(best: Path, folder: Path, dtype: str) -> None:
    found = read_best(best)
    if found is None:
        raise UserError(
            f"{best} does not exist. The newest checkpoint in {best.parent / 'checkpoints'} is the last model."
        )
    new, sums = run_folder.new_folder(folder), read_checksums(best)  # none: older code wrote it
    run_folder.discard(new, ours=True)
    with staged_folder(new) as staging:
        for path in best.iterdir():  # what a user has put there stays there
            if path.name in sums or path.name == "README.md" or (not sums and path.is_file()):
                shutil.copyfile(path, staging / path.name)
        bad = [name for name in sums if not (staging / name).is_file() or sums_of(staging / name) != sums[name]]
        if bad:
            raise UserError(f"{best} is damaged ({', '.join(bad)}).")
    run_folder.replace_export(folder)
    log.info("exported %s: the best model, of step %d (held-out score %.4f)", folder, found.step, found.score)
    if note := other_dtype(folder, dtype):
        log.warning("note:%s", note)


def _dtype_of(folder: Path) -> str | None:
    """The ``--export_dtype`` of an export; None if the file that says it is missing, damaged or of older code."""
    file = folder / TRAINING_FILE
    with suppress(UserError):
        return read_json(file, Training).options.get("export_dtype") if file.is_file() else None
    return None


def other_dtype(folder: Path, dtype: str) -> str:
    """What to say of an export that is not in ``dtype``, since it is a copy of the best model; empty if it is."""
    if (stored := _dtype_of(folder)) in (None, dtype):
        return ""
    return f" {folder} is in {stored}: the best model was saved before --export_dtype {dtype} was given."


def is_exported(config: TrainConfig) -> bool:
    """Whether ``export/`` is there and has the model that a run with these options exports at its end.

    With ``--patience`` that is a copy of ``best/``, whatever its ``--export_dtype``.
    """
    output = config.checkpoint.output
    if not (output / "export" / TRAINING_FILE).is_file():
        return False
    exported = read_best(output / "export")
    if config.eval.patience is None:
        return exported is None and _dtype_of(output / "export") == config.checkpoint.export_dtype
    return exported is not None and exported == (read_best(output / "best") or exported)


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
        setup.save_with_model(new)
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
