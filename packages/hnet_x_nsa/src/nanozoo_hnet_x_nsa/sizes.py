"""The sizes of the paper's scale and of a small machine, for keys that are null."""

from __future__ import annotations

from typing import Any

_TINY_SSM = {"d_state": 32, "d_conv": 4, "expand": 2, "head_dim": 32, "chunk_size": 32}
_PUBLISHED_SSM = {"d_state": 128, "d_conv": 4, "expand": 2, "head_dim": 64, "chunk_size": 256}
_LEARNED = {"chunking": "dynamic", "chunk_pool": "select", "unpool": "repeat"}

TINY: dict[str, Any] = _LEARNED | {
    "arch_layout": ["m1", ["N2"], "m1"],
    "model_dim": [96, 128],
    "mlp_dim": [0, 352],
    "num_heads": [3, 4],
    "num_kv_heads": [1, 1],
    "rotary_emb_dim": [16, 16],
    "window_size": [127, -1],
    "ssm_cfg": _TINY_SSM,
    "nsa_cfg": {
        "compress_block_size": [8, 4],
        "compress_stride": [4, 2],
        "selection_block_size": [16, 8],
        "num_selected_blocks": [4, 3],
        "sliding_window_size": [32, 16],
        "init_blocks": 1,
        "local_blocks": 1,
    },
}

SMALL: dict[str, Any] = _LEARNED | {
    "arch_layout": ["m4", ["N12"], "m4"],
    "model_dim": [512, 768],
    "mlp_dim": [0, 2048],
    "num_heads": [8, 12],
    "num_kv_heads": [2, 2],
    "rotary_emb_dim": [32, 32],
    "window_size": [1023, -1],
    "ssm_cfg": _PUBLISHED_SSM,
    "nsa_cfg": {
        "compress_block_size": [32, 16],
        "compress_stride": [16, 8],
        "selection_block_size": [64, 32],
        "num_selected_blocks": [8, 8],
        "sliding_window_size": [512, 128],
        "init_blocks": 1,
        "local_blocks": 2,
    },
}

TWO_STAGES: dict[str, Any] = SMALL | {
    "arch_layout": ["m3", ["N1m3", ["N10"], "m3N1"], "m3"],
    "model_dim": [384, 512, 768],
    "mlp_dim": [0, 1408, 2048],
    "num_heads": [6, 8, 12],
    "num_kv_heads": [2, 2, 2],
    "rotary_emb_dim": 32,
    "window_size": [1023, 1023, -1],
    "nsa_cfg": SMALL["nsa_cfg"]
    | {
        "compress_block_size": [32, 32, 16],
        "compress_stride": [16, 16, 8],
        "selection_block_size": [64, 64, 32],
        "num_selected_blocks": 8,
        "sliding_window_size": [512, 256, 128],
    },
}

LADDER_KEYS = ("num_inner_layers", "num_ladder_levels", "ladder_size")

LADDER: dict[str, Any] = {
    "model_dim": 96,
    "mlp_dim": 256,
    "num_heads": 3,
    "num_kv_heads": 1,
    "rotary_emb_dim": 16,
    "window_size": 127,
    "nsa_cfg": TINY["nsa_cfg"]
    | {
        "compress_block_size": 4,
        "compress_stride": 2,
        "selection_block_size": 8,
        "num_selected_blocks": 3,
        "sliding_window_size": 16,
    },
}
"""Of a ladder without a preset; its stages are equally wide."""

LADDER_OF: dict[str | None, dict[str, int]] = {
    "hnet_x_nsa_fixed": {"num_inner_layers": 6, "num_ladder_levels": 3, "ladder_size": 8}
}
"""Preset -> its ladder."""

FIXED: dict[str, Any] = _LEARNED | {
    "model_dim": 768,
    "mlp_dim": 2048,
    "num_heads": 12,
    "num_kv_heads": 2,
    "rotary_emb_dim": 32,
    "window_size": 1023,
    "ssm_cfg": _PUBLISHED_SSM,
    "nsa_cfg": SMALL["nsa_cfg"]
    | {
        "compress_block_size": 16,
        "compress_stride": 8,
        "selection_block_size": 32,
        "num_selected_blocks": 8,
        "sliding_window_size": 128,
    },
}

SIZES: dict[str | None, dict[str, Any]] = {
    None: TINY,
    "hnet_x_nsa_small": SMALL,
    "hnet_x_nsa_2stage": TWO_STAGES,
    "hnet_x_nsa_fixed": FIXED,
}
