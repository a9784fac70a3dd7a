"""Coefficients per token: small MLPs whose outputs scale heads, streams and skips.

They start as constants (the second layer is zero), and are linear: no sigmoid bounds them.

B batch, T sequence, D model_dim, H heads, G hidden width.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanozoo_current_best_gpt.config import CurrentBestConfig

INIT_SCALE = 0.1  # tau at first; the constants below are what comes out
Table = dict[tuple[str, int | None], Tensor]  # (name, layer) to (B, T, size)


class Entry(NamedTuple):
    """A named coefficient, of a layer where it belongs to one."""

    name: str
    layer: int | None
    size: int
    init: float


class Coefficients(nn.Module):
    """tau (W2 gelu(W1 z) + c), cut into its entries."""

    def __init__(self, model_dim: int, hidden_dim: int, entries: list[Entry]) -> None:
        super().__init__()
        self.entries = entries
        self.w1 = nn.Parameter(torch.empty(hidden_dim, model_dim))
        self.w2 = nn.Parameter(torch.empty(sum(e.size for e in entries), hidden_dim))
        self.bias = nn.Parameter(torch.empty(len(self.w2)))
        self.init_weights()

    def init_weights(self) -> None:
        """
        w1     U(+-1 / sqrt(fan_in))
        w2     0
        bias   each entry's constant / tau
        """
        limit = 1 / math.sqrt(self.w1.shape[1])
        nn.init.uniform_(self.w1, -limit, limit)
        nn.init.zeros_(self.w2)
        inits = [e.init / INIT_SCALE for e in self.entries for _ in range(e.size)]
        with torch.no_grad():
            self.bias.copy_(torch.tensor(inits))

    def forward(self, z: Tensor, scale: Tensor | float = INIT_SCALE) -> Table:
        """Args: z (B, T, D); scale: tau."""
        out = F.linear(F.gelu(F.linear(z, self.w1)), self.w2, self.bias) * scale
        parts = out.split([e.size for e in self.entries], dim=-1)
        return {(e.name, e.layer): part for e, part in zip(self.entries, parts, strict=True)}


def gate_entries(config: CurrentBestConfig) -> list[list[Entry]]:
    """What the gate MLPs give: those read off the embedding, and those from gate_split_layer on."""
    heads = config.num_heads
    split = config.gate_split_layer or config.num_layers
    entries: list[Entry] = []
    entries += [Entry("xsa", layer, heads, 0.0) for layer in sorted(config.xsa_layers)]
    entries += [Entry("attention", layer, heads, 0.25) for layer in sorted(config.attn_gate_layers)]
    for layer in range(config.num_layers):
        if config.attends(layer) and not _is_mudd(config, layer):
            if config.x0_injection:
                entries.append(Entry("x0", layer, 1, 0.0))
            if config.bigram_rows:
                entries.append(Entry("bigram", layer, 1, 0.05))
    if _needs_first_injection(config):
        entries.append(Entry("bigram", 0, 1, 0.05))
    if config.skip is not None:
        entries.append(Entry("skip", config.skip[1], 1, 0.5))
    for layer in sorted(config.dc_layers):
        entries += [Entry("dc_read", layer, heads, 1.0), Entry("dc_write", layer, heads, 0.0)]
    late = [e for e in entries if e.layer is not None and e.layer >= split]
    return [[e for e in entries if e not in late], late]


def _is_mudd(config: CurrentBestConfig, layer: int) -> bool:
    return config.mudd and layer == config.num_layers - 1


def _needs_first_injection(config: CurrentBestConfig) -> bool:
    """The bigram enters before layer 0 whatever layer 0 does."""
    usual = config.attends(0) and not _is_mudd(config, 0)
    return config.bigram_rows > 0 and not usual


def mudd_entries(config: CurrentBestConfig) -> list[Entry]:
    """Coefficients of the last block: sources of values and stream, value gates, residuals."""
    sources = ["start", *(["snapshot"] if config.snapshot_layer is not None else []), "stream"]
    entries = [Entry(f"value_{source}", None, 1, 0.0) for source in sources]
    entries += [Entry(f"stream_{source}", None, 1, 0.0) for source in sources]
    if config.num_layers - 1 in config.value_embed_layers:
        halves = 2 if config.num_heads % 2 == 0 else 1
        entries.append(Entry("table", None, halves, 2.0))
    residual = math.sqrt(config.residual_scale)
    entries += [Entry("keep", None, 1, residual), Entry("add", None, 1, 1.0)]
    if config.x0_injection:
        entries.append(Entry("x0", None, 1, 0.0))
    if config.bigram_rows:
        entries.append(Entry("bigram", None, 1, 0.05))
    return [*entries, Entry("mlp_keep", None, 1, residual), Entry("mlp_add", None, 1, 1.0)]


def head_entries(config: CurrentBestConfig) -> list[Entry]:
    """Coefficients of what is added to the head's input, the last block's own input among them."""
    entries = [Entry("start", None, 1, 0.0), Entry("entry", None, 1, 0.0)]
    if config.snapshot_layer is not None:
        entries.append(Entry("snapshot", None, 1, -config.backout))
    if config.value_embed_layers:
        entries.append(Entry("table", None, 1, 0.0))
    if config.skip is not None:
        entries.append(Entry("skip", None, 1, 0.0))
    return entries
