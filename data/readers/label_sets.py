"""What is wrong with the label set of a field of a user's own task, whether it was listed or collected."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence

from data.characters import NO_TEXT, appearance, is_one_line, is_text
from data.errors import UserError

log = logging.getLogger("data")


def check_labels(labels: Sequence[str], kind: str, other: str, answer: str, where: str) -> None:
    """Check a label set; labels that are hardly different are named in a warning.

    Args:
        kind, other, answer: as the attributes of `custom_fields.CustomField`.
        where: the field, for messages.

    Raises:
        UserError: a label that is no text or cannot be written on one line, that is listed twice, or that looks like
            another; that another could be mistaken for in an answer; too few labels.
    """
    for label in labels:
        if not is_text(label):
            raise UserError(f"{where}: label {ascii(label)} holds {NO_TEXT}. Correct it.")
        if not is_label(label) or label != label.strip():
            raise UserError(f"{where}: label {label!r} is empty, has spaces around it, or contains a line break.")
        if kind == "token" and appearance(label) == appearance(other):
            raise UserError(f"{where}: {label!r} is the label of words without one (other); remove it from the labels.")
    seen: dict[str, str] = {}
    for label in labels:
        twin = seen.setdefault(appearance(label), label)
        if label != twin:
            raise UserError(f"{where}: two labels look the same, {ascii(twin)} and {ascii(label)}. List one of them.")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise UserError(f"{where}: label {repeated[0]!r} is listed more than once.")
    if kind == "token" and answer == "spans":
        for label, longer in mistaken_in_spans(labels):
            raise UserError(
                f"{where}: in an answer of spans, the label {longer!r} could be read as {label!r} and words after "
                'its colon. Rename one of them, or set answer = "list".'
            )
    least = 2 if kind == "class" else 1
    if len(labels) < least:
        found = f"only {labels[0]!r}, so there is nothing to learn" if labels else "none"
        raise UserError(f"{where}: a field of type {kind!r} needs at least {least} labels, found {found}.")
    for alike in _alike(labels):
        is_number = any(without_fraction(label) != label for label in alike)
        log.warning(
            "%s: the labels %s differ only in %s. If they are one label, correct the data, or give all of them the "
            "same name with names.",
            where,
            " and ".join(map(repr, alike)),
            "the .0 of a number" if is_number else "case, spaces or form of characters",
        )


def is_label(value: str) -> bool:
    """Whether `check_labels` takes a text without spaces around it for a label."""
    return is_text(value) and appearance(value) != "" and is_one_line(value)


def mistaken_in_spans(labels: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs of labels of which, in an answer of spans, the second could be read as the first and a word."""
    for label in labels:
        yield from ((label, other) for other in labels if other.startswith(f"{label}:"))


def label_of(field: str) -> str:
    """What a message calls a label of a field: of one that is named "label", a label."""
    return "label" if field.casefold() in ("label", "labels") else f"{field} label"


def without_fraction(label: str) -> str:
    """A number such as 1.0, as pandas writes those of columns with gaps, without its .0; any other label as it is."""
    return match[1] if (match := re.fullmatch(r"([+-]?\d+)\.0+", label)) else label


def _alike(labels: Sequence[str]) -> list[list[str]]:
    """Groups of labels that differ only in case, spaces, form of characters or a .0: 1, fullwidth １ and 1.0."""
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        plain = unicodedata.normalize("NFKC", appearance(label)).casefold()
        groups[without_fraction("".join(plain.split()))].append(label)
    return [group for group in groups.values() if len(group) > 1]
