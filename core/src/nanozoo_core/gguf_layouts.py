"""Layouts of llama.cpp that several models share. L layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nanozoo_core.contract import GGUFModel
from nanozoo_core.errors import ConfigError

GPT2_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def gpt2_gguf(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GGUFModel:
    """GPT-2 there, from what transformers' GPT2LMHeadModel loads.

    Raises: ConfigError for the exact GELU, which llama.cpp has not.
    """
    if config["activation_function"] != "gelu_new":
        raise ConfigError(
            "llama.cpp has the tanh form of GELU alone, and this model the exact one: it cannot be "
            "written as GGUF"
        )
    settings = {
        "block_count": config["n_layer"],
        "context_length": config["n_positions"],
        "embedding_length": config["n_embd"],
        "feed_forward_length": config["n_inner"],
        "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
    }
    found = {}
    for name, tensor in tensors.items():
        path, _, kind = name.removeprefix("transformer.").rpartition(".")
        if path == "lm_head":
            found["output.weight"] = tensor
            continue
        place = ""
        if path.startswith("h."):
            _, number, path = path.split(".", 2)
            place = f"blk.{number}."
        is_matrix = path.startswith(("attn.", "mlp.")) and kind == "weight"
        found[f"{place}{GPT2_NAMES[path]}.{kind}"] = tensor.t() if is_matrix else tensor
    return GGUFModel("gpt2", settings, found)
