"""Models for the tests of this package."""

from typing import Any

import torch
from torch import nn

from nanozoo_core.config import model_config
from nanozoo_current_best_gpt.config import CurrentBestConfig
from nanozoo_current_best_gpt.model import CurrentBestGPT

SEPARATOR = 0

# The plain decoder that is left when every ingredient is off.
PLAIN: dict[str, Any] = {
    "smear": False,
    "bigram_rows": 0,
    "x0_injection": False,
    "window_pattern": "LLLL",
    "windows": ((64, 64),),
    "stage_starts": (0.0,),
    "paired_layers": (),
    "value_embed_layers": (),
    "xsa_layers": (),
    "attn_gate_layers": (),
    "dc_layers": (),
    "key_offset": False,
    "shared_attention_input": False,
    "snapshot_layer": None,
    "mudd": False,
    "backout": 0.0,
    "residual_scale": 1.0,
    "softcap": None,
    "attn_scale": None,
}

# Everything at once, as the contract's, with documents kept apart.
FULL: dict[str, Any] = {
    "bigram_rows": 64,
    "bigram_sign_rows": 16,
    "document_mask": True,
    "window_pattern": "SL-L",
    "windows": ((5, 9),),
    "stage_starts": (0.0,),
    "dc_window": 5,
    "skip": (0, 2),
    "gate_dim": 8,
    "gate_split_layer": 2,
    "mudd_dim": 8,
    "untie_at": 0.0,
}


def make_config(base: dict[str, Any], **changes: Any) -> CurrentBestConfig:
    shape = {"vocab_size": 20, "seq_len": 64, "num_layers": 4, "model_dim": 32, "num_heads": 4}
    config: CurrentBestConfig = model_config("current_best_gpt", shape | base | changes)
    return config


def make_model(base: dict[str, Any], *, seed: int = 0, **changes: Any) -> CurrentBestGPT:
    torch.manual_seed(seed)
    model = CurrentBestGPT(make_config(base, **changes))
    model.separator = SEPARATOR
    return model.eval()


def perturb(model: nn.Module, scale: float = 0.1) -> None:
    """Moves every parameter, so that what starts at zero takes part."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def tokens_of(
    num_rows: int, length: int, *, seed: int = 1, separators: bool = True
) -> torch.Tensor:
    """Random tokens below 20, about one in twenty beginning a document."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0 if separators else 1, 20, (num_rows, length), generator=generator)
