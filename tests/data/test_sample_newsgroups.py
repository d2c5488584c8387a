"""Checks on the small hand-written newsgroup sample in data/sample/20news-bydate."""

from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "data" / "sample" / "20news-bydate"
SPLITS = ("train", "test")
PER_GROUP = {"train": 4, "test": 2}
GROUPS = (
    "alt.atheism",
    "comp.graphics",
    "comp.os.ms-windows.misc",
    "comp.sys.ibm.pc.hardware",
    "comp.sys.mac.hardware",
    "comp.windows.x",
    "misc.forsale",
    "rec.autos",
    "rec.motorcycles",
    "rec.sport.baseball",
    "rec.sport.hockey",
    "sci.crypt",
    "sci.electronics",
    "sci.med",
    "sci.space",
    "soc.religion.christian",
    "talk.politics.guns",
    "talk.politics.mideast",
    "talk.politics.misc",
    "talk.religion.misc",
)
# A test text this close to a training text would be a leak between the splits.
MIN_DISTANCE = 0.2


def split_dir(split):
    return ROOT / f"20news-bydate-{split}"


def post_files(split):
    return sorted(p for p in split_dir(split).glob("*/*") if p.is_file())


def all_files():
    return [p for split in SPLITS for p in post_files(split)]


def read(path):
    return path.read_bytes().decode("latin-1")


def parse(text):
    """(header dict, body) of one post; the first blank line parts them."""
    head, _, body = text.partition("\n\n")
    headers = {}
    for line in head.split("\n"):
        name, colon, value = line.partition(": ")
        assert colon and name and " " not in name, f"not a header line: {line!r}"
        assert name not in headers, f"repeated header: {name}"
        headers[name] = value
    return headers, body


def gram_bags(text):
    """Bags of the q-grams of text, by q: single characters and triples."""
    return {q: Counter(text[i : i + q] for i in range(len(text) - q + 1)) for q in (1, 3)}


def distance_lower_bound(bags_a, bags_b):
    """A lower bound of the Levenshtein distance of two texts.

    One edit destroys at most q of a text's q-grams and creates at most q, so d edits
    leave at most q * d grams in either text that are missing from the other one.
    q = 1 also covers the difference in length. The triples depend on the order of the
    characters, without which all English texts of one length look alike.
    """
    bounds = []
    for q, a in bags_a.items():
        b = bags_b[q]
        missing = max(a.total(), b.total()) - (a & b).total()
        bounds.append(-(-missing // q))
    return max(bounds)


def within(a, b, limit):
    """True if the Levenshtein distance of a and b is at most limit (banded)."""
    if abs(len(a) - len(b)) > limit:
        return False
    over = limit + 1
    prev = [j if j <= limit else over for j in range(len(b) + 1)]
    for i, ca in enumerate(a, 1):
        lo, hi = max(1, i - limit), min(len(b), i + limit)
        row = [over] * (len(b) + 1)
        if i <= limit:
            row[0] = i
        for j in range(lo, hi + 1):
            row[j] = min(prev[j - 1] + (ca != b[j - 1]), prev[j] + 1, row[j - 1] + 1, over)
        if min(row) > limit:
            return False
        prev = row
    return prev[-1] <= limit


def limit_for(a, b):
    return int(MIN_DISTANCE * max(len(a), len(b)))


def test_root_holds_only_the_two_splits_and_the_readme():
    names = sorted(p.name for p in ROOT.iterdir())
    assert names == ["20news-bydate-test", "20news-bydate-train", "README.md"]


@pytest.mark.parametrize("split", SPLITS)
def test_every_group_is_in_the_split(split):
    assert sorted(p.name for p in split_dir(split).iterdir()) == sorted(GROUPS)


@pytest.mark.parametrize("split", SPLITS)
def test_posts_per_group(split):
    counts = Counter(p.parent.name for p in post_files(split))
    assert counts == {group: PER_GROUP[split] for group in GROUPS}


def test_total_and_unique_numeric_ids():
    ids = [p.name for p in all_files()]
    assert len(ids) >= 100
    assert all(i.isascii() and i.isdigit() for i in ids)
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", all_files(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_post_is_well_formed(path):
    raw = path.read_bytes()
    assert b"\r" not in raw and b"\0" not in raw and raw.endswith(b"\n")
    assert not any(0x7F <= byte < 0xA0 for byte in raw), "control byte, not Latin-1 text"
    headers, body = parse(raw.decode("latin-1"))
    assert {"From", "Subject", "Organization", "Lines"} <= set(headers)
    assert all(value.strip() for value in headers.values())
    assert "@" in headers["From"]
    assert body.strip()
    assert int(headers["Lines"]) == body.count("\n")
    assert 40 <= len(body.split()) <= 130


def test_headers_do_not_name_the_group():
    for path in all_files():
        head = read(path).partition("\n\n")[0].lower()
        assert not head.startswith("newsgroups:") and "\nnewsgroups:" not in head, path
        assert path.parent.name not in head, path


def test_some_posts_are_latin1_and_not_utf8():
    non_ascii = [p for p in all_files() if not p.read_bytes().isascii()]
    assert non_ascii
    for path in non_ascii:
        with pytest.raises(UnicodeDecodeError):
            path.read_bytes().decode("utf-8")


def test_some_posts_quote_an_earlier_one():
    bodies = [parse(read(p))[1] for p in all_files()]
    assert sum("\n>" in "\n" + body for body in bodies) >= 10
    assert any(body.startswith("In article <") for body in bodies)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("abcdef", "fedcba", 6),
        ("intention", "execution", 5),
    ],
)
def test_distance_helpers(a, b, distance):
    assert distance_lower_bound(gram_bags(a), gram_bags(b)) <= distance
    assert within(a, b, distance) and within(b, a, distance)
    if distance:
        assert not within(a, b, distance - 1) and not within(b, a, distance - 1)


def test_a_lightly_edited_copy_would_be_noticed():
    text = parse(read(post_files("train")[0]))[1]
    copy = text.replace("e", "a", 20)
    assert distance_lower_bound(gram_bags(text), gram_bags(copy)) <= limit_for(text, copy)
    assert within(text, copy, limit_for(text, copy))


@pytest.mark.parametrize("part", ["body", "whole post"])
def test_no_test_text_is_close_to_a_training_text(part):
    def load(split):
        out = []
        for path in post_files(split):
            text = read(path)
            text = parse(text)[1] if part == "body" else text
            # Line breaks should not hide a copy that was only re-wrapped.
            text = " ".join(text.split())
            out.append((path, text, gram_bags(text)))
        return out

    train = load("train")
    for path, text, bags in load("test"):
        for other, other_text, other_bags in train:
            limit = limit_for(text, other_text)
            if distance_lower_bound(bags, other_bags) > limit:
                continue
            assert not within(text, other_text, limit), f"{path} is close to {other}"
