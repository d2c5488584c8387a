"""How ranks are laid out, and what is said when they cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed as dist

from checkpoints_tools.registry import MODELS
from data.errors import UserError
from tests.launching import pretend
from train.config import FREE_ON_RESUME
from train.parallel.mesh import MeshShape, lay_out, lay_out_world
from train.planning.workload import RankPass, pass_flops
from train.resolve import load_config
from train.setup import open_run

ROOT = Path(__file__).resolve().parents[3]
RUN = ["--model", "llama_debug", "--init", "random", "--task", "massive_intent", "--data", "sample"]


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        ({}, (1, 8, 1)),
        ({"per_node": 4}, (1, 8, 1)),
        ({"per_node": 4, "sharding": "hybrid"}, (2, 4, 1)),
        ({"nodes": 4, "sharding": "hybrid"}, (4, 2, 1)),
        ({"nodes": 8, "sharding": "hybrid"}, (8, 1, 1)),
        ({"per_node": 2, "nodes": 2, "sharding": "hybrid"}, (2, 4, 1)),  # one copy on each pair of machines
        ({"tp": 2}, (1, 4, 2)),
        ({"tp": 8}, (1, 1, 8)),
        ({"per_node": 4, "tp": 2, "sharding": "hybrid"}, (2, 2, 2)),
    ],
    ids=str,
)
def test_shapes_of_eight_ranks(asked: dict, shape: tuple[int, int, int]) -> None:
    found = lay_out(8, **asked)
    assert found == MeshShape(*shape) and found.n_ranks == 8 and found.n_data == shape[0] * shape[1]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"nodes": 3}, "--nodes 3: 8 ranks do not divide evenly into 3 groups"),
        ({"nodes": 16}, "--nodes 16: 8 ranks do not divide"),
        ({"sharding": "hybrid"}, "--sharding hybrid replicates the model across machines, but all 8"),
        ({"tp": 3}, "--tp 3: .* a machine has 8 rank.* 3 does not divide"),
        ({"tp": 8, "per_node": 4}, "--tp 8: .* a machine has 4 rank"),
        ({"tp": 4, "nodes": 4}, "--tp 4: .* --nodes 4 leaves 2 rank"),
    ],
    ids=str,
)
def test_what_does_not_divide_is_said(asked: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        lay_out(8, **asked)


def test_torchrun_says_how_many_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert lay_out_world() == MeshShape(1, 1, 1), "without torchrun"
    pretend(monkeypatch, 12, LOCAL_WORLD_SIZE=4, GROUP_WORLD_SIZE=3)
    assert lay_out_world(sharding="hybrid", tp=2) == MeshShape(3, 2, 2)
    for local in ("8", "2"):  # as seen on either of two machines that have 8 and 4
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        with pytest.raises(UserError, match=f"12 ranks on 3 machines, and {local} of them on this one"):
            lay_out_world()


def test_the_options_are_checked_and_free_on_resume() -> None:
    parallel = load_config([*RUN, "--tp", "2", "--sharding", "hybrid", "--nodes", "2"]).parallel
    assert (parallel.tp, parallel.sharding, parallel.nodes) == (2, "hybrid", 2)
    assert {"tp", "sharding", "nodes"} <= FREE_ON_RESUME
    with pytest.raises(UserError) as error:
        load_config([*RUN, "--tp", "0", "--nodes", "-1", "--sharding", "both"])
    for part in ("tp = 0: must be at least 1", "nodes = -1: must be at least 1", "sharding = 'both': expected full |"):
        assert part in str(error.value)
    encoder = ["--model", "roberta_debug", "--init", "random", "--task", "massive_intent", "--tp", "2"]
    with pytest.raises(UserError, match="tp = 2: matrices of a model with heads are not split"):
        load_config(encoder)


def test_a_run_says_all_that_does_not_divide_before_it_starts_processes(
    tiny_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 4, LOCAL_WORLD_SIZE=4, GROUP_WORLD_SIZE=1)
    run = [*RUN, "--checkpoint", str(tiny_tokenizer), "--output", str(tmp_path / "run"), "--device", "cpu"]
    with pytest.raises(UserError) as error:
        open_run(load_config([*run, "--tp", "2", "--nodes", "3"]))
    for part in ("--nodes 3: 4 ranks do not divide", "--tp 2: 3 key/value heads and 100 hidden units do not divide"):
        assert part in str(error.value)
    assert not dist.is_initialized() and not (tmp_path / "run").exists()


def test_the_network_traffic_in_the_documentation() -> None:
    """By arithmetic on the shape of Llama 3 70B."""
    net = MODELS["llama3_70b"].config
    block = net.dim * net.head_dim * 2 * (net.n_heads + net.n_kv_heads) + 3 * net.dim * net.ffn_dim + 2 * net.dim
    blocks, rest = net.n_layers * block, 2 * net.vocab_size * net.dim + net.dim
    gathered, reduced = 2 * (2 * blocks + rest) / 1e9, 4 * (blocks + rest) / 1e9  # bf16, fp32
    text = (ROOT / "docs" / "multi_node.md").read_text(encoding="utf-8")
    assert f"gather {gathered:.0f} GB, reduce-scatter {reduced:.0f} GB" in text
    full = {n: (gathered + reduced) * (8 * n - 1) / (8 * n) for n in (2, 4, 8)}
    hybrid = {n: reduced * 2 * (n - 1) / n for n in (2, 4, 8)}
    for n in (2, 4, 8):
        assert f"| {n} | {full[n]:.0f} GB | {hybrid[n]:.0f} GB | 1/{8 * n} | 1/8 |" in text
    for network, speed in (("8 x 400", 400), ("400", 50), ("100", 12.5)):  # GB/s
        seconds = [f"{x / speed:.1f} s" for n in (2, 8) for x in (full[n], hybrid[n])]
        assert f"| {network} Gb/s | {' | '.join(seconds)} |" in text
    one_sum = 16_384 * net.dim * 2 / 1e9
    assert f"| 5 x {1000 * one_sum:.0f} MB |" in text and f"| {5 * net.n_layers * one_sum:.0f} GB |" in text
    for speed in (450, 50):
        assert f" {5 * net.n_layers * one_sum / speed:.1f} s |" in text


def test_the_operations_in_the_documentation() -> None:
    """Those that a plan counts for 70B; both pages have them. A GPU computes 400 TFLOP/s here."""
    net = MODELS["llama3_70b"].config
    pages = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("multi_node.md", "memory.md")}

    def operations(documents: int, tokens: int) -> float:
        pairs = documents * tokens * (tokens + 1) // 2
        return pass_flops(net, RankPass(documents * tokens, 0, pairs), recompute=True) / 1e15

    row, posts = operations(1, 16_384), operations(8, 740)
    assert f"compute: {row:.1f} PFLOP with recomputation" in pages["multi_node.md"]
    assert f"on two GPUs at 400 TFLOP/s | {row / 0.8:.1f} s |" in pages["multi_node.md"]
    assert f"recomputed: {row:.1f}e15 / (312e12 x 0.45) = {row * 1e15 / (312e12 * 0.45):.0f} s" in pages["memory.md"]
    in_words = " ".join(pages["multi_node.md"].split())
    assert f"Eight posts of 740 tokens (zero-shot 20 Newsgroups, 5,900 tokens) need {posts:.1f} PFLOP" in in_words
    assert "half a second on 16 GPUs at 400" in in_words and posts / (16 * 0.4) == pytest.approx(0.5, abs=0.05)
