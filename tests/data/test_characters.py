"""Texts that look the same: what is the same, and what must be kept apart."""

from __future__ import annotations

import pytest

from data.characters import appearance, look_the_same
from data.tasks import TASKS


@pytest.mark.parametrize(
    "text", ["café", " café", "cafe\u0301", "ca\u200bfé", "café\u00a0", "\ufeffcafé", "café\x07", "c\u200daf\u00e9"]
)
def test_one_appearance(text: str) -> None:
    assert appearance(text) == "café"


@pytest.mark.parametrize("text", ["a b", " a  b ", "a\tb", "a\nb\x07", "a\u00a0b"])
def test_spaces(text: str) -> None:
    assert appearance(text) == "a b"


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("cafe", "café"),
        ("Sales", "sales"),
        ("ﬁ", "fi"),
        ("می\u200cخواهم", "میخواهم"),
        ("👨\u200d👩", "👨👩"),
        ("\U0001f3f4\U000e0067\U000e0062\U000e007f", "\U0001f3f4\U000e0067\U000e007f"),
        ("a b", "ab"),
        ("нет", "yes"),
    ],
)
def test_what_looks_different(a: str, b: str) -> None:
    assert appearance(a) != appearance(b) and not look_the_same(a, b)


def test_letters_of_other_alphabets_look_the_same_but_are_never_joined() -> None:
    assert look_the_same("сafe", "cafe") and appearance("сafe") != appearance("cafe")


def test_the_labels_of_the_paper_differ() -> None:
    for task in TASKS.values():
        for field in task.fields:
            assert len({appearance(label) for label in field.labels}) == len(field.labels)
            assert all(appearance(label) == label for label in field.labels)
