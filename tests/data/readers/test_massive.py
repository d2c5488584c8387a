"""MASSIVE: JSON lines to words with slots, annotations that do not match, and what can be wrong with a line."""

from __future__ import annotations

import gzip
import io
import json
import logging
import tarfile
from pathlib import Path

import pytest

from data.errors import UserError
from data.files import limits
from data.readers import massive
from data.readers.massive import INTENTS, SAMPLE_DIR, SLOT_TYPES, load_massive, read_massive

ROW = {
    "id": "7",
    "locale": "en-US",
    "partition": "train",
    "scenario": "alarm",
    "intent": "alarm_set",
    "utt": "wake me up at nine am on friday",
    "annot_utt": "wake me up at [time : nine am] on [date : friday]",
}


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_one(tmp_path: Path, utt: str, annot_utt: str) -> tuple[list[str], list[str], dict[str, int]]:
    """Return the slots, the BIO tags and the counts that are not zero."""
    path = write(tmp_path / "one.jsonl", ROW | {"utt": utt, "annot_utt": annot_utt})
    (example,), counts = read_massive(path, "train")
    assert example.text == utt
    assert len(example.labels["slots"]) == len(example.bio["slots"]) == len(example.words)
    for slot, tag in zip(example.labels["slots"], example.bio["slots"], strict=True):
        assert slot == ("Other" if tag == "O" else tag[2:])
    return list(example.labels["slots"]), list(example.bio["slots"]), {k: n for k, n in counts.items() if n}


def test_label_sets() -> None:
    assert len(INTENTS) == len(set(INTENTS)) == 60 and len(SLOT_TYPES) == len(set(SLOT_TYPES)) == 55
    assert list(INTENTS) == sorted(INTENTS) and list(SLOT_TYPES) == sorted(SLOT_TYPES)
    assert "Other" not in SLOT_TYPES


def test_an_example(tmp_path: Path) -> None:
    (example,), counts = read_massive(write(tmp_path / "x.jsonl", ROW), "train")
    assert example.id == "massive/train/7"
    assert example.text == "wake me up at nine am on friday"
    assert example.labels["intent"] == "alarm_set"
    assert example.labels["slots"] == ("Other", "Other", "Other", "Other", "time", "time", "Other", "date")
    assert example.bio == {"slots": ("O", "O", "O", "O", "B-time", "I-time", "O", "B-date")}
    assert not any(counts.values())


def test_neighbours_of_one_type_keep_their_brackets(tmp_path: Path) -> None:
    _, bio, _ = read_one(tmp_path, "monday today", "[date : monday] [date : today]")
    assert bio == ["B-date", "B-date"]
    _, bio, _ = read_one(tmp_path, "next monday", "[date : next monday]")
    assert bio == ["B-date", "I-date"]


def test_spacing_and_punctuation_around_brackets(tmp_path: Path) -> None:
    slots, bio, counts = read_one(tmp_path, "mail robert,  now", "mail [person: robert],  now ")
    assert slots == ["Other", "person", "Other"] and not counts
    slots, _, counts = read_one(tmp_path, "at 5:30", "at [time : 5:30]")
    assert slots == ["Other", "time"] and not counts
    _, bio, counts = read_one(tmp_path, "annmonday", "[person : ann][date : monday]")
    assert bio == ["B-person"] and counts == {"entities_lost": 1}
    _, bio, counts = read_one(tmp_path, "ann-marie", "[person : ann]-[person : marie]")
    assert bio == ["B-person"] and counts == {"entities_lost": 1}


@pytest.mark.parametrize(
    ("utt", "annot_utt", "bio", "counts"),
    [
        ("is it friday", "is it [date : Friday]", "O O B-date", {"letter_case": 1}),
        ("a place in cpt", "A place in [place_name : cpt]", "O O O B-place_name", {"letter_case": 1}),
        ("bio of rihanna now", "bio of [person : rihana] now", "O O B-person O", {"spelling": 1}),
        ("google save it", "Olly save it", "O O O", {"spelling": 1}),
        (
            "to orlando from hollywood",
            "to [place_name : orlando from hwood]",
            "O B-place_name I-place_name I-place_name",
            {"spelling": 1},
        ),
        (
            "complain at comcast today",
            "complain [business_name : @comcast] [date : today]",
            "O O B-business_name B-date",
            {"word_count": 1},
        ),
        (
            "open harry potter audiobook",
            "open [audiobook_name : harrypotter] [media_type : audiobook]",
            "O B-audiobook_name I-audiobook_name B-media_type",
            {"word_count": 1},
        ),
        ("with this pasta help", "with [business_name : tesco] help", "O O O O", {"word_count": 1, "entities_lost": 1}),
        ("a b c", "a [date : x y] b c", "O O O", {"word_count": 1, "entities_lost": 1}),
        ("play it now please", "play it [time : now]", "O O B-time O", {"word_count": 1}),
        ("", "[date : x]", "", {"word_count": 1, "entities_lost": 1, "empty": 1}),
        (" ", "", "", {"empty": 1}),
    ],
)
def test_annotations_that_do_not_match(
    tmp_path: Path, utt: str, annot_utt: str, bio: str, counts: dict[str, int]
) -> None:
    _, found, found_counts = read_one(tmp_path, utt, annot_utt)
    assert found == bio.split()
    assert found_counts == counts


def test_the_counts_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "x.jsonl", ROW, ROW | {"id": "8", "utt": "Friday", "annot_utt": "[date : friday]"})
    with caplog.at_level(logging.INFO, "data"):
        load_massive(path, "train")
    assert "2 utterances, 9 words, 3 slot entities; 0 empty" in caplog.text
    assert "1 by letter case, 0 by spelling" in caplog.text
    assert "2 utterances, but MASSIVE 1.1 en-US has 11514" in caplog.text


def test_words_without_spaces_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chinese = {"locale": "zh-CN", "utt": "明天九点叫醒我", "annot_utt": "[date : 明天][time : 九点]叫醒我"}
    load_massive(write(tmp_path / "zh-CN.jsonl", ROW, ROW | chinese | {"id": "8"}), "train")
    assert "words are parted by spaces; 1 of 4 slot entities have no word of their own and are lost" in caplog.text
    assert "2 utterances, 1 of another locale, but MASSIVE 1.1 en-US has 11514" in caplog.text
    caplog.clear()
    rows = [ROW | {"id": str(i)} for i in range(99)]  # 198 entities
    for n_lost, warned in ((2, False), (3, True)):
        lost = [ROW | chinese | {"id": f"zh {i}"} for i in range(n_lost)]
        load_massive(write(tmp_path / "few.jsonl", *rows, *lost), "train")
        assert ("words are parted by spaces" in caplog.text) == warned, "2 of 202, 3 of 204"


def test_another_language_with_the_releases_number_of_utterances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(massive, "UTTERANCES_IN_RELEASE", {"train": 1})
    load_massive(write(tmp_path / "en.jsonl", ROW), "train")
    load_massive(write(tmp_path / "old.jsonl", {k: v for k, v in ROW.items() if k != "locale"}), "train")
    assert "cannot be compared" not in caplog.text
    load_massive(write(tmp_path / "de.jsonl", ROW | {"locale": "de-DE"}), "train")
    assert "1 utterances, 1 of another locale, " in caplog.text and "cannot be compared" in caplog.text


def test_a_packed_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write(tmp_path / "en-US.jsonl", ROW)
    packed = tmp_path / "en-US.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_massive(packed, "train") == read_massive(plain, "train")
    for content, problem in ((packed.read_bytes()[:-9], "damaged or cut off"), (plain.read_bytes(), "Not a gzipped")):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(UserError, match=f"bad.gz: the compressed file .*{problem}"):
            read_massive(tmp_path / "bad.gz", "train")
    plain.write_bytes(packed.read_bytes())
    with pytest.raises(UserError, match=r"compressed with gzip. Unpack it first \(gunzip\)\.$"):
        read_massive(plain, "train")
    monkeypatch.setattr(limits, "TAR_MEMBER_BYTES", 20)
    with pytest.raises(UserError, match="more than 20 bytes when unpacked, the limit"):
        read_massive(packed, "train")


def test_splits(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", ROW, ROW | {"partition": "test"}, ROW | {"id": "9"})
    assert [example.id for example in read_massive(path, "train")[0]] == ["massive/train/7", "massive/train/9"]
    assert [example.id for example in read_massive(path, "test")[0]] == ["massive/test/7"]
    with pytest.raises(UserError, match="none of its 3 utterances is in the split 'dev'"):
        read_massive(path, "dev")
    with pytest.raises(UserError, match="no split 'validation'"):
        read_massive(path, "validation")


def write_tarball(path: Path, name: str, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for entry, text in ((name, content), ("1.1/data/de-DE.jsonl", b"not read"), ("1.1/LICENSE", b"x")):
            member = tarfile.TarInfo(entry)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return path


@pytest.mark.parametrize(
    "where", ["en-US.jsonl", "massive/en-US.jsonl", "data/en-US.jsonl", "1.1/data/en-US.jsonl", "tarball"]
)
def test_where_it_is_found(tmp_path: Path, where: str) -> None:
    expected = read_massive(write(tmp_path / "x" / "any name", ROW), "train")
    folder = tmp_path / "y"
    if where == "tarball":
        content = (tmp_path / "x" / "any name").read_bytes()
        tarball = write_tarball(folder / "amazon-massive-dataset-1.1.tar.gz", "1.1/data/en-US.jsonl", content)
        assert read_massive(tarball, "train") == expected
    else:
        write(folder / where, ROW)
    write(folder / "1.1" / "data" / "fr-FR.jsonl", {"another": "language"})
    assert read_massive(folder, "train") == expected


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder.*data.download massive"):
        read_massive(tmp_path / "x", "train")
    with pytest.raises(UserError, match="no en-US.jsonl and no amazon-massive"):
        read_massive(tmp_path, "train")
    with pytest.raises(UserError, match="no files named en-US.jsonl"):
        read_massive(write_tarball(tmp_path / "x.tar.gz", "1.1/data/fr-FR.jsonl", b""), "train")


def test_a_tarball_that_points_outside_is_refused(tmp_path: Path) -> None:
    path = write_tarball(tmp_path / "x.tar.gz", "../../en-US.jsonl", json.dumps(ROW).encode())
    with pytest.raises(UserError, match="refused.*points outside"):
        read_massive(path, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": "8", "utt": "wake', r"not JSON \(Unterminated string"),
        pytest.param(b"[" * 200_000, "nested more than 64 levels deep", id="deep"),
        (b"[1, 2]", r"the document must be an object; it is \[1, 2\]"),
        (b'{"id": "8", "utt": "caf\xe9"}', r"not UTF-8 \(byte 0xe9\). It reads .*café"),
        (json.dumps({k: v for k, v in ROW.items() if k != "annot_utt"}).encode(), "annot_utt is missing"),
        (json.dumps(ROW | {"utt": None}).encode(), "utt must be a text; it is None"),
        (json.dumps(ROW | {"id": [1]}).encode(), r"id must be a whole number or a text; it is \[1\]"),
        (json.dumps(ROW | {"utt": "a" * 1001}).encode(), "utt: Expected str of length <= 1000; it is 'aaa"),
        (b'{"id": ' + b"9" * 5000 + b"}", "a number with more than 64 digits"),
        (json.dumps(ROW | {"utt": "a\ud800"}).encode(), "half of a surrogate pair"),
        (json.dumps(ROW).encode(), "id '7' was already used in line 1"),
        (json.dumps(ROW | {"id": "8", "partition": "valid"}).encode(), "partition 'valid' does not exist"),
        (
            json.dumps(ROW | {"id": "8", "intent": "alarm_sett"}).encode(),
            "intent 'alarm_sett' does not exist. Did you mean 'alarm_set'",
        ),
        (
            json.dumps(ROW | {"id": "8", "annot_utt": "at [tme : nine]"}).encode(),
            "slot type 'tme' does not exist. Did you mean 'time'",
        ),
        (
            json.dumps(ROW | {"id": "8", "partition": "test", "annot_utt": "at [tme : nine]"}).encode(),
            "slot type 'tme' does not exist",  # though another split is asked for
        ),
        (json.dumps(ROW | {"id": "8", "annot_utt": "at [time : nine am"}).encode(), r"a '\[' without its '\]'"),
        (json.dumps(ROW | {"id": "8", "annot_utt": "at time : nine] am"}).encode(), r"a '\]' without its '\['"),
        (json.dumps(ROW | {"id": "8", "annot_utt": "[time : [date : x]]"}).encode(), r"a '\[' inside a '\['"),
        (json.dumps(ROW | {"id": "8", "annot_utt": "at [nine am]"}).encode(), "a bracket without ':'"),
        (json.dumps(ROW | {"id": "8", "annot_utt": "at [time : ]"}).encode(), "a slot without words"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\r\n\n" + line + b"\n")
    with pytest.raises(UserError, match=rf"x\.jsonl, line 3: .*{message}"):
        read_massive(path, "train")


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    write(tmp_path / "en-US.jsonl", ROW)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="cannot read .*en-US.jsonl: Permission denied"):
        read_massive(tmp_path, "train")


def test_the_sample_is_clean(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "data"):
        for split in ("train", "test"):
            load_massive(SAMPLE_DIR, split)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_real_file(shared_dir: Path) -> None:
    expected = {  # split: utterances, words, entities, counts
        "train": (7268, 48770, 7056, {}),
        "dev": (2033, 13853, 2022, {"letter_case": 22, "spelling": 3, "word_count": 1}),
        "test": (2974, 20137, 2822, {"letter_case": 30, "spelling": 8, "word_count": 4, "entities_lost": 1}),
    }
    for split, (n_utterances, n_words, n_entities, anomalies) in expected.items():
        examples, counts = read_massive(shared_dir / "data", split)
        assert len(examples) == len({example.id for example in examples}) == n_utterances
        assert sum(len(example.words) for example in examples) == n_words
        assert sum(tag[0] == "B" for example in examples for tag in example.bio["slots"]) == n_entities
        assert {kind: count for kind, count in counts.items() if count} == anomalies
