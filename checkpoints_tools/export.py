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

from checkpoints_tools.encoder_config import to_hf_encoder_config
from checkpoints_tools.encoder_keys import encoder_to_theirs
from checkpoints_tools.hf_config import write_config, write_json
from checkpoints_tools.key_maps import LLAMA_HF, to_theirs
from checkpoints_tools.load import clean_name
from checkpoints_tools.meta_tokenizer import write_tokenizer_json
from checkpoints_tools.writer import SHARD_BYTES, ShardWriter, refuse_non_empty, staged_folder
from data.decoder.fewshot import PromptSpec
from data.decoder.prompts import TEMPLATES, encode_pieces
from data.decoder.tokenizer import Tokenizer
from data.encoder.tokenizer import Tokenizer as EncoderTokenizer
from model.encoder import EncoderConfig
from model.llama import LlamaConfig


def export_hf(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    config: LlamaConfig | EncoderConfig,
    tokenizer: Tokenizer | EncoderTokenizer,
    folder: Path | str,
    dtype: torch.dtype | None = None,
    prompt_spec: PromptSpec | None = None,
    shard_bytes: int = SHARD_BYTES,
    key_map: dict[str, str] = LLAMA_HF,
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
        key_map: our names → the folder's, for a Llama.
        labels: an encoder's, which needs them: field → what each of its head's outputs stands for, in order (of a
            token field the tags).
        max_length: an encoder's longest document in tokens, special tokens included; stored for whoever scores it, in
            ``config.json`` for `eval.setup` and as the tokenizer's ``model_max_length``, to which transformers cuts.

    Raises:
        UserError: ``folder`` is not empty.
    """
    folder = Path(folder)
    is_encoder = isinstance(config, EncoderConfig)
    assert not is_encoder or not config.heads or labels is not None, "an encoder's heads need their labels"
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
                name = clean_name(name)
                writer.add(encoder_to_theirs(name, config) if is_encoder else to_theirs(name, key_map), whole)
            assert stored is not None, "a model without parameters"
            writer.close()
            if is_encoder:
                ids = {"bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
                ids = {"pad_token_id": tokenizer.pad_id} | (ids if config.family == "roberta" else {})
                write_json(staging / "config.json", to_hf_encoder_config(config, stored, labels or {}, ids, max_length))
                tokenizer.save(staging, max_length)
            else:
                write_config(staging, config, stored, token_ids(tokenizer, prompt_spec))
                tokenizer.save(staging)
                if not any((staging / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
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


def token_ids(tokenizer: Tokenizer, prompt_spec: PromptSpec | None) -> dict[str, int | list[int]]:
    """What ``generation_config.json`` says: the token that begins a text, and all that end an answer."""
    ends = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    if prompt_spec is not None:
        ends += encode_pieces(TEMPLATES[prompt_spec.template].end, tokenizer)[:1]
    ends = list(dict.fromkeys(ends))
    found: dict[str, int | list[int]] = {}
    if tokenizer.bos_id is not None:
        found["bos_token_id"] = tokenizer.bos_id
    if ends:
        found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return found
