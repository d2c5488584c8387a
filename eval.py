"""Score a model on a task, alone or under torchrun. ``--help`` lists the options; ``eval/config.py`` defines them.

python eval.py --model smollm2_135m --checkpoint checkpoints/smollm2_135m --task massive_joint --data sample
python eval.py --model smollm2_135m --checkpoint runs/demo/export --data sample
python eval.py --model gpt-4o --task massive_joint --shots 5
python eval.py --combine runs/intent runs/slots --output runs/dual
python eval.py --compare runs/before runs/after
"""

from __future__ import annotations

import train.allocator  # noqa: F401  # before PyTorch is imported

# isort: split
import sys

from data.example import hash_examples
from data.terminal import open_streams
from eval.config import DESCRIPTION, EvalConfig
from train import stopping
from train.options import show_help

if __name__ == "__main__":
    open_streams()
    stopping.watch()
    show_help(EvalConfig, sys.argv[1:], DESCRIPTION)  # before the slow imports below

# isort: split
import logging
from contextlib import suppress
from pathlib import Path

import seqeval.metrics  # noqa: F401  # with scikit-learn: what is missing shows before the scoring, not after it
import torch
import torch.distributed as dist

from checkpoints_tools.formats import CALIBRATION_FILE
from checkpoints_tools.hf_config import DTYPES
from checkpoints_tools.registry import ApiModel, get_model
from data.errors import UserError
from data.files.documents import read_json
from data.task_file import read_task
from data.tasks import TokenField
from eval.api.run import run_api
from eval.combine import combine
from eval.gather import ScoreResult
from eval.identity import identity_of
from eval.job import ScoringRanks
from eval.kept_lines import writable
from eval.lengths import warn_of_length
from eval.memory import ScoringLoad, check_fits, usable_now
from eval.output import check_free, output_folder
from eval.partial import PartialAnswers, open_partial_answers
from eval.progress import Progress
from eval.provenance import hash_texts, versions
from eval.report import compare, compare_command, show_details
from eval.resolve import load_config
from eval.results import TRAINED_ON, Results, field_kinds, folder_of, label_sets, other_labels, write_run
from eval.score import request_lengths, score
from eval.setup import ScoringSetup, build_model, open_scoring
from eval.stored_calibration import Calibration, fit
from eval.weights import hash_weights, trained_with
from train.launched import env_rank, env_world_size
from train.next_command import labelling_advice, planned_command
from train.parallel.distributed import (
    pick_device,
    resolve_precision,
    run_guarded,
    set_up_logging,
    start,
)
from train.parallel.mesh import MeshShape, lay_out_world

log = logging.getLogger("eval")


def main() -> None:
    set_up_logging()
    options = load_config(sys.argv[1:])
    if options.compare:
        if not compare(options.compare, options.winner, options.winner_figure, options.markdown):
            sys.exit(1)
    elif options.combine:
        names = [folder_of(run).resolve().name for run in options.combine]
        output = options.output or Path("runs/eval") / "+".join(names)
        results = combine(*options.combine, output, options.name)
        show_details(results)
        log.info("written to %s", output)
        log.info("To see them beside each other:\n  %s", compare_command(*options.combine, output))
    elif isinstance(get_model(options.model), ApiModel):
        run_api(options)
    elif options.plan:
        from eval.plan import describe, make_plan  # what it imports takes most of a second

        plan = make_plan(options)
        log.info("%s", describe(plan))
        if not plan.fits:
            sys.exit(1)
        nodes = plan.mesh.n_ranks // plan.per_node
        log.info("\nTo start it:\n  %s", planned_command(plan.per_node, nodes))
    else:
        run(options)


def run(options: EvalConfig) -> None:
    """Score a checkpoint and write its run folder."""
    device = pick_device(options.device)
    shape = lay_out_world(tp=options.tp)
    setup = open_scoring(options)
    precision = resolve_precision(options.precision, device.type)
    results = describe(setup, precision, device)
    # Ranks of one tensor-parallel group decode the same examples; replicas decode different ones.
    rank = env_rank() // options.tp if env_rank() % options.tp == 0 else None
    identity = identity_of(setup, precision, results.weights)
    with output_folder(setup.output):
        check_free(setup.output, results)
        with open_partial_answers(setup.output, len(setup.job.examples), identity, rank) as partial:
            with stopping.saying(partial.kept):
                result = answer_all(setup, precision, device, shape, partial)
            if env_rank() == 0:
                if options.calibrate:
                    calibrate(setup, result)
                results.metrics, results.counts, results.cost = result.metrics, result.counts, result.cost
                if setup.trained_on is not None:
                    results.counts[TRAINED_ON] = setup.trained_on
                results.settings["kept_answers"] = len(partial.answers)
                write_run(setup.output, results, result.predictions)
            dist.barrier()
            partial.remove()
    if env_rank() == 0:
        if n_cut := result.counts["not_stopped"]:
            n = len(result.predictions)
            log.info("%d of %d answers ran into their limit of tokens (--max_new_tokens)", n_cut, n)
        show_details(results)
        if partial.answers:
            n_new = len(result.predictions) - len(partial.answers)
            log.info("continued: seconds and computed tokens are those of the last %d examples", n_new)
        log.info("written to %s", setup.output)
        log.info("%s", how_to_label(setup))


def calibrate(setup: ScoringSetup, result: ScoreResult) -> None:
    """Fit the temperatures of the class fields to the answers, and store them with the checkpoint."""
    found, path = fit(setup.job, result.predictions, setup.options.split), setup.weights.path / CALIBRATION_FILE
    with suppress(UserError):  # a damaged one tells nothing
        if path.is_file():
            log.info("note: this replaces the temperatures that were stored: %s",
                     read_json(path, Calibration).describe())  # fmt: skip
    with writable(setup.weights.path):
        found.save(setup.weights.path)
    log.info("%s\nwritten to %s", found.describe(), path)


def answer_all(
    setup: ScoringSetup, precision: str, device: torch.device, shape: MeshShape, partial: PartialAnswers
) -> ScoreResult:
    """Load the model, and let it answer what is left."""
    options, job = setup.options, setup.job
    if device.type == "cuda":
        load = ScoringLoad(setup.spec, setup.config, DTYPES[precision], request_lengths(job), job.max_batch_tokens)
        check_fits(load, options.tp, shape.n_data, usable_now(device))
    world = start(device, shape)
    partial.agree()
    log.info("scoring %s on %s (%s): %d examples, %s, %d rank(s) on %s", setup.weights.path, setup.task.name,
             options.split, len(job.examples), precision, world.size, device.type)  # fmt: skip
    if setup.prompt is not None:
        why = f" ({setup.prompt.template_from})" if setup.prompt.template_from else ""
        log.info("prompt: %s template%s, %d shots, %s", setup.prompt.template, why, len(setup.prompt.shots),
                 "as stored with the checkpoint" if setup.fine_tuned else "built from the options")  # fmt: skip
        warn_of_length(setup)
    else:
        log.info("documents are cut to %d tokens, packed into rows of %d", job.max_length, job.max_batch_tokens)
    if setup.calibration is not None:
        given = ", ".join(f"{name} {value:.3g}" for name, value in job.temperatures.items())
        log.info("probabilities: at the temperature of %s (%s)", CALIBRATION_FILE, given)
    n_replicas = world.shape.n_data
    if partial.done:
        log.info("continuing: %d of %d examples are answered in %s",
                 len(partial.done), len(job.examples), setup.output)  # fmt: skip
    if options.tp > 1:
        log.info("%d replica(s) of the model, each split over %d ranks", n_replicas, options.tp)
    model = build_model(setup, precision, device, world.mesh["tensor"] if options.tp > 1 else None)
    with Progress(len(job.examples), n_replicas, world.is_main, len(partial.done)) as progress:
        return score(model, job, ScoringRanks.of(world), progress.advance, partial)


def how_to_label(setup: ScoringSetup) -> str:
    """What to type to label text with the model that was scored, whose folder may have its task."""
    given, knows_task = setup.options, read_task(setup.weights.path) is not None
    options = {
        "checkpoint": given.checkpoint,
        "task": None if knows_task else given.task or setup.task.name,
        "model": None if knows_task else given.model,
    }
    return labelling_advice(options, given.tp)


def describe(setup: ScoringSetup, precision: str, device: torch.device) -> Results:
    """Collect the contents of ``results.json`` that are known before the first answer: all but the figures."""
    options = setup.options
    data = Path(options.data).name if options.data else setup.task.dataset
    return Results(
        system=setup.name,
        task=setup.task.name,
        fields=field_kinds(setup.task),
        others=other_labels(setup.task),
        data=data,
        split=options.split,
        metrics={},
        model=setup.spec.name,
        checkpoint=setup.weights.name,
        shots=len(setup.prompt.shots) if setup.prompt is not None else 0,
        prompt=setup.prompt.record() if setup.prompt is not None else None,
        settings={
            "fine_tuned": setup.fine_tuned,
            "answers": {f.name: f.answer for f in setup.task.fields if isinstance(f, TokenField)}
            if setup.prompt is not None
            else None,
            "trained_with": trained_with(setup.weights),
            "precision": precision,
            "row_length": setup.max_length,
            "max_new_tokens": options.max_new_tokens,
            "decode": options.decode if setup.prompt is not None else None,
            "temperature": setup.job.temperatures or None,
            "abstain_below": options.abstain_below,
            "batch_tokens": options.batch_tokens,
            "limit": options.limit,
            "limited": setup.limited,
            "seed": options.seed,
            "ranks": env_world_size(),
            "tp": options.tp,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        },
        versions=versions(),
        weights=hash_weights(setup.weights.path),
        examples=hash_examples(setup.job.examples),
        texts=hash_texts(setup.job.examples, setup.task.name),
        labels=label_sets(setup.task) if setup.has_probabilities else {},
    )


if __name__ == "__main__":
    run_guarded(main)
