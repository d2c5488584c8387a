"""Fetch the two releases from their public sources: ``python -m data.download 20ng|massive [--to DIR]``.

The tarballs are not extracted: the readers read them directly. A download is written to ``NAME.part.tar.gz`` and is
renamed only when it is complete and checked, so that an interrupted one is never taken for the release. The same
command continues an interrupted download.

Checks:

- MASSIVE 1.1 has a pinned SHA-256; any other file is refused.
- 20 Newsgroups: the site publishes no checksum, so the posts are counted. A tarball without exactly 11,314 and 7,532
  posts of the twenty groups is refused. Two checksums of it are known: scikit-learn's SHA-256 of its mirror and
  Anserini's MD5 of the site's file. A tarball with the right counts but another checksum is accepted with a warning,
  because compressing the same posts again changes the checksum.

Why the Hugging Face hub is not the default: AmazonScience/massive is a loading script there, which current ``datasets``
refuses to run. ``--from_hub`` loads the hub's Parquet conversion instead, for machines that can reach the hub but not
the S3 bucket; it is refused if its counts are not those of the release. Copies of 20 Newsgroups on the hub
(SetFit/20_newsgroups and most others) lack headers, signatures and quotes, which makes it a different task. So there
is no ``--from_hub`` for them.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from data import terminal
from data.command_line import cli
from data.commands import command
from data.errors import UserError
from data.files import limits
from data.files.archive import AGAIN
from data.files.documents import permitted
from data.files.paths import parsed_paths
from data.json_text import to_json
from data.progress import Regular
from data.readers import massive, newsgroups
from data.source import DOWNLOAD_DIR

CHUNK_BYTES = 1 << 18
TIMEOUT_S = 30.0
ATTEMPTS = 4
HUB_REPO, HUB_CONFIG, HUB_REVISION = "AmazonScience/massive", "en-US", "refs/convert/parquet"
HUB_COLUMNS = ("id", "locale", "partition", "scenario", "intent", "utt", "annot_utt")
LOCAL_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)

log = logging.getLogger("data")


@dataclass(frozen=True)
class Release:
    """A file to fetch: its addresses, its name and its known checksums.

    ``pinned``: True: a file with another checksum is refused; False: there is only a warning.
    """

    url: str
    mirror: str | None
    file_name: str
    checksums: frozenset[str]
    pinned: bool


RELEASES: dict[str, Release] = {
    "20ng": Release(
        url="http://qwone.com/~jason/20Newsgroups/20news-bydate.tar.gz",
        mirror="https://ndownloader.figshare.com/files/5975967",
        file_name=newsgroups.TARBALL_NAME,
        checksums=frozenset(
            {
                "sha256:8f1b2514ca22a5ade8fbb9cfa5727df95fa587f4c87b786e15c759fa66d95610",
                "md5:d6e9e45cb8cb77ec5276dfa6dfc14318",
            }
        ),
        pinned=False,
    ),
    "massive": Release(
        url="https://amazon-massive-nlu-dataset.s3.amazonaws.com/amazon-massive-dataset-1.1.tar.gz",
        mirror=None,
        file_name=massive.TARBALL_NAME,
        checksums=frozenset({"sha256:4cba5faa11c71437928e17cb1b9b3d8b8e727e7ea363a3a9a8045e19c0491577"}),
        pinned=True,
    ),
}


def download(name: str, folder: Path, url: str | None = None) -> Path:
    """Fetch a release, unless ``folder`` has it already, and check it; return the tarball's path.

    Raises:
        UserError: the address cannot be reached or refuses, or what it sends is not the release. In the first case the
            fetched part is kept, and the message says how to fetch the file manually; in the last it is deleted.
    """
    release = RELEASES[name]
    target = folder / release.file_name
    if target.is_file():
        _check(name, release, target, target)
        return target
    part, address = part_path(target), url or release.url
    another = f" Another address of it: --url {release.mirror}" if release.mirror not in (None, address) else ""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fetch(address, part)
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror or error}.") from error
    except Unreachable as error:
        mirror = f" (or {release.mirror})" if release.mirror else ""
        raise UserError(
            f"{error}\nWithout a connection: fetch {release.url}{mirror} elsewhere and put it at {target}, or point "
            "--data at a copy. --data sample needs no download."
        ) from error
    except UserError as error:
        raise UserError(f"{error}{another}") from error
    try:
        _check(name, release, part, target)
    except UserError as error:
        part.unlink()
        problem = str(error).replace(str(part), target.name).removesuffix(AGAIN)
        raise UserError(f"what {address} sent is not the release, and was deleted: {problem}{another}") from error
    part.replace(target)
    return target


class Unreachable(UserError):
    """There is no connection, or none that lasts."""


def part_path(target: Path) -> Path:
    """The path of an unfinished download of ``target``."""
    return target.with_name(target.name.replace(".", ".part.", 1))


def fetch(url: str, part: Path, attempts: int = ATTEMPTS, wait_s: float = 1.0) -> None:
    """Fetch ``url`` into ``part``, continue an existing part, and retry if the connection fails.

    Args:
        attempts: how many times in a row the connection may fail without progress.
        wait_s: pause after the first failure; doubled after each further one.

    Raises:
        UserError: the address is wrong or refuses, the last of ``attempts`` times.
        Unreachable: the connection failed so many times.
        OSError: ``part`` cannot be written (disk full, no permission).
    """
    failures, furthest = 0, _size(part)
    with _Fetching(url.rsplit("/", 1)[-1]) as progress:
        while True:
            try:
                return _fetch_rest(url, part, progress.update)
            except urllib.error.HTTPError as error:
                if error.code < 500:
                    raise UserError(f"{url} answers {error.code} {error.reason}.") from error
                reason: object = f"{error.code} {error.reason}"
                kind: type[UserError] = UserError
            except ValueError as error:  # urllib cannot parse the address
                raise UserError(f"{url!r} is not a valid address: {error}.") from error
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in LOCAL_FAULTS:
                    raise
                reason, kind = getattr(error, "reason", None) or error, Unreachable
            failures = 0 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures >= attempts:
                kept = f" {_size(part):,} bytes are kept in {part}; run again to continue." if _size(part) else ""
                raise kind(f"cannot fetch {url}: {reason}.{kept}")
            time.sleep(wait_s * 2 ** max(failures - 1, 0))


class _Fetching(Regular):
    """Shows how much of a file is there; how long it is, the server may not say."""

    def __init__(self, what: str) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        super().__init__(what, None, True, *columns)

    def update(self, done: int, total: int | None) -> None:
        n, self.done, self.total = done - self.done, done, total or 0
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        else:
            self.say(n)

    def line(self, seconds: float) -> str:
        of = f" of {self.total / 1e6:,.1f}" if self.total else ""
        return f"{self.done / 1e6:,.1f}{of} MB"


def _fetch_rest(url: str, part: Path, show: Callable[[int, int | None], None]) -> None:
    """One connection: request the missing bytes; start again if the server does not support ranges."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        if error.headers.get("Content-Range", "").endswith(f"/{have}"):
            return  # no bytes after the part: it is complete
        part.unlink()  # longer than the file, so not a part of it
        return _fetch_rest(url, part, show)
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        done = have if resumed else 0
        length = response.headers.get("Content-Length") or ""
        total = done + int(length) if re.fullmatch("[0-9]{1,15}", length) else None
        if (total or 0) > limits.DOWNLOAD_BYTES:
            raise UserError(
                f"{url} has {total:,} bytes; the limit is {limits.DOWNLOAD_BYTES:,}. It is not the release."
            )
        with open(part, "ab" if resumed else "wb") as file:
            show(done, total)
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                if done > limits.DOWNLOAD_BYTES:
                    raise UserError(
                        f"{url} sends more than {limits.DOWNLOAD_BYTES:,} bytes, the limit. It is not the release."
                    )
                show(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"the connection closed after {done:,} of {total:,} bytes")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check(name: str, release: Release, path: Path, shown: Path) -> None:
    """Raise UserError unless the file is the release, by checksum or, where none is pinned, by its counts.

    Args:
        shown: what the file is called, or will be.
    """
    sha256, md5 = (f"{kind}:{_digest(path, kind)}" for kind in ("sha256", "md5"))
    known = bool({sha256, md5} & release.checksums)
    if release.pinned and not known:
        raise UserError(
            f"{shown} is not the release: its checksum is {sha256}, not {', '.join(release.checksums)}. "
            f"The download may be incomplete or altered.{AGAIN}"
        )
    counts = _counts(name, path)
    expected = newsgroups.POSTS_IN_RELEASE if name == "20ng" else massive.UTTERANCES_IN_RELEASE
    if counts != expected:
        raise UserError(f"{shown} is not the release: it has {_listed(counts)}, not {_listed(expected)} examples.")
    if not known:
        log.warning("%s has the right number of posts, but not a known checksum (%s); it is kept", shown, sha256)
    log.info("%s: %s examples", release.file_name, _listed(counts))


def _digest(path: Path, kind: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _counts(name: str, path: Path) -> dict[str, int]:
    if name == "20ng":
        return {split: len(newsgroups.read_newsgroups(path, split)[0]) for split in newsgroups.POSTS_IN_RELEASE}
    return {split: len(massive.read_massive(path, split)[0]) for split in massive.SPLITS}


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def download_from_hub(folder: Path, load_dataset: Callable[..., Any] | None = None) -> Path:
    """Write the hub's Parquet conversion of MASSIVE en-US in the release's JSON-lines format; return the file's path.

    Args:
        load_dataset: replaces ``datasets.load_dataset`` (in tests).

    Raises:
        UserError: the hub cannot be reached, or its copy does not have the release's columns and counts.
    """
    target = folder / "massive" / massive.FILE_NAME
    if target.is_file():  # from an earlier download, or somebody's
        if (counts := _counts("massive", target)) != massive.UTTERANCES_IN_RELEASE:
            raise UserError(
                f"{target} exists, and has {_listed(counts)}, not {_listed(massive.UTTERANCES_IN_RELEASE)} examples. "
                "Remove it, or name another folder with --to."
            )
        return target
    if load_dataset is None:
        import datasets

        load_dataset = datasets.load_dataset
    source = f"{HUB_REPO} ({HUB_CONFIG}, {HUB_REVISION})"
    try:
        splits = load_dataset(HUB_REPO, HUB_CONFIG, revision=HUB_REVISION)
    except Exception as error:  # offline, datasets and its clients raise some twenty unrelated types
        raise UserError(
            f"cannot load {source} from the Hugging Face hub: {type(error).__name__}: {error}\n"
            "Without --from_hub, python -m data.download massive fetches the original tarball."
        ) from error

    part = part_path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("w", encoding="utf-8") as file:
            for split in splits.values():
                names = {key: getattr(feature, "names", None) for key, feature in split.features.items()}
                missing = [key for key in HUB_COLUMNS if key not in names]
                if missing:
                    raise UserError(f"{source}: no column {', '.join(missing)}; it has {', '.join(names)}.")
                for row in split:
                    line = {}
                    for key in HUB_COLUMNS:  # class ids back to their names
                        class_names = names[key]
                        line[key] = class_names[row[key]] if isinstance(row[key], int) and class_names else row[key]
                    file.write(to_json(line) + "\n")
        counts = _counts("massive", part)
        if counts != massive.UTTERANCES_IN_RELEASE:
            expected = _listed(massive.UTTERANCES_IN_RELEASE)
            raise UserError(f"{source} is not the release: it has {_listed(counts)}, not {expected} examples.")
    except UserError:
        part.unlink()
        raise
    part.replace(target)
    return target


@dataclass
class DownloadArgs:
    """Fetch a data set from its public source and check it."""

    release: Annotated[Literal["20ng", "massive"], tyro.conf.Positional]
    """Which data set."""
    to: Path = DOWNLOAD_DIR
    """Folder to put it in; training and scoring without --data read the default folder."""
    url: str | None = None
    """Another address of the same file."""
    from_hub: bool = False
    """MASSIVE only: fetch the Hugging Face hub's Parquet conversion instead of the original tarball."""


def main(argv: list[str] | None = None) -> int:
    terminal.open_streams()
    args = cli(DownloadArgs, argv, prog="python -m data.download")
    terminal.show_logs("stderr")
    try:
        if args.from_hub and args.release == "20ng":
            raise UserError(
                "--from_hub: the hub's copies of 20 Newsgroups have headers, signatures and quotes stripped, which "
                "is a different task. Omit --from_hub to fetch the original."
            )
        if args.from_hub and args.url:
            raise UserError("--from_hub and --url are two sources; give only one.")
        folder = parsed_paths(args).to
        with permitted():
            path = download_from_hub(folder) if args.from_hub else download(args.release, folder, args.url)
    except UserError as error:
        terminal.say(f"error: {error}", "stderr")
        return error.status
    except KeyboardInterrupt:
        terminal.say("stopped; the same command continues from here.", "stderr")
        return 130
    terminal.say(f"{args.release} is at {path}")
    task = {"20ng": "20ng_joint", "massive": "massive_joint"}[args.release]
    data = None if args.to == DOWNLOAD_DIR else path
    plan = command("train.py", {"model": "llama3_8b", "task": task, "data": data, "plan": True})
    terminal.say(f"To see what it takes to fine-tune a model on it:\n  {plan}")
    return 0


if __name__ == "__main__":
    sys.exit(terminal.status_of(main()))
