"""The model as a run begins: sharded, with the weights of the checkpoint that it starts or continues from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from checkpoints_tools.load import load_pretrained
from checkpoints_tools.output_rows import rows_of_labels
from data.encoder.read_twice import TwiceTokenizer
from data.errors import UserError
from model.llama_heads import HeadedLlamaConfig
from train.checkpointing import tensors
from train.config import TrainConfig
from train.finite import require_finite_start
from train.fit_heads import fit_heads, fittable
from train.optim.formats import OPTIMIZERS
from train.parallel.distributed import World
from train.parallel.parallelize import parallelize
from train.setup import Setup

log = logging.getLogger(__name__)


def build_model(config: TrainConfig, setup: Setup, world: World) -> tuple[nn.Module, bool]:
    """Build the run's model and load its weights; with ``--fit_heads`` also fit the heads that a new run adds.

    Returns:
        The model, and whether heads were fitted.

    Raises:
        NotFinite: the weights to start from are NaN or infinite.
        UserError: the run takes no step, and the model has no new heads to fit, or others that would stay random.
    """
    resume, start_from = setup.resume_from, cast(Path, config.model.checkpoint)  # one is always named
    load: Callable[[nn.Module], object] | None = None
    fresh: list[str] = []  # parameters that the checkpoint to start from does not have
    if resume is not None:
        load = lambda model: tensors.load_model(resume, model)  # noqa: E731
    elif config.model.init == "pretrained":
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
    if resume is None and load is not None:
        require_finite_start(model, world.device, start_from)
    if resume is not None or not config.train.fit_heads:
        return model, False
    fields, random = fittable(model, fresh)
    if not setup.total_steps and (random or not fields):
        what = (
            f"the new heads of {', '.join(random)} are not that. Give some steps, or --head linear or mean."
            if random
            else "the checkpoint's heads are not new. Give some steps, or the checkpoint from before its fine-tuning."
        )
        raise UserError(f"--steps 0 trains new heads of one linear layer and nothing else; {what}")
    if fields:
        names = _names(setup, start_from, fields)
        fit_heads(model, fields, setup.samples, config.batch.row_length, config.train.seed, names)
    elif fresh:
        log.info("note: --fit_heads fits new heads of one linear layer; those of %s are not.", ", ".join(random))
    return model, bool(fields)


def _names(setup: Setup, folder: Path, fields: list[str]) -> dict[str, Tensor]:
    """By field, what the labels' names are to a decoder with heads; nothing for token fields and encoders."""
    if not isinstance(setup.tokenizer, TwiceTokenizer):
        return {}
    heads = cast(HeadedLlamaConfig, setup.model_config).heads
    asked = {head.name: setup.labels[head.name] for head in heads if head.of_documents and head.name in fields}
    return rows_of_labels(folder, setup.tokenizer, asked)


def describe_run(config: TrainConfig, setup: Setup, world: World, model: nn.Module) -> str:
    """One line for the log: the model, the ranks, and how much is trained."""
    n_parameters, batch = sum(p.numel() for p in model.parameters()), config.batch
    epochs = setup.total_steps * batch.batch_size / setup.loader.units_per_epoch
    return (
        f"{setup.spec.name}, {n_parameters:,} parameters, on {world.size} x {world.device.type} "
        f"({world.shape.describe()}); {setup.total_steps} steps of {batch.batch_size} {batch.batch_unit}, "
        f"{epochs:.2f} epochs"
    )
