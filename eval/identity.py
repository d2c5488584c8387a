"""What the answers of a scoring depend on, so that an interrupted one is continued only with the same."""

from __future__ import annotations

import hashlib
import json

from data.example import hash_examples
from data.task_file import task_record
from eval.setup import ScoringSetup


def identity_of(setup: ScoringSetup, precision: str, weights: str) -> dict[str, str]:
    """By name, all that the answers depend on but for rounding.

    Not the number of ranks, the device or the size of batches: in fp32 they change nothing, and in bf16 as little as
    `docs/scoring.md` says. Nor temperatures and ``--abstain_below``, which are applied when all answers are there.

    Args:
        weights: hash of the weights.
    """
    job, options = setup.job, setup.options
    assert job.tokenizer is not None
    task = task_record(setup.task)
    task.pop("toml", None)  # a comment in it changes no answer
    prompt = "none" if setup.prompt is None else f"{len(setup.prompt.shots)}-shot ({_short(repr(job.prompt))})"
    return {
        "weights": weights,
        "model": f"{setup.spec.name} ({_short(repr(setup.config))})",
        "tokenizer": _short(job.tokenizer.fingerprint),
        "task": f"{setup.task.name} ({_short(json.dumps([task, setup.output_order], sort_keys=True))})",
        "prompt": prompt + (", fine-tuned" if setup.fine_tuned else ""),
        "split": options.split,
        "examples": f"{len(job.examples)} ({_short(hash_examples(job.examples))})",
        "maximum length": str(setup.max_length),
        "max_new_tokens": str(options.max_new_tokens),
        **({"decode": options.decode} if options.decode != "free" else {}),
        "precision": precision,
    }


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
