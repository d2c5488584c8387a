"""Measure what computing the prefix once saves in scoring: greedy decoding of the same requests in four ways.

    python -m benchmarks.decode_speed [--data PATH] [--utterances 64] [--batch_size 16]

    shared                our decoder; the prefix is prefilled once and in memory once (as in eval.py)
    repeated              our decoder; every request contains the complete prompt
    transformers          `generate` on batches of complete prompts, padded on the left
    transformers_prefix   `generate` with the prefix's keys and values computed once and copied into each batch

All ways use batches of the same size. In fp32, the default, they must emit the same tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from benchmarks.common import (
    Inputs,
    Timing,
    checkpoint_folder,
    draw_examples,
    in_turn,
    load_average,
    load_ours,
    reference_greedy,
    run_program,
    say,
    size_of,
    table,
    write_result,
)
from data.decoder.prompts import build_prompt
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import stop_tokens, template_for
from data.decoder.tokenizer import load_tokenizer
from data.tasks import get_task
from eval.decoder.decode import Decoded, greedy_decode

Variant = Literal["shared", "repeated", "transformers", "transformers_prefix"]
DESCRIPTIONS: dict[Variant, str] = {
    "shared": "ours, prefix shared",
    "repeated": "ours, prefix in every request",
    "transformers": "transformers `generate`",
    "transformers_prefix": "transformers `generate`, prefix's cache copied",
}


@dataclass
class Args(Inputs):
    """Time greedy decoding with and without a shared prefix, and through transformers."""

    task: str = "massive_intent"
    """Task whose prompt is used. The model is not fine-tuned, so most answers reach the token limit."""
    utterances: int = 64
    """Test utterances."""
    batch_size: int = 16
    """Requests decoded together."""
    max_new_tokens: int = 12
    """Longest output, without the stop token."""
    rounds: int = 2
    """Measurements of each variant, after a warm-up on one batch."""
    variants: list[Variant] = field(default_factory=lambda: list(DESCRIPTIONS))
    """Variants to run."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where to run them."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of weights and compute. In bf16 answers may differ in places."""


def measure(
    model: nn.Module, reference: nn.Module | None, samples: SampleSet, stop_ids: set[int], args: Args
) -> tuple[dict[str, Timing], dict[str, list[Decoded]]]:
    """Time all variants; return their times and their outputs."""
    prefix = samples.prefix.tolist()
    bodies = [samples.body(i).tolist() for i in range(len(samples))]
    emitted: dict[str, list[Decoded]] = {}

    def ours(prefix: list[int], bodies: list[list[int]]) -> list[Decoded]:
        # No limit on a batch's tokens, so that all variants use the same batch size.
        limits = {"max_batch_size": args.batch_size, "max_batch_tokens": 10**9, "device": args.device}
        return greedy_decode(model, prefix, bodies, args.max_new_tokens, stop_ids, **limits)

    def theirs(bodies: list[list[int]], n_shared: int) -> list[Decoded]:
        prompts = [prefix + body for body in bodies]
        limits = {"batch_size": args.batch_size, "n_shared": n_shared}
        return reference_greedy(reference, prompts, args.max_new_tokens, stop_ids, **limits)

    decode: dict[str, Callable[[list[list[int]]], list[Decoded]]] = {
        "shared": lambda bodies: ours(prefix, bodies),
        "repeated": lambda bodies: ours([], [prefix + body for body in bodies]),
        "transformers": lambda bodies: theirs(bodies, 0),
        "transformers_prefix": lambda bodies: theirs(bodies, len(prefix)),
    }

    def timed(name: str, bodies: list[list[int]]) -> Callable[[int], None]:
        def run(n: int) -> None:
            emitted[name] = decode[name](bodies)

        return run

    say("warming up")
    in_turn({name: timed(name, bodies[: args.batch_size]) for name in args.variants}, range(0, 1))
    timings = in_turn({name: timed(name, bodies) for name in args.variants}, range(1, args.rounds + 1))
    return timings, emitted


def report(
    timings: dict[str, Timing], emitted: dict[str, list[Decoded]], samples: SampleSet, model_size: str, args: Args
) -> str:
    """The figures as Markdown."""
    base = timings[args.variants[0]]
    rows = []
    for name in args.variants:
        timing = timings[name]
        n_new = sum(len(answer.tokens) + answer.stopped for answer in emitted[name])
        same = sum(a == b for a, b in zip(emitted[name], emitted[args.variants[0]], strict=True))
        rows.append(
            (
                DESCRIPTIONS[name],
                f"{len(samples) / timing.median:.2f}",
                f"{n_new / timing.median:.1f}",
                f"{timing.median:.2f}",
                timing.each,
                f"{timing.median / base.median:.2f}",
                f"{timing.median_cpu / base.median_cpu:.2f}",
                f"{same} of {len(samples)}",
            )
        )
    first = DESCRIPTIONS[args.variants[0]]
    header = [
        "decoder",
        "utterances/s",
        "new tokens/s",
        "seconds (median)",
        "each",
        f"time / {first}",
        "CPU time / the same",
        f"output as {first}",
    ]
    return (
        f"A Llama of {model_size}, not fine-tuned, on {len(samples)} test utterances of {args.task}, zero-shot: a "
        f"prefix of {len(samples.prefix):,} tokens, {samples.lengths.mean():.1f} more for each request on average, "
        f"at most {args.max_new_tokens} new ones, {args.batch_size} requests a batch, {args.precision}. "
        f"New tokens include stop tokens; their rate includes the time for the prompts.\n\n{table(header, rows)}"
    )


def main(argv: list[str] | None = None) -> int:
    return run_program("decode_speed", Args, run, argv)


def run(args: Args, argv: list[str]) -> None:
    load = load_average()
    task = get_task(args.task)
    examples = draw_examples(task, "test", args.data, args.utterances, args.seed)
    reference = None
    with checkpoint_folder(args) as folder:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.precision]
        model, tokenizer = load_ours(folder, args.device).to(dtype), load_tokenizer(folder)
        if any(name.startswith("transformers") for name in args.variants):
            from transformers import AutoModelForCausalLM

            reference = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(args.device).eval()
    prompt = build_prompt(task, template_for(tokenizer))
    samples = prepare(examples, task, prompt, tokenizer, 8192, with_labels=False, max_new_tokens=args.max_new_tokens)
    timings, emitted = measure(model, reference, samples, stop_tokens(prompt, tokenizer), args)
    body = report(timings, emitted, samples, size_of(model), args)
    on_gpu = args.device == "cuda"
    write_result("decode_speed", "Speed of greedy decoding", body, argv, args.output, load, on_gpu)


if __name__ == "__main__":
    sys.exit(main())
