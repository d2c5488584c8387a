"""What is written as JSON is JSON."""

from __future__ import annotations

import json

import pytest

from data.json_text import to_json


def test_everything_else_is_written_as_python_does():
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": (1,)}}
    assert to_json(value) == json.dumps(value, ensure_ascii=False)
    assert to_json(value, indent=2, ascii_only=True) == json.dumps(value, indent=2)
    assert to_json({"path": {1, 2}}, default=sorted) == '{"path": [1, 2]}'


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (float("nan"), "the value"),
        ({"cost": {"seconds": float("inf")}}, "cost.seconds"),
        ({"top": {"queue": [["a", 0.5], ["b", -float("inf")]]}}, r"top.queue\[1\]\[1\]"),
    ],
)
def test_nan_and_infinity_are_refused_by_their_place(value, where):
    with pytest.raises(ValueError, match=f"^{where} is NaN or infinite"):
        to_json(value)
