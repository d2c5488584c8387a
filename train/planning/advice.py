"""Which settings make a run fit: what ``--optim auto`` chooses, and what to change if the run does not fit.

Five settings can be changed, each at a cost. `alternatives` tries all combinations and keeps the minimal ones.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch

from checkpoints_tools.architectures import ModelConfig, architecture_of
from data.errors import UserError
from train.optim.formats import OPTIMIZERS
from train.parallel.mesh import MeshShape
from train.parallel.parallelize import RESHARD_FROM
from train.planning.hardware import GIB, usable
from train.planning.memory import Memory, ParameterCounts, Pass, Settings, training_memory

BEST_FIRST = tuple(OPTIMIZERS)  # from the most accurate, everything in fp32, to the coarsest
SHORTEST_ROW = 1024  # shorter rows are never advised


@dataclass(frozen=True)
class Job:
    """What the memory of a run depends on.

    Attributes:
        optim: key into `OPTIMIZERS`, for ``settings.optim``.
        work: the worst pass, of ``n_rows`` rows of at most ``row_length`` tokens.
    """

    config: ModelConfig
    sizes: ParameterCounts
    mesh: MeshShape
    ranks_per_node: int
    optim: str
    settings: Settings
    work: Pass
    n_rows: int
    row_length: int
    background_save: bool = True

    @property
    def memory(self) -> Memory:
        return training_memory(
            self.config, self.sizes, self.mesh, self.settings, self.work, self.ranks_per_node, self.background_save
        )

    @property
    def keeps_unsharded(self) -> bool:
        """Whether blocks stay unsharded from their forward to their backward pass."""
        return self.sizes.total < RESHARD_FROM

    @property
    def state_bytes(self) -> float:
        """Bytes of one rank's optimizer states, on the GPU or in host memory."""
        return self.sizes.states_on(self.mesh, self.settings.optim.states)

    def with_optim(self, name: str) -> Job:
        return replace(self, optim=name, settings=replace(self.settings, optim=OPTIMIZERS[name]))

    def with_rows(self, row_length: int) -> Job:
        tokens = min(self.work.tokens, self.n_rows * row_length)
        return replace(self, row_length=row_length, work=replace(self.work, tokens=tokens))

    def on(self, n_gpus: int) -> Job:
        """The same run on another number of GPUs, sharded over all of them."""
        mesh = MeshShape(shard=max(1, n_gpus // self.mesh.tensor), tensor=self.mesh.tensor)
        return replace(self, mesh=mesh, ranks_per_node=min(n_gpus, 8))

    def fits(self, memory: int) -> bool:
        """Whether it fits GPUs of ``memory`` bytes, of which a part is not usable."""
        return self.memory.peak <= usable(memory)


def choose_optimizer(job: Job, memory: int) -> tuple[str, str]:
    """Resolve ``--optim auto`` on GPUs: the most accurate format that fits.

    Args:
        memory: bytes of a GPU, the same on every rank.

    Returns:
        The name, and the reason in one line.
    """
    formats = BEST_FIRST if job.settings.compute == torch.bfloat16 else ("adamw",)
    rejected: list[str] = []
    for name in formats:
        peak = job.with_optim(name).memory.peak
        if peak <= usable(memory):
            too_large = f"; {', '.join(rejected)}" if rejected else ""
            return name, f"needs {peak / GIB:.1f} of {usable(memory) / GIB:.1f} GiB{too_large}"
        rejected.append(f"{name} would need {peak / GIB:.1f}")
    return formats[-1], f"the smallest; nothing fits {usable(memory) / GIB:.1f} GiB: {', '.join(rejected)}"


@dataclass(frozen=True)
class Alternative:
    """Settings that fit; ``changes`` are the options that differ, by name, as written on the command line."""

    job: Job
    changes: dict[str, str]


def alternatives(job: Job, memory: int, optim_is_free: bool = True) -> list[Alternative]:
    """All minimal sets of changes with which the run fits, the least harmful first.

    From the most to the least harmful: shorter rows, which cut documents; states in host memory, which take hundreds of
    GB and a large part of a step's time; coarser optimizer formats; recomputation; offloaded activations, which cost
    host memory and hardly any time.

    Args:
        optim_is_free: ``--optim`` was not given, so another optimizer does not count as a change.
    """
    settings = job.settings
    if settings.compute == torch.bfloat16:
        optims = BEST_FIRST[BEST_FIRST.index(job.optim) :] if not optim_is_free else BEST_FIRST
    else:
        optims = (job.optim,)
    rows = [job.row_length]
    while architecture_of(job.config).row_bounds_input and rows[-1] // 2 >= SHORTEST_ROW:
        rows.append(rows[-1] // 2)
    steps: dict[str, list[Any]] = {  # values of each option, from the run's own to the one that saves most
        "row_length": rows,
        "offload_states": [True] if settings.offload_states else [False, True],
        "optim": list(optims),
        "activation_checkpointing": [settings.activation_checkpointing]
        + (["full"] if settings.activation_checkpointing != "full" else []),
        "activation_offload": [True] if settings.activation_offload else [False, True],
    }
    found: list[tuple[tuple[int, ...], Alternative]] = []
    for levels in itertools.product(*(range(len(values)) for values in steps.values())):
        if any(all(a >= b for a, b in zip(levels, smaller, strict=True)) for smaller, _ in found):
            continue
        chosen = {name: values[level] for (name, values), level in zip(steps.items(), levels, strict=True)}
        if chosen["activation_offload"] and chosen["activation_checkpointing"] != "full":
            continue
        changed = job.with_optim(chosen["optim"]).with_rows(chosen["row_length"])
        changed = replace(
            changed,
            settings=replace(
                changed.settings,
                offload_states=chosen["offload_states"],
                activation_checkpointing=chosen["activation_checkpointing"],
                activation_offload=chosen["activation_offload"],
            ),
        )
        if changed.fits(memory):
            named = {n: chosen[n] for (n, values), at in zip(steps.items(), levels, strict=True) if at}
            named = {name: "on" if value is True else str(value) for name, value in named.items()}
            if chosen["optim"] != job.optim:
                named["optim"] = str(chosen["optim"])
            found.append((levels, Alternative(changed, named)))
    # A set found later may be a subset of one found earlier: keep the minimal ones.
    smallest = [
        alternative
        for levels, alternative in found
        if not any(other != levels and all(a <= b for a, b in zip(other, levels, strict=True)) for other, _ in found)
    ]
    return smallest


def cheapest(job: Job) -> Job:
    """The run with all settings that save memory, at unchanged row length."""
    name = BEST_FIRST[-1] if job.settings.compute == torch.bfloat16 else job.optim
    job = job.with_optim(name)
    settings = replace(job.settings, activation_checkpointing="full", activation_offload=True, offload_states=True)
    return replace(job, settings=settings)


def fewest_gpus(job: Job, memory: int) -> int | None:
    """The smallest number of GPUs on which the run fits: 1, 2, 4 or a multiple of 8; None: more than 1,024."""
    numbers = [1, 2, 4, *range(8, 1025, 8)]
    return next((n for n in numbers if n >= job.mesh.tensor and job.on(n).fits(memory)), None)


def check_enough(job: Job, memory: int, optim_was_auto: bool) -> None:
    """Refuse a run that cannot fit, before anything loads.

    Only weights, gradients and states are compared with the GPU's memory. For the rest the trial step decides.

    Raises:
        UserError: names the number of GPUs that the run needs, and settings that would fit on these.
    """
    need = job.memory
    if need.fixed <= memory:
        return
    n = job.mesh.n_ranks
    enough = fewest_gpus(job, memory)
    lines = [
        f"too few GPUs: weights, gradients and optimizer states alone take {need.fixed / GIB:.1f} GiB on each of {n} "
        f"GPU(s), which have {memory / GIB:.1f}. With these settings it takes {enough or 'more than 1,024'} GPUs of "
        "that size."
    ]
    better = alternatives(job, memory, optim_was_auto)
    if better:
        flags = " ".join(f"--{name} {value}" for name, value in better[0].changes.items())
        lines.append(f"On these it would fit with {flags} ({better[0].job.memory.peak / GIB:.1f} GiB).")
    else:
        least = fewest_gpus(cheapest(job), memory)
        lines.append(f"With everything that saves memory it takes {least or 'more than 1,024'} GPUs.")
    raise UserError("\n".join([*lines, "For details, run the same command with --plan."]))
