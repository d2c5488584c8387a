"""20 Newsgroups: the release from its tarball and from folders, and what can be wrong with either."""

from __future__ import annotations

import io
import logging
import tarfile
from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.newsgroups import GROUPS, POSTS_IN_RELEASE, ROOTS, SAMPLE_DIR, load_newsgroups, read_newsgroups

POSTS = {
    "20news-bydate-train/rec.autos/101551": b"From: a@b.c\nSubject: Brakes\n\nThey squeal.\n",
    "20news-bydate-train/rec.autos/9": b"From: d@e.f\r\nSubject: Oil\r\n\r\nIt leaks.\rBadly.\r\n",
    "20news-bydate-train/sci.space/60000": "From: g@h.i\nSubject: Caf\u00e9\n\nna\u00efve \u00a71\n".encode("latin-1"),
    "20news-bydate-train/alt.atheism/1": b" \n",
    "20news-bydate-test/talk.politics.misc/5": b"From: j@k.l\n\nNo.\n",
}


def write_folder(root: Path, posts: dict[str, bytes]) -> Path:
    for name, content in posts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def write_tarball(path: Path, posts: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in posts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in more:
            archive.addfile(member)
    return path


def test_label_sets() -> None:
    assert len(GROUPS) == len(set(GROUPS)) == 20 and len(ROOTS) == 7
    assert {group.split(".")[0] for group in GROUPS} == set(ROOTS)


def test_texts_labels_ids_and_order(tmp_path: Path) -> None:
    examples, counts = read_newsgroups(write_folder(tmp_path, POSTS), "train")
    assert [example.id for example in examples] == [
        "20ng/train/alt.atheism/1",
        "20ng/train/rec.autos/9",
        "20ng/train/rec.autos/101551",
        "20ng/train/sci.space/60000",
    ]
    assert examples[2].text == "From: a@b.c\nSubject: Brakes\n\nThey squeal.\n"  # headers stay
    assert examples[2].labels == {"group": "rec.autos", "root": "rec"}
    assert examples[1].text == "From: d@e.f\nSubject: Oil\n\nIt leaks.\nBadly.\n"  # line ends are made one
    assert examples[3].text == "From: g@h.i\nSubject: Caf\u00e9\n\nna\u00efve \u00a71\n"
    assert examples[0].text == " \n"  # an empty post stays
    assert counts == {"empty": 1, "not_ascii": 1, "looks_utf8": 0, "carriage_returns": 1}


def test_tarball_and_every_kind_of_folder_give_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a" / "20news-bydate", POSTS)
    tarball = write_tarball(tmp_path / "20news-bydate.tar.gz", {f"./{k}": POSTS[k] for k in reversed(POSTS)})
    expected = read_newsgroups(folder, "train")
    assert len(expected[0]) == 4
    for path in (tarball, tmp_path, tmp_path / "a", folder / "20news-bydate-train"):
        assert read_newsgroups(path, "train") == expected


def test_system_files_are_not_posts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "f", POSTS | {"20news-bydate-train/rec.autos/.DS_Store": b"x"})
    (folder / "20news-bydate-train" / ".DS_Store").write_bytes(b"x")
    tarball = write_tarball(tmp_path / "t.tgz", POSTS | {"20news-bydate-train/rec.autos/._9": b"x"})
    assert len(read_newsgroups(folder, "train")[0]) == len(read_newsgroups(tarball, "train")[0]) == 4


def test_every_byte_decodes(tmp_path: Path) -> None:
    content = bytes(byte for byte in range(256) if byte != 13)
    examples, counts = read_newsgroups(write_folder(tmp_path, {"20news-bydate-test/sci.med/1": content}), "test")
    assert examples[0].text.encode("latin-1") == content
    assert counts["not_ascii"] == 1


def test_a_post_in_utf8_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, {"20news-bydate-test/sci.med/1": "Caf\u00e9".encode()})
    with caplog.at_level(logging.INFO, "data"):
        load_newsgroups(tmp_path, "test")
    assert "1 posts look like UTF-8" in caplog.text


def test_an_incomplete_release_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "data"):
        load_newsgroups(write_folder(tmp_path, POSTS), "train")
    assert "4 posts in 3 of 20 groups; 1 empty, 1 with bytes outside ASCII" in caplog.text
    assert "4 posts, but the full release has 11314" in caplog.text


def test_the_sample_is_not_called_incomplete(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "data"):
        examples = load_newsgroups(SAMPLE_DIR, "train") + load_newsgroups(SAMPLE_DIR, "test")
    assert {example.labels["group"] for example in examples} == set(GROUPS)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_unknown_group_names_the_nearest(tmp_path: Path) -> None:
    write_folder(tmp_path, {"20news-bydate-train/rec.auto/7": b"x"})
    with pytest.raises(UserError, match=r"'rec.auto/7' .*not one of the twenty groups.*Did you mean 'rec.autos'"):
        read_newsgroups(tmp_path, "train")


@pytest.mark.parametrize("method", ["open", "iterdir"])
def test_what_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    def refuse(path: Path, *mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UserError, match="cannot read .*20news-bydate-test.*: Permission denied"):
        read_newsgroups(SAMPLE_DIR, "test")


@pytest.mark.parametrize("name", ["9" * 5000, "9" * 90])
def test_a_post_with_a_long_number(tmp_path: Path, name: str) -> None:
    tarball = write_tarball(tmp_path / "x.tar.gz", POSTS | {f"20news-bydate-train/rec.autos/{name}": b"x"})
    assert f"20ng/train/rec.autos/{name}" in [example.id for example in read_newsgroups(tarball, "train")[0]]


def test_a_post_whose_name_is_not_text(tmp_path: Path) -> None:
    tarball = write_tarball(tmp_path / "x.tar.gz", POSTS | {"20news-bydate-train/rec.autos/7\udcff": b"x"})
    with pytest.raises(UserError, match=r"the post '7\\udcff' in rec.autos has a name that is not UTF-8"):
        read_newsgroups(tarball, "train")


def test_there_is_no_dev_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--holdout"):
        read_newsgroups(tmp_path, "dev")
    with pytest.raises(UserError, match="no split 'trian'.*'train'"):
        read_newsgroups(tmp_path, "trian")


@pytest.mark.parametrize("kind", ["nothing", "empty folder", "a text file", "empty groups", "another tarball"])
def test_nothing_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "empty folder":
        path.mkdir()
    elif kind == "a text file":
        path.write_text("x")
    elif kind == "empty groups":
        (path / "20news-bydate-train" / "rec.autos").mkdir(parents=True)
    elif kind == "another tarball":
        path = write_tarball(tmp_path / "x.tar.gz", {"other/file": b"x"})
    with pytest.raises(UserError, match="data.download 20ng|no post of the form"):
        read_newsgroups(path, "train")


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "bad",
    [
        member("/etc/cron.d/x"),
        member("../x"),
        member("20news-bydate-train/../../x"),
        member("20news-bydate-train\\..\\..\\x"),
        member("C:/x"),
        member("20news-bydate-train/rec.autos/7", tarfile.SYMTYPE, "/etc/passwd"),
        member("20news-bydate-train/rec.autos/7", tarfile.SYMTYPE, "../../../x"),
        member("20news-bydate-train/rec.autos/7", tarfile.LNKTYPE, "../x"),
        member("20news-bydate-train/rec.autos/7", tarfile.CHRTYPE),
    ],
    ids=lambda info: f"{info.name}>{info.linkname}",
)
def test_a_tarball_that_points_outside_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    path = write_tarball(tmp_path / "x.tar.gz", POSTS, bad)
    with pytest.raises(UserError, match="refused"):
        read_newsgroups(path, "train")


def test_links_that_stay_inside_are_harmless(tmp_path: Path) -> None:
    inside = member("20news-bydate-train/rec.autos/7", tarfile.SYMTYPE, "../sci.space/60000")
    assert len(read_newsgroups(write_tarball(tmp_path / "x.tar.gz", POSTS, inside), "train")[0]) == 4


@pytest.mark.parametrize("keep", [0.3, 0.8, 0.99])
def test_a_tarball_cut_short(tmp_path: Path, keep: float) -> None:
    path = write_tarball(tmp_path / "x.tar.gz", POSTS)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(UserError, match="stopped early"):
        read_newsgroups(path, "train")


def test_a_tarball_with_a_wrong_byte(tmp_path: Path) -> None:
    path = write_tarball(tmp_path / "x.tar.gz", POSTS)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1  # in the checksum that gzip ends with
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read to its end"):
        read_newsgroups(path, "train")


def test_no_tarball_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_text("<html>not found</html>")
    with pytest.raises(UserError, match="not a tarball"):
        read_newsgroups(tmp_path / "x.tar.gz", "train")


def test_the_real_release(shared_dir: Path) -> None:
    for split, number in POSTS_IN_RELEASE.items():
        examples, counts = read_newsgroups(shared_dir / "data", split)
        assert len(examples) == len({example.id for example in examples}) == number
        assert {example.labels["group"] for example in examples} == set(GROUPS)
        assert counts == {
            "empty": 0,
            "not_ascii": {"train": 44, "test": 29}[split],
            "looks_utf8": 0,
            "carriage_returns": {"train": 1, "test": 0}[split],
        }
