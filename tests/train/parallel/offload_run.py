"""Tiny runs with the blocks' saved inputs in host memory against the same without, on as many ranks as there are.

For tests in this process and, as a script, under torchrun: ``python offload_run.py OUT``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.train import tiny_encoder_run, tiny_run
from train.parallel import activation_offload
from train.parallel.distributed import World, run_guarded, start

LAYERS = 4


def compare(output: Path, world: World) -> None:
    """Several accumulation passes a step, 3 steps: losses, gradient norms and all weights are equal bit for bit."""
    saved = []
    original = activation_offload.ActivationOffload._save

    def counted(self, x, keep):
        saved.append(keep)
        return original(self, x, keep)

    activation_offload.ActivationOffload._save = counted
    decoder = tiny_run.LlamaConfig(**{**vars(tiny_run.TIED), "n_layers": LAYERS})
    encoder = replace(tiny_encoder_run.DROPPING, n_layers=LAYERS)
    for name, runs, config in (("decoder", tiny_run, decoder), ("encoder", tiny_encoder_run, encoder)):
        options = {"model_config": config, "activation_checkpointing": "full"}
        plain = runs.run_case("accumulated", output / f"{name}_plain", world, **options)
        assert not saved
        moved = runs.run_case("accumulated", output / f"{name}_offload", world, **options, activation_offload=True)
        passes = int(plain["passes"].sum())
        assert plain["passes"].min() > 1 and saved == ([False] * (LAYERS - 1) + [True]) * passes, (name, saved)
        saved.clear()
        assert plain.keys() == moved.keys(), "parameter names stay as they are"
        for key in plain:
            np.testing.assert_array_equal(plain[key], moved[key], err_msg=f"{name} {key}")
    activation_offload.ActivationOffload._save = original


def main() -> None:
    torch.set_num_threads(1)
    compare(Path(sys.argv[1]), start(torch.device("cpu")))


if __name__ == "__main__":
    run_guarded(main)
