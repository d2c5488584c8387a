"""What labelled texts have that spoils training or scoring: conflicts, texts in two splits, labels without examples.

Of each split only hashes, lengths and counts are kept (`Facts`), so that a split's texts can be freed before the next
one is read. Two texts are equal if they differ at most in white space. Hashes have 64 bits: among ten million texts,
two different ones have the same hash with a probability of 3 in a million.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import xxhash

from data.errors import shortened
from data.example import Example
from data.readers.cells import choices_in
from data.readers.label_sets import label_of
from data.readers.multi import joined_labels, set_to, several_in_one, written_list
from data.tasks import ClassField, Field, MultiField, Task
from data.trained_texts import hash_text

SHOWN = 5  # examples or labels that a finding names
RARE = 5  # training examples of a label, below which it is named
MOSTLY = 0.9  # of a split's texts, from which a label is named
LONG = 65_536  # characters: about the 16,384 tokens of the longest rows that we train with by default
LABEL_CHARACTERS = 60  # of a label in a finding


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        is_error: it spoils training or scoring; else it is worth knowing.
        text: a sentence, and the first examples.
    """

    is_error: bool
    text: str


@dataclass
class Facts:
    """What is known of a split (``N`` examples).

    Attributes:
        split: its name.
        ids: of its examples, in their order.
        texts: ``[N]`` uint64, hashes of the texts.
        characters: ``[N]`` int64, their lengths.
        blank: indices of the texts without a letter or digit.
        values: by field, ``[N]`` uint64, hashes of the labels.
        counts: by field, how many texts (of a token field: words) have each label.
        tokens: ``[N]`` int64, what an example needs; None: not counted.
        longest_row: how many tokens an example may have; longer ones are cut.
        shown: by class field, the labels by their hashes; empty for other fields.
    """

    split: str
    ids: list[str]
    texts: np.ndarray
    characters: np.ndarray
    blank: list[int]
    values: dict[str, np.ndarray]
    counts: dict[str, Counter[str]]
    tokens: np.ndarray | None = None
    longest_row: int = 0
    shown: dict[str, dict[int, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def example(self, i: int, name: str) -> str:
        """An example's id, and its label if the field is a class field."""
        label = self.shown[name].get(int(self.values[name][i]))
        return self.ids[i] if label is None else f"{self.ids[i]} ({_short(label)})"


def facts_of(split: str, examples: Sequence[Example], task: Task) -> Facts:
    """Hashes, lengths and counts of a split's examples, of which there is at least one."""
    texts = np.zeros(len(examples), dtype=np.uint64)
    values = {own.name: np.zeros(len(examples), dtype=np.uint64) for own in task.fields}
    counts: dict[str, Counter[str]] = {own.name: Counter() for own in task.fields}
    known: dict[str, int] = {}
    blank = []
    for i, example in enumerate(examples):
        texts[i] = hash_text(example.text)
        if not any(map(str.isalnum, example.text)):
            blank.append(i)
        for name, own in values.items():
            value = example.labels[name]
            if isinstance(value, str):
                counts[name][value] += 1
                if value not in known:
                    known[value] = xxhash.xxh3_64_intdigest(_bytes(value))
                own[i] = known[value]
            else:
                counts[name].update(value)
                own[i] = xxhash.xxh3_64_intdigest(_bytes(repr(value)))
    single = {
        name: {known[label]: label for label in own} if isinstance(examples[0].labels[name], str) else {}
        for name, own in counts.items()
    }
    characters = np.fromiter((len(example.text) for example in examples), dtype=np.int64, count=len(examples))
    return Facts(split, [e.id for e in examples], texts, characters, blank, values, counts, shown=single)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # JSON can have half a character


def findings(splits: Sequence[Facts], task: Task) -> list[Finding]:
    """What is worth saying about a task's splits, errors first."""
    found = [
        *_conflicts(splits, task),
        *_in_two_splits(splits),
        *(own for field in task.fields for own in _labels(splits, field.name, field.labels)),
        *(own for field in task.fields for own in _joined(splits, field)),
        *(own for facts in splits for own in _texts(facts)),
    ]
    return sorted(found, key=lambda finding: not finding.is_error)  # stable


def _conflicts(splits: Sequence[Facts], task: Task) -> Iterator[Finding]:
    """Equal texts with different labels, in one split or in several."""
    texts = np.concatenate([facts.texts for facts in splits])
    starts = np.cumsum([0, *map(len, splits)])
    order = np.argsort(texts, kind="stable")
    same = texts[order][1:] == texts[order][:-1]  # as the one before
    groups = np.cumsum(np.concatenate([[True], ~same])) if len(order) else order

    def place(at: int) -> tuple[Facts, int]:
        which = int(np.searchsorted(starts, at, side="right")) - 1
        return splits[which], at - int(starts[which])

    for own in task.fields:
        values = np.concatenate([facts.values[own.name] for facts in splits])[order]
        differs = same & (values[1:] != values[:-1])
        conflicting = np.unique(groups[1:][differs])
        if not len(conflicting):
            continue
        first_at = order[np.searchsorted(groups, conflicting)]
        conflicting = conflicting[np.argsort(first_at)]
        shown = []
        for group in conflicting[:SHOWN]:
            members = [place(int(at)) for at in order[groups == group]]
            first, other = members[0], next(m for m in members if _value(m, own.name) != _value(members[0], own.name))
            both = [facts.example(i, own.name) for facts, i in (first, other)]
            shown.append(" and ".join(both))
        n_examples = int(np.isin(groups, conflicting).sum())
        which = _count(len(conflicting), "text", "has", "have")
        yield Finding(
            True,
            f"{which} different labels of {own.name} in {n_examples:,} examples: "
            f"{_listed(shown, len(conflicting), '; ')}. No model can be right for all of them.",
        )


def _value(member: tuple[Facts, int], name: str) -> int:
    facts, i = member
    return int(facts.values[name][i])


def _in_two_splits(splits: Sequence[Facts]) -> Iterator[Finding]:
    """Texts that are in two splits, and texts that are more than once in one."""
    for one, other in combinations(splits, 2):
        indices = np.flatnonzero(np.isin(other.texts, one.texts))
        if not len(indices):
            continue
        first = dict(zip(one.texts[::-1].tolist(), range(len(one) - 1, -1, -1), strict=True))
        shown = [f"{other.ids[i]} (= {one.ids[first[int(other.texts[i])]]})" for i in indices[:SHOWN]]
        learnt = one.split == "train"
        why = " A score on them shows what was learnt by heart." if learnt else ""
        why += " Leave them out of one; where [split] cuts, the text's column as its group keeps equal texts together."
        yield Finding(
            learnt,
            f"{_count(len(indices), f'{other.split} text', 'is', 'are')} also in {one.split} "
            f"({len(indices) / len(other):.1%} of {other.split}): "
            f"{_listed(shown, len(indices))}.{why}",
        )
    for facts in splits:
        found, first_at, back = np.unique(facts.texts, return_index=True, return_inverse=True)
        if len(found) == len(facts):
            continue
        repeated = np.flatnonzero(first_at[back] != np.arange(len(facts)))
        shown = [f"{facts.ids[i]} (= {facts.ids[first_at[back[i]]]})" for i in repeated[:SHOWN]]
        which = _count(len(repeated), f"{facts.split} text", "repeats", "repeat")
        yield Finding(False, f"{which} an earlier one: {_listed(shown, len(repeated))}.")


def _labels(splits: Sequence[Facts], name: str, labels: Iterable[str]) -> Iterator[Finding]:
    """Labels without examples or with few of them, and one that nearly all texts have."""
    counts: Mapping[str, Counter[str]] = {facts.split: facts.counts[name] for facts in splits}
    used = set[str]().union(*counts.values())
    unused = [label for label in labels if label not in used]
    if unused:
        yield Finding(False, f"no example has {_these(unused, name)}.")
    train = counts.get("train")
    if train is None:
        return
    for split, own in counts.items():
        if split == "train":
            continue
        if unknown := [label for label in own if label not in train]:
            n = sum(own[label] for label in unknown)
            yield Finding(
                True,
                f"{split} has {_these(unknown, name)} ({n:,} in all) and train has not: a model cannot learn them.",
            )
        if untested := [label for label in train if label not in own]:
            yield Finding(
                False, f"{split} does not have {_these(untested, name)}: scores do not say how these are learnt."
            )
    if rare := [label for label in labels if 0 < train[label] < RARE]:
        yield Finding(False, f"fewer than {RARE} times in train: {_these(rare, name)}.")
    shown = next(facts.shown[name] for facts in splits if facts.split == "train")
    most, n = train.most_common(1)[0] if shown else ("", 0)
    if shown and n >= MOSTLY * train.total():
        yield Finding(
            False,
            f"{n / train.total():.1%} of the train texts have the {label_of(name)} {_short(most)}: to answer it always "
            "is right as often.",
        )


def _joined(splits: Sequence[Facts], own: Field) -> Iterator[Finding]:
    """Labels that are several: a class field should be a multi field, or a multi field has another separator."""
    used = sorted(set[str]().union(*(facts.counts[own.name] for facts in splits)))
    joined, separator, setting = list[str](), "", ""
    if isinstance(own, ClassField):
        read = {label: written_list(label) for label in used}
        joined, setting = [label for label in used if isinstance(read[label], list)], 'type = "multi"'
        if chosen := [label for label in used if choices_in(read[label]) is not None]:
            joined, setting = joined + chosen, 'type = "multi" and choices = true'
        if objects := [label for label in used if isinstance(read[label], dict) and label not in chosen]:
            text = f"{_these(objects, own.name)} {'is a JSON object' if len(objects) == 1 else 'are JSON objects'}"
            yield Finding(False, f"{text}: write the labels that they have into the table, as texts or lists.")
        if not joined:
            joined, separator = several_in_one(used)
    elif isinstance(own, MultiField) and own.separator is not None:
        joined, separator = joined_labels(used, own.separator)
    if joined:
        verb = "seems" if len(joined) == 1 else "seem"
        between = f" with {separator!r} between them" if separator else ""
        setting = " and ".join(filter(None, [setting, separator and set_to(separator)]))
        text = f"{_these(joined, own.name)} {verb} to be several labels{between}: set {setting} in the field."
        yield Finding(False, text)


def _texts(facts: Facts) -> Iterator[Finding]:
    """Texts that are blank, or too long."""
    if facts.blank:
        shown = [facts.ids[i] for i in facts.blank[:SHOWN]]
        yield Finding(
            False,
            f"{_count(len(facts.blank), f'{facts.split} text', 'is', 'are')} without a letter or digit: "
            f"{_listed(shown, len(facts.blank))}.",
        )
    if facts.tokens is None:
        long = np.flatnonzero(facts.characters > LONG)
        what, why = f"longer than {LONG:,} characters", "--checkpoint counts tokens."
    else:
        long = np.flatnonzero(facts.tokens > facts.longest_row)
        what, why = f"cut to {facts.longest_row:,} tokens", "The end of their texts is not read."
    if len(long):
        sizes = facts.characters if facts.tokens is None else facts.tokens
        shown = [f"{facts.ids[i]} ({sizes[i]:,})" for i in long[:SHOWN]]
        yield Finding(
            False,
            f"{_count(len(long), f'{facts.split} example', 'is', 'are')} {what} "
            f"({len(long) / len(facts):.1%} of {facts.split}): "
            f"{_listed(shown, len(long))}. {why}",
        )


def _count(n: int, what: str, singular: str, plural: str) -> str:
    return f"{n:,} {what} {singular}" if n == 1 else f"{n:,} {what}s {plural}"


def _these(labels: Sequence[str], name: str) -> str:
    what = f"the {label_of(name)}" if len(labels) == 1 else f"{len(labels):,} {label_of(name)}s:"
    return f"{what} {_listed([_short(label) for label in labels[:SHOWN]], len(labels))}"


def _short(label: str) -> str:
    return repr(shortened(label, LABEL_CHARACTERS))


def _listed(shown: Sequence[str], n: int, separator: str = ", ") -> str:
    more = f"{separator}... ({n - len(shown):,} more)" if n > len(shown) else ""
    return separator.join(shown) + more
