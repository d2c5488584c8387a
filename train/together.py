"""What the ranks of a run settle together, before anything is loaded: equal options, whether there is anything left to
do, and an undamaged checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import time

import torch.distributed as dist

from checkpoints_tools.checksums import CHECKSUMS
from data.errors import UserError
from train import options
from train.checkpointing import checkpoint, run_folder
from train.config import TrainConfig
from train.run_export import is_exported, other_dtype
from train.setup import MACHINE_OPTIONS, Setup, find_checkpoint

log = logging.getLogger(__name__)


def require_same(config: TrainConfig, setup: Setup) -> None:
    """Check that all ranks have the same options, model, data and checkpoint to resume from. Collective.

    Every machine is started by a separate command and opens separate files.

    Raises:
        UserError: names the ranks that differ from rank 0, and the values.
    """
    mine = {name: value for name, value in options.flatten(config).items() if name not in MACHINE_OPTIONS}
    mine |= setup.identity | {"checkpoint to resume from": setup.resume_from and setup.resume_from.name}
    everyone: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyone, {name: str(value) for name, value in mine.items()})
    problems = []
    for name, value in everyone[0].items():
        others = {rank: theirs[name] for rank, theirs in enumerate(everyone) if theirs[name] != value}
        if others:
            ranks, found = ", ".join(map(str, others)), " or ".join(dict.fromkeys(others.values()))
            problems.append(f"{name}: rank 0 has {value}, rank(s) {ranks} have {found}")
    if problems:
        raise UserError(
            "the ranks were started differently. Start the same command, with the same files, on every machine.\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


def how_it_ended(config: TrainConfig, setup: Setup) -> str | None:
    """What ended the run, if ``--resume auto`` finds it with nothing left to train or export; else None. Collective.

    An export that was killed between its renames is finished first: it may be all that was left to do.
    """
    found, output = None, config.checkpoint.output
    if config.checkpoint.resume == "auto" and setup.resume_from is not None:
        if dist.get_rank() == 0:
            try:
                run_folder.clean(output)
            except OSError as error:  # a finished run needs nothing of it
                log.warning("note: what a killed export left in %s was not removed: %s", output, error)
        dist.barrier()
        state, patience = checkpoint.read_state(setup.resume_from), config.eval.patience
        if not state.unscored and (is_exported(config) or not config.checkpoint.export):
            if state.watched.ends(patience):
                found = f"it ended after step {state.step}, as --patience {patience} asks: {state.watched.why()}."
            elif state.step >= setup.total_steps:
                found = f"all {setup.total_steps} steps are taken."
        if found and config.checkpoint.export:
            found += other_dtype(output / "export", config.checkpoint.export_dtype)
    everyone = [found] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return found if all(everyone) else None


def skip_damaged(config: TrainConfig, setup: Setup) -> Setup:
    """Compare the checkpoint to resume from with its checksums; if it is damaged, take the newest one that is not.

    An older checkpoint is taken, not only offered, because a queue may restart the run while nobody looks. The log says
    which and why. It is checked before it is loaded, because a rank that finds damage while it
    loads would have changed its model already. Collective.

    Raises:
        UserError: no checkpoint is complete and undamaged.
    """
    while setup.resume_from is not None:
        start, folder = time.perf_counter(), setup.resume_from
        damage = checkpoint.damage_of(folder)
        if damage is None:
            if (folder / CHECKSUMS).is_file():
                log.info("%s agrees with its checksums (%.1f s)", folder, time.perf_counter() - start)
            else:
                log.info("note: %s has no checksums (older code wrote it), so damage would not be noticed.", folder)
            break
        log.warning("note: checkpoint %s is damaged (%s); skipping it.", folder, damage)
        setup = dataclasses.replace(
            setup, resume_from=find_checkpoint(config, setup.identity, setup.task, before=folder)
        )
        require_same(config, setup)
    return setup
