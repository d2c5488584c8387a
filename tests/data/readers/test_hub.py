"""Data sets of the hub: what `datasets` makes of a server's answers, and every way in which it can fail.

The library reads the server's address and its cache's folder when it is imported, so each test has a process for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value

from tests.data.readers.hub_server import COMMIT, GATED, serve
from tests.launching import ROOT, environment

FEATURES = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
READ = """
import json, sys
from data.errors import UserError
from data.readers.hub import HubSplit, open_hub
for case in json.load(sys.stdin):
    try:
        with open_hub(HubSplit(*case)) as table:
            found = [[record.where, record.line, record.values] for record in table.records]
            print(json.dumps([table.columns, found, table.progress()]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def read(url: str, home: Path, *cases: tuple[str | None, ...], **variables: str) -> list[Any]:
    """For each name, configuration, revision and split: columns and rows, or the message of a UserError."""
    env = environment() | {"HF_ENDPOINT": url, "HF_HOME": str(home), **variables}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, input=json.dumps(cases), env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "\r" not in done.stderr, "bars are for terminals"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    for name in ("mail", "two", "code", "pickle", "broken", "pictures"):
        (root / "me" / name).mkdir(parents=True)
    rows = Dataset.from_dict({"text": list("abcd"), "label": [0, 1, 1, -1]}, features=FEATURES)
    rows.to_parquet(root / "me/mail/train-00000-of-00001.parquet")
    rows.select([0]).to_parquet(root / "me/mail/test-00000-of-00001.parquet")
    for name in ("first", "second"):
        (root / f"me/two/{name}.csv").write_text(f"text,label\n{name},x\n")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in ("first", "second"))
    (root / "me/two/README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    run = f"open({str(root / 'ran')!r}, 'w')"
    (root / "me/code/code.py").write_text(run)
    (root / "me/pickle/train.pkl").write_bytes(f"cbuiltins\nexec\n(V{run}\ntR.".encode())
    (root / "me/broken/train.parquet").write_bytes((root / "me/mail/test-00000-of-00001.parquet").read_bytes()[:200])
    (root / "me/pictures/train.tar").write_bytes(bytes(10240))
    return root


BY_HAND = "On a machine with a network, save it with load_dataset"


def test_splits_configurations_and_what_goes_wrong(root: Path, tmp_path: Path) -> None:
    asked = {
        ("me/mail", None, None, "train"): None,
        ("me/mail", None, COMMIT, "train[:50%]"): None,
        ("me/two", "second", None, "train"): None,
        ("me/mail", None, None, "tset"): "dataset me/mail: no split 'tset'. Did you mean 'test'? Known: train, test.",
        ("me/mail", "x", None, "train"): "dataset me/mail: no configuration 'x'. Known: default.",
        ("me/mail", None, "v2", "train"): "dataset me/mail: no revision 'v2'. Its page on the hub lists branches and",
        (
            "me/two",
            None,
            None,
            "train",
        ): "dataset me/two has several configurations: first, second. Choose one,",
        ("me/two", "secnd", None, "train"): "dataset me/two: no configuration 'secnd'. Did you mean 'second'? Known:",
        ("me/code", None, None, "train"): "dataset me/code: a script of its owner makes its examples, and scripts are",
        ("me/pickle", None, None, "train"): "dataset me/pickle: it has no files of the kinds that are read (arrow,",
        ("me/pictures", None, None, "train"): "dataset me/pictures: its files are of the kind 'webdataset'; arrow,",
        ("me/broken", None, None, "train"): "dataset me/broken: it cannot be read (Parquet magic bytes not found in",
        ("me/none", None, None, "train"): "dataset me/none: the hub has none of this name, or it is private. Check",
        (GATED, None, None, "train"): f"dataset {GATED} is gated. Ask for access on its page of the hub, then log in",
    }
    with serve(root) as url:
        found = dict(zip(asked, read(url, tmp_path, *asked), strict=True))
    assert not (root / "ran").exists()
    for case, message in asked.items():
        if message is not None:
            assert isinstance(found[case], str) and found[case].startswith(message), found[case]
            assert "\n" not in found[case]
    mail, half, second = list(found.values())[:3]
    columns, rows, progress = mail
    assert columns == ["text", "label"] and progress == 1.0
    assert rows[1] == ["me/mail, train, row 2", 2, {"text": "b", "label": "yes"}]
    assert [values["label"] for _, _, values in rows] == ["no", "yes", "yes", None]
    assert [values["text"] for _, _, values in half[1]] == ["a", "b"]
    assert half[1][0][0] == f"me/mail, {COMMIT}, train[:50%], row 1"
    assert [values["text"] for _, _, values in second[1]] == ["second"]


def test_without_a_network_the_cache_is_read(root: Path, tmp_path: Path) -> None:
    cases = [("me/mail", None, None, "train"), ("me/mail", None, COMMIT, "test")]
    with serve(root) as url:
        online = read(url, tmp_path, *cases)
    offline = {"HF_HUB_OFFLINE": "1"}
    assert read(url, tmp_path, *cases, **offline) == online
    none, other = read(url, tmp_path, ("me/two", "first", None, "train"), ("me/mail", None, "v1", "train"), **offline)
    assert none.startswith(f"dataset me/two: the hub cannot be reached, and the cache has no copy of it. {BY_HAND}")
    assert other.startswith(
        f"dataset me/mail: the hub cannot be reached, and the copy in the cache is of the commit {COMMIT}"
    )


def test_a_folder_of_that_name_is_not_the_hubs(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would take a folder below the current one."""
    (tmp_path / "cwd" / "me" / "none").mkdir(parents=True)
    (tmp_path / "cwd" / "me" / "none" / "train.csv").write_text("text\na\n")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "cwd")
    with serve(root) as url:
        (message,) = read(url, tmp_path, ("me/none", None, None, "train"))
    assert message.startswith("dataset me/none: the hub has none of this name")


@pytest.mark.slow  # the library tries again for half a minute
def test_a_server_that_does_not_answer(root: Path, tmp_path: Path) -> None:
    with serve(root) as url:
        pass
    (message,) = read(url, tmp_path, ("me/mail", None, None, "train"))
    assert message.startswith(f"dataset me/mail: the hub cannot be reached, and the cache has no copy of it. {BY_HAND}")
