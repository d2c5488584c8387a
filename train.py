"""Fine-tune a model: ``torchrun --nproc_per_node 8 train.py --model llama3_70b --task 20ng_joint --checkpoint DIR``,
or ``python train.py ...`` in a single process. ``--help`` lists the options; ``train/config.py`` defines them."""

from __future__ import annotations

import train.allocator  # noqa: F401  # before PyTorch is imported

# isort: split
import sys

from data.terminal import open_streams
from train import stopping
from train.config import DESCRIPTION, TrainConfig
from train.options import show_help

if __name__ == "__main__":
    open_streams()
    stopping.watch()
    show_help(TrainConfig, sys.argv[1:], DESCRIPTION)  # before the slow imports below

# isort: split
import logging

from train.checkpointing.base import with_moved_base
from train.checkpointing.run_folder import recover_checkpoints
from train.next_command import planned_command, scoring_advice
from train.parallel.distributed import run_guarded, set_up_logging, start
from train.planning.memory import count_parameters
from train.planning.plan import make_plan, settle_optimizer
from train.planning.report import describe
from train.resolve import load_config
from train.run_lock import held
from train.setup import open_run
from train.together import how_it_ended, require_same, skip_damaged
from train.trainer import Trainer

log = logging.getLogger("train")


def main() -> None:
    set_up_logging()
    config = load_config(sys.argv[1:])
    if config.plan.plan:
        plan = make_plan(config)
        log.info("%s", describe(plan))
        if not plan.fits:
            sys.exit(1)
        log.info("\nTo start it:\n  %s", planned_command(plan.job.ranks_per_node, plan.machines))
        return
    nothing = "No step was taken since this start, so there is nothing to save. The same command starts again."
    with held(config.checkpoint.output), stopping.saying(lambda: nothing):
        run(config)


def run(config: TrainConfig) -> None:
    recover_checkpoints(config.checkpoint.output)
    config = with_moved_base(config)
    setup = open_run(config)  # checks everything it can before the process group starts
    world = start(setup.device, setup.mesh_shape)
    require_same(config, setup)
    if ended := how_it_ended(config, setup):
        n_parameters = count_parameters(setup.spec, setup.model_config).total
        log.info("the run in %s has finished: %s\n%s", config.checkpoint.output, ended,
                 scoring_advice(config, setup.task, setup.total_steps, n_parameters, world.device))  # fmt: skip
        return
    setup = skip_damaged(config, setup)
    scorer = None
    if config.eval.eval_every:
        from eval.held_out import HeldOutScoring  # only here: seqeval takes a third of the start-up time

        scorer = HeldOutScoring(config, setup, world)
    Trainer(settle_optimizer(config, setup, world), setup, world, scorer).run()


if __name__ == "__main__":
    run_guarded(main, prints_result=False)
