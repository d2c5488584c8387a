"""``eval.py --plan``: estimate memory and time of scoring, without a GPU or weights.

`eval/setup.py` decides what is scored, for the plan as for the run, and both form the same batches. `eval/memory.py`
computes the bytes. `train/planning/plan.py` does the same for training.
"""

from __future__ import annotations

from dataclasses import dataclass

from checkpoints_tools.hf_config import DTYPES
from eval.config import EvalConfig
from eval.job import BatchSize
from eval.lengths import find_lengths
from eval.memory import MemoryByMoment, ScoringLoad, what_would_fit
from eval.setup import ScoringSetup, open_scoring
from train.launched import env_world_size
from train.metrics import duration
from train.parallel.mesh import MeshShape, lay_out
from train.planning.hardware import GIB, GPUS, Gpu, usable
from train.planning.memory import HOST_BASE, count_parameters
from train.planning.report import table, what_is_counted

PER_NODE = 8  # GPUs of a machine
OVERHEAD = 0.03  # minimum seconds of a pass: launching the kernels of all blocks


@dataclass(frozen=True)
class ScoringPlan:
    """The result of ``--plan``.

    Attributes:
        mesh: the layout of the ranks.
        batches: the batches of each replica.
        assumed: the assumptions, one sentence each.
    """

    setup: ScoringSetup
    gpu: Gpu
    mesh: MeshShape
    precision: str
    load: ScoringLoad
    memory: MemoryByMoment
    batches: list[list[BatchSize]]
    assumed: tuple[str, ...]

    @property
    def per_node(self) -> int:
        """Ranks of a machine."""
        return min(PER_NODE, self.mesh.n_ranks)

    @property
    def limit(self) -> int:
        """Usable bytes of a GPU."""
        return usable(self.gpu.memory)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.limit


def make_plan(options: EvalConfig) -> ScoringPlan:
    """Resolve the options and count the work; no weights, no process group.

    Raises:
        UserError: every error of a run, except missing files; or ``--tp`` does not divide the GPUs.
    """
    n_gpus = options.gpus or (env_world_size() if env_world_size() > 1 else max(PER_NODE, options.tp))
    mesh = lay_out(n_gpus, tp=options.tp, per_node=min(PER_NODE, n_gpus))
    setup = open_scoring(options)
    lengths, assumption = find_lengths(setup)
    precision = "fp32" if options.precision == "fp32" else "bf16"
    load = ScoringLoad(setup.spec, setup.config, DTYPES[precision], lengths, options.batch_tokens)
    return ScoringPlan(
        setup=setup,
        gpu=GPUS[options.gpu],
        mesh=mesh,
        precision=precision,
        load=load,
        memory=load.memory(options.tp, mesh.n_data),
        batches=load.batches(mesh.n_data),
        assumed=(*setup.assumed, *([assumption] if assumption is not None else [])),
    )


def describe(plan: ScoringPlan) -> str:
    """The plan as text."""
    setup, memory, gpu, lengths = plan.setup, plan.memory, plan.gpu, plan.load.lengths
    n_parameters = count_parameters(setup.spec, setup.config).total
    n_gpus, tp = plan.mesh.n_ranks, plan.mesh.tensor
    sizes = [size for batches in plan.batches for size in batches]
    largest = max(sizes, key=lambda size: size.n_tokens + size.n_requests * size.n_new_tokens)
    rows = [*memory.parts.items(), ("in all", memory.peak)]
    prefix = answers = limit = ""
    if setup.spec.kind == "decoder":
        prefix = f" after a prefix of {lengths.prefix:,} tokens"
        answers = " before their answers" if lengths.tries is None else " with all labels"
        limit = ", if every answer has its maximum length"
    lines = [
        f"Plan for scoring {setup.spec.name} on {setup.task.name}: arithmetic, nothing measured (docs/memory.md)",
        f"  {n_parameters:,} parameters in {plan.precision}; {n_gpus} x {gpu.name}: {plan.mesh.n_data} replica(s), "
        f"each on {tp}",
        *(f"  assumed: {text}" for text in plan.assumed),
        "",
        table(f"Each GPU, GiB; the fullest moment is '{memory.fullest}'", rows),
        f"  of {plan.limit / GIB:.1f} usable of {gpu.memory / GIB:.1f}",
        f"Host memory of one machine: {min(n_gpus, PER_NODE) * HOST_BASE / 1e9:.0f} GB",
        "",
        f"{len(lengths.bodies):,} examples{prefix}; a GPU's share: up to "
        f"{max(map(len, plan.batches)):,} batches, the largest of {largest.n_requests} request(s) and "
        f"{largest.n_tokens:,} tokens{answers}",
        f"Longest example: {lengths.prefix + max(lengths.bodies):,} tokens {what_is_counted(setup.spec)}",
        f"Time, an estimate: {duration(scoring_seconds(plan, n_parameters))}{limit}; never measured on a GPU",
        "",
        _verdict(plan),
    ]  # fmt: skip
    return "\n".join(lines)


def _verdict(plan: ScoringPlan) -> str:
    needed = f"{plan.memory.peak / GIB:.1f} of {plan.limit / GIB:.1f} GiB."
    if plan.fits:
        return f"It fits: {needed}"
    return f"It does NOT fit: {needed} {what_would_fit(plan.load, plan.mesh.tensor, plan.limit)}"


def scoring_seconds(plan: ScoringPlan, n_parameters: int) -> float:
    """Seconds of the replica with the most work.

    Prefill is limited by compute. Each later pass reads the weights once, at 60% of the memory bandwidth.
    """
    gpu, tp = plan.gpu, plan.mesh.tensor
    one_token = max(plan.load.dtype.itemsize * n_parameters / tp / (0.6 * gpu.bandwidth), OVERHEAD)

    def seconds(batches: list[BatchSize]) -> float:
        tokens = plan.load.lengths.prefix + sum(size.n_tokens for size in batches)
        computing = 2 * n_parameters * tokens / tp / (gpu.flops * gpu.utilization)
        return computing + sum(size.n_new_tokens for size in batches) * one_token

    return max(map(seconds, plan.batches))
