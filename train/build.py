"""The model as a run begins: sharded, with the weights of the checkpoint that it starts or continues from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from checkpoints_tools.load import load_pretrained
from train.checkpointing import checkpoint
from train.config import TrainConfig
from train.fit_heads import fit_heads
from train.optim.optimizer import OPTIMIZERS
from train.parallel.distributed import World
from train.parallel.parallelize import parallelize
from train.setup import Setup


def build_model(config: TrainConfig, setup: Setup, world: World) -> nn.Module:
    """Build the run's model and load its weights; with ``--fit_heads`` also fit the heads that a new run adds."""
    resume = setup.resume_from
    load: Callable[[nn.Module], object] | None = None
    fresh: list[str] = []  # parameters that the checkpoint to start from does not have
    if resume is not None:
        load = lambda model: checkpoint.load_model(resume, model)  # noqa: E731
    elif config.model.init == "pretrained":
        start_from = config.model.checkpoint
        assert start_from is not None, "options without a checkpoint are refused"
        load = lambda model: fresh.extend(  # noqa: E731
            load_pretrained(model, start_from, setup.spec, seed=config.train.seed)
        )
    stores_bf16 = OPTIMIZERS[config.optim.optim].weights == torch.bfloat16
    model = parallelize(
        lambda: setup.spec.build(setup.model_config),
        world.mesh,
        world.device,
        precision="bf16_weights" if stores_bf16 else config.train.precision,
        activation_checkpointing=config.train.activation_checkpointing,
        activation_offload=config.train.activation_offload,
        compile_blocks=config.train.compile,
        load=load,
        seed=config.train.seed,
    )
    if config.train.fit_heads and fresh:
        fit_heads(model, fresh, setup.samples, config.batch.row_length, config.train.seed)
    return model
