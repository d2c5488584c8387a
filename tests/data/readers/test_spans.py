"""Spans of characters as labels of words, and lists of words as texts."""

from __future__ import annotations

from typing import Any

import pytest

from data.errors import UserError
from data.readers.spans import SpanReader, labels_of
from data.readers.words import joined

TEXT = "to New\u00a0York, é 日本 today"


@pytest.mark.parametrize(
    "spans",
    [
        [
            {"start": 3, "end": 11, "label": "city", "token_start": 1},
            {"start": 18, "end": 23, "label": "day"},
        ],
        [
            {"start_offset": 18, "end_offset": 23, "label": "day", "id": 7},
            {"start_offset": 2, "end_offset": 13, "label": " city "},
        ],
        [[3, 12, "city"], [18, 23, "day"]],
        [
            {"start": 3, "end": 11, "labels": ["city"], "text": "New\u00a0York"},
            {"start": 18, "end": 23, "labels": ["day"]},
        ],
        {"start": [3, 18], "end": [12, 23], "label": ["city", "day"]},
    ],
)
def test_every_way_to_write_spans(spans: Any) -> None:
    reader = SpanReader()
    assert reader.read(TEXT, spans) == ["O", "B-city", "I-city", "O", "O", "B-day"]
    assert labels_of(spans) == {"city", "day"}


def test_punctuation_is_taken_with_the_word_and_counted() -> None:
    reader = SpanReader()
    assert reader.read('("Paris", Rome.) ok', [[2, 7, "city"], [10, 14, "city"], [17, 19, "x"]]) == [
        "B-city",
        "B-city",
        "B-x",
    ]
    assert reader.note().startswith("2 of 3 spans end beside punctuation within a word")
    assert SpanReader().note() == ""


def test_neighbours_are_two_entities_and_no_span_is_none() -> None:
    assert SpanReader().read("a b c", [[2, 3, "x"], [0, 1, "x"]]) == ["B-x", "B-x", "O"]
    assert SpanReader().read("a b", []) == ["O", "O"] and SpanReader().read("", []) == []


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            [[3, 99, "city"]],
            "has the span 3 to 99 ('city'), which is out of range: the text has 23 characters, 'to New",
        ),
        ([[-1, 2, "x"]], "span -1 to 2 ('x'), which is out of range"),
        ([[3, 3, "x"]], "which is empty"),
        ([[5, 3, "x"]], "which ends before it starts"),
        ([[2, 3, "x"]], "has a span of label 'x' that holds spaces only"),
        (
            [[3, 12, "city"], [7, 11, "name"]],
            "has spans that overlap: 'New\\xa0York,' (3 to 12, 'city') and 'York' (7 to",
        ),
        ([[3, 6, "x"], [3, 6, "x"]], "has spans that overlap"),
        ([[15, 16, "x"]], "has '日' (15 to 16, 'x'), which cuts '日本'"),
        ([[18, 22, "day"]], "has 'toda' (18 to 22, 'day'), which cuts 'today'"),
        ([[4, 6, "x"]], "has 'ew' (4 to 6, 'x'), which cuts 'New'. Words are parted by spaces"),
        ([{"start": 3, "end": 6, "label": "x", "text": "York"}], "with the text 'York', but there the text has 'New'"),
        ([{"start": 3, "label": "x"}], 'has a span without start and end: {"start": 3, "label": "x"}. Expected is {"'),
        ([{"start": 3.5, "end": 6, "label": "x"}], "without start and end"),
        ([[True, 6, "x"]], "without start and end"),
        (["city"], 'without start and end: "city"'),
        ([{"start": 3, "end": 6}], "has a span without a label"),
        ([[3, 6, " "]], "has a span without a label"),
        ([[3, 6, 7]], "has a span without a label"),
        (3, "must be a list of spans, found 3"),
        ({"start": [1, 2], "end": [3]}, "must be a list of spans, found"),
    ],
)
def test_wrong_spans(spans: Any, message: str) -> None:
    with pytest.raises(UserError) as found:
        SpanReader().read(TEXT, spans)
    assert message in str(found.value)


def test_two_spans_in_one_word() -> None:
    with pytest.raises(UserError, match="has two spans in the word '.-./.[+].': '.-.' .0 to 3, 'x'. and"):
        SpanReader().read("(-)/(+)", [[0, 3, "x"], [4, 7, "y"]])


def test_words() -> None:
    assert joined(["to", "New", "York"]) == "to New York" and joined([]) == ""
    for words, message in (
        ("a b", 'must be a list of words, found "a b"'),
        (["a", 3], "must be a list of words"),
        (["a", "b c"], "has 'b c' as word 2 of 2, which has a space within"),
        (["a", "10\u00a0000"], "has '10\\\\xa0000' as word 2"),
        (["a", " "], "which is blank"),
        ([""], "which is blank"),
    ):
        with pytest.raises(UserError, match=message):
            joined(words)
