"""Mamba-1 and Mamba-2 as llama.cpp's mamba and mamba2. E inner width, H heads, G groups, N states,
K width of the convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from nanozoo_core.contract import GGUFModel
from nanozoo_core.errors import ConfigError
from nanozoo_mamba.model import Mamba

LONGEST = 2**20  # there is no longest text; what llama.cpp writes for such models


def to_gguf(model: Mamba) -> GGUFModel:
    """Raises: ConfigError for settings that it has not."""
    config = model.config
    for key, value, must in (
        ("mlp_dim", config.mlp_dim, 0),
        ("use_bias", config.use_bias, False),
        ("expand", config.expand, 2),
    ):
        if value != must:
            raise ConfigError(
                f"model_cfg.{key}={value} is nothing that llama.cpp's mamba has, where it is "
                f"{must}: this model cannot be written as GGUF"
            )
    is_first = config.variant == "mamba1"
    num_layers, dim = config.shape
    rank = config.steps.rank if is_first else config.inner_dim // config.heads.head_dim
    settings: dict[str, int | float | bool] = {
        "block_count": num_layers,
        "context_length": LONGEST,
        "embedding_length": dim,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "ssm.conv_kernel": config.d_conv,
        "ssm.inner_size": config.inner_dim,
        "ssm.state_size": config.states,
        "ssm.time_step_rank": rank,
    }
    if is_first:
        settings["ssm.dt_b_c_rms"] = False
    else:
        settings["ssm.group_count"] = config.heads.num_groups
    ours = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors = {
        "token_embd.weight": ours["embedding.weight"],
        "output_norm.weight": ours["norm.weight"],
        "output.weight": model.output_weight.detach(),
    }
    for layer in range(num_layers):
        place, mine = f"blk.{layer}", f"blocks.{layer}.mixer"
        parts = _mamba1(ours, mine) if is_first else _mamba2(ours, mine, config.heads.num_groups)
        filters = ours[f"{mine}.conv.weight"].squeeze(1)  # (.., K)
        bias = ours.get(f"{mine}.conv.bias", filters.new_zeros(filters.shape[0]))
        parts |= {"ssm_conv1d.weight": filters, "ssm_conv1d.bias": bias}
        parts["attn_norm.weight"] = ours[f"blocks.{layer}.norm.weight"]
        parts["ssm_out.weight"] = ours[f"{mine}.out_proj.weight"]
        tensors |= {f"{place}.{name}": tensor for name, tensor in parts.items()}
    return GGUFModel("mamba" if is_first else "mamba2", settings, tensors)


def _mamba1(ours: dict[str, Tensor], mine: str) -> dict[str, Tensor]:
    return {
        "ssm_in.weight": ours[f"{mine}.in_proj.weight"],
        "ssm_x.weight": ours[f"{mine}.x_proj.weight"],
        "ssm_dt.weight": ours[f"{mine}.dt_proj.weight"],
        "ssm_dt.bias": ours[f"{mine}.dt_proj.bias"],
        "ssm_a": -ours[f"{mine}.A_log"].exp(),  # (E, N)
        "ssm_d": ours[f"{mine}.skip"],
    }


def _mamba2(ours: dict[str, Tensor], mine: str, groups: int) -> dict[str, Tensor]:
    whole = [ours[f"{mine}.in_proj.weight"], ours[f"{mine}.dt_proj.weight"]]
    return {
        "ssm_in.weight": torch.cat(whole),
        "ssm_dt.bias": ours[f"{mine}.dt_bias"],
        "ssm_a": -ours[f"{mine}.A_log"].exp()[:, None],  # (H, 1)
        "ssm_d": ours[f"{mine}.skip"][:, None],
        "ssm_norm.weight": ours[f"{mine}.norm.weight"].unflatten(0, (groups, -1)),  # (G, E / G)
    }
