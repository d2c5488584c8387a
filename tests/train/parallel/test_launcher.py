"""What a message tells the user to type: the command that started the run, with its launcher."""

from __future__ import annotations

import pytest

from train.parallel.distributed import launcher


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, "python"),
        ({"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "1"}, "torchrun --nproc_per_node 8"),
        ({"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"}, "torchrun --nproc_per_node 8 --nnodes 2 ..."),
    ],
)
def test_launcher(environment: dict[str, str], command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"TORCHELASTIC_RUN_ID": "x"} | environment if environment else {}).items():
        monkeypatch.setenv(name, value)
    assert " ".join(launcher()) == command
