"""While it loads, a rank holds its own part of the model and at most one tensor: measured on two ranks under FSDP2.

Measured is anonymous memory (`benchmarks.host_memory`): the pages of mapped files are the system's. This file is also
the program that the ranks run (see the end).
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import zlib
from pathlib import Path

import pytest
import torch

from benchmarks.host_memory import STATUS, AnonymousPeak
from benchmarks.random_checkpoint import load_everything, write_both
from checkpoints_tools.convert import convert
from checkpoints_tools.load import load_pretrained, open_checkpoint
from model.llama import Llama, LlamaConfig
from tests.ranks import run_ranks
from train.parallel.distributed import start
from train.parallel.parallelize import parallelize

MEGABYTE = 1_000_000

pytestmark = pytest.mark.skipif(not STATUS.is_file(), reason="anonymous memory is read from /proc (Linux)")


def measure(folder: Path, n_layers: int) -> list[dict]:
    """Write checkpoints and load them on two ranks; what each rank measured.

    A layer has 23 MB in bf16, embedding and head 16 MB each.
    """
    sizes = dict(dim=1024, n_layers=n_layers, n_heads=16, n_kv_heads=4)
    write_both(folder, sizes, vocab_size=8000, shard_bytes=80 * MEGABYTE)
    return [json.loads(output.splitlines()[-1]) for output in run_ranks(__file__, folder, n_ranks=2, timeout=600)]


def check(results: list[dict]) -> None:
    assert len(results) == 2
    for rank in results:
        bound = rank["shard"] + rank["largest"]
        for form in ("hf", "meta"):
            held = rank[form]
            assert 0.95 * rank["shard"] < held["slices"] < bound, (form, held, bound)
            # The same measurement of a loader that reads the model whole and keeps its part: it would be seen.
            assert held["whole"] > rank["shard"] + 0.9 * rank["model"] > bound + 20 * MEGABYTE, (form, held, bound)
        assert rank["same"], "both formats and both loaders gave the same weights"


def test_a_rank_holds_its_part_and_one_tensor(tmp_path):
    check(measure(tmp_path, n_layers=3))


@pytest.mark.slow
def test_a_rank_holds_its_part_and_one_tensor_of_a_large_checkpoint(tmp_path):
    results = measure(tmp_path, n_layers=26)
    assert results[0]["model"] > 600 * MEGABYTE
    check(results)


def test_converting_holds_one_file_and_one_tensor(helpers, tmp_path):
    """Files of 40 MB, written from a model of 200 MB in fp32."""
    sizes = dict(dim=1024, n_layers=3, n_heads=16, n_kv_heads=4)
    write_both(tmp_path, sizes, vocab_size=8000, shard_bytes=80 * MEGABYTE)
    helpers.tokenizer().save_pretrained(tmp_path / "tokenizer")
    # In a process of its own: what other tests left to malloc in this one would blur the figure.
    (output,) = run_ranks(__file__, tmp_path, "convert", n_ranks=1)
    largest = 4 * 8000 * 1024
    for form, peak in json.loads(output.splitlines()[-1]).items():
        files = [path.stat().st_size for path in (tmp_path / "out" / form).glob("*.safetensors")]
        assert sum(files) > 200 * MEGABYTE and max(files) < 40 * MEGABYTE
        assert 0.8 * max(files) < peak < max(files) + largest + 8 * MEGABYTE, (form, peak, files)


# --- the ranks --------------------------------------------------------------------------------------------------------


LOADERS = {"slices": load_pretrained, "whole": load_everything}


def rank_main(folder: Path) -> None:
    world = start(torch.device("cpu"))
    small = LlamaConfig(dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, vocab_size=64)
    parallelize(lambda: Llama(small), world.mesh, world.device)  # what the first use of everything allocates

    config = open_checkpoint(folder / "hf").config
    result: dict = {"hf": {}, "meta": {}}
    sums = []
    for name in LOADERS:
        for form in ("hf", "meta"):
            with AnonymousPeak() as peak:
                model = parallelize(
                    lambda: Llama(config),
                    world.mesh,
                    world.device,
                    load=lambda model, name=name, form=form: LOADERS[name](model, folder / form),
                )
            result[form][name] = peak.bytes
            sums.append([zlib.crc32(p.to_local().detach().numpy()) for p in model.parameters()])
            result["shard"] = sum(4 * p.to_local().numel() for p in model.parameters())
            result["model"] = sum(2 * p.numel() for p in model.parameters())
            result["largest"] = max(2 * p.numel() for p in model.parameters())
            del model
    result["same"] = all(one == sums[0] for one in sums)
    print(json.dumps(result), flush=True)
    os._exit(0)


def convert_main(folder: Path) -> None:
    # glibc's M_MMAP_THRESHOLD: pieces above 1 MB go back to the system when freed. By default malloc keeps what is
    # below 32 MB, which is nothing beside a real file of 5 GB, and half of everything here.
    getattr(ctypes.CDLL(None), "mallopt", int)(-3, 1 << 20)
    result = {}
    for form in ("meta", "hf"):
        # Once unmeasured: what the first use of everything allocates stays.
        convert(folder / form, folder / "first" / form, "fp32", folder / "tokenizer", 40 * MEGABYTE)
        with AnonymousPeak() as peak:
            convert(folder / form, folder / "out" / form, "fp32", folder / "tokenizer", 40 * MEGABYTE)
        result[form] = peak.bytes
    print(json.dumps(result))


if __name__ == "__main__":
    main = convert_main if "convert" in sys.argv[2:] else rank_main
    main(Path(sys.argv[1]))
