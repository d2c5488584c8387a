"""Count how often tokenizing a prompt by section gives other ids than tokenizing it at once.

By section, the prefix is the same for every document, and truncating a document moves no boundary. The cost: a token
that would have spanned a boundary becomes two. The prompts are zero-shot, with their gold answers, for all six tasks.
Few-shot examples would make no difference, because the boundaries are the same::

    python -m benchmarks.prompt_sections --newsgroups 20news-bydate.tar.gz --massive en-US.jsonl \\
        --tokenizer llama2 llama3 smollm2 --template llama2 llama3 smollm2
"""

from __future__ import annotations

import platform
import random
import sys
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import tyro

from benchmarks.common import command_line, say, table
from data.decoder.prompts import build_prompt
from data.decoder.templates import Piece, Text, encode_pieces, join_texts
from data.decoder.tokenizer import Tokenizer, load_tokenizer
from data.errors import UserError
from data.example import Example
from data.source import load_examples
from data.tasks import TASKS, Task

BOUNDARIES = ("prefix / document", "document / suffix", "suffix / answer")
RESULTS = Path(__file__).parent / "results" / "prompt_sections.md"


@dataclass
class Counts:
    """Prompts of one task with one tokenizer."""

    n: int = 0
    differ: int = 0
    more_tokens: int = 0  # by section minus at once, over all prompts
    tokens: int = 0  # tokenized at once
    at: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BOUNDARIES, 0))
    sample: str = ""  # the first token that a boundary divides, and its two parts

    def add(self, sections: list[tuple[Piece, ...]], tokenizer: Tokenizer) -> None:
        ids = [encode_pieces(section, tokenizer) for section in sections]
        by_section = [i for section in ids for i in section]
        at_once = encode_pieces(join_texts(p for section in sections for p in section), tokenizer)
        assert tokenizer.decode(by_section) == tokenizer.decode(at_once)
        self.n += 1
        self.tokens += len(at_once)
        self.more_tokens += len(by_section) - len(at_once)
        self.differ += by_section != at_once
        for i, boundary in enumerate(BOUNDARIES):
            pair = encode_pieces(join_texts((*sections[i], *sections[i + 1])), tokenizer)
            if pair != ids[i] + ids[i + 1]:
                self.at[boundary] += 1
                self.sample = self.sample or self._spanning(ids[i], ids[i + 1], pair, tokenizer)

    @staticmethod
    def _spanning(left: list[int], right: list[int], pair: list[int], tokenizer: Tokenizer) -> str:
        at = next(i for i, (a, b) in enumerate(zip(left + right, pair, strict=False)) if a != b)
        split = (left + right)[at : at + 2]
        return f"{tokenizer.decode(pair[at : at + 1])!r} ← {' + '.join(repr(tokenizer.decode([i])) for i in split)}"


def measure(task: Task, template: str, tokenizer: Tokenizer, examples: list[Example]) -> Counts:
    """Compare both ways of tokenizing the prompts of these examples."""
    prompt = build_prompt(task, template)
    counts = Counts()
    for example in examples:
        answer = prompt.answer(task.write(example.labels, example.words))
        counts.add([prompt.prefix, (Text(example.text),), prompt.suffix, answer], tokenizer)
    return counts


def main(
    newsgroups: Path,
    massive: Path,
    tokenizer: tuple[Path, ...],
    template: tuple[str, ...],
    n: int = 1000,
    seed: int = 0,
    output: Path = RESULTS,
) -> None:
    """Count, and write a Markdown page.

    Args:
        newsgroups: the 20 Newsgroups release, a path as for ``--data``.
        massive: the MASSIVE file, folder or tarball.
        tokenizer: folders of tokenizers.
        template: the chat template of each.
        n: examples of each test split.
        seed: for drawing them.
        output: the page to write.
    """
    if len(tokenizer) != len(template):
        raise UserError(f"{len(tokenizer)} tokenizers and {len(template)} templates: name one template for each.")
    examples = {}
    for name, path in {"20ng": newsgroups, "massive": massive}.items():
        found = load_examples(name, "test", path)
        examples[name] = random.Random(seed).sample(found, min(n, len(found)))
    rows, samples = [], []
    for folder, chat in zip(tokenizer, template, strict=True):
        loaded = load_tokenizer(folder)
        for task in TASKS.values():
            counts = measure(task, chat, loaded, examples[task.dataset])
            rows.append(
                [
                    chat,
                    task.name,
                    f"{counts.differ / counts.n:.1%}",
                    *(f"{counts.at[boundary] / counts.n:.1%}" for boundary in BOUNDARIES),
                    f"{counts.more_tokens / counts.n:+.2f}",
                    f"{counts.tokens / counts.n:,.0f}",
                ]
            )
            if counts.sample:
                samples.append(f"- {chat}, {task.name}: `{counts.sample}`")
            say(f"{chat} {task.name}: {rows[-1][2]}")
    header = ["chat template", "task", "prompts that differ", *BOUNDARIES, "more tokens", "tokens"]
    page = [
        "# Prompts tokenized by section and at once",
        "",
        "Share of prompts (zero-shot, with the gold answer) whose ids differ when each section is tokenized by itself "
        "instead of the whole prompt at once; the share in which it happens at each boundary; how many tokens a "
        "prompt gains by it on average, and how many it has when tokenized at once. Both ways decode to the same "
        "text, which the run checks.",
        "",
        f"Data: {' and '.join(f'{len(found):,} {name} test examples' for name, found in examples.items())}, drawn "
        f"with seed {seed}.",
        "",
        table(header, rows),
        "",
        "The first token that a boundary takes apart:",
        "",
        *(samples or ["- none"]),
        "",
        "## How this was made",
        "",
        f"- command: `{command_line('prompt_sections', sys.argv[1:])}`",
        f"- Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in ("sentencepiece", "tiktoken", "tokenizers"))
        + "; counts do not depend on the hardware",
        "",
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join(page), encoding="utf-8")
    say(f"written to {output}")


if __name__ == "__main__":
    try:
        tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
    except UserError as error:
        sys.exit(f"error: {error}")
