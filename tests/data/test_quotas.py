"""Rounding the shares of labels in a part of the examples."""

from __future__ import annotations

import random

from data.quotas import quotas


def test_the_largest_remainders_are_rounded_up() -> None:
    assert quotas({"a": 2.5, "b": 1.3, "c": 0.2}, {"a": 9, "b": 9, "c": 9}, wanted=4) == {"a": 3, "b": 1, "c": 0}


def test_the_least_of_every_label_comes_from_the_most_overrepresented() -> None:
    shares, room = {"a": 8.4, "b": 1.2, "c": 0.2, "d": 0.2}, {"a": 40, "b": 5, "c": 1, "d": 0}
    assert quotas(shares, room, wanted=10, least=1) == {"a": 8, "b": 1, "c": 1, "d": 0}
    assert quotas(shares, room, wanted=2, least=1) == {"a": 1, "b": 1, "c": 1, "d": 0}  # as near as the bounds allow


def test_what_a_full_label_cannot_take_others_take() -> None:
    assert quotas({"a": 5.0, "b": 0.9, "c": 0.9, "d": 0.9}, {"a": 9, "b": 0, "c": 0, "d": 0}, wanted=8) == {
        "a": 8,
        "b": 0,
        "c": 0,
        "d": 0,
    }


def test_sizes_are_exact_and_within_one_of_the_shares() -> None:
    draw = random.Random(0)
    for _ in range(300):
        sizes = {str(i): draw.choice((1, 2, 3, draw.randint(1, 90))) for i in range(draw.randint(1, 12))}
        fraction, n, least = draw.random(), sum(sizes.values()), draw.randint(0, 1)
        room = {label: size - 1 for label, size in sizes.items()}
        wanted = round(fraction * n)
        shares = {label: fraction * size for label, size in sizes.items()}
        found = quotas(shares, room, wanted, least)
        assert all(min(least, room[label]) <= size <= room[label] for label, size in found.items())
        if sum(min(least, most) for most in room.values()) <= wanted <= sum(room.values()):
            assert sum(found.values()) == wanted
        if min(sizes.values()) * min(fraction, 1 - fraction) > 1:
            assert all(abs(found[label] - shares[label]) < 1 for label in sizes)
