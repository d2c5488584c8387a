"""The options of ``eval.py`` with their defaults; `eval.resolve.load_config` reads and checks them.

This file does not import PyTorch, so that ``--help`` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from data.decoder.fewshot import SHOT_TOKENS
from data.files.paths import PathText
from train.config import PROMPT_OPTIONS

DESCRIPTION = """Score a model on a task, fine-tuned or not. Run alone or under torchrun.

A decoder is scored by the text that it generates, an encoder by its heads. Options about prompts are for decoders.
gpt-4o, gpt-4, gpt-3.5-turbo and, with --api_model and --base_url, any other model are answered by a server.

--combine and --compare read runs that were scored before; no model is loaded."""

# Options for one kind of model only. An encoder has no prompt and fits on one GPU.
DECODER_ONLY = (*PROMPT_OPTIONS, "decode", "joint_order", "new_prompt", "row_length", "tp")
ENCODER_ONLY = ("max_length",)
# Options about weights and how they are run. A server that answers for a model has its own.
WEIGHTS_ONLY = ("checkpoint", "decode", "abstain_below", "calibrate", "template", "new_prompt", "max_length",
                "batch_tokens", "tp", "precision", "device", "allow_mismatch", "cache_dir", "plan", "gpu",
                "gpus")  # fmt: skip


def abstain_problems(below: float | None, decode: str | None) -> list[str]:
    """Problems in ``--abstain_below``.

    Args:
        decode: what a decoder may write; None: the model is an encoder, or it may write valid answers only.
    """
    if below is None:
        return []
    problems = [] if 0 < below <= 1 else [f"abstain_below = {below}: must be above 0 and at most 1."]
    if decode == "free":
        problems.append(f"--abstain_below {NEEDS_PROBABILITIES}")
    return problems


NEEDS_PROBABILITIES = "needs the probabilities of labels, and --decode free has none. Give --decode labels."


@dataclass(frozen=True)
class ApiOptions:
    api_model: str | None = None
    """The model's name at the server; default: that of --model. Needed with --model api."""
    base_url: str | None = None
    """A server that speaks the OpenAI chat API, such as http://localhost:8080/v1; default: OpenAI's for its models."""
    key_env: str | None = None
    """Environment variable with the server's key; default: OPENAI_API_KEY for OpenAI's server, and no key for
    another."""
    concurrency: int = 8
    """Requests in flight at a time."""
    attempts: int = 8
    """How often a request is sent at most. Rate limits, server errors, time-outs and answers that break off are tried
    again, after a wait that doubles or that the server names."""
    timeout: float = 120.0
    """Seconds without a byte from the server after which a request is sent again."""
    prices: Path | None = None
    """TOML file with prices; default: eval/api/prices.toml."""
    max_cost: float | None = None
    """Stop before the answers cost more than this, in US dollars, those of earlier runs into the same --output
    included."""
    yes: bool = False
    """Do not ask before the first request, only print the estimate of tokens and cost."""
    dump_requests: Path | None = None
    """Write the requests to this file in the format of OpenAI's Batch API, print tokens and cost, and exit."""
    answers: Path | None = None
    """Score the answers in this file instead of asking: a batch's output, or lines of {"id": ..., "answer": ...}."""
    allow_missing: bool = False
    """With --answers: count examples without an answer as unparsed."""


@dataclass(frozen=True)
class EvalConfig:
    config: Path | None = None
    """TOML file with options; the command line overrides it."""
    model: str = ""
    """Name of a model preset (see checkpoints_tools/registry.py)."""
    checkpoint: Path | None = None
    """Checkpoint folder, export of a run, or a run's checkpoints/step_N folder; default: checkpoints/<model>."""
    task: PathText = ""
    """Task name or TOML file; default: the built-in task that the checkpoint was fine-tuned on. For a task of your own,
    give its TOML file."""
    list_labels: tyro.conf.DisallowNone[bool | None] = None
    """List the labels in the instruction; default: as in fine-tuning, else on."""
    wording: Literal["clean", "paper"] | None = None
    """Text of the prompt. paper: the paper's listings word by word. clean: the same with their mistakes corrected.
    Default: as in fine-tuning, else clean."""
    shots: int | None = None
    """Few-shot examples in the prompt; default: as in fine-tuning, else 0."""
    shots_choice: Literal["balanced", "random", "ids"] | None = None
    """How they are chosen from the training split. balanced: labels take turns; random; ids: those of shot_ids.
    Default: as in fine-tuning, else balanced."""
    shots_seed: int | None = None
    """Seed of their choice; default: as in fine-tuning, else seed."""
    shot_ids: tuple[str, ...] = ()
    """Ids of the few-shot examples, for shots_choice ids."""
    data: PathText | None = None
    """Path of the data set, or 'sample' for the embedded one; default: the folder that data.download fills."""
    split: Literal["train", "dev", "test"] = "test"
    """Split to score."""
    limit: int | None = None
    """Score only this many examples (chosen by seed)."""
    joint_order: Literal["listing", "section"] | None = None
    """Order of a joint task's answers; default: as in fine-tuning, else as in the paper's listings."""
    slot_answer: Literal["list", "spans"] | None = None
    """How one label per word is answered (see train.py --help); default: as in fine-tuning, else as the task says."""
    slot_tags: Literal["types", "bio"] | None = None
    """What a list has for each word: its type or a BIO tag; default: as in fine-tuning, else types."""
    template: str = "auto"
    """Chat template, if the checkpoint stores no prompt (see data/decoder/templates.py); auto: the checkpoint's own."""
    shot_tokens: int = SHOT_TOKENS
    """Each few-shot document is cut to this many tokens."""
    seed: int = 0
    """Seed for choosing few-shot examples and the examples of --limit."""
    new_prompt: bool = False
    """Build the prompt from these options instead of using the one that the checkpoint was fine-tuned with."""
    row_length: int | None = None
    """Maximum input length in tokens, prompt and answer together; default: as in fine-tuning, else the recipe's."""
    max_length: int | None = None
    """Maximum document length of an encoder in tokens, special tokens included; default: as stored with the checkpoint,
    else 512 or the model's number of positions, if smaller."""
    max_new_tokens: int | None = None
    """Maximum answer length in tokens; default: each example's longest valid answer, in any form that is read."""
    decode: Literal["free", "labels"] = "free"
    """What a decoder may write. free: anything. labels: valid answers only, and the probabilities of a class field's
    labels."""
    abstain_below: float | None = None
    """Do not give labels of class fields that are less probable than this, in (0, 1]. The figures stay those of all
    examples; the result also says how many are answered, and how many of these are right."""
    calibrate: bool = False
    """Fit a temperature to the scored split, so that of labels with a probability of 80% about 80% are right, and store
    it in the checkpoint's folder. Not for the test split."""
    batch_tokens: int = 4096
    """Maximum tokens in a decoding batch, or in an encoder's packed row. 1 decodes one example at a time, so that the
    seconds are the latency of one call."""
    tp: int = 1
    """Tensor parallelism: number of ranks that split each matrix, for a model too large for one GPU (70B: 8). Further
    ranks hold replicas, which score different examples."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of weights and compute; auto: bf16 with hardware support for it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if available, else the CPU."""
    allow_mismatch: bool = False
    """Use the checkpoint's config.json even if it differs from the preset."""
    output: Path | None = None
    """Folder for results.json and predictions.jsonl; default: runs/eval/<checkpoint>-<task>-<shots>shot, with decode,
    calibrate, abstain_below, split and limit if they are not the default. One that has the result of another scoring is
    refused."""
    name: str | None = None
    """Name of this run in tables; default: checkpoint and shots."""
    cache_dir: Path | None = None
    """Folder for cached tokenized data; default: .cache/prepared next to the code."""
    combine: tuple[Path, Path] | None = None
    """Join two single-task runs (output folders) by example id into joint metrics: the paper's dual set-up."""
    compare: tuple[Path, ...] = ()
    """Print several runs (output folders) in one table."""
    plan: bool = False
    """Print the memory and time that scoring would need, then exit, with status 1 if it does not fit. Needs no GPU and
    no weights."""
    gpu: Literal["a100-80g", "h100-80g", "h200"] = "a100-80g"
    """GPU type for --plan."""
    gpus: int | None = None
    """Number of GPUs for --plan; default: the number of ranks that torchrun started, else 8."""
    winner: Path | None = None
    """With --compare: exit with status 1 unless this run beats all others in every main metric, and with 2 if
    one was scored on other examples."""
    winner_figure: str | None = None
    """With --winner: the only metric that decides, by its name in the table. Other metrics in which the run is behind
    are still printed."""
    markdown: Path | None = None
    """With --compare: also write the table and its notes to this Markdown file."""
    api: ApiOptions = field(default_factory=ApiOptions)
