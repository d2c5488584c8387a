"""Score a model on a task, by what it emits or by its heads: `python eval.py --help`, or under torchrun on many ranks.

python eval.py --model smollm2_135m --checkpoint checkpoints/smollm2_135m --task massive_joint --data sample
python eval.py --model smollm2_135m --checkpoint runs/demo/export --data sample
python eval.py --combine runs/intent runs/slots --output runs/dual
python eval.py --compare runs/before runs/after
"""

from __future__ import annotations

import train.allocator  # noqa: F401  # before PyTorch is imported

# isort: split
import sys

from eval.config import DESCRIPTION, EvalConfig
from train.options import show_help

if __name__ == "__main__":
    show_help(EvalConfig, sys.argv[1:], DESCRIPTION)  # before the seconds that the imports below take

# isort: split
import logging
from functools import partial
from pathlib import Path

import torch

from checkpoints_tools.hf_config import DTYPES
from eval.combine import combine
from eval.decoder.score import score_model
from eval.encoder.score import score_encoder
from eval.gather import ScoreResult
from eval.memory import check_plan_fits
from eval.plan import describe as describe_plan
from eval.progress import Progress
from eval.report import compare, console, details_table
from eval.resolve import load_config
from eval.results import Results, field_kinds, versions, write_run
from eval.setup import EvalPlan, build_model, make_plan, trained_with
from train.parallel.distributed import pick_device, resolve_precision, run_guarded, set_up_logging, start
from train.parallel.mesh import lay_out_world
from train.setup import CACHE_DIR

log = logging.getLogger("eval")


def main() -> None:
    set_up_logging()
    options = load_config(sys.argv[1:])
    if options.compare:
        if not compare(options.compare, options.winner, options.winner_figure, options.markdown):
            sys.exit(1)
    elif options.combine:
        output = options.output or Path("runs/eval") / "+".join(folder.name for folder in options.combine)
        results = combine(*options.combine, output, options.name)
        console().print(details_table(results))
        log.info("written to %s", output)
    elif options.plan:
        text, fits = describe_plan(options)
        log.info("%s", text)
        if not fits:
            sys.exit(1)
    else:
        score(options)


def score(options: EvalConfig) -> None:
    device = pick_device(options.device)
    shape = lay_out_world(tp=options.tp)
    plan = make_plan(options)
    precision = resolve_precision(options.precision, device.type)
    if device.type == "cuda" and plan.prompt is not None:
        check_plan_fits(plan, options, DTYPES[precision], torch.cuda.mem_get_info(device)[0])
    world = start(device, shape)
    log.info("scoring %s on %s (%s): %d examples, %s, %d rank(s) on %s", plan.weights.path, plan.task.name,
             options.split, len(plan.examples), precision, world.size, device.type)  # fmt: skip
    answer = score_encoder
    if plan.prompt is not None:
        answer = partial(score_model, prompt=plan.prompt.build(plan.task), max_new_tokens=options.max_new_tokens)
        log.info("prompt: %s template, %d shots, %s", plan.prompt.template, len(plan.prompt.shots),
                 "as stored with the checkpoint" if plan.fine_tuned else "built from the options")  # fmt: skip
    else:
        log.info("documents are cut to %d tokens, packed into rows of %d", plan.row_length, options.batch_tokens)
    # Ranks that split a replica of the model decode the same examples; replicas share them.
    n_replicas = world.shape.n_data
    if options.tp > 1:
        log.info("%d replica(s) of the model, each split over %d ranks", n_replicas, options.tp)
    model = build_model(plan, precision, device, world.mesh["tensor"] if options.tp > 1 else None)
    with Progress(len(plan.examples), n_replicas, show=world.is_main) as progress:
        result = answer(
            model,
            plan.tokenizer,
            plan.task,
            examples=plan.examples,
            max_length=plan.row_length,
            device=device,
            rank=world.data_rank,
            world_size=n_replicas,
            group=world.data_group,
            max_batch_tokens=options.batch_tokens,
            cache_dir=options.cache_dir or CACHE_DIR,
            progress=progress.advance,
        )
    if world.is_main:
        results = describe(options, plan, result, precision, world.size, device)
        write_run(plan.output, results, result.predictions)
        console().print(details_table(results))
        log.info("written to %s", plan.output)


def describe(
    options: EvalConfig, plan: EvalPlan, result: ScoreResult, precision: str, n_ranks: int, device: torch.device
) -> Results:
    """Everything that belongs into ``results.json``."""
    data = Path(options.data).name if options.data else plan.task.dataset
    return Results(
        system=plan.name,
        task=plan.task.name,
        fields=field_kinds(plan.task),
        data=data,
        split=options.split,
        metrics=result.metrics,
        model=plan.spec.name,
        checkpoint=plan.weights.name,
        shots=len(plan.prompt.shots) if plan.prompt is not None else 0,
        prompt=plan.prompt.record() if plan.prompt is not None else None,
        counts=result.counts,
        cost=result.cost,
        settings={
            "fine_tuned": plan.fine_tuned,
            "trained_with": trained_with(plan.weights),
            "precision": precision,
            "row_length": plan.row_length,
            "max_new_tokens": options.max_new_tokens,
            "batch_tokens": options.batch_tokens,
            "limit": options.limit,
            "seed": options.seed,
            "ranks": n_ranks,
            "tp": options.tp,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        },
        versions=versions(),
    )


if __name__ == "__main__":
    run_guarded(main)
