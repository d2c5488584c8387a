"""The options of ``eval.py`` with their defaults; `eval.resolve.load_config` reads and checks them.

Here PyTorch is not imported, so that the help is there at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from data.decoder.fewshot import SHOT_TOKENS
from train.config import PROMPT_OPTIONS

DESCRIPTION = """Score a model on a task by what it emits, fine-tuned or not. Run alone or under torchrun.

A decoder is scored by the text that it writes, an encoder by its heads; the options about prompts are for decoders.

With --combine or --compare, join or compare runs that were scored before; nothing is loaded then."""

# Beside the prompt, what means nothing to an encoder, which fits on one GPU; and what means nothing to a decoder.
DECODER_ONLY = (*PROMPT_OPTIONS, "joint_order", "new_prompt", "row_length", "tp")
ENCODER_ONLY = ("max_length",)


@dataclass(frozen=True)
class EvalConfig:
    config: Path | None = None
    """TOML file with options; the command line wins over it."""
    model: str = ""
    """Which model: a preset's name (see checkpoints_tools/registry.py)."""
    checkpoint: Path | None = None
    """Hugging Face folder, export of a run, or a run's checkpoints/step_N folder; default: checkpoints/<model>."""
    task: str = ""
    """Which task (a name or a TOML file); default: the one the checkpoint was fine-tuned on."""
    list_labels: tyro.conf.DisallowNone[bool | None] = None
    """List the labels in the instruction; default: as in fine-tuning, or yes."""
    shots: int | None = None
    """Few-shot examples in the prompt; default: as in fine-tuning, or 0."""
    data: str | None = None
    """Where the data set lies: a path, or 'sample' for the embedded one; default: where data.download puts it."""
    split: Literal["train", "dev", "test"] = "test"
    """Which examples are scored."""
    limit: int | None = None
    """Score only this many examples, drawn by seed."""
    joint_order: Literal["listing", "section"] | None = None
    """Order of a joint task's answers; default: as in fine-tuning, or the paper's listings."""
    template: str = "auto"
    """Chat template of a prompt that is not stored (see data/decoder/prompts.py); auto: the checkpoint's own."""
    shot_tokens: int = SHOT_TOKENS
    """Each few-shot document is cut to this many tokens."""
    seed: int = 0
    """Seed of the choice of few-shot examples and of --limit."""
    new_prompt: bool = False
    """Build the prompt from these options although the checkpoint brings the one it was fine-tuned with."""
    row_length: int | None = None
    """Longest input in tokens, prompt and answer together; default: as in fine-tuning, or the recipe's for its size."""
    max_length: int | None = None
    """Longest document of an encoder in tokens, special tokens included; default: as in fine-tuning, as the
    checkpoint tells, or else 512, or as many as the model has positions for."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; default: per example, what its longest valid answer needs."""
    batch_tokens: int = 4096
    """Most tokens in one decoding batch; 1 decodes one example at a time, so that seconds are a call's latency. For an
    encoder the most tokens in a packed row."""
    tp: int = 1
    """Ranks that split each matrix among them, for a model that one GPU cannot hold (70B: 8); ranks beyond these hold
    replicas, which share the examples."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of weights and compute; auto: as in training, bf16 where the hardware multiplies it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA when there is any."""
    allow_mismatch: bool = False
    """Take the checkpoint's own config.json even where it differs from the preset."""
    output: Path | None = None
    """Where results.json and predictions.jsonl go; default: runs/eval/<checkpoint>-<task>-<shots>shot."""
    name: str | None = None
    """What tables call this run; default: checkpoint and shots."""
    cache_dir: Path | None = None
    """Where tokenized data is cached by content; default: .cache/prepared beside the code."""
    combine: tuple[Path, Path] | None = None
    """Join two single-task runs (output folders) by example id into joint figures: the paper's dual set-up."""
    compare: tuple[Path, ...] = ()
    """Print several runs (output folders) in one table."""
    plan: bool = False
    """Say what scoring would need and cost, and whether it fits; then end, with status 1 if it does not. Needs
    no GPU and no weights."""
    gpu: Literal["a100-80g", "h100-80g", "h200"] = "a100-80g"
    """GPU that --plan is for."""
    gpus: int | None = None
    """GPUs in all that --plan is for; default: as many as torchrun started ranks, else 8."""
    winner: Path | None = None
    """With --compare: exit with status 1 unless this run beats all others in every main figure."""
    winner_figure: str | None = None
    """With --winner: the one figure that decides, by its name in the table; where the run is behind is said all the
    same."""
    markdown: Path | None = None
    """With --compare: write the table to this Markdown file too."""
