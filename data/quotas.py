"""How many examples of each label a part of them gets, so that every label has its share of the part."""

from __future__ import annotations

from collections.abc import Mapping


def quotas(shares: Mapping[str, float], room: Mapping[str, int], wanted: int, least: int = 0) -> dict[str, int]:
    """Round the shares of all labels so that their sum is the size of the part (the largest remainders are rounded up).

    Args:
        shares: by label, how many examples the part should have of it, a fraction of all.
        room: by label, how many it can have at most.
        wanted: the size of the part.
        least: how many it should have at least of each label that has room for them.

    Returns:
        By label, a number from ``min(least, room)`` to ``room``. The sum is ``wanted``, or as near to it as these
        bounds allow.
    """
    lowest = {label: min(least, most) for label, most in room.items()}
    taken = {label: min(max(int(share), lowest[label]), room[label]) for label, share in shares.items()}
    order = sorted(shares, key=lambda label: (shares[label] - taken[label], room[label]))
    missing = wanted - sum(taken.values())
    step, bound = (1, room) if missing > 0 else (-1, lowest)
    if step > 0:
        order.reverse()
    while missing and (movable := [label for label in order if taken[label] != bound[label]]):
        for label in movable[: abs(missing)]:
            taken[label] += step
            missing -= step
    return taken
