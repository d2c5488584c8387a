"""Answers: every written answer is read back, other forms are refused as documented, and nothing raises."""

from __future__ import annotations

import json
import random

import pytest

from data.answers import Parsed, entities, literal
from data.errors import UserError
from data.source import load_examples
from data.tasks import TASKS, ClassField, Task, TokenField, get_task

SPANS = [get_task(name, slot_answer="spans") for name in ("massive_slots", "massive_joint")]
TAGS = [get_task(name, slot_tags="bio") for name in ("massive_slots", "massive_joint")]
ALL = [*TASKS.values(), get_task("20ng_joint", "section"), *SPANS, *TAGS]
OWN = Task(
    "own",
    "custom",
    (ClassField("c", ('a "b"', "it's", "日本", "back\\slash", '"q"', "1")), TokenField("t", ("ü", "x"), other="none")),
)
OWN_SPANS = OWN.with_slot_answer("spans")
# Labels that are the beginning of others.
DATES = ("date", "date_time", "date time", "date-time-zone", "da")
PREFIXES = [Task("dates", "custom", (ClassField("c", DATES),))] + [
    Task("dates", "custom", (*own, TokenField("t", DATES, "d", answer)))
    for answer in ("list", "bio", "spans")
    for own in ((), (ClassField("c", DATES),))
]


def task_id(task):
    return "-".join([task.name, *(f.answer for f in task.fields if isinstance(f, TokenField))])


def words(n):
    """Different words, with characters that JSON escapes."""
    return [f'w{i}"\\é:' for i in range(n)]


def write(task, labels, n_words):
    return task.write(labels, words(n_words))


def parse_answer(task, text, n_words):
    return task.read(text, words(n_words))


def random_labels(task, generator, n_words):
    return {
        field.name: generator.choice(field.labels)
        if isinstance(field, ClassField)
        else tuple(generator.choices((*field.labels, field.other), k=n_words))
        for field in task.fields
    }


@pytest.mark.parametrize("task", [*ALL, OWN, OWN_SPANS, *PREFIXES], ids=task_id)
def test_what_is_written_is_read(task):
    generator = random.Random(0)
    for n_words in [0, 1, 2, 5, 30] * 40:
        labels = random_labels(task, generator, n_words)
        assert parse_answer(task, write(task, labels, n_words), n_words) == Parsed(labels, ())


@pytest.mark.parametrize("task", [*ALL, OWN, OWN_SPANS], ids=task_id)
def test_every_label_of_every_field_is_read(task):
    n_read = 0
    for field in task.fields:
        others = random_labels(task, random.Random(1), 1)
        for label in field.labels if isinstance(field, ClassField) else (*field.labels, field.other):
            labels = others | {field.name: label if isinstance(field, ClassField) else (label,)}
            parsed = parse_answer(task, write(task, labels, 1), 1)
            assert parsed.labels[field.name] == labels[field.name] and not parsed.unparsed
            n_read += 1
    assert n_read == sum(len(field.labels) + isinstance(field, TokenField) for field in task.fields)


def test_every_label_of_a_users_single_class_task():
    task = Task("single", "custom", OWN.fields[:1])
    for label in task.fields[0].labels:
        for text in (label, f" {label}\n", f"```\n{label}\n```", f"'{label}'", f'"{label}"', f"`{label}`"):
            assert parse_answer(task, text, 3).labels == {"c": label}, text


@pytest.mark.parametrize(
    "text", ["rec", " rec\n", "'rec'", '"rec"', "`rec`", "```rec```", "```json\nrec\n```", "``` \nrec```"]
)
def test_a_bare_label_may_have_this_around_it(text):
    assert parse_answer(TASKS["20ng_7"], text, 0) == Parsed({"root": "rec"}, ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Rec",
        "rec.",
        "rec.autos",
        "Label: rec",
        "rec rec",
        "rec\nIt is rec.",
        "''rec''",
        "'rec\"",
        "re",
        "'",
        '""',
    ]
    + ['["rec"]', '{"task1": "rec"}', "the label is rec", "rec</s>", "r ec", "none"],
)
def test_anything_else_is_not_a_label(text):
    assert parse_answer(TASKS["20ng_7"], text, 0) == Parsed({"root": None}, ("root",))


def test_joint_fields_are_parsed_separately():
    task = TASKS["20ng_joint"]
    cases = {
        '{"task1": "rec", "task2": "rec.auto"}': {"root": "rec", "group": None},
        '{"task2": "rec.autos"}': {"root": None, "group": "rec.autos"},
        '{"task1": ["rec"], "task2": "rec.autos", "task3": 1}': {"root": None, "group": "rec.autos"},
        "{'task1': 'rec', 'task2': 'rec.autos'}": {"root": "rec", "group": "rec.autos"},
        '```json\n{"task1": "rec", "task2": "rec.autos"}\n```': {"root": "rec", "group": "rec.autos"},
        '{"task1": "rec.autos", "task2": "rec"}': {"root": None, "group": None},
        '{"task1": "rec", "task2": "rec.autos"': {"root": None, "group": None},
        '{"task1": "rec", "task2": "rec.autos"} Done.': {"root": None, "group": None},
        'Output: {"task1": "rec", "task2": "rec.autos"}': {"root": None, "group": None},
        '["rec", "rec.autos"]': {"root": None, "group": None},
        "null": {"root": None, "group": None},
    }
    for text, labels in cases.items():
        parsed = parse_answer(task, text, 0)
        assert parsed.labels == labels, text
        assert parsed.unparsed == tuple(name for name, value in labels.items() if value is None)


def test_slots_are_fitted_to_the_words_and_counted():
    task = TASKS["massive_slots"]
    parsed = parse_answer(task, '["time", "Other"]', 4)
    assert parsed == Parsed({"slots": ("time", "Other", "Other", "Other")}, (), n_missing=2)
    parsed = parse_answer(task, '["time", "Other", "date", "nonsense"]', 2)
    assert parsed == Parsed({"slots": ("time", "Other")}, (), n_extra=2)
    parsed = parse_answer(task, '["time", "Time", null, 3, ["date"], "O", "date"]', 7)
    assert parsed == Parsed({"slots": ("time", *["Other"] * 5, "date")}, (), n_unknown=5)
    assert parse_answer(task, "[]", 2) == Parsed({"slots": ("Other", "Other")}, (), n_missing=2)
    assert parse_answer(task, "['Other', 'time']", 2) == Parsed({"slots": ("Other", "time")}, ())
    for text in ("", "time", "Other, time", '"time"', '{"slots": ["time"]}', '["time"', '["time", "Other", "ti'):
        assert parse_answer(task, text, 2) == Parsed({"slots": None}, ("slots",)), text


@pytest.mark.parametrize(
    ("text", "answer", "types", "counts"),
    [
        ("wake me at nine am", '["time: nine am"]', "O O O time time", {}),
        ("wake me at nine am", "[]", "O O O O O", {}),
        ("wake me at nine am", "['time: nine am']", "O O O time time", {}),
        ("wake me at nine am", '```json\n["time:nine  am"]\n```', "O O O time time", {}),
        # repeated words are resolved in order
        ("nine to nine", '["time: nine", "date: nine"]', "time O date", {}),
        ("nine to nine", '["time: to", "date: nine"]', "O time date", {}),
        ("nine to nine", '["date: nine"]', "date O O", {}),
        ("nine nine am", '["time: nine nine"]', "time time O", {}),
        ("nine nine am", '["date: nine", "time: nine am"]', "date time time", {}),
        ("nine am", '["time: nine nine am"]', "O O", {"n_not_found": 1}),
        # out of order: found before, outside other spans
        ("nine on friday", '["date: friday", "time: nine"]', "time O date", {}),
        # overlapping: the words are in the text only inside another span
        ("nine am on friday", '["time: nine am", "date: am on"]', "time time O O", {"n_not_found": 1}),
        ("nine am on friday", '["time: nine am", "date: nine am"]', "time time O O", {"n_not_found": 1}),
        # not in the text
        ("nine am on friday", '["time: ten am", "date: friday"]', "O O O date", {"n_not_found": 1}),
        ("nine am on friday", '["time: nine am on friday please"]', "O O O O", {"n_not_found": 1}),
        ("nine am on friday", '["time: Nine"]', "O O O O", {"n_not_found": 1}),
        ("nine am on friday", '["time: ", "date:"]', "O O O O", {"n_not_found": 2}),
        ("nine am on friday", '["time: am nine"]', "O O O O", {"n_not_found": 1}),
        ("", '["time: nine"]', "", {"n_not_found": 1}),
        # no known type
        ("nine am on friday", '["when: nine", "friday", "Other: on", ": am", 7, null, ["time: nine"]]', "O O O O",
         {"n_unknown": 7}),
        ("nine am on friday", '["Time: nine", " time: nine"]', "O O O O", {"n_unknown": 2}),
    ],
)  # fmt: skip
def test_spans_are_found_in_the_text(text, answer, types, counts):
    labels = tuple("Other" if kind == "O" else kind for kind in types.split())
    assert SPANS[0].read(answer, text.split()) == Parsed({"slots": labels}, (), **counts)


def test_spans_that_are_no_list_are_unparsed():
    for text in ("", "time: nine", '"time: nine"', '{"time": "nine"}', '["time: nine', "none"):
        assert SPANS[0].read(text, ["nine"]) == Parsed({"slots": None}, ("slots",)), text


def test_a_type_that_begins_like_another_one():
    task = Task("own", "custom", (TokenField("t", ("time", "time zone", "time-of-day"), answer="spans"),))
    labels = {"t": ("time", "time zone", "time zone", "time-of-day", "Other")}
    words = ["zone:", "nine", "am", "late", "zone:"]
    assert task.read(task.write(labels, words), words) == Parsed(labels, ())


def test_adjacent_words_of_one_type_are_one_span():
    labels = {"slots": ("Other", "time", "time", "date", "time")}
    answer = SPANS[0].write(labels, "at nine am today now".split())
    assert answer == '["time: nine am", "date: today", "time: now"]'


@pytest.mark.parametrize(
    ("task", "answer", "bio"),
    [
        (SPANS[0], '["time: nine", "time: am", "date: friday"]', "B-time B-time O B-date"),
        (SPANS[0], '["time: nine am", "time: ten"]', "B-time I-time O O"),
        (TAGS[0], '["B-time", "B-time", "O", "I-date"]', "B-time B-time O B-date"),
        (TAGS[0], '["I-time", "I-time", "what"]', "B-time I-time O O"),
        (TASKS["massive_slots"], '["time", "time", "Other", "date"]', None),
        (SPANS[0], "no list", None),
    ],
)
def test_boundaries_in_an_answer(task, answer, bio):
    parsed = task.read(answer, "nine am on friday".split())
    assert parsed.bio == ({} if bio is None else {"slots": tuple(bio.split())})
    if bio is not None:
        assert parsed.labels["slots"] == tuple("Other" if tag == "O" else tag[2:] for tag in bio.split())


def test_tags_begin_and_continue_entities():
    task, text = TAGS[0], "wake me at nine am on friday".split()
    labels = {"slots": ("Other", "Other", "Other", "time", "time", "Other", "date")}
    assert task.write(labels, text) == '["O", "O", "O", "B-time", "I-time", "O", "B-date"]'
    loose = '["O", "O", "O", "I-time", "B-time", "Other", "date"]'
    found = task.read(loose, text)
    assert found.labels == {"slots": (*labels["slots"][:6], "Other")} and found.n_unknown == 1 and not found.unparsed
    assert found.bio == {"slots": ("O", "O", "O", "B-time", "B-time", "O", "O")}
    with pytest.raises(UserError, match="slot_tags bio is for slot_answer list: spans have no tags"):
        get_task("massive_slots", slot_answer="spans", slot_tags="bio")
    with pytest.raises(UserError, match="task 20ng_7 has none"):
        get_task("20ng_7", slot_tags="bio")


def test_the_longest_answer_is_the_longest():
    generator = random.Random(0)
    for task in [*ALL, OWN, OWN_SPANS]:
        for n_words in (0, 1, 2, 9):
            most = len(task.longest(words(n_words), len))
            for _ in range(50):
                assert len(write(task, random_labels(task, generator, n_words), n_words)) <= most


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_real_answers_are_read_back_or_hold_repeated_words(shared_dir, split):
    """Not the inverse only where a span's words occur, outside any span, before it and after the span before it."""
    task = get_task("massive_joint", slot_answer="spans")
    n_different = 0
    for example in load_examples(task, split, shared_dir / "data"):
        for answer in ("list", "bio", "spans"):
            own = task.with_slot_answer(answer)
            parsed = own.read(own.write(example.labels, example.words), example.words)
            if parsed == Parsed(example.labels, ()):
                continue
            assert answer == "spans" and not parsed.unparsed and not parsed.n_unknown + parsed.n_not_found
            n_different += 1
            found, gold = (entities(labels["slots"], "Other") for labels in (parsed.labels, example.labels))
            moved = [(a, b) for a, b in zip(found, gold, strict=True) if a != b]
            for (kind, start, end), (gold_kind, gold_start, gold_end) in moved:
                assert kind == gold_kind and start < gold_start
                assert example.words[start:end] == example.words[gold_start:gold_end]
    assert n_different == {"train": 1, "dev": 0, "test": 1}[split]


def test_an_unreadable_slot_list_leaves_the_intent():
    parsed = parse_answer(TASKS["massive_joint"], '{"task1": "alarm_set", "task2": "time"}', 2)
    assert parsed == Parsed({"intent": "alarm_set", "slots": None}, ("slots",))
    parsed = parse_answer(TASKS["massive_joint"], '{"task1": "alarm", "task2": ["time"]}', 2)
    assert parsed == Parsed({"intent": None, "slots": ("time", "Other")}, ("intent",), n_missing=1)


HOSTILE = [
    "[" * 100_000,
    "{" * 100_000,
    '{"task1":' * 50_000,
    "[" + "(" * 5_000,
    "[" + "-" * 50_000 + "1]",
    "[" + "9" * 10_000 + "]",
    "[1e999, NaN, -Infinity]",
    "{[]: 1}",
    "{{}: {}}",
    "['\\d', '\\x', '\\N{nothing}']",
    "[\x00]",
    "[\ud800]",
    '["\\ud800"]',
    "[f'{x}']",
    "[__import__('os')]",
    "[b'time', u'time', r'time']",
    "{'task1': {1, 2}, 'task2': ...}",
    "```" * 1_000,
    "``````",
    "```json",
    "\ufeff[]",
]


@pytest.mark.filterwarnings("error")
def test_nothing_raises_or_hangs():
    generator = random.Random(0)
    texts = list(HOSTILE)
    alphabet = "[]{}\"'`:,\\ \n\t012eE+-.nulltrufase_Otherim\x00é日🙂\u2028"
    for task in ALL:
        for _ in range(400):
            n_words = generator.randrange(8)
            written = write(task, random_labels(task, generator, n_words), n_words)
            characters = list(written)
            for _ in range(generator.randrange(1, 6)):  # a few edits of a good answer
                place = generator.randrange(len(characters) + 1)
                kind = generator.randrange(3)
                characters[place : place + (kind > 0)] = generator.choice(alphabet) if kind < 2 else ""
            texts += ["".join(characters), written[: generator.randrange(len(written))]]
        texts += ["".join(generator.choices(alphabet, k=generator.randrange(60))) for _ in range(200)]
    assert len(texts) > 5_000
    n_unread = 0
    for i, text in enumerate(texts):
        for task in ALL if i < len(HOSTILE) else generator.choices(ALL, k=2):
            parsed = parse_answer(task, text, 3)
            assert parsed == parse_answer(task, text, 3)
            assert parsed.unparsed == tuple(name for name, value in parsed.labels.items() if value is None)
            n_unread += bool(parsed.unparsed)
            for field in task.fields:
                value = parsed.labels[field.name]
                if value is not None and isinstance(field, ClassField):
                    assert value in field.labels
                elif value is not None:
                    assert len(value) == 3 and set(value) <= {*field.labels, field.other}
    assert n_unread > 1_000


def test_what_is_read_can_be_written_and_read_again():
    for text in ("```\n['time', 'x', 'date', 'date']\n```", '["time"]'):
        labels = parse_answer(TASKS["massive_slots"], text, 3).labels
        answer = TASKS["massive_slots"].write(labels)
        assert parse_answer(TASKS["massive_slots"], answer, 3).labels == labels and json.loads(answer)


def test_a_list_of_tags_may_say_other_for_outside() -> None:
    """The paper's listings ask for it."""
    task = get_task("massive_slots", slot_tags="bio")
    read = task.read('["Other", "B-time", "O"]', ("at", "seven", "please"))
    assert read.labels["slots"] == ("Other", "time", "Other") and not read.n_unknown


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[" + "9" * 5000 + "]",
        "[" + "-" * 100_000 + "1]",
        '["' + "a" * (1 << 20) + '"]',
        "['" + "a" * (1 << 16) + "']",
        "{[1]: 2}",
    ],
)
def test_what_is_too_much_to_read_is_unparsed(text):
    assert literal(text) is None


def test_halves_of_characters_and_nan_are_read():
    assert literal('["a", NaN, "\\ud83d"]')[::2] == ["a", "\ud83d"]
