"""What a start finds in its run folder, and whether it may go on there.

======================================  ==========================  ==============================================
in the run folder                       ``--resume off``            ``--resume on``, ``--resume auto``
======================================  ==========================  ==============================================
a checkpoint, whole or damaged          refused                     continues from the newest whole one
``best/``, no checkpoint                refused                     from step 1, if ``best/`` is of the same run
``export/``, no checkpoint              refused                     refused
leftovers of a start that was killed    from step 1                 from step 1
before its first checkpoint
nothing                                 from step 1                 auto: from step 1; on: refused, but not if
                                                                    torchrun may give the command again
======================================  ==========================  ==============================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files.documents import read_json, shaped
from data.tasks import Task
from train import options
from train.checkpointing import run_folder
from train.checkpointing.checkpoint import TRAINING_FILE, RunState, check_fits, keep_optimizer, steps_in, with_defaults
from train.config import TrainConfig
from train.launched import may_restart
from train.next_command import RESUME_SCRIPT, is_resume_script


def check_folder(config: TrainConfig, task: Task) -> None:
    """Check that the run may start or continue in its folder; see the table above.

    Raises:
        UserError: a start would lose something, or there is nothing to continue.
    """
    output, resume = config.checkpoint.output, config.checkpoint.resume
    best = output / "best"
    if steps_in(output / "checkpoints"):
        if resume == "off":
            raise UserError(
                f"output = {output} holds a run already. Continue it with --resume (with --resume auto one command "
                "starts and continues), or name another --output."
            )
    elif run_folder.is_export(output / "export"):
        raise UserError(
            f"output = {output} holds export/, but no checkpoint to continue from. Move it away, or name another "
            "--output."
        )
    elif run_folder.is_export(best):
        if resume == "off":
            raise UserError(
                f"output = {output} holds best/, the best model of a run that ended before its first checkpoint. "
                "Start the run again with --resume auto, or name another --output."
            )
        _check_fits_best(config, best, task)
    elif resume == "on" and not (left_by_a_start(output) or may_restart()):
        raise UserError(
            f"--resume: there is no checkpoint in {output / 'checkpoints'}, and no run was started there. Check "
            "--output. (--resume auto starts a run if there is none.)"
        )


def left_by_a_start(output: Path) -> bool:
    """Whether a run was started in this folder."""
    written = run_folder.has_run(output) or run_folder.has_config(output) or is_resume_script(output / RESUME_SCRIPT)
    return written or (output / "checkpoints").exists() or bool(run_folder.leftovers(output))


def _check_fits_best(config: TrainConfig, best: Path, task: Task) -> None:
    """The run that starts from step 1 will replace ``best/``: it must be that run's own."""
    path = best / TRAINING_FILE
    if not path.is_file():
        raise UserError(f"{best} is not of a run of this program: it has no {TRAINING_FILE}. Move it away.")
    stored: dict[str, Any] = shaped(read_json(path).get("options"), f"{path}: options", dict[str, Any])
    state = RunState(step=0, config=with_defaults(stored), identity={}, labels={}, best=None, world_size=1)
    check_fits(state, keep_optimizer(options.flatten(config), state), {}, best, task)
