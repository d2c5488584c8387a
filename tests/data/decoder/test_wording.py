"""The paper's wording: all 12 listings word by word, and what has no listing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data.decoder.prompts import build_prompt, build_turn
from data.decoder.templates import Text
from data.errors import UserError
from data.example import Example
from data.tasks import TASKS, ClassField, Task, TokenField, get_task

LISTINGS = (Path(__file__).parent / "listings.txt").read_text(encoding="utf-8")
NUMBERS = {"20ng_20": (1, 3), "20ng_7": (2, 4), "20ng_joint": (5, 6),
           "massive_intent": (7, 8), "massive_slots": (9, 10), "massive_joint": (11, 12)}  # fmt: skip
CASES = [(name, numbers[five], bool(five)) for name, numbers in NUMBERS.items() for five in (0, 1)]

POST = Example("1", "From: a {Label}\n\nA {Examples} car.", {"group": "rec.autos", "root": "rec"})
UTTERANCE = Example("2", "wake me at nine", {"intent": "alarm_set", "slots": ("Other", "Other", "Other", "time")})


def printed(number: int) -> list[str]:
    """The strings of a listing as the paper prints it, without line numbers: system text, if any, and user text."""
    after = re.split(rf"^Listing {number}: .*$", LISTINGS, flags=re.M)[1]
    lines = re.split(r"^Listing \d+: .*$", after, flags=re.M)[0].strip("\n").split("\n")
    code = "\n".join(line.removeprefix(str(i)) for i, line in enumerate(lines, 1))
    return re.findall(r'"""\n(.*?)"""', code, flags=re.S)


def quoted(field: ClassField | TokenField) -> str:
    return str(list(field.labels))


@pytest.mark.parametrize(("name", "number", "five"), CASES)
def test_each_listing_word_by_word(name: str, number: int, five: bool) -> None:
    task = TASKS[name]
    example = POST if task.dataset == "20ng" else UTTERANCE
    strings = printed(number)
    if number == 9:  # printed twice
        assert strings[0] == strings[1]
    user = strings[-1]
    fields = {type(field): field for field in task.fields}
    values = {"{{Examples}}": "{Examples}", "{Intent_Labels}": quoted(task.fields[0])}
    values["{Slot_Filling_Labels}"] = quoted(fields.get(TokenField, task.fields[0]))
    values["{Labels}"] = quoted(task.fields[0])
    for placeholder, value in values.items():
        user = user.replace(placeholder, value)
    document = "{News}" if task.dataset == "20ng" else "{Utter}"
    before, after = user.split(document)
    shown = "\n\n".join([turn_of_shot(task, example)] * 5)
    before = before.replace("{Examples}", shown)
    assert five == ("<<Examples>>" in before)

    turn = build_turn(task, [example] * 5 * five, wording="paper")
    assert turn.before == before
    assert turn.after == after.removesuffix("\n{Label}")
    assert turn.system == (strings[0].removesuffix("\n") if number > 10 else "")


def turn_of_shot(task: Task, shot: Example) -> str:
    name, cue = task.document_name, {1: "Label:", 2: "Output:"}[len(task.fields)]
    cue = "Slots:" if task.name == "massive_slots" else cue
    answer = task.write(shot.labels, shot.words)
    return f"Beginning of <<{name}>>\n{shot.text}\nEnd of <<{name}>>\n\n{cue} {answer}"


def test_the_listings_here_are_the_papers(shared_dir: Path) -> None:
    assert LISTINGS.strip() in (shared_dir / "paper.txt").read_text(encoding="utf-8").replace("\xa0", " ")


def text_of(pieces) -> str:
    return "".join(piece.text if isinstance(piece, Text) else f"⟨{piece.name}⟩" for piece in pieces)


def whole(task: str, template: str) -> str:
    prompt = build_prompt(TASKS[task], template, wording="paper")
    return text_of((*prompt.prefix, Text("..."), *prompt.suffix, *prompt.answer("rec")))


def test_inst_of_a_listing_is_that_of_llama2s_template() -> None:
    written = "⟨<s>⟩ [INST]You will be given", "\n\nLabel: [/INST]\nrec⟨</s>⟩"
    text = whole("20ng_20", "llama2")
    assert text.startswith(written[0]) and text.endswith(written[1]) and text.count("INST]") == 2
    assert whole("20ng_20", "plain").startswith("⟨bos⟩[INST]You") and whole("20ng_20", "plain").count("INST]") == 2
    text = whole("20ng_7", "llama2")  # listing 2 has none, so the template writes it
    assert text.startswith("⟨<s>⟩ [INST] You will") and text.endswith("Label: [/INST] rec⟨</s>⟩")
    text = whole("20ng_20", "llama3")
    assert "user⟨<|end_header_id|>⟩\n\n[INST]You" in text and text.endswith("⟨<|end_header_id|>⟩\n\nrec⟨<|eot_id|>⟩")


def test_bio_tags_are_what_the_list_of_labels_has() -> None:
    turn = build_turn(get_task("massive_slots", slot_tags="bio"), wording="paper")
    assert "in the list ['B-alarm_type', 'I-alarm_type', " in turn.before
    assert "'I-weather_descriptor', 'O'].\n" in turn.before


@pytest.mark.parametrize(
    ("task", "more", "why"),
    [
        (Task("mine", "custom", (ClassField("a", ("x", "y")),)), {}, "no listing for task mine"),
        (get_task("massive_joint", slot_answer="spans"), {}, "slot_answer is spans"),
        (get_task("20ng_joint", "section"), {}, "joint_order is section"),
        (TASKS["20ng_7"], {"list_labels": False}, "list_labels is off"),
    ],
)
def test_what_has_no_listing_is_refused(task: Task, more: dict, why: str) -> None:
    with pytest.raises(UserError, match=f"wording paper: .*{why}.*--wording clean"):
        build_turn(task, wording="paper", **more)


def test_an_unknown_wording_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="Unknown wording 'papr'.*'paper'"):
        build_turn(TASKS["20ng_7"], wording="papr")
