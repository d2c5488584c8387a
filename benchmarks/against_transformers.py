"""Compare our conversion of SmolLM2's GGUF with transformers, which reads the same file itself.

    python -m benchmarks.against_transformers [--data PATH] [--utterances 200]

Three comparisons in fp32, without our exporter:

    weights         value by value
    logits          of real prompts, each alone and packed behind a shared prefix
    greedy output   for the same prompt ids: ours with the prefix computed once and ragged batches, transformers'
                    `generate` with one complete prompt at a time

The exit status is 1 if an output differs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.common import (
    Inputs,
    checkpoint_folder,
    counter,
    draw_examples,
    find_gguf,
    load_average,
    load_ours,
    reference_greedy,
    run_program,
    say,
    table,
    write_result,
)
from checkpoints_tools.key_maps import LLAMA_HF, rename_all
from data.decoder.prompts import build_prompt
from data.decoder.rows import build_row, collate
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import stop_tokens, template_for
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.tasks import get_task
from eval.decoder.decode import Decoded, greedy_decode
from model.llama import Llama


@dataclass
class Args(Inputs):
    """Compare our conversion of SmolLM2 with transformers reading the same GGUF."""

    utterances: int = 200
    """Test utterances whose greedy outputs are compared; 0 compares weights and logits only."""
    logit_samples: int = 4
    """Training samples of each task whose logits are compared."""
    max_new_tokens: int = 12
    """Longest output, without the stop token."""
    reuse_prefix: bool = False
    """Let transformers reuse the prefix's keys and values too: faster, but not its default path."""


@dataclass(frozen=True)
class Gap:
    """The difference between two sets of logits."""

    what: str
    n_positions: int
    largest: float
    mean: float
    same_argmax: int

    @classmethod
    def between(cls, what: str, ours: Tensor, theirs: Tensor) -> Gap:
        """Compare logits, both [N, V]."""
        apart = (ours - theirs).abs()
        same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        return cls(what, len(ours), float(apart.max()), float(apart.mean()), same)


def compare_weights(model: Llama, reference: nn.Module) -> tuple[int, float]:
    """Return the number of compared values and their largest difference.

    Raises:
        AssertionError: the models do not have the same tensors.
    """
    state = reference.state_dict()
    names, unknown = rename_all(state, LLAMA_HF)
    assert not unknown, unknown
    theirs = {ours: state[name] for ours, name in names.items()}
    if model.head is None:
        theirs.pop("head.weight", None)  # tied to the embedding
    ours = model.state_dict()
    assert ours.keys() == theirs.keys(), sorted(map(str, ours.keys() ^ theirs.keys()))
    return sum(t.numel() for t in ours.values()), max(float((ours[n] - theirs[n]).abs().max()) for n in ours)


@torch.no_grad()
def compare_logits(what: str, model: Llama, reference: nn.Module, samples: SampleSet) -> list[Gap]:
    """Compare the logits of all samples: ours, each alone and all packed into one row, with theirs, each alone."""
    alone, theirs, eager, at_labels = [], [], [], []
    for i in range(len(samples)):
        row = collate([build_row(samples, [i], share_prefix=False)])
        alone.append(model(row.tokens)[0])
        theirs.append(reference(row.tokens).logits[0])
        at_labels.append(theirs[-1][row.target_index])
        reference.set_attn_implementation("eager")
        eager.append(reference(row.tokens).logits[0])
        reference.set_attn_implementation("sdpa")
    row = collate([build_row(samples, list(range(len(samples))), share_prefix=True)])
    packed = model(row.tokens, row.positions, row.doc_ids, output_index=row.target_index)
    return [
        Gap.between(f"{what}, each alone, all positions", torch.cat(alone), torch.cat(theirs)),
        Gap.between(f"{what}, {len(samples)} packed behind one prefix, label positions", packed, torch.cat(at_labels)),
        Gap.between(f"{what}, transformers' eager against its sdpa attention", torch.cat(eager), torch.cat(theirs)),
    ]


@torch.no_grad()
def explain(
    i: int, prompts: Sequence[list[int]], ours: Decoded, theirs: Decoded, models: dict[str, nn.Module], tok: Tokenizer
) -> str:
    """Both outputs of a request if they differ, and by how much the best token led where they first differ."""
    pairs = zip(ours.tokens, theirs.tokens, strict=False)
    part = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours.tokens), len(theirs.tokens)))
    context = torch.tensor([prompts[i] + ours.tokens[:part]])
    lines = [f"- ours {tok.decode(ours.tokens)!r}, theirs {tok.decode(theirs.tokens)!r}; they part at token {part}:"]
    for name, model in models.items():
        out = model(context)
        best = (out if isinstance(out, Tensor) else out.logits)[0, -1].topk(2)
        first, second = (tok.decode([token]) for token in best.indices.tolist())
        lines.append(f"  {name}: {first!r} before {second!r} by {float(best.values[0] - best.values[1]):.2e}")
    return "\n".join(lines)


def compare_greedy(
    model: Llama, reference: nn.Module, tokenizer: Tokenizer, samples: SampleSet, stop_ids: set[int], args: Args
) -> tuple[str, int]:
    """Decode the same prompts with both models; return Markdown and the number of outputs that differ."""
    prefix = samples.prefix.tolist()
    bodies = [samples.body(i).tolist() for i in range(len(samples))]
    prompts = [prefix + body for body in bodies]
    start = time.perf_counter()
    ours = greedy_decode(model, prefix, bodies, args.max_new_tokens, stop_ids)
    our_seconds = time.perf_counter() - start
    say(f"ours: {our_seconds:.1f} s")
    start = time.perf_counter()
    theirs = reference_greedy(
        reference,
        prompts,
        args.max_new_tokens,
        stop_ids,
        n_shared=len(prefix) if args.reuse_prefix else 0,
        progress=counter("transformers", len(prompts)),
    )
    their_seconds = time.perf_counter() - start
    different = [i for i in range(len(prompts)) if ours[i] != theirs[i]]
    models = {"ours": model, "transformers": reference}
    n_tokens = sum(len(answer.tokens) + answer.stopped for answer in theirs)
    reuse = "the prefix's keys and values reused" if args.reuse_prefix else "each prompt from its first token"
    lines = [
        f"{len(prompts) - len(different)} of {len(prompts)} test utterances give identical greedy output "
        f"({(len(prompts) - len(different)) / len(prompts):.1%}; {n_tokens:,} emitted tokens, "
        f"{len(set(tuple(answer.tokens) for answer in theirs))} distinct outputs, prompts of "
        f"{sum(map(len, prompts)) / len(prompts):.0f} tokens).",
        *(explain(i, prompts, ours[i], theirs[i], models, tokenizer) for i in different),
        "",
        f"Seconds: ours {our_seconds:.1f} (prefix once, ragged batches), transformers {their_seconds:.1f} (`generate`, "
        f"one request at a time, {reuse}); ours / theirs = {our_seconds / their_seconds:.3f}.",
    ]
    return "\n".join(lines), len(different)


def main(argv: list[str] | None = None) -> int:
    return run_program("against_transformers", Args, run, argv)


def run(args: Args, argv: list[str]) -> int:
    from transformers import AutoModelForCausalLM

    load = load_average()
    gguf = find_gguf(args.gguf)
    with checkpoint_folder(args) as folder:
        model, tokenizer = load_ours(folder), load_tokenizer(folder)
    say("transformers reads the GGUF")
    reference = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()

    template = template_for(tokenizer)
    n_values, apart = compare_weights(model, reference)
    gaps: list[Gap] = []
    for name in ("massive_intent", "massive_joint"):
        task = get_task(name)
        examples = draw_examples(task, "train", args.data, args.logit_samples, args.seed)
        samples = prepare(examples, task, build_prompt(task, template), tokenizer, max_length=8192)
        gaps += compare_logits(name, model, reference, samples)
    rows = [(g.what, g.n_positions, f"{g.largest:.1e}", f"{g.mean:.1e}", f"{g.same_argmax}") for g in gaps]
    body = [
        f"Both read `{gguf.name}`: ours through `checkpoints_tools.convert`, transformers with `gguf_file=`. All in "
        f"fp32.\n\n## Weights\n\n{n_values:,} values compared; largest difference {apart:.1e}.",
        f"## Logits\n\nLargest absolute difference, ours against theirs: "
        f"**{max(g.largest for g in gaps if 'transformers' not in g.what):.1e}**.",
        table(["samples (prompt and answer)", "positions", "largest", "mean", "same best token"], rows),
    ]
    different = 0
    if args.utterances:
        task = get_task("massive_intent")
        prompt = build_prompt(task, template)
        examples = draw_examples(task, "test", args.data, args.utterances, args.seed)
        samples = prepare(
            examples, task, prompt, tokenizer, 8192, with_labels=False, max_new_tokens=args.max_new_tokens
        )
        text, different = compare_greedy(model, reference, tokenizer, samples, stop_tokens(prompt, tokenizer), args)
        body.append(f"## Greedy output\n\nTask massive_intent, zero-shot, not fine-tuned. {text}")
    title = "Our SmolLM2 against transformers reading the same GGUF"
    write_result("against_transformers", title, "\n\n".join(body), argv, args.output, load)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
