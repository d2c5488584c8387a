"""What a run trains on: the training split divided, tokenized, weighted, and made into steps.

`train/setup.py` does this for a run and `train/planning/plan.py` for a plan.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

from checkpoints_tools.architectures import ModelConfig, architecture_of
from checkpoints_tools.architectures import Tokenizer as AnyTokenizer
from checkpoints_tools.registry import ModelSpec
from data.batch import Samples
from data.class_weights import ClassWeights
from data.decoder.answer_weights import answer_weights
from data.decoder.fewshot import PromptSpec, choose_shots, cut_shots
from data.decoder.round_trip import check_labels
from data.decoder.samples import SampleSet, prepare
from data.decoder.templates import Prompt, pick_template
from data.decoder.tokenizer import Tokenizer
from data.encoder.samples import AnyTokenizer as EncoderTokenizer
from data.encoder.samples import SampleSet as EncoderSampleSet
from data.encoder.samples import prepare as prepare_encoder
from data.errors import UserError
from data.example import Example
from data.loader import StepLoader
from data.source import draw_to_train, holdout
from data.tasks import ClassField, Task
from train.config import TrainConfig

MOST_STEPS = 10**9
# Fewer training texts a label than these are few. On both tables of docs/few_labels.md, training the encoder paid at 64
# and hardly at 16, training a decoder with heads did not at 16; the trained decoder was still behind the frozen encoder
# at 64.
Kind = Literal["encoder", "decoder", "decoder with heads"]
FEW: dict[Kind, int] = {"encoder": 32, "decoder": 65, "decoder with heads": 32}

log = logging.getLogger(__name__)

CACHE_DIR = Path(__file__).resolve().parent.parent / ".cache" / "prepared"


def divide(
    examples: list[Example], task: Task, config: TrainConfig
) -> tuple[list[Example], list[Example], list[Example]]:
    """Divide the training split into few-shot examples, held-out examples and those to train on, by seed.

    The few-shot examples are drawn first, from the entire split, as `eval.prompt` draws them for a checkpoint that was
    never fine-tuned. Holding out must not change the prompt. Otherwise scores before and after fine-tuning would differ
    in more than the weights.
    """
    seed, data = config.train.seed, config.data
    shots = []
    if data.shots or data.shot_ids:
        shots = choose_shots(examples, task, data.shots, shots_seed(config), data.shots_choice, data.shot_ids)
    shown = {shot.id for shot in shots}
    examples = [example for example in examples if example.id not in shown]
    held_out: list[Example] = []
    if config.eval.holdout:
        examples, held_out = holdout(examples, config.eval.holdout, seed)
    if config.data.limit is not None and config.data.limit < len(examples):
        examples = draw_to_train(examples, config.data.limit, seed)
    return held_out, shots, examples


def shots_seed(config: TrainConfig) -> int:
    """The seed of the few-shot examples' choice."""
    return config.train.seed if config.data.shots_seed is None else config.data.shots_seed


def prepare_samples(
    config: TrainConfig,
    spec: ModelSpec,
    model_config: ModelConfig,
    task: Task,
    tokenizer: AnyTokenizer,
    examples: list[Example],
    shots: list[Example],
) -> tuple[SampleSet | EncoderSampleSet, PromptSpec | None]:
    """Tokenize the examples to train on; for a decoder, also return the prompt."""
    max_length, cache_dir = longest_input(config, model_config), config.data.cache_dir or CACHE_DIR
    if spec.kind == "encoder":
        assert isinstance(tokenizer, EncoderTokenizer), "of a model with heads"
        return prepare_encoder(examples, task, tokenizer, max_length, cache_dir=cache_dir), None
    decoder_tokenizer = cast(Tokenizer, tokenizer)
    prompt_spec = _prompt_spec(config, spec, task, decoder_tokenizer, shots)
    prompt = prompt_spec.build(task)
    check_labels(task, prompt, decoder_tokenizer)
    samples = prepare(examples, task, prompt, decoder_tokenizer, max_length, cache_dir=cache_dir)
    return samples, replace(prompt_spec, answer_tokens=int(samples.label_lengths.max()))


def weigh(
    samples: SampleSet | EncoderSampleSet,
    weights: ClassWeights,
    examples: list[Example],
    task: Task,
    prompt: Prompt | None,
    tokenizer: AnyTokenizer,
) -> None:
    """Give the samples of these examples their weights in the loss; ``prompt`` is a decoder's."""
    if isinstance(samples, EncoderSampleSet):
        samples.weigh(weights, task)
    else:
        assert prompt is not None
        samples.label_weights = answer_weights(samples, examples, task, prompt, cast(Tokenizer, tokenizer), weights)


def longest_input(config: TrainConfig, model_config: ModelConfig) -> int:
    """Maximum tokens of an input: a decoder's prompt and answer, an encoder's document with special tokens."""
    batch = config.batch
    architecture = architecture_of(model_config)
    if architecture.row_bounds_input:
        return batch.row_length
    return batch.max_length or min(architecture.longest_document, model_config.max_position, batch.row_length)


def _prompt_spec(
    config: TrainConfig, spec: ModelSpec, task: Task, tokenizer: Tokenizer, shots: list[Example]
) -> PromptSpec:
    choice = pick_template(config.data.template, tokenizer, spec.chat_template)
    return PromptSpec(
        task=task.name,
        template=choice.template,
        template_from=choice.why,
        joint_order=config.data.joint_order,
        shots=tuple(cut_shots(shots, task, tokenizer, config.data.shot_tokens)),
        seed=shots_seed(config),
        shots_choice=config.data.shots_choice,
        shot_tokens=config.data.shot_tokens,
        list_labels=config.data.list_labels,
        wording=config.data.wording,
        row_length=config.batch.row_length,
    ).signed(task)


def warn_of_length(samples: SampleSet, model_config: ModelConfig, config: TrainConfig) -> None:
    """Warn if samples are longer than what the model was trained for."""
    limit = model_config.max_position
    if n_longer := samples.count_longer_than(limit):
        log.warning(
            "warning: row_length %d exceeds the %d tokens the model was trained for; %d of %d samples are longer.",
            config.batch.row_length,
            limit,
            n_longer,
            len(samples),
        )


def hash_samples(samples: SampleSet | EncoderSampleSet) -> str:
    """The hash by which a checkpoint identifies its training data."""
    digest = hashlib.sha256(json.dumps(samples.ids).encode())
    for array in samples.contents():
        digest.update(array.tobytes())
    return digest.hexdigest()


def build_loader(config: TrainConfig, samples: Samples, *, rank: int, world_size: int) -> StepLoader:
    """The loader of a run over ``world_size`` ranks that work on different samples."""
    return StepLoader(
        samples,
        batch_size=config.batch.batch_size,
        batch_unit=config.batch.batch_unit,
        row_length=config.batch.row_length,
        packing=config.batch.packing,
        share_prefix=config.batch.share_prefix,
        micro_rows=config.batch.micro_rows,
        seed=config.train.seed,
        rank=rank,
        world_size=world_size,
    )


def describe_repeats(loader: StepLoader) -> str | None:
    """What to say, and to set, if a step takes the training data more than once; else None."""
    n, batch, unit = loader.units_per_epoch, loader.batch_size, loader.batch_unit
    if batch <= n:
        return None
    rows = f", which fill {n} row(s) of --row_length {loader.row_length}," if unit == "rows" else ""
    other = ", a smaller --row_length, or --batch_unit samples" if unit == "rows" else ""
    return (
        f"a step of --batch_size {batch} {unit} takes the {len(loader.samples)} training samples{rows} {batch / n:.1f} "
        f"times. Set --batch_size to {n} or less{other}."
    )


def describe_few(
    task: Task,
    examples: list[Example],
    kind: Kind,
    new_heads: Callable[[], bool] = lambda: True,
) -> str | None:
    """What to say if a user's own task has few training texts a label; else None.

    The median label counts: a few rare ones are common, and another matter.

    Args:
        new_heads: whether the run could fit new heads and train nothing else; asked only if it matters.
    """
    counts = {
        field.name: Counter(example.class_label(field.name) for example in examples)
        for field in task.fields
        if isinstance(field, ClassField) and task.custom is not None and examples
    }
    few = {name: median for name, own in counts.items() if (median := int(statistics.median(own.values()))) < FEW[kind]}
    if not few:
        return None
    listed = ", ".join(f"half of the labels of {name} have at most {median}" for name, median in few.items())
    what = f"few training texts: {listed}."
    if kind != "decoder" and not new_heads():
        return f"{what} Look at the score on held-out texts (docs/few_labels.md)."
    other = {
        "encoder": "The heads alone (--steps 0) may be as good.",
        "decoder with heads": "With 8 or 16, the heads alone (--steps 0) were no worse on both tables measured.",
        "decoder": "With so few, all-MiniLM-L6-v2 (--model bert) was ahead of SmolLM2-135M on both tables measured.",
    }[kind]
    return f"{what} {other} Compare on held-out texts (docs/few_labels.md)."


def count_steps(config: TrainConfig, loader: StepLoader) -> int:
    """Optimizer steps of a run, from ``steps`` or ``epochs``.

    Raises:
        UserError: these are more than any run takes, or the warm-up is not shorter.
    """
    train, warmup = config.train, config.optim.warmup_steps
    total = train.steps
    if total is None:
        assert train.epochs is not None, "find_problems requires one of the two"
        total = max(loader.n_steps_for(min(train.epochs, MOST_STEPS)), train.min_steps)
    if max(total, train.epochs or 0) > MOST_STEPS:
        given = f"steps = {train.steps}" if train.steps is not None else f"epochs = {train.epochs:g}"
        given = f"min_steps = {train.min_steps}" if train.min_steps > MOST_STEPS else given
        raise UserError(f"{given}: a run has at most {MOST_STEPS:,} steps.")
    if 1 <= warmup > total - 1:
        raise UserError(f"warmup_steps = {warmup:g} must be less than the {total} steps of the run.")
    return total
