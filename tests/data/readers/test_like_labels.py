"""Labels that look the same and are written with other characters: they are one label, or the message shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.readers.custom import read_custom_spec
from data.readers.custom_examples import read_custom
from tests.data.readers.test_custom import FILES, HEAD, QUEUE

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
ALIKE = [DECOMPOSED, "\ufeffcaf\u00e9", "caf\u00e9\u200b ", "c\u00adaf\u00e9\u00a0", "caf\u00e9\u200d"]


@pytest.mark.parametrize("written", ALIKE)
def test_labels_that_look_the_same_are_one(folder: Path, written: str, caplog: pytest.LogCaptureFixture) -> None:
    for labels in (f'labels = ["{COMPOSED}", "bar"]', 'labels_from = "test"'):
        queue = QUEUE.replace('labels = ["billing", "sales"]', labels)
        (folder / "task.toml").write_text(HEAD + FILES + queue, encoding="utf-8")
        rows = [{"text": "a", "queue": label} for label in (written, COMPOSED, "bar")]
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        spec = read_custom_spec(folder / "task.toml")
        assert set(spec.fields[0].labels) == {COMPOSED, "bar"}
        found = [example.labels["queue"] for example in read_custom(spec, "test")]
        assert found == [COMPOSED, COMPOSED, "bar"]
    assert "'caf\\xe9'" in caplog.text and "read as one label, the first" in caplog.text


def test_one_spelling_is_kept_as_it_is(folder: Path) -> None:
    queue = QUEUE.replace('labels = ["billing", "sales"]', 'labels_from = "test"')
    (folder / "task.toml").write_text(HEAD + FILES + queue)
    rows = [{"text": "a", "queue": label} for label in (DECOMPOSED, "a\u00a0b")]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert set(read_custom_spec(folder / "task.toml").fields[0].labels) == {DECOMPOSED, "a\u00a0b"}


def test_listed_labels_that_look_the_same(folder: Path) -> None:
    (folder / "test.jsonl").touch()
    for twin in (DECOMPOSED, "\u2060caf\u00e9"):
        queue = QUEUE.replace('"billing", "sales"', f'"{COMPOSED}", "{twin}"')
        (folder / "task.toml").write_text(HEAD + FILES + queue, encoding="utf-8")
        with pytest.raises(UserError, match=r"two labels look the same, 'caf\\xe9' and '.*\\u"):
            read_custom_spec(folder / "task.toml")
    (folder / "task.toml").write_text(HEAD + FILES + QUEUE.replace('"sales"', '"\u200b"'), encoding="utf-8")
    with pytest.raises(UserError, match="is empty"):
        read_custom_spec(folder / "task.toml")
