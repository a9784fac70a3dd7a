"""Mixtures of experts that a class of transformers computes: Dots1ForCausalLM those with sigmoid
scores and shared experts, Qwen3MoeForCausalLM those with softmax scores and none.

Both have gated experts, act(G x) * (U x): with relu for act and one matrix for both it is
relu(U x)^2. Their tables hold normalised embeddings, and their norms gains of 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanozoo_core.errors import ConfigError
from nanozoo_core.nn.norms import rms_norm
from nanozoo_moe.config import MoEConfig
from nanozoo_moe.model import MixtureOfExperts, MoE

EPS = 1e-6  # of the control's norms


def to_hf(model: MoE) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the weights under transformers' names.

    Raises: ConfigError for a mixture that no class there computes.
    """
    config = model.config
    theirs = _config(config)
    ours = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    gain = ours["embedding.weight"].new_ones(config.model_dim)
    tensors = {
        "model.embed_tokens.weight": rms_norm(ours["embedding.weight"], EPS),
        "model.norm.weight": gain,
        "lm_head.weight": ours["head.weight"],
    }
    for layer, block in enumerate(model.blocks):
        mine, place = f"blocks.{layer}", f"model.layers.{layer}"
        q, k, v = ours[f"{mine}.attention.qkv.weight"].chunk(3)
        tensors |= {
            f"{place}.self_attn.q_proj.weight": q,
            f"{place}.self_attn.k_proj.weight": k,
            f"{place}.self_attn.v_proj.weight": v,
            f"{place}.self_attn.o_proj.weight": ours[f"{mine}.attention.out.weight"],
            f"{place}.self_attn.q_norm.weight": gain[: config.head_dim],
            f"{place}.self_attn.k_norm.weight": gain[: config.head_dim],
            f"{place}.input_layernorm.weight": gain,
            f"{place}.post_attention_layernorm.weight": gain,
        }
        if isinstance(block.mlp, MixtureOfExperts):
            tensors |= _mixture(ours, f"{mine}.mlp", f"{place}.mlp", config)
        else:
            tensors |= _dense(ours, f"{mine}.mlp", f"{place}.mlp")
    return theirs, {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def _config(config: MoEConfig) -> dict[str, Any]:
    num_experts, top_k = config.routed
    theirs: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "moe_intermediate_size": config.expert_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.seq_len,
        "hidden_act": "relu",
        "rms_norm_eps": EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attention_bias": False,
        "tie_word_embeddings": False,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": config.norm_topk_prob,
    }
    if config.score_func == "sigmoid" and config.shared > 0 and num_experts > 1:
        return theirs | {
            "architectures": ["Dots1ForCausalLM"],
            "model_type": "dots1",
            "n_routed_experts": num_experts,
            "n_shared_experts": config.shared,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": config.num_dense,
            "routed_scaling_factor": config.routed_scale,
            "layer_types": ["full_attention"] * config.num_layers,
        }
    if (
        config.score_func == "softmax"
        and config.shared == 0
        and config.balance != "bias"
        and config.routed_scale == 1
        and num_experts > 1
    ):
        return theirs | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": num_experts,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(range(config.num_dense)),
        }
    raise ConfigError(
        f"model_cfg.score_func={config.score_func} with num_shared_experts={config.shared}, "
        f"balance={config.balance} and routed_scaling_factor={config.routed_scale:g} has no class "
        f"in transformers that computes the same; sigmoid with shared experts has one, and softmax "
        f"without them, a bias or a factor"
    )


def _mixture(
    ours: dict[str, Tensor], mine: str, place: str, config: MoEConfig
) -> dict[str, Tensor]:
    found = {f"{place}.gate.weight": ours[f"{mine}.router.weight"]}
    if config.score_func == "sigmoid":
        bias = ours.get(f"{mine}.router.choice_bias")
        name = f"{place}.gate.e_score_correction_bias"
        found[name] = torch.zeros(config.routed[0]) if bias is None else bias
        found |= _dense(ours, f"{mine}.shared", f"{place}.shared_experts")
    for number in range(config.routed[0]):
        up, down = ours[f"{mine}.up"][number], ours[f"{mine}.down"][number]
        expert = f"{place}.experts.{number}"
        found |= {
            f"{expert}.gate_proj.weight": up,
            f"{expert}.up_proj.weight": up,
            f"{expert}.down_proj.weight": down,
        }
    return found


def _dense(ours: dict[str, Tensor], mine: str, place: str) -> dict[str, Tensor]:
    return {
        f"{place}.gate_proj.weight": ours[f"{mine}.up.weight"],
        f"{place}.up_proj.weight": ours[f"{mine}.up.weight"],
        f"{place}.down_proj.weight": ours[f"{mine}.down.weight"],
    }
