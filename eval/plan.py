"""``eval.py --plan``: whether scoring a model fits, and about how long it takes; no GPU, no weights.

A rank holds its slice of the weights, the keys and values of the shared prefix and of the requests in flight, and what
one pass computes. The arithmetic is in `docs/memory.md`; `train/planning/plan.py` is the like for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from checkpoints_tools.registry import get_model_spec
from data.decoder.fewshot import PROMPT_FILE
from data.decoder.samples import prepare
from data.errors import UserError
from data.packing import balance_counts, padded_length
from data.source import load_examples
from data.tasks import get_task
from eval.config import EvalConfig
from eval.decoder.decode import batches
from eval.decoder.score import BUDGET_MARGIN, answer_budgets
from eval.setup import new_prompt, stored_prompt, stored_task
from model.encoder import EncoderConfig
from model.llama import LlamaConfig
from train.config import RECIPES
from train.metrics import duration
from train.parallel.distributed import env_world_size
from train.parallel.mesh import lay_out
from train.parallel.tensor_parallel import check_divides
from train.planning.hardware import GIB, GPUS, Gpu, usable
from train.planning.memory import FP32, HOST_BASE, Bytes, count_parameters
from train.planning.plan import COMPUTE, find_tokenizer, numbers
from train.planning.report import table
from train.planning.workload import assume_samples

MAX_BATCH_SIZE = 256  # `eval.decoder.decode.greedy_decode`'s default
TEST_SPLITS = {"20ng": 7532, "massive": 2974}
OVERHEAD = 0.03  # seconds that a pass takes on top of what it computes and reads: kernel launches, block by block


@dataclass(frozen=True)
class Requests:
    """What is to be scored, in tokens: the prefix that all share, each body and the most that each may answer."""

    prefix: int
    bodies: list[int]
    limits: list[int]


@dataclass(frozen=True)
class Scoring:
    """Bytes of one rank by kind, and the work of the rank with most of it.

    Attributes:
        n_batches, batch: decoding batches, and the largest one's requests and tokens.
        prefill_tokens, decode_passes: of one rank, in all.
    """

    parts: Bytes
    n_batches: int
    batch: tuple[int, int]
    prefill_tokens: int
    decode_passes: int

    @property
    def peak(self) -> int:
        return sum(self.parts.values())


def decoder_memory(
    config: LlamaConfig, n_parameters: int, c: int, tp: int, requests: Requests, n_replicas: int, batch_tokens: int
) -> Scoring:
    """What decoding takes.

    Shapes: P prefix, T tokens of a pass, R requests of S places, E width, KV keys' width, F feed-forward width.

    Args:
        c: bytes of a number.
        tp: ranks that split each matrix, keys and values with them.
        batch_tokens: most tokens of a batch, answers included; a longer request runs alone.
    """
    E, L, D = config.dim, config.n_layers, config.head_dim
    A, KV, F = config.n_heads * D // tp, config.n_kv_heads * D // tp, config.ffn_dim // tp
    own = balance_counts(requests.bodies, n_replicas)[0]
    bodies, limits = [requests.bodies[i] for i in own], [requests.limits[i] for i in own]
    grouped = batches([range(n) for n in bodies], limits, batch_tokens, MAX_BATCH_SIZE)
    sizes = [(len(b), max(bodies[i] for i in b) + max(limits[i] for i in b)) for b in grouped]
    R, S = max(sizes, key=lambda size: size[0] * size[1])
    most = max(len(b) for b in grouped)
    T = max(requests.prefix, max(sum(bodies[i] for i in b) for b in grouped))
    # A block of a pass over T tokens: residual, sum and norm's result, the norm's input and product in fp32; the three
    # of the feed-forward network. In attention instead: q, k, v and the result, keys and values behind the prefix.
    ffn = T * (3 * c * E + 3 * c * F)
    norm = T * (2 * c * E + 2 * FP32 * E)
    attention = T * (3 * c * E + 3 * c * A + 2 * c * KV) + 2 * c * KV * (requests.prefix + T)
    # A step of one token a request: scores in fp32, and the keys they are products of.
    token = FP32 * (R * S + requests.prefix) * KV + 3 * FP32 * most * (A // D) * (S + requests.prefix)
    return Scoring(
        parts={
            "weights": c * n_parameters // tp,
            "keys and values of the prefix": 2 * c * KV * L * requests.prefix,
            "keys and values of a batch": 2 * c * KV * L * R * S,
            "one pass": max(ffn, norm, attention, token),
            "logits": (c + c // tp) * most * config.vocab_size,
        },
        n_batches=len(grouped),
        batch=(R, R * S),
        prefill_tokens=requests.prefix + sum(bodies),
        decode_passes=sum(max(limits[i] for i in b) for b in grouped),
    )


def encoder_memory(
    config: EncoderConfig, n_parameters: int, c: int, requests: Requests, n_replicas: int, batch_tokens: int
) -> Scoring:
    """What a pass over packed rows takes: a block's input and result, q, k, v and attention, or the GELU network."""
    bodies = [requests.bodies[i] for i in balance_counts(requests.bodies, n_replicas)[0]]
    T = padded_length(max(min(batch_tokens, sum(bodies)), max(bodies)))
    width = max(6 * config.dim, 3 * config.dim + 2 * config.ffn_dim)
    n_rows = -(-sum(bodies) // batch_tokens)
    return Scoring({"weights": c * n_parameters, "one pass": c * width * T}, n_rows, (1, T), sum(bodies), 0)


def describe(options: EvalConfig) -> tuple[str, bool]:
    """The plan as text, and whether it fits.

    Raises:
        UserError: ranks or heads that do not divide, no task, a checkpoint of another architecture.
    """
    gpu = GPUS[options.gpu]
    n_gpus = options.gpus or (env_world_size() if env_world_size() > 1 else max(8, options.tp))
    mesh = lay_out(n_gpus, tp=options.tp, per_node=min(8, n_gpus))
    spec, assumed = get_model_spec(options.model), []
    config = numbers(spec, options.checkpoint, assumed)
    requests = _requests(options, config, assumed)
    precision = "fp32" if options.precision == "fp32" else "bf16"
    c = COMPUTE[precision].itemsize
    n_parameters = count_parameters(spec, config).total
    if isinstance(config, EncoderConfig):
        scoring = encoder_memory(config, n_parameters, c, requests, mesh.n_data, options.batch_tokens)
    else:
        check_divides(config, options.tp)
        scoring = decoder_memory(config, n_parameters, c, options.tp, requests, mesh.n_data, options.batch_tokens)
    host = n_gpus if n_gpus < 8 else 8
    lines = [
        f"Plan for scoring {spec.name}: arithmetic, nothing measured (docs/memory.md)",
        f"  {n_parameters:,} parameters in {precision}; {n_gpus} x {gpu.name}: {mesh.n_data} replica(s), "
        f"each on {options.tp}",
        *(f"  assumed: {text}" for text in assumed),
        "",
        table("Each GPU, GiB", [*scoring.parts.items(), ("in all", scoring.peak)]),
        f"  of {usable(gpu.memory) / GIB:.1f} usable of {gpu.memory / GIB:.1f}",
        f"Host memory of one machine: {host * HOST_BASE / 1e9:.0f} GB",
        "",
        f"{len(requests.bodies):,} examples behind a prefix of {requests.prefix:,} tokens; a GPU's share: "
        f"{scoring.n_batches:,} batches, the largest of {scoring.batch[0]} request(s) and {scoring.batch[1]:,} tokens",
        f"Longest example: {requests.prefix + max(requests.bodies):,} tokens with its prompt",
        f"Time, an estimate: {duration(_seconds(scoring, n_parameters, c, options.tp, gpu))}, if every answer is as "
        "long as it may be; never measured on a GPU",
        "",
        _verdict(options, config, n_parameters, c, requests, scoring, gpu),
    ]
    return "\n".join(lines), scoring.peak <= usable(gpu.memory)


def _verdict(
    options: EvalConfig,
    config: LlamaConfig | EncoderConfig,
    n_parameters: int,
    c: int,
    requests: Requests,
    scoring: Scoring,
    gpu: Gpu,
) -> str:
    free = usable(gpu.memory)
    said = f"{scoring.peak / GIB:.1f} of {free / GIB:.1f} GiB."
    if scoring.peak <= free:
        return f"It fits: {said}"
    if isinstance(config, EncoderConfig):
        return f"It does NOT fit: {said} Give a smaller --batch_tokens."
    for tp in (n for n in range(options.tp, config.n_kv_heads + 1) if config.n_kv_heads % n == 0):
        for batch_tokens in (options.batch_tokens, options.batch_tokens // 4):
            smaller = decoder_memory(config, n_parameters, c, tp, requests, 1, batch_tokens)
            if smaller.peak <= free:
                change = f"--tp {tp}" if tp > options.tp else ""
                change += f" --batch_tokens {batch_tokens}" if batch_tokens < options.batch_tokens else ""
                return f"It does NOT fit: {said} What would fit: {change.strip()} ({smaller.peak / GIB:.1f} GiB)."
    return f"It does NOT fit: {said} Nor does any --tp up to its {config.n_kv_heads} key/value heads: take larger GPUs."


def _seconds(scoring: Scoring, n_parameters: int, c: int, tp: int, gpu: Gpu) -> float:
    """Prefill computes; each later pass reads the weights once, at 60% of what the memory can do."""
    computing = 2 * n_parameters * scoring.prefill_tokens / tp / (gpu.flops * gpu.utilization)
    one_token = max(c * n_parameters / tp / (0.6 * gpu.bandwidth), OVERHEAD)
    return computing + scoring.decode_passes * one_token


def _requests(options: EvalConfig, config: LlamaConfig | EncoderConfig, assumed: list[str]) -> Requests:
    """The task's own examples; without data or tokenizer, assumed ones."""
    spec, folder = get_model_spec(options.model), options.checkpoint
    is_encoder = isinstance(config, EncoderConfig)
    stored = None if is_encoder or folder is None else stored_prompt(folder, options)
    if not options.task and stored is None:
        raise UserError(f"--plan: no --task given, and there is no {PROMPT_FILE} in {folder} that names one.")
    task = stored_task(options, stored) if stored else get_task(options.task, options.joint_order or "listing")
    longest = options.row_length or (stored and stored.row_length) or RECIPES[spec.recipe]["row_length"]
    tokenizer, missing, examples = find_tokenizer(spec, folder), [], None
    if tokenizer is None:
        missing.append(f"no tokenizer in {folder}")
    try:
        examples = load_examples(task, options.split, options.data)[: options.limit]
    except UserError:
        if options.data is not None:
            raise
        missing.append(f"no data of {task.dataset}")
    if is_encoder:
        longest = options.max_length or min(512, config.max_position)
    if is_encoder and not missing:
        return Requests(0, [min(len(tokenizer.encode(e.text)) + 2, longest) for e in examples], [0] * len(examples))
    if not missing:
        prompt = stored or new_prompt(options, spec, tokenizer)[1]
        limits: Sequence[int] = answer_budgets(task, tokenizer, examples)
        if options.max_new_tokens is not None:
            limits = [options.max_new_tokens] * len(examples)
        samples = prepare(
            examples, task, prompt.build(task), tokenizer, longest, with_labels=False, max_new_tokens=limits,
            cache_dir=options.cache_dir,
        )  # fmt: skip
        room = longest - len(samples.prefix) - samples.lengths
        return Requests(
            len(samples.prefix), samples.lengths.tolist(), [min(a, int(b)) for a, b in zip(limits, room, strict=True)]
        )
    samples, said = assume_samples(task, config, options.shots or 0, longest, examples)
    n = min(options.limit or len(samples), TEST_SPLITS.get(task.dataset, len(samples)), len(samples))
    assumed.append(f"examples ({' and '.join(missing)}): {n:,}, like the training data's {said}")
    bodies = samples.costs - samples.label_lengths
    limit = options.max_new_tokens or int(samples.label_lengths.max()) + BUDGET_MARGIN
    kept = bodies[:: max(1, len(bodies) // n)][: n - 1].tolist() + [int(bodies[-1])]
    return Requests(len(samples.prefix), kept, [0 if is_encoder else limit] * len(kept))
