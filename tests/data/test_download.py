"""Downloads from a server on this machine: complete, resumed, interrupted, altered, refused, offline."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import logging
import os
import socket
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from data import download as module
from data.download import RELEASES, download, download_from_hub, fetch, main, part_path
from data.errors import UserError
from data.files import limits
from data.readers import massive, newsgroups

CONTENT = os.urandom(300_000)


@dataclass
class Server:
    """What the server is to do, and the requests that it got."""

    url: str = ""
    content: bytes = CONTENT
    ranges: bool = True
    close_after: list[int] = field(default_factory=list)  # bytes to send before closing, one per request
    status: list[int] = field(default_factory=list)  # error to answer with, one per request
    length: str | None = None  # what it says instead of the true length
    asked: list[str | None] = field(default_factory=list)  # each request's Range header


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.asked.append(asked)
            if state.status:
                return self.send_error(state.status.pop(0))
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and state.ranges else 0
            size = len(state.content)
            if asked and start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.end_headers()
                return
            self.send_response(206 if asked and state.ranges else 200)
            if asked and state.ranges:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("Content-Length", str(size - start) if state.length is None else state.length)
            self.end_headers()
            end = start + state.close_after.pop(0) if state.close_after else size
            self.wfile.write(state.content[start:end])

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{httpd.server_port}/file.tar.gz"
        yield state
        httpd.shutdown()
        thread.join()


@pytest.fixture
def closed_url() -> str:
    with socket.socket() as probe:  # a port without a listener
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/file.tar.gz"


# ----------------------------------------------------------------------------------------------- fetching bytes


def test_complete(tmp_path: Path, server: Server) -> None:
    fetch(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT and server.asked == [None]


@pytest.mark.parametrize("length", [None, "", "x", "9" * 5000])
def test_more_than_any_release(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, length: str | None
) -> None:
    server.length = length
    fetch(server.url, tmp_path / "x", attempts=1)
    monkeypatch.setattr(limits, "DOWNLOAD_BYTES", len(CONTENT) - 1)
    with pytest.raises(UserError, match="the limit"):
        fetch(server.url, tmp_path / "y", attempts=1)


def test_continues_from_a_part(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_bytes(CONTENT[:1000])
    fetch(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT and server.asked == ["bytes=1000-"]


def test_continues_after_a_lost_connection(tmp_path: Path, server: Server) -> None:
    server.close_after = [100_000, 0, 50_000]
    fetch(server.url, tmp_path / "x", wait_s=0.01)
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_starts_again_if_the_server_does_not_support_ranges(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_bytes(b"old" * 500)
    server.ranges = False
    fetch(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT and server.asked == ["bytes=1500-"]


def test_a_part_that_is_complete_already(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT and server.asked == ["bytes=300000-"]


def test_a_part_longer_than_the_file_is_of_another(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_bytes(CONTENT + b"!")
    fetch(server.url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == CONTENT and server.asked == ["bytes=300001-", None]


def test_a_busy_server_is_asked_again_and_a_refusal_is_final(tmp_path: Path, server: Server) -> None:
    server.status = [503, 503]
    fetch(server.url, tmp_path / "x", wait_s=0.01)
    assert (tmp_path / "x").read_bytes() == CONTENT and len(server.asked) == 3
    server.status = [404]
    with pytest.raises(UserError, match="answers 404 Not Found"):
        fetch(server.url, tmp_path / "y", wait_s=0.01)
    assert len(server.asked) == 4


def test_gives_up_and_keeps_what_it_has(tmp_path: Path, server: Server) -> None:
    server.close_after = [1000] + [0] * 9
    with pytest.raises(UserError, match=r"after 1,000 of 300,000 bytes\. 1,000 bytes are kept .* run again"):
        fetch(server.url, tmp_path / "x", attempts=3, wait_s=0.01)
    assert (tmp_path / "x").read_bytes() == CONTENT[:1000] and len(server.asked) == 4


def test_gives_up_on_a_server_that_always_starts_over(tmp_path: Path, server: Server) -> None:
    server.ranges, server.close_after = False, [1000] * 99
    with pytest.raises(UserError, match="cannot fetch"):
        fetch(server.url, tmp_path / "x", attempts=3, wait_s=0.01)
    assert len(server.asked) == 4


def test_offline_and_nonsense_addresses(tmp_path: Path, closed_url: str) -> None:
    with pytest.raises(UserError, match="cannot fetch http://127.0.0.1.*refused"):
        fetch(closed_url, tmp_path / "x", wait_s=0.01)
    with pytest.raises(UserError, match="'qwone' is not a valid address"):
        fetch("qwone", tmp_path / "x")
    assert not (tmp_path / "x").exists()


# -------------------------------------------------------------------------------------------- checking releases


def tarball(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


POSTS = {
    "20news-bydate-train/rec.autos/1": b"a",
    "20news-bydate-train/sci.med/2": b"b",
    "20news-bydate-test/sci.med/3": b"c",
}
ROWS = [
    {"id": str(i), "locale": "en-US", "partition": split, "scenario": "alarm", "intent": "alarm_set"}
    | {"utt": "wake me at nine", "annot_utt": "wake me at [time : nine]"}
    for i, split in enumerate(("train", "train", "dev", "test"))
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Releases small enough for a test; returns their tarballs."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    tarballs = {"20ng": tarball(POSTS), "massive": tarball({"1.1/data/en-US.jsonl": lines})}
    monkeypatch.setattr(newsgroups, "POSTS_IN_RELEASE", {"train": 2, "test": 1})
    monkeypatch.setattr(massive, "UTTERANCES_IN_RELEASE", {"train": 2, "dev": 1, "test": 1})
    for name, content in tarballs.items():
        checksums = frozenset({f"sha256:{hashlib.sha256(content).hexdigest()}"})
        monkeypatch.setitem(RELEASES, name, replace(RELEASES[name], checksums=checksums))
    return tarballs


def test_the_addresses_and_checksums() -> None:
    assert RELEASES["20ng"].url == "http://qwone.com/~jason/20Newsgroups/20news-bydate.tar.gz"
    assert RELEASES["massive"].url.startswith("https://amazon-massive-nlu-dataset.s3.amazonaws.com/")
    assert RELEASES["massive"].pinned
    assert RELEASES["massive"].checksums == {"sha256:4cba5faa11c71437928e17cb1b9b3d8b8e727e7ea363a3a9a8045e19c0491577"}


@pytest.mark.parametrize("name", ["20ng", "massive"])
def test_a_release_lands_where_the_loaders_look(
    tmp_path: Path, server: Server, small: dict[str, bytes], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = small[name]
    arguments = [name, "--to", str(tmp_path / "new" / "datasets"), "--url", server.url]
    assert main(arguments) == 0
    target = tmp_path / "new" / "datasets" / RELEASES[name].file_name
    assert target.read_bytes() == small[name] and not part_path(target).exists()
    assert f"{name} is at {target}" in capsys.readouterr().out
    read = {"20ng": newsgroups.read_newsgroups, "massive": massive.read_massive}[name]
    assert len(read(target.parent, "train")[0]) == 2

    assert main(arguments) == 0 and len(server.asked) == 1  # there already: checked, not fetched again


def test_a_wrong_checksum_is_refused_and_deleted(tmp_path: Path, server: Server, small: dict[str, bytes]) -> None:
    server.content = small["massive"] + b"\0"
    with pytest.raises(UserError, match="is not the release: its checksum is sha256:.*, not sha256:"):
        download("massive", tmp_path, server.url)
    assert list(tmp_path.iterdir()) == []


def test_a_spoilt_part_does_not_spoil_the_next_run(tmp_path: Path, server: Server, small: dict[str, bytes]) -> None:
    server.content = small["massive"]
    target = tmp_path / RELEASES["massive"].file_name
    part_path(target).write_bytes(b"?" * 50)
    with pytest.raises(UserError, match="is not the release"):
        download("massive", tmp_path, server.url)
    assert download("massive", tmp_path, server.url) == target
    assert server.asked == ["bytes=50-", None]


def test_newsgroups_compressed_again_are_kept_with_a_warning(
    tmp_path: Path, server: Server, small: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    server.content = tarball(POSTS | {"README": b"packed anew"})
    with caplog.at_level(logging.INFO, "data"):
        download("20ng", tmp_path, server.url)
    assert f"{tmp_path / '20news-bydate.tar.gz'} has the right number of posts, but not a known checksum" in caplog.text
    assert "2 train, 1 test examples" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tarball(dict(list(POSTS.items())[1:])), "it has 1 train, 1 test, not 2 train, 1 test examples"),
        (tarball({"../x": b"x"}), "points outside"),
        (b"<html>moved</html>", "not a tarball"),
        (b"", "not a tarball"),
        (tarball(POSTS)[:-20], "cannot be read to its end"),
    ],
    ids=["posts missing", "unsafe", "not a tarball", "empty", "half"],
)
def test_what_is_not_the_newsgroups_is_refused(
    tmp_path: Path, server: Server, small: dict[str, bytes], content: bytes, message: str
) -> None:
    server.content = content
    with pytest.raises(UserError, match=message) as error:
        download("20ng", tmp_path, server.url)
    assert list(tmp_path.iterdir()) == []
    said = str(error.value)
    assert said.startswith(f"what {server.url} sent is not the release, and was deleted: ")
    assert "Delete" not in said and ".part." not in said
    assert said.endswith(f" Another address of it: --url {RELEASES['20ng'].mirror}")


def test_offline_says_what_to_do(
    tmp_path: Path, closed_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    assert main(["20ng", "--to", str(tmp_path), "--url", closed_url]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    for part in (closed_url, RELEASES["20ng"].url, RELEASES["20ng"].mirror, str(tmp_path / "20news-bydate.tar.gz")):
        assert part in message
    assert "--data sample needs no download" in message


@pytest.mark.parametrize("status", [404, 429, 503])
def test_a_refusal_is_not_a_missing_connection(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    server.status = [status] * 9
    with pytest.raises(UserError, match=str(status)) as error:
        download("20ng", tmp_path, server.url)
    assert "Without a connection" not in str(error.value) and f"--url {RELEASES['20ng'].mirror}" in str(error.value)
    server.status = [status] * 9
    with pytest.raises(UserError, match=str(status)) as error:
        download("massive", tmp_path, server.url)
    assert "Without a connection" not in str(error.value) and "--url" not in str(error.value), "it has no mirror"


def test_a_folder_that_cannot_be_written(tmp_path: Path, server: Server) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        download("massive", tmp_path / "file" / "datasets", server.url)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "fetch", interrupt)
    assert main(["massive", "--to", str(tmp_path)]) == 130
    assert "continues from here" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- MASSIVE from the hub


class Feature:
    def __init__(self, names: list[str] | None = None) -> None:
        if names:
            self.names = names


class HubSplit(list):
    """Rows in the format of ``datasets``: intent and scenario as class ids, more columns than needed."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self.features = {key: Feature() for key in (*ROWS[0], "worker_id", "slot_method")}
        self.features["intent"] = Feature(["alarm_query", "alarm_set"])
        self.features["scenario"] = Feature(["alarm"])
        super().__init__(row | {"intent": 1, "scenario": 0, "worker_id": "3", "slot_method": {}} for row in rows)


def hub(*calls: object, **more: object) -> dict[str, HubSplit]:
    assert calls == ("AmazonScience/massive", "en-US") and more == {"revision": "refs/convert/parquet"}
    return {"train": HubSplit(ROWS[:2]), "validation": HubSplit(ROWS[2:3]), "test": HubSplit(ROWS[3:])}


def test_the_hub_copy_is_written_in_the_releases_format(tmp_path: Path, small: dict[str, bytes]) -> None:
    path = download_from_hub(tmp_path, hub)
    assert path == tmp_path / "massive" / "en-US.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == ROWS
    assert massive.read_massive(tmp_path, "dev")[0][0].id == "massive/dev/2"


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path, small: dict[str, bytes]) -> None:
    def not_asked(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    path = download_from_hub(tmp_path, hub)
    assert download_from_hub(tmp_path, not_asked) == path
    mine = "".join(path.read_text().splitlines(keepends=True)[1:])
    path.write_text(mine)
    with pytest.raises(UserError, match="exists, and has .* Remove it, or name another folder with --to"):
        download_from_hub(tmp_path, not_asked)
    assert path.read_text() == mine


def test_a_hub_copy_that_is_not_the_release(tmp_path: Path, small: dict[str, bytes]) -> None:
    with pytest.raises(UserError, match="it has 2 train, 2 dev, 1 test, not 2 train, 1 dev, 1 test"):
        download_from_hub(tmp_path, lambda *_, **__: hub(*_, **__) | {"more": HubSplit([ROWS[2] | {"id": "9"}])})
    assert list((tmp_path / "massive").iterdir()) == []

    def without_slots(*_: object, **__: object) -> dict[str, HubSplit]:
        split = HubSplit(ROWS)
        del split.features["annot_utt"]
        return {"train": split}

    with pytest.raises(UserError, match="no column annot_utt; it has id, "):
        download_from_hub(tmp_path, without_slots)
    assert list((tmp_path / "massive").iterdir()) == []


def test_the_hub_cannot_be_reached(tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    with pytest.raises(UserError, match="cannot load AmazonScience/massive.*ConnectionError: no route"):
        download_from_hub(tmp_path, fail)


def test_the_hub_is_not_for_newsgroups(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["20ng", "--from_hub"]) == 2
    assert "headers, signatures and quotes stripped" in capsys.readouterr().err
    assert main(["massive", "--from_hub", "--url", "http://x"]) == 2
