"""Forms that an architecture of llama.cpp computes: v5 .. v7 are gpt2; custom forms llama, arcee or
qwen3. K head_dim."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from nanozoo_core.contract import GGUFModel
from nanozoo_core.errors import ConfigError
from nanozoo_core.gguf_layouts import gpt2_gguf
from nanozoo_vanilla.config import PRESETS, VanillaConfig
from nanozoo_vanilla.huggingface import to_hf

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def to_gguf(model: nn.Module) -> GGUFModel:
    """Raises: ConfigError for the forms that no architecture there computes."""
    config = cast(VanillaConfig, model.config)
    if config.switches == PRESETS["control"]:
        raise ConfigError(
            "llama.cpp has no architecture with a squared ReLU behind normalised queries and keys, "
            "as the control of vanilla; model_cfg.preset=v6 or v7, or custom with qk_norm=false, "
            "can be written as GGUF"
        )
    theirs, tensors = to_hf(model)
    if theirs["model_type"] == "gpt2":
        return gpt2_gguf(theirs, tensors)
    width = theirs["head_dim"]
    settings = {
        "block_count": theirs["num_hidden_layers"],
        "context_length": theirs["max_position_embeddings"],
        "embedding_length": theirs["hidden_size"],
        "feed_forward_length": theirs["intermediate_size"],
        "attention.head_count": theirs["num_attention_heads"],
        "attention.head_count_kv": theirs["num_key_value_heads"],
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": float(theirs["rms_norm_eps"]),
        "rope.dimension_count": width,
        "rope.freq_base": float(theirs["rope_theta"]),
    }
    found = {}
    for name, tensor in tensors.items():
        path = name.removesuffix(".weight")
        if path in WHOLE:
            found[f"{WHOLE[path]}.weight"] = tensor
            continue
        _, _, number, path = path.split(".", 3)
        if theirs["model_type"] != "qwen3" and path.endswith(("q_proj", "k_proj")):
            tensor = _interleaved(tensor, width)
        found[f"blk.{number}.{NAMES[path]}.weight"] = tensor
    return GGUFModel(theirs["model_type"], settings, found)


def _interleaved(weight: Tensor, width: int) -> Tensor:
    """(H K, D) whose pairs (i, i + K/2) of every head become (2i, 2i + 1), which these
    architectures turn."""
    return weight.unflatten(0, (-1, 2, width // 2)).transpose(1, 2).flatten(0, 2)
