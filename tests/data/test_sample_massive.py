"""Checks on the hand-written MASSIVE-style sample in data/sample/massive."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample" / "massive" / "en-US.jsonl"
KEYS = {"id", "locale", "partition", "scenario", "intent", "utt", "annot_utt"}
SLOT = re.compile(r"\[(\w+) : ([^\[\]]+)\]")
MIN_DISTANCE = 0.2


@pytest.fixture(scope="module")
def rows():
    with SAMPLE.open(encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def levenshtein(a, b):
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


def closer_than(a, b, limit):
    """Whether levenshtein(a, b) / max length is below limit.

    The length difference and the difference of the letter counts are lower
    bounds of the edit distance, so most pairs never need the full table.
    """
    allowed = limit * max(len(a), len(b))
    if abs(len(a) - len(b)) >= allowed:
        return False
    count_a, count_b = Counter(a), Counter(b)
    only_a = sum((count_a - count_b).values())
    only_b = sum((count_b - count_a).values())
    if max(only_a, only_b) >= allowed:
        return False
    return levenshtein(a, b) < allowed


def test_levenshtein_on_known_pairs():
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == 3
    assert levenshtein("same", "same") == 0
    assert closer_than("dim the lights", "dim the light", 0.2)
    assert not closer_than("dim the lights", "play some jazz", 0.2)


def test_every_row_has_the_massive_fields(rows):
    for row in rows:
        assert set(row) == KEYS
        assert all(isinstance(value, str) and value for value in row.values())
        assert row["locale"] == "en-US"
        assert row["partition"] in {"train", "dev", "test"}
        assert row["scenario"] == row["intent"].split("_")[0]


def test_counts(rows):
    partitions = Counter(row["partition"] for row in rows)
    assert partitions == {"train": 416, "dev": 52, "test": 104}
    per_intent = Counter((row["intent"], row["partition"]) for row in rows)
    intents = {row["intent"] for row in rows}
    assert len(intents) == 26
    assert len({row["scenario"] for row in rows}) >= 14
    for intent in intents:
        assert per_intent[intent, "train"] == 16
        assert per_intent[intent, "dev"] == 2
        assert per_intent[intent, "test"] == 4


def test_label_names_are_well_formed(rows):
    slots = set()
    for row in rows:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", row["intent"])
        slots.update(name for name, _ in SLOT.findall(row["annot_utt"]))
    assert len(slots) >= 25
    for name in slots:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)


def test_every_slot_type_of_dev_and_test_is_in_train(rows):
    seen = {"train": set(), "dev": set(), "test": set()}
    for row in rows:
        seen[row["partition"]].update(name for name, _ in SLOT.findall(row["annot_utt"]))
    assert (seen["dev"] | seen["test"]) <= seen["train"]


def test_annotation_without_brackets_is_the_utterance(rows):
    for row in rows:
        annotated = row["annot_utt"]
        plain = SLOT.sub(lambda match: match.group(2), annotated)
        assert plain == row["utt"]
        # A bracket starts and ends at a word boundary.
        for match in SLOT.finditer(annotated):
            assert match.group(2) == match.group(2).strip()
            assert match.start() == 0 or annotated[match.start() - 1] == " "
            assert match.end() == len(annotated) or annotated[match.end()] == " "


def test_utterances_are_plain_spoken_text(rows):
    for row in rows:
        # "@" only occurs in e-mail addresses, which MASSIVE writes that way.
        assert re.fullmatch(r"[a-z'@]+( [a-z'@]+)*", row["utt"])
        assert 3 <= len(row["utt"].split()) <= 14


def test_share_of_utterances_with_slots(rows):
    with_slots = sum("[" in row["annot_utt"] for row in rows)
    assert 0.5 < with_slots / len(rows) < 0.75


def test_ids_and_utterances_are_unique(rows):
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["utt"] for row in rows}) == len(rows)


def test_held_out_utterances_are_not_near_copies_of_train(rows):
    train = [row["utt"] for row in rows if row["partition"] == "train"]
    held_out = [row["utt"] for row in rows if row["partition"] != "train"]
    close = [(a, b) for a in held_out for b in train if closer_than(a, b, MIN_DISTANCE)]
    assert close == []
