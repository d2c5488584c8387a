"""``train.py --plan``: the memory and time of a run, before anything is downloaded, loaded or started.

No GPU and no weights are needed. The checkpoint's config and tokenizer and the task's data are read as the run reads
them. What is missing is assumed, and the plan lists what it assumes. `train.planning.memory` counts bytes and
`train.planning.advice` chooses settings. This file connects both to the options and estimates the time.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
import torch.distributed as dist

from checkpoints_tools.architectures import ModelConfig, Tokenizer
from checkpoints_tools.load import check_fits_preset
from checkpoints_tools.registry import ModelSpec, get_model_spec
from data.errors import UserError
from data.example import Example
from data.loader import Samples, StepLoader
from data.source import load_examples
from data.tasks import Task, get_task
from train import options
from train.checkpointing.checkpoint import read_state
from train.config import TrainConfig
from train.launched import launched
from train.optim.formats import OPTIMIZERS, is_fused
from train.parallel.distributed import World
from train.parallel.mesh import MeshShape, lay_out, lay_out_world
from train.planning.advice import Job, check_enough, choose_optimizer
from train.planning.checkpoint import find_config, find_tokenizer
from train.planning.hardware import GIB, GPUS, MIN_BLOCK_SECONDS, UPDATE_BYTES, Gpu, usable
from train.planning.memory import Pass, Settings, count_parameters
from train.planning.workload import RankPass, Workload, assume_samples, count_workload, pass_flops
from train.resolve import choose_optim
from train.setup import Setup, config_for_task
from train.training_data import build_loader, count_steps, divide, longest_input, prepare_samples

log = logging.getLogger(__name__)

COMPUTE = {"bf16": torch.bfloat16, "fp32": torch.float32}
MACHINE_GPUS = 8  # of a machine, for a plan outside torchrun


@dataclass(frozen=True)
class TrainPlan:
    """The result of ``--plan``.

    Attributes:
        why_optim: why ``--optim auto`` chose its optimizer; None if the user named one.
        lengths: tokens of every training sample, prefix included.
        assumed: one sentence per assumption.
    """

    config: TrainConfig
    spec: ModelSpec
    gpu: Gpu
    machines: int
    job: Job
    why_optim: str | None
    work: Workload
    lengths: np.ndarray
    assumed: list[str]

    @property
    def fits(self) -> bool:
        return self.job.fits(self.gpu.memory)


def make_plan(config: TrainConfig) -> TrainPlan:
    """Resolve the options and count the work; no weights, no process group.

    Raises:
        UserError: what a run would refuse, except missing files; a mesh that does not divide.
    """
    gpu = GPUS[config.plan.gpu]
    machines, mesh = _lay_out(config)
    spec = get_model_spec(config.model.model)
    task = get_task(config.data.task, config.data.joint_order, config.data.slot_answer, config.data.slot_tags)
    assumed: list[str] = []
    model_config, tokenizer = _open_model(config, spec, task, assumed)
    samples = _samples(config, spec, model_config, task, tokenizer, assumed)
    loader = build_loader(config, samples, rank=0, world_size=mesh.n_data)
    total = count_steps(config, loader)
    work = count_workload(loader, model_config, total)
    job = make_job(config, spec, model_config, mesh, mesh.n_ranks // machines, loader)
    why = None
    if config.optim.optim == "auto":
        name, why = choose_optimizer(job, gpu.memory)
        job = job.with_optim(name)
    return TrainPlan(config, spec, gpu, machines, job, why, work, samples.costs + len(samples.prefix), assumed)


def _lay_out(config: TrainConfig) -> tuple[int, MeshShape]:
    """The number of machines, and the mesh: those that torchrun started, or as many GPUs as the options say."""
    place, parallel, n_gpus = launched(), config.parallel, config.plan.gpus
    if n_gpus is None and place.size > 1:
        return place.machines, lay_out_world(tp=parallel.tp, sharding=parallel.sharding, nodes=parallel.nodes)
    n_gpus = n_gpus or MACHINE_GPUS
    machines = max(1, n_gpus // MACHINE_GPUS)
    if n_gpus % machines:
        raise UserError(
            f"--gpus {n_gpus}: they do not divide evenly into {machines} machines. Plan with a multiple of "
            f"{MACHINE_GPUS}."
        )
    per_node = n_gpus // machines
    return machines, lay_out(
        n_gpus, tp=parallel.tp, sharding=parallel.sharding, nodes=parallel.nodes, per_node=per_node
    )


def make_job(
    config: TrainConfig,
    spec: ModelSpec,
    model_config: ModelConfig,
    mesh: MeshShape,
    ranks_per_node: int,
    loader: StepLoader,
) -> Job:
    """Describe a run for `train.planning.advice`; ``--optim auto`` is taken as "adamw"."""
    values = options.flatten(config)
    optim = "adamw" if values["optim"] == "auto" else values["optim"]
    settings = Settings(
        OPTIMIZERS[optim],
        compute=COMPUTE[values["precision"]],
        activation_checkpointing=values["activation_checkpointing"],
        activation_offload=values["activation_offload"],
        offload_states=values["offload_states"],
    )
    rows, length = loader.worst_rows()
    outputs = int(sum(loader.samples.label_lengths[row].sum() for row in rows))
    return Job(
        config=model_config,
        sizes=count_parameters(spec, model_config),
        mesh=mesh,
        ranks_per_node=ranks_per_node,
        optim=optim,
        settings=settings,
        work=Pass(len(rows) * length, outputs, loader.accumulates),
        n_rows=len(rows),
        row_length=values["row_length"],
        background_save=values["async_save"] != "off",
    )


def _open_model(
    config: TrainConfig, spec: ModelSpec, task: Task, assumed: list[str]
) -> tuple[ModelConfig, Tokenizer | None]:
    """Config of the model that the run would train, and its tokenizer if there is one."""
    folder = config.model.checkpoint
    tokenizer = find_tokenizer(spec, folder)
    if config.model.init == "random":
        assert spec.config is not None, "find_problems allows random weights for presets only"
        found = spec.config if tokenizer is None else replace(spec.config, vocab_size=tokenizer.vocab_size)
    else:
        found, assumption = find_config(spec, folder)
        if assumption is not None:
            assumed.append(assumption)
        elif tokenizer is not None and folder is not None:
            check_fits_preset(found, tokenizer, spec, folder, config.model.allow_mismatch)
    return config_for_task(found, spec, task, config), tokenizer


def _samples(
    config: TrainConfig,
    spec: ModelSpec,
    model_config: ModelConfig,
    task: Task,
    tokenizer: Tokenizer | None,
    assumed: list[str],
) -> Samples:
    """The task's own samples; assumed ones if data or tokenizer are missing."""
    examples: list[Example] | None = None
    missing: list[str] = []
    shots: list[Example] = []
    if tokenizer is None:
        missing.append(f"no tokenizer in {config.model.checkpoint}")
    try:
        examples = load_examples(task, "train", config.data.data)
    except UserError:
        if config.data.data is not None:  # named by the user, but missing or unreadable
            raise
        missing.append(f"no data of {task.dataset}")
    if examples is not None:
        _, shots, examples = divide(examples, task, config)
    if tokenizer is not None and examples is not None:
        return prepare_samples(config, spec, model_config, task, tokenizer, examples, shots)[0]
    longest = longest_input(config, model_config)
    samples, description = assume_samples(
        task, model_config, config.data.shots or len(config.data.shot_ids), longest, examples
    )
    assumed.append(f"samples ({' and '.join(missing)}): {description}")
    return cast(Samples, samples)  # they have lengths only, which is all that a plan needs


def settle_optimizer(config: TrainConfig, setup: Setup, world: World) -> TrainConfig:
    """Resolve ``--optim auto`` before anything loads, and refuse a run that cannot fit.

    All ranks decide from the smallest GPU's memory, so they decide alike. A resumed run keeps its optimizer.

    Raises:
        UserError: too few GPUs; names the number that the run needs.
    """
    was_auto = config.optim.optim == "auto"
    if setup.resume_from is not None:
        saved = read_state(setup.resume_from)
        optim = replace(config.optim, optim=saved.config["optim"])
        config = replace(config, optim=optim, optim_reason=saved.optim_reason or config.optim_reason)
    if world.device.type != "cuda":
        assert config.optim.optim != "auto", "resolve_auto decides on a CPU"
        return config
    memory = _smallest_gpu(world)
    ranks_per_node = launched().local_size
    job = make_job(config, setup.spec, setup.model_config, world.shape, ranks_per_node, setup.loader)
    if config.optim.optim == "auto":
        name, why = choose_optimizer(job, memory)
        config = choose_optim(config, name, why)
        job = job.with_optim(name)
    if was_auto:
        log.info("optim: %s (%s)", config.optim.optim, config.optim_reason)
    check_enough(job, memory, was_auto)
    if not job.fits(memory):
        log.warning(
            "warning: the run may not fit: the plan counts %.1f GiB for the worst step, of %.1f usable on each GPU. "
            "The trial step before step 1 will show it. For details, run the same command with --plan.",
            job.memory.peak / GIB,
            usable(memory) / GIB,
        )
    return config


def _smallest_gpu(world: World) -> int:
    """Memory in bytes of the smallest GPU of all ranks."""
    memory = torch.tensor(torch.cuda.get_device_properties(world.device).total_memory, device=world.device)
    dist.all_reduce(memory, op=dist.ReduceOp.MIN)
    return int(memory.item())


# --- time -------------------------------------------------------------------------------------------------------------


def pass_seconds(job: Job, gpu: Gpu, work: RankPass) -> tuple[float, float]:
    """Seconds of one pass: computing, and collectives with copies. They overlap, so the larger counts."""
    settings, mesh, sizes, config = job.settings, job.mesh, job.sizes, job.config
    recompute = settings.activation_checkpointing == "full"
    computing = pass_flops(config, work, recompute) / mesh.tensor / (gpu.flops * gpu.utilization)
    computing = max(computing, config.n_layers * MIN_BLOCK_SECONDS)
    own = sizes.block_on(mesh) * sizes.n_blocks + sizes.root
    gathers = 1 if job.keeps_unsharded else 2
    reduced = settings.optim.weights.itemsize  # gradients are reduced in the weights' format
    sent = own * (gathers * settings.compute.itemsize + reduced) * (mesh.shard - 1) / mesh.shard
    copy_spans_machines = mesh.shard * mesh.tensor > job.ranks_per_node
    link = min(gpu.link, gpu.network) if copy_spans_machines else gpu.link
    moving = sent / link
    if mesh.replicate > 1:
        between = gpu.network / job.ranks_per_node if mesh.n_ranks > job.ranks_per_node else gpu.link
        moving += 2 * reduced * own / mesh.shard / between
    width = config.dim * settings.compute.itemsize * work.tokens
    if mesh.tensor > 1:
        computing += config.n_layers * (6 if recompute else 4) * 2 * width / gpu.link  # all-reduces do not overlap
    if settings.activation_offload:
        moving = max(moving, 2 * config.n_layers * width / gpu.host_link)
    return computing, moving


def step_seconds(job: Job, gpu: Gpu, passes: list[RankPass]) -> float:
    """Seconds of a step: its passes one after another, each as long as its slowest rank; then the optimizer."""
    seconds = sum(max(pass_seconds(job, gpu, work)) for work in passes)
    return seconds + update_seconds(job, gpu)


def update_seconds(job: Job, gpu: Gpu) -> float:
    """Seconds of the optimizer in a step."""
    memory, settings = job.memory, job.settings
    if is_fused(settings.optim, settings.offload_states):
        return 2 * memory.fixed / gpu.bandwidth  # everything is read once and, except gradients, written
    parameters = memory.weights / settings.optim.weights.itemsize
    seconds = UPDATE_BYTES[settings.optim.states] * parameters / gpu.bandwidth
    if settings.offload_states:
        seconds += 2 * job.state_bytes / gpu.host_link  # to the GPU and back
    return seconds


def cut(work: RankPass, row_length: int) -> RankPass:
    """A pass of a packed row, cut to ``row_length`` tokens."""
    if work.tokens <= row_length:
        return work
    return replace(work, tokens=row_length, pairs=min(work.pairs, row_length * (row_length + 1) // 2))


def run_seconds(plan: TrainPlan, job: Job | None = None) -> float:
    """Seconds of the run, without loading, scoring and saving."""
    job = job or plan.job
    # An alternative may have shorter rows than those counted.
    steps = [[cut(work, job.row_length) for work in passes] for passes in plan.work.steps]
    seconds = [step_seconds(job, plan.gpu, passes) for passes in steps]
    return plan.work.total_steps * sum(seconds) / len(seconds)
