"""Export a trained model, sharded or not, as a Hugging Face folder that transformers reads.

Tensors are written one at a time: each is gathered from all ranks, kept by rank 0 and dropped by the others. So beside
the model a rank holds at most one tensor, and rank 0 one file (`tests/train/checkpointing/test_saver_ranks.py`).

- Every rank receives each tensor, not rank 0 alone: rank 0 receives the same bytes either way. The largest tensor of
  70B is 2.1 GB in bf16.
- Only rank 0 writes. 141 GB at 1 GB/s take two and a half minutes, once in a run of days. Files written by several
  ranks would mostly share one machine's disk.

What an encoder's export is in transformers depends on its heads; `docs/checkpoints.md` has the table.
transformers has no class with a linear layer directly on a document's first token, or on the mean of its tokens. To
apply ours outside this code, compute ``last_hidden_state[:, 0] @ weight.T + bias``. For the head "mean",
put the mean of the document's last hidden states, special tokens included, in place of ``last_hidden_state[:, 0]``,
divided by its length and multiplied by the square root of the model's width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from checkpoints_tools.architectures import ModelConfig, Tokenizer, architecture_of
from checkpoints_tools.carried import Carried, carry_over
from checkpoints_tools.load import clean_name
from checkpoints_tools.meta_tokenizer import complete_tokenizer
from checkpoints_tools.writer import (
    SHARD_BYTES,
    ShardWriter,
    TrainedOn,
    refuse_non_empty,
    require_finite,
    staged_folder,
)
from data.decoder.fewshot import PromptSpec
from data.decoder.templates import TEMPLATES, encode_pieces
from data.decoder.tokenizer import Tokenizer as DecoderTokenizer


def export_hf(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    config: ModelConfig,
    tokenizer: Tokenizer,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    prompt_spec: PromptSpec | None = None,
    shard_bytes: int = SHARD_BYTES,
    labels: dict[str, list[str]] | None = None,
    max_length: int | None = None,
    carried: Carried | None = None,
    add: Callable[[Path], None] | None = None,
) -> None:
    """Write config, weights, tokenizer and prompt. A collective: every rank of the process group calls it.

    Args:
        model: the model, or its (our parameter name, tensor) pairs in the same order on every rank. Tensors may be
            DTensors of any placement.
        config: config of the model.
        tokenizer: its files are written unchanged, with the chat template.
        folder: must be empty or not exist; appears only when complete.
        dtype: dtype to store; None keeps each tensor's dtype.
        prompt_spec: the prompt of the training, stored as ``prompt.json``. Its template's end-of-turn token is added to
            ``eos_token_id`` in ``generation_config.json``.
        shard_bytes: largest size of one file.
        labels: field → the labels of its head's outputs, in order (tags for a token field). Required for encoders with
            heads. Decoders do not store them: their prompt lists them.
        max_length: longest document of the training in tokens, special tokens included. Encoders store it in
            ``config.json`` for `eval.setup`, and as the tokenizer's ``model_max_length``, to which transformers
            truncates. Decoders do not store it.
        carried: what the files of the checkpoint that training started from say; see `checkpoints_tools.carried`.
        add: writes further files into the folder that it is given, on rank 0.

    Raises:
        UserError: ``folder`` is not empty; or, on every rank, a tensor holds NaN, infinite values, or values that
            ``dtype`` cannot store.
    """
    folder = Path(folder)
    architecture = architecture_of(config)
    refuse_non_empty(folder)  # on every rank: if one failed alone, the others would wait for it
    if dist.is_initialized():
        dist.barrier()
    state = _parameters(model) if isinstance(model, nn.Module) else model
    if dist.is_initialized() and dist.get_rank() != 0:
        for name, tensor in state:
            _gather(_stored_name(name, config), tensor, dtype)
    else:
        with staged_folder(folder) as staging:
            writer, stored = ShardWriter(staging, shard_bytes), None
            for name, tensor in state:
                theirs = _stored_name(name, config)
                gathered = _gather(theirs, tensor, dtype)
                stored = stored or gathered.dtype
                writer.add(theirs, gathered)
            assert stored is not None, "a model without parameters"
            writer.close()
            architecture.write_export(staging, config, stored, tokenizer, TrainedOn(prompt_spec, labels, max_length))
            if carried is not None:
                carry_over(carried, staging, config.vocab_size, trained=True)
            eos = None
            if prompt_spec is not None:
                prompt_spec.save(staging)
                eos = encode_pieces(TEMPLATES[prompt_spec.template].end, cast(DecoderTokenizer, tokenizer))[0]
            origin = "the checkpoint's tokenizer.model", "put a tokenizer.json beside it"
            complete_tokenizer(staging, config.max_position, eos, *origin)
            if add is not None:
                add(staging)
    if dist.is_initialized():
        dist.barrier()


def _parameters(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # else parameters left unsharded by a forward pass would be saved in the compute dtype
    return model.named_parameters()


def _stored_name(name: str, config: ModelConfig) -> str:
    return architecture_of(config).to_theirs(clean_name(name), config)


def _gather(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The unsharded tensor, cast before it is gathered to send fewer bytes. A collective for DTensors.

    Every rank checks it, so that all of them raise the same error.
    """
    tensor = tensor.detach()
    gathered = _unsharded(tensor if dtype is None else tensor.to(dtype))
    require_finite(name, gathered, lambda: _unsharded(tensor))
    return gathered


def _unsharded(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
