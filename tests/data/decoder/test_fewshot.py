"""Few-shot examples: balanced and repeatable draws, cut texts, and the record that goes with a checkpoint."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter

import pytest

from data.decoder.fewshot import PromptSpec, choose_shots, cut_shots, shots_problems
from data.decoder.prompts import build_prompt
from data.decoder.tokenizer import load_tokenizer
from data.errors import UserError
from data.example import Example
from data.tasks import TASKS, get_task

GROUPS = TASKS["20ng_20"].fields[0].labels


def make_posts(n=200, skew=True):
    """Posts of which nine in ten are of one group, so that an unbalanced draw is visible."""
    generator = random.Random(1)
    groups = [GROUPS[0] if skew and i % 10 else generator.choice(GROUPS) for i in range(n)]
    return [
        Example(f"20ng/train/{g}/{i}", f"Subject: {i}", {"group": g, "root": g.split(".")[0]})
        for i, g in enumerate(groups)
    ]


def make_utterances():
    types = ("date", "time", "person", "place_name", "song_name")
    made = []
    for i in range(300):
        slots = ["Other", "Other", "Other"]
        if i % 3 == 0:
            slots[1] = types[i // 3 % len(types)]
        intent = TASKS["massive_intent"].fields[0].labels[i % 7]
        made.append(Example(f"massive/train/{i}", "one two three", {"intent": intent, "slots": tuple(slots)}))
    return made


@pytest.mark.parametrize(("name", "field"), [("20ng_20", "group"), ("20ng_7", "root"), ("20ng_joint", "root")])
def test_labels_take_turns(name, field):
    posts = make_posts()
    for seed in range(5):
        shots = choose_shots(posts, TASKS[name], 5, seed)
        assert len({shot.labels[field] for shot in shots}) == 5
    twice = Counter(shot.labels["root"] for shot in choose_shots(posts, TASKS["20ng_7"], 14, 0))
    assert max(twice.values()) <= 3 and len(twice) == len({post.labels["root"] for post in posts})


def test_slots_of_different_types_come_first():
    for name in ("massive_slots", "massive_joint"):
        shots = choose_shots(make_utterances(), TASKS[name], 5, seed=3)
        shown = [{label for label in shot.labels["slots"] if label != "Other"} for shot in shots]
        assert all(shown) and len(set.union(*shown)) == 5
    intents = [shot.labels["intent"] for shot in choose_shots(make_utterances(), TASKS["massive_joint"], 5, 3)]
    assert len(set(intents)) == 5


def test_a_draw_depends_on_the_seed_and_not_on_the_order():
    posts = make_posts()
    shuffled = random.Random(5).sample(posts, len(posts))
    draws = [tuple(shot.id for shot in choose_shots(posts, TASKS["20ng_20"], 5, seed)) for seed in range(20)]
    assert draws[0] == tuple(shot.id for shot in choose_shots(shuffled, TASKS["20ng_20"], 5, 0))
    assert len(set(draws)) > 10
    assert all(len(set(draw)) == 5 for draw in draws)


def test_empty_documents_are_never_drawn_and_too_few_is_an_error():
    posts = [Example(str(i), " \n" if i else "text", {"root": "rec"}) for i in range(10)]
    assert [shot.id for shot in choose_shots(posts, TASKS["20ng_7"], 1, 0)] == ["0"]
    with pytest.raises(UserError, match="2 few-shot examples asked for, but only 1"):
        choose_shots(posts, TASKS["20ng_7"], 2, 0)
    assert choose_shots(posts, TASKS["20ng_7"], 0, 0) == []


def test_a_random_draw_is_not_balanced_and_named_examples_come_in_their_order():
    posts = make_posts()
    drawn = [choose_shots(posts, TASKS["20ng_20"], 5, seed, "random") for seed in range(30)]
    assert len({tuple(shot.id for shot in draw) for draw in drawn}) == 30
    first = sum(shot.labels["group"] == GROUPS[0] for draw in drawn for shot in draw)
    assert first > 100, "nine in ten posts are of this group; a balanced draw has at most one of five"
    assert choose_shots(posts[::-1], TASKS["20ng_20"], 5, 3, "random") == drawn[3]
    ids = [posts[7].id, posts[2].id]
    assert choose_shots(posts, TASKS["20ng_20"], 0, 0, "ids", ids) == [posts[7], posts[2]]
    with pytest.raises(UserError, match="the training split .* examples. has no '.*/7x'. Its ids look like '.*/0'"):
        choose_shots(posts, TASKS["20ng_20"], 0, 0, "ids", [posts[7].id + "x"])
    with pytest.raises(UserError, match="the training split .0 examples. has no 'x'.$"):
        choose_shots([], TASKS["20ng_20"], 0, 0, "ids", ["x"])
    with pytest.raises(UserError, match="is given 2 times"):
        choose_shots(posts, TASKS["20ng_20"], 0, 0, "ids", [posts[7].id] * 2)


def test_contradictions_among_the_options_of_shots():
    assert (
        not shots_problems("ids", ["a", "b"], 2) + shots_problems("ids", ["a"], None) + shots_problems("random", (), 5)
    )
    assert "needs --shot_ids" in shots_problems("ids", (), 5)[0]
    assert "shots = 5, but shot_ids names 1" in shots_problems("ids", ["a"], 5)[0]
    assert "is for --shots_choice ids (it is balanced)" in shots_problems("balanced", ["a"], 0)[0]


def test_posts_are_cut_to_tokens_and_utterances_are_not(tiny_tokenizer):
    long = "Subject: naïve 日本語 🙂 the price of that car\n\n" * 50
    post = Example("p", long, {"root": "rec"})
    assert len(tiny_tokenizer.encode(long)) > 1000
    for n in (1, 2, 3, 17, 64, 256):
        (cut,) = cut_shots([post], TASKS["20ng_20"], tiny_tokenizer, n)
        assert cut.labels == post.labels and cut.id == "p"
        assert long.startswith(cut.text) and len(tiny_tokenizer.encode(cut.text)) <= n
        assert n < 10 or len(tiny_tokenizer.encode(cut.text)) > n - 10
    assert cut_shots([post], TASKS["20ng_20"], tiny_tokenizer, 100_000) == [post]
    utterance = Example("u", long, {"slots": ("Other",) * len(long.split())})
    assert cut_shots([utterance], TASKS["massive_joint"], tiny_tokenizer, 5) == [utterance]


def test_real_draws_stay_short(shared_dir, llama3):
    from data.source import load_examples

    posts = load_examples("20ng", "train", shared_dir / "data")
    for seed in range(10):
        shots = choose_shots(posts, TASKS["20ng_joint"], 5, seed)
        lengths = [len(llama3.encode(shot.text)) for shot in cut_shots(shots, TASKS["20ng_joint"], llama3)]
        assert max(lengths) <= 256 and len({shot.labels["root"] for shot in shots}) == 5


def test_the_record_comes_back_and_builds_the_same_prompt(tmp_path):
    task = get_task("20ng_joint", "section")
    shots = tuple(choose_shots(make_posts(), task, 5, 4))
    spec = PromptSpec("20ng_joint", "chatml", "section", shots, seed=4, shot_tokens=64)
    spec.save(tmp_path)
    assert PromptSpec.load(tmp_path) == PromptSpec.load(tmp_path / "prompt.json") == spec
    assert PromptSpec.load(tmp_path).build() == build_prompt(task, "chatml", shots)
    assert json.loads((tmp_path / "prompt.json").read_text())["shots"][0]["id"] == shots[0].id


def test_slots_in_the_record_stay_tuples(tmp_path):
    shots = tuple(choose_shots(make_utterances(), TASKS["massive_joint"], 5, 0))
    spec = PromptSpec("massive_joint", "llama3", shots=shots)
    spec.save(tmp_path / "prompt.json")
    loaded = PromptSpec.load(tmp_path)
    assert loaded == spec and isinstance(loaded.shots[0].labels["slots"], tuple)
    assert loaded.build() == build_prompt(TASKS["massive_joint"], "llama3", shots)


def test_a_prompt_of_another_task_is_refused():
    with pytest.raises(UserError, match="made for task 20ng_7, not for 20ng_20"):
        PromptSpec("20ng_7", "plain").build(TASKS["20ng_20"])


def test_a_task_file_changed_later_is_noticed(tmp_path):
    toml = 'name = "mail"\ninstruction = "Sort it."\n[files]\ntrain = "train.csv"\n'
    toml += '[[fields]]\nname = "queue"\ntype = "class"\nlabels = ["b", "a"]\n'
    (tmp_path / "train.csv").write_text("text,queue\nx,a\n")

    def task(old: str = "", new: str = ""):
        (tmp_path / "mail.toml").write_text(toml.replace(old, new))
        return get_task(tmp_path / "mail.toml")

    unsigned = PromptSpec("mail", "plain", shots=(Example("mail/train/2", "x", {"queue": "a"}),))
    unsigned.signed(task()).save(tmp_path)
    stored = PromptSpec.load(tmp_path)
    assert stored.build(task()) == unsigned.build(task())
    for change in [("Sort", "File"), ('"b", "a"', '"a", "b"'), ('"b", ', '"c", "b", ')]:
        changed = task(*change)
        unsigned.build(changed)
        with pytest.raises(UserError, match=r"mail\.toml .* has changed since.*--new_prompt"):
            stored.build(changed)
    with pytest.raises(UserError, match="changed since"):
        dataclasses.replace(stored, template="llama2").build(task())


def test_a_missing_or_broken_record_is_named(tmp_path):
    with pytest.raises(UserError, match=r"No prompt\.json at"):
        PromptSpec.load(tmp_path)
    for content, message in (
        ("{", "not JSON"),
        ("[" * 1000, "nested more than 64 levels"),
        ("[]", "the document must be an object"),
        ('{"task": "20ng_7"}', "template is missing"),
        ('{"task": [], "template": "b"}', r"task must be a text; it is \[\]"),
        ('{"task": "a", "template": "b", "row_length": "5"}', "row_length must be a whole number or null; it is '5'"),
        ('{"task": "a", "template": "b", "row_length": 1e99}', "row_length"),
        ('{"task": "a", "template": "b", "row_length": 99999999999}', "row_length must be .* at most 1,073,741,824"),
        ('{"task": "a", "template": "b", "shots": [{"id": "1", "text": 5, "labels": {}}]}', r"shots\[0\].text must be"),
        (
            '{"task": "a", "template": "b", "shots": [{"id": "1", "text": "", "labels": {"a": [1]}}]}',
            "a text",
        ),
    ):
        (tmp_path / "prompt.json").write_text(content)
        with pytest.raises(UserError, match=rf"prompt\.json: .*{message}"):
            PromptSpec.load(tmp_path)


@pytest.mark.parametrize("labels", [{}, {"root": ("rec",)}, {"root": "x"}])
def test_an_example_that_is_not_of_the_task_is_named(labels):
    spec = PromptSpec("20ng_7", "plain", shots=(Example("p", "text", labels),))
    with pytest.raises(UserError, match="Example p, field 'root' of task 20ng_7"):
        spec.build()


def test_shots_survive_a_tokenizer_that_splits_characters(tiny_folder):
    tokenizer = load_tokenizer(tiny_folder["rank_file"])
    (cut,) = cut_shots([Example("p", "🙂" * 100, {"root": "rec"})], TASKS["20ng_7"], tokenizer, 10)
    assert cut.text == "🙂🙂"
