"""Compare the bytes of `eval/memory.py` with a trace of the scoring code over fake tensors.

The model has fake parameters, laid out as by `eval.setup.build_model` on rank 0 of fake ranks.
`eval.decoder.decode.greedy_decode` decodes synthetic requests with it, or `eval.decoder.labels.decode_labels` answers
them. After every operation the live storages are added up. Only the attention of the prefill passes is replaced. The
replacement allocates what FlexAttention and flash attention allocate on CUDA: the output and a log-sum-exp per head and
token.

    python -m benchmarks.scoring_trace
"""

from __future__ import annotations

import dataclasses
import random
import sys
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed._tools.fake_collectives  # collectives of fake tensors
import tyro
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks.common import load_average, table, write_result
from benchmarks.memory_trace import fake_ranks
from checkpoints_tools.architectures import architecture_of
from checkpoints_tools.registry import MODELS
from data.packing import padded_length
from data.tasks import ClassField, Task
from eval.decoder.decode import greedy_decode
from eval.decoder.kv_cache import BodyPass, PrefixPass, TokenPass, TreePass
from eval.decoder.labels import decode_labels, max_outputs
from eval.decoder.score import batch_sizes
from eval.decoder.tensor_parallel import to_plain_tensors
from eval.decoder.trie import TokenTrie, build_tries
from eval.job import RequestLengths, TrieLoad
from eval.memory import MemoryByMoment, decoder_memory
from model.attention import build_bidirectional_mask
from model.llama import Llama, LlamaConfig
from model.llama_heads import HeadedConfig
from train.parallel.mesh import MeshShape
from train.parallel.tensor_parallel import apply_tensor_parallel
from train.planning.hardware import GIB

STOP = 0  # a token that ends an answer
N_TOKENS = 2  # tokens emitted per answer; one answer of each batch ends after one


class LiveBytes(TorchDispatchMode):
    """Adds up the storages of all live tensors after every operation.

    Attributes:
        now: current bytes.
        peak: maximum since `restart`.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()
        for tensor in tensors:
            self._add(tensor)

    def restart(self) -> int:
        """Reset the peak to the current bytes; returns the old peak."""
        peak, self.peak = self.peak, self.now
        return peak

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        self.peak = max(self.peak, self.now)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            self.known[storage] = None
            self.now += storage.nbytes()
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, n_bytes: int) -> None:
        self.now -= n_bytes


def attention_like_cuda(q: Tensor, k: Tensor, v: Tensor, mask: object) -> Tensor:
    """Allocates what `model.attention.attention` does on CUDA. Without a mask that is SDPA, with repeated keys."""
    if mask is None and q.shape[2] != k.shape[2]:
        k, v = (x.repeat_interleave(q.shape[2] // k.shape[2], dim=2) for x in (k, v))
    log_sum_exp = q.new_empty(q.shape[:3], dtype=torch.float32)  # noqa: F841  # live while the kernel runs
    return torch.empty_like(q)


def fake_model(config: LlamaConfig, dtype: torch.dtype, tp: int, mode: FakeTensorMode) -> nn.Module:
    """The model as `eval.setup.build_model` builds it, with fake parameters."""

    def build() -> Llama:
        return Llama(config)

    with torch.device("meta"):
        model = build().to(dtype)
    if tp == 1:
        with mode:
            return model.to_empty(device="cpu").eval()
    mesh = MeshShape(tensor=tp).build("cpu")["tensor"]
    apply_tensor_parallel(model, mesh)
    with mode:
        model.to_empty(device="cpu")
    return to_plain_tensors(model, build, mesh).eval()


def trace_decoder(
    config: LlamaConfig,
    dtype: torch.dtype,
    tp: int,
    lengths: RequestLengths,
    max_batch_tokens: int,
    labels: Labels | None = None,
) -> dict[str, int]:
    """Decode on rank 0 of ``tp``, `N_TOKENS` tokens of each answer; or, with ``labels``, their probabilities.

    Returns:
        Bytes: ``weights``; the maxima of ``keys and values of the prefix`` and ``keys and values of a batch``; the
        peaks of passes over the ``prefix``, over ``bodies`` (with labels: and what is computed from their logits) and,
        without labels, over ``one token`` per request.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with ExitStack() as stack:
        if tp > 1:
            stack.enter_context(fake_ranks(tp))
        model = fake_model(config, dtype, tp, mode)
        live = LiveBytes(model.parameters())
        found = {"weights": live.now}
        moment, step = "", 0

        def note(module: nn.Module | None, args: tuple, call: dict[str, Any]) -> None:
            """Between two passes: the peak belongs to the earlier one."""
            nonlocal moment, step
            found[moment] = max(found.get(moment, 0), live.restart())
            cache = call["cache"]
            moment = {PrefixPass: "prefix", TokenPass: "one token"}.get(type(cache), "bodies")
            assert moment != "bodies" or type(cache) is (BodyPass if labels is None else TreePass)
            step = step + 1 if moment == "one token" else 0
            for kind, held in (("the prefix", cache.prefix), ("a batch", getattr(cache, "slots", None))):
                if held is not None:
                    name = f"keys and values of {kind}"
                    n_bytes = sum(x.nbytes for x in [*held.keys.values(), *held.values.values()])
                    found[name] = max(found.get(name, 0), n_bytes)

        def emitted(tokens: FakeTensor) -> list[int]:
            """One request of each batch ends early, the others after the last token. Log-probabilities are zero."""
            if labels is not None:
                return [0] * tokens.numel()
            stops = [step >= N_TOKENS] * (len(tokens) - 1) + [step >= 1]
            return [STOP if stop else STOP + 1 for stop in stops]

        model.register_forward_pre_hook(note, with_kwargs=True)
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", emitted))
        stack.enter_context(mock.patch("eval.decoder.decode.build_mask", lambda doc_ids, n_cached: "packed"))
        stack.enter_context(mock.patch("eval.decoder.kv_cache.build_tree_mask", lambda *arguments: "packed"))
        stack.enter_context(mock.patch.object(FakeTensor, "__bool__", lambda self: True, create=True))  # all finite
        stack.enter_context(mock.patch.object(FakeTensor, "__int__", lambda self: 0, create=True))  # the best label
        stack.enter_context(mock.patch("eval.decoder.kv_cache.attention", attention_like_cuda))
        stack.enter_context(mode)
        stack.enter_context(live)
        prefix, bodies = [STOP + 1] * lengths.prefix, [[STOP + 1] * n for n in lengths.bodies]
        if labels is None:
            greedy_decode(model, prefix, bodies, lengths.limits, {STOP}, max_batch_tokens=max_batch_tokens)
        else:
            decode_labels(model, prefix, bodies, [[]] * len(bodies), lengths.limits, labels,  # type: ignore[arg-type]
                          max_batch_tokens=max_batch_tokens)  # fmt: skip
        found[moment] = max(found.get(moment, 0), live.restart())
    del found[""]
    return found


class Labels:
    """Stands for `eval.decoder.labels.ValidAnswers`: class fields with so many labels, of some tokens each."""

    tokens = None

    def __init__(self, sizes: Sequence[int], config: LlamaConfig) -> None:
        rng = random.Random(0)
        fields = (ClassField(f"f{k}", tuple(f"l{i}" for i in range(n))) for k, n in enumerate(sizes))
        self.task = Task("labels", "custom", tuple(fields))
        limit = max_outputs(config.vocab_size)
        beginning = list(range(1, 7))  # a key, with which all answers begin
        labels = [[[*beginning, *rng.sample(range(10, 10 + n), 3), i + 10] for i in range(n)] for n in sizes]
        self._tries = [build_tries(own, limit) for own in labels]
        (*tries,) = (trie for (trie,) in self._tries)
        fields = tuple((len(trie.tokens), len(trie.outputs)) for trie in tries)
        self.load = TrieLoad(fields, limit, stores=len(sizes) > 1)

    def tries(self, before: tuple) -> list[TokenTrie]:
        return self._tries[len(before)]


def trace_heads(config: HeadedConfig, dtype: torch.dtype, documents: Sequence[int]) -> dict[str, int]:
    """Pass one packed row of ``documents`` (tokens of each) through a model with heads.

    Returns:
        Bytes: ``weights``, and the peak of the pass, ``a row``.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    padding = padded_length(sum(documents)) - sum(documents)
    doc_ids = torch.repeat_interleave(torch.tensor([*range(len(documents)), -1]), torch.tensor([*documents, padding]))
    mask = build_bidirectional_mask(doc_ids[None])
    with torch.device("meta"):
        model = architecture_of(config).build(config).to(dtype).eval()
    with ExitStack() as stack:
        stack.enter_context(mock.patch("model.encoder.build_bidirectional_mask", lambda doc_ids: mask))
        stack.enter_context(mock.patch("model.llama_heads.build_mask", lambda doc_ids: "packed"))
        stack.enter_context(mock.patch("model.llama.attention", attention_like_cuda))
        read = [len(documents), 2 * config.dim]  # the lengths of documents, again
        stack.enter_context(mock.patch("model.llama_heads._read_documents", lambda x, *_: x.new_empty(read)))
        # An encoder reads the documents' lengths from the positions; fake tensors have no values.
        stack.enter_context(mock.patch.object(FakeTensor, "__int__", lambda self: 0, create=True))
        stack.enter_context(mode)
        model.to_empty(device="cpu")
        live = LiveBytes(model.parameters())
        weights = live.now
        stack.enter_context(live)
        tokens, positions = torch.zeros(2, 1, len(doc_ids), dtype=torch.int64)
        with torch.no_grad():
            index = torch.zeros(len(documents), dtype=torch.int64)
            model(tokens, positions, doc_ids, {head.name: index for head in config.heads})
    return {"weights": weights, "a row": live.peak}


def requests(task: str, max_batch_tokens: int) -> RequestLengths:
    """Requests of a task, enough for about two batches, with lengths as counted with the Llama 3 tokenizer
    (`benchmarks/results/tokens_per_example.md`)."""
    if task == "massive_joint":
        n = max_batch_tokens // 100
        return RequestLengths(681, [8 + i % 32 for i in range(n)], [103] * n)
    # 20ng_joint with five examples; the longest post is a batch by itself in small batches.
    n = max_batch_tokens // 800
    return RequestLengths(1535, [12_000, *(100 + 1500 * i // n for i in range(n))], [29] * (n + 1))


def figures(memory: MemoryByMoment, with_labels: bool = False) -> dict[str, int]:
    """The plan's values of the figures that `trace_decoder` returns."""
    totals = {moment: memory.weights + sum(parts.values()) for moment, parts in memory.moments.items()}
    caches = {name: n for name, n in memory.moments["bodies"].items() if name.startswith("keys and values")}
    found = {"weights": memory.weights, **caches, "prefix": totals["prefix"], "bodies": totals["bodies"]}
    if with_labels:
        return found | {"bodies": max(totals["bodies"], totals["logits"], totals["labels"])}
    return found | {"one token": max(totals["one token"], totals["logits"])}


def planned(
    config: LlamaConfig, dtype: torch.dtype, tp: int, lengths: RequestLengths, max_batch_tokens: int
) -> MemoryByMoment:
    """The memory of the same decoding by `eval/memory.py`."""
    return decoder_memory(config, dtype, tp, lengths.prefix, batch_sizes(lengths, 1, max_batch_tokens))


CASES = (("llama3_8b", 1), ("llama3_70b", 8), ("llama3_70b", 2))  # model, --tp
TASKS = (("massive_joint", None), ("20ng_joint", None), ("20ng_joint", (20, 7)))  # labels of fields: --decode labels


def compare(
    name: str, tp: int, task: str, sizes: tuple[int, ...] | None, max_batch_tokens: int, layers: int | None
) -> list[list[object]]:
    """Table rows for one trace; ``sizes``: the numbers of labels of class fields, whose probabilities are computed."""
    config, dtype = MODELS[name].config, torch.bfloat16
    assert isinstance(config, LlamaConfig)
    if layers is not None:
        config = dataclasses.replace(config, n_layers=layers)
    lengths, start = requests(task, max_batch_tokens), time.perf_counter()
    labels = Labels(sizes, config) if sizes is not None else None
    if labels is not None:
        lengths, task = dataclasses.replace(lengths, tries=labels.load), f"{task}, labels"
    traced = trace_decoder(config, dtype, tp, lengths, max_batch_tokens, labels)
    what = f"{name}, tp {tp}, {task}, batches of {max_batch_tokens:,} ({time.perf_counter() - start:.0f} s)"
    rows = []
    for kind, ours in figures(planned(config, dtype, tp, lengths, max_batch_tokens), labels is not None).items():
        rows.append([what, kind, f"{ours / GIB:.3f}", f"{traced[kind] / GIB:.3f}", f"{ours / traced[kind] - 1:+.2%}"])
        what = ""
    return rows


def main(batch_tokens: tuple[int, ...] = (4000, 16_384), layers: int | None = None, output: Path | None = None) -> None:
    """Trace and compare, and write a result file.

    Args:
        batch_tokens: ``--batch_tokens`` of the runs.
        layers: number of layers of each model; None: all.
        output: result file.
    """
    load, rows = load_average(), []
    for name, tp in CASES:
        for n in batch_tokens:
            for task, sizes in TASKS:
                found = compare(name, tp, task, sizes, n, layers)
                print(*found, sep="\n", file=sys.stderr, flush=True)
                rows += found
    body = (
        "Rank 0 of `--tp` ranks, bf16, requests with the tasks' lengths; GiB. *plan* is `eval/memory.py`, *trace* "
        "the live storages of fake tensors while `greedy_decode` decodes, or `decode_labels` answers (*labels*; in "
        "brackets: seconds of the trace). The prefill's attention is replaced by what FlexAttention and flash "
        "attention allocate on CUDA; everything else is the scoring code itself.\n\n"
        + table(["", "", "plan", "trace", "off by"], rows)
        + "\n\nNeither was measured on a GPU. CUDA's context, NCCL's buffers and the allocator's gaps need memory in "
        "addition (`train/planning/hardware.py`)."
    )
    write_result("scoring_trace", "The bytes of scoring against a traced run", body, sys.argv[1:], output, load)


if __name__ == "__main__":
    tyro.cli(main, config=(tyro.conf.OmitArgPrefixes,))
