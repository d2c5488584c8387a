"""What a message tells the user to type: the command that started the run, with its launcher."""

from __future__ import annotations

import pytest

from train.distributed import launcher


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "python"),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "8"}, "torchrun --nproc_per_node 8"),
        ({"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"}, "torchrun --nproc_per_node 8 ..."),
    ],
)
def test_launcher(environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert " ".join(launcher()) == command
