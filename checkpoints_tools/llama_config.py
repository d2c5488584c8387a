"""``config.json`` of a Llama folder ⇄ our `LlamaConfig`, and ``generation_config.json``.

Reading reports all contradictions together. Writing produces the keys that transformers 4 and 5 and vLLM all read
(``rope_theta`` and ``rope_scaling`` at the top level, ``torch_dtype``). Reading accepts these and what transformers 5
writes (``rope_parameters``, ``dtype``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from msgspec import Struct, structs

from checkpoints_tools.json_files import write_json
from checkpoints_tools.shapes import Epsilon, Layers, Positions, Positive, Theta, TokenIds, Vocabulary, Width
from checkpoints_tools.tokenizer_files import RESTORE
from checkpoints_tools.writer import TrainedOn
from data.decoder.fewshot import PROMPT_FILE, PromptSpec
from data.decoder.templates import TEMPLATES, encode_pieces
from data.decoder.tokenizer import Tokenizer
from data.errors import UserError
from data.files.documents import fields_of, read_json
from model.llama import LlamaConfig, RopeScaling


class RopeFile(Struct, frozen=True):
    """``rope_scaling`` (transformers 4) or ``rope_parameters`` (transformers 5) of a ``config.json``."""

    rope_theta: Theta | None = None
    rope_type: str | None = None
    type: str | None = None


class Llama3Rope(Struct):
    """The numbers of the rope type 'llama3'."""

    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_max_position_embeddings: Positions


class LlamaFile(Struct):
    """What is read of a Llama's ``config.json``."""

    hidden_size: Width
    num_attention_heads: Width
    num_hidden_layers: Layers
    intermediate_size: Width
    vocab_size: Vocabulary
    num_key_value_heads: Width | None = None
    head_dim: Width | None = None
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta | None = None
    rope_scaling: RopeFile = RopeFile()
    rope_parameters: RopeFile = RopeFile()
    max_position_embeddings: Positions = 2048
    tie_word_embeddings: bool = False


class LlamaKind(Struct):
    """What a Llama's ``config.json`` says besides numbers."""

    architectures: list[str] = []
    hidden_act: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    is_causal: bool = True
    quantization_config: dict[str, Any] = {}


class OtherModels(Struct):
    """What Mistral, Granite, Gemma, OLMo, MiniCPM and GLM compute and a Llama does not. The defaults change nothing."""

    sliding_window: int = 0
    use_sliding_window: bool = True
    attention_multiplier: float = 0.0
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logits_scaling: float = 1.0
    attn_logit_softcapping: float = 0.0
    final_logit_softcapping: float = 0.0
    clip_qkv: float = 0.0
    scale_emb: float = 1.0
    scale_depth: float = 0.0
    partial_rotary_factor: float = 1.0


class _Begin(Struct):
    """What a ``config.json`` says of the token that begins a text."""

    bos_token_id: TokenIds = None


def parse_llama_config(raw: dict[str, Any], where: str = "config.json") -> LlamaConfig:
    """Turn the contents of a ``config.json`` into a `LlamaConfig`; see `read_config`.

    Raises:
        UserError: something that a Llama does not have, or wrong or contradictory values (all in one message).
    """
    problems = _architecture_problems(raw)
    if problems:  # do not check the numbers of another architecture
        raise UserError(f"{where} is not a model we can run:\n" + "\n".join(f"  - {p}" for p in problems))
    values, problems = fields_of(raw, LlamaFile)
    dim, n_heads = (values.get(key, 0) for key in ("hidden_size", "num_attention_heads"))  # 0: it is wrong
    n_kv_heads: int = values.get("num_key_value_heads") or n_heads
    head_dim: int = values.get("head_dim") or (max(dim // n_heads, 1) if dim and n_heads else 0)
    if n_heads and dim % n_heads:
        problems.append(f"hidden_size {dim} is not a multiple of num_attention_heads {n_heads}")
    if n_heads and n_heads % n_kv_heads:
        problems.append(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
    if head_dim % 2:
        problems.append(f"head_dim {head_dim} is odd; rotary embeddings rotate pairs of dimensions")
    rope_theta, rope_scaling = _read_rope(raw, values, problems)
    problems += not_computed(raw, head_dim, values.get("max_position_embeddings", 0))
    if problems:
        raise UserError(f"{where} is not a model we can run:\n" + "\n".join(f"  - {p}" for p in problems))
    return LlamaConfig(
        dim=dim,
        n_layers=values["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=values["intermediate_size"],
        vocab_size=values["vocab_size"],
        norm_eps=values["rms_norm_eps"],
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
        max_position=values["max_position_embeddings"],
        tie_embeddings=values["tie_word_embeddings"],
    )


def _architecture_problems(raw: dict[str, Any]) -> list[str]:
    kind, problems = fields_of(raw, LlamaKind)
    names = kind.get("architectures", [])
    if any(name != "LlamaForCausalLM" for name in names):
        return [f"architectures {names}; for model_type 'llama' this code runs LlamaForCausalLM only"]
    if kind.get("hidden_act", "silu") != "silu":
        problems.append(f"hidden_act is {kind['hidden_act']!r}; Llama's feed-forward uses 'silu'")
    problems += [f"{key} is true; Llama has no biases" for key in ("attention_bias", "mlp_bias") if kind.get(key)]
    if not kind.get("is_causal", True):
        problems.append("is_causal is false; Llama's attention is causal")
    if kind.get("quantization_config"):
        method = kind["quantization_config"].get("quant_method", "unknown")
        problems.append(f"the weights are quantized ({method}); full fine-tuning needs the unquantized checkpoint")
    return problems


def not_computed(raw: dict[str, Any], head_dim: int, max_position: int) -> list[str]:
    """What a ``config.json`` or ``params.json`` asks for and a Llama does not compute, one line for each.

    People relabel models of other families as Llamas. transformers' LlamaForCausalLM ignores these keys.

    Args:
        head_dim: 0 if it is wrong, and then not compared; ``max_position`` also.
    """
    rope = raw.get("rope_parameters")  # transformers 5 has partial_rotary_factor there
    values, problems = fields_of({**(rope if isinstance(rope, dict) else {}), **raw}, OtherModels)
    usual = {field.encode_name: field.default for field in structs.fields(OtherModels)}
    changes = {key: value for key, value in values.items() if value != usual[key]}
    if not changes.pop("use_sliding_window", True) or not 0 < changes.get("sliding_window", 0) < max_position:
        changes.pop("sliding_window", None)
    scale = changes.get("attention_multiplier", 0.0)
    if scale and (not head_dim or math.isclose(scale, head_dim**-0.5, rel_tol=1e-5)):
        del changes["attention_multiplier"]
    return problems + [
        f"{key} is {value!r}; a Llama does not compute it, so a model that needs it cannot run here. Remove the key "
        "only if the model was trained without it"
        for key, value in changes.items()
    ]


def _read_rope(raw: dict[str, Any], values: dict[str, Any], problems: list[str]) -> tuple[float, RopeScaling | None]:
    """θ and scaling, from transformers 4's keys or transformers 5's; contradictions are added to ``problems``."""
    found = {key: raw[key] for key in ("rope_scaling", "rope_parameters") if raw.get(key) and key in values}
    thetas = {x for x in (values.get("rope_theta"), *(values[key].rope_theta for key in found)) if x is not None}
    if len(thetas) > 1:
        problems.append(f"rope_theta has two values: {sorted(thetas)}")
    elif len(found) > 1:  # transformers takes one and ignores the other
        outside = values.get("rope_theta") or 10_000.0
        one, other = (
            {"rope_theta": outside, "rope_type": rope.get("type", "default"), **rope, "type": None}
            for rope in found.values()
        )
        if one != other:
            problems.append(
                f"rope_scaling and rope_parameters are both there and differ: {found}; remove the wrong one"
            )
    theta = max(thetas, default=10_000.0)
    if not found:
        return theta, None
    key, numbers_of = next(iter(found.items()))
    kind = values[key].rope_type or values[key].type or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        problems.append(f"rope scaling of type {kind!r}; known: 'default', 'llama3'")
        return theta, None
    context = "original_max_position_embeddings"  # some files have it outside, and transformers prefers that
    if raw.get(context) is not None:
        if numbers_of.get(context) not in (None, raw[context]):
            problems.append(f"{context} is {raw[context]!r}, but {key} has {numbers_of[context]!r}")
        numbers_of = {**numbers_of, context: raw[context]}
    numbers, wrong = fields_of(numbers_of, Llama3Rope)
    problems += [f"{key}.{problem}" for problem in wrong]
    if wrong:
        return theta, None
    if numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        problems.append(
            f"rope scaling: high_freq_factor {numbers['high_freq_factor']} must be above "
            f"low_freq_factor {numbers['low_freq_factor']}"
        )
        return theta, None
    return theta, RopeScaling(original_max_position=numbers.pop("original_max_position_embeddings"), **numbers)


def to_hf_llama_config(
    config: LlamaConfig, dtype: torch.dtype, token_ids: dict[str, int | list[int]] | None = None
) -> dict[str, Any]:
    """Contents of a ``config.json`` for this config, readable by transformers 4 and 5 and by vLLM."""
    rope = config.rope_scaling
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.dim,
        "intermediate_size": config.ffn_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None
        if rope is None
        else {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position,
        },
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **(token_ids or {}),
    }


def write_llama_config(
    folder: Path,
    config: LlamaConfig,
    dtype: torch.dtype,
    token_ids: dict[str, int | list[int]] | None = None,
) -> None:
    """Write ``config.json`` and ``generation_config.json`` (the ids that begin and end a text) into a folder."""
    write_json(folder / "config.json", to_hf_llama_config(config, dtype, token_ids))
    write_json(folder / "generation_config.json", {"do_sample": False, **(token_ids or {})})


def write_llama_export(
    folder: Path, config: LlamaConfig, dtype: torch.dtype, tokenizer: Tokenizer, trained_on: TrainedOn
) -> None:
    """Write an export's config and tokenizer; `export_hf` writes weights and ``prompt.json``."""
    write_llama_config(folder, config, dtype, token_ids(tokenizer, trained_on.prompt_spec))
    tokenizer.save(folder)


def token_ids(tokenizer: Tokenizer, prompt_spec: PromptSpec | None) -> dict[str, int | list[int]]:
    """Token ids for ``generation_config.json``: the one that begins a text, and all that end an answer."""
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


def check_llama_tokenizer(config: LlamaConfig, tokenizer: Any, folder: Path | str) -> None:
    """Check that in a folder that was fine-tuned here texts still begin as in training.

    The token's name is in ``tokenizer_config.json``. Without this file every text would lack its first token, and get
    other labels.

    Args:
        tokenizer: a decoder's, or that of a decoder with heads.

    Raises:
        UserError: ``config.json`` states another token than the tokenizer's files.
    """
    path, decoder = Path(folder) / "config.json", getattr(tokenizer, "decoder", tokenizer)
    if not path.is_file() or not (getattr(config, "heads", ()) or (Path(folder) / PROMPT_FILE).is_file()):
        return
    stated = read_json(path, _Begin).bos_token_id
    if stated not in (None, decoder.bos_id):
        begin = "no token" if decoder.bos_id is None else f"token {decoder.bos_id}"
        raise UserError(
            f"{folder}: in training a text began with token {stated} (bos_token_id in config.json); by the tokenizer's "
            f"files it begins with {begin}, and would get other labels. {RESTORE} If the model was trained so, write "
            "null for bos_token_id in config.json."
        )
