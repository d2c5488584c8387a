"""What a message tells the user to type: the command that started the run, with its launcher."""

from __future__ import annotations

import pytest

from tests.launching import pretend
from train.next_command import launcher


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "python"),
        ({"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, "torchrun --nproc_per_node 8"),
        ({"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}, "torchrun --nproc_per_node 8 --nnodes 2 ..."),
    ],
)
def test_launcher(environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if environment:
        pretend(monkeypatch, 16, TORCHELASTIC_RUN_ID="x", **environment)
    assert " ".join(launcher()) == command
