"""Forms of the decoder that a class of transformers computes: the control is NanoChatForCausalLM,
v5 .. v7 are GPT2LMHeadModel, and custom forms may be Llama, Arcee or Qwen3.

D model_dim, H heads, K head_dim, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from nanozoo_core.errors import ConfigError
from nanozoo_core.nn.norms import rms_norm
from nanozoo_vanilla.config import PRESETS, Switches, VanillaConfig

Export = tuple[dict[str, Any], dict[str, Tensor]]


def to_hf(model: nn.Module) -> Export:
    """config.json and the weights under transformers' names, padding rows left out.

    Raises: ConfigError for the forms that no class there has.
    """
    config = cast(VanillaConfig, model.config)
    if config.switches == PRESETS["control"]:
        return _nanochat(model, config)
    if replace(config.switches, init="gpt2") in (
        PRESETS["v6"],
        PRESETS["v7"],
    ):  # however they started
        return _gpt2(model, config)
    kind = FAMILY.get((config.switches.activation, config.switches.qk_norm))
    if kind is not None and _is_of_the_family(config.switches):
        return _llama(model, config, *kind)
    raise ConfigError(
        f"model_cfg.preset={config.preset} of vanilla with these settings has no class in "
        "transformers that computes the same; control and v5 .. v7 have one"
    )


# -- the control ----------------------------------------------------------------------------------


def _with_rotary(
    config: VanillaConfig, architecture: str, kind: str, act: str
) -> dict[str, object]:
    """What config.json says there of every decoder with rotary positions and RMSNorm."""
    return {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "max_position_embeddings": config.seq_len,
        "hidden_act": act,
        "rms_norm_eps": config.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.rope_base)},
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def _nanochat(model: nn.Module, config: VanillaConfig) -> Export:
    theirs = _with_rotary(config, "NanoChatForCausalLM", "nanochat", "relu2")
    theirs["final_logit_softcapping"] = None
    ours = dict(model.named_parameters())
    tensors = {
        "model.embed_tokens.weight": ours["embedding.weight"][: config.vocab_size],
        "lm_head.weight": ours["head.weight"][: config.vocab_size],
    }
    for layer in range(config.num_layers):
        mine, place = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = ours[f"{mine}.attention.qkv.weight"].chunk(3)
        tensors |= {
            f"{place}.self_attn.q_proj.weight": _turned_back(q, config.num_heads),
            f"{place}.self_attn.k_proj.weight": _turned_back(k, config.num_heads),
            f"{place}.self_attn.v_proj.weight": v,
            f"{place}.self_attn.o_proj.weight": ours[f"{mine}.attention.out.weight"],
            f"{place}.mlp.fc1.weight": ours[f"{mine}.mlp.up.weight"],
            f"{place}.mlp.fc2.weight": ours[f"{mine}.mlp.down.weight"],
        }
    return theirs, _copied(tensors)


def _turned_back(weight: Tensor, num_heads: int) -> Tensor:
    """(D, D) with the halves of every head exchanged: nanochat turns its pairs the other way
    around, which is the same rotation of the pairs in the other order."""
    first, second = weight.unflatten(0, (num_heads, 2, -1)).unbind(1)  # (H, K / 2, D) each
    return torch.stack([second, first], dim=1).flatten(0, 2)


# -- Llama and its like ---------------------------------------------------------------------------

FAMILY = {
    ("swiglu", False): ("LlamaForCausalLM", "llama", "silu"),
    ("relu2", False): ("ArceeForCausalLM", "arcee", "relu2"),
    ("swiglu", True): ("Qwen3ForCausalLM", "qwen3", "silu"),
}
"""By activation and whether queries and keys are normalised: class, model_type and hidden_act."""


def _is_of_the_family(switches: Switches) -> bool:
    """Whether all but activation and qk_norm is as there; embeddings may be normalised on the way
    in, which a table of normalised rows does as well."""
    own: dict[str, Any] = {
        "activation": "swiglu",
        "qk_norm": False,
        "norm_embedding": True,
        "init": "zero_out",
    }
    return replace(switches, tie_embeddings=False, **own) == replace(PRESETS["control"], **own)


def _llama(
    model: nn.Module, config: VanillaConfig, architecture: str, kind: str, act: str
) -> Export:
    theirs = _with_rotary(config, architecture, kind, act)
    theirs |= {
        "head_dim": config.model_dim // config.num_heads,
        "rope_theta": config.rope_base,
        "mlp_bias": False,
    }
    ours = dict(model.named_parameters())
    table = ours["embedding.weight"][: config.vocab_size].detach()
    head = table if config.switches.tie_embeddings else ours["head.weight"][: config.vocab_size]
    if config.switches.norm_embedding:
        table = rms_norm(table, config.eps)
    ones = table.new_ones(config.model_dim)
    tensors = {
        "model.embed_tokens.weight": table,
        "model.norm.weight": ones,
        "lm_head.weight": head.clone(),
    }
    for layer in range(config.num_layers):
        mine, place = f"blocks.{layer}", f"model.layers.{layer}"
        parts = ours[f"{mine}.attention.qkv.weight"].chunk(3)
        tensors |= {
            f"{place}.self_attn.{name}_proj.weight": part
            for name, part in zip("qkv", parts, strict=True)
        }
        tensors[f"{place}.self_attn.o_proj.weight"] = ours[f"{mine}.attention.out.weight"]
        if config.switches.qk_norm:
            for name in ("q_norm", "k_norm"):
                tensors[f"{place}.self_attn.{name}.weight"] = ones[: theirs["head_dim"]].clone()
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{place}.{name}.weight"] = ones.clone()
        up = ours[f"{mine}.mlp.up.weight"]
        names = ("gate", "up") if config.switches.activation == "swiglu" else ("up",)
        tensors |= {
            f"{place}.mlp.{name}_proj.weight": part
            for name, part in zip(names, up.chunk(len(names)), strict=True)
        }
        tensors[f"{place}.mlp.down_proj.weight"] = ours[f"{mine}.mlp.down.weight"]
    return theirs, _copied(tensors)


# -- GPT-2 ----------------------------------------------------------------------------------------


def _gpt2(model: nn.Module, config: VanillaConfig) -> Export:
    theirs = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.seq_len,
        "n_embd": config.model_dim,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_dim,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
    }
    ours = dict(model.named_parameters())
    tensors = {
        "transformer.wte.weight": ours["embedding.weight"][: config.vocab_size],
        "transformer.wpe.weight": ours["position.weight"],
    }

    def add(place: str, name: str, layout: Callable[[Tensor], Tensor]) -> None:
        """Weight and bias, which is zero where the form has none."""
        weight = layout(ours[f"{name}.weight"])
        tensors[f"{place}.weight"] = weight
        bias = ours.get(f"{name}.bias")
        tensors[f"{place}.bias"] = weight.new_zeros(weight.shape[-1]) if bias is None else bias

    for layer in range(config.num_layers):
        mine, place = f"blocks.{layer}", f"transformer.h.{layer}"
        add(f"{place}.ln_1", f"{mine}.norm_1", _as_it_is)
        add(f"{place}.attn.c_attn", f"{mine}.attention.qkv", torch.t)
        add(f"{place}.attn.c_proj", f"{mine}.attention.out", torch.t)
        add(f"{place}.ln_2", f"{mine}.norm_2", _as_it_is)
        add(f"{place}.mlp.c_fc", f"{mine}.mlp.up", torch.t)
        add(f"{place}.mlp.c_proj", f"{mine}.mlp.down", torch.t)
    add("transformer.ln_f", "final_norm", _as_it_is)
    return theirs, _copied(tensors)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
