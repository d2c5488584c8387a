"""What launchers set, forget or leave behind; and ranks that start again in the store of those that died."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from data.errors import UserError
from tests.launching import ROOT, environment
from train.launched import Launched, env_rank, env_world_size, launched, may_restart, torchrun_job
from train.parallel.distributed import pick_device, start
from train.parallel.meeting import _name_attempt
from train.parallel.mesh import lay_out_world

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
         "TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_MAX_RESTARTS",
         "TORCHELASTIC_RESTART_COUNT")  # fmt: skip
WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """A function that sets the launcher's variables, and no others of them."""

    def set_all(values: dict[str, str]) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


def test_what_launchers_say(given: Callable) -> None:
    given({})
    assert launched() == Launched()
    given(WHOLE)
    assert launched() == Launched(rank=1, size=4, local_rank=None, local_size=4, machines=1)
    given(WHOLE | {"LOCAL_WORLD_SIZE": "2"})
    assert launched() == Launched(rank=1, size=4, local_rank=None, local_size=2, machines=2)
    given(WHOLE | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "2"})
    assert launched() == Launched(rank=1, size=4, local_rank=1, local_size=2, machines=2)
    assert (env_rank(), env_world_size(), lay_out_world().n_ranks) == (1, 4, 4)


@pytest.mark.parametrize(
    "left",
    [
        {"MASTER_ADDR": "gone", "MASTER_PORT": "29500"},
        {"WORLD_SIZE": "8", "MASTER_ADDR": "gone", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "3"},
        {"WORLD_SIZE": "many", "LOCAL_RANK": "x", "LOCAL_WORLD_SIZE": "0"},
        {"RANK": "", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "gone", "MASTER_PORT": "x", "TORCHELASTIC_RUN_ID": "none"},
    ],
)
def test_a_process_without_a_launcher_is_alone(
    left: dict[str, str], given: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    given(left)
    assert launched() == Launched(local_rank=launched().local_rank) and lay_out_world().n_ranks == 1
    with caplog.at_level("INFO"):
        world = start(torch.device("cpu"))
    dist.destroy_process_group()
    assert (world.rank, world.local_rank, world.size) == (0, 0, 1)
    said = "note: WORLD_SIZE = " in caplog.text and "no launcher started this process" in caplog.text
    assert said == (left.get("WORLD_SIZE", "1") != "1")


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"WORLD_SIZE": ""}, ["RANK = 1, but not WORLD_SIZE:", "unset RANK"]),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, ["RANK = 1, but not MASTER_ADDR, MASTER_PORT:"]),
        ({"WORLD_SIZE": "many"}, ["WORLD_SIZE = 'many': expected a whole number, 1 or more"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE = '0'"]),
        ({"RANK": "4"}, ["RANK = '4'", "0 to 3"]),
        ({"RANK": "-1"}, ["RANK = '-1'"]),
        ({"RANK": "²"}, ["RANK = '²'"]),
        ({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, ["LOCAL_RANK = '2'", "0 to 1"]),
        ({"LOCAL_WORLD_SIZE": "0"}, ["LOCAL_WORLD_SIZE = '0'", "1 to 4"]),
        ({"GROUP_WORLD_SIZE": "x"}, ["GROUP_WORLD_SIZE = 'x'"]),
        ({"MASTER_PORT": "99999"}, ["MASTER_PORT = '99999'", "0 to 65535"]),
    ],
)
def test_half_of_a_launchers_environment_is_named(changed: dict[str, str], parts: list[str], given: Callable) -> None:
    given(WHOLE | changed)
    for ask in (launched, lay_out_world, lambda: start(torch.device("cpu"))):
        with pytest.raises(UserError) as error:
            ask()
        for part in parts:
            assert part in str(error.value), error.value
    assert (env_rank(), env_world_size()) == (0, 1), "what the error is printed by raises nothing"


def test_a_program_that_a_rank_has_started_is_no_rank(given: Callable) -> None:
    """It has torchrun's other variables, but nobody starts it again, and it shares no lock with that torchrun."""
    torchrun = {"TORCHELASTIC_RUN_ID": "7", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RESTART_COUNT": "1"}
    given(WHOLE | torchrun)
    assert may_restart() and torchrun_job() == ("7 at node0:29500", 1)
    given(WHOLE | torchrun | {"RANK": ""})
    assert not may_restart() and torchrun_job() == ("", 0)
    given(WHOLE | torchrun | {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_MAX_RESTARTS": "0"})
    assert not may_restart() and torchrun_job() == ("", 0)


def test_a_rank_that_does_not_know_its_gpu(given: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    given(WHOLE)
    with pytest.raises(UserError, match="no LOCAL_RANK"):
        pick_device("cuda")
    given(WHOLE | {"RANK": "2", "LOCAL_RANK": "2"})
    with pytest.raises(UserError, match="4 ranks on this machine, but only 2 GPUs"):
        pick_device("cuda")
    given({"LOCAL_RANK": "7"})
    assert pick_device("cuda") == torch.device("cuda", 0)


def test_ranks_that_nobody_else_joins(given: Callable) -> None:
    # As after `export` in a shell: the whole environment of one rank, and no other rank.
    given(WHOLE | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "9"})
    with pytest.raises(UserError, match=r"rank 1 of 2 does not reach the other ranks at localhost:9 \(MASTER_ADDR"):
        start(torch.device("cpu"), timeout=timedelta(seconds=2))
    given(WHOLE | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"})
    with pytest.raises(UserError, match=r"rank 0 of 2 does not reach|rank\(s\) 1 had not started"):
        start(torch.device("cpu"), timeout=timedelta(seconds=2))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("train.py", "--model llama_debug --task 20ng_20 --data sample --device cpu"),
        ("eval.py", "--model llama_debug --task 20ng_20 --data sample --device cpu"),
        ("predict.py", "--checkpoint nowhere --input -"),
    ],
)
def test_the_programs_end_in_a_message(program: str, words: str) -> None:
    left = {"RANK": "zero", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    command = [sys.executable, str(ROOT / program), *words.split()]
    done = subprocess.run(command, cwd=ROOT, env=environment() | left, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("RANK = 'zero'") == 1, done.stderr


def meeting(store: dist.Store, size: int) -> list[str]:
    """The names that all ranks of one attempt come to."""
    names = [""] * size

    def join(rank: int) -> None:
        names[rank] = _name_attempt(store.clone(), Launched(rank=rank, size=size), timedelta(seconds=20))

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return names


def test_each_attempt_has_a_name_of_its_own() -> None:
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    found = []
    for attempt in range(5):
        if attempt % 2:  # an attempt whose rank 2 died before rank 0 was there
            store.set("process of rank 2", f"dead {attempt}")
        names = meeting(store, 3)
        assert len(set(names)) == 1 and names[0]
        found.append(names[0])
    assert len(set(found)) == 5
    store.set("process of rank 2", "dead")
    with pytest.raises(UserError, match=r"rank\(s\) 1, 2 had not started"):
        _name_attempt(store, Launched(size=3), timedelta(seconds=0.2))


WORKER = """
import os, sys, time
import torch, torch.distributed as dist
from train.parallel.distributed import run_guarded, start

def main():
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt and os.environ["RANK"] == "1":
        time.sleep(1.5)  # ranks never start at the same moment
    world = start(torch.device("cpu"))
    for group in (None, dist.new_group(backend="gloo")):
        value = torch.tensor(float(world.rank + 1))
        dist.all_reduce(value, group=group)
        assert value == 3, value
    if attempt < 2 and world.rank == attempt % 2:
        os.kill(os.getpid(), 9)
    dist.barrier()
    if world.is_main:
        print(f"met in attempt {attempt}")

run_guarded(main)
"""


def test_restarted_ranks_do_not_meet_the_dead(tmp_path: Path) -> None:
    """torch 2.13 and 2.11 keep one store for all attempts: ranks found the addresses of the attempt before in it."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max-restarts", "2", str(tmp_path / "worker.py")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["met in attempt 2"]


def test_machines_that_count_restarts_differently_meet_again(tmp_path: Path) -> None:
    """Two torchrun, as on two machines: only that of the rank that died counts a restart."""
    (tmp_path / "worker.py").write_text(WORKER.replace("attempt < 2 and world.rank == attempt % 2", "dies(world)"))
    dies = "\ndef dies(world):\n    return world.rank == 0 and not attempted() and open(sys.argv[1], 'w') is not None\n"
    dies += "def attempted():\n    return os.path.exists(sys.argv[1])\n"
    script = tmp_path / "worker.py"
    script.write_text(script.read_text().replace("def main():", dies + "\ndef main():", 1))
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # only to find a free port
    port = store.port
    del store
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += [
        "--max-restarts",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-id",
        "x",
        "--rdzv-endpoint",
        f"localhost:{port}",
    ]
    command += [str(script), str(tmp_path / "died")]
    both = [
        subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                         text=True) for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert (tmp_path / "died").exists() and "met in attempt" in "".join(said)
