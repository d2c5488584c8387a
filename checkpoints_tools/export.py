"""From a trained model, sharded or not, to a Hugging Face folder that transformers (and vLLM, a Llama) loads as it is.

Tensors leave one at a time: each is gathered from all ranks, taken by rank 0 and dropped, so that beside the model no
rank holds more than one tensor, and rank 0 one file's worth (`tests/train/checkpointing/test_saver_ranks.py` measures
it). All ranks receive each tensor and not rank 0 alone, which has to take in the same bytes either way; the largest of
70B is 2.1 GB in bf16. Rank 0 alone writes: 141 GB at 1 GB/s are two and a half minutes, once in a run of days, and
ranks that wrote files of their own would share one machine's disk in most cases anyway.

What an encoder becomes depends on its heads (`checkpoints_tools.encoder_config.hf_architecture`):

| heads                     | class in transformers        | which loads                                           |
|---------------------------|------------------------------|-------------------------------------------------------|
| one class field, "dense"  | ...ForSequenceClassification | all of it: the same logits                            |
| one token field           | ...ForTokenClassification    | all of it: the same logits                            |
| one class field, "linear" | RobertaModel, BertModel      | the encoder; ``heads.<field>.*`` it reports and skips |
| several fields            | RobertaModel, BertModel      | the same                                              |

transformers has no class with a linear layer straight on a document's first token; whoever wants to apply ours outside
this code takes ``last_hidden_state[:, 0] @ weight.T + bias``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from checkpoints_tools.load import clean_name
from checkpoints_tools.meta_tokenizer import write_tokenizer_json
from checkpoints_tools.registry import ModelConfig, Tokenizer, architecture_of
from checkpoints_tools.writer import SHARD_BYTES, ShardWriter, TrainedOn, refuse_non_empty, staged_folder
from data.decoder.fewshot import PromptSpec


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
) -> None:
    """Write config, weights, tokenizer and prompt; every rank of the process group, if there is one, calls this.

    Args:
        model: the model, or its (our parameter name, tensor) pairs in the same order on every rank. Tensors may be
            DTensors of any placement.
        config: shape of the model.
        tokenizer: its files are written as they were read, chat template included.
        folder: must not exist or be empty; appears when complete.
        dtype: what to store; None keeps each tensor's own.
        prompt_spec: what the model was trained on, stored as ``prompt.json``; its template's end of turn joins the
            tokens that ``generation_config.json`` lists as ending an answer.
        shard_bytes: largest size of one file.
        labels: field → what each of its head's outputs stands for, in order (of a token field the tags). Encoders with
            heads need them; a decoder, whose prompt says them, does not store them.
        max_length: the longest document in tokens, special tokens included. Encoders store it for whoever scores them,
            in ``config.json`` for `eval.setup` and as the tokenizer's ``model_max_length``, to which transformers cuts;
            decoders do not.

    Raises:
        UserError: ``folder`` is not empty.
    """
    folder = Path(folder)
    architecture = architecture_of(config)
    refuse_non_empty(folder)  # on every rank: one that fails alone would leave the others waiting
    if dist.is_initialized():
        dist.barrier()
    state = _parameters(model) if isinstance(model, nn.Module) else model
    if dist.is_initialized() and dist.get_rank() != 0:
        for _, tensor in state:
            _whole(tensor, dtype)
    else:
        with staged_folder(folder) as staging:
            writer, stored = ShardWriter(staging, shard_bytes), None
            for name, tensor in state:
                whole = _whole(tensor, dtype)
                stored = stored or whole.dtype
                writer.add(architecture.to_theirs(clean_name(name), config), whole)
            assert stored is not None, "a model without parameters"
            writer.close()
            architecture.write_export(staging, config, stored, tokenizer, TrainedOn(prompt_spec, labels, max_length))
            names = {path.name for path in staging.iterdir()}
            if "tokenizer.model" in names and not names & {"tokenizer.json", "tokenizer_config.json"}:
                write_tokenizer_json(staging, config.max_position)  # transformers does not read Meta's
            if prompt_spec is not None:
                prompt_spec.save(staging)
    if dist.is_initialized():
        dist.barrier()


def _parameters(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # else what a forward pass left gathered, in the compute dtype, would be saved
    return model.named_parameters()


def _whole(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The whole of a tensor that may be sharded; cast first, so that less travels. A collective for DTensors."""
    tensor = tensor.detach()
    if dtype is not None:
        tensor = tensor.to(dtype)
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
