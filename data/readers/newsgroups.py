"""Read 20 Newsgroups (the "bydate" release) into examples.

The model sees a post as it is in the release, as in the paper: with the headers that the release has (From, Subject,
Organization, ...), and with quotes and signatures. Two rules:

- The release is Latin-1, in which every byte is a character, so every post can be decoded (73 of 18,846 have bytes
  outside ASCII, none of them UTF-8). Line ends become ``\\n``; nothing else is changed.
- Empty posts are kept, so that a test set never loses an example. The real release has none.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data.characters import is_text
from data.errors import UserError, nearest
from data.example import Example
from data.files import limits
from data.files.archive import is_tarball, iterate_tarball
from data.files.documents import read_bytes, readable

SAMPLE_DIR = Path(__file__).resolve().parents[1] / "sample"

GROUPS: tuple[str, ...] = (
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
"""The twenty groups, sorted."""

ROOTS: tuple[str, ...] = (
    "alt",
    "comp",
    "misc",
    "rec",
    "sci",
    "soc",
    "talk",
)
"""The part of a group's name before the first dot: the seven-class labels, sorted."""

POSTS_IN_RELEASE: dict[str, int] = {"train": 11_314, "test": 7_532}
"""Posts per split of the full "bydate" release."""

TARBALL_NAME = "20news-bydate.tar.gz"

log = logging.getLogger("data")


def load_newsgroups(path: Path, split: str) -> list[Example]:
    """Read one split and log what was found; see :func:`read_newsgroups`."""
    examples, counts = read_newsgroups(path, split)
    log.info(
        "20ng %s: %d posts in %d of 20 groups; %d empty, %d with bytes outside ASCII (read as Latin-1)",
        split,
        len(examples),
        len({example.labels["group"] for example in examples}),
        counts["empty"],
        counts["not_ascii"],
    )
    if counts["looks_utf8"]:
        log.warning(
            "20ng %s: %d posts look like UTF-8 but were read as Latin-1, the release's encoding; their "
            "characters outside ASCII are wrong. Convert those files to Latin-1.",
            split,
            counts["looks_utf8"],
        )
    if len(examples) != POSTS_IN_RELEASE[split] and not path.resolve().is_relative_to(SAMPLE_DIR):
        log.warning(
            "20ng %s: %d posts, but the full release has %d; scores on a part of it cannot be compared with "
            "published ones",
            split,
            len(examples),
            POSTS_IN_RELEASE[split],
        )
    return examples


def read_newsgroups(path: Path, split: str) -> tuple[list[Example], Counter[str]]:
    """Read one split of the release.

    Args:
        path: ``20news-bydate.tar.gz``; a folder holding it; the folder that holds ``20news-bydate-train/``
            and ``20news-bydate-test/`` (or ``20news-bydate/`` with them inside); or the split's own folder.
        split: ``"train"`` or ``"test"``.

    Returns:
        The examples, ordered by group and post number (from a tarball and from folders alike), and counts:
        ``empty`` (only whitespace), ``not_ascii``, ``looks_utf8``, ``carriage_returns``.

    Raises:
        UserError: no such split; nothing found at ``path``; a folder that is not one of the twenty groups; a
            tarball that is broken or has members that point outside it.
    """
    if split == "dev":
        raise UserError("20ng has no dev split. Hold out a part of the training posts instead: --holdout 0.1")
    if split not in POSTS_IN_RELEASE:
        raise UserError(f"20ng has no split {split!r}.{nearest(split, POSTS_IN_RELEASE)}")
    with readable(Path(path)):
        posts = list(_posts(Path(path), f"20news-bydate-{split}"))
    posts.sort(key=lambda post: (post[0], int(post[1]) if len(post[1]) < 20 and post[1].isdecimal() else 0, post[1]))

    counts: Counter[str] = Counter()
    examples = []
    for group, number, content in posts:
        if group not in GROUPS:
            raise UserError(
                f"{path}: post {f'{group}/{number}'!r} is in {group!r}, which is not one of the twenty groups."
                f"{nearest(group, GROUPS)}"
            )
        if not is_text(number):
            raise UserError(f"{path}: the post {number!r} in {group} has a name that is not UTF-8.")
        text = content.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n")
        counts["empty"] += not text.strip()
        counts["not_ascii"] += not content.isascii()
        counts["looks_utf8"] += not content.isascii() and _is_utf8(content)
        counts["carriage_returns"] += b"\r" in content
        labels: dict[str, str | tuple[str, ...]] = {"group": group, "root": group.split(".")[0]}
        examples.append(Example(id=f"20ng/{split}/{group}/{number}", text=text, labels=labels))
    return examples, counts


def _posts(path: Path, folder_name: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield ``(group, post number, bytes)`` of one split, from a tarball or a folder."""
    if is_tarball(path):
        yield from _tarball_posts(path, folder_name)
        return
    candidates = [path / folder_name, path / "20news-bydate" / folder_name]
    if path.name == folder_name:
        candidates.insert(0, path)
    for folder in candidates:
        if folder.is_dir():
            yield from _folder_posts(folder)
            return
    if is_tarball(path / TARBALL_NAME):
        yield from _tarball_posts(path / TARBALL_NAME, folder_name)
        return
    what = "neither a folder nor a tarball" if path.exists() else "no such file or folder"
    what = f"no {folder_name}/ and no {TARBALL_NAME} in it" if path.is_dir() else what
    raise UserError(
        f"20 Newsgroups not found at {path}: {what}. Give {TARBALL_NAME} or the folder that holds "
        f"{folder_name}/; python -m data.download 20ng fetches it."
    )


def _tarball_posts(path: Path, folder_name: str) -> Iterator[tuple[str, str, bytes]]:
    def wanted(name: str) -> bool:
        parts = name.split("/")
        return len(parts) >= 3 and parts[-3] == folder_name and not parts[-1].startswith(".")

    found = False
    for name, content in iterate_tarball(path, wanted):
        found = True
        group, number = name.split("/")[-2:]
        yield group, number, content
    if not found:
        raise UserError(f"{path}: no post of the form {folder_name}/<group>/<number> in it; is it {TARBALL_NAME}?")


def _folder_posts(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    groups = [group for group in folder.iterdir() if group.is_dir() and not group.name.startswith(".")]
    found = False
    for group in groups:
        for post in group.iterdir():
            if post.is_file() and not post.name.startswith("."):
                found = True
                yield group.name, post.name, read_bytes(post, limits.TAR_MEMBER_BYTES)
    if not found:
        raise UserError(f"{folder}: no post of the form <group>/<number> in it.")


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
