"""Read and check the options of ``eval.py``, as far as possible without data or weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace

from checkpoints_tools.registry import MODELS, ApiModel, ModelSpec, get_model, model_names
from data.decoder.fewshot import shots_problems
from data.decoder.prompts import check_wording
from data.errors import UserError
from data.tasks import get_task
from eval.api.options import api_problems, misplaced
from eval.config import DECODER_ONLY, ENCODER_ONLY, NEEDS_PROBABILITIES, EvalConfig, abstain_problems
from train import options
from train.resolve import problems_of_kind

OF_COMPARE = ("winner", "winner_figure", "markdown")
OF_FINISHED = ("combine", "compare", *OF_COMPARE)  # who gives one of them reads finished runs


def load_config(argv: Sequence[str]) -> EvalConfig:
    """Resolve the options from the command line and the TOML file below it.

    Raises:
        UserError: one message with every problem found: unknown names, wrong types, values out of range,
            contradictions.
    """
    problems: list[str] = []
    seen: set[str] = set()
    from_toml, from_argv = options.read_layers(EvalConfig, argv, problems, seen)
    config = options.expand_paths(options.parse(EvalConfig, [*from_toml, *from_argv]), problems)
    given = {name for name in OF_FINISHED if getattr(config, name) or (problems and name in seen)}
    spec = MODELS.get(config.model)
    if config.checkpoint is None and isinstance(spec, ModelSpec) and not given & {"combine", "compare"}:
        config = replace(config, checkpoint=spec.default_checkpoint)
    options.report(problems + options.text_problems(config) + find_problems(config, given))
    return config


def find_problems(config: EvalConfig, given: Set[str]) -> list[str]:
    """Find all problems in the options that show without opening data or weights.

    Args:
        given: those of `OF_FINISHED` that the user wrote, also if their values were refused.
    """
    if "combine" in given:
        return _only(config, "--combine", {"combine", "output", "name"})
    if "compare" in given:
        return _only(config, "--compare", {"compare", *OF_COMPARE})
    problems = [f"--{name} is for --compare." for name in OF_COMPARE if getattr(config, name) is not None]
    spec = MODELS.get(config.model)
    if config.model:
        problems += _errors_of(lambda: get_model(config.model))
    elif not given:
        problems.append(f"no --model given. Known: {', '.join(model_names(api=True))}.")
    if isinstance(spec, ApiModel):
        problems += api_problems(config, spec)
    else:
        problems += misplaced(config)
        if spec is not None:
            problems += problems_of_kind(config, spec, DECODER_ONLY, ENCODER_ONLY)
            problems += probability_problems(config, spec)
        is_known = spec is not None or not config.model  # an unknown model may need none
        if config.checkpoint is None and is_known and not given:
            problems.append("no --checkpoint given: the folder with the weights to score.")
    if config.task:
        problems += _errors_of(lambda: _check_task(config))
    problems += shots_problems(config.shots_choice or "balanced", config.shot_ids, config.shots)
    least = {"shots": 0, "shots_seed": 0, "limit": 1, "shot_tokens": 1, "seed": 0, "row_length": 16,
             "max_new_tokens": 1}  # fmt: skip
    for name, bound in {**least, "batch_tokens": 1, "max_length": 3, "tp": 1}.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            problems.append(f"{name} = {value}: must be at least {bound}.")
    return problems


def probability_problems(config: EvalConfig, spec: ModelSpec) -> list[str]:
    """Problems in options that need probabilities, of models whose weights are loaded here."""
    decode = config.decode if spec.kind == "decoder" else None
    problems = abstain_problems(config.abstain_below, decode)
    if config.calibrate and decode == "free":
        problems.append(f"--calibrate {NEEDS_PROBABILITIES}")
    if config.calibrate and config.split == "test":
        problems.append(
            "--calibrate fits to the scored examples, and on --split test all figures would be of examples that it was "
            "fitted to. Give --split dev."
        )
    if config.calibrate and config.abstain_below is not None:
        problems.append("--calibrate scores without a temperature. Give --abstain_below when you score with it.")
    return problems


def _check_task(config: EvalConfig) -> None:
    task = get_task(config.task, config.joint_order or "listing", config.slot_answer, config.slot_tags)
    check_wording(config.wording or "clean", task, config.list_labels is not False)


def _errors_of(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except UserError as error:
        return [str(error)]
    return []


def _only(config: EvalConfig, mode: str, allowed: set[str]) -> list[str]:
    """Refuse options about scoring: --combine and --compare read finished runs."""
    given, default = options.flatten(config), options.flatten(EvalConfig())
    others = [name for name in default if name not in allowed | {"config"} and given[name] != default[name]]
    return [f"{mode} reads finished runs; it takes no --{name}." for name in others]
