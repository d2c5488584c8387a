"""Cut the training examples of a user's own task into splits, as the ``[split]`` table of its TOML file says.

[split]
test = 0.2              # fractions of the examples in the train files; what is left is for training
dev = 0.1
seed = 0                # default 0
stratify = "queue"      # a class field, or false; default: the first class field
group = "customer"      # a column: all examples that have the same value in it are in the same split

The cut depends on the seed and on the examples' ids (without an id column these are line numbers), labels and groups,
not on their order or the task's name. In the order of a hash of seed and id, the first examples of each label are for
test, the next for dev, so another ``dev`` does not change test. Sizes are fractions of the number of examples, rounded
to the nearest whole number. Every label has its share of each split to within one example. A label with at least two
examples is in train and in test; one with a single example is in train.

Groups are dealt out one by one, the largest first, groups of equal size in the order of a hash of seed and group. Each
goes to the split that lacks most of what it has. Sizes and shares are then as near to the fractions as the groups
allow, and a label in at least two groups is in train and in test if the groups of other labels allow it.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from data.errors import UserError, nearest
from data.quotas import quotas

TRAIN = "train"
"""The split whose files are cut."""

ORDER = ("test", "dev", TRAIN)
SHOWN = 5  # labels that a message names


class SplitTable(msgspec.Struct):
    """The ``[split]`` table, as it is written."""

    test: float | None = None
    dev: float | None = None
    train: float | None = None
    seed: int | None = None
    stratify: str | bool | None = None
    group: str | None = None

    def cut(self) -> dict[str, float]:
        """The fractions of the splits that are cut from the train files."""
        given = {split: getattr(self, split) for split in ORDER if split != TRAIN}
        return {split: fraction for split, fraction in given.items() if fraction is not None}


@dataclass(frozen=True)
class Cut:
    """How the examples of the train files are divided.

    Attributes:
        fractions: by split that is cut, in the order in which they are drawn; empty if only groups are compared.
        seed: of the draw.
        stratify: the class field whose labels have their share of each split; None: drawn at random.
        required: the user named the field, so what prevents it is an error.
        group: the column whose values must not be in two splits.
    """

    fractions: dict[str, float]
    seed: int
    stratify: str | None
    required: bool
    group: str | None

    def __str__(self) -> str:
        """All that decides where an example is, in words; empty if nothing is cut."""
        if not self.fractions:
            return ""
        parts = [f"{split} {fraction}" for split, fraction in self.fractions.items()]
        parts.append(f"stratified by {self.stratify}" if self.stratify else "at random")
        return ", ".join([*parts, *([f"groups of {self.group}"] if self.group else []), f"seed {self.seed}"])


def read_cut(table: SplitTable, splits: Collection[str], fields: Mapping[str, str], path: Path) -> Cut:
    """Check the ``[split]`` table of a task file.

    Args:
        splits: that are given as files or by a data set.
        fields: the types of the task's fields, by name.
        path: the task file.

    Raises:
        UserError: fractions that are not between 0 and 1 or do not add up, a split that is given and cut, no train
            files, a field that is no class field, keys without an effect.
    """
    where = f"{path}, [split]"
    fractions = table.cut()
    for split in ORDER:
        if (fraction := getattr(table, split)) is not None and not 0 < fraction < 1:
            raise UserError(f"{where}: {split} = {fraction:g} must be between 0 and 1, such as 0.2.")
    for split in fractions:
        if split in splits:
            raise UserError(
                f"{where}: {split} is given ({', '.join(splits)}) and cut ({split} = {fractions[split]:g}). Remove one "
                "of the two."
            )
    total = sum(fractions.values())
    if fractions and table.train is not None and abs(total + table.train - 1) > 1e-6:
        written = " + ".join(f"{getattr(table, split):g}" for split in (TRAIN, *fractions))
        raise UserError(f"{where}: {written} is {total + table.train:g}, not 1. Omit train: it gets what is left.")
    if total > 1 - 1e-9:
        written = " + ".join(f"{split} = {fraction:g}" for split, fraction in fractions.items())
        raise UserError(f"{where}: {written} is {total:g}, which leaves nothing for training.")
    if fractions and TRAIN not in splits:
        raise UserError(f"{where}: the train files are cut, and only {', '.join(splits) or 'nothing'} is given.")
    if not fractions:
        for key in ("train", "seed", "stratify"):
            if getattr(table, key) is not None:
                raise UserError(f"{where}: {key} has no effect without a split to cut, such as test = 0.2.")
        if table.group is None:
            raise UserError(f"{where} is empty. Name a split to cut, such as test = 0.2.")
        if len(splits) < 2:
            raise UserError(f"{where}: group has no effect: there is one split. Cut another, such as test = 0.2.")
    return Cut(fractions, table.seed or 0, *_stratify(table.stratify, fields, where), table.group)


def _stratify(given: str | bool | None, fields: Mapping[str, str], where: str) -> tuple[str | None, bool]:
    """The field to stratify by, and whether the user named it."""
    classes = [name for name, kind in fields.items() if kind == "class"]
    if given is None:
        return (classes[0] if classes else None), False
    if given is False:
        return None, False
    known = f"The task has {', '.join(classes)}." if classes else "The task has none."
    if given is True:
        raise UserError(f'{where}: stratify = true: name a field of type "class", or write false. {known}')
    if given not in fields:
        raise UserError(f"{where}: stratify = {given!r} is not a field.{nearest(given, classes)}")
    if given not in classes:
        raise UserError(
            f'{where}: stratify = {given!r} is a field of type {fields[given]!r}; one of type "class" is needed.'
            f" {known}"
        )
    return given, True


def divide(
    keys: Sequence[str], labels: Sequence[str], groups: Sequence[str], cut: Cut, path: Path
) -> tuple[list[str], str, str]:
    """The split of every example.

    Args:
        keys: the examples' ids.
        labels: of the field to stratify by; empty if there is none.
        groups: of the examples; empty if they have none.
        path: the task file, for messages.

    Returns:
        The splits; what was done, in words; and which labels could not be both in train and in test, empty if all are.

    Raises:
        UserError: a split without examples, or a label that cannot be in train and test although the user asks for it.
    """
    where, labels = f"{path}, [split]", labels or [""] * len(keys)
    n_units = Counter(label for _, label in set(zip(groups, labels, strict=True))) if groups else Counter(labels)
    lone = sorted(label for label, n in n_units.items() if n < 2)
    if cut.required and lone:
        raise UserError(
            f"{where}: {cut.stratify} {_listed(lone)}: only one {f'group of {cut.group!r}' if groups else 'example'}, "
            "which cannot be in two splits. Add more, or omit stratify: then it is for training."
        )
    found = _deal(groups, labels, cut) if groups else _draw(keys, labels, cut, where)
    sizes = Counter(found)
    done = f"{len(keys):,} examples"
    if groups:
        n_groups = len(set(groups))
        done += f" in {n_groups:,} group{'s' if n_groups > 1 else ''} of {cut.group}"
    for split in (*cut.fractions, TRAIN):
        if not sizes[split]:
            raise UserError(f"{where}: {split} would have no example: {done}, cut into {cut}. Change the fractions, or "
                            "add examples.")  # fmt: skip
    done += f" cut into {', '.join(f'{sizes[split]:,} for {split}' for split in ORDER if sizes[split])} ({cut})"
    return found, done, _absent(labels, found, [label for label, n in n_units.items() if n > 1], cut)


def _draw(keys: Sequence[str], labels: Sequence[str], cut: Cut, where: str) -> list[str]:
    """The split of every example, each drawn by itself."""
    members: dict[str, list[int]] = {label: [] for label in sorted(set(labels))}
    ranks = [_rank(key, cut.seed) for key in keys]
    for i in sorted(range(len(keys)), key=ranks.__getitem__):
        members[labels[i]].append(i)
    sizes = {label: len(own) for label, own in members.items()}
    found = [TRAIN] * len(keys)
    for split, fraction in cut.fractions.items():
        wanted = round(fraction * len(keys))
        room = {label: len(own) - 1 for label, own in members.items()}
        n_labels = sum(most > 0 for most in room.values())
        if cut.required and split == "test" and wanted < n_labels:
            raise UserError(
                f"{where}: {split} = {fraction:g} of {len(keys):,} examples is {wanted:,}, fewer than the {n_labels:,} "
                f"labels of {cut.stratify}. Take a larger fraction, or omit stratify: then some have none in {split}."
            )
        shares = {label: fraction * n for label, n in sizes.items()}
        for label, n in quotas(shares, room, wanted, least=int(wanted >= n_labels)).items():
            for i in members[label][:n]:
                found[i] = split
            del members[label][:n]
    return found


def _deal(groups: Sequence[str], labels: Sequence[str], cut: Cut) -> list[str]:
    """The split of every example, that of its group."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        counts[group][label] += 1
    totals, left = Counter(labels), Counter(label for own in counts.values() for label in own)
    fractions = cut.fractions | {TRAIN: 1 - sum(cut.fractions.values())}
    needed = {split for split in fractions if split != "dev"}  # splits that should have every label
    have: dict[str, Counter[str]] = {split: Counter() for split in fractions}
    n_have: Counter[str] = Counter()
    found: dict[str, str] = {}
    for group in sorted(counts, key=lambda group: (-counts[group].total(), _rank(group, cut.seed))):
        own, size = counts[group], counts[group].total()

        def cost(split: str, own: Counter[str] = own, size: int = size) -> float:
            """How much it adds to the sum of (examples - share)^2 / share, over labels and splits and over splits."""
            by_label = sum(n * (2 * have[split][label] + n) / totals[label] for label, n in own.items())
            return (by_label + size * (2 * n_have[split] + size) / len(groups)) / fractions[split]

        lacking = {label: {split for split in needed if label not in have[split]} for label in own}
        last = set().union(*(splits for label, splits in lacking.items() if left[label] <= len(splits)))
        split = found[group] = min((split for split in fractions if not last or split in last), key=cost)
        have[split].update(own)
        n_have[split] += size
        left.subtract(list(own))
    return [found[group] for group in groups]


def _rank(key: str, seed: int) -> bytes:
    """Where a key is in the order of the draw: the same everywhere, and next to unrelated for other seeds."""
    return hashlib.sha256(f"{seed}/{key}".encode(errors="surrogatepass")).digest()


def _absent(labels: Sequence[str], found: Sequence[str], several: Iterable[str], cut: Cut) -> str:
    """Names the labels that are in several examples or groups, and still not in train and test."""
    splits = [split for split in (TRAIN, "test") if split in cut.fractions or split == TRAIN]
    there = set(zip(found, labels, strict=True))
    absent = sorted(label for label in several if any((split, label) not in there for split in splits))
    if not absent or cut.stratify is None:
        return ""
    return (
        f"the cut has no examples in {' and '.join(splits)} of every label of {cut.stratify}: not of {_listed(absent)}"
    )


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
    return ", ".join(map(repr, labels[:SHOWN])) + more
