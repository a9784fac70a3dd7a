"""Weights in the layout of transformers' GPT2LMHeadModel, in both directions.

Conv1D there stores its matrices as (in, out), the transpose of torch.nn.Linear. D model_dim,
V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from nanozoo_core.config import model_config
from nanozoo_core.errors import CheckpointError
from nanozoo_core.files import write_json
from nanozoo_core.tensor_files import write_tensors
from nanozoo_gpt2.config import GPT2Config
from nanozoo_gpt2.model import GPT2

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu"}
# Settings that change the function; only these values are GPT-2 as released.
FIXED = {
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def from_hf_state_dict(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names and layout to ours.

    Names may lack the prefix `transformer.`, as in the released files. Causal-mask buffers are
    dropped, and so is `lm_head.weight` where it repeats the embedding.
    """
    ours: dict[str, Tensor] = {}
    embedding = None
    for name, tensor in theirs.items():
        name = name.removeprefix("transformer.")
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        if name == "wte.weight":
            name, embedding = "embedding.weight", tensor
        elif name == "wpe.weight":
            name = "pos_embed.weight"
        ours[name] = tensor.t().contiguous() if name.endswith(TRANSPOSED) else tensor
    head = ours.get("lm_head.weight")
    if head is not None and embedding is not None and torch.equal(head, embedding):
        del ours["lm_head.weight"]
    return ours


def to_hf_state_dict(model: GPT2) -> dict[str, Tensor]:
    """Our weights under their names: padding rows left out, absent biases as zeros.

    A tied head is written once, as `transformer.wte.weight`.
    """
    theirs: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if name in ("embedding.weight", "lm_head.weight"):
            tensor = tensor[: model.vocab_size]
        if name.endswith(TRANSPOSED):
            tensor = tensor.t()
        tensor = tensor.contiguous()
        name = {"embedding.weight": "wte.weight", "pos_embed.weight": "wpe.weight"}.get(name, name)
        name = name if name.startswith("lm_head") else f"transformer.{name}"
        theirs[name] = tensor
        has_bias = name.startswith("transformer.h.") or name.startswith("transformer.ln_f")
        if has_bias and not model.config.bias:
            theirs[name.removesuffix("weight") + "bias"] = tensor.new_zeros(tensor.shape[-1])
    return theirs


def from_hf_config(theirs: Mapping[str, Any], *, pad_vocab_to: int = 1) -> GPT2Config:
    """The config of their `config.json`.

    Raises: CheckpointError for a setting that GPT-2 as released does not have.
    """
    if theirs.get("model_type", "gpt2") != "gpt2":
        raise CheckpointError(f"model_type={theirs['model_type']} must be gpt2")
    problems = [
        f"{key}={theirs[key]} is not GPT-2 as released, which has {value}"
        for key, value in FIXED.items()
        if theirs.get(key, value) != value
    ]
    activation = theirs.get("activation_function", "gelu_new")
    known = {name: ours for ours, name in ACTIVATIONS.items()}
    if activation not in known:
        problems.append(f"activation_function={activation} must be one of {', '.join(known)}")
    if problems:
        raise CheckpointError("; ".join(problems))
    width = theirs["n_embd"]
    changes = {
        "vocab_size": theirs["vocab_size"],
        "seq_len": theirs["n_positions"],
        "num_layers": theirs["n_layer"],
        "model_dim": width,
        "num_heads": theirs["n_head"],
        "mlp_ratio": (theirs.get("n_inner") or 4 * width) / width,
        "activation": known[activation],
        "tie_embeddings": theirs.get("tie_word_embeddings", True),
        "pad_vocab_to": pad_vocab_to,
    }
    config: GPT2Config = model_config("gpt2", changes)
    return config


def to_hf_config(config: GPT2Config) -> dict[str, Any]:
    """What `config.json` must hold for transformers to build the same function."""
    num_layers, num_heads, model_dim = config.shape
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.seq_len,
        "n_embd": model_dim,
        "n_layer": num_layers,
        "n_head": num_heads,
        "n_inner": config.mlp_dim,
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_embeddings,
        **FIXED,
    }


def load_pretrained(folder: Path, *, pad_vocab_to: int = 1) -> GPT2:
    """Reads a folder with `config.json` and `model.safetensors`, such as a released GPT-2.

    Raises: CheckpointError when a file is missing or the weights do not fit the config.
    """
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}")
    theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = GPT2(from_hf_config(theirs, pad_vocab_to=pad_vocab_to))
    load_weights(model, load_file(folder / "model.safetensors"))
    return model


def load_weights(model: GPT2, theirs: Mapping[str, Tensor]) -> None:
    """Copies their state dict into `model`; padding rows of the vocabulary become zeros.

    Raises: CheckpointError when names or shapes do not match.
    """
    ours = from_hf_state_dict(theirs)
    for name in ("embedding.weight", "lm_head.weight"):
        if name in ours:
            missing = model.output_weight.shape[0] - ours[name].shape[0]
            ours[name] = torch.nn.functional.pad(ours[name], (0, 0, 0, max(0, missing)))
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise CheckpointError(f"the weights do not fit the config: {error}") from error


def save_pretrained(model: GPT2, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors`, which transformers' GPT2LMHeadModel loads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", to_hf_config(model.config))
    write_tensors(folder / "model.safetensors", to_hf_state_dict(model))
