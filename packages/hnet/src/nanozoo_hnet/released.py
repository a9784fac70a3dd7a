"""Weights in the layout of the authors' own code, goombalab/hnet, both ways.

The released models have 256 symbols: bytes, of which 254 and 255, which no text has, begin and end
a text. They are read and scored as any other model; our tokenizer of bytes has 258 symbols, so they
cannot be trained on with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_hnet.config import HNetConfig
from nanozoo_hnet.model import HNet

# A part of our names, and theirs; parts that are not here have one name.
PARTS = {
    "embedding": "embeddings",
    "head": "lm_head",
    "stage": "backbone",
    "inner": "main_network",
    "network": "main_network",
    "blocks": "layers",
    "mixer_norm": "norm1",
    "mlp_norm": "norm2",
    "qkv": "Wqkv",
    "conv": "conv1d",
    "skip": "D",
    "gate_up": "fc1",
    "down": "fc2",
    "chunker": "routing_module",
    "query": "q_proj_layer",
    "key": "k_proj_layer",
    "residual": "residual_proj",
    "vector": "pad_dimension",
}
MLP_MULTIPLE = 128  # their code rounds the width of an MLP up to it
SSM_HEAD = 64  # channels of a scan's head; their configs leave it to mamba_ssm


def their_name(name: str) -> str:
    """The name of our parameter in their state dict."""
    parts = name.split(".")
    found = [PARTS.get(part, part) for part in parts if part != "widen"]
    if parts[-2:-1] == ["norm"] and "mixer" not in parts:
        found[-2] = "rmsnorm"  # behind a network; that inside a mixer keeps its name
    return ".".join(found)


def to_released(model: HNet) -> dict[str, Tensor]:
    """Our weights under their names and in their layout."""
    theirs: dict[str, Tensor] = {}
    ours = {name: tensor.detach() for name, tensor in model.named_parameters()}
    for name, tensor in ours.items():
        if ".dt_proj." in name:
            continue
        if ".in_proj." in name:  # one projection, whose last rows are the step sizes
            tensor = torch.cat([tensor, ours[name.replace(".in_proj.", ".dt_proj.")]])
        theirs[their_name(name)] = _exchanged(name, tensor).contiguous()
    if model.config.tie_embeddings:
        theirs["lm_head.weight"] = theirs["embeddings.weight"]
    return theirs


def from_released(theirs: Mapping[str, Tensor], model: HNet) -> dict[str, Tensor]:
    """Their weights under the names of `model` and in our layout.

    Raises: CheckpointError when names or shapes are not those of `model`.
    """
    expected = {name: tensor.shape for name, tensor in to_released(model).items()}
    found = {name: tensor.shape for name, tensor in theirs.items()}
    wrong = sorted(name for name in expected | found if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"the weights do not fit the config: {len(wrong)} differ, the first of them '{name}', "
            f"which is {_shape(found.get(name))} and should be {_shape(expected.get(name))}"
        )
    ours: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        source = theirs[their_name(name.replace(".dt_proj.", ".in_proj."))]
        if ".dt_proj." in name:
            source = source[-len(parameter) :]
        elif ".in_proj." in name:
            source = source[: len(parameter)]
        ours[name] = _exchanged(name, source).contiguous()
    return ours


def released_config(theirs: Mapping[str, Any]) -> HNetConfig:
    """The config of one of their JSON files.

    Raises: CheckpointError when it is no such file or its values do not fit.
    """
    try:
        attention = theirs["attn_cfg"]
        settings = {
            "arch_layout": theirs["arch_layout"],
            "model_dim": theirs["d_model"],
            "mlp_dim": [-(-width // MLP_MULTIPLE) * MLP_MULTIPLE for width in
                        theirs["d_intermediate"]],
            "vocab_size": theirs["vocab_size"],
            "ssm_cfg": {**theirs["ssm_cfg"], "head_dim": SSM_HEAD},
            "tie_embeddings": theirs["tie_embeddings"],
            **{key: attention[key] for key in ("num_heads", "rotary_emb_dim", "window_size")},
        }  # fmt: skip
        config: HNetConfig = model_config("hnet", settings)
    except KeyError as error:
        raise CheckpointError(f"the model's config has no {error}") from error
    except ConfigError as error:
        raise CheckpointError(f"the model's config does not fit: {error}") from error
    return config


def load_released(weights: Path, config: Path) -> HNet:
    """The model of a file of weights, such as hnet_2stage_XL.pt, and of its config, such as
    hnet_2stage_XL.json.

    Raises: CheckpointError when a file is missing or they do not fit each other.
    """
    for path in (weights, config):
        if not path.is_file():
            raise CheckpointError(f"there is no file {path}")
    model = HNet(released_config(json.loads(config.read_text(encoding="utf-8"))))
    theirs = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(from_released(theirs, model), strict=not model.config.tie_embeddings)
    return model


def _exchanged(name: str, tensor: Tensor) -> Tensor:
    """Their MLP has what is gated first and the gate second."""
    return torch.cat(tensor.chunk(2)[::-1]) if ".gate_up." in name else tensor


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else str(tuple(shape))
