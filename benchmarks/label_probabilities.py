"""Measure what the probabilities of labels cost: seconds an example against free decoding, for 7, 20 and 60 labels.

    python -m benchmarks.label_probabilities [--checkpoint DIR] [--examples 64]

    free      greedy decoding, as eval.py --decode free
    labels    the probability of every label, as eval.py --decode labels

Both answer the same examples, in turn. Also: how often the most probable label is not what greedy decoding writes, and
the accuracy of both; and, for a list of types, BIO tags and spans, what finding the valid tokens takes for each token.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace

from benchmarks.common import (
    Inputs,
    Timing,
    checkpoint_folder,
    draw_examples,
    in_turn,
    load_average,
    load_ours,
    run_program,
    say,
    size_of,
    table,
    write_result,
)
from data.decoder.fewshot import PROMPT_FILE, PromptSpec
from data.decoder.prompts import build_prompt
from data.decoder.templates import encode_pieces, template_for
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.decoder.valid_tokens import ValidTokens
from data.errors import UserError
from data.example import Example
from data.tasks import SLOT_ANSWERS, TASKS, Task
from eval.decoder.labels import ValidAnswers
from eval.job import ScoringJob
from eval.results import Prediction
from eval.score import answer
from model.llama import Llama


@dataclass
class Args(Inputs):
    """Time the probabilities of labels against free decoding."""

    tasks: list[str] = field(default_factory=lambda: ["20ng_7", "20ng_20", "massive_intent"])
    """Tasks with one class field."""
    examples: int = 64
    """Test examples of each."""
    rounds: int = 2
    """Measurements of each way, after a warm-up."""
    row_length: int = 2048
    """Maximum tokens of prompt and answer; longer documents are cut."""


def measure(model: Llama, job: ScoringJob, args: Args) -> tuple[dict[str, Timing], dict[str, list[Prediction]]]:
    """Answer the job's examples in both ways, in turn."""
    found: dict[str, list[Prediction]] = {}

    def run(decode: str) -> None:
        found[decode] = answer(model, replace(job, decode=decode))

    variants = {decode: lambda n, decode=decode: run(decode) for decode in ("free", "labels")}
    in_turn(variants, range(0, 1))
    return in_turn(variants, range(1, args.rounds + 1)), found


def step_times(task: Task, tokenizer: Tokenizer, examples: list[Example]) -> tuple[float, float, float, int]:
    """Milliseconds to begin an answer; mean and longest microseconds for each of its tokens; and their number."""
    prompt = build_prompt(task, template_for(tokenizer))
    valid = ValidTokens(task, prompt, tokenizer)
    beginning, steps = 0.0, []
    for example in examples:
        start = time.perf_counter()
        writing = valid.start((), example.words)
        beginning += time.perf_counter() - start
        for token in encode_pieces(prompt.answer(task.write(example.labels, example.words)), tokenizer)[
            len(writing.forced) :
        ]:
            if writing.value is not None:
                break
            start = time.perf_counter()
            assert token in writing.next_tokens()
            writing.add(token)
            steps.append(time.perf_counter() - start)
    return 1e3 * beginning / len(examples), 1e6 * sum(steps) / len(steps), 1e6 * max(steps), len(steps)


def run(args: Args, argv: list[str]) -> None:
    load, rows, step_rows = load_average(), [], []
    with checkpoint_folder(args) as folder:
        model, tokenizer = load_ours(folder), load_tokenizer(folder)
        tuned = PromptSpec.load(folder / PROMPT_FILE) if (folder / PROMPT_FILE).is_file() else None
    if tuned is not None and args.tasks != [tuned.task]:
        raise UserError(
            f"--tasks {' '.join(args.tasks)}: the checkpoint was fine-tuned on {tuned.task}. Give that one."
        )
    for name in args.tasks:
        say(name)
        task = TASKS[name]
        (own,) = task.fields
        examples = draw_examples(task, "test", args.data, args.examples, args.seed)
        prompt = build_prompt(task, template_for(tokenizer)) if tuned is None else tuned.build(task)
        job = ScoringJob(task, tokenizer, examples, args.row_length, prompt)
        timings, found = measure(model, job, args)
        free, labels = found["free"], found["labels"]
        differ = sum(a.parsed != b.parsed for a, b in zip(free, labels, strict=True))
        unparsed = sum(bool(prediction.unparsed) for prediction in free)
        right = {way: sum(p.parsed[own.name] == p.gold[own.name] for p in found[way]) for way in found}
        n = len(examples)
        rows.append(
            (
                name,
                len(own.labels),
                ValidAnswers(task, prompt, tokenizer).load.longest(0),
                f"{timings['free'].median / n:.3f}",
                f"{timings['labels'].median / n:.3f}",
                f"{timings['labels'].median / timings['free'].median:.2f}",
                f"{differ} of {n}",
                f"{unparsed} of {n}",
                f"{100 * right['free'] / n:.1f}%",
                f"{100 * right['labels'] / n:.1f}%",
            )
        )
    examples = draw_examples(TASKS["massive_slots"], "test", args.data, args.examples, args.seed)
    for slot_answer in SLOT_ANSWERS:
        beginning, mean, longest, n_steps = step_times(
            TASKS["massive_slots"].with_slot_answer(slot_answer), tokenizer, examples
        )
        step_rows.append((slot_answer, n_steps, f"{beginning:.2f}", f"{mean:.0f}", f"{longest / 1e3:.1f}"))
    header = ["task", "labels", "tokens of their trie", "free: s/example", "labels: s/example", "ratio",
              "another label", "free: unparsed", "free: accuracy", "labels: accuracy"]  # fmt: skip
    step_header = ["answer", "tokens", "ms to begin", "µs a token", "longest, ms"]
    body = (
        f"A Llama of {size_of(model)}, {'never ' if tuned is None else ''}fine-tuned, on {args.examples} test examples "
        "of each task, fp32.\n\n"
        f"{table(header, rows)}\n\nFinding the valid tokens of answers to massive_slots, without the model:\n\n"
        f"{table(step_header, step_rows)}"
    )
    write_result("label_probabilities", "Probabilities of labels", body, argv, args.output, load, False)


def main(argv: list[str] | None = None) -> int:
    return run_program("label_probabilities", Args, run, argv)


if __name__ == "__main__":
    sys.exit(main())
