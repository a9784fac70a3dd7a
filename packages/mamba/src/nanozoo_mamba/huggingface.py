"""Weights in the layout of transformers' MambaForCausalLM and Mamba2ForCausalLM, both ways."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.errors import CheckpointError, ConfigError
from nanozoo_core.files import write_json
from nanozoo_core.tensor_files import write_tensors
from nanozoo_mamba.config import MambaConfig
from nanozoo_mamba.model import Mamba

ARCHITECTURES = {"mamba1": ("mamba", "MambaForCausalLM"), "mamba2": ("mamba2", "Mamba2ForCausalLM")}
# Their name of a part of a block's mixer or of the whole model, and ours.
PARTS = {"conv1d": "conv", "D": "skip"}
WHOLE = {
    "backbone.embeddings.weight": "embedding.weight",
    "backbone.embedding.weight": "embedding.weight",  # as the authors' own code names it
    "backbone.norm_f.weight": "norm.weight",
    "lm_head.weight": "head.weight",
}
# Our settings by their names, where both mean the same.
SETTINGS = {
    "vocab_size": "vocab_size",
    "hidden_size": "model_dim",
    "state_size": "d_state",
    "num_hidden_layers": "num_layers",
    "layer_norm_epsilon": "norm_eps",
    "expand": "expand",
    "conv_kernel": "d_conv",
    "use_bias": "use_bias",
    "use_conv_bias": "use_conv_bias",
    "initializer_range": "initializer_range",
    "residual_in_fp32": "residual_in_fp32",
    "time_step_min": "time_step_min",
    "time_step_max": "time_step_max",
    "time_step_floor": "time_step_floor",
    "rescale_prenorm_residual": "rescale_prenorm_residual",
    "tie_word_embeddings": "tie_embeddings",
}
ACTIVATION = "silu"  # the only one that the published models and ours have
NO_LIMIT = (0.0, float("inf"))
OWN_SETTINGS = {
    "mamba1": {
        "time_step_rank": "time_step_rank",
        "time_step_scale": "time_step_scale",
        "time_step_init_scheme": "time_step_init_scheme",
    },
    "mamba2": {"head_dim": "head_dim", "n_groups": "num_groups", "chunk_size": "chunk_size"},
}


def from_hf_state_dict(theirs: Mapping[str, Tensor], variant: str) -> dict[str, Tensor]:
    """Their names and layout to ours. A head that repeats the embedding is dropped; the rows of
    Mamba-2's step sizes become a projection of their own."""
    ours: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        if name in WHOLE:
            ours[WHOLE[name]] = tensor
            continue
        name = name.removeprefix("backbone.").replace("layers.", "blocks.", 1)
        head, _, part = name.partition(".mixer.")
        first, dot, rest = part.partition(".")
        ours[f"{head}.mixer.{PARTS.get(first, first)}{dot}{rest}" if part else name] = tensor
    head_weight, embedding = ours.get("head.weight"), ours.get("embedding.weight")
    if head_weight is not None and embedding is not None and torch.equal(head_weight, embedding):
        del ours["head.weight"]
    if variant == "mamba2":
        for name in [name for name in ours if ".mixer.in_proj." in name]:
            heads = ours[name.partition(".in_proj.")[0] + ".A_log"].shape[0]
            whole = ours[name]
            ours[name], dt = whole[:-heads].contiguous(), whole[-heads:].contiguous()
            ours[name.replace(".in_proj.", ".dt_proj.")] = dt
    return ours


def to_hf_state_dict(model: Mamba) -> dict[str, Tensor]:
    """Our weights under their names; a tied head is written once, as the embedding."""
    ours = {name: tensor.detach() for name, tensor in model.named_parameters()}
    if model.config.variant == "mamba2":
        for name in [name for name in ours if ".mixer.dt_proj." in name]:
            target = name.replace(".dt_proj.", ".in_proj.")
            ours[target] = torch.cat([ours[target], ours.pop(name)])
    whole = {ours_name: name for name, ours_name in reversed(WHOLE.items())}
    parts = {part: name for name, part in PARTS.items()}
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if name in whole:
            theirs[whole[name]] = tensor.contiguous()
            continue
        head, _, part = name.replace("blocks.", "backbone.layers.", 1).partition(".mixer.")
        first, dot, rest = part.partition(".")
        name = f"{head}.mixer.{parts.get(first, first)}{dot}{rest}" if part else head
        theirs[name] = tensor.contiguous()
    return theirs


def from_hf_config(theirs: Mapping[str, Any]) -> MambaConfig:
    """The config of their `config.json`.

    Raises: CheckpointError for a model that is not Mamba-1 or Mamba-2 as published.
    """
    variants = {model_type: variant for variant, (model_type, _) in ARCHITECTURES.items()}
    variant = variants.get(theirs.get("model_type", ""))
    if variant is None:
        raise CheckpointError(
            f"model_type={theirs.get('model_type')} must be one of {', '.join(variants)}"
        )
    names = SETTINGS | OWN_SETTINGS[variant]
    settings = {ours: theirs[name] for name, ours in names.items() if name in theirs}
    problems = []
    if theirs.get("hidden_act", ACTIVATION) != ACTIVATION:
        problems.append(f"hidden_act={theirs['hidden_act']} must be {ACTIVATION}")
    limits = theirs.get("time_step_limit", NO_LIMIT)
    if variant == "mamba2" and tuple(_number(limit) for limit in limits) != NO_LIMIT:
        problems.append(
            f"time_step_limit={limits} cuts step sizes, which this model does not do; it must be "
            "[0, inf]"
        )
    if variant == "mamba1" and "intermediate_size" in theirs:
        inner = settings.get("expand", 2) * settings["model_dim"]
        if theirs["intermediate_size"] != inner:
            problems.append(
                f"intermediate_size={theirs['intermediate_size']} must be expand * hidden_size="
                f"{inner}"
            )
    if problems:
        raise CheckpointError("; ".join(problems))
    try:
        config: MambaConfig = model_config("mamba", settings | {"variant": variant})
    except ConfigError as error:
        raise CheckpointError(f"the model's config does not fit: {error}") from error
    return config


def from_authors_config(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of state-spaces' own checkpoints (mamba-130m, mamba2-130m), as transformers
    would write it: what it does not say is what their code has.

    Raises: CheckpointError for layers that are no mixers.
    """
    if theirs.get("attn_layer_idx") or theirs.get("d_intermediate"):
        raise CheckpointError("a model with attention or MLPs between its mixers is not read")
    if not theirs.get("rms_norm", True):
        raise CheckpointError("rms_norm=false must be true")
    layer = dict(theirs.get("ssm_cfg") or {})
    kind = {"Mamba1": "mamba", "Mamba2": "mamba2"}[layer.pop("layer", "Mamba1")]
    multiple = theirs.get("pad_vocab_size_multiple", 8)
    found = {
        "model_type": kind,
        "hidden_size": theirs["d_model"],
        "num_hidden_layers": theirs["n_layer"],
        "vocab_size": -(-theirs["vocab_size"] // multiple) * multiple,
        "residual_in_fp32": theirs.get("residual_in_fp32", True),
        "tie_word_embeddings": theirs.get("tie_embeddings", True),
    }
    names = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand"}
    names |= {"headdim": "head_dim", "ngroups": "n_groups", "chunk_size": "chunk_size"}
    unknown = sorted(layer.keys() - names.keys())
    if unknown:
        raise CheckpointError(f"ssm_cfg.{unknown[0]}={layer[unknown[0]]} is not read")
    published = {"state_size": 16}
    if kind == "mamba2":
        published = {"state_size": 128, "head_dim": 64, "n_groups": 1, "chunk_size": 256}
    return found | published | {names[key]: value for key, value in layer.items()}


def to_hf_config(config: MambaConfig) -> dict[str, Any]:
    """What `config.json` must hold for transformers to build the same function.

    Raises: CheckpointError when transformers has no such model.
    """
    if config.mlp_dim:
        raise CheckpointError(
            f"model_cfg.mlp_dim={config.mlp_dim} adds MLPs, which transformers' Mamba has not; "
            "only models without them can be saved for it"
        )
    model_type, architecture = ARCHITECTURES[config.variant]
    names = SETTINGS | OWN_SETTINGS[config.variant]
    settings = {name: getattr(config, ours) for name, ours in names.items()}
    settings["hidden_act"] = ACTIVATION
    if config.variant == "mamba1":
        settings["intermediate_size"] = config.inner_dim
    else:
        settings["num_heads"] = config.inner_dim // config.heads.head_dim
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    return {"architectures": [architecture], "model_type": model_type, **settings, **tokens}


def load_pretrained(folder: Path) -> Mamba:
    """Reads a folder with `config.json` and `model.safetensors`, such as state-spaces'
    mamba-130m-hf.

    Raises: CheckpointError when a file is missing or the weights do not fit the config.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}")
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Mamba(from_hf_config(theirs))
    load_weights(model, load_file(folder / "model.safetensors"))
    return model


def load_weights(model: Mamba, theirs: Mapping[str, Tensor]) -> None:
    """Copies their state dict into `model`.

    Raises: CheckpointError when names or shapes do not match.
    """
    try:
        model.load_state_dict(from_hf_state_dict(theirs, model.config.variant))
    except (RuntimeError, KeyError) as error:
        raise CheckpointError(f"the weights do not fit the config: {error}") from error


def save_pretrained(model: Mamba, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers loads."""
    config = to_hf_config(model.config)  # raises for a model that transformers has not
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_tensors(folder / "model.safetensors", to_hf_state_dict(model))


def _number(value: Any) -> float:
    """JSON knows no infinity: transformers writes it as {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)
