"""Weights of transformers as one of the forms: GPT-2 is v6, NanoChat the control, Llama and Arcee
are custom.

The norms here have no gain: theirs goes into the matrix behind the norm, which computes the same.
Keys and values that several heads share are written out for each. D model_dim, H heads, K head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.errors import CheckpointError
from nanozoo_vanilla.config import ROPE_BASE, VanillaConfig

ACTIVATIONS = {"llama": ("silu", "swiglu"), "arcee": ("relu2", "relu2")}
"""By model_type their name of the activation and ours."""
# What must be so, by model_type, where their config says it.
FIXED = {
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    },
    "nanochat": {"hidden_act": "relu2", "final_logit_softcapping": None, "attention_bias": False},
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "arcee": {"hidden_act": "relu2", "attention_bias": False, "mlp_bias": False},
}


def from_hf_config(theirs: Mapping[str, Any]) -> VanillaConfig:
    """Raises: CheckpointError for a model that no form computes."""
    kind = theirs.get("model_type")
    if kind not in FIXED:
        raise CheckpointError(f"model_type={kind} must be one of {', '.join(FIXED)}")
    for key, value in FIXED[kind].items():
        if theirs.get(key, value) != value:
            raise CheckpointError(f"{key}={theirs[key]} must be {value} for a form of vanilla")
    if kind == "gpt2":
        width = theirs["n_embd"]
        found: dict[str, Any] = {
            "preset": "v6",
            "seq_len": theirs["n_positions"],
            "num_layers": theirs["n_layer"],
            "model_dim": width,
            "num_heads": theirs["n_head"],
            "mlp_ratio": (theirs.get("n_inner") or 4 * width) / width,
            "norm_eps": theirs.get("layer_norm_epsilon", 1e-5),
        }
    else:
        found = _of_the_family(theirs, kind)
    return model_config("vanilla", found | {"vocab_size": theirs["vocab_size"]})


def _of_the_family(theirs: Mapping[str, Any], kind: str) -> dict[str, Any]:
    width, num_heads = theirs["hidden_size"], theirs["num_attention_heads"]
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise CheckpointError(f"rope_type={rope.get('rope_type')} must be default")
    if (theirs.get("head_dim") or width // num_heads) * num_heads != width:
        raise CheckpointError(f"head_dim={theirs['head_dim']} must be {width // num_heads}")
    base = float(rope.get("rope_theta", theirs.get("rope_theta", ROPE_BASE)))
    found = {
        "seq_len": theirs["max_position_embeddings"],
        "num_layers": theirs["num_hidden_layers"],
        "model_dim": width,
        "num_heads": num_heads,
        "mlp_ratio": theirs["intermediate_size"] / width,
    }
    eps = theirs.get("rms_norm_eps", 1e-6)
    if kind == "nanochat":
        if (base, eps) != (ROPE_BASE, 1e-6) or theirs["num_key_value_heads"] != num_heads:
            raise CheckpointError(
                f"rope_theta={base:g}, rms_norm_eps={eps:g} and shared keys are not the control's"
            )
        return found | {"preset": "control"}
    return found | {
        "preset": "custom",
        "qk_norm": False,
        "activation": ACTIVATIONS[kind][1],
        "norm_embedding": False,
        "init": "gpt2",
        "rope_base": base,
        "norm_eps": eps,
    }


def from_hf_state_dict(
    theirs: Mapping[str, Tensor], kind: str, config: VanillaConfig
) -> dict[str, Tensor]:
    """Our names and layout. Raises: CheckpointError for a tensor that is missing."""
    try:
        return _of_gpt2(theirs, config) if kind == "gpt2" else _of_llama(theirs, kind, config)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"the weights do not fit the config: {error}") from error


def _of_gpt2(theirs: Mapping[str, Tensor], config: VanillaConfig) -> dict[str, Tensor]:
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in theirs.items()}
    ours = {"embedding.weight": theirs["wte.weight"], "position.weight": theirs["wpe.weight"]}
    names = {"norm_1": "ln_1", "norm_2": "ln_2", "attention.qkv": "attn.c_attn"}
    names |= {"attention.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        ours[f"final_norm.{kind}"] = theirs[f"ln_f.{kind}"]
        for layer in range(config.num_layers):
            for mine, name in names.items():
                tensor = theirs[f"h.{layer}.{name}.{kind}"]
                ours[f"blocks.{layer}.{mine}.{kind}"] = tensor.t() if tensor.ndim == 2 else tensor
    return ours


def _of_llama(theirs: Mapping[str, Tensor], kind: str, config: VanillaConfig) -> dict[str, Tensor]:
    table = theirs["model.embed_tokens.weight"]
    gain = theirs.get("model.norm.weight", table.new_ones(config.model_dim))
    ours = {
        "embedding.weight": table,
        "head.weight": theirs.get("lm_head.weight", table) * gain,
    }
    for layer in range(config.num_layers):
        place, mine = f"model.layers.{layer}", f"blocks.{layer}"
        q, k, v = (theirs[f"{place}.self_attn.{name}_proj.weight"] for name in "qkv")
        if kind == "nanochat":
            q, k = (_exchanged(weight, config.num_heads) for weight in (q, k))
        width = config.model_dim // config.num_heads
        shared = config.model_dim // k.shape[0]
        k, v = (_for_each_head(weight, width, shared) for weight in (k, v))
        gain = theirs.get(f"{place}.input_layernorm.weight", table.new_ones(config.model_dim))
        ours[f"{mine}.attention.qkv.weight"] = torch.cat([q, k, v]) * gain
        ours[f"{mine}.attention.out.weight"] = theirs[f"{place}.self_attn.o_proj.weight"]
        gain = theirs.get(
            f"{place}.post_attention_layernorm.weight", table.new_ones(config.model_dim)
        )
        names = {"nanochat": ("fc1",), "arcee": ("up_proj",), "llama": ("gate_proj", "up_proj")}
        up = torch.cat([theirs[f"{place}.mlp.{name}.weight"] for name in names[kind]])
        ours[f"{mine}.mlp.up.weight"] = up * gain
        down = "fc2" if kind == "nanochat" else "down_proj"
        ours[f"{mine}.mlp.down.weight"] = theirs[f"{place}.mlp.{down}.weight"]
    return ours


def _for_each_head(weight: Tensor, width: int, times: int) -> Tensor:
    """(Hk K, D) to (H K, D): every shared head as often as it is used."""
    return weight.unflatten(0, (-1, width)).repeat_interleave(times, dim=0).flatten(0, 1)


def _exchanged(weight: Tensor, num_heads: int) -> Tensor:
    """(D, D) with the halves of every head exchanged, as nanochat turns its pairs the other way."""
    first, second = weight.unflatten(0, (num_heads, 2, -1)).unbind(1)  # (H, K / 2, D) each
    return torch.stack([second, first], dim=1).flatten(0, 2)
