"""The sizes of the released models, of about GPT-2 small, and of a small machine."""

from __future__ import annotations

from typing import Any

TINY: dict[str, Any] = {
    "arch_layout": ["m1", ["T2"], "m1"],
    "model_dim": [96, 128],
    "mlp_dim": [0, 352],
    "num_heads": [3, 4],
    "rotary_emb_dim": [16, 16],
    "window_size": [127, -1],
    "ssm_cfg": {"d_state": 32, "d_conv": 4, "expand": 2, "head_dim": 32, "chunk_size": 32},
}
_PUBLISHED_SSM = {"d_state": 128, "d_conv": 4, "expand": 2, "head_dim": 64, "chunk_size": 256}


def _of_gpt2(
    layout: list[Any], model_dim: list[int], mlp_dim: list[int], num_heads: list[int]
) -> dict[str, Any]:
    """With a main network of the size of GPT-2 small, or nearly."""
    return {
        "arch_layout": layout,
        "model_dim": model_dim,
        "mlp_dim": mlp_dim,
        "num_heads": num_heads,
        "rotary_emb_dim": [32] * len(model_dim),
        "window_size": [*[1023] * (len(model_dim) - 1), -1],
        "ssm_cfg": _PUBLISHED_SSM,
    }


def _released(layout: list[Any], model_dim: list[int], mlp_dim: list[int]) -> dict[str, Any]:
    """As in configs/ of the authors' repository: 16 heads, half of each turned."""
    return {
        "arch_layout": layout,
        "model_dim": model_dim,
        "mlp_dim": mlp_dim,
        "num_heads": [16] * len(model_dim),
        "rotary_emb_dim": [width // 32 for width in model_dim],
        "window_size": [*[1023] * (len(model_dim) - 1), -1],
        "ssm_cfg": _PUBLISHED_SSM,
    }


SIZES: dict[str | None, dict[str, Any]] = {
    None: TINY,
    "hnet_small": _of_gpt2(["m4", ["T12"], "m4"], [512, 768], [0, 2048], [8, 12]),
    "hnet_2stage": _of_gpt2(
        ["m3", ["T1m3", ["T10"], "m3T1"], "m3"], [384, 512, 768], [0, 1408, 2048], [6, 8, 12]
    ),
    "hnet_attn": _of_gpt2(["T2", ["T12"], "T2"], [512, 768], [1408, 2048], [8, 12]),
    "hnet_1stage_L": _released(["m4", ["T22"], "m4"], [1024, 1536], [0, 4096]),
    "hnet_1stage_XL": _released(["m4", ["T24"], "m4"], [1024, 2048], [0, 5504]),
    "hnet_2stage_L": _released(
        ["m4", ["T1m4", ["T26"], "m4T1"], "m4"], [1024, 1024, 1536], [0, 2816, 4096]
    ),
    "hnet_2stage_XL": _released(
        ["m4", ["T1m4", ["T27"], "m4T1"], "m4"], [1024, 1536, 2048], [0, 4096, 5504]
    ),
}
"""Preset, or none -> the values of keys that are null. With 258 symbols 99.8M, 94.9M in two stages
and 98.9M without state-space layers; with the 256 of the released models 679.4M, 1270.8M, 874.3M
and 1603.5M."""
