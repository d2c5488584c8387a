"""Few-shot examples: which training examples are shown in the prompt, how long they may be, and how they are stored.

They are drawn once per run, excluded from its training, and stored with every checkpoint and export as ``prompt.json``.
Scoring reads them from there, so that a model always gets the prompt it was trained with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec

from data.decoder.prompts import build_prompt
from data.decoder.templates import Prompt
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.example import Example
from data.files import limits
from data.files.documents import read_json
from data.files.durable import write_text
from data.json_text import to_json
from data.tasks import ClassField, MultiField, Task, TokenField, get_task

PROMPT_FILE = "prompt.json"
# Five random posts together exceed 4,096 tokens in 9% of draws; 256 tokens keep the header and the beginning.
SHOT_TOKENS = 256
CHOICES = ("balanced", "random", "ids")


def choose_shots(
    examples: Iterable[Example],
    task: Task,
    k: int,
    seed: int,
    choice: str = "balanced",
    ids: Sequence[str] = (),
) -> list[Example]:
    """Choose the few-shot examples. A draw depends on the examples' ids, not on their order; it omits empty documents.

    Args:
        k: how many; with ids, as many as there are.
        choice: one of `CHOICES`. balanced: see `_balanced`. random: each example is as likely as any other. ids: those
            named, in that order.

    Raises:
        UserError: fewer than k examples to draw from; an id that is repeated or that no example has.
    """
    assert choice in CHOICES, choice
    if choice == "ids":
        return _named(examples, ids)
    candidates = sorted((e for e in examples if e.text.strip()), key=lambda e: e.id)
    if len(candidates) < k:
        raise UserError(f"{k} few-shot examples asked for, but only {len(candidates)} training examples to draw from.")
    return random.Random(seed).sample(candidates, k) if choice == "random" else _balanced(candidates, task, k, seed)


def shots_problems(choice: str, ids: Sequence[str], k: int | None) -> list[str]:
    """Contradictions among the options --shots_choice, --shot_ids and --shots (None or 0: not given)."""
    if choice != "ids":
        return [f"shot_ids is for --shots_choice ids (it is {choice})."] if ids else []
    if not ids:
        return ["shots_choice ids needs --shot_ids: the ids of the training examples to show."]
    return [f"shots = {k}, but shot_ids names {len(ids)} examples. Omit --shots."] if k and k != len(ids) else []


def _named(examples: Iterable[Example], ids: Sequence[str]) -> list[Example]:
    by_id = {example.id: example for example in examples}
    for name, count in Counter(ids).items():
        if count > 1:
            raise UserError(f"shot_ids: {name!r} is given {count} times. Name each example once.")
        if name not in by_id:
            raise UserError(f"shot_ids: the training split ({len(by_id):,} examples) has no {name!r}.{_like(by_id)}")
    return [by_id[name] for name in ids]


def _like(ids: Iterable[str]) -> str:
    first = next(iter(ids), None)
    return "" if first is None else f" Its ids look like {first!r}."


def _balanced(examples: Sequence[Example], task: Task, k: int, seed: int) -> list[Example]:
    """Draw k examples, balanced over labels.

    The first class field's labels take turns, in an order drawn with the seed. Within a label, and for a task without
    class fields, examples are preferred by their slot types and the labels of multi fields, of which none is one, too:
    all new first, then some new, then none new.
    """
    class_field = next((field.name for field in task.fields if isinstance(field, ClassField)), None)
    generator = random.Random(seed)
    by_label: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_label[example.class_label(class_field) if class_field else ""].append(example)
    labels = sorted(by_label)
    generator.shuffle(labels)
    for label in labels:
        generator.shuffle(by_label[label])

    shots: list[Example] = []
    shown: set[tuple[str, str]] = set()  # see `_types`
    turn = 0
    while len(shots) < k:
        candidates = by_label[labels[turn % len(labels)]]
        turn += 1
        if not candidates:
            continue
        types = [_types(example, task) for example in candidates]
        best = max(range(len(candidates)), key=lambda i: (_novelty(types[i], shown), -i))
        shown |= types[best]
        shots.append(candidates.pop(best))
    return shots


def _types(example: Example, task: Task) -> set[tuple[str, str]]:
    """Names of fields, each with a slot type or a label that the example has; no label: an empty one."""
    found = set[tuple[str, str]]()
    for field in task.fields:
        if isinstance(field, TokenField):
            found |= {(field.name, kind) for kind in example.word_labels(field.name) if kind != field.other}
        elif isinstance(field, MultiField):
            found |= {(field.name, label) for label in example.label_set(field.name) or ("",)}
    return found


def _novelty(types: set[tuple[str, str]], shown: set[tuple[str, str]]) -> int:
    new = types - shown
    return 0 if not new else 1 if new != types else 2


def cut_shots(
    shots: Sequence[Example], task: Task, tokenizer: Tokenizer, max_tokens: int = SHOT_TOKENS
) -> list[Example]:
    """Cut every shot's text to its first max_tokens tokens.

    A text with one label per word is not cut: the numbers of words and labels would differ, and utterances are short.
    """
    if any(isinstance(field, TokenField) for field in task.fields):
        return list(shots)
    return [dataclasses.replace(shot, text=_cut(shot.text, tokenizer, max_tokens)) for shot in shots]


def _cut(text: str, tokenizer: Tokenizer, max_tokens: int) -> str:
    ids = tokenizer.encode(text)
    if len(ids) <= max_tokens:
        return text
    for n in range(max_tokens, 0, -1):
        # The last token may end inside a character, and the cut text may get other tokens than before.
        cut = tokenizer.decode(ids[:n]).rstrip("\ufffd").rstrip()
        if len(tokenizer.encode(cut)) <= max_tokens:
            return cut
    return ""


_Tokens = Annotated[int, msgspec.Meta(ge=1, le=limits.POSITIONS)]


@dataclass(frozen=True)
class PromptSpec:
    """All settings of a run's prompt, stored as ``prompt.json`` with every checkpoint.

    Attributes:
        task: the task's name.
        joint_order: see `data.tasks.get_task`.
        template: key into `data.decoder.templates.TEMPLATES`.
        template_from: why this template, in words; empty in older records.
        shots: the few-shot examples, already cut.
        seed: the seed of their draw.
        shots_choice: how they were chosen; see `choose_shots`.
        shot_tokens: the length they were cut to.
        list_labels: the instruction lists the labels, as the paper's listings do.
        wording: see `data.decoder.prompts`.
        row_length: limit on prompt and answer together, in tokens. Documents are cut to fit, so a model depends on it.
            None: unknown (no model was trained with this prompt, or the record is old).
        answer_tokens: the longest answer that the model was trained on, in tokens; None: unknown, as above.
        fingerprint: hash of the prompt's text and the task's labels, made by `signed`; empty: not compared. The record
            has neither text nor labels, so this detects a task file that was changed later.
    """

    task: str
    template: str
    joint_order: str = "listing"
    shots: tuple[Example, ...] = ()
    seed: int = 0
    shots_choice: str = "balanced"
    shot_tokens: _Tokens = SHOT_TOKENS
    list_labels: bool = True
    wording: str = "clean"
    row_length: _Tokens | None = None
    answer_tokens: _Tokens | None = None
    fingerprint: str = ""
    template_from: str = ""

    def signed(self, task: Task) -> PromptSpec:
        """A copy of this record with the fingerprint of the prompt that it builds now."""
        prompt = dataclasses.replace(self, fingerprint="").build(task)
        return dataclasses.replace(self, fingerprint=_fingerprint(prompt, task))

    def build(self, task: Task | None = None, scored: bool = True) -> Prompt:
        """The prompt.

        Args:
            task: a user's own must be given: its definition is not in this record.
            scored: by a program that has ``--new_prompt``, for the error.

        Raises:
            UserError: another task, an unknown template, an example that the task does not have, or a prompt that does
                not match the fingerprint.
        """
        task = task or get_task(self.task, self.joint_order)
        if task.name != self.task:
            raise UserError(
                f"This prompt was made for task {self.task}, not for {task.name}: "
                f"a checkpoint is scored on the task it was trained on (--task {self.task})."
            )
        for shot in self.shots:
            task.check(shot)
        prompt = build_prompt(task, self.template, self.shots, self.list_labels, self.wording)
        if self.fingerprint and self.fingerprint != _fingerprint(prompt, task):
            where = (
                f"{task.custom.path} (its instruction, names, labels or answers)"
                if task.custom
                else "data/decoder/prompts.py"
            )
            other = ", or give --new_prompt to score with a prompt that the checkpoint never saw" if scored else ""
            raise UserError(
                f"Task {task.name} no longer gives the prompt that the checkpoint was fine-tuned with: {where} has "
                f"changed since, or {PROMPT_FILE} has. Restore the old version{other}."
            )
        return prompt

    def record(self) -> dict[str, Any]:
        """The content of ``prompt.json``, and of ``prompt`` in ``results.json``."""
        shots = [{"id": s.id, "text": s.text, "labels": s.labels} for s in self.shots]
        return dataclasses.asdict(self) | {"shots": shots}

    def save(self, path: Path | str) -> None:
        """Write the record to a file, or to ``prompt.json`` in a folder."""
        text = to_json(self.record(), indent=2)
        write_text(_file(path), text + "\n")

    @classmethod
    def load(cls, path: Path | str) -> PromptSpec:
        """Read a record that `save` wrote, from the file or its folder.

        Raises:
            UserError: no such file, or a damaged one.
        """
        file = _file(path)
        if not file.exists():
            raise UserError(f"No {PROMPT_FILE} at {file}: it is written with every checkpoint and export.")
        return read_json(file, cls)


def _fingerprint(prompt: Prompt, task: Task) -> str:
    pieces = [[type(piece).__name__, *vars(piece).values()] for piece in (*prompt.prefix, *prompt.suffix, *prompt.end)]
    labels = [dataclasses.asdict(field) for field in task.fields]
    for field in labels:
        if field.get("answer") == "list":
            del field["answer"]  # as in records from before there were spans
        field.pop("separator", None)  # no model has seen it
    return hashlib.sha256(json.dumps([pieces, prompt.lead, labels]).encode()).hexdigest()[:32]


def _file(path: Path | str) -> Path:
    path = Path(path)
    return path / PROMPT_FILE if path.is_dir() else path
